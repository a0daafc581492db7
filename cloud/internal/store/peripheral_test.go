package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

// till speaks of its peripherals.
type till struct {
	t    *testing.T
	s    *store.Store
	id   fleet.DeviceID
	boot byte
	seq  uint64
}

func newTill(t *testing.T) *till {
	t.Helper()
	s, ds := enrolled(t, 2)
	must(t, s.SetPresence(t.Context(), ds[0].ID, true, noon))
	return &till{t: t, s: s, id: ds[0].ID, boot: 1}
}

// says reports one printer at a moment; with no health, nothing.
func (x *till) says(at time.Time, health, reason string, since time.Time) fleet.Outcome {
	x.t.Helper()
	x.seq++
	r := &store.Report{Boot: [16]byte{x.boot}, Seq: x.seq, Sent: at}
	if health != "" {
		p := fleet.Peripheral{
			ID: "receipt", Category: "POSPrinter", Model: "P1", Power: "PS_ONLINE", Sensors: map[string]string{"CoverOpen": "No", "RecEmpty": "No"},
			Said: fleet.Light{Health: health, Reason: reason, Since: since},
		}
		if reason == "M_NOT_ASKED" {
			p.Power, p.Sensors = "PS_UNKNOWN", nil
		}
		r.Peripherals = []fleet.Peripheral{p}
	}
	out, err := x.s.Commit(x.t.Context(), []store.Intake{{Device: x.id, Tenant: "main", At: at, Report: r}})
	must(x.t, err)
	return out[0]
}

func (x *till) history() fleet.PeripheralHistory {
	x.t.Helper()
	h, err := x.s.History(x.t.Context(), "main", x.id, "receipt", time.Time{})
	must(x.t, err)
	return h
}

// past is what the spans of the printer are, oldest first, in minutes after noon.
func (x *till) past() string {
	x.t.Helper()
	var out []string
	for _, s := range x.history().Spans {
		to := ""
		if !s.To.IsZero() {
			to = fmt.Sprint(s.To.Sub(noon).Minutes())
		}
		out = append([]string{fmt.Sprintf("%s %s %v-%s", s.Health, s.Reason, s.From.Sub(noon).Minutes(), to)}, out...)
	}
	return strings.Join(out, ", ")
}

func minute(n float64) time.Time { return noon.Add(time.Duration(n * float64(time.Minute))) }

func TestPeripheralStates(t *testing.T) {
	x := newTill(t)
	want := func(what, past string) {
		t.Helper()
		if got := x.past(); got != past {
			t.Errorf("%s: got %s, want %s", what, got, past)
		}
	}
	if out := x.says(minute(1), "OK", "", minute(-60)); out.Peripherals != 1 {
		t.Errorf("the first report: %d peripherals are not as they were, want 1", out.Peripherals)
	}
	want("by the clock of the till", "OK  -60-")
	if out := x.says(minute(2), "OK", "", minute(-60)); out.Peripherals != 0 {
		t.Errorf("the same again: %d peripherals are not as they were", out.Peripherals)
	}
	x.says(minute(10), "Fault", "COVER_OPEN", minute(9))
	want("a cover", "OK  -60-9, Fault COVER_OPEN 9-")
	x.says(minute(12), "Fault", "REC_EMPTY", minute(11))
	want("another reason is another state", "OK  -60-9, Fault COVER_OPEN 9-11, Fault REC_EMPTY 11-")
	x.says(minute(13), "Fault", "REC_EMPTY", minute(13))
	want("a till that forgot since when", "OK  -60-9, Fault COVER_OPEN 9-11, Fault REC_EMPTY 11-")

	x.boot++ // the agent is started again
	x.says(minute(20), "Unknown", "M_NOT_ASKED", minute(20))
	want("not asked yet", "OK  -60-9, Fault COVER_OPEN 9-11, Fault REC_EMPTY 11-20, Unknown M_NOT_ASKED 20-")
	x.says(minute(21), "Fault", "REC_EMPTY", minute(20))
	want("it was so all the time", "OK  -60-9, Fault COVER_OPEN 9-11, Fault REC_EMPTY 11-")
	x.boot++
	x.says(minute(30), "Unknown", "M_NOT_ASKED", minute(30))
	x.says(minute(31), "OK", "", minute(31))
	want("it was changed meanwhile", "OK  -60-9, Fault COVER_OPEN 9-11, Fault REC_EMPTY 11-30, Unknown M_NOT_ASKED 30-31, OK  31-")

	// Clocks that cannot be right.
	x.says(minute(40), "Fault", "COVER_OPEN", minute(35).AddDate(1, 0, 0))
	x.says(minute(41), "OK", "", minute(2))
	x.says(minute(42), "Fault", "REC_EMPTY", time.Time{})
	want("no time before another, none in the future", "OK  -60-9, Fault COVER_OPEN 9-11, Fault REC_EMPTY 11-30, Unknown M_NOT_ASKED 30-31, OK  31-40, OK  40-42, Fault REC_EMPTY 42-")
}

func TestPeripheralGone(t *testing.T) {
	x := newTill(t)
	x.says(minute(0), "OK", "", minute(0))
	if out := x.says(minute(10), "", "", noon); out.Peripherals != 1 {
		t.Errorf("unplugged: got %+v, want one that is not as it was", out)
	}
	if h := x.history(); h.GoneAt != minute(10) || x.past() != "OK  0-10" {
		t.Errorf("got %+v and %s", h.Peripheral, x.past())
	}
	if h := x.history(); h.Light != (fleet.Light{Health: "Unknown", Reason: "M_GONE", Since: minute(10)}) || h.Last.Health != "OK" {
		t.Errorf("got %+v, want that nobody knows how it is, and that it was OK", h.Light)
	}
	all, _, err := x.s.Peripherals(t.Context(), "main", fleet.PeripheralFilter{}, fleet.Page{})
	if err != nil || len(all) != 0 {
		t.Errorf("list: got %+v, %v, want what is there", all, err)
	}
	x.says(minute(20), "OK", "", minute(5))
	if h := x.history(); !h.GoneAt.IsZero() || x.past() != "OK  0-10, OK  10-" {
		t.Errorf("plugged in again: got %+v and %s", h.Peripheral, x.past())
	}
	// Names that come and go are not kept for ever.
	for n := range 40 {
		x.seq++
		r := &store.Report{Boot: [16]byte{1}, Seq: x.seq, Sent: minute(30)}
		for k := range 10 {
			r.Peripherals = append(r.Peripherals, fleet.Peripheral{ID: fmt.Sprintf("usb-%d-%d", n, k), Said: fleet.Light{Health: "OK"}})
		}
		_, err := x.s.Commit(t.Context(), []store.Intake{{Device: x.id, Tenant: "main", At: minute(30 + float64(n)), Report: r}})
		must(t, err)
	}
	_, err = x.s.History(t.Context(), "main", x.id, "usb-0-0", time.Time{})
	wantErr(t, "of the first that went", err, fleet.ErrNotFound)
	_, err = x.s.History(t.Context(), "main", x.id, "usb-38-9", time.Time{})
	must(t, err)
}

// TestToldTwice shows that of two with one name the first counts, and that
// nothing is lost of what was.
func TestToldTwice(t *testing.T) {
	x := newTill(t)
	x.says(minute(0), "OK", "", minute(0))
	x.says(minute(5), "Fault", "COVER_OPEN", minute(5))
	p := func(reason string) fleet.Peripheral {
		return fleet.Peripheral{ID: "receipt", Category: "POSPrinter", Model: "P1", Power: "PS_ONLINE", Said: fleet.Light{Health: "Fault", Reason: reason, Since: minute(6)}}
	}
	x.seq++
	_, err := x.s.Commit(t.Context(), []store.Intake{{Device: x.id, Tenant: "main", At: minute(7), Report: &store.Report{
		Boot: [16]byte{1}, Seq: x.seq, Sent: minute(7), Peripherals: []fleet.Peripheral{p("REC_EMPTY"), p("M_CUTTER_ERROR")},
	}}})
	must(t, err)
	if got, want := x.past(), "OK  0-5, Fault COVER_OPEN 5-6, Fault REC_EMPTY 6-"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestTillLost(t *testing.T) {
	x := newTill(t)
	x.says(minute(0), "Fault", "COVER_OPEN", minute(-5))
	must(t, x.s.SetPresence(t.Context(), x.id, false, minute(10)))
	h := x.history()
	if h.Health != "Unknown" || h.Reason != "M_TILL_OFFLINE" || !h.Since.Equal(minute(10)) || h.Last != (fleet.Light{Health: "Fault", Reason: "COVER_OPEN", Since: minute(-5)}) {
		t.Errorf("got %+v, and %+v before", h.Light, h.Last)
	}
	if len(h.Lost) != 1 || !h.Lost[0].From.Equal(minute(10)) || !h.Lost[0].To.IsZero() {
		t.Errorf("lost: got %+v", h.Lost)
	}
	must(t, x.s.SetPresence(t.Context(), x.id, true, minute(70)))
	must(t, x.s.SetPresence(t.Context(), x.id, false, minute(80)))
	must(t, x.s.SetPresence(t.Context(), x.id, true, minute(80.5))) // only a connection that broke
	h = x.history()
	if h.Light != (fleet.Light{Health: "Fault", Reason: "COVER_OPEN", Since: minute(-5)}) || h.Last.Health != "" {
		t.Errorf("back: got %+v, want it as it was", h.Light)
	}
	if len(h.Lost) != 1 || !h.Lost[0].To.Equal(minute(70)) {
		t.Errorf("lost: got %+v, want an hour", h.Lost)
	}
	must(t, x.s.AllOffline(t.Context()))
	if h := x.history(); h.Reason != "M_TILL_OFFLINE" {
		t.Errorf("after a start of the service: got %+v", h.Light)
	}
}

func TestSpansAreBounded(t *testing.T) {
	x := newTill(t)
	for n := range 2400 {
		at := minute(float64(n))
		if n%2 == 0 {
			x.says(at, "OK", "", at)
		} else {
			x.says(at, "Fault", "COVER_OPEN", at)
		}
	}
	if n := len(x.history().Spans); n > 2002 || n < 2000 {
		t.Errorf("got %d spans, want the newest 2000 and the present one", n)
	}
	for n := range 100 { // a year later
		at := minute(float64(n)).AddDate(1, 0, 0)
		x.says(at, "Fault", fmt.Sprintf("M_%d", n), at)
	}
	h := x.history()
	if last := h.Spans[len(h.Spans)-1]; len(h.Spans) > 1500 || h.Spans[0].Reason != "M_99" {
		t.Errorf("got %d spans back to %s", len(h.Spans), last.From)
	}
}

func TestHealthChecks(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	check := func(seq uint64) fleet.Outcome {
		out, err := x.s.Commit(t.Context(), []store.Intake{{Device: x.id, Tenant: "main", At: noon, Checks: []fleet.HealthCheck{
			{Boot: [16]byte{1}, Seq: seq, At: minute(float64(seq)), Peripheral: "receipt", Level: "internal", OK: true, Steps: []fleet.CheckStep{{ID: "reachable", OK: true, MS: 3}}},
			{Boot: [16]byte{1}, Seq: seq, Index: 1, At: noon, Peripheral: "reader", Level: "internal"},
		}}})
		must(t, err)
		return out[0]
	}
	for n := range uint64(30) {
		if out := check(1000 + n); out.NewChecks != 2 {
			t.Errorf("got %+v, want two", out)
		}
	}
	if out := check(1029); out.NewChecks != 0 || out.Duplicates != 2 {
		t.Errorf("again: got %+v, want two duplicates", out)
	}
	h := x.history()
	if len(h.Checks) != 20 || !h.Checks[0].At.Equal(minute(1029)) || h.Checks[0].Steps[0].MS != 3 || !h.Checks[0].OK {
		t.Errorf("got %d checks, the first is %+v", len(h.Checks), h.Checks[0])
	}
}

// TestPeripheralsOfOthers asks for them as another tenant, and with the twin
// that may.
func TestPeripheralsOfOthers(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	ctx := t.Context()
	for tenant, n := range map[fleet.TenantID]int{"main": 1, "other": 0} {
		all, _, err := x.s.Peripherals(ctx, tenant, fleet.PeripheralFilter{}, fleet.Page{})
		must(t, err)
		of, err := x.s.PeripheralsOf(ctx, tenant, x.id)
		must(t, err)
		_, err = x.s.History(ctx, tenant, x.id, "receipt", time.Time{})
		_, serr := x.s.PeripheralSeries(ctx, tenant, x.id, "receipt")
		if n == 0 {
			wantErr(t, "history", err, fleet.ErrNotFound)
			wantErr(t, "series", serr, fleet.ErrNotFound)
		} else {
			must(t, err)
			must(t, serr)
		}
		if len(all) != n || len(of[x.id]) != n {
			t.Errorf("%s: got %d listed and %d of the device, want %d", tenant, len(all), len(of[x.id]), n)
		}
	}
	changed, err := x.s.Derive(ctx, []fleet.Derived{{Device: x.id, Tenant: "other", Body: []byte("{}"), Peripherals: []fleet.DerivedPeripheral{{ID: "receipt", Soon: true}}}}, noon)
	if err != nil || len(changed) != 0 || x.history().Health != "OK" {
		t.Errorf("derived for another tenant: got %v, %v and %+v", changed, err, x.history().Light)
	}
}

// TestPeripheralsMoveOn gives a device to another owner: what its peripherals
// were stays with the one before.
func TestPeripheralsMoveOn(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	x.says(minute(5), "Fault", "COVER_OPEN", minute(5))
	_, err := x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Body: []byte("{}")}}, noon)
	must(t, err)
	must(t, x.s.PutOwnership(t.Context(), stands(x.id, 9, "abc", fleet.Released), event("ownership.set")))
	must(t, x.s.Reset(t.Context(), x.id, event("device.reset")))
	h, err := x.s.History(t.Context(), "main", x.id+".1", "receipt", time.Time{})
	if err != nil || len(h.Spans) != 2 {
		t.Errorf("the past: got %+v, %v", h.Spans, err)
	}
	d := device("other", 1)
	d.ID, d.EKHash = x.id, device("main", 1).EKHash
	must(t, x.s.Enrol(t.Context(), d))
	of, err := x.s.PeripheralsOf(t.Context(), "other", x.id)
	if err != nil || len(of) != 0 {
		t.Errorf("the next owner sees %+v, %v", of, err)
	}
	if all, _, err := x.s.Peripherals(t.Context(), "main", fleet.PeripheralFilter{}, fleet.Page{}); err != nil || len(all) != 0 {
		t.Errorf("the owner before has %+v, %v, want none in use", all, err)
	}
}

func TestDerive(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	later := time.Now().UTC().Truncate(time.Millisecond).Add(time.Hour)
	paper := &fleet.Paper{RunOutAt: later, Earliest: later.Add(-time.Minute), Latest: later.Add(time.Minute), Confidence: 0.8, LinesLeft: 500, LinesPerHour: 600, Basis: "learned"}
	reads := &fleet.Reads{Reads: 100, Failures: 3, Rate: 0.03, FleetRate: 0.01}
	derive := func(at time.Time, d fleet.DerivedPeripheral) {
		t.Helper()
		d.ID = "receipt"
		changed, err := x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Body: []byte(`{"a":1}`), Cursor: fleet.Cursor{Event: 7}, Peripherals: []fleet.DerivedPeripheral{d}}}, at)
		if err != nil || len(changed) != 1 {
			t.Errorf("got %v, %v, want that it changed", changed, err)
		}
	}
	derive(minute(10), fleet.DerivedPeripheral{Paper: paper, Reads: reads, Soon: true})
	h := x.history()
	if h.Paper == nil || *h.Paper != *paper || h.Reads == nil || *h.Reads != *reads || x.past() != "OK  0-10, Attention M_PAPER_SOON 10-" {
		t.Errorf("got %+v, %+v and %s", h.Paper, h.Reads, x.past())
	}
	x.says(minute(20), "Fault", "REC_EMPTY", minute(20))
	derive(minute(21), fleet.DerivedPeripheral{})
	x.says(minute(30), "OK", "", minute(30))
	if h = x.history(); h.Paper != nil || h.Reads != nil || x.past() != "OK  0-10, Attention M_PAPER_SOON 10-20, Fault REC_EMPTY 20-30, OK  30-" {
		t.Errorf("got %+v, %+v and %s", h.Paper, h.Reads, x.past())
	}
	u, err := x.s.Usage(t.Context(), x.id)
	if err != nil || string(u.Body) != `{"a":1}` || u.Next.Event != 7 || len(u.Peripherals) != 1 || u.Tenant != "main" {
		t.Errorf("usage: got %+v, %v", u, err)
	}
	_, err = x.s.Usage(t.Context(), "nobody")
	wantErr(t, "usage of nobody", err, fleet.ErrNotFound)
}

// TestWrongPrediction lets the time go by at which a roll should have been at
// its end.
func TestWrongPrediction(t *testing.T) {
	x := newTill(t)
	now := time.Now()
	x.says(noon, "OK", "", noon)
	listed := func() int {
		t.Helper()
		all, _, err := x.s.Peripherals(t.Context(), "main", fleet.PeripheralFilter{RunOutBefore: now.Add(time.Hour)}, fleet.Page{})
		must(t, err)
		return len(all)
	}
	for _, c := range []struct {
		out, latest time.Duration
		online      bool
		shown       bool
		soon        int
	}{
		{-time.Hour, -time.Minute, true, false, 0},
		{-time.Hour, time.Hour, false, false, 0},
		{time.Minute, time.Hour, false, true, 0},
		{-time.Hour, time.Hour, true, true, 1},
	} {
		paper := &fleet.Paper{RunOutAt: now.Add(c.out), Earliest: now.Add(-2 * time.Hour), Latest: now.Add(c.latest), Confidence: 0.9, Basis: "learned"}
		_, err := x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Body: []byte("{}"), Peripherals: []fleet.DerivedPeripheral{{ID: "receipt", Paper: paper}}}}, now)
		must(t, err)
		must(t, x.s.SetPresence(t.Context(), x.id, c.online, now))
		if got := x.history().Paper; (got != nil) != c.shown {
			t.Errorf("%+v: got %+v", c, got)
		}
		if n := listed(); n != c.soon {
			t.Errorf("%+v: %d are listed, want %d", c, n, c.soon)
		}
		if !c.online {
			continue
		}
		if lit, err := x.s.RunningOut(t.Context(), now.Add(time.Hour), 0.5, 10, now); err != nil || len(lit) != c.soon {
			t.Errorf("%+v: got lights of %v, %v, want %d", c, lit, err, c.soon)
		}
	}
}

// TestBaselineKeepsItsDays counts on a day that cannot be: nothing of the others
// goes for it.
func TestBaselineKeepsItsDays(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	today := time.Now().Unix() / 86400
	for _, day := range []int64{today - 40, today, today + 5000, today} {
		_, err := x.s.Derive(t.Context(), []fleet.Derived{{Device: x.id, Tenant: "main", Body: []byte("{}"), Reads: []fleet.ReadDay{{Model: "R1", Day: day, Reads: 10, Failures: 1}}}}, time.Now())
		must(t, err)
	}
	if d, err := x.s.Baseline(t.Context(), "main", "R1", 0); err != nil || d.Reads != 30 || d.Failures != 3 {
		t.Errorf("got %+v, %v, want 30 reads: all but those of 40 days ago", d, err)
	}
}

// TestSerialForALabel shows a till that nobody has named by its serial number.
func TestSerialForALabel(t *testing.T) {
	x := newTill(t)
	x.says(noon, "OK", "", noon)
	d, err := x.s.DeviceByID(t.Context(), x.id)
	must(t, err)
	if got := x.history().Label; d.Serial == "" || got != d.Serial {
		t.Errorf("got %q, want %q", got, d.Serial)
	}
	all, _, err := x.s.Peripherals(t.Context(), "main", fleet.PeripheralFilter{Query: d.Serial}, fleet.Page{})
	if err != nil || len(all) != 1 {
		t.Errorf("by that number: got %d, %v, want one", len(all), err)
	}
	label := "Lane 7"
	must(t, x.s.SetDevice(t.Context(), "main", x.id, fleet.DevicePatch{Label: &label}, event("device.set")))
	if got := x.history().Label; got != label {
		t.Errorf("got %q, want %q", got, label)
	}
}
