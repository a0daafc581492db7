package verifier

import (
	"bytes"
	"errors"
	"runtime"
	"sync"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	waitingMax = openNonces + 2 // evidence of one connection
	queuedMax  = 512 << 20      // bytes of all; 100,000 devices that show a quote alone need 30 MB
)

// Why evidence is not acknowledged; the device shows other evidence on its next
// connection.
var (
	errGone = errors.New("a newer connection of the device has shown evidence")
	errStop = errors.New("the verifier stops")
)

// workers is how many appraise at once: more than there are processors, since
// they wait for commits, which they share.
func workers() int { return 8 * runtime.GOMAXPROCS(0) }

// queue is the evidence that waits: of each device in order and one at a time,
// devices in the order in which they came. Whoever waits is not acknowledged,
// which is all that holds a device back; so the queue is bounded by the number
// of connections.
type queue struct {
	mu      sync.Mutex
	some    sync.Cond
	devices map[fleet.DeviceID]*line
	turn    []fleet.DeviceID // whose evidence can be taken
	bytes   int
	closed  bool
}

// line is what one device has shown.
type line struct {
	waiting []*wait
	busy    bool // one is being appraised
}

// wait is evidence and whom to tell.
type wait struct {
	evidence Evidence
	done     func(error)
}

func (q *queue) init() {
	q.some.L = &q.mu
	q.devices = make(map[fleet.DeviceID]*line)
}

// Submit queues evidence and calls done once, when it was appraised or never
// will be; it does not block. It is false when the connection has shown more
// than it was asked for, when there is no memory, or when the verifier stops.
func (v *Verifier) Submit(e Evidence, done func(error)) bool {
	left, ok := v.queue.put(&wait{evidence: e, done: done})
	for _, w := range left {
		w.done(errGone)
	}
	return ok
}

// put queues w. Evidence of an earlier connection of the same device is left:
// a device that came back has no use for it.
func (q *queue) put(w *wait) (left []*wait, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes+len(w.evidence.Payload) > queuedMax {
		return nil, false
	}
	id := w.evidence.Device
	l := q.devices[id]
	if l == nil {
		l = &line{}
		q.devices[id] = l
	}
	queued := len(l.waiting) > 0
	if queued && !bytes.Equal(l.waiting[0].evidence.Exporter, w.evidence.Exporter) {
		left, l.waiting = l.waiting, nil
		for _, old := range left {
			q.bytes -= len(old.evidence.Payload)
		}
	}
	if len(l.waiting) >= waitingMax {
		return nil, false
	}
	q.bytes += len(w.evidence.Payload)
	l.waiting = append(l.waiting, w)
	if !queued && !l.busy {
		q.turn = append(q.turn, id)
		q.some.Signal()
	}
	return left, true
}

// settle forgets a device of which nothing waits.
func (q *queue) settle(id fleet.DeviceID, l *line) {
	if len(l.waiting) == 0 && !l.busy {
		delete(q.devices, id)
	}
}

// next waits for evidence; false when the queue is closed.
func (q *queue) next() (*wait, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed {
			return nil, false
		}
		if len(q.turn) == 0 {
			q.some.Wait()
			continue
		}
		id := q.turn[0]
		q.turn = q.turn[1:]
		l := q.devices[id]
		w := l.waiting[0]
		l.waiting, l.busy = l.waiting[1:], true
		q.bytes -= len(w.evidence.Payload)
		return w, true
	}
}

// finished lets the device's next evidence be taken.
func (q *queue) finished(w *wait) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id := w.evidence.Device
	l := q.devices[id]
	l.busy = false
	if len(l.waiting) > 0 {
		q.turn = append(q.turn, id)
		q.some.Signal()
	}
	q.settle(id, l)
}

// close ends the workers and whatever waits.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	var left []*wait
	for id, l := range q.devices {
		left = append(left, l.waiting...)
		l.waiting = nil
		q.settle(id, l)
	}
	q.turn, q.bytes = nil, 0
	q.some.Broadcast()
	q.mu.Unlock()
	for _, w := range left {
		w.done(errStop)
	}
}

// Waiting is how much evidence waits to be appraised.
func (v *Verifier) Waiting() (n int) {
	v.queue.mu.Lock()
	defer v.queue.mu.Unlock()
	for _, l := range v.queue.devices {
		n += len(l.waiting)
	}
	return n
}
