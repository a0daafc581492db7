package store_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// samples makes n samples of one message.
func samples(seq uint64, n int) []fleet.Sample {
	var out []fleet.Sample
	for i := range n {
		out = append(out, fleet.Sample{
			Boot: [16]byte{1}, Seq: seq, Index: i, At: noon.Add(time.Duration(seq)*time.Minute + time.Duration(i)*time.Second),
			Peripheral: "printer", Name: "temp", Value: float64(seq) + float64(i)/100,
		})
	}
	return out
}

func TestSamplesOnce(t *testing.T) {
	s, ds := enrolled(t, 2)
	ctx, id := t.Context(), ds[0].ID
	in := store.Intake{Device: id, Tenant: "main", At: noon, Samples: samples(1, 5)}
	out, err := s.Commit(ctx, []store.Intake{in, in})
	must(t, err)
	if out[0].NewSamples != 5 || out[0].Duplicates != 0 || out[1].NewSamples != 0 || out[1].Duplicates != 5 {
		t.Errorf("got %+v, want 5 new, then 5 duplicates", out)
	}
	// The same numbers from another device are other samples.
	if out, err = s.Commit(ctx, []store.Intake{in, {Device: ds[1].ID, Tenant: "main", At: noon, Samples: samples(1, 5)}}); err != nil || out[0].Duplicates != 5 || out[1].NewSamples != 5 {
		t.Errorf("got %+v, %v, want 5 duplicates and 5 new", out, err)
	}
	d, err := s.DeviceByID(ctx, id)
	must(t, err)
	if d.Samples != 5 || !d.LastSeen.Equal(noon) {
		t.Errorf("device: got %d samples, last seen %s", d.Samples, d.LastSeen)
	}
	series, err := s.Series(ctx, "main", id)
	must(t, err)
	if len(series) != 1 || series[0].Count != 5 || series[0].Last != 1.04 || series[0].Peripheral != "printer" {
		t.Errorf("series: got %+v", series)
	}
	// What arrives late does not become the last value.
	late := samples(2, 1)
	late[0].At = noon.Add(-time.Hour)
	_, err = s.Commit(ctx, []store.Intake{{Device: id, Tenant: "main", At: noon, Samples: late}})
	must(t, err)
	if series, err = s.Series(ctx, "main", id); err != nil || series[0].Count != 6 || series[0].Last != 1.04 {
		t.Errorf("series: got %+v, %v", series, err)
	}
	sum, err := s.Summary(ctx, "main")
	if err != nil || sum.Samples != 11 || sum.Devices != 2 || sum.ByTrust[fleet.Pending] != 2 {
		t.Errorf("summary: got %+v, %v", sum, err)
	}
}

// TestCommitIsWhole ends a slice with an intake that cannot be stored: nothing of the slice is there, and the
// ids that were given on the way are not used afterwards.
func TestCommitIsWhole(t *testing.T) {
	s, ds := enrolled(t, 1)
	good := store.Intake{
		Device: ds[0].ID, Tenant: "main", At: noon, Samples: samples(1, 3), Audit: chain(t, 1, [32]byte{}, 2, "link.up"),
		Service: &fleet.AuditEvent{Kind: "ingest.noted"},
	}
	nan, huge := samples(2, 1), samples(math.MaxInt64+1, 1)
	nan[0].Value = math.NaN()
	for name, tt := range map[string]struct {
		in   store.Intake
		want error
	}{
		"unknown device": {store.Intake{Device: "nobody", Tenant: "main", At: noon}, fleet.ErrNotFound},
		"not a number":   {store.Intake{Device: ds[0].ID, Tenant: "main", At: noon, Samples: nan}, fleet.ErrInvalid},
		"huge sequence":  {store.Intake{Device: ds[0].ID, Tenant: "main", At: noon, Samples: huge}, fleet.ErrInvalid},
	} {
		_, err := s.Commit(t.Context(), []store.Intake{good, tt.in})
		wantErr(t, name, err, tt.want)
		d, err := s.DeviceByID(t.Context(), ds[0].ID)
		must(t, err)
		series, err := s.Series(t.Context(), "main", ds[0].ID)
		must(t, err)
		if trail, _, err := s.AuditTrail(t.Context(), "main", "", false, fleet.Page{}); err != nil || d.Samples != 0 || d.AuditHead != 0 || len(series) != 0 || len(trail) != 0 {
			t.Errorf("%s: got %d samples, head %d, %d series, %d service entries, want nothing", name, d.Samples, d.AuditHead, len(series), len(trail))
		}
	}
	out, err := s.Commit(t.Context(), []store.Intake{good})
	must(t, err)
	points, err := s.Points(t.Context(), "main", ds[0].ID, "printer", "temp", time.Time{}, time.Time{}, 10)
	if err != nil || out[0].NewSamples != 3 || len(points) != 3 {
		t.Errorf("afterwards: got %+v and %d points, %v", out, len(points), err)
	}
}

func TestPoints(t *testing.T) {
	s, ds := enrolled(t, 1)
	id := ds[0].ID
	for m := range uint64(10) {
		_, err := s.Commit(t.Context(), []store.Intake{{Device: id, Tenant: "main", At: noon, Samples: samples(m+1, 60)}})
		must(t, err)
	}
	all, err := s.Points(t.Context(), "main", id, "printer", "temp", time.Time{}, time.Time{}, 1000)
	must(t, err)
	if len(all) != 600 || !all[0].At.Equal(noon.Add(time.Minute)) || all[599].Value != 10.59 {
		t.Errorf("all: got %d points from %v", len(all), all[0])
	}
	some, err := s.Points(t.Context(), "main", id, "printer", "temp", noon.Add(2*time.Minute), noon.Add(4*time.Minute), 1000)
	must(t, err)
	if len(some) != 120 || some[0].Value != 2 || some[119].Value != 3.59 {
		t.Errorf("part: got %d points", len(some))
	}
	thin, err := s.Points(t.Context(), "main", id, "printer", "temp", time.Time{}, time.Time{}, 10)
	must(t, err)
	if len(thin) != 10 {
		t.Fatalf("thinned: got %d points, want 10", len(thin))
	}
	for i, p := range thin {
		mean := float64(i+1) + 0.295 // of 60 samples
		if math.Abs(p.Value-mean) > 0.01 || p.At.Sub(noon) < time.Duration(i+1)*time.Minute || p.At.Sub(noon) > time.Duration(i+2)*time.Minute {
			t.Errorf("thinned %d: got %v at %s, want %v", i, p.Value, p.At.Sub(noon), mean)
		}
	}
	_, err = s.Points(t.Context(), "main", id, "printer", "nothing", time.Time{}, time.Time{}, 10)
	wantErr(t, "unknown series", err, fleet.ErrNotFound)
}

func TestEvents(t *testing.T) {
	s, ds := enrolled(t, 1)
	var evs []fleet.PeripheralEvent
	for i := range 5 {
		evs = append(evs, fleet.PeripheralEvent{Boot: [16]byte{1}, Seq: 4, Index: i, At: noon, Peripheral: "printer", Category: "POSPrinter", Code: "COVER_OPEN", To: "Yes"})
	}
	in := store.Intake{Device: ds[0].ID, Tenant: "main", At: noon, Events: evs}
	out, err := s.Commit(t.Context(), []store.Intake{in, in})
	must(t, err)
	if out[0].NewEvents != 5 || out[1].Duplicates != 5 {
		t.Errorf("got %+v", out)
	}
	var got []int
	for p := (fleet.Page{Limit: 2}); ; {
		items, next, err := s.Events(t.Context(), "main", ds[0].ID, p)
		must(t, err)
		for _, e := range items {
			if e.Boot != [16]byte{1} || e.To != "Yes" {
				t.Errorf("got %+v", e)
			}
			got = append(got, e.Index)
		}
		if p.After = next; next == "" {
			break
		}
	}
	if len(got) != 5 || got[0] != 4 || got[4] != 0 {
		t.Errorf("got %v, want 4 to 0", got)
	}
	_, _, err = s.Events(t.Context(), "main", ds[0].ID, fleet.Page{After: "x"})
	wantErr(t, "bad key", err, fleet.ErrInvalid)
}

func TestNewestReportWins(t *testing.T) {
	day := 24 * time.Hour
	type rep struct {
		boot     byte
		seq      uint64
		sent, at time.Time
		version  string
	}
	for name, tt := range map[string]struct {
		reps []rep
		want string
	}{
		"in order":                  {[]rep{{1, 1, noon, noon, "a"}, {1, 2, noon, noon, "b"}}, "b"},
		"out of order":              {[]rep{{1, 2, noon, noon, "b"}, {1, 1, noon, noon, "a"}}, "b"},
		"again":                     {[]rep{{1, 2, noon, noon, "b"}, {1, 2, noon, noon, "x"}}, "b"},
		"next boot":                 {[]rep{{1, 9, noon, noon, "a"}, {2, 1, noon.Add(1), noon, "a"}, {2, 2, noon.Add(time.Second), noon, "b"}}, "b"},
		"a boot before, late":       {[]rep{{2, 1, noon, noon, "b"}, {1, 9, noon.Add(-time.Hour), noon, "a"}}, "b"},
		"clock ran ahead":           {[]rep{{1, 9, noon.Add(900 * day), noon, "a"}, {2, 1, noon, noon, "b"}}, "b"},
		"clock lost its battery":    {[]rep{{1, 9, noon, noon, "a"}, {2, 1, time.UnixMilli(1), noon, "b"}}, "b"},
		"first boot speaks again":   {[]rep{{1, 1, noon, noon, "a"}, {2, 1, noon.Add(time.Second), noon, "b"}, {1, 2, noon.Add(time.Millisecond), noon, "a"}}, "b"},
		"clock back, then old boot": {[]rep{{1, 1, noon, noon, "a"}, {2, 1, time.UnixMilli(1), noon, "b"}, {1, 2, noon, noon, "a"}}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			s, ds := enrolled(t, 1)
			for _, r := range tt.reps {
				_, err := s.Commit(t.Context(), []store.Intake{{Device: ds[0].ID, Tenant: "main", At: r.at, Report: &store.Report{
					Boot: [16]byte{r.boot}, Seq: r.seq, Sent: r.sent, AgentVersion: r.version, Slot: r.version, Raw: []byte(r.version),
				}}})
				must(t, err)
			}
			d, err := s.DeviceByID(t.Context(), ds[0].ID)
			if err != nil || d.AgentVersion != tt.want || d.Slot != tt.want || string(d.State) != tt.want {
				t.Errorf("got %q %q %q, %v, want %q", d.AgentVersion, d.Slot, d.State, err, tt.want)
			}
		})
	}
}

func TestDeviceTrail(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	d := device("main", 1)
	must(t, s.Enrol(t.Context(), d))
	evs := chain(t, 1, [32]byte{}, 5, "link.up")
	in := store.Intake{Device: d.ID, Tenant: "main", At: noon, Audit: evs}
	out, err := s.Commit(t.Context(), []store.Intake{in, in})
	must(t, err)
	if out[0].NewAudit != 5 || out[1].Duplicates != 5 || out[1].NewAudit != 0 {
		t.Errorf("got %+v", out)
	}
	seq, hash, err := s.AuditHead(t.Context(), d.ID)
	if err != nil || seq != 5 || hash != evs[4].Hash {
		t.Errorf("head: got %d %x, %v", seq, hash, err)
	}
	rep, err := s.VerifyAudit(t.Context(), "main", d.ID)
	if err != nil || !rep.OK || rep.Entries != 5 || rep.First != 1 || rep.Last != 5 {
		t.Errorf("got %+v, %v", rep, err)
	}
	items, next, err := s.AuditTrail(t.Context(), "main", d.ID, true, fleet.Page{Limit: 2})
	if err != nil || len(items) != 2 || items[0].Seq != 5 || next != "4" || items[0].Detail["n"] != "5" || items[0].Prev != evs[3].Hash {
		t.Errorf("newest first: got %+v next %q, %v", items, next, err)
	}
	if items, _, err = s.AuditTrail(t.Context(), "main", d.ID, false, fleet.Page{After: "4"}); err != nil || len(items) != 1 || items[0].Seq != 5 {
		t.Errorf("after 4: got %+v, %v", items, err)
	}

	// Another entry with a number that is taken: never overwritten, flagged, one alarm.
	forged := chain(t, 3, evs[1].Hash, 1, "other")
	for range 2 {
		if out, err = s.Commit(t.Context(), []store.Intake{{Device: d.ID, Tenant: "main", At: noon, Audit: forged}}); err != nil || out[0].NewAudit != 0 {
			t.Errorf("forged: got %+v, %v", out, err)
		}
	}
	got, err := s.DeviceByID(t.Context(), d.ID)
	must(t, err)
	alarms, _, err := s.AuditTrail(t.Context(), "main", "", true, fleet.Page{})
	if err != nil || !got.AuditBroken || len(alarms) != 1 || alarms[0].Kind != "audit.chain_broken" || alarms[0].Severity != "alarm" || alarms[0].Subject != string(d.ID) {
		t.Errorf("forged: broken %v, alarms %+v, %v", got.AuditBroken, alarms, err)
	}
	if rep, err = s.VerifyAudit(t.Context(), "main", d.ID); err != nil || !rep.OK {
		t.Errorf("what is stored is still whole: got %+v, %v", rep, err)
	}
}

// TestLateEntries leaves entries of a trail out and brings them later: the device is flagged until they are there and
// link what lies around them, and for good when they do not.
func TestLateEntries(t *testing.T) {
	evs := chain(t, 1, [32]byte{}, 6, "link.up")
	other := chain(t, 3, evs[1].Hash, 2, "other")
	wrongEnd := append(slices.Clone(evs[2:3]), chain(t, 4, evs[2].Hash, 1, "other")...)
	for name, tt := range map[string]struct {
		late   [][]fleet.AuditEvent
		broken bool     // afterwards
		says   []string // the service's trail, behind the alarm of the gap
	}{
		"nothing":              {nil, true, nil},
		"one of two":           {[][]fleet.AuditEvent{evs[2:3]}, true, nil},
		"both":                 {[][]fleet.AuditEvent{evs[2:4]}, false, []string{"audit.chain_filled"}},
		"both, apart":          {[][]fleet.AuditEvent{evs[3:4], evs[2:3]}, false, []string{"audit.chain_filled"}},
		"both, twice":          {[][]fleet.AuditEvent{evs[2:4], evs[2:4]}, false, []string{"audit.chain_filled"}},
		"others":               {[][]fleet.AuditEvent{other}, true, []string{"audit.chain_broken", "audit.chain_filled"}},
		"one of them other":    {[][]fleet.AuditEvent{wrongEnd}, true, []string{"audit.chain_broken", "audit.chain_filled"}},
		"others, and the same": {[][]fleet.AuditEvent{other, evs[2:4]}, true, []string{"audit.chain_broken", "audit.chain_filled"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, postgres.Place(t))
			d := device("main", 1)
			must(t, s.Enrol(t.Context(), d))
			commit := func(evs []fleet.AuditEvent, alarm *fleet.AuditEvent) fleet.Outcome {
				out, err := s.Commit(t.Context(), []store.Intake{{Device: d.ID, Tenant: "main", At: noon, Audit: evs, Service: alarm}})
				must(t, err)
				return out[0]
			}
			for i, alarm := range []*fleet.AuditEvent{nil, {Kind: "audit.chain_broken", Severity: "alarm", Subject: string(d.ID)}} {
				if out := commit([][]fleet.AuditEvent{evs[:2], evs[4:]}[i], alarm); out.Gap != (i == 1) {
					t.Errorf("part %d: gap %v", i, out.Gap)
				}
			}
			if got, err := s.DeviceByID(t.Context(), d.ID); err != nil || !got.AuditBroken || got.AuditHead != 6 {
				t.Errorf("with a gap: broken %v, head %d, %v", got.AuditBroken, got.AuditHead, err)
			}
			for _, part := range tt.late {
				commit(part, nil)
			}
			got, err := s.DeviceByID(t.Context(), d.ID)
			if err != nil || got.AuditBroken != tt.broken || got.AuditHead != 6 {
				t.Errorf("broken %v, head %d, %v; want %v, 6", got.AuditBroken, got.AuditHead, err, tt.broken)
			}
			trail, _, err := s.AuditTrail(t.Context(), "main", "", false, fleet.Page{})
			must(t, err)
			var says []string
			for _, ev := range trail {
				says = append(says, ev.Kind)
			}
			if want := append([]string{"audit.chain_broken"}, tt.says...); !slices.Equal(says, want) {
				t.Errorf("the service says %q, want %q", says, want)
			}
			if rep, err := s.VerifyAudit(t.Context(), "main", d.ID); err != nil || rep.OK == tt.broken {
				t.Errorf("verify: got %+v, %v", rep, err)
			}
		})
	}
}

// TestVerifyFindsTampering changes the database behind the store's back, one thing at a time.
func TestVerifyFindsTampering(t *testing.T) {
	for name, tt := range map[string]struct {
		sql  string
		args []any
		at   uint64
	}{
		"a body":           {`UPDATE audit SET body = X'00' WHERE device = ? AND seq = 3`, nil, 3},
		"what is shown":    {`UPDATE audit SET kind = 'nothing' WHERE device = ? AND seq = 3`, nil, 3},
		"a detail":         {`UPDATE audit SET detail = '{}' WHERE device = ? AND seq = 2`, nil, 2},
		"the time":         {`UPDATE audit SET at = at + 1 WHERE device = ? AND seq = 4`, nil, 4},
		"a hash":           {`UPDATE audit SET hash = prev WHERE device = ? AND seq = 3`, nil, 3},
		"an entry is gone": {`DELETE FROM audit WHERE device = ? AND seq = 3`, nil, 3},
		"the first":        {`DELETE FROM audit WHERE device = ? AND seq = 1`, nil, 1},
		"the end":          {`DELETE FROM audit WHERE device = ? AND seq = 5`, nil, 5},
		"all":              {`DELETE FROM audit WHERE device = ?`, nil, 1},
	} {
		for _, id := range []fleet.DeviceID{"main-d01", ""} {
			t.Run(name+" of "+string(id), func(t *testing.T) {
				dir := postgres.Place(t)
				s := open(t, dir)
				must(t, s.Enrol(t.Context(), device("main", 1)))
				_, err := s.Commit(t.Context(), []store.Intake{{Device: "main-d01", Tenant: "main", At: noon, Audit: chain(t, 1, [32]byte{}, 5, "link.up")}})
				must(t, err)
				for range 5 {
					must(t, s.Audit(t.Context(), fleet.AuditEvent{Tenant: "main", Kind: "token.add", Actor: "anna", Subject: "t", Detail: map[string]string{"role": "admin"}}))
				}
				if rep, err := s.VerifyAudit(t.Context(), "main", id); err != nil || !rep.OK || rep.Entries != 5 {
					t.Fatalf("before: got %+v, %v", rep, err)
				}
				tamper(t, dir, tt.sql, append([]any{id}, tt.args...)...)
				rep, err := s.VerifyAudit(t.Context(), "main", id)
				if err != nil || rep.OK || rep.BrokenAt != tt.at || rep.Text == "" {
					t.Errorf("after: got %+v, %v, want broken at %d", rep, err, tt.at)
				}
			})
		}
	}
}
