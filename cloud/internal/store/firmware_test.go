package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/simulator/postgres"
)

func TestReferences(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	refs := []fleet.BootReference{
		{Model: "vend-1", Release: "agent/1.0.0", Body: []byte("a"), PublishedAt: noon},
		{Model: "vend-2", Release: "agent/1.0.0", Body: []byte("b")},
		{Model: "vend-1", Release: "agent/1.1.0", Body: []byte("c")},
	}
	for range 2 {
		must(t, s.PutReferences(ctx, refs))
	}
	wantErr(t, "other values", s.PutReferences(ctx, []fleet.BootReference{
		{Model: "vend-1", Release: "agent/1.2.0", Body: []byte("d")}, {Model: "vend-1", Release: "agent/1.0.0", Body: []byte("x")},
	}), fleet.ErrConflict)
	l, err := s.References(ctx, "vend-1")
	if err != nil || len(l) != 2 || l[0].Release != "agent/1.0.0" || string(l[0].Body) != "a" || !l[0].PublishedAt.Equal(noon) || l[0].Model != "vend-1" || l[1].Release != "agent/1.1.0" {
		t.Errorf("got %+v, %v, want the two of the model as they came first", l, err)
	}
	if l[1].PublishedAt.IsZero() {
		t.Error("no time of publication: got none, want now")
	}
	if l, err := s.References(ctx, "vend-9"); err != nil || len(l) != 0 {
		t.Errorf("another model: got %v, %v, want none", l, err)
	}
}

func TestFirmware(t *testing.T) {
	s, ds := enrolled(t, 3)
	ctx := t.Context()
	aa, bb := fleet.FirmwareEvent{PCR: 4, Digest: "aa", What: "boot manager"}, fleet.FirmwareEvent{PCR: 7, Digest: "bb", What: "dbx"}
	see := func(d fleet.Device, es ...fleet.FirmwareEvent) {
		t.Helper()
		must(t, s.SeeFirmware(ctx, d.Tenant, d.Model, d.ID, es))
	}
	see(ds[0], aa, bb)
	see(ds[0], aa)
	see(ds[1], aa)
	see(ds[3], aa) // of tenant other
	see(ds[0])
	wantErr(t, "device of another tenant", s.SeeFirmware(ctx, "main", "vend-1", ds[3].ID, []fleet.FirmwareEvent{aa}), fleet.ErrNotFound)

	l, next, err := s.FirmwareEvents(ctx, "main", "", "", fleet.Page{Limit: 1})
	if err != nil || len(l) != 1 || next == "" || l[0].Digest != "bb" || l[0].Devices != 1 {
		t.Fatalf("first page: got %+v, %q, %v", l, next, err)
	}
	l, next, err = s.FirmwareEvents(ctx, "main", "vend-1", fleet.ApprovalOpen, fleet.Page{Limit: 1, After: next})
	if err != nil || len(l) != 1 || next != "" || l[0].Digest != "aa" || l[0].Devices != 2 || l[0].First != ds[0].ID || l[0].FirstAt.IsZero() || l[0].What != "boot manager" || l[0].PCR != 4 || l[0].Model != "vend-1" {
		t.Errorf("last page: got %+v, %q, %v", l, next, err)
	}
	if l, _, err := s.FirmwareEvents(ctx, "main", "vend-2", "", fleet.Page{}); err != nil || len(l) != 0 {
		t.Errorf("another model: got %+v, %v", l, err)
	}
	if m, err := s.FirmwareDecisions(ctx, "main", "vend-1"); err != nil || len(m) != 0 {
		t.Errorf("nothing decided: got %v, %v", m, err)
	}

	for _, d := range ds {
		must(t, s.Appraised(ctx, good(d.ID, "", "boot", noon), false))
	}
	decide := func(tenant fleet.TenantID, digest string, to fleet.Approval) error {
		return s.DecideFirmware(ctx, tenant, "vend-1", 4, digest, to, event("firmware.decide"))
	}
	must(t, decide("main", "aa", fleet.ApprovalRejected))
	for i, want := range []string{"", "", "", "boot"} { // the third may have shown it unnoted; the last is another tenant's
		if d := byID(t, s, ds[i].ID); string(d.BootDigest) != want {
			t.Errorf("%s after the rejection: got accepted boot %q, want %q", d.ID, d.BootDigest, want)
		}
	}
	must(t, s.Appraised(ctx, good(ds[1].ID, "", "boot", noon.Add(time.Minute)), false)) // judged in full, to the same end
	if d := byID(t, s, ds[1].ID); string(d.BootDigest) != "boot" {
		t.Errorf("judged again: got accepted boot %q, want it at once", d.BootDigest)
	}
	must(t, s.DecideFirmware(ctx, "main", "vend-1", 7, "bb", fleet.ApprovalGranted, event("firmware.decide")))
	if m, err := s.FirmwareDecisions(ctx, "main", "vend-1"); err != nil || len(m) != 2 || m["4:aa"] != fleet.ApprovalRejected || m["7:bb"] != fleet.ApprovalGranted {
		t.Errorf("decided: got %v, %v", m, err)
	}
	if m, err := s.FirmwareDecisions(ctx, "other", "vend-1"); err != nil || len(m) != 0 {
		t.Errorf("of another tenant: got %v, %v, want nothing decided", m, err)
	}
	if l, _, err := s.FirmwareEvents(ctx, "main", "", fleet.ApprovalGranted, fleet.Page{}); err != nil || len(l) != 1 || l[0].By != "anna" || l[0].At.IsZero() {
		t.Errorf("approved: got %+v, %v", l, err)
	}
	see(ds[2], aa) // seen again, it stays decided
	must(t, decide("main", "aa", fleet.ApprovalOpen))
	if l, _, err := s.FirmwareEvents(ctx, "main", "", fleet.ApprovalOpen, fleet.Page{}); err != nil || len(l) != 1 || l[0].By != "" || !l[0].At.IsZero() || l[0].Devices != 3 {
		t.Errorf("taken back: got %+v, %v", l, err)
	}
	wantErr(t, "unknown event", decide("main", "cc", fleet.ApprovalGranted), fleet.ErrNotFound)
	wantErr(t, "unknown decision", decide("main", "aa", "perhaps"), fleet.ErrInvalid)
}

// TestApprovalTakenBack: an approval covers devices that nobody wrote down, for what is approved is no news. It does not
// outlive itself for them.
func TestApprovalTakenBack(t *testing.T) {
	for _, to := range []fleet.Approval{fleet.ApprovalOpen, fleet.ApprovalRejected, fleet.ApprovalGranted} {
		s, ds := enrolled(t, 3)
		must(t, s.SeeFirmware(t.Context(), "main", "vend-1", ds[0].ID, []fleet.FirmwareEvent{{PCR: 4, Digest: "aa"}}))
		must(t, s.DecideFirmware(t.Context(), "main", "vend-1", 4, "aa", fleet.ApprovalGranted, event("firmware.decide")))
		must(t, s.Appraised(t.Context(), good(ds[1].ID, "", "with aa", noon), false)) // approved before it was shown
		must(t, s.DecideFirmware(t.Context(), "main", "vend-1", 4, "aa", to, event("firmware.decide")))
		want := ""
		if to == fleet.ApprovalGranted {
			want = "with aa"
		}
		if d := byID(t, s, ds[1].ID); string(d.BootDigest) != want {
			t.Errorf("%s: got accepted boot %q, want %q", to, d.BootDigest, want)
		}
	}
}

// TestFirmwareIsBounded shows more events than anybody decides: by one device, which leaves room for the others, and by all.
func TestFirmwareIsBounded(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	const devices = 12
	for n := range devices {
		must(t, s.Enrol(t.Context(), device("main", n+1)))
	}
	see := func(by int, digests ...string) {
		t.Helper()
		d := device("main", by+1)
		var es []fleet.FirmwareEvent
		for _, digest := range digests {
			es = append(es, fleet.FirmwareEvent{PCR: 4, Digest: digest})
		}
		must(t, s.SeeFirmware(t.Context(), "main", "vend-1", d.ID, es))
	}
	want := func(what string, events, sightings uint64) {
		t.Helper()
		if e, g := count(t, dir, `SELECT COUNT(*) FROM firmware_event`), count(t, dir, `SELECT COUNT(*) FROM firmware_sighting`); e != events || g != sightings {
			t.Errorf("%s: got %d events and %d sightings, want %d and %d", what, e, g, events, sightings)
		}
	}
	many := func(by int) (digests []string) {
		for n := range 105 {
			digests = append(digests, fmt.Sprint(by, ".", n))
		}
		return digests
	}
	see(0, many(0)...)
	want("one device", 100, 100)
	see(1, "0.0", "what is new")
	want("and another", 101, 102)
	for by := 1; by < devices; by++ {
		see(by, many(by)...)
	}
	want("all", 1000, 1001)
	must(t, s.DecideFirmware(t.Context(), "main", "vend-1", 4, "what is new", fleet.ApprovalGranted, event("firmware.decide")))
	see(devices-1, "last", "but one")
	want("after a decision", 1001, 1002)
}
