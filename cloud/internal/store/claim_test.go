package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// listed is the nth line of a manifest.
func listed(n int) store.Listing {
	return store.Listing{
		EKHash: fmt.Sprintf("ek-%d", n), Device: fleet.DeviceID(fmt.Sprintf("dev-%d", n)), Model: "vend-1", Serial: fmt.Sprintf("S%d", n),
		Vendor: "acme", Batch: "b1", Order: "PO-7", ClaimHash: fmt.Sprintf("code-%d", n),
	}
}

func manifest(t testing.TB, s *store.Store, n int) {
	t.Helper()
	var lines []store.Listing
	for i := range n {
		lines = append(lines, listed(i+1))
	}
	added, err := s.ImportManifest(t.Context(), lines, event("manifest.import"))
	if err != nil || added != n {
		t.Fatalf("got %d added, %v, want %d", added, err, n)
	}
}

func TestImportManifest(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	_, err := s.ImportEKs(ctx, "main", []store.Listing{{EKHash: "ek-3", Model: "vend-1", Serial: "S3", Site: "berlin"}}, event("list.import"))
	must(t, err)
	manifest(t, s, 2)
	if n, err := s.ImportManifest(ctx, []store.Listing{listed(1), listed(3), listed(4)}, event("manifest.import")); err != nil || n != 1 {
		t.Errorf("again, with one more: got %d, %v, want 1", n, err)
	}
	if l, err := s.ListedEK(ctx, "ek-3"); err != nil || l.Tenant != "main" || l.Site != "berlin" || l.Vendor != "acme" || l.Device != "dev-3" || l.ClaimHash != "" {
		t.Errorf("line on a tenant's list: got %+v, %v, want the tenant's, with its vendor and no code", l, err)
	}
	if l, err := s.ListedDevice(ctx, "dev-1"); err != nil || l != listed(1) {
		t.Errorf("line that waits: got %+v, %v, want %+v", l, err, listed(1))
	}

	for name, change := range map[string]func(*store.Listing){
		"another vendor":     func(l *store.Listing) { l.Vendor = "evil" },
		"another device":     func(l *store.Listing) { l.Device = "dev-9" },
		"another box":        func(l *store.Listing) { l.Serial = "S9" },
		"another claim code": func(l *store.Listing) { l.ClaimHash = "code-9" },
		"another tenant":     func(l *store.Listing) { l.Tenant = "other" },
	} {
		bad := listed(1)
		change(&bad)
		_, err := s.ImportManifest(ctx, []store.Listing{listed(5), bad}, event("manifest.import"))
		wantErr(t, name, err, fleet.ErrConflict)
	}
	if _, err := s.ListedEK(ctx, "ek-5"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("line beside a refused one: got %v, want nothing added", err)
	}
	nobody := listed(6)
	nobody.Vendor = ""
	_, err = s.ImportManifest(ctx, []store.Listing{nobody}, event("manifest.import"))
	wantErr(t, "no vendor", err, fleet.ErrInvalid)
	_, err = s.ImportEKs(ctx, "main", []store.Listing{{EKHash: "ek-1"}}, event("list.import"))
	wantErr(t, "unclaimed line on a tenant's list", err, fleet.ErrConflict)
}

func TestClaim(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	manifest(t, s, 2)
	claim := func(t fleet.TenantID, device fleet.DeviceID, code string) error {
		return s.Claim(ctx, t, device, code, "berlin", "canary", event("device.claim"))
	}
	wantErr(t, "wrong code", claim("main", "dev-1", "code-2"), fleet.ErrClaim)
	wantErr(t, "no code", claim("main", "dev-1", ""), fleet.ErrClaim)
	wantErr(t, "unlisted device", claim("main", "dev-9", "code-1"), fleet.ErrNotFound)
	wantErr(t, "no device", claim("main", "", "code-1"), fleet.ErrInvalid)
	if l, err := s.ListedClaim(ctx, "code-1"); err != nil || l.Device != "dev-1" {
		t.Errorf("code alone: got %+v, %v, want dev-1", l, err)
	}
	must(t, claim("main", "dev-1", "code-1"))
	l, err := s.ListedEK(ctx, "ek-1")
	if err != nil || l.Tenant != "main" || l.Site != "berlin" || l.Group != "canary" || l.ClaimedAt.IsZero() || l.ClaimHash != "" {
		t.Errorf("claimed: got %+v, %v", l, err)
	}
	for _, tenant := range []fleet.TenantID{"main", "other"} {
		wantErr(t, "claimed twice", claim(tenant, "dev-1", "code-1"), fleet.ErrConflict)
	}
	_, err = s.ListedClaim(ctx, "code-1")
	wantErr(t, "used code alone", err, fleet.ErrClaim)
	_, err = s.ListedClaim(ctx, "")
	wantErr(t, "no code alone", err, fleet.ErrClaim)
	// The vendor's manifest comes again: the used code stays used.
	if _, err := s.ImportManifest(ctx, []store.Listing{listed(1)}, event("manifest.import")); err != nil {
		t.Errorf("manifest again: %v", err)
	}
	_, err = s.ListedClaim(ctx, "code-1")
	wantErr(t, "used code after its manifest came again", err, fleet.ErrClaim)

	// One that joined another way belongs to somebody, whatever the label says.
	d := device("other", 1)
	d.EKHash = "ek-2"
	must(t, s.Enrol(ctx, d))
	wantErr(t, "enrolled for another tenant", claim("main", "dev-2", "code-2"), fleet.ErrConflict)
	if rep, err := s.VerifyAudit(ctx, "main", ""); err != nil || !rep.OK || rep.Entries != 3 {
		t.Errorf("trail: got %+v, %v, want two imports and one claim", rep, err)
	}
}

// TestClaimLocks guesses.
func TestClaimLocks(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	manifest(t, s, 2)
	claim := func(device fleet.DeviceID, code string) error {
		return s.Claim(t.Context(), "main", device, code, "", "", event("device.claim"))
	}
	for range 5 {
		wantErr(t, "wrong code", claim("dev-1", "guess"), fleet.ErrClaim)
	}
	err := claim("dev-1", "code-1")
	wantErr(t, "right code after five wrong ones", err, fleet.ErrClaim)
	if !strings.Contains(err.Error(), "wait 10m") {
		t.Errorf("got %q, want it to say how long to wait", err)
	}
	must(t, claim("dev-2", "code-2")) // another label is not locked

	// The count outlives the process.
	must(t, s.Close())
	s = open(t, dir)
	wantErr(t, "right code after a restart", claim("dev-1", "code-1"), fleet.ErrClaim)

	sql1(t, dir, `UPDATE listing SET wrong_at = wrong_at - 599000 WHERE device = 'dev-1'`)
	wantErr(t, "right code a second too soon", claim("dev-1", "code-1"), fleet.ErrClaim)
	sql1(t, dir, `UPDATE listing SET wrong_at = wrong_at - 2000 WHERE device = 'dev-1'`)
	for range 4 { // the count begins anew
		wantErr(t, "wrong code", claim("dev-1", "guess"), fleet.ErrClaim)
	}
	must(t, claim("dev-1", "code-1"))
}

func TestClaimOrder(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	manifest(t, s, 4)
	must(t, s.Claim(ctx, "main", "dev-1", "code-1", "", "", event("device.claim")))
	other := listed(5)
	other.Order = "PO-8"
	_, err := s.ImportManifest(ctx, []store.Listing{other}, event("manifest.import"))
	must(t, err)

	if n, err := s.ClaimOrder(ctx, "main", "acme", "PO-7", event("order.claim")); err != nil || n != 3 {
		t.Errorf("got %d, %v, want 3", n, err)
	}
	if n, err := s.ClaimOrder(ctx, "main", "acme", "PO-7", event("order.claim")); err != nil || n != 0 {
		t.Errorf("again: got %d, %v, want 0", n, err)
	}
	_, err = s.ClaimOrder(ctx, "other", "acme", "PO-7", event("order.claim"))
	wantErr(t, "order of another tenant", err, fleet.ErrConflict)
	for name, o := range map[string][2]string{"unknown order": {"acme", "PO-9"}, "order of another vendor": {"evil", "PO-7"}} {
		_, err = s.ClaimOrder(ctx, "main", o[0], o[1], event("order.claim"))
		wantErr(t, name, err, fleet.ErrNotFound)
	}
	_, err = s.ClaimOrder(ctx, "main", "acme", "", event("order.claim"))
	wantErr(t, "no order", err, fleet.ErrInvalid)
	wantErr(t, "code of a device that came by its order", s.Claim(ctx, "other", "dev-2", "code-2", "", "", event("device.claim")), fleet.ErrConflict)
	if l, err := s.ListedEK(ctx, "ek-5"); err != nil || l.Tenant != "" {
		t.Errorf("another order: got %+v, %v, want unclaimed", l, err)
	}
}

func TestAssign(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	manifest(t, s, 1)
	l := listed(1)
	l.Site = "berlin"
	free := store.Listing{EKHash: "ek-9", Device: "dev-9", Model: "vend-1", ClaimHash: "x"}
	for _, want := range []int{2, 0} {
		if n, err := s.Assign(ctx, "main", []store.Listing{l, free}, event("device.assign")); err != nil || n != want {
			t.Errorf("got %d, %v, want %d", n, err, want)
		}
	}
	for _, ek := range []string{"ek-1", "ek-9"} {
		if l, err := s.ListedEK(ctx, ek); err != nil || l.Tenant != "main" || l.ClaimHash != "" || l.ClaimedAt.IsZero() {
			t.Errorf("%s: got %+v, %v", ek, l, err)
		}
	}
	_, err := s.Assign(ctx, "other", []store.Listing{{EKHash: "ek-8"}, l}, event("device.assign"))
	wantErr(t, "another tenant's", err, fleet.ErrConflict)
	_, err = s.ListedEK(ctx, "ek-8")
	wantErr(t, "line beside a refused one", err, fleet.ErrNotFound)
	must(t, s.Enrol(ctx, device("other", 1)))
	_, err = s.Assign(ctx, "main", []store.Listing{{EKHash: device("other", 1).EKHash}}, event("device.assign"))
	wantErr(t, "enrolled for another tenant", err, fleet.ErrConflict)
	_, err = s.Assign(ctx, "", []store.Listing{{EKHash: "ek-8"}}, event("device.assign"))
	wantErr(t, "nobody", err, fleet.ErrInvalid)
}

func asks(n int, tier fleet.Tier, when time.Time) fleet.Waiting {
	return fleet.Waiting{Device: fleet.DeviceID(fmt.Sprintf("dev-%d", n)), EKHash: fmt.Sprintf("ek-%d", n), Tier: tier, Model: "vend-1", Serial: fmt.Sprintf("S%d", n), From: "192.0.2.1", LastAt: when}
}

func TestWaiting(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx, now := t.Context(), time.Now().Truncate(time.Millisecond).UTC()
	manifest(t, s, 2)
	for n := range 4 {
		must(t, s.NoteWaiting(ctx, asks(n+1, fleet.TierA, now)))
	}
	must(t, s.NoteWaiting(ctx, asks(5, fleet.TierA, now.AddDate(0, 0, -31))))
	must(t, s.Claim(ctx, "main", "dev-2", "code-2", "", "", event("device.claim")))
	d := device("other", 1)
	d.ID, d.EKHash = "dev-4", "ek-4"
	must(t, s.Enrol(ctx, d))

	for tenant, want := range map[fleet.TenantID]string{"main": "dev-1 listed, dev-2 listed claimed, dev-3", "other": "dev-1 listed, dev-3"} {
		var got []string
		for p := (fleet.Page{Limit: 2}); ; {
			l, next, err := s.Waiting(ctx, tenant, p)
			must(t, err)
			for _, w := range l {
				text := string(w.Device)
				if w.Listed {
					text += " listed"
				}
				if w.Claimed {
					text += " claimed"
				}
				got = append(got, text)
			}
			if next == "" {
				break
			}
			p.After = next
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("tenant %s: got %v, want %s", tenant, got, want)
		}
	}

	// It asks again: within a minute nothing is written, later the first time stays.
	must(t, s.NoteWaiting(ctx, asks(1, fleet.TierA, now.Add(59*time.Second))))
	first := func() fleet.Waiting {
		l, _, err := s.Waiting(ctx, "main", fleet.Page{Limit: 1})
		must(t, err)
		return l[0]
	}
	if w := first(); !w.LastAt.Equal(now) || !w.FirstAt.Equal(now) {
		t.Errorf("within a minute: got %+v, want %s", w, now)
	}
	must(t, s.NoteWaiting(ctx, asks(1, fleet.TierA, now.Add(time.Minute))))
	if w := first(); !w.LastAt.Equal(now.Add(time.Minute)) || !w.FirstAt.Equal(now) {
		t.Errorf("after a minute: got %+v", w)
	}
	moved := asks(1, fleet.TierA, now.Add(61*time.Second))
	moved.From = "192.0.2.9"
	must(t, s.NoteWaiting(ctx, moved))
	if w := first(); w.From != "192.0.2.9" || w.Tier != fleet.TierA || w.Model != "vend-1" || w.Serial != "S1" || w.EKHash != "ek-1" {
		t.Errorf("from elsewhere: got %+v", w)
	}
}

// TestWaitingIsBounded lets more ask than are kept: those go first that nobody vouches for.
func TestWaitingIsBounded(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	now := time.Now()
	must(t, s.NoteWaiting(t.Context(), asks(1, fleet.TierA, now.Add(-time.Hour))))
	must(t, s.NoteWaiting(t.Context(), asks(2, "", now.Add(-time.Minute))))
	sql1(t, dir, `INSERT INTO waiting (device, ek_hash, tier, model, serial, source, first_at, last_at)
		WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 9998) SELECT 'x' || n, 'x' || n, '', '', '', '', ?, ? FROM c`, now.UnixMilli(), now.UnixMilli())
	must(t, s.NoteWaiting(t.Context(), asks(3, "", now)))
	if n := count(t, dir, `SELECT COUNT(*) FROM waiting`); n != 10_000 {
		t.Errorf("got %d waiting, want 10000", n)
	}
	for device, want := range map[string]uint64{"dev-1": 1, "dev-2": 0, "dev-3": 1} {
		if n := count(t, dir, `SELECT COUNT(*) FROM waiting WHERE device = '`+device+`'`); n != want {
			t.Errorf("%s: got %d, want %d", device, n, want)
		}
	}
}
