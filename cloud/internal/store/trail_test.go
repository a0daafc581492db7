package store_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
)

// trailOf is a device whose trail grows entry by entry.
type trailOf struct {
	t    *testing.T
	s    *store.Store
	id   fleet.DeviceID
	seq  uint64
	hash [32]byte
	at   time.Time // by its clock
	now  time.Time // by ours

	known *wire.Break // what the next break record says
}

// sends lets it record one entry of a kind after skipping so many numbers, and send it; a judges it as an anchor.
func (d *trailOf) sends(kind string, skip uint64, a *fleet.AnchorSeen) store.Outcome {
	d.t.Helper()
	ev := chain(d.t, d.seq+1+skip, d.hash, 1, kind)[0]
	ev = sealed(d.t, ev, d.at.UnixMilli())
	if kind == "audit.break" && d.known != nil {
		r, err := wire.AuditEntry{Body: ev.Body, Hash: ev.Hash}.Open()
		must(d.t, err)
		r.Break, r.Prev = d.known, [32]byte{}
		e, err := wire.SealAudit(r)
		must(d.t, err)
		ev.Body, ev.Hash, ev.Prev = e.Body, e.Hash, r.Prev
	}
	d.seq, d.hash = ev.Seq, ev.Hash
	in := store.Intake{Device: d.id, Tenant: "main", At: d.now, Audit: []fleet.AuditEvent{ev}}
	if a != nil {
		a.Seq = ev.Seq
		in.Anchors = []fleet.AnchorSeen{*a}
	}
	out, err := d.s.Commit(d.t.Context(), []store.Intake{in})
	must(d.t, err)
	return out[0]
}

func (d *trailOf) anchors(counter uint64) {
	d.sends("audit.anchor", 0, &fleet.AnchorSeen{Counter: counter})
}

func (d *trailOf) state() fleet.TrailState {
	d.t.Helper()
	st, err := d.s.TrailState(d.t.Context(), "main", d.id)
	must(d.t, err)
	return st
}

func newTrail(t *testing.T) *trailOf {
	s, ds := enrolled(t, 1)
	return &trailOf{t: t, s: s, id: ds[0].ID, at: noon, now: noon}
}

// told are the entries of a kind in the service's trail.
func told(t *testing.T, s *store.Store, kind string) (out []fleet.AuditEvent) {
	t.Helper()
	all, err := s.TrailEntries(t.Context(), "", 0, 1<<62, 1000)
	must(t, err)
	for _, ev := range all {
		if ev.Kind == kind {
			out = append(out, ev)
		}
	}
	return out
}

// TestAnchors: what the TPM vouches for is known, and what is wrong with an anchor is an alarm.
func TestAnchors(t *testing.T) {
	d := newTrail(t)
	d.sends("link.up", 0, nil)
	if st := d.state(); st.Anchored != 0 || !st.AnchoredAt.IsZero() {
		t.Errorf("without an anchor: %+v", st)
	}
	d.anchors(7)
	d.sends("link.up", 0, nil)
	d.anchors(8)
	st := d.state()
	if st.Anchored != 3 || st.AnchorCounter != 8 || !st.AnchoredAt.Equal(noon) || len(told(t, d.s, "audit.anchor_bad")) != 0 {
		t.Errorf("got %+v", st)
	}
	for i, a := range []fleet.AnchorSeen{{Counter: 9, Fault: "another key"}, {Counter: 8}, {Counter: 5}} {
		d.sends("audit.anchor", 0, &a)
		if bad := told(t, d.s, "audit.anchor_bad"); len(bad) != i+1 || bad[i].Severity != "alarm" || bad[i].Subject != string(d.id) || bad[i].Detail["fault"] == "" {
			t.Errorf("%+v: got %+v", a, bad)
		}
	}
	if now := d.state(); now.Anchored != st.Anchored || now.AnchorCounter != st.AnchorCounter {
		t.Errorf("bad anchors count: %+v", now)
	}
	d.anchors(9)
	if now := d.state(); now.Anchored != 7 || now.AnchorCounter != 9 {
		t.Errorf("the next good one: %+v", now)
	}
}

// TestManyBadAnchors: a device that sends nothing but bad anchors does not fill the service's trail.
func TestManyBadAnchors(t *testing.T) {
	d := newTrail(t)
	all := chain(t, 1, [32]byte{}, 200, "audit.anchor")
	var in []store.Intake
	for n := range 4 {
		one := store.Intake{Device: d.id, Tenant: "main", At: noon, Audit: all[50*n : 50*n+50], AnchorTold: n == 3}
		for _, ev := range one.Audit {
			one.Anchors = append(one.Anchors, fleet.AnchorSeen{Seq: ev.Seq, Fault: "another key"})
		}
		in = append(in, one)
	}
	out, err := d.s.Commit(t.Context(), in[:2])
	must(t, err)
	again, err := d.s.Commit(t.Context(), in[3:])
	must(t, err)
	if n := len(told(t, d.s, "audit.anchor_bad")); n != 1 || !out[0].AnchorBad || out[1].AnchorBad || again[0].AnchorBad {
		t.Errorf("got %d alarms, %+v, %+v", n, out, again)
	}
}

// TestUnanchored: a device that records for a day without its TPM is told of once, until it is anchored again.
func TestUnanchored(t *testing.T) {
	d := newTrail(t)
	for range 3 { // one without a TPM is not told of
		d.at, d.now = d.at.Add(30*time.Hour), d.now.Add(30*time.Hour)
		d.sends("link.up", 0, nil)
	}
	d.anchors(1)
	count := func(what string, want int) {
		t.Helper()
		if got := told(t, d.s, "audit.unanchored"); len(got) != want || want > 0 && (got[0].Severity != "warn" || got[0].Subject != string(d.id)) {
			t.Errorf("%s: got %+v, want %d", what, got, want)
		}
	}
	d.now = d.now.Add(72 * time.Hour) // what waited for the network comes late, and is as old as the anchor
	d.sends("link.up", 0, nil)
	count("a backlog", 0)
	d.anchors(2)
	d.at = d.at.AddDate(10, 0, 0) // the clock was set
	d.sends("link.up", 0, nil)
	count("a clock that jumps", 0)
	d.now = d.now.Add(25 * time.Hour)
	d.sends("link.up", 0, nil)
	d.sends("link.up", 0, nil)
	count("a day without", 1)
	d.anchors(3)
	d.at, d.now = d.at.Add(25*time.Hour), d.now.Add(25*time.Hour)
	d.sends("link.up", 0, nil)
	count("and again", 2)
}

// TestCountersignatures: the newest is known, an older one changes nothing, and all are kept.
func TestCountersignatures(t *testing.T) {
	d := newTrail(t)
	for range 6 {
		d.sends("link.up", 0, nil)
	}
	for _, seq := range []uint64{2, 5, 5, 3} {
		must(t, d.s.AddCountersign(t.Context(), fleet.Countersigned{Device: d.id, Seq: seq, Hash: [32]byte{byte(seq)}, At: noon, Order: []byte{byte(seq)}}))
	}
	if st := d.state(); st.Countersigned != 5 {
		t.Errorf("got %+v", st)
	}
	got, err := d.s.Countersignatures(t.Context(), d.id, 0, 99)
	if err != nil || len(got) != 2 || got[0].Seq != 2 || got[1].Seq != 5 || got[1].Order[0] != 5 || got[1].Hash != [32]byte{5} || !got[1].At.Equal(noon) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := d.s.TrailState(t.Context(), "other", d.id); err == nil {
		t.Error("another tenant sees the state of the trail")
	}
}

// TestTrailGoesWithThePast: keys, countersignatures and segments of a device that is given up stay with its past.
func TestTrailGoesWithThePast(t *testing.T) {
	d := newTrail(t)
	d.sends("link.up", 0, nil)
	d.anchors(1)
	must(t, d.s.AddCountersign(t.Context(), fleet.Countersigned{Device: d.id, Seq: 1, At: noon, Order: []byte{1}}))
	must(t, d.s.AddSegment(t.Context(), "main", fleet.Segment{Trail: d.id, First: 1, Last: 2, Hash: d.hash, Entries: 2, File: "f"}, event("audit.archived")))
	must(t, d.s.PutOwnership(t.Context(), stands(d.id, 3, "abc", fleet.Released), event("ownership.set")))
	must(t, d.s.Reset(t.Context(), d.id, event("ownership.reset")))
	past := d.id + ".1"
	st, err := d.s.TrailState(t.Context(), "main", past)
	if err != nil || st.Head != 2 || st.Base != 2 || st.Anchored != 1 || st.Countersigned != 1 {
		t.Errorf("got %+v, %v", st, err)
	}
	if keys, err := d.s.AttestationKeys(t.Context(), past); err != nil || len(keys) != 1 {
		t.Errorf("keys: %+v, %v", keys, err)
	}
	if got, err := d.s.Countersignatures(t.Context(), past, 0, 9); err != nil || len(got) != 1 {
		t.Errorf("countersignatures: %+v, %v", got, err)
	}
	if got, _, err := d.s.Segments(t.Context(), "main", past, fleet.Page{}); err != nil || len(got) != 1 || got[0].File != "f" {
		t.Errorf("segments: %+v, %v", got, err)
	}
	if rep, err := d.s.VerifyAudit(t.Context(), "main", past); err != nil || !rep.OK {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// BenchmarkCountersign has many devices connect at one moment.
func BenchmarkCountersign(b *testing.B) {
	for _, devices := range []int{1, 2000} {
		b.Run(fmt.Sprint(devices, " at once"), func(b *testing.B) {
			s, err := store.Open(b.Context(), b.TempDir(), quiet)
			must(b, err)
			defer s.Close()
			var in []store.Intake
			for i := range devices {
				d := device("main", i+1)
				must(b, s.Enrol(b.Context(), d))
				in = append(in, store.Intake{Device: d.ID, Tenant: "main", At: noon, Audit: chain(b, 1, [32]byte{}, 1, "link.up")})
			}
			_, err = s.Commit(b.Context(), in)
			must(b, err)
			order := make([]byte, 300)
			round := uint64(0)
			for b.Loop() {
				round++
				var all sync.WaitGroup
				for _, one := range in {
					all.Go(func() {
						st, err := s.TrailStateOf(b.Context(), one.Device)
						must(b, err)
						must(b, s.AddCountersign(b.Context(), fleet.Countersigned{Device: st.Device, Seq: round, Hash: st.Hash, At: noon, Order: order}))
					})
				}
				all.Wait()
			}
			b.ReportMetric(float64(b.N)*float64(devices)/b.Elapsed().Seconds(), "devices/s")
		})
	}
}

// putsAway notes a segment of so many entries up to number last.
func (d *trailOf) putsAway(last, entries uint64) error {
	all, err := d.s.TrailEntries(d.t.Context(), d.id, last-1, last, 1)
	must(d.t, err)
	g := fleet.Segment{Trail: d.id, First: d.state().Base + 1, Last: last, Hash: all[0].Hash, Entries: entries, File: "x"}
	return d.s.AddSegment(d.t.Context(), "main", g, event("audit.archived"))
}

// TestLateIntoASegment: an entry that came late, while the file of a segment was written, is not in it; the
// segment is not noted, or the entry would be deleted with the others.
func TestLateIntoASegment(t *testing.T) {
	d := newTrail(t)
	all := chain(t, 1, [32]byte{}, 4, "link.up")
	sends := func(some ...fleet.AuditEvent) {
		t.Helper()
		_, err := d.s.Commit(t.Context(), []store.Intake{{Device: d.id, Tenant: "main", At: noon, Audit: some}})
		must(t, err)
	}
	sends(all[0], all[2], all[3])
	sends(all[1])
	wantErr(t, "without what came late", d.putsAway(4, 3), fleet.ErrConflict)
	must(t, d.putsAway(4, 4))
}

// TestAgainAfterItWasPutAway: what lies in a sealed file and comes again is told of, since nobody can tell any
// more whether it is the same; the last of it can be told, and a device that goes on behind it is as it was.
func TestAgainAfterItWasPutAway(t *testing.T) {
	d := newTrail(t)
	all := chain(t, 1, [32]byte{}, 4, "link.up")
	other := chain(t, 1, [32]byte{}, 4, "link.down")
	sends := func(some ...fleet.AuditEvent) store.Outcome {
		t.Helper()
		out, err := d.s.Commit(t.Context(), []store.Intake{{Device: d.id, Tenant: "main", At: noon, Audit: some}})
		must(t, err)
		return out[0]
	}
	sends(all...)
	must(t, d.putsAway(3, 3))
	if out := sends(all[2], all[3]); out.Sealed != 0 || out.Forked != 0 || out.Duplicates != 2 {
		t.Errorf("the same: %+v", out)
	}
	if out := sends(other[0], other[1]); out.Sealed != 1 || out.Forked != 0 || d.state().Broken {
		t.Errorf("another history: %+v, %+v", out, d.state())
	}
	if out := sends(other[2]); out.Forked != 3 || !d.state().Broken || len(told(t, d.s, "audit.chain_broken")) != 1 {
		t.Errorf("another end of what was put away: %+v, %+v", out, d.state())
	}
}

// TestLastNumber: a device cannot use up the numbers, so that nothing can be asked about what lies behind.
func TestLastNumber(t *testing.T) {
	d := newTrail(t)
	send := func(seq uint64) error {
		_, err := d.s.Commit(t.Context(), []store.Intake{{Device: d.id, Tenant: "main", At: noon, Audit: chain(t, seq, [32]byte{1}, 1, "link.up")}})
		return err
	}
	wantErr(t, "the last number there is", send(1<<63-1), fleet.ErrInvalid)
	must(t, send(1<<63-2))
	if _, _, err := d.s.Ripe(t.Context(), "", noon.AddDate(50, 0, 0), noon.AddDate(50, 0, 0), 1<<62, 10); err != nil {
		t.Errorf("what is to be put away: %v", err)
	}
	if _, err := d.s.TrailHeadBefore(t.Context(), d.id, d.state().Head+1); err != nil {
		t.Errorf("the head: %v", err)
	}
}
