package wire

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// What stands in a record in the place of a text that may not.
const (
	AuditMisfit   = "?"                                      // it is not of its form
	AuditWithheld = "[dropped: it could hold a card number]" // the guard held it back
)

// AuditKind is what a device may say in a record of one kind. There is no free
// text: Subject and each detail have a form, and what does not fit it is not
// told.
//
//	code      a word such as timeout, M_COVER_OPEN or boot.unknown-event, at most 64 bytes
//	codes     words of that form with a space between them, at most 512 bytes
//	number    a decimal number
//	time      RFC 3339
//	duration  as Go writes it: 1h2m3s
//	hash      8 to 128 lower-case hexadecimal digits
//	id        of a device, execution, command, key, operator or file, without spaces, at most 96 bytes
//	version   of a release, or where it lies, without spaces, at most 256 bytes
//	address   host and port, URL or path, without spaces, at most 256 bytes
type AuditKind struct {
	Name    string
	Subject string // form; empty: there is none
	Outcome string // success, failure, refused; empty: nothing was tried
	Actor   string // service: the service did it; by: the operator whom the detail by names; empty: the device itself
	Details string // name:form, with a space between two
}

// auditKinds is every kind that an agent may record, by name.
var auditKinds = [...]AuditKind{
	{"agent.factory-reset", "id", "", "", ""},
	{"agent.reboot", "version", "", "", ""},
	{"agent.start", "version", "", "", "slot:code"},
	{"agent.stop", "version", "", "", ""},
	{"attest.attested", "address", Success, "service", verdict},
	{"attest.degraded", "address", "", "service", verdict},
	{"attest.pending", "address", "", "service", verdict},
	{"attest.quarantined", "address", Refused, "service", verdict},
	{"attest.stale", "address", "", "service", verdict},
	{"audit.anchor", "", Success, "", "why:code counter:number"},
	{"audit.break", "", Failure, "", "reason:code seq:number kept:id"},
	{"audit.countersigned", "number", Success, "service", "seq:number key:id hash:hash"},
	{"audit.disputed", "number", Refused, "service", "reason:code seq:number key:id hash:hash have:hash"},
	{"clock.behind", "", "", "", "by:duration"},
	{"command.done", "id", Success, "by", order},
	{"command.expired", "id", Refused, "by", order},
	{"command.failed", "id", Failure, "by", order},
	{"command.refused", "id", Refused, "", order + " by:id suppressed:number"}, // nobody vouches for who it claims to be by
	{"command.rejected", "id", Refused, "by", order},
	{"command.start", "id", "", "by", order},
	{"enrol.done", "id", Success, "service", "tenant:id tier:code source:code owner:code"},
	{"enrol.failed", "", Failure, "", "reason:code check:code"},
	{"enrol.unclaimed", "", Refused, "service", "reason:code device:id"},
	{"identity.foreign", "id", "", "", "reason:code kept:id"},
	{"identity.lost", "id", "", "", "reason:code"},
	{"identity.recovery", "id", Failure, "", "reason:code check:code"},
	{"identity.refused", "id", Refused, "service", "what:code reason:code check:code"},
	{"identity.renewed", "id", Success, "", "certificate:id until:time by:code"},
	{"identity.rotated", "id", Success, "", "certificate:id until:time"},
	{"link.down", "address", "", "", "reason:code"},
	{"link.restricted", "address", Refused, "service", "verdict:code reason:code"},
	{"link.up", "address", Success, "", "verdict:code"},
	{"owner.refused", "", Refused, "", "reason:code check:code"},
	{"owner.relinquish", "id", Success, "service", "mark:id tenant:id"},
	{"peripheral.fault", "id", "", "", health},
	{"peripheral.quarantined", "id", "", "", "category:code driver:code reason:code"},
	{"peripheral.recovered", "id", "", "", health},
	{"peripheral.unusable", "id", Failure, "", "reason:code"},
	{"service.found", "address", Success, "", "source:code server_name:address"},
	{"spool.rebuilt", "id", "", "", ""},
	{"spool.shed", "", "", "", "class:code messages:number thinned:number samples:number from:time to:time"},
	{"update.already-installed", "id", Success, "", ended},
	{"update.checking", "id", "", "", "version:version"},
	{"update.failed", "id", Failure, "", ended},
	{"update.fallback", "id", Failure, "", "component:version version:version reason:code"},
	{"update.installed", "id", Success, "", "version:version"},
	{"update.medium", "id", Success, "by", "folder:address releases:number here:number"},
	{"update.medium-refused", "address", Refused, "", "reason:code"},
	{"update.metadata-expired", "", "", "", "signed:time expires:time"},
	{"update.metadata-old", "", "", "", "signed:time expires:time"},
	{"update.offer-refused", "", Refused, "", "reason:code"},
	{"update.offered", "id", "", "service", "version:version target:version"},
	{"update.reboot", "id", "", "", "version:version reason:code reboot:number"},
	{"update.rejected", "id", Refused, "", ended},
	{"update.rolled-back", "id", Failure, "", ended},
	{"update.staged", "id", Success, "", "version:version"},
	{"update.stale-lock", "address", "", "", "reason:code"},
	{"update.succeeded", "id", Success, "", ended},
	{"update.trial", "id", "", "", "component:version version:version"},
	{"vault.closed", "", Failure, "", "reason:code"},
	{"vault.data-closed", "", Failure, "", "reason:code"},
	{"vault.data-lost", "", Failure, "", "reason:code"},
	{"vault.lost", "", Failure, "", "reason:code"},
	{"vault.opened", "", Success, "", ""},
	{"vault.sealed", "", Success, "", "release:version"},
}

// Details that kinds share.
const (
	verdict = "release:version check:code pcr:id event:hash also:codes may:codes until:time"
	order   = "verb:code counter:number args:codes reason:code"
	ended   = "state:code from:version to:version reason:code"
	health  = "category:code health:code was:code reason:code power:code flapping:number"
)

// AuditKinds are the kinds that an agent may record, by name.
func AuditKinds() []AuditKind { return slices.Clone(auditKinds[:]) }

// AuditKindOf returns the row of a kind.
func AuditKindOf(kind string) (AuditKind, bool) {
	i, ok := slices.BinarySearchFunc(auditKinds[:], kind, func(k AuditKind, name string) int { return strings.Compare(k.Name, name) })
	if !ok {
		return AuditKind{}, false
	}
	return auditKinds[i], true
}

// form is that of a detail; false: the kind has no such detail.
func (k AuditKind) form(name string) (string, bool) {
	for rest := k.Details; rest != ""; {
		var field string
		field, rest, _ = strings.Cut(rest, " ")
		if is, form, _ := strings.Cut(field, ":"); is == name {
			return form, true
		}
	}
	return "", false
}

// Fit makes r a record that CheckKind takes: outcome and actor are those of its
// kind, values without text are left out, what does not fit its form is marked,
// and of a kind that is not known the name alone stays. misfits names what was
// marked or left out for that.
func (r AuditRecord) Fit() (fit AuditRecord, misfits []string) {
	k, known := AuditKindOf(r.Kind)
	if !known {
		if checkName("audit kind", r.Kind) != nil {
			r.Kind = AuditMisfit
		}
		r.Subject, r.Actor, r.Outcome, r.Detail = "", "", "", nil
		return r, []string{"kind"}
	}
	detail := make(map[string]string, len(r.Detail))
	by := ""
	for name, v := range r.Detail {
		form, listed := k.form(name)
		switch {
		case name == "by" && k.Actor == "by":
			by = v
			continue
		case v == "":
			continue
		case !listed:
			misfits = append(misfits, "detail "+name)
			continue
		}
		if detail[name] = fitted(form, v); detail[name] != v {
			misfits = append(misfits, "detail "+name)
		}
	}
	if r.Detail = detail; len(detail) == 0 {
		r.Detail = nil
	}
	subject := r.Subject
	if r.Subject = ""; subject != "" && k.Subject != "" {
		r.Subject = fitted(k.Subject, subject)
	}
	if r.Subject != subject {
		misfits = append(misfits, "subject")
	}
	r.Outcome, r.Actor = k.Outcome, ""
	switch {
	case k.Actor == "service":
		r.Actor = k.Actor
	case by != "":
		r.Actor = "operator:" + fitted("id", by)
		if r.Actor != "operator:"+by {
			misfits = append(misfits, "actor")
		}
	}
	slices.Sort(misfits)
	return r, misfits
}

// CheckKind reports what of r is not as its kind has it. A service knows agents
// of before version 5, whose records hold free text: it is no reason to refuse
// one.
func (r AuditRecord) CheckKind() error {
	k, known := AuditKindOf(r.Kind)
	if !known {
		return fmt.Errorf("audit kind %.64q is not in the contract: %w", r.Kind, ErrMalformed)
	}
	if r.Subject != "" && (k.Subject == "" || !fits(k.Subject, r.Subject)) {
		return fmt.Errorf("%s: subject is not of the form %q: %w", r.Kind, k.Subject, ErrMalformed)
	}
	for name, v := range r.Detail {
		form, listed := k.form(name)
		if !listed {
			return fmt.Errorf("%s: detail %.64q is not in the contract: %w", r.Kind, name, ErrMalformed)
		}
		if !fits(form, v) {
			return fmt.Errorf("%s: detail %s is not of the form %s: %w", r.Kind, name, form, ErrMalformed)
		}
	}
	by, is := strings.CutPrefix(r.Actor, "operator:")
	if r.Actor != "" && r.Actor != "service" && r.Actor != AuditWithheld && (!is || !fits("id", by)) {
		return fmt.Errorf("%s: actor is none: %w", r.Kind, ErrMalformed)
	}
	return nil
}

// fitted is v, or what stands in its place; of a list, what fits stays.
func fitted(form, v string) string {
	if form == "codes" && len(v) <= MaxText {
		words := strings.Split(v, " ")
		for i, w := range words {
			words[i] = fitted("code", w)
		}
		return strings.Join(words, " ")
	}
	if fits(form, v) {
		return v
	}
	return AuditMisfit
}

// fits reports whether v is of the form, or a mark.
func fits(form, v string) bool {
	if v == AuditMisfit || v == AuditWithheld {
		return true
	}
	switch form {
	case "code":
		return only(v, 64, "._-")
	case "codes":
		for w := range strings.SplitSeq(v, " ") {
			if !fits("code", w) {
				return false
			}
		}
		return len(v) <= MaxText
	case "number":
		digits := strings.TrimPrefix(v, "-")
		return digits != "" && len(digits) <= 20 && strings.Trim(digits, "0123456789") == ""
	case "time":
		_, err := time.Parse(time.RFC3339, v)
		return err == nil
	case "duration":
		_, err := time.ParseDuration(v)
		return err == nil && len(v) <= 32
	case "hash":
		return len(v) >= 8 && len(v) <= 128 && strings.Trim(v, "0123456789abcdef") == ""
	case "id":
		return only(v, 96, "._:@+-~")
	case "version":
		return only(v, 256, "._:@+-~/")
	case "address":
		return only(v, 256, "._:@+-~/[]%?=&#,;!$'()*")
	}
	return false
}

// only reports whether v has 1 to limit letters and digits of ASCII and marks.
func only(v string, limit int, marks string) bool {
	for i := range len(v) {
		if c := v[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte(marks, c) < 0 {
			return false
		}
	}
	return v != "" && len(v) <= limit
}
