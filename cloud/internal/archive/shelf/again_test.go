package shelf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// TestComesBack: the segments of a device that was given up stay what they are when it comes back, begins anew
// under its old name, and has that put away, too.
func TestComesBack(t *testing.T) {
	p := newPlace(t)
	p.records(10)
	must(t, p.shelf.run(t.Context(), months(14)))
	must(t, p.store.PutOwnership(t.Context(), fleet.Ownership{Device: device, Entries: 1, Voucher: []byte{1}, State: fleet.Released}, fleet.AuditEvent{Tenant: "main", Kind: "ownership.set"}))
	must(t, p.store.Reset(t.Context(), device, fleet.AuditEvent{Kind: "device.reset"}))
	must(t, p.store.Enrol(t.Context(), fleet.Device{ID: device, Tenant: "main", Tier: fleet.TierC, EKHash: "ek", AKPublic: []byte{1}, EnrolledAt: time.Now()}))
	p.head = fleet.Head{}
	p.records(3)
	p.acts(1)
	must(t, p.shelf.run(t.Context(), months(14)))
	seen := map[fleet.DeviceID]bool{}
	for _, g := range p.segments() {
		seen[g.Trail] = true
		if rep, err := p.shelf.Verify(t.Context(), "main", g.N); err != nil || rep.Verdict != archive.Whole {
			t.Errorf("segment %s of %q: %+v, %v", g.File, g.Trail, rep, err)
		}
	}
	if !seen[device] || !seen[device+".1"] {
		t.Errorf("got segments of %v", seen)
	}
}

// TestZeroBytes: a text that no column of every database can hold does not make a trail one that was changed.
func TestZeroBytes(t *testing.T) {
	p := newPlace(t)
	e, err := wire.SealAudit(wire.AuditRecord{
		Seq: 1, At: time.Now().UnixMilli(), Boot: wire.Boot{1}, Kind: "link.up", Severity: "info", Actor: "x\x00y", Subject: "a\x00b", Detail: map[string]string{"k": "c\x00d"},
	})
	must(t, err)
	r, err := e.Open()
	must(t, err)
	_, err = p.store.Commit(t.Context(), []fleet.Intake{{Device: device, Tenant: "main", At: time.Now(), Audit: []fleet.AuditEvent{{
		Seq: 1, At: time.UnixMilli(r.At), Kind: r.Kind, Severity: r.Severity, Actor: r.Actor, Subject: r.Subject, Detail: r.Detail, Body: e.Body, Hash: e.Hash,
	}}}})
	must(t, err)
	p.acts(1)
	p.whole()
	must(t, p.shelf.run(t.Context(), months(14)))
	if st := p.shelf.State(); st.Unsound != 0 || p.rows(device) != 0 {
		t.Errorf("state: %+v, %d rows are left", st, p.rows(device))
	}
}

// lateStore has something come late while a segment is written.
type lateStore struct {
	*store.Store
	late func()
}

func (s *lateStore) AddSegment(ctx context.Context, t fleet.TenantID, g fleet.Segment, ev fleet.AuditEvent) error {
	if s.late != nil && g.Trail == device {
		s.late()
		s.late = nil
	}
	return s.Store.AddSegment(ctx, t, g, ev)
}

// TestLate: what fills a gap while its trail is put away is put away with it, at the next run.
func TestLate(t *testing.T) {
	p := newPlace(t)
	p.records(1)
	gap := p.head
	e, err := wire.SealAudit(wire.AuditRecord{Seq: gap.Seq + 1, At: 1, Boot: wire.Boot{1}, Kind: "link.up", Severity: "info", Prev: gap.Hash})
	must(t, err)
	p.head = fleet.Head{Seq: gap.Seq + 1, Hash: e.Hash}
	p.records(3)
	p.acts(1)
	s := &lateStore{Store: p.store, late: func() {
		_, err := p.store.Commit(t.Context(), []fleet.Intake{{Device: device, Tenant: "main", At: time.Now(), Audit: []fleet.AuditEvent{{
			Seq: gap.Seq + 1, At: time.UnixMilli(1), Kind: "link.up", Severity: "info", Body: e.Body, Hash: e.Hash, Prev: gap.Hash,
		}}}})
		must(t, err)
	}}
	x := New(options(s, p.dir))
	must(t, x.run(t.Context(), months(14)))
	if n := p.rows(device); n != 5 {
		t.Errorf("%d rows of the device, want all 5 to stay for now", n)
	}
	if left, err := filepath.Glob(filepath.Join(p.dir, "archive", "de", "*")); err != nil || len(left) != 0 {
		t.Errorf("a file that is no segment is left: %v, %v", left, err)
	}
	p.acts(1) // the newest row of all stays
	must(t, x.run(t.Context(), months(14)))
	p.inOnePlace(map[fleet.DeviceID]uint64{device: 5})
	if n := p.rows(device); n != 0 {
		t.Errorf("%d rows of the device are left", n)
	}
	p.whole()
}

// TestFree: no name is taken twice.
func TestFree(t *testing.T) {
	p := newPlace(t)
	for _, want := range []string{"de/dev-1.trail.gz", "de/dev-1.2.trail.gz", "de/dev-1.3.trail.gz"} {
		got, err := p.shelf.free("de/dev-1.trail.gz")
		if err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
		must(t, os.MkdirAll(filepath.Join(p.dir, "archive", "de"), 0o700))
		must(t, os.WriteFile(filepath.Join(p.dir, "archive", filepath.FromSlash(want)), fmt.Append(nil, want), 0o600))
	}
}
