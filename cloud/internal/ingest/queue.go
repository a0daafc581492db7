package ingest

import (
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// What waits for the committer stands in two lanes: live, and the backlog of
// devices that were away. Each lane goes round its devices, so that one with a
// month of backlog is one among all.
const (
	live = iota
	backlog
	lanes
)

const (
	lateAfter  = 2 * time.Minute // what was recorded longer ago is backlog
	burst      = 64              // messages that a device may have in the live lane at once
	refill     = 2               // and a second; who sends more waits with the backlog
	oldOnes    = 8               // old messages that are no backlog yet
	roomBytes  = 256 << 20       // of payload that waits; above it readers of backlog pause
	hardBytes  = 2 * roomBytes   // above it nothing more is taken
	roomWait   = 5 * time.Second // that a reader pauses: a device is not left without an answer to its ping
	overhead   = 512             // bytes a message costs beside its payload
	turnBytes  = 16 << 10        // of one device's backlog in one turn, when few have some; each message that is acknowledged keeps a device patient
	few        = 16
	manyOfOne  = 64     // messages of one device: it has come back with those of the connection before
	mostOfOne  = 512    // messages of one device; its window is far below
	maxWaiting = 50_000 // devices remembered that have nothing waiting
)

// waiting is what one device has waiting, each lane in the order of arrival.
type waiting struct {
	device fleet.DeviceID
	lane   [lanes][]Message
	listed [lanes]bool
	late   map[wire.Channel]int // waiting in the backlog, by channel

	tokens float64 // of the live lane
	at     time.Time
	paused int // readers that wait for room
}

func (w *waiting) empty() bool {
	return len(w.lane[live]) == 0 && len(w.lane[backlog]) == 0 && w.paused == 0
}

// queue holds what waits for the committer.
type queue struct {
	wake chan struct{} // holds a signal when something waits

	mu      sync.Mutex
	devices map[fleet.DeviceID]*waiting
	turn    [lanes][]*waiting // devices with something in the lane, whose turn is next first
	n       [lanes]int        // messages
	size    int               // bytes
	room    chan struct{}     // closed and renewed when something was taken
	ended   bool
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), devices: map[fleet.DeviceID]*waiting{}, room: make(chan struct{})}
}

// put takes m in. When a great deal waits it holds up who brings backlog: his
// connection is not read meanwhile. False means that nothing more can be taken.
func (q *queue) put(m Message) bool {
	old := late(m)
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.devices[m.Device]
	if w == nil {
		if len(q.devices) >= maxWaiting {
			q.prune(m.At)
		}
		w = &waiting{device: m.Device, late: map[wire.Channel]int{}, tokens: burst, at: m.At}
		q.devices[m.Device] = w
	}
	lane := w.place(m, old)
	if lane == backlog && q.size > roomBytes {
		w.paused++
		q.pause()
		w.paused--
	}
	if len(w.lane[lane]) >= manyOfOne {
		q.sweep(w, lane)
	}
	if q.ended || q.size > hardBytes || len(w.lane[lane]) >= mostOfOne {
		return false
	}
	m.lane, m.came = lane, time.Now()
	w.lane[lane] = append(w.lane[lane], m)
	if lane == backlog {
		w.late[m.Channel]++
	}
	if !w.listed[lane] {
		w.listed[lane] = true
		q.turn[lane] = append(q.turn[lane], w)
	}
	q.n[lane]++
	q.size += cost(m)
	q.signal()
	return true
}

func cost(m Message) int { return len(m.Payload) + overhead }

// pause waits until there is room again, at most for roomWait. The lock is held
// before and after, and not while it waits.
func (q *queue) pause() {
	end := time.NewTimer(roomWait)
	defer end.Stop()
	for q.size > roomBytes {
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
			q.mu.Lock()
			if q.ended {
				return
			}
		case <-end.C:
			q.mu.Lock()
			return
		}
	}
}

// late reports whether a message was recorded long before it arrived.
func late(m Message) bool {
	switch m.Channel {
	case wire.Live, wire.State, wire.Result:
		return false // by their channel: the newest there is, or what somebody waits for
	}
	h, err := wire.HeadOf(m.Payload)
	return err == nil && m.At.Sub(time.UnixMilli(h.Sent)) > lateAfter
}

// place says in which lane a message waits. What must not be overtaken waits
// behind what it must not overtake; a few old messages are no backlog, nor is
// what a device with a slow clock says now and then.
func (w *waiting) place(m Message, old bool) int {
	if since := m.At.Sub(w.at).Seconds(); since > 0 {
		w.tokens, w.at = min(burst, w.tokens+refill*since), m.At
	}
	for _, c := range behind(m.Channel) {
		if w.late[c] > 0 {
			return backlog
		}
	}
	need := 1.0
	if old {
		need = burst - oldOnes + 1
	}
	if w.tokens < need {
		return backlog
	}
	w.tokens--
	return live
}

// behind lists what a channel's messages stay behind: its own, of course. What
// was measured stays behind what happened before, and a state behind the results
// that led to it.
func behind(c wire.Channel) []wire.Channel {
	switch c {
	case wire.Telemetry:
		return []wire.Channel{wire.Telemetry, wire.Event}
	case wire.State, wire.Result:
		return []wire.Channel{wire.State, wire.Result}
	case wire.Live:
		return []wire.Channel{wire.Live}
	}
	return []wire.Channel{c}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns the next group: what is live first, up to most messages, then
// backlog of about so many bytes. It keeps a place for the backlog: what is live
// alone never shuts it out.
func (q *queue) take(most, bytes int) (group []Message, withheld int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	group = q.draw(live, group, most, 1<<30, 1)
	group = q.draw(backlog, group, len(group)+most, bytes, turnBytes*few/max(few, len(q.turn[backlog])))
	if len(group) > 0 {
		close(q.room)
		q.room = make(chan struct{})
	}
	if q.n[live]+q.n[backlog] > 0 {
		q.signal()
	}
	return group, q.n[backlog]
}

// draw takes from a lane, device by device, each time about as many bytes of one
// device as a turn has.
func (q *queue) draw(lane int, group []Message, most, bytes, turn int) []Message {
	for len(q.turn[lane]) > 0 && len(group) < most && bytes > 0 {
		w := q.turn[lane][0]
		q.turn[lane] = q.turn[lane][1:]
		have := w.lane[lane]
		n := 0
		for used := 0; n < len(have) && used < turn && bytes > 0 && len(group) < most; n++ {
			c := cost(have[n])
			used, bytes, q.size = used+c, bytes-c, q.size-c
			group = append(group, have[n])
			if lane == backlog {
				w.late[have[n].Channel]--
			}
			have[n] = Message{}
		}
		q.n[lane] -= n
		if w.lane[lane] = have[n:]; len(w.lane[lane]) > 0 {
			q.turn[lane] = append(q.turn[lane], w)
			continue
		}
		w.lane[lane], w.listed[lane] = nil, false
	}
	if len(q.turn[lane]) == 0 {
		q.turn[lane] = nil
	}
	return group
}

// sweep drops what a device will send again, since the connection it came by
// acknowledges nothing any more.
func (q *queue) sweep(w *waiting, lane int) {
	kept := w.lane[lane][:0]
	for _, m := range w.lane[lane] {
		if !m.dead() {
			kept = append(kept, m)
			continue
		}
		q.n[lane]--
		q.size -= cost(m)
		if lane == backlog {
			w.late[m.Channel]--
		}
		m.Ack(errDead)
	}
	clear(w.lane[lane][len(kept):])
	w.lane[lane] = kept
}

// prune forgets devices that have nothing waiting and used nothing up lately.
func (q *queue) prune(now time.Time) {
	for id, w := range q.devices {
		if w.empty() && now.Sub(w.at).Seconds()*refill >= burst {
			delete(q.devices, id)
		}
	}
	for id, w := range q.devices {
		if len(q.devices) < maxWaiting {
			return
		}
		if w.empty() { // it begins anew, the memory is bounded
			delete(q.devices, id)
		}
	}
}

// end takes all that waits; nothing more is taken in.
func (q *queue) end() (all []Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	for lane := range q.turn {
		all = q.draw(lane, all, 1<<30, 1<<40, 1<<30)
	}
	close(q.room)
	q.room = make(chan struct{})
	return all
}

// waits is how many messages wait in each lane.
func (q *queue) waits() (lane [lanes]int, size int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n, q.size
}
