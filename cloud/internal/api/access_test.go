package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestRoles asks for every operation with each role, and with none. What a
// role may not do is refused before anything is looked at, and audited.
func TestRoles(t *testing.T) {
	s := newSite(t)
	for _, op := range []struct {
		method, path string
		body         any
		needs        fleet.Role
	}{
		{"GET", "/v1/session", nil, fleet.Viewer},
		{"GET", "/v1/summary", nil, fleet.Viewer},
		{"GET", "/v1/devices", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1", nil, fleet.Viewer},
		{"PATCH", "/v1/devices/d1", object{"label": "Lane"}, fleet.Operator},
		{"GET", "/v1/devices/d1/series", nil, fleet.Viewer},
		{"GET", "/v1/peripherals", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1/peripherals/receipt", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1/peripherals/receipt/statistics.xml", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1/points?name=n", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1/events", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1/audit", nil, fleet.Viewer},
		{"GET", "/v1/devices/d1/audit/verify", nil, fleet.Viewer},
		{"GET", "/v1/audit", nil, fleet.Viewer},
		{"GET", "/v1/audit/verify", nil, fleet.Viewer},
		{"GET", "/v1/audit/search?what=update.&outcome=failure", nil, fleet.Viewer},
		{"GET", "/v1/audit/key", nil, fleet.Viewer},
		{"GET", "/v1/audit/segments", nil, fleet.Viewer},
		{"GET", "/v1/audit/segments/1/verify", nil, fleet.Operator},
		{"GET", "/v1/devices/d1/audit/export", nil, fleet.Admin},
		{"POST", "/v1/commands", object{"device": "d1", "verb": "identify"}, fleet.Operator},
		{"GET", "/v1/commands", nil, fleet.Viewer},
		{"GET", "/v1/commands/c1", nil, fleet.Viewer},
		{"GET", "/v1/releases", nil, fleet.Viewer},
		{"GET", "/v1/releases/agent/1.0.0", nil, fleet.Viewer},
		{"POST", "/v1/releases", strings.NewReader(""), fleet.Admin},
		{"POST", "/v1/rollouts", object{"release": "agent/1.0.0"}, fleet.Operator},
		{"GET", "/v1/rollouts", nil, fleet.Viewer},
		{"GET", "/v1/rollouts/r", nil, fleet.Viewer},
		{"GET", "/v1/rollouts/r/executions", nil, fleet.Viewer},
		{"POST", "/v1/rollouts/preview", object{"release": "agent/1.0.0"}, fleet.Operator},
		{"PUT", "/v1/rollouts/r", object{"release": "agent/1.0.0", "spec": object{}}, fleet.Operator},
		{"POST", "/v1/rollouts/r/submit", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/approve", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/deny", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/start", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/pause", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/resume", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/abort", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/complete", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/retry", object{}, fleet.Operator},
		{"POST", "/v1/rollouts/r/holds/release", object{"model": "m"}, fleet.Operator},
		{"GET", "/v1/devices/d1/update", nil, fleet.Viewer},
		{"GET", "/v1/sites", nil, fleet.Viewer},
		{"GET", "/v1/sites/berlin", nil, fleet.Viewer},
		{"PUT", "/v1/sites/berlin", object{"zone": "", "download": "", "install": ""}, fleet.Operator},
		{"GET", "/v1/devices/d1/attestations", nil, fleet.Viewer},
		{"POST", "/v1/devices/d1/attest", nil, fleet.Operator},
		{"POST", "/v1/commands", object{"device": "d1", "verb": "diagnose"}, fleet.Operator},
		{"PUT", "/v1/devices/d1/waiver", object{"until": time.Now().Add(time.Hour), "reason": "r"}, fleet.Admin},
		{"DELETE", "/v1/devices/d1/waiver", nil, fleet.Admin},
		{"POST", "/v1/devices/d1/revoke", object{"reason": "r"}, fleet.Admin},
		{"POST", "/v1/devices/d1/readmit", object{"reason": "r"}, fleet.Admin},
		{"GET", "/v1/firmware", nil, fleet.Viewer},
		{"POST", "/v1/firmware/decision", object{"model": "m", "pcr": 0, "digest": strings.Repeat("a", 64), "decision": "approved", "reason": "r"}, fleet.Admin},
		{"GET", "/v1/references?model=m", nil, fleet.Viewer},
		{"GET", "/v1/authority", nil, fleet.Viewer},
		{"POST", "/v1/authority/rotate", object{"reason": "r"}, fleet.Admin},
		{"POST", "/v1/authority/retire", object{"serial": "aa", "reason": "r"}, fleet.Admin},
		{"GET", "/v1/tenant", nil, fleet.Viewer},
		{"GET", "/v1/waiting", nil, fleet.Viewer},
		{"POST", "/v1/manifests", strings.NewReader("{}"), fleet.Admin},
		{"POST", "/v1/orders", strings.NewReader("x"), fleet.Admin},
		{"POST", "/v1/vouchers", strings.NewReader("x"), fleet.Admin},
		{"POST", "/v1/claims", object{"code": "x"}, fleet.Admin},
		{"POST", "/v1/claims/device", object{"device": "w1"}, fleet.Admin},
		{"POST", "/v1/claims/order", object{"vendor": "Vend", "order": "1"}, fleet.Admin},
		{"GET", "/v1/devices/d1/voucher", nil, fleet.Viewer},
		{"POST", "/v1/devices/d1/transfer", object{"to": object{"name": "n", "key": ""}, "may_transfer": true}, fleet.Admin},
		{"POST", "/v1/devices/d1/transfer/object", object{"reason": "r"}, fleet.Admin},
		{"GET", "/v1/exports", nil, fleet.Viewer},
		{"POST", "/v1/exports/siem/test", nil, fleet.Admin},
		{"GET", "/v1/tokens", nil, fleet.Admin},
		{"POST", "/v1/tokens", object{"name": "n", "role": "viewer"}, fleet.Admin},
		{"DELETE", "/v1/tokens/t", nil, fleet.Admin},
	} {
		t.Run(op.method+" "+op.path, func(t *testing.T) {
			problem(t, s.do(t, "", op.method, op.path, op.body), http.StatusUnauthorized)
			for _, role := range []fleet.Role{fleet.Viewer, fleet.Operator, fleet.Admin} {
				r := s.as(t, role, op.method, op.path, op.body)
				if role.Covers(op.needs) {
					if r.status == http.StatusForbidden || r.status == http.StatusUnauthorized || r.status >= 500 {
						t.Errorf("%s: got %s, want to be let in", role, r)
					}
					continue
				}
				if d := problem(t, r, http.StatusForbidden); !strings.Contains(d, string(op.needs)) {
					t.Errorf("%s: got %q, want it to name the role %s", role, d, op.needs)
				}
				ev := s.trail(t)["access.refused"]
				if ev.Actor != string(role) || ev.Tenant != "main" || ev.Detail["needs"] != string(op.needs) {
					t.Errorf("%s: audited as %+v", role, ev)
				}
			}
		})
	}
	problem(t, s.do(t, "", "GET", "/v1/live", nil), http.StatusUnauthorized)
}

func cookie(r reply) *http.Cookie {
	resp := http.Response{Header: r.header}
	for _, c := range resp.Cookies() {
		if c.Name == "tw_session" {
			return c
		}
	}
	return nil
}

func with(c *http.Cookie, header string) func(*http.Request) {
	return func(r *http.Request) {
		r.AddCookie(c)
		if header != "" {
			r.Header.Set("X-Tillward", header)
		}
	}
}

func TestSession(t *testing.T) {
	s := newSite(t)
	in := s.do(t, "", "POST", "/v1/session", object{"token": s.token[fleet.Operator]})
	if got := into[object](t, in); got["name"] != "operator" || got["role"] != "operator" || got["tenant"] != "main" {
		t.Errorf("signed in as %v", got)
	}
	c := cookie(in)
	if c == nil || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" {
		t.Fatalf("got cookie %v, want HttpOnly and SameSite=Strict", c)
	}
	if ev := s.trail(t)["access.signed-in"]; ev.Actor != "operator" || ev.Tenant != "main" {
		t.Errorf("sign-in audited as %+v", ev)
	}
	if got := into[object](t, s.do(t, "", "GET", "/v1/session", nil, with(c, ""))); got["name"] != "operator" {
		t.Errorf("session is of %v", got)
	}
	patch := object{"label": "Lane 1"}
	for _, header := range []string{"", "0"} { // another site's page can send the cookie, not the header
		d := problem(t, s.do(t, "", "PATCH", "/v1/devices/d1", patch, with(c, header)), http.StatusForbidden)
		if !strings.Contains(d, "X-Tillward: 1") {
			t.Errorf("got %q, want it to name the header", d)
		}
		problem(t, s.do(t, "", "DELETE", "/v1/session", nil, with(c, header)), http.StatusForbidden)
	}
	if ev := s.trail(t)["access.refused"]; ev.Actor != "operator" || ev.Detail["reason"] != "no X-Tillward header" {
		t.Errorf("forged request audited as %+v", ev)
	}
	if d, err := s.store.Device(t.Context(), "main", "d1"); err != nil || d.Label != "" {
		t.Errorf("device is %q, %v; want it unchanged", d.Label, err)
	}
	into[object](t, s.do(t, "", "PATCH", "/v1/devices/d1", patch, with(c, "1")))

	out := s.do(t, "", "DELETE", "/v1/session", nil, with(c, "1"))
	if gone := cookie(out); out.status != http.StatusNoContent || gone == nil || gone.Value != "" {
		t.Errorf("signed out with %s and cookie %v", out, gone)
	}
	problem(t, s.do(t, "", "GET", "/v1/session", nil, with(c, "")), http.StatusUnauthorized)
}

// TestRevokedTokenEndsItsSessions also shows a token's life over the API.
func TestRevokedTokenEndsItsSessions(t *testing.T) {
	s := newSite(t)
	made := s.as(t, fleet.Admin, "POST", "/v1/tokens", object{"name": "anna", "role": "viewer", "expires_in_s": 3600})
	tok := into[struct {
		ID, Token, Role string
		Expires         string `json:"expires_at"`
	}](t, made)
	if !strings.HasPrefix(tok.Token, "twt_") || tok.Role != "viewer" || tok.Expires == "" {
		t.Fatalf("got %s", made)
	}
	c := cookie(s.do(t, "", "POST", "/v1/session", object{"token": tok.Token}))
	list := s.as(t, fleet.Admin, "GET", "/v1/tokens", nil)
	if strings.Contains(string(list.body), tok.Token) || !strings.Contains(string(list.body), tok.ID) {
		t.Errorf("got %s, want the id and never the token", list)
	}
	problem(t, s.do(t, s.other, "DELETE", "/v1/tokens/"+tok.ID, nil), http.StatusNotFound)
	if r := s.as(t, fleet.Admin, "DELETE", "/v1/tokens/"+tok.ID, nil); r.status != http.StatusNoContent {
		t.Fatalf("revoke: %s", r)
	}
	problem(t, s.as(t, fleet.Admin, "DELETE", "/v1/tokens/"+tok.ID, nil), http.StatusConflict)
	problem(t, s.do(t, tok.Token, "GET", "/v1/devices", nil), http.StatusUnauthorized)
	problem(t, s.do(t, "", "GET", "/v1/devices", nil, with(c, "")), http.StatusUnauthorized)
	for _, bad := range []object{
		{"name": "", "role": "viewer"},
		{"name": strings.Repeat("n", 65), "role": "viewer"},
		{"name": "a\nb", "role": "viewer"},
		{"name": "a", "role": "root"},
		{"name": "a", "role": "viewer", "expires_in_s": -1},
		{"name": "a", "role": "viewer", "expires_in_s": 9_300_000_000}, // more than a time.Duration holds
		{"name": "a", "role": "viewer", "unknown": 1},
	} {
		problem(t, s.as(t, fleet.Admin, "POST", "/v1/tokens", bad), http.StatusUnprocessableEntity)
	}
}

// TestGuessing tries wrong tokens until the address is shut out, the right one
// included; a session that is open goes on.
func TestGuessing(t *testing.T) {
	s := newSite(t)
	c := cookie(s.do(t, "", "POST", "/v1/session", object{"token": s.token[fleet.Viewer]}))
	for i := range 10 {
		var r reply
		if i%2 == 0 {
			r = s.do(t, fmt.Sprintf("twt_guess%d", i), "GET", "/v1/devices", nil)
		} else {
			r = s.do(t, "", "POST", "/v1/session", object{"token": fmt.Sprintf("twt_guess%d", i)})
		}
		problem(t, r, http.StatusUnauthorized)
		if i%2 == 0 && !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("got WWW-Authenticate %q, want Bearer", r.header.Get("WWW-Authenticate"))
		}
	}
	if tr := s.trail(t); tr["access.refused"].Severity != "warn" || tr["access.sign-in-refused"].Severity != "warn" {
		t.Errorf("guesses are not in the trail: %v", tr)
	}
	before := s.entries(t)
	r := s.do(t, s.token[fleet.Admin], "GET", "/v1/devices", nil)
	if problem(t, r, http.StatusTooManyRequests); r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	problem(t, s.do(t, "", "POST", "/v1/session", object{"token": s.token[fleet.Admin]}), http.StatusTooManyRequests)
	into[object](t, s.do(t, "", "GET", "/v1/session", nil, with(c, "")))
	if after := s.entries(t); after != before {
		t.Errorf("%d entries were written for who is shut out: the trail can be flooded", after-before)
	}
}

func (s *site) entries(t *testing.T) uint64 {
	t.Helper()
	r, err := s.store.VerifyAudit(t.Context(), "main", "")
	must(t, err)
	if !r.OK {
		t.Fatal(r.Text)
	}
	return r.Entries
}

func TestTokenSchemes(t *testing.T) {
	s := newSite(t)
	for header, want := range map[string]int{
		"Bearer " + s.token[fleet.Viewer]:  http.StatusOK,
		"bearer " + s.token[fleet.Viewer]:  http.StatusOK, // schemes have no case [RFC 9110, 11.1]
		"Bearer  " + s.token[fleet.Viewer]: http.StatusOK,
		"Basic " + s.token[fleet.Viewer]:   http.StatusUnauthorized,
		s.token[fleet.Viewer]:              http.StatusUnauthorized,
		"Bearer":                           http.StatusUnauthorized,
	} {
		r := s.do(t, "", "GET", "/v1/devices", nil, func(r *http.Request) { r.Header.Set("Authorization", header) })
		if r.status != want {
			t.Errorf("%.12q: got %s, want %d", header, r, want)
		}
	}
}
