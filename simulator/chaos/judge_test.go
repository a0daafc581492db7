package chaos

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/wire"
)

// world is a till's book and what the service holds of it, as it should be:
// four entries, two telemetry messages, two of events, a result, two states.
func world(t *testing.T) (*ledger, *stored) {
	t.Helper()
	l, s := newLedger(), new(stored)
	boot, name := wire.Boot{7}, fmt.Sprintf("%x", wire.Boot{7})
	seq, n := uint64(0), int64(0)
	head := func() wire.Head { seq++; return wire.Head{V: wire.Version, Boot: boot, Seq: seq, Sent: 1} }
	tell := func(c wire.Channel, m wire.Message) []byte {
		b, err := wire.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		records, err := recordsOf(c, b)
		if err != nil || len(records) != 1 {
			t.Fatalf("%s: %d records, %v", c, len(records), err)
		}
		for _, kept := range []bool{false, true} {
			l.tell(records[0], kept, time.Now())
		}
		return b
	}
	var prev [32]byte
	for i := range uint64(4) {
		e, err := wire.SealAudit(wire.AuditRecord{Seq: i + 1, At: 1, Boot: boot, Kind: "link.up", Severity: "info", Prev: prev})
		if err != nil {
			t.Fatal(err)
		}
		tell(wire.Audit, &wire.AuditBatch{Head: head(), Entries: []wire.AuditEntry{e}})
		n++
		s.trail = append(s.trail, link{n, i + 1, e.Body, bytes.Clone(e.Hash[:]), bytes.Clone(prev[:])})
		prev = e.Hash
	}
	for range 2 {
		h := head()
		tell(wire.Telemetry, &wire.TelemetryBatch{Head: h, Samples: []wire.Sample{{At: 5, Name: "a", Value: 1}, {At: -3, Name: "b", Value: 2}}})
		for i, text := range []string{sampleRow(5, "", "a", 1, 0, false), sampleRow(1, "", "b", 2, 0, false)} {
			s.rows = append(s.rows, row{key{telemetry, name, h.Seq}, i, text, 0})
		}
	}
	for range 2 {
		h := head()
		tell(wire.Event, &wire.EventBatch{Head: h, Events: []wire.PeripheralEvent{{At: 9, Peripheral: "p", Category: "POSPrinter", Code: "X"}}})
		n++
		s.rows = append(s.rows, row{key{event, name, h.Seq}, 0, eventRow(9, "p", "POSPrinter", "X", "", "", 0, 0), n})
	}
	tell(wire.Result, &wire.ResultReport{Head: head(), Kind: wire.OrderCommand, ID: "c1", State: "SUCCEEDED"})
	s.rows = append(s.rows, row{key{result, "c1", 0}, 0, resultRow("c1", "SUCCEEDED", ""), 0})
	var last []byte
	for range 2 {
		last = tell(wire.State, &wire.StateReport{Head: head(), AgentVersion: "1.0.0", Slot: "a"})
	}
	s.rows = append(s.rows, row{key{state, name, seq}, 0, string(last), 0})
	return l, s
}

// TestJudgeAgrees: what is as it should be is found to be so, also where a kill
// came between a beginning and its acknowledgement.
func TestJudgeAgrees(t *testing.T) {
	l, s := world(t)
	v := judge("till-1", l, s, 0)
	if v.chain != "ok" || len(v.problems) != 0 {
		t.Errorf("chain %q, problems %q", v.chain, v.problems)
	}
	for i, want := range []count{
		{Class: audit, Recorded: 4, Stored: 4},
		{Class: telemetry, Recorded: 4, Stored: 4},
		{Class: event, Recorded: 2, Stored: 2},
		{Class: result, Recorded: 1, Stored: 1},
		{Class: state, Recorded: 2, Stored: 1, Superseded: 1},
	} {
		if v.counts[i] != want || !v.counts[i].ok() {
			t.Errorf("got %+v, want %+v", v.counts[i], want)
		}
	}
	for _, there := range []bool{true, false} {
		l, s := world(t)
		k := s.rows[0].key
		l.entries[k][0].kept = false
		if !there {
			s.rows = s.rows[2:]
		}
		if v := judge("till-1", l, s, 0); len(v.problems) != 0 {
			t.Errorf("begun, stored %v: problems %q", there, v.problems)
		}
	}
}

// TestShed: what a till gave up is no loss when it counts as many, and is one
// when it does not.
func TestShed(t *testing.T) {
	for _, tt := range []struct {
		gone, said, refused, perhaps, counted int
		lost                                  int // rows
		fits                                  bool
	}{
		{fits: true},
		{gone: 1, said: 1, counted: 1, fits: true},
		{gone: 1, said: 1, counted: 0},
		{gone: 1, said: 1, counted: 2},
		{gone: 1, counted: 1, lost: 2},
		{gone: 1, counted: 0, lost: 2},
		{gone: 0, said: 1, counted: 1, fits: true}, // it had been sent
		{gone: 1, said: 2, counted: 2, fits: true},
		{gone: 1, said: 1, refused: 3, counted: 4, fits: true},
		{gone: 1, said: 1, refused: 3, counted: 3},
		{gone: 1, said: 1, refused: 3, perhaps: 1, counted: 5, fits: true},
		{gone: 1, said: 1, refused: 3, perhaps: 1, counted: 6},
		{counted: 1},
	} {
		l, s := world(t)
		l.refused, l.perhaps = tt.refused, tt.perhaps
		for i := range tt.said {
			l.giveUp(l.entries[s.rows[2*i].key][0].record)
		}
		s.rows = s.rows[2*tt.gone:] // both samples of a message
		v := judge("till-1", l, s, tt.counted)
		c := v.counts[1]
		if c.Lost != tt.lost || tt.fits != (len(v.problems) == 0) || tt.fits && c.Shed != 2*tt.gone {
			t.Errorf("%+v: got %+v, %q", tt, c, v.problems)
		}
	}
}

// TestJudgeCanFail changes one thing of what is stored, or of the book, at a
// time: each is found, by name.
func TestJudgeCanFail(t *testing.T) {
	first := func(s *stored, class string) int {
		return slices.IndexFunc(s.rows, func(r row) bool { return r.Class == class })
	}
	drop := func(class string) func(*ledger, *stored) {
		return func(_ *ledger, s *stored) { i := first(s, class); s.rows = slices.Delete(s.rows, i, i+1) }
	}
	twice := func(class string) func(*ledger, *stored) {
		return func(_ *ledger, s *stored) { s.rows = append(s.rows, s.rows[first(s, class)]) }
	}
	change := func(class string) func(*ledger, *stored) {
		return func(_ *ledger, s *stored) {
			r := &s.rows[first(s, class)]
			b := []byte(r.text)
			b[len(b)/2] ^= 1
			r.text = string(b)
		}
	}
	hide := func(class string) func(*ledger, *stored) {
		return func(l *ledger, s *stored) {
			for k := range l.entries {
				if k.Class == class {
					delete(l.entries, k)
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		do   func(*ledger, *stored)
		want string // of the problems
		of   func(count) int
	}{
		"sample dropped":    {drop(telemetry), "till-1: telemetry 07000000/5: 1 of 2 rows are lost", func(c count) int { return c.Lost }},
		"sample duplicated": {twice(telemetry), "till-1: telemetry 07000000/5: row 0 is stored twice", func(c count) int { return c.Duplicated }},
		"sample changed":    {change(telemetry), "till-1: telemetry 07000000/5 is stored with other content", func(c count) int { return c.Changed }},
		"samples swapped": {
			func(_ *ledger, s *stored) { s.rows[0].text, s.rows[1].text = s.rows[1].text, s.rows[0].text },
			"till-1: telemetry 07000000/5 is stored with other content", func(c count) int { return c.Changed },
		},
		"samples hidden":   {hide(telemetry), "till-1: telemetry 07000000/5 is stored and was never recorded", func(c count) int { return c.Unknown }},
		"event dropped":    {drop(event), "till-1: event 07000000/7 is lost", func(c count) int { return c.Lost }},
		"event duplicated": {twice(event), "till-1: event 07000000/7: row 0 is stored twice", func(c count) int { return c.Duplicated }},
		"event changed":    {change(event), "till-1: event 07000000/7 is stored with other content", func(c count) int { return c.Changed }},
		"events swapped": {func(_ *ledger, s *stored) {
			i := first(s, event)
			s.rows[i], s.rows[i+1] = s.rows[i+1], s.rows[i]
		}, "till-1: event 07000000/7 row 0 is stored after event 07000000/8 row 0", func(c count) int { return c.Disorder }},
		"events hidden":      {hide(event), "till-1: event 07000000/7 is stored and was never recorded", func(c count) int { return c.Unknown }},
		"command duplicated": {twice(result), "till-1: command c1 is stored twice", func(c count) int { return c.Duplicated }},
		"command dropped":    {drop(result), "till-1: the result of command c1 is lost", func(c count) int { return c.Lost }},
		"result dropped": {
			func(_ *ledger, s *stored) { s.rows[first(s, result)].text = resultRow("c1", "SENT", "") },
			"till-1: the result of command c1 is lost", func(c count) int { return c.Lost },
		},
		"result changed": {
			func(_ *ledger, s *stored) { s.rows[first(s, result)].text = resultRow("c1", "FAILED", "") },
			"till-1: command c1 has ended as FAILED, which its till did not say", func(c count) int { return c.Changed },
		},
		"result hidden": {hide(result), "till-1: command c1 has ended as SUCCEEDED, and its till never said so", func(c count) int { return c.Unknown }},
		"state dropped": {drop(state), "till-1: state 07000000/11 is lost", func(c count) int { return c.Lost }},
		"state changed": {change(state), "till-1: state 07000000/11 is stored with other content", func(c count) int { return c.Changed }},
		"entry dropped": {func(_ *ledger, s *stored) { s.trail = slices.Delete(s.trail, 1, 2) }, "till-1: audit 2 is lost (1 rows, link.up)", func(c count) int { return c.Lost }},
		"last entry dropped": {
			func(_ *ledger, s *stored) { s.trail = s.trail[:3] },
			"till-1: audit 4 is lost", func(c count) int { return c.Lost },
		},
		"entry duplicated": {func(_ *ledger, s *stored) { s.trail = append(s.trail, s.trail[3]) }, "till-1: audit 4: row 0 is stored twice", func(c count) int { return c.Duplicated }},
		"entries swapped": {
			func(_ *ledger, s *stored) { s.trail[1], s.trail[2] = s.trail[2], s.trail[1] },
			"till-1: audit 2 is stored after audit 3", func(c count) int { return c.Disorder },
		},
		"entry changed":  {func(_ *ledger, s *stored) { s.trail[2].body[9] ^= 1 }, "till-1: audit 3 is stored with other content", func(c count) int { return c.Changed }},
		"entries hidden": {hide(audit), "till-1: audit 1 is stored and was never recorded", func(c count) int { return c.Unknown }},
		"a row in the book twice": {func(l *ledger, _ *stored) {
			e := *l.entries[key{Class: audit, Seq: 2}][0]
			e.Hash = "other"
			l.entries[key{Class: audit, Seq: 2}] = append(l.entries[key{Class: audit, Seq: 2}], &e)
		}, "till-1: audit 2 was recorded twice, with other content", func(c count) int { return c.Changed }},
	} {
		t.Run(name, func(t *testing.T) {
			l, s := world(t)
			tt.do(l, s)
			v := judge("till-1", l, s, 0)
			if !slices.ContainsFunc(v.problems, func(p string) bool { return strings.HasPrefix(p, tt.want) }) {
				t.Errorf("got %q, want one with %q", v.problems, tt.want)
			}
			n := 0
			for _, c := range v.counts {
				n += tt.of(c)
			}
			if n == 0 {
				t.Errorf("it is in no count: %+v", v.counts)
			}
		})
	}
}

// TestChainCanFail: what is wrong with the raw rows of a trail is found, though
// nobody else would look at them.
func TestChainCanFail(t *testing.T) {
	for want, do := range map[string]func(*stored){
		"entry 2 is missing":              func(s *stored) { s.trail = slices.Delete(s.trail, 1, 2) },
		"entry 2 is there twice":          func(s *stored) { s.trail = append(s.trail, s.trail[1]) },
		"entry 3 does not match its hash": func(s *stored) { s.trail[2].body[9] ^= 1 },
		"entry 3 does not follow entry 2": func(s *stored) { s.trail[2].prev[0] ^= 1 },
		"entry 2 says that it is entry 3": func(s *stored) { s.trail[1].body, s.trail[1].hash = s.trail[2].body, s.trail[2].hash },
		"there is none":                   func(s *stored) { s.trail = nil },
	} {
		_, s := world(t)
		do(s)
		if got := chain(s.trail); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	_, s := world(t)
	s.trail[1].body = []byte("no record")
	h := sha256.Sum256(s.trail[1].body)
	s.trail[1].hash = h[:]
	if got := chain(s.trail); !strings.HasPrefix(got, "entry 2 cannot be read") {
		t.Errorf("got %q", got)
	}
}

// TestWaits: nobody waits for what is stored, what a till gives up, what it was not sure of, or what came later.
func TestWaits(t *testing.T) {
	l, s := world(t)
	later := time.Now().Add(time.Hour)
	have := map[key]bool{}
	for _, r := range s.rows {
		have[r.key] = true
	}
	for _, e := range s.trail {
		have[key{Class: audit, Seq: e.seq}] = true
	}
	one := s.rows[0].key
	waits := func(name string, before time.Time, want ...key) {
		t.Helper()
		if got := l.waits(have, before); !slices.Equal(got, want) {
			t.Errorf("%s: waits for %v, want %v", name, got, want)
		}
	}
	waits("all is stored", later)
	delete(have, one)
	waits("one is not", later, one)
	waits("of before any", time.Time{})
	l.giveUp(l.entries[one][0].record)
	waits("it is given up", later)
	l.entries[one][0].shed, l.entries[one][0].kept = false, false
	waits("it may not be there", later)
}
