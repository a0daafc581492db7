package hal

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"math"
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
//
// What it counts itself begins with it: all such counts share one epoch. What
// the device counts (Set) begins a new epoch whenever it falls. Measurements
// have none.
type Tracker struct {
	category Category
	epoch    int64 // of what is counted here
	queue    chan Event
	closed   chan struct{}
	once     sync.Once

	mu      sync.Mutex
	last    Status
	power   Power          // last that was not unknown
	since   time.Time      // of the last look
	powered time.Duration  // seen switched on, up to the last look
	known   map[string]Tri // last value of each sensor that was not Unknown
	paper   string         // last paper state that was known, as an event code
	stats   map[string]Stat
	panics  []time.Time // of the last minutes
	broken  bool        // given up, see Contain
}

// closedEpoch is the newest epoch of a tracker that was closed: a device that
// is closed and opened within one second still begins a new one. An epoch that
// lies far ahead is of a time before the clock was set, and counts no more.
var closedEpoch struct {
	sync.Mutex
	newest int64
}

const farAhead = 3600 // seconds

func newEpoch() int64 {
	closedEpoch.Lock()
	defer closedEpoch.Unlock()
	now := time.Now().Unix()
	if d := closedEpoch.newest - now; d < 0 || d > farAhead {
		return now
	}
	return closedEpoch.newest + 1
}

func closeEpoch(epoch int64) {
	closedEpoch.Lock()
	defer closedEpoch.Unlock()
	if epoch > closedEpoch.newest || closedEpoch.newest > time.Now().Unix()+farAhead {
		closedEpoch.newest = epoch
	}
}

// NewTracker starts with a device of which nothing is known. The counters
// named begin at zero; others appear with the first event they count.
func NewTracker(category Category, counters ...string) *Tracker {
	t := &Tracker{
		category: category, queue: make(chan Event, 64), closed: make(chan struct{}),
		epoch: newEpoch(),
		known: map[string]Tri{}, stats: map[string]Stat{},
	}
	t.last = Judge(category, PowerUnknown, nil)
	for _, c := range counters {
		t.count(c, 0)
	}
	return t
}

// Update takes in one look, and returns it judged.
func (t *Tracker) Update(power Power, sensors map[string]Tri) Status {
	now := Judge(t.category, power, sensors)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken {
		return clone(t.last)
	}
	t.powered, t.since = t.poweredUntil(time.Now())
	t.last = now
	if now.Power != PowerUnknown && now.Power != t.power { // what was not known meanwhile changes nothing
		if t.power != "" || now.Power != PowerOnline {
			t.post("POWER_"+strings.TrimPrefix(string(now.Power), "PS_"), string(cmp.Or(t.power, PowerUnknown)), string(now.Power))
		}
		t.power = now.Power
	}
	for _, name := range t.changed(now.Sensors) {
		is, before := now.Sensors[name], t.known[name]
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

// changed names the sensors that are known and not what they were, sorted.
// Mostly there are none.
func (t *Tracker) changed(sensors map[string]Tri) []string {
	var names []string
	for name, is := range sensors {
		if is != Unknown && is != t.known[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// poweredUntil returns how long the device was seen switched on until now.
func (t *Tracker) poweredUntil(now time.Time) (time.Duration, time.Time) {
	if t.last.Power == PowerOnline || t.last.Power == PowerOffline {
		return t.powered + now.Sub(t.since), now
	}
	return t.powered, now
}

// sensorCodes are the events of a sensor that turns No and Yes. Those of the
// paper depend on two sensors, see paperOf.
var sensorCodes = map[string][2]string{
	"CoverOpen":            {"COVER_OK", "COVER_OPEN"},
	"DrawerOpened":         {"DRAWERCLOSED", "DRAWEROPEN"},
	"SCPresentSensor":      {"NO_CARD", "CARD_PRESENT"},
	"M_CardMute":           {"M_CARD_OK", "M_CARD_MUTE"},
	"M_ClockUnsynced":      {"M_CLOCK_SYNCED", "M_CLOCK_UNSYNCED"},
	"M_CutterError":        {"M_CUTTER_OK", "M_CUTTER_ERROR"},
	"M_DaemonGone":         {"M_PCSCD_BACK", "M_PCSCD_GONE"},
	"M_DiskFailing":        {"M_DISK_HEALTHY", "M_DISK_FAILING"},
	"M_DiskLow":            {"M_DISK_OK", "M_DISK_LOW"},
	"M_DoorOpen":           {"M_DOOR_CLOSED", "M_DOOR_OPEN"},
	"M_DrawerStuck":        {"M_DRAWER_FREE", "M_DRAWER_STUCK"},
	"M_HeadTooHot":         {"M_HEAD_OK", "M_HEAD_TOO_HOT"},
	"M_HostHot":            {"M_HOST_COOL", "M_HOST_HOT"},
	"M_LeftOpen":           {"M_DRAWER_SHUT", "M_DRAWER_LEFT_OPEN"},
	"M_MechanicalError":    {"M_MECHANICAL_OK", "M_MECHANICAL_ERROR"},
	"M_MemoryLow":          {"M_MEMORY_OK", "M_MEMORY_LOW"},
	"M_SupplyLow":          {"M_SUPPLY_OK", "M_SUPPLY_LOW"},
	"M_Tampered":           {"M_TAMPER_OK", "M_TAMPERED"},
	"M_TempHigh":           {"M_TEMP_OK", "M_TEMP_HIGH"},
	"M_UnexpectedOpen":     {"M_DRAWER_SECURE", "M_DRAWER_UNEXPECTED_OPEN"},
	"M_UnrecoverableError": {"M_RECOVERED", "M_UNRECOVERABLE_ERROR"},
}

// eventCounts are the statistics that events count [UnifiedPOS 1.14.1,
// statistics of each category].
var eventCounts = map[string]string{
	"COVER_OPEN":               "ReceiptCoverOpenCount",
	"M_CUTTER_ERROR":           "FailedPaperCutCount",
	"M_HEAD_TOO_HOT":           "MaximumTempReachedCount",
	"M_MECHANICAL_ERROR":       "PrinterFaultCount",
	"M_UNRECOVERABLE_ERROR":    "PrinterFaultCount",
	"REC_EMPTY":                "M_PaperEmptyCount",
	"CARD_PRESENT":             "M_CardInsertedCount",
	"NO_CARD":                  "M_CardRemovedCount",
	"M_CARD_MUTE":              "M_CardResetFailedCount",
	"M_CARD_TORN":              "M_TransmitErrorCount",
	"M_PCSCD_GONE":             "M_DaemonGoneCount",
	"DRAWEROPEN":               "M_DrawerOpenedCount",
	"M_DRAWER_UNEXPECTED_OPEN": "M_UnexpectedOpenCount",
	"M_DRAWER_LEFT_OPEN":       "M_LeftOpenCount",
	"M_TAMPERED":               "M_TamperedCount",
	"M_EDGES_LOST":             "M_EdgesLostCount",
	"M_DOOR_OPEN":              "M_DoorOpenedCount",
	"M_TEMP_HIGH":              "M_TempHighCount",
	"M_SUPPLY_LOW":             "M_SupplyLowCount",
}

func paperOf(known map[string]Tri) string {
	switch {
	case known["RecEmpty"] == Yes:
		return "REC_EMPTY"
	case known["RecNearEnd"] == Yes:
		return "REC_NEAREMPTY"
	case known["RecEmpty"] == No || known["RecNearEnd"] == No:
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
		t.count(name, 1)
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
			t.count("M_EventsDroppedCount", 1)
		default:
		}
	}
}

func (t *Tracker) count(name string, by float64) {
	s := t.stats[name]
	t.stats[name] = Stat{Name: name, Value: s.Value + by, Epoch: t.epoch}
}

// Count adds to a counter. One that would shrink is a programmer's error, and
// stays as it is.
func (t *Tracker) Count(name string, by float64) {
	if by < 0 || math.IsNaN(by) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.refused(t.stats[name].Value + by) {
		t.count(name, by)
	}
}

// tooMuch is what no device lives to count. A number of a card's length is no
// count, whatever it came as.
const tooMuch = 1e12

func (t *Tracker) refused(value float64) bool {
	if math.Abs(value) < tooMuch { // which no NaN is
		return false
	}
	t.count("M_PanGuardDropCount", 1)
	return true
}

// Set takes in a counter that the device itself keeps. One that falls begins a
// new epoch: then the device was reset or replaced.
func (t *Tracker) Set(name string, to float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused(to) {
		return
	}
	was, ok := t.stats[name]
	s := Stat{Name: name, Value: to, Epoch: was.Epoch, Kept: true}
	switch {
	case !ok:
		s.Epoch = t.epoch
	case !was.Kept || to < was.Value:
		s.Epoch = max(time.Now().Unix(), was.Epoch+1)
	}
	t.stats[name] = s
}

// Measure takes in something that rises and falls, such as temp_mc.
func (t *Tracker) Measure(name string, value float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.refused(value) {
		t.stats[name] = Stat{Name: name, Value: value}
	}
}

// Status returns the last look.
func (t *Tracker) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return clone(t.last)
}

// Stats returns the counters and measurements, sorted by name. Among them is
// HoursPoweredCount of each device that was once seen switched on: whole hours,
// its own count where it keeps one.
func (t *Tracker) Stats() []Stat {
	t.mu.Lock()
	defer t.mu.Unlock()
	const hours = "HoursPoweredCount"
	if !t.stats[hours].Kept {
		if d, _ := t.poweredUntil(time.Now()); d > 0 {
			t.stats[hours] = Stat{Name: hours, Value: math.Floor(d.Hours()), Epoch: t.epoch}
		}
	}
	return slices.SortedFunc(maps.Values(t.stats), func(a, b Stat) int { return strings.Compare(a.Name, b.Name) })
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
func (t *Tracker) Close() {
	t.once.Do(func() {
		close(t.closed)
		closeEpoch(t.epoch)
	})
}

func clone(s Status) Status {
	s.Sensors = maps.Clone(s.Sensors)
	return s
}
