package peripheral_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/peripheral"
)

// tape tells a printer what happens to it, a minute after each other: words are
// events, numbers are lines that are printed.
type tape struct {
	peripheral.Printer
	at    time.Time
	total float64
	epoch int64
	kept  bool
}

func newTape(rollLines float64) *tape {
	t := &tape{at: monday, total: 5000, epoch: monday.Unix(), kept: true}
	t.RollLines = rollLines
	t.count()
	return t
}

func (p *tape) count() {
	p.at = p.at.Add(time.Minute)
	p.Fold([]fleet.Sample{{At: p.at, Name: "ReceiptLineFeedCount", Value: p.total, Epoch: p.epoch, Kept: p.kept}}, nil, time.UTC)
}

func (p *tape) happens(codes string) {
	for c := range strings.FieldsSeq(codes) {
		p.Fold(nil, []fleet.PeripheralEvent{{At: p.at, Code: c}}, time.UTC)
	}
	p.count()
}

func (p *tape) prints(lines float64) {
	for range 10 {
		p.total += lines / 10
		p.count()
	}
}

// left is what is predicted to be left; -1 when nothing is.
func (p *tape) left() (float64, string) {
	v := p.Predict(time.UTC)
	if v == nil {
		return -1, ""
	}
	return math.Round(v.LinesLeft), v.Basis
}

func (p *tape) want(t *testing.T, what string, lines float64, basis string) {
	t.Helper()
	if got, from := p.left(); math.Abs(got-lines) > 1 || from != basis {
		t.Errorf("%s: got %.0f lines (%s), want %.0f (%s)", what, got, from, lines, basis)
	}
}

func TestRoll(t *testing.T) {
	p := newTape(1000)
	p.prints(300)
	p.want(t, "a roll that nobody saw being put in", -1, "")
	p.happens("REC_EMPTY")
	p.want(t, "no paper", -1, "")
	p.happens("COVER_OPEN REC_PAPEROK COVER_OK")
	p.prints(300)
	p.want(t, "a new roll", 700, "configured")
	p.happens("COVER_OPEN REC_EMPTY REC_PAPEROK COVER_OK") // its sensor lies while the cover is open
	p.want(t, "a cover that was opened", 700, "configured")
	p.prints(400)
	p.happens("REC_NEAREMPTY")
	p.want(t, "near its end, for the first time", 300, "configured")
	p.prints(260)
	p.happens("REC_EMPTY COVER_OPEN REC_PAPEROK COVER_OK")
	p.prints(500)
	p.want(t, "the next", 500, "configured")
	p.prints(190)
	p.happens("REC_NEAREMPTY")
	p.prints(10)
	p.want(t, "near its end, which is known by now", 250, "near_end")
	p.happens("REC_PAPEROK REC_NEAREMPTY") // the sensor is not sure
	p.want(t, "a sensor that changes its mind", 250, "near_end")
	p.happens("COVER_OPEN REC_PAPEROK COVER_OK") // changed before it was empty
	p.prints(100)
	p.want(t, "changed in time", 900, "configured")
	p.prints(1250)
	p.want(t, "longer than a roll is", -1, "")
	p.happens("REC_EMPTY REC_NEAREMPTY")
	p.prints(20)
	p.want(t, "a part of a roll", -1, "")
}

func TestLearnedLength(t *testing.T) {
	p := newTape(0)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(400)
	p.want(t, "the first roll", -1, "")
	p.prints(400)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(200)
	p.want(t, "the second", 600, "learned")

	p = newTape(1000) // and somebody buys longer ones
	p.happens("REC_EMPTY REC_PAPEROK")
	for range 3 {
		p.prints(1200)
		p.happens("REC_EMPTY REC_PAPEROK")
	}
	p.prints(200)
	p.want(t, "measured three times", 1000, "learned")
	p.Replaced("another")
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(200)
	p.want(t, "in another printer", 1000, "learned")

	for _, wrong := range []float64{40, 300, 2000, 40_000} { // another unit, or a slip of the pen
		p = newTape(wrong)
		p.happens("REC_EMPTY REC_PAPEROK")
		for range 2 {
			p.prints(1200)
			p.happens("REC_EMPTY REC_PAPEROK")
		}
		p.prints(200)
		p.want(t, fmt.Sprintf("configured as %v", wrong), 1000, "learned")
	}
}

func TestCounts(t *testing.T) {
	p := newTape(1000)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(100)
	p.epoch++ // the agent began anew, the printer goes on
	p.prints(100)
	p.want(t, "kept by the printer", 800, "configured")
	p.kept, p.epoch, p.total = false, p.at.Unix(), 50 // the agent counts, and began anew
	p.count()
	p.want(t, "kept by the agent", 750, "configured")
	was := p.total
	p.total = 20 // late, out of order
	p.count()
	p.total = was
	p.count()
	p.want(t, "a sample that came late", 750, "configured")
	p.total += 1e9
	p.count()
	p.want(t, "another printer's count", -1, "")
}

func TestReplaced(t *testing.T) {
	p := newTape(1000)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(1000)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(100)
	p.Replaced("another")
	p.total = 77_000
	p.count()
	p.want(t, "a printer that was changed", -1, "")
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(100)
	p.want(t, "its next roll", 900, "configured")
}

// TestKept shows that a printer is the same after it was put away.
func TestKept(t *testing.T) {
	p := newTape(0)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(800)
	p.happens("REC_NEAREMPTY")
	p.prints(100)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(500)
	b, err := json.Marshal(p.Printer)
	must(t, err)
	q := *p
	q.Printer = peripheral.Printer{}
	must(t, json.Unmarshal(b, &q.Printer))
	for _, x := range []*tape{p, &q} {
		x.prints(10)
		x.happens("REC_NEAREMPTY")
	}
	a, _ := json.Marshal(p.Predict(time.UTC))
	if b, _ := json.Marshal(q.Predict(time.UTC)); string(a) != string(b) || string(a) == "null" {
		t.Errorf("got %s, want %s", b, a)
	}
}

// TestClock sets the clock of a till back and forth.
func TestClock(t *testing.T) {
	p := newTape(1000)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(100)
	p.at = p.at.Add(-24 * time.Hour)
	p.prints(100)
	p.want(t, "set back by a day", 800, "configured")
	if v := p.Predict(time.UTC); v.RunOutAt.Before(p.at) || v.RunOutAt.After(p.at.Add(3*time.Hour)) {
		t.Errorf("at %s: got %+v, want a time soon after", p.at, v)
	}
	p.at = p.at.AddDate(5, 0, 0)
	p.prints(100)
	p.want(t, "set forth by five years", 700, "configured")
}

// TestOtherCount has a printer that counts what it feeds give way, at the same
// place, to one that does not: the lines that are printed count from then on.
func TestOtherCount(t *testing.T) {
	p := newTape(1000)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(100)
	printed := 0.0
	tell := func(by float64) {
		printed += by
		p.at = p.at.Add(time.Minute)
		p.Fold([]fleet.Sample{{At: p.at, Name: "ReceiptLinePrintedCount", Value: printed, Epoch: p.epoch}}, nil, time.UTC)
	}
	tell(0)
	tell(500)
	p.want(t, "beside the better one", 900, "configured")
	p.at = p.at.Add(25 * time.Hour)
	tell(0)
	p.want(t, "of another kind", -1, "")
	p.Fold(nil, []fleet.PeripheralEvent{{At: p.at, Code: "REC_EMPTY"}, {At: p.at, Code: "REC_PAPEROK"}}, time.UTC)
	for range 10 {
		tell(10)
	}
	p.want(t, "its next roll", 900, "configured")
}

// TestEventsFirst hears of all rolls of ten days before the counts of that time:
// each is as long as it was.
func TestEventsFirst(t *testing.T) {
	p := newTape(0)
	const rolls, lines = 60, 1000
	var events []fleet.PeripheralEvent
	for n := range rolls {
		for _, c := range []string{"REC_EMPTY", "COVER_OPEN", "REC_PAPEROK", "COVER_OK"} {
			events = append(events, fleet.PeripheralEvent{At: p.at.Add(time.Duration(n) * 4 * time.Hour), Code: c})
		}
	}
	p.Fold(nil, events, time.UTC)
	for n := 1; n < rolls*4*60; n++ {
		p.total += lines / 240.0
		p.count()
		for _, l := range p.Rolls {
			if math.Abs(l-lines) > 20 {
				t.Fatalf("after %d minutes: got rolls %v, want each of %d lines", n, p.Rolls, lines)
			}
		}
	}
	if len(p.Rolls) != 9 || len(p.Held) != 0 {
		t.Errorf("got %d rolls, and %d events are left", len(p.Rolls), len(p.Held))
	}
}

// TestNegativeCount has a count that cannot be, for hours: what is remembered can
// be put away.
func TestNegativeCount(t *testing.T) {
	p := newTape(1000)
	p.happens("REC_EMPTY REC_PAPEROK")
	p.prints(100)
	p.kept, p.epoch = false, 0
	for n := range 300 {
		p.total = -1e300 * float64(n+1)
		p.count()
	}
	if b, err := json.Marshal(p.Printer); err != nil {
		t.Errorf("got %s, %v", b, err)
	}
	if v := p.Predict(time.UTC); v != nil {
		t.Errorf("got %+v, want nothing", v)
	}
}

// FuzzFold lets a printer hear anything.
func FuzzFold(f *testing.F) {
	f.Add([]byte("0e1p2n3o"), 1000.0)
	f.Add([]byte("epnocxxx"), 0.0)
	codes := map[byte]string{'e': "REC_EMPTY", 'p': "REC_PAPEROK", 'n': "REC_NEAREMPTY", 'o': "COVER_OPEN", 'c': "COVER_OK"}
	f.Fuzz(func(t *testing.T, what []byte, rollLines float64) {
		if math.IsNaN(rollLines) || rollLines < 0 || rollLines > math.MaxUint32 || len(what) > 500 {
			return
		}
		p := newTape(math.Round(rollLines))
		for _, w := range what {
			if c := codes[w]; c != "" {
				p.happens(c)
				continue
			}
			p.total += float64(w)
			p.at = p.at.Add(time.Duration(int8(w)) * time.Minute)
			p.count()
			v := p.Predict(time.UTC)
			if v == nil {
				continue
			}
			if v.Earliest.After(v.RunOutAt) || v.Latest.Before(v.RunOutAt) || v.Confidence < 0 || v.Confidence > 1 || v.LinesLeft < 0 || math.IsNaN(v.LinesPerHour) || math.IsInf(v.LinesPerHour, 0) {
				t.Fatalf("got %+v", v)
			}
			if _, err := json.Marshal(p.Printer); err != nil {
				t.Fatal(err)
			}
		}
	})
}
