package chaos

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/wire"
)

// The classes of what a till records, each in the order of its numbers.
const (
	audit     = "audit"
	telemetry = "telemetry"
	event     = "event"
	result    = "result"
	state     = "state"
)

var classes = []string{audit, telemetry, event, result, state}

// key names one record of a till: an entry of its trail by its number, a
// message by the run of the agent and its number in it.
type key struct {
	Class string `json:"c"`
	Boot  string `json:"b,omitempty"`
	Seq   uint64 `json:"q"`
}

// String implements fmt.Stringer.
func (k key) String() string {
	if k.Boot == "" {
		return fmt.Sprintf("%s %d", k.Class, k.Seq)
	}
	return fmt.Sprintf("%s %.8s/%d", k.Class, k.Boot, k.Seq)
}

// record is what the till says it recorded: how many rows, and what is in them.
type record struct {
	key
	Rows int    `json:"n"`
	Hash string `json:"h"`
	Name string `json:"s,omitempty"` // kind of an entry, id of a command
}

// digest is over the rows of a record, in their order.
func digest(rows []string) string {
	h := sha256.New()
	for _, r := range rows {
		fmt.Fprintf(h, "%d:%s\n", len(r), r)
	}
	return hex.EncodeToString(h.Sum(nil))
}

const firstMS, lastMS = 1, 253402300799999 // of what the service stores of a device's clock

// sampleRow is what the service must hold of a sample, and eventRow of an event.
func sampleRow(at int64, peripheral, name string, value float64, epoch int64, kept bool) string {
	return fmt.Sprintf("%d|%s|%s|%x|%d|%v", min(max(at, firstMS), lastMS), peripheral, name, math.Float64bits(value), epoch, kept)
}

func eventRow(at int64, peripheral, category, code, from, to string, mono, count int64) string {
	return fmt.Sprintf("%d|%s|%s|%s|%s|%s|%d|%d", min(max(at, firstMS), lastMS), peripheral, category, code, from, to, mono, count)
}

func resultRow(id, state, code string) string { return id + "|" + state + "|" + code }

// recordsOf are the records that a message holds. Outcomes of health checks are
// left out: the service keeps the newest of them only.
func recordsOf(channel wire.Channel, payload []byte) ([]record, error) {
	of := func(class string, h wire.Head, rows []string, name string) []record {
		if len(rows) == 0 {
			return nil
		}
		return []record{{key{class, hex.EncodeToString(h.Boot[:]), h.Seq}, len(rows), digest(rows), name}}
	}
	switch channel {
	case wire.Audit:
		b, err := wire.Decode[wire.AuditBatch](payload)
		var out []record
		for _, e := range b.Entries {
			r, err := e.Open()
			if err != nil {
				return nil, err
			}
			name := r.Kind
			if strings.HasPrefix(name, "command.") {
				name += " " + r.Subject
			}
			out = append(out, record{key{Class: audit, Seq: r.Seq}, 1, digest([]string{string(e.Body)}), name})
		}
		return out, err
	case wire.Telemetry:
		b, err := wire.Decode[wire.TelemetryBatch](payload)
		var rows []string
		for _, s := range b.Samples {
			rows = append(rows, sampleRow(s.At, s.Peripheral, s.Name, s.Value, s.Epoch, s.Kept))
		}
		return of(telemetry, b.Head, rows, ""), err
	case wire.Event:
		b, err := wire.Decode[wire.EventBatch](payload)
		var rows []string
		for _, e := range b.Events {
			rows = append(rows, eventRow(e.At, e.Peripheral, e.Category, e.Code, e.From, e.To, e.Mono, int64(e.Count)))
		}
		return of(event, b.Head, rows, ""), err
	case wire.Result:
		b, err := wire.Decode[wire.ResultReport](payload)
		return of(result, b.Head, []string{resultRow(b.ID, b.State, b.Reason)}, b.ID), err
	case wire.State:
		b, err := wire.Decode[wire.StateReport](payload)
		return of(state, b.Head, []string{string(payload)}, ""), err
	}
	return nil, nil
}

// entry is a record in the harness's own book.
type entry struct {
	record
	kept  bool // the till said that it lies on the disk
	shed  bool // and that it gives it up for want of space
	at    time.Time
	order int // in which it was told
}

// ledger is the harness's own book of one till. What was begun and not
// acknowledged may or may not be there: a kill came in between.
type ledger struct {
	mu      sync.Mutex
	entries map[key][]*entry // several where one was begun in vain
	n       int

	gaveUp int // messages that the till said it gives up

	// Messages of samples and events that the books had no room for: in the till's
	// count for sure, and perhaps, where it was killed before it kept anything else.
	refused, perhaps int
}

// sitting is one run of a till's agent.
type sitting struct {
	l    *ledger
	owed int // refused, and not in the till's count yet
}

func (s *sitting) kept() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.refused, s.owed = s.l.refused+s.owed, 0
}

func (s *sitting) refuse(r record) {
	if r.Class == telemetry || r.Class == event {
		s.owed++
	}
}

func (s *sitting) end() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.perhaps += s.owed
}

func newLedger() *ledger { return &ledger{entries: make(map[key][]*entry)} }

// tell takes in what the till says.
func (l *ledger) tell(r record, kept bool, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries[r.key] {
		if e.Hash == r.Hash {
			e.kept = e.kept || kept
			if kept {
				e.at = at
			}
			return
		}
	}
	l.n++
	l.entries[r.key] = append(l.entries[r.key], &entry{record: r, kept: kept, at: at, order: l.n})
}

// giveUp takes in that a message is given up.
func (l *ledger) giveUp(r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gaveUp++
	for _, e := range l.entries[r.key] {
		e.shed = e.shed || e.Hash == r.Hash
	}
}

// waits lists what was acknowledged before a moment and is not stored yet. What
// the till gives up for want of space never is.
func (l *ledger) waits(have map[key]bool, before time.Time) (out []key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, list := range l.entries {
		if k.Class == state || k.Class == result || have[k] {
			continue
		}
		if slices.ContainsFunc(list, func(e *entry) bool { return e.kept && !e.shed && e.at.Before(before) }) {
			out = append(out, k)
		}
	}
	return out
}

// recorded counts rows of a class that were acknowledged.
func (l *ledger) recorded(class string) (rows int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, list := range l.entries {
		for _, e := range list {
			if k.Class == class && e.kept {
				rows += e.Rows
			}
		}
	}
	return rows
}
