package export

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
)

// ocsfVersion is the version of the schema that events follow.
const ocsfVersion = "1.8.0"

type object = map[string]any

// captions of the severities that are used.
var captions = map[int]string{0: "Unknown", 1: "Informational", 3: "Medium", 4: "High"}

// uid names an entry among all trails.
func uid(v event) string { return v.trail + "/" + strconv.FormatUint(v.Seq, 10) }

// ocsf is an event of the Open Cybersecurity Schema Framework, on one line.
// What it has no attribute for is under unmapped.
func (r renderer) ocsf(b *bytes.Buffer, v event) {
	rank, ok := ranks[v.Severity]
	if !ok {
		rank.ocsf = 0 // unknown
	}
	said := func(s string) string { return clean(s, "\t\r\n") }
	unmapped := object{}
	for _, d := range v.details {
		unmapped["detail."+said(d.key)] = said(d.value)
	}
	put := func(o object, k, val string) {
		if val != "" {
			o[k] = said(val)
		}
	}
	put(unmapped, "trail", v.trail)
	unmapped["class"] = v.id
	unmapped["seq"] = v.Seq
	unmapped["prev"] = v.prev
	put(unmapped, "hash", hash(v))
	put(unmapped, "subject", v.Subject)
	put(unmapped, "outcome", v.Outcome)
	put(unmapped, "site", v.Site)

	meta := object{
		"version": ocsfVersion, "product": object{"name": "Tillward", "vendor_name": "Tillward", "version": r.version},
		"uid": said(uid(v)), "sequence": v.N, "event_code": said(v.Kind), "log_name": "audit", "log_provider": "tillward",
	}
	put(meta, "tenant_uid", string(v.Tenant))
	if !v.StoredAt.IsZero() {
		meta["logged_time"] = v.StoredAt.UnixMilli()
	}
	if v.cut {
		meta["is_truncated"] = true
	}
	e := object{
		"time": v.At.UnixMilli(), "severity_id": rank.ocsf, "severity": captions[rank.ocsf], "message": said(v.message()), "metadata": meta,
		"status_code": said(v.Kind), "unmapped": unmapped,
	}
	classify(e, meta, v, said)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		panic(err) // there are only strings and numbers in it
	}
	b.Truncate(b.Len() - 1) // the line feed
}

// classify gives e the class, the activity and what the class asks for.
func classify(e, meta object, v event, said func(string) string) {
	category, id, activity := 0, 0, v.activity
	actor, device := v.Actor != "", v.Device != ""
	switch {
	case v.ocsf == authn:
		category, id = 3, 3002
		e["service"] = object{"name": "Tillward " + said(v.Subject)}
		e["status_id"], e["status"] = 1, "Success"
		if v.Severity != "info" {
			e["status_id"], e["status"] = 2, "Failure"
		}
		e["user"] = object{"name": said(v.Actor)}
		if from, err := netip.ParseAddrPort(v.Actor); err == nil { // nobody knows who that was
			e["user"] = object{"name": "unknown"}
			e["src_endpoint"] = object{"ip": from.Addr().String(), "port": from.Port()}
		} else if v.Actor == "" {
			e["user"] = object{"name": "unknown"}
		}
		actor = false
	case v.ocsf == managed:
		category, id = 3, 3004
		what, _, _ := strings.Cut(v.Kind, ".")
		which := v.Subject
		if which == "" {
			which = v.trail
		}
		e["entity"] = object{"uid": said(which), "type": said(what)}
	case v.Severity == "alarm":
		category, id, activity = 2, 2004, create
		e["finding_info"] = object{"uid": said(uid(v)), "title": said(v.name), "desc": said(v.message())}
		e["is_alert"] = true
	}
	if activity == other {
		e["activity_name"] = said(v.name)
	}
	if actor {
		e["actor"] = object{"user": object{"name": said(v.Actor)}}
	}
	if device {
		e["device"] = object{"uid": said(v.trail), "type_id": 99, "type": "Point of Sale"}
	}
	if device && id != 2004 || actor && category != 3 { // where actor and device belong to the class itself
		meta["profiles"] = []string{"host"}
	}
	e["category_uid"], e["class_uid"], e["activity_id"], e["type_uid"] = category, id, activity, 100*id+activity
}
