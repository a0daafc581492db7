package hal

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrClosed ends the events of a device that was closed.
var ErrClosed = errors.New("device is closed")

// Tracker is what every driver remembers of its device: it judges each look
// by one table for all drivers, turns the differences between looks into
// events, and counts. Use one per device; it is safe for concurrent use.
type Tracker struct {
	category Category
	queue    chan Event
	closed   chan struct{}
	once     sync.Once

	mu     sync.Mutex
	last   Status
	known  map[string]Tri // last value of each sensor that was not Unknown
	paper  string         // last paper state that was known, as an event code
	counts map[string]float64
}

// NewTracker starts with a device of which nothing is known. The counters
// named begin at zero; others appear with the first event they count.
func NewTracker(category Category, counters ...string) *Tracker {
	t := &Tracker{
		category: category, queue: make(chan Event, 64), closed: make(chan struct{}),
		known: map[string]Tri{}, counts: map[string]float64{},
	}
	t.last = Judge(category, PowerUnknown, nil)
	for _, c := range counters {
		t.counts[c] = 0
	}
	return t
}

// Update takes in one look, and returns it judged.
func (t *Tracker) Update(power Power, sensors map[string]Tri) Status {
	now := Judge(t.category, power, sensors)
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.last
	t.last = now
	if was.Power != now.Power && now.Power != PowerUnknown && (was.Power != PowerUnknown || now.Power != PowerOnline) {
		t.post("POWER_"+strings.TrimPrefix(string(now.Power), "PS_"), string(was.Power), string(now.Power))
	}
	for _, name := range slices.Sorted(maps.Keys(now.Sensors)) {
		is, before := now.Sensors[name], t.known[name]
		if is == Unknown || is == before {
			continue
		}
		t.known[name] = is
		if code, ok := sensorCodes[name]; ok && (is == Yes || before == Yes) {
			t.post(code[is-No], before.String(), is.String())
		}
	}
	if paper := paperOf(t.known); paper != "" && paper != t.paper {
		if t.paper != "" || paper != "REC_PAPEROK" {
			t.post(paper, t.paper, paper)
		}
		t.paper = paper
	}
	return clone(now)
}

// sensorCodes are the events of a sensor that turns No and Yes.
var sensorCodes = map[string][2]string{
	"CoverOpen":            {"COVER_OK", "COVER_OPEN"},
	"DrawerOpened":         {"DRAWERCLOSED", "DRAWEROPEN"},
	"SCPresentSensor":      {"NO_CARD", "CARD_PRESENT"},
	"M_CardMute":           {"M_CARD_OK", "M_CARD_MUTE"},
	"M_CutterError":        {"M_CUTTER_OK", "M_CUTTER_ERROR"},
	"M_HeadTooHot":         {"M_HEAD_OK", "M_HEAD_TOO_HOT"},
	"M_MechanicalError":    {"M_MECHANICAL_OK", "M_MECHANICAL_ERROR"},
	"M_UnrecoverableError": {"M_RECOVERED", "M_UNRECOVERABLE_ERROR"},
}

// eventCounts are the statistics that events count [UnifiedPOS 1.14.1,
// statistics of each category].
var eventCounts = map[string]string{
	"COVER_OPEN":            "ReceiptCoverOpenCount",
	"M_CUTTER_ERROR":        "FailedPaperCutCount",
	"M_HEAD_TOO_HOT":        "MaximumTempReachedCount",
	"M_MECHANICAL_ERROR":    "PrinterFaultCount",
	"M_UNRECOVERABLE_ERROR": "PrinterFaultCount",
	"REC_EMPTY":             "M_PaperEmptyCount",
	"CARD_PRESENT":          "M_CardInsertedCount",
	"NO_CARD":               "M_CardRemovedCount",
	"M_CARD_MUTE":           "M_CardResetFailedCount",
	"M_CARD_TORN":           "M_TransmitErrorCount",
}

func paperOf(known map[string]Tri) string {
	switch {
	case known["RecEmpty"] == Yes:
		return "REC_EMPTY"
	case known["RecNearEnd"] == Yes:
		return "REC_NEAREMPTY"
	case known["RecEmpty"] == No:
		return "REC_PAPEROK"
	}
	return ""
}

// Post tells an event that no sensor shows, such as M_CARD_TORN.
func (t *Tracker) Post(code, from, to string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.post(code, from, to)
}

// post queues an event and counts it. When nobody listens the oldest go.
func (t *Tracker) post(code, from, to string) {
	if name := eventCounts[code]; name != "" {
		t.counts[name]++
	}
	e := Event{At: time.Now(), Code: code, From: from, To: to}
	for {
		select {
		case t.queue <- e:
			return
		default:
		}
		select {
		case <-t.queue:
			t.counts["M_EventsDroppedCount"]++
		default:
		}
	}
}

// Count adds to a counter.
func (t *Tracker) Count(name string, by float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[name] += by
}

// Set sets a counter that the device itself keeps. It may fall: then the
// device was reset or replaced.
func (t *Tracker) Set(name string, to float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[name] = to
}

// Status returns the last look.
func (t *Tracker) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return clone(t.last)
}

// Stats returns the counters, sorted by name.
func (t *Tracker) Stats() []Stat {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Stat, 0, len(t.counts))
	for _, name := range slices.Sorted(maps.Keys(t.counts)) {
		out = append(out, Stat{Name: name, Value: t.counts[name]})
	}
	return out
}

// Events tells what Update and Post found, also what they found before it was
// called. One listener at a time: two would share the events between them.
func (t *Tracker) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			select {
			case e := <-t.queue:
				if !yield(e, nil) {
					return
				}
				continue
			default:
			}
			select {
			case e := <-t.queue:
				if !yield(e, nil) {
					return
				}
			case <-ctx.Done():
				return
			case <-t.closed:
				yield(Event{}, ErrClosed)
				return
			}
		}
	}
}

// Close ends the events. It may be called more than once.
func (t *Tracker) Close() { t.once.Do(func() { close(t.closed) }) }

func clone(s Status) Status {
	s.Sensors = maps.Clone(s.Sensors)
	return s
}
