package owner_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/owner"
	deed "github.com/tillward/tillward/provisioning/owner"
)

func TestManifest(t *testing.T) {
	s := newSite(t, 'a')
	one, two := newBox(1), newBox(2)
	file := manifest(t, "Vend", 'v', one, two)
	for _, added := range []int{2, 0} { // the same again adds nothing
		got, err := s.ImportManifest(t.Context(), "a", file, "anna")
		if err != nil || got.Devices != 2 || got.Added != added || got.Vendor != "Vend" || got.Batch != "B1" || got.Order != "4711" {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	l, err := s.store.ListedEK(t.Context(), one.hash())
	if err != nil || l.Tenant != "" || l.Device != one.id || l.Serial != "S-1" || l.Vendor != "Vend" || l.ClaimHash != one.claim.Hash() {
		t.Errorf("listed as %+v, %v", l, err)
	}
	if s.severity(t, "manifest.imported", "batch B1") != "info" {
		t.Error("not in the trail")
	}
	three := newBox(3)
	for name, c := range map[string]struct {
		tenant fleet.TenantID
		file   []byte
		err    error
	}{
		"with other codes":              {"a", manifest(t, "Vend", 'v', newBox(1)), fleet.ErrConflict},
		"by a stranger":                 {"a", manifest(t, "Vend", 'x', three), fleet.ErrForbidden},
		"for another vendor":            {"a", manifest(t, "Vend", 'w', three), fleet.ErrForbidden},
		"changed":                       {"a", bytes.Replace(manifest(t, "Vend", 'v', three), []byte("S-3"), []byte("S-4"), 1), fleet.ErrForbidden},
		"no manifest":                   {"a", []byte("{}"), fleet.ErrForbidden},
		"not even JSON":                 {"a", []byte("PK"), fleet.ErrInvalid},
		"for a tenant that is not here": {"b", manifest(t, "Vend", 'v', three), fleet.ErrForbidden},
	} {
		if _, err := s.ImportManifest(t.Context(), c.tenant, c.file, "anna"); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", name, err, c.err)
		}
	}
	if _, err := s.store.ListedEK(t.Context(), three.hash()); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("a refused manifest lists the device: %v", err)
	}
	if s.severity(t, "manifest.refused", "") != "alarm" {
		t.Error("a refused manifest raised no alarm")
	}
	none := newSite(t, 'b', func(o *owner.Options) { o.Vendors = nil })
	if _, err := none.ImportManifest(t.Context(), "b", file, "anna"); !errors.Is(err, fleet.ErrForbidden) || !strings.Contains(err.Error(), "enrol.vendors") {
		t.Errorf("without vendors: got %v, want it to say where they are named", err)
	}
}

// TestClaim takes a device by the code of its label. Each refusal is in the
// trail as an alarm, and changes nothing.
func TestClaim(t *testing.T) {
	s := newSite(t, 'a')
	one, two, theirs := newBox(1), newBox(2), newBox(3)
	if _, err := s.ImportManifest(t.Context(), "a", manifest(t, "Vend", 'v', one, two, theirs), "anna"); err != nil {
		t.Fatal(err)
	}
	must(t, s.store.Enrol(t.Context(), fleet.Device{ID: theirs.id, Tenant: "b", Tier: fleet.TierB, EKHash: theirs.hash(), EnrolledAt: time.Now()}))
	old := deed.NewClaim(string(one.id)) // of a label that was replaced
	for _, c := range []struct {
		name  string
		claim fleet.Claim
		err   error
	}{
		{"wrong code", fleet.Claim{Device: one.id, Code: two.claim.Code}, fleet.ErrClaim},
		{"stale label", fleet.Claim{Code: old.URI()}, fleet.ErrClaim},
		{"label of another device", fleet.Claim{Device: one.id, Code: two.claim.URI()}, fleet.ErrInvalid},
		{"no code", fleet.Claim{Device: one.id, Code: "12345"}, fleet.ErrInvalid},
		{"code alone, of no device that waits", fleet.Claim{Code: one.claim.Code}, fleet.ErrClaim},
		{"device of another tenant", fleet.Claim{Code: theirs.claim.URI()}, fleet.ErrConflict},
		{"device that no vendor lists", fleet.Claim{Code: newBox(9).claim.URI()}, fleet.ErrNotFound},
		{"for a tenant that is not here", fleet.Claim{Tenant: "b", Code: one.claim.URI()}, fleet.ErrForbidden},
	} {
		if c.claim.Tenant == "" {
			c.claim.Tenant = "a"
		}
		device, err := s.Claim(t.Context(), c.claim)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
		if s.severity(t, "claim.refused", device) != "alarm" {
			t.Errorf("%s: no alarm about %q", c.name, device)
		}
		if err != nil && strings.Contains(err.Error(), one.claim.Code) {
			t.Errorf("%s: the error holds the code: %v", c.name, err)
		}
	}
	for _, b := range []box{one, two} {
		if l, err := s.store.ListedEK(t.Context(), b.hash()); err != nil || l.Tenant != "" {
			t.Fatalf("after refusals it is listed as %+v, %v", l, err)
		}
	}

	id, err := s.Claim(t.Context(), fleet.Claim{Tenant: "a", Code: one.claim.URI(), Site: "berlin", Group: "new", By: "anna"})
	if err != nil || id != one.id {
		t.Fatalf("got %q, %v", id, err)
	}
	if l, err := s.store.ListedEK(t.Context(), one.hash()); err != nil || l.Tenant != "a" || l.Site != "berlin" || l.Group != "new" {
		t.Errorf("claimed: %+v, %v", l, err)
	}
	if s.severity(t, "device.claimed", one.id) != "info" {
		t.Error("not in the trail")
	}
	if _, err := s.Claim(t.Context(), fleet.Claim{Tenant: "a", Code: one.claim.URI()}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a second time: got %v", err)
	}

	// Who typed the code alone is found among those that wait.
	must(t, s.store.NoteWaiting(t.Context(), fleet.Waiting{Device: two.id, EKHash: two.hash(), LastAt: time.Now()}))
	if id, err := s.Claim(t.Context(), fleet.Claim{Tenant: "a", Code: strings.ToLower(two.claim.Code)}); err != nil || id != two.id {
		t.Errorf("code alone: got %q, %v", id, err)
	}
}

// TestClaimWithVoucher passes a voucher on that is made out to the bearer of
// the label, and finishes what was broken off in between.
func TestClaimWithVoucher(t *testing.T) {
	for _, before := range []bool{false, true} {
		s := newSite(t, 'a')
		b := newBox(1)
		if _, err := s.ImportManifest(t.Context(), "a", manifest(t, "Vend", 'v', b), "anna"); err != nil {
			t.Fatal(err)
		}
		if got, err := s.imports(t, b.offered(t, b.claim.Bearer())); err != nil || got != "held" {
			t.Fatalf("got %q, %v", got, err)
		}
		if v, err := s.Voucher(t.Context(), b.id); err != nil || v != nil {
			t.Fatalf("before the claim it is the tenant's, %v", err)
		}
		other := newBox(1)
		if _, err := s.Claim(t.Context(), fleet.Claim{Tenant: "a", Code: other.claim.URI()}); !errors.Is(err, fleet.ErrClaim) {
			t.Errorf("with another code: got %v", err)
		}
		if before { // the service stopped between the claim and the voucher
			must(t, s.store.Claim(t.Context(), "a", b.id, b.claim.Hash(), "", "", fleet.AuditEvent{Kind: "device.claimed"}))
		}
		if _, err := s.Claim(t.Context(), fleet.Claim{Tenant: "a", Code: b.claim.URI()}); err != nil {
			t.Fatal(err)
		}
		title, err := s.Title(t.Context(), "a", b.id)
		if err != nil || title.State != fleet.Owned || !bytes.Equal(title.Holder.Key, public('a')) || !title.MayTransfer || title.Next != nil || title.Entries != 4 {
			t.Errorf("got %+v, %v", title, err)
		}
		if v, err := s.Voucher(t.Context(), b.id); err != nil || !bytes.Equal(v, title.Voucher) {
			t.Errorf("the device gets %d bytes, %v", len(v), err)
		}
	}
}

// TestStaleCode shows a code of a device that was sold on: it opens nothing.
func TestStaleCode(t *testing.T) {
	s := newSite(t, 'a')
	b := newBox(1)
	if _, err := s.ImportManifest(t.Context(), "a", manifest(t, "Vend", 'v', b), "anna"); err != nil {
		t.Fatal(err)
	}
	l, err := s.store.ListedEK(t.Context(), b.hash())
	must(t, err)
	if !s.Shown(b.claim.URI(), l) || !s.Shown(b.claim.Code, l) {
		t.Error("the code of its label is not that of the device")
	}
	for _, wrong := range []string{"", "x", newBox(2).claim.URI(), newBox(1).claim.Code} {
		if s.Shown(wrong, l) {
			t.Errorf("%q is taken for its code", wrong)
		}
	}
	if _, err := s.Claim(t.Context(), fleet.Claim{Tenant: "a", Code: b.claim.URI()}); err != nil {
		t.Fatal(err)
	}
	s.enrolled(t, b)
	must(t, s.store.PutOwnership(t.Context(), fleet.Ownership{Device: b.id, Voucher: []byte{1}, Entries: 1, State: fleet.Released}, fleet.AuditEvent{Kind: "k"}))
	must(t, s.store.Reset(t.Context(), b.id, fleet.AuditEvent{Kind: "k"}))
	if l, err = s.store.ListedEK(t.Context(), b.hash()); err != nil || s.Shown(b.claim.URI(), l) {
		t.Errorf("the used code is taken again, %v", err)
	}
}

// TestClaimWaiting takes a device without a code: only where policy allows it,
// only with a TPM its maker vouches for, and only one without a label.
func TestClaimWaiting(t *testing.T) {
	s := newSite(t, 'a')
	strict := newSite(t, 'a', func(o *owner.Options) { o.Waiting = false })
	good, virtual, listed := newBox(1), newBox(2), newBox(3)
	for _, at := range []*site{s, strict} {
		if _, err := at.ImportManifest(t.Context(), "a", manifest(t, "Vend", 'v', listed), "anna"); err != nil {
			t.Fatal(err)
		}
		for b, tier := range map[box]fleet.Tier{good: fleet.TierA, virtual: fleet.TierC, listed: fleet.TierA} {
			must(t, at.store.NoteWaiting(t.Context(), fleet.Waiting{Device: b.id, EKHash: b.hash(), Tier: tier, Serial: b.serial(), LastAt: time.Now()}))
		}
	}
	for _, c := range []struct {
		name   string
		s      *site
		device fleet.DeviceID
		err    error
	}{
		{"not allowed", strict, good.id, fleet.ErrForbidden},
		{"virtual TPM", s, virtual.id, fleet.ErrForbidden},
		{"has a label", s, listed.id, fleet.ErrForbidden},
		{"does not wait", s, newBox(9).id, fleet.ErrNotFound},
		{"allowed", s, good.id, nil},
		{"twice", s, good.id, fleet.ErrExists},
	} {
		if err := c.s.ClaimWaiting(t.Context(), fleet.Claim{Tenant: "a", Device: c.device, Site: "berlin", By: "anna"}); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
	if l, err := s.store.ListedEK(t.Context(), good.hash()); err != nil || l.Tenant != "a" || l.Site != "berlin" || s.severity(t, "device.claimed", good.id) != "warn" {
		t.Errorf("claimed: %+v, %v", l, err)
	}
	if s.severity(t, "claim.refused", virtual.id) != "warn" || s.severity(t, "claim.refused", listed.id) != "warn" {
		t.Error("refusals are not in the trail")
	}
}

func TestClaimOrder(t *testing.T) {
	s := newSite(t, 'a')
	if _, err := s.ImportManifest(t.Context(), "a", manifest(t, "Vend", 'v', newBox(1), newBox(2)), "anna"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tenant        fleet.TenantID
		vendor, order string
		n             int
		err           error
	}{
		{"b", "Vend", "4711", 0, fleet.ErrForbidden},
		{"a", "Wend", "4711", 0, fleet.ErrNotFound},
		{"a", "Vend", "4712", 0, fleet.ErrNotFound},
		{"a", "Vend", "4711", 2, nil},
		{"a", "Vend", "4711", 0, nil},
	} {
		if n, err := s.ClaimOrder(t.Context(), c.tenant, c.vendor, c.order, "anna"); n != c.n || !errors.Is(err, c.err) {
			t.Errorf("%s of %s for %s: got %d, %v; want %d, %v", c.order, c.vendor, c.tenant, n, err, c.n, c.err)
		}
	}
}
