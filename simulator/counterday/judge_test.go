package counterday

import (
	"strings"
	"testing"
	"time"
)

// The judge must see what is not as it should be, each in its turn.
func TestJudge(t *testing.T) {
	noon := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	list := func() []*fault {
		return []*fault{
			{name: "cover", peripheral: printer, lane: printer, on: "COVER_OPEN", off: "COVER_OK", begun: at(1000), ended: at(2000)},
			{name: "cover again", peripheral: printer, lane: printer, on: "COVER_OPEN", off: "COVER_OK", begun: at(4000), ended: at(5000)},
			{name: "torn", peripheral: reader, lane: reader, on: "M_CARD_TORN", off: "NO_CARD", begun: at(1000), ended: at(2000), sudden: true},
		}
	}
	good := []event{
		{at(1040), printer, "COVER_OPEN", 0},
		{at(1041), printer, "POWER_OFFLINE", 0},
		{at(2100), printer, "COVER_OK", 0},
		{at(4007), printer, "COVER_OPEN", 0},
		{at(5100), printer, "COVER_OK", 0},
		{at(1300), reader, "M_CARD_TORN", 0},
		{at(1301), reader, "NO_CARD", 0},
	}
	for _, c := range []struct {
		name   string
		events []event
		bad    string // name of the fault that is not ok; empty: all are
		alarms int
	}{
		{"as it should be", good, "", 0},
		{"one is not told", good[1:], "cover", 0},
		{"one is told twice", append([]event{{at(1500), printer, "COVER_OPEN", 0}}, good...), "cover", 0},
		{"one is told as a count", append([]event{{at(1500), printer, "COVER_OPEN", 6}}, good...), "cover", 0},
		{"one is told after its end", append([]event{{at(2200), printer, "COVER_OPEN", 0}}, good...), "cover", 1},
		{"an end is missing", append([]event{good[0]}, good[3:]...), "cover", 0},
		{"an end is told twice", append([]event{{at(5200), printer, "COVER_OK", 0}}, good...), "cover again", 0},
		{"told of another peripheral", append([]event{{at(1040), scanner, "COVER_OPEN", 0}}, good[1:]...), "cover", 0},
		{"told out of the blue", append([]event{{at(7000), printer, "COVER_OPEN", 0}}, good...), "cover again", 1},
		{"a torn card that stays", good[:6], "torn", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var bad []string
			l := list()
			for _, f := range l {
				if r := f.judge(l, c.events); !r.OK {
					bad = append(bad, r.Name)
				}
			}
			if got := strings.Join(bad, ", "); got != c.bad {
				t.Errorf("not ok: %q, want %q", got, c.bad)
			}
			if got := falseAlarms(l, c.events); len(got) != c.alarms {
				t.Errorf("false alarms: %q, want %d", got, c.alarms)
			}
		})
	}
	l := list()
	if r := l[0].judge(l, good); r.DetectMS != 41 {
		t.Errorf("detected after %v ms, want 41", r.DetectMS)
	}
}
