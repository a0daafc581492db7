package api_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/api"
	"github.com/tillward/tillward/cloud/internal/fleet"
	deeds "github.com/tillward/tillward/provisioning/owner"
)

// act is how an operation of the API is done, and what the trail says of it.
type act struct {
	kind string                                    // of the entry
	do   func(t *testing.T, s *site) (string, any) // what is needed first, then path and body
	site string                                    // of the entry
}

// to is an act that needs nothing first.
func to(kind, path string, body any) act {
	return act{kind: kind, do: func(*testing.T, *site) (string, any) { return path, body }}
}

// on is an act about device d1, which is in Berlin.
func on(kind, path string, body any, first ...func(*testing.T, *site)) act {
	return act{kind: kind, site: "berlin", do: func(t *testing.T, s *site) (string, any) {
		for _, f := range first {
			f(t, s)
		}
		return path, body
	}}
}

// rolled is an act about a rollout that stands as state.
func rolled(kind, verb string, state fleet.RolloutState, body object) act {
	return act{kind: kind, do: func(t *testing.T, s *site) (string, any) {
		s.released(t, "agent/1.0.0")
		must(t, s.store.AddRollout(t.Context(), fleet.Rollout{
			ID: "ro_1", Tenant: "main", Release: "agent/1.0.0", State: state, CreatedBy: "anna", ApprovedBy: "ben", CreatedAt: time.Now(), Holds: []fleet.Hold{{Model: "m", Since: time.Now()}},
		}, fleet.AuditEvent{Kind: "rollout.drafted"}))
		if verb == "/retry" {
			_, err := s.store.Enlist(t.Context(), "ro_1")
			must(t, err)
			units, _, err := s.store.Units(t.Context(), "ro_1", 0)
			must(t, err)
			_, err = s.store.MoveExecution(t.Context(), fleet.ExecutionStep{ID: units[0].ID, State: fleet.ExecFailed, Reason: "timeout"}, time.Now())
			must(t, err)
		}
		return "/v1/rollouts/ro_1" + verb, body
	}}
}

// silent are operations by methods that may change something and that leave no
// entry when they are done: nothing is different afterwards.
var silent = []string{"preview-rollout"}

// done says of every other such operation how it is done.
var done = map[string]act{
	"create-token": to("token.issued", "/v1/tokens", object{"name": "n", "role": "viewer"}),
	"revoke-token": {kind: "token.revoked", do: func(t *testing.T, s *site) (string, any) {
		_, tok, err := s.accounts.Issue(t.Context(), "main", "n", fleet.Viewer, 0, "test")
		must(t, err)
		return "/v1/tokens/" + tok.ID, nil
	}},
	"send-command": on("command.issued", "/v1/commands", object{"device": "d1", "verb": "identify"}),
	"set-device":   on("device.changed", "/v1/devices/d1", object{"label": "Lane"}),
	"test-export":  to("export.tested", "/v1/exports/siem/test", nil),
	"export-medium": {kind: "release.exported", do: func(t *testing.T, s *site) (string, any) {
		repo, keys := repository(t)
		release(t, repo, keys, "1.0.0")
		_, _ = items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir)))
		return "/v1/media", object{"releases": []string{"agent/1.0.0"}}
	}},
	"import-manifest": {kind: "manifest.imported", do: func(t *testing.T, s *site) (string, any) {
		f, err := deeds.SignManifest(s.vendor, deeds.Manifest{Vendor: "Vend", Batch: "B", Order: "1", MadeAt: time.Now(), Entries: []deeds.Listed{{EKHash: strings.Repeat("ab", 32), Model: "m", Serial: "1"}}})
		must(t, err)
		return "/v1/manifests", strings.NewReader(string(f))
	}},
	"import-order":    {kind: "ownership.accepted", do: sold("/v1/orders")},
	"import-vouchers": {kind: "ownership.accepted", do: sold("/v1/vouchers")},
	"claim": {kind: "device.claimed", do: func(t *testing.T, s *site) (string, any) {
		c, ek := s.made(t, "one")
		must(t, s.store.NoteWaiting(t.Context(), fleet.Waiting{Device: fleet.DeviceID(c.Device), EKHash: hex.EncodeToString(ek[:]), Serial: "S-one", LastAt: time.Now()}))
		return "/v1/claims", object{"uri": c.URI()}
	}},
	"claim-device": {kind: "device.claimed", do: func(t *testing.T, s *site) (string, any) {
		must(t, s.store.NoteWaiting(t.Context(), fleet.Waiting{Device: "w1", EKHash: "w1", Tier: fleet.TierA, LastAt: time.Now()}))
		return "/v1/claims/device", object{"device": "w1"}
	}},
	"claim-order": {kind: "order.claimed", do: func(t *testing.T, s *site) (string, any) {
		s.made(t, "two")
		return "/v1/claims/order", object{"vendor": "Vend", "order": "4711"}
	}},
	"transfer-device": {kind: "ownership.offered", do: func(t *testing.T, s *site) (string, any) {
		return "/v1/devices/" + s.bought(t, "one") + "/transfer", offer
	}},
	"object": {kind: "ownership.objected", do: func(t *testing.T, s *site) (string, any) {
		path := "/v1/devices/" + s.bought(t, "one") + "/transfer"
		into[object](t, s.as(t, fleet.Admin, "POST", path, offer))
		return path + "/object", object{"reason": "r"}
	}},
	"publish-releases": {kind: "release.published", do: func(t *testing.T, _ *site) (string, any) {
		repo, keys := repository(t)
		release(t, repo, keys, "1.0.0")
		return "/v1/releases", pack(t, repo.Dir)
	}},
	"create-rollout": {kind: "rollout.submitted", do: func(t *testing.T, s *site) (string, any) {
		s.released(t, "agent/1.0.0")
		return "/v1/rollouts", object{"release": "agent/1.0.0"}
	}},
	"change-rollout":   rolled("rollout.changed", "", fleet.RolloutDraft, object{"release": "agent/1.0.0", "spec": object{}}),
	"submit-rollout":   rolled("rollout.submit", "/submit", fleet.RolloutDraft, object{}),
	"approve-rollout":  rolled("rollout.approve", "/approve", fleet.RolloutAwaiting, object{}),
	"deny-rollout":     rolled("rollout.deny", "/deny", fleet.RolloutAwaiting, object{}),
	"start-rollout":    rolled("rollout.start", "/start", fleet.RolloutReady, object{}),
	"pause-rollout":    rolled("rollout.pause", "/pause", fleet.RolloutRunning, object{}),
	"resume-rollout":   rolled("rollout.resume", "/resume", fleet.RolloutPaused, object{}),
	"abort-rollout":    rolled("rollout.abort", "/abort", fleet.RolloutRunning, object{}),
	"complete-rollout": rolled("rollout.complete", "/complete", fleet.RolloutRunning, object{}),
	"retry-rollout":    rolled("rollout.retry", "/retry", fleet.RolloutRunning, object{}),
	"release-hold":     rolled("rollout.hold_released", "/holds/release", fleet.RolloutRunning, object{"model": "m"}),
	"set-site":         {kind: "site.changed", site: "berlin", do: to("", "/v1/sites/berlin", object{"zone": "", "download": "", "install": ""}).do},
	"attest-device": on("attest.requested", "/v1/devices/d1/attest", nil, func(t *testing.T, s *site) {
		must(t, s.store.SetPresence(t.Context(), "d1", true, time.Now()))
	}),
	"waive-device":  on("device.waived", "/v1/devices/d1/waiver", object{"until": time.Now().Add(time.Hour), "reason": "r"}),
	"end-waiver":    on("device.waiver-ended", "/v1/devices/d1/waiver", nil),
	"revoke-device": on("device.revoked", "/v1/devices/d1/revoke", object{"reason": "r"}),
	"readmit-device": on("device.readmitted", "/v1/devices/d1/readmit", object{"reason": "r"}, func(t *testing.T, s *site) {
		must(t, s.store.Revoke(t.Context(), "main", "d1", "r", fleet.AuditEvent{Kind: "device.revoked"}))
	}),
	"decide-firmware": {kind: "firmware.decided", do: func(t *testing.T, s *site) (string, any) {
		must(t, s.store.SeeFirmware(t.Context(), "main", "vend-1", "d1", []fleet.FirmwareEvent{{PCR: 4, Digest: strings.Repeat("ab", 32), What: "x", FirstAt: time.Now()}}))
		return "/v1/firmware/decision", object{"model": "vend-1", "pcr": 4, "digest": strings.Repeat("ab", 32), "decision": "approved", "reason": "r"}
	}},
	"rotate-authority": to("authority.rotated", "/v1/authority/rotate", object{"reason": "r"}),
	"retire-authority": to("authority.retired", "/v1/authority/retire", object{"serial": "aa", "reason": "r"}),
	"sign-in": {kind: "access.signed-in", do: func(_ *testing.T, s *site) (string, any) {
		return "/v1/session", object{"token": s.token[fleet.Admin]}
	}},
	"sign-out": to("access.signed-out", "/v1/session", nil),
}

var offer = object{"to": object{"name": "Buyer AG", "key": base64.StdEncoding.EncodeToString(buyer.Public().(ed25519.PublicKey))}, "may_transfer": true}

// sold uploads the voucher of a device that was sold to main.
func sold(path string) func(t *testing.T, s *site) (string, any) {
	return func(t *testing.T, s *site) (string, any) {
		p := into[struct{ Name, Tenant, Key string }](t, s.as(t, fleet.Viewer, "GET", "/v1/tenant", nil))
		key, err := base64.StdEncoding.DecodeString(p.Key)
		must(t, err)
		v, err := deeds.NewVoucher(s.vendor, deeds.Product{Vendor: "Vend", EKHash: [32]byte{1}, Model: "vend-1", Serial: "S"}, time.Now())
		must(t, err)
		v, err = v.Transfer(s.vendor.Public().(ed25519.PublicKey), s.vendor, deeds.Party{Key: key, Name: p.Name, Tenant: p.Tenant}, deeds.Terms{MayTransfer: true}, time.Now())
		must(t, err)
		return path, strings.NewReader(string(deeds.EncodeOrder([]deeds.Voucher{v})))
	}
}

// since lists the entries of the service's trail that are new, and goes on behind them.
func (s *site) since(t *testing.T, n *int64) []fleet.TrailEntry {
	t.Helper()
	all, err := s.store.Trails(t.Context(), *n, 1000)
	must(t, err)
	if len(all) > 0 {
		*n = all[len(all)-1].N
	}
	return slices.DeleteFunc(all, func(e fleet.TrailEntry) bool { return e.Device != "" })
}

// TestEveryDeedIsInTheTrail walks all operations that the API describes. Each
// that may change something leaves an entry with who, what, where and outcome
// when it is done, another when it is asked for and cannot be done, and another
// when who asks may not.
func TestEveryDeedIsInTheTrail(t *testing.T) {
	type operation struct {
		ID string `json:"operationId"`
	}
	doc := into[struct {
		Paths map[string]map[string]operation
	}](t, newSite(t).do(t, "", "GET", "/v1/openapi.json", nil))
	seen := map[string]bool{}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			if method == "get" || method == "head" || slices.Contains(silent, op.ID) {
				continue
			}
			seen[op.ID] = true
			d, ok := done[op.ID]
			if !ok {
				t.Errorf("%s %s: nobody says here which entry %s leaves", method, path, op.ID)
				continue
			}
			t.Run(op.ID, func(t *testing.T) { witness(t, strings.ToUpper(method), path, op.ID, d) })
		}
	}
	for id := range done {
		if !seen[id] {
			t.Errorf("the API has no %s any more", id)
		}
	}
}

func witness(t *testing.T, method, pattern, id string, d act) {
	s := siteWith(t, func(deps *api.Deps) { deps.FourEyes = true })
	path, body := d.do(t, s)
	var n int64
	s.since(t, &n)
	session := strings.HasPrefix(id, "sign-")
	nonsense := strings.NewReplacer("{id}", "nothing", "{name}", "nothing").Replace(pattern)

	if !session { // of sign-in and sign-out TestSession and TestGuessing know
		if r := s.as(t, fleet.Viewer, method, nonsense, object{}); r.status != http.StatusForbidden {
			t.Errorf("viewer: got %s", r)
		}
		got := s.since(t, &n)
		if len(got) != 1 || got[0].Kind != "access.refused" || got[0].Actor != "viewer" || got[0].Outcome != fleet.Refused || got[0].Detail["operation"] != id || got[0].Tenant != "main" {
			t.Errorf("refused: got %+v", got)
		}
		var bad any = object{}
		if _, ok := body.(io.Reader); ok {
			bad = strings.NewReader("x")
		}
		if id == "rotate-authority" || id == "set-site" { // whatever is said right is done
			bad = object{"unknown": true}
		}
		r := s.as(t, fleet.Admin, method, nonsense, bad)
		got = s.since(t, &n)
		if r.status < 400 || len(got) == 0 || slices.ContainsFunc(got, func(e fleet.TrailEntry) bool {
			return e.Actor != "admin" || e.Outcome != fleet.Failure && e.Outcome != fleet.Refused
		}) {
			t.Errorf("nonsense: got %s and %+v", r, got)
		}
	}

	r := s.do(t, s.token[fleet.Admin], method, path, body, func(r *http.Request) { r.Header.Set("X-Tillward", "1") })
	got := s.since(t, &n)
	i := slices.IndexFunc(got, func(e fleet.TrailEntry) bool { return e.Kind == d.kind })
	if r.status >= 300 || i < 0 {
		t.Fatalf("got %s and %+v, want an entry %s", r, got, d.kind)
	}
	if e := got[i]; e.Actor != "admin" || e.Subject == "" || e.Outcome != fleet.Success || e.Tenant != "main" || e.Site != d.site {
		t.Errorf("got %+v", e)
	}
}

// TestLooksAreInTheTrail: who looks into a trail is in it, once in a while.
func TestLooksAreInTheTrail(t *testing.T) {
	s := newSite(t)
	var n int64
	s.since(t, &n)
	for range 3 {
		for _, path := range []string{"/v1/audit", "/v1/audit/verify", "/v1/devices/d1/audit", "/v1/audit/search?who=anna"} {
			into[object](t, s.as(t, fleet.Viewer, "GET", path, nil))
		}
		into[object](t, s.as(t, fleet.Viewer, "GET", "/v1/devices", nil))
		problem(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d9/audit", nil), http.StatusNotFound)
	}
	into[object](t, s.as(t, fleet.Operator, "GET", "/v1/audit", nil))
	got := s.since(t, &n)
	if len(got) != 5 || slices.ContainsFunc(got, func(e fleet.TrailEntry) bool { return e.Kind != "audit.read" || e.Outcome != fleet.Success }) {
		t.Errorf("got %+v", got)
	}
	if e := got[2]; e.Subject != "d1" || e.Site != "berlin" || e.Actor != "viewer" || e.Detail["operation"] != "list-device-audit" {
		t.Errorf("got %+v", e)
	}
}
