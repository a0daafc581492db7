package api_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// buyer is whom main sells to.
var buyer = ed25519.NewKeyFromSeed([]byte("the buyer's key has 32 bytes too"))

// made is a device as it left the line, with the label on it.
func (s *site) made(t *testing.T, name string) (deed.Claim, [sha256.Size]byte) {
	t.Helper()
	ek := sha256.Sum256([]byte(name))
	c := deed.NewClaim(deed.DeviceOf(ek))
	f, err := deed.SignManifest(s.vendor, deed.Manifest{Vendor: "Vend", Batch: "B", Order: "4711", MadeAt: time.Now(), Entries: []deed.Listed{
		{EKHash: hex.EncodeToString(ek[:]), Model: "vend-1", Serial: "S-" + name, ClaimHash: c.Hash()},
	}})
	must(t, err)
	got := into[object](t, s.as(t, fleet.Admin, "POST", "/v1/manifests", strings.NewReader(string(f))))
	if got["vendor"] != "Vend" || got["batch"] != "B" || got["order"] != "4711" || got["devices"] != 1.0 || got["added"] != 1.0 {
		t.Fatalf("got %v", got)
	}
	return c, ek
}

// bought is a device of main with its voucher, enrolled.
func (s *site) bought(t *testing.T, name string) string {
	t.Helper()
	p := into[struct{ Name, Tenant, Key string }](t, s.as(t, fleet.Viewer, "GET", "/v1/tenant", nil))
	key, err := base64.StdEncoding.DecodeString(p.Key)
	must(t, err)
	ek := sha256.Sum256([]byte(name))
	v, err := deed.NewVoucher(s.vendor, deed.Product{Vendor: "Vend", EKHash: ek, Model: "vend-1", Serial: "S-" + name}, time.Now())
	must(t, err)
	v, err = v.Transfer(s.vendor.Public().(ed25519.PublicKey), s.vendor, deed.Party{Key: key, Name: p.Name, Tenant: p.Tenant}, deed.Terms{MayTransfer: true}, time.Now())
	must(t, err)
	all, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/orders", strings.NewReader(string(deed.EncodeOrder([]deed.Voucher{v})))))
	if len(all) != 1 || all[0]["outcome"] != "accepted" || all[0]["serial"] != "S-"+name {
		t.Fatalf("got %v", all)
	}
	id := fmt.Sprint(all[0]["device"])
	must(t, s.store.Enrol(t.Context(), fleet.Device{ID: fleet.DeviceID(id), Tenant: "main", Tier: fleet.TierB, EKHash: hex.EncodeToString(ek[:]), EnrolledAt: time.Now()}))
	return id
}

func TestClaims(t *testing.T) {
	s := newSite(t)
	c, ek := s.made(t, "one")
	must(t, s.store.NoteWaiting(t.Context(), fleet.Waiting{Device: fleet.DeviceID(c.Device), EKHash: hex.EncodeToString(ek[:]), Serial: "S-one", From: "192.0.2.7", LastAt: time.Now()}))
	all, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/waiting", nil))
	if len(all) != 1 || all[0]["device"] != c.Device || all[0]["listed"] != true || all[0]["claimed"] != false || all[0]["from"] != "192.0.2.7" {
		t.Fatalf("got %v", all)
	}
	for name, bad := range map[string]struct {
		body   object
		status int
	}{
		"nothing":         {object{}, http.StatusUnprocessableEntity},
		"both":            {object{"code": c.Code, "uri": c.URI()}, http.StatusUnprocessableEntity},
		"no code":         {object{"code": "123"}, http.StatusUnprocessableEntity},
		"wrong code":      {object{"device": c.Device, "code": deed.NewClaim(c.Device).Code}, http.StatusForbidden},
		"wrong label":     {object{"uri": deed.NewClaim(c.Device).URI()}, http.StatusForbidden},
		"another label's": {object{"uri": c.URI(), "device": "d1"}, http.StatusUnprocessableEntity},
	} {
		if d := problem(t, s.as(t, fleet.Admin, "POST", "/v1/claims", bad.body), bad.status); strings.Contains(d, c.Code) {
			t.Errorf("%s: the answer holds the code", name)
		}
	}
	problem(t, s.do(t, s.other, "POST", "/v1/claims", object{"uri": c.URI()}), http.StatusForbidden)
	if got := into[object](t, s.as(t, fleet.Admin, "POST", "/v1/claims", object{"uri": c.URI(), "site": "berlin"})); got["device"] != c.Device {
		t.Errorf("got %v", got)
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/claims", object{"uri": c.URI()}), http.StatusConflict)
	if ev := s.trail(t)["device.claimed"]; ev.Actor != "admin" || ev.Subject != c.Device {
		t.Errorf("audited as %+v", ev)
	}
	if ev := s.trail(t)["claim.refused"]; ev.Severity != "alarm" || ev.Detail["check"] != "enrol.claim" {
		t.Errorf("refusals audited as %+v", ev)
	}

	must(t, s.store.NoteWaiting(t.Context(), fleet.Waiting{Device: "w1", EKHash: "w1", Tier: fleet.TierA, LastAt: time.Now()}))
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/claims/device", object{"device": "w9"}), http.StatusNotFound)
	if got := into[object](t, s.as(t, fleet.Admin, "POST", "/v1/claims/device", object{"device": "w1"})); got["device"] != "w1" {
		t.Errorf("got %v", got)
	}
	s.made(t, "two")
	if got := into[object](t, s.as(t, fleet.Admin, "POST", "/v1/claims/order", object{"vendor": "Vend", "order": "4711"})); got["devices"] != 1.0 {
		t.Errorf("got %v", got)
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/claims/order", object{"vendor": "Vend", "order": "1"}), http.StatusNotFound)
}

// TestManifestIsSigned uploads what no vendor of this service signed.
func TestManifestIsSigned(t *testing.T) {
	s := newSite(t)
	ek := sha256.Sum256([]byte("x"))
	f, err := deed.SignManifest(buyer, deed.Manifest{Vendor: "Vend", Batch: "B", MadeAt: time.Now(), Entries: []deed.Listed{{EKHash: hex.EncodeToString(ek[:]), Model: "m", Serial: "s"}}})
	must(t, err)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/manifests", strings.NewReader(string(f))), http.StatusForbidden)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/manifests", strings.NewReader("x")), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/orders", strings.NewReader("x")), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/vouchers", strings.NewReader("")), http.StatusBadRequest)
	if ev := s.trail(t)["manifest.refused"]; ev.Severity != "alarm" || ev.Actor != "admin" {
		t.Errorf("audited as %+v", ev)
	}
}

// TestResale takes a device from offer to relinquish over the API.
func TestResale(t *testing.T) {
	s := newSite(t)
	id := s.bought(t, "one")
	path := "/v1/devices/" + id
	to := object{"name": "Buyer AG", "tenant": "buyer", "key": base64.StdEncoding.EncodeToString(buyer.Public().(ed25519.PublicKey))}
	for name, bad := range map[string]object{
		"no key":    {"to": object{"name": "Buyer AG", "key": ""}, "may_transfer": true},
		"short key": {"to": object{"name": "Buyer AG", "key": "AAAA"}, "may_transfer": true},
		"no name":   {"to": object{"name": "", "key": to["key"]}, "may_transfer": true},
		"nobody":    {"may_transfer": true},
		"no terms":  {"to": to},
		"too early": {"to": to, "may_transfer": true, "not_before": time.Now().Add(-time.Hour)},
	} {
		if r := s.as(t, fleet.Admin, "POST", path+"/transfer", bad); r.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: got %s", name, r)
		}
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/devices/d1/transfer", object{"to": to, "may_transfer": true}), http.StatusConflict)
	problem(t, s.do(t, s.other, "POST", path+"/transfer", object{"to": to, "may_transfer": true}), http.StatusNotFound)
	problem(t, s.do(t, s.other, "GET", path+"/voucher", nil), http.StatusNotFound)
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/devices/d1/voucher", nil), http.StatusNotFound)

	type title struct {
		State, Voucher, Serial string
		Owner                  struct{ Name string }
		Next                   *struct{ Name, Tenant string }
		Override               bool
		Entries                int
	}
	offered := into[title](t, s.as(t, fleet.Admin, "POST", path+"/transfer", object{"to": to, "may_transfer": true}))
	if offered.State != "offered" || offered.Next == nil || offered.Next.Name != "Buyer AG" || offered.Next.Tenant != "buyer" || offered.Override || offered.Entries != 3 {
		t.Errorf("got %+v", offered)
	}
	if ev := s.trail(t)["ownership.offered"]; ev.Actor != "admin" || ev.Detail["to"] != "Buyer AG" {
		t.Errorf("audited as %+v", ev)
	}
	back := into[title](t, s.as(t, fleet.Admin, "POST", path+"/transfer/object", object{"reason": "not paid"}))
	if back.State != "owned" || back.Next != nil {
		t.Errorf("taken back: %+v", back)
	}
	if ev := s.trail(t)["ownership.objected"]; ev.Detail["reason"] != "not paid" {
		t.Errorf("audited as %+v", ev)
	}
	problem(t, s.as(t, fleet.Admin, "POST", path+"/transfer/object", object{"reason": "again"}), http.StatusConflict)
	problem(t, s.as(t, fleet.Admin, "POST", path+"/transfer/object", object{}), http.StatusUnprocessableEntity)
	offered = into[title](t, s.as(t, fleet.Admin, "POST", path+"/transfer", object{"to": to, "may_transfer": true}))

	all, err := deed.DecodeOrder([]byte(offered.Voucher))
	must(t, err)
	all[0], err = all[0].Accept(s.vendor.Public().(ed25519.PublicKey), buyer, time.Now())
	must(t, err)
	got, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/vouchers", strings.NewReader(string(deed.EncodeOrder(all)))))
	if len(got) != 1 || got[0]["outcome"] != "releasing" || got[0]["device"] != id {
		t.Errorf("got %v", got)
	}
	if acts := s.acted(); !strings.HasPrefix(acts, "cut "+id) {
		t.Errorf("did %q, want the connection cut", acts)
	}
	d := into[struct {
		Ownership *struct{ State, Owner string }
	}](t, s.as(t, fleet.Viewer, "GET", path, nil))
	if d.Ownership == nil || d.Ownership.State != "releasing" || d.Ownership.Owner != "Buyer AG" {
		t.Errorf("got %+v", d.Ownership)
	}
	cmds, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/commands?device="+id, nil))
	if len(cmds) != 1 || cmds[0]["verb"] != "relinquish" || cmds[0]["by"] != "service" {
		t.Errorf("commands %v", cmds)
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/vouchers", strings.NewReader(back.Voucher)), http.StatusConflict)

	// Only the service tells a device to give up its owner.
	for _, role := range []fleet.Role{fleet.Viewer, fleet.Operator, fleet.Admin} {
		if r := s.as(t, role, "POST", "/v1/commands", object{"device": "d1", "verb": "relinquish", "args": object{"mark": "1:00"}}); r.status != http.StatusUnprocessableEntity && r.status != http.StatusForbidden {
			t.Errorf("%s: got %s", role, r)
		}
	}
}
