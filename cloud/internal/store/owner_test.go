package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

func stands(d fleet.DeviceID, entries int, voucher string, state fleet.OwnershipState) fleet.Ownership {
	return fleet.Ownership{Device: d, Voucher: []byte(voucher), Entries: entries, Owner: "main", State: state}
}

func TestOwnership(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	_, err := s.Ownership(ctx, "dev-1")
	wantErr(t, "no voucher", err, fleet.ErrNotFound)
	put := func(o fleet.Ownership) error { return s.PutOwnership(ctx, o, event("ownership.set")) }
	must(t, put(stands("dev-1", 2, "ab", fleet.Owned)))
	must(t, put(stands("dev-1", 2, "ab", fleet.Offered))) // the state moves, the voucher does not
	o := stands("dev-1", 4, "abcd", fleet.Releasing)
	o.Owner, o.Deadline = "next", noon
	must(t, put(o))
	wantErr(t, "shorter voucher", put(stands("dev-1", 3, "abc", fleet.Owned)), fleet.ErrConflict)
	wantErr(t, "another voucher of that length", put(stands("dev-1", 4, "abxy", fleet.Owned)), fleet.ErrConflict)
	wantErr(t, "no voucher", put(stands("dev-1", 0, "", fleet.Owned)), fleet.ErrConflict)
	got, err := s.Ownership(ctx, "dev-1")
	if err != nil || string(got.Voucher) != "abcd" || got.Entries != 4 || got.State != fleet.Releasing || got.Owner != "next" || !got.Deadline.Equal(noon) || got.Device != "dev-1" {
		t.Errorf("after refusals: got %+v, %v", got, err)
	}
	must(t, put(stands("dev-2", 1, "a", fleet.Owned))) // each device has its own
}

// TestReset gives a device with a past to another tenant: the past stays, whole, and the next owner sees none
// of it.
func TestReset(t *testing.T) {
	s, _ := enrolled(t, 1)
	ctx, id := t.Context(), fleet.DeviceID("main-d01")
	d := device("main", 1)
	l := listed(1)
	l.EKHash, l.Device, l.Serial = d.EKHash, id, d.Serial
	_, err := s.ImportManifest(ctx, []store.Listing{l}, event("manifest.import"))
	must(t, err)
	_, err = s.Assign(ctx, "main", []store.Listing{l}, event("device.assign"))
	must(t, err)
	must(t, s.PutReferences(ctx, []fleet.BootReference{{Model: "vend-1", Release: "agent/1.0.0", Body: []byte("a")}}))
	must(t, s.Appraised(ctx, good(id, "agent/1.0.0", "boot", noon), false))
	must(t, s.SeeFirmware(ctx, "main", "vend-1", id, []fleet.FirmwareEvent{{PCR: 4, Digest: "aa", What: "boot manager"}}))
	x := rolled(t, s, 1, "agent/1.0.0", fleet.ExecOffered)
	c, err := s.AddCommand(ctx, fleet.Command{Device: id, Tenant: "main", Verb: "identify", IssuedAt: noon, NotAfter: time.Now().Add(time.Hour)}, event("command.add"))
	must(t, err)
	past := chain(t, 1, [32]byte{}, 3, "link.up")
	_, err = s.Commit(ctx, []store.Intake{{
		Device: id, Tenant: "main", At: noon, Samples: samples(1, 4), Audit: past,
		Report: &fleet.Report{Boot: [16]byte{1}, Seq: 1, Sent: noon, AgentVersion: "1.0.0"},
		Events: []fleet.PeripheralEvent{{Boot: [16]byte{1}, Seq: 9, At: noon, Code: "COVER_OPEN"}},
	}})
	must(t, err)

	reset := func() error { return s.Reset(ctx, id, event("device.reset")) }
	wantErr(t, "a device nobody gave up", reset(), fleet.ErrConflict)
	for _, state := range []fleet.OwnershipState{fleet.Owned, fleet.Offered, fleet.Releasing} {
		must(t, s.PutOwnership(ctx, stands(id, 3, "abc", state), event("ownership.set")))
		wantErr(t, string(state), reset(), fleet.ErrConflict)
	}
	must(t, s.PutOwnership(ctx, stands(id, 3, "abc", fleet.Released), event("ownership.set")))
	must(t, reset())
	wantErr(t, "reset twice", reset(), fleet.ErrNotFound)

	// The device is nobody's.
	_, err = s.DeviceByID(ctx, id)
	wantErr(t, "the device", err, fleet.ErrNotFound)
	admits(t, s, d, d.CertSerial, fleet.ErrNotFound)
	if l, err := s.ListedEK(ctx, d.EKHash); err != nil || l.Tenant != "" || l.ClaimHash != "" || l.ClaimedAt.IsZero() || l.Vendor != "acme" {
		t.Errorf("listing: got %+v, %v, want the vendor's, of nobody, its code used", l, err)
	}
	wantErr(t, "its old claim code", s.Claim(ctx, "other", id, "code-1", "", "", event("device.claim")), fleet.ErrClaim)
	wantErr(t, "an older voucher", s.PutOwnership(ctx, stands(id, 2, "ab", fleet.Owned), event("ownership.set")), fleet.ErrConflict)

	// The past is the old owner's, and nothing to give orders to.
	former, _, err := s.Devices(ctx, "main", store.DeviceFilter{Former: true}, fleet.Page{})
	if err != nil || len(former) != 1 || former[0].FormerOf != id || former[0].LeftAt.IsZero() || former[0].Samples != 4 || former[0].AgentVersion != "1.0.0" {
		t.Fatalf("former: got %+v, %v", former, err)
	}
	was := former[0].ID
	checkPast := func() {
		t.Helper()
		if rep, err := s.VerifyAudit(ctx, "main", was); err != nil || !rep.OK || rep.Entries != 3 {
			t.Errorf("trail of the past: got %+v, %v", rep, err)
		}
		if p, err := s.Points(ctx, "main", was, "printer", "temp", time.Time{}, time.Time{}, 10); err != nil || len(p) != 4 {
			t.Errorf("points of the past: got %d, %v", len(p), err)
		}
		if e, _, err := s.Events(ctx, "main", was, fleet.Page{}); err != nil || len(e) != 1 {
			t.Errorf("events of the past: got %d, %v", len(e), err)
		}
		if l := appraisals(t, s, former[0]); len(l) != 1 || l[0].Device != was {
			t.Errorf("appraisals of the past: got %+v", l)
		}
	}
	checkPast()
	if got, err := s.Command(ctx, "main", c.ID); err != nil || got.Device != was || got.State != fleet.CommandExpired || got.Code != "released" {
		t.Errorf("open command: got %+v, %v", got, err)
	}
	if es, _, err := s.RolloutUnits(ctx, "main", "r1", fleet.ExecutionFilter{}, fleet.Page{}); err != nil || len(es) != 1 || es[0].ID != x || es[0].State != fleet.ExecCanceled || es[0].Device != was {
		t.Errorf("open execution: got %+v, %v", es, err)
	}
	if sum, err := s.Summary(ctx, "main"); err != nil || sum.Devices != 0 {
		t.Errorf("summary: got %+v, %v, want no device", sum, err)
	}
	if l, _, err := s.Devices(ctx, "main", store.DeviceFilter{}, fleet.Page{}); err != nil || len(l) != 0 {
		t.Errorf("devices: got %d, %v, want none", len(l), err)
	}
	must(t, s.AddRollout(ctx, fleet.Rollout{ID: "r2", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutRunning}, event("rollout.add")))
	if n, err := s.Enlist(ctx, "r2"); err != nil || n != 0 {
		t.Errorf("enlist: got %d, %v, want none", n, err)
	}
	_, err = s.AddCommand(ctx, fleet.Command{Device: was, Tenant: "main", Verb: "reboot"}, event("command.add"))
	wantErr(t, "a command to the past", err, fleet.ErrNotFound)
	wantErr(t, "a waiver for the past", s.Waive(ctx, "main", was, fleet.Waiver{Until: noon}, event("device.waive")), fleet.ErrNotFound)
	wantErr(t, "revoking the past", s.Revoke(ctx, "main", was, "", event("device.revoke")), fleet.ErrNotFound)

	// The next owner begins with nothing, but not with an easier device.
	next := d
	next.Tenant, next.Serial = "other", "S99"
	wantErr(t, "in another box", s.Enrol(ctx, next), fleet.ErrOtherSerial)
	next.Serial, next.Tier = d.Serial, fleet.TierD
	wantErr(t, "with a lower tier", s.Enrol(ctx, next), fleet.ErrConflict)
	next.Tier = fleet.TierC
	must(t, s.Enrol(ctx, next))
	got, err := s.Device(ctx, "other", id)
	if err != nil || got.Samples != 0 || got.AuditHead != 0 || got.AgentVersion != "" || got.Trust != fleet.Pending || got.BootRelease != "agent/1.0.0" {
		t.Errorf("next owner: got %+v, %v", got, err)
	}
	out, err := s.Commit(ctx, []store.Intake{{Device: id, Tenant: "other", At: noon, Samples: samples(1, 4), Audit: chain(t, 1, [32]byte{}, 2, "link.up")}})
	if err != nil || out[0].NewSamples != 4 || out[0].NewAudit != 2 || out[0].Duplicates != 0 {
		t.Errorf("next owner's first messages: got %+v, %v, want all new", out, err)
	}
	if c, err := s.AddCommand(ctx, fleet.Command{Device: id, Tenant: "other", Verb: "identify"}, event("command.add")); err != nil || c.Counter != 2 {
		t.Errorf("next owner's command: got counter %d, %v, want 2: the device refuses what it has seen", c.Counter, err)
	}
	_, err = s.Device(ctx, "other", was)
	wantErr(t, "the past, for the next owner", err, fleet.ErrNotFound)
	if l := appraisals(t, s, got); len(l) != 0 {
		t.Errorf("next owner's appraisals: got %+v, want none", l)
	}
	checkPast()

	// And on it goes.
	must(t, s.PutOwnership(ctx, stands(id, 5, "abcde", fleet.Released), event("ownership.set")))
	must(t, reset())
	former, _, err = s.Devices(ctx, "other", store.DeviceFilter{Former: true}, fleet.Page{})
	if err != nil || len(former) != 1 || former[0].ID == was {
		t.Errorf("second former: got %+v, %v", former, err)
	}
	if l, _, err := s.Devices(ctx, "main", store.DeviceFilter{Former: true}, fleet.Page{}); err != nil || len(l) != 1 {
		t.Errorf("first former: got %d, %v", len(l), err)
	}
	next.Tenant = "third"
	must(t, s.Enrol(ctx, next))
	out, err = s.Commit(ctx, []store.Intake{{Device: id, Tenant: "third", At: noon, Samples: samples(1, 4), Audit: chain(t, 1, [32]byte{}, 2, "link.up")}})
	if err != nil || out[0].NewSamples != 4 || out[0].NewAudit != 2 {
		t.Errorf("third owner's first messages: got %+v, %v, want all new", out, err)
	}
	if rep, err := s.VerifyAudit(ctx, "main", ""); err != nil || !rep.OK {
		t.Errorf("service trail: got %+v, %v", rep, err)
	}
}

// TestResetUnlists takes a device off its tenant's own list, so that the next owner can put it on his.
func TestResetUnlists(t *testing.T) {
	s, ds := enrolled(t, 1)
	_, err := s.ImportEKs(t.Context(), "main", []store.Listing{{EKHash: ds[0].EKHash}}, event("list.import"))
	must(t, err)
	_, err = s.ImportEKs(t.Context(), "other", []store.Listing{{EKHash: ds[0].EKHash}}, event("list.import"))
	wantErr(t, "before", err, fleet.ErrConflict)
	must(t, s.PutOwnership(t.Context(), stands(ds[0].ID, 3, "abc", fleet.Released), event("ownership.set")))
	must(t, s.Reset(t.Context(), ds[0].ID, event("device.reset")))
	n, err := s.ImportEKs(t.Context(), "other", []store.Listing{{EKHash: ds[0].EKHash}}, event("list.import"))
	if err != nil || n != 1 {
		t.Errorf("after: got %d, %v, want 1", n, err)
	}
}

// TestResetUnenrolled lets go of a device that was claimed and never came.
func TestResetUnenrolled(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx := t.Context()
	manifest(t, s, 1)
	must(t, s.PutOwnership(ctx, stands("dev-1", 3, "abc", fleet.Released), event("ownership.set")))
	wantErr(t, "nobody's", s.Reset(ctx, "dev-1", event("device.reset")), fleet.ErrNotFound)
	must(t, s.Claim(ctx, "main", "dev-1", "code-1", "berlin", "", event("device.claim")))
	must(t, s.Reset(ctx, "dev-1", event("device.reset")))
	if l, err := s.ListedDevice(ctx, "dev-1"); err != nil || l.Tenant != "" || l.Site != "" {
		t.Errorf("got %+v, %v, want nobody's", l, err)
	}
	wantErr(t, "its claim code", s.Claim(ctx, "main", "dev-1", "code-1", "", "", event("device.claim")), fleet.ErrClaim)
}

func TestLeaving(t *testing.T) {
	s, ds := enrolled(t, 4)
	for i, state := range []fleet.OwnershipState{fleet.Owned, fleet.Offered, fleet.Releasing, fleet.Released} {
		must(t, s.PutOwnership(t.Context(), stands(ds[i].ID, 3, "abc", state), event("ownership.set")))
	}
	want := func(ids ...fleet.DeviceID) {
		t.Helper()
		l, err := s.Leaving(t.Context())
		must(t, err)
		var got []fleet.DeviceID
		for _, o := range l {
			got = append(got, o.Device)
		}
		if !slices.Equal(got, ids) {
			t.Errorf("got %v, want %v", got, ids)
		}
	}
	want(ds[2].ID, ds[3].ID)
	must(t, s.Reset(t.Context(), ds[3].ID, event("device.reset")))
	want(ds[2].ID)
}
