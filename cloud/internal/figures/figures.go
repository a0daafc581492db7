// Package figures counts what the service answers and how long that takes: for
// each part - the API by route, files of the console, what devices ask by HTTPS
// and send by MQTT, the store, the export and the rest - how often it went how,
// the response times, and bytes.
//
// It keeps series: of ten seconds for an hour and of a minute for a day in
// memory, and of five minutes for 35 days, then of hours up to 13 months in the
// store, written at most once a minute. Counting takes no lock, allocates
// nothing and never waits, so a part may be counted that does 20,000 things a
// second. Memory is bounded: of more than maxOps kinds of things the rest is
// counted together.
//
// It also writes the access log, a line for each request in a file that is kept
// small, and looks at how each part is. It holds no name, address or content in
// its series, has no HTTP server and no SQL of its own, and judges no request.
//
// It exports more names than other rooms: it counts, tells, logs and looks.
package figures

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Outcome is how something went.
type Outcome uint8

// The outcomes, and the HTTP statuses that stand for them.
const (
	OK         Outcome = iota // 2xx
	Redirected                // 3xx
	Refused                   // 4xx: who asked is at fault
	Failed                    // 5xx: we are
	outcomes
)

var outcomeNames = [outcomes]string{"ok", "redirected", "refused", "failed"}

const maxOps = 400

// Store keeps series; cloud/internal/store fits.
type Store interface {
	// PutFigures keeps rows; one of the same part, step and time is replaced.
	PutFigures(ctx context.Context, rows []fleet.FigureRow) error
	// Figures lists rows of a step from a time up to another, by time; of all
	// parts when part is empty.
	Figures(ctx context.Context, part string, step time.Duration, from, to time.Time) ([]fleet.FigureRow, error)
	// RollFigures puts rows in the place of all of a step before a time, and
	// drops those of the rows' own step that are older than oldest.
	RollFigures(ctx context.Context, rows []fleet.FigureRow, step time.Duration, before, oldest time.Time) error
}

// Op is one kind of thing that a part does. Its methods may be called from any
// goroutine; a nil Op counts nothing.
type Op struct {
	part, name string

	n       [outcomes]atomic.Uint64
	bytes   atomic.Uint64
	nanos   atomic.Uint64
	buckets [nBuckets]atomic.Uint64

	last sum // as of the last gathering; the lock of the Book guards it
}

// Done counts one thing that went that way and took so long; bytes of the
// answer, or of what came.
func (o *Op) Done(how Outcome, took time.Duration, bytes int64) {
	if o == nil {
		return
	}
	o.n[how].Add(1)
	o.buckets[bucketOf(took)].Add(1)
	o.nanos.Add(uint64(max(took, 0))) // #nosec G115 -- not negative
	if bytes > 0 {
		o.bytes.Add(uint64(bytes))
	}
}

// Count counts n things that have no time of their own.
func (o *Op) Count(how Outcome, n int64) {
	if o != nil && n > 0 {
		o.n[how].Add(uint64(n))
	}
}

// How is the outcome of what returned err: Failed, unless there is none.
func How(err error) Outcome {
	if err != nil {
		return Failed
	}
	return OK
}

// Options of a Book.
type Options struct {
	Store Store // nil: nothing outlives the process
	Log   *slog.Logger
}

// Book holds the figures of all parts.
type Book struct {
	o       Options
	reading chan struct{}

	ops     sync.RWMutex
	byName  map[[2]string]*Op
	ordered []*Op

	mu      sync.Mutex // guards what follows
	started time.Time
	fine    series // ten seconds
	minutes series
	long    series // five minutes; what is written
	before  frame  // of the present five minutes, by the process before
	prior   frame  // the same, for good
	unkept  []frame
}

// New returns an empty book.
func New(o Options) *Book {
	now := time.Now()
	return &Book{
		o: o, reading: make(chan struct{}, 1), byName: map[[2]string]*Op{}, started: now,
		fine:    series{step: fineStep, keep: int(time.Hour / fineStep), open: newFrame(now, fineStep)},
		minutes: series{step: time.Minute, keep: 24 * 60, open: newFrame(now, time.Minute)},
		long:    series{step: longStep, keep: 0, open: newFrame(now, longStep)},
		before:  newFrame(now, longStep),
	}
}

// Op returns what counts one kind of thing that a part does. Keep it where that
// is done often.
func (b *Book) Op(part, name string) *Op {
	if b == nil {
		return nil
	}
	k := [2]string{part, name}
	b.ops.RLock()
	o := b.byName[k]
	b.ops.RUnlock()
	if o != nil {
		return o
	}
	b.ops.Lock()
	defer b.ops.Unlock()
	if o = b.byName[k]; o != nil {
		return o
	}
	if len(b.ordered) >= maxOps {
		k[1] = "other"
		if o = b.byName[k]; o != nil {
			return o
		}
	}
	o = &Op{part: k[0], name: k[1]}
	b.byName[k] = o
	b.ordered = append(b.ordered, o)
	return o
}

func (b *Book) all() []*Op {
	b.ops.RLock()
	defer b.ops.RUnlock()
	return slices.Clip(b.ordered)
}

// sum is what an Op has counted so far.
func (o *Op) sum() (s sum) {
	for i := range s.buckets { // before the counts, so that there are never more times than things
		s.buckets[i] = o.buckets[i].Load()
	}
	for i := range s.n {
		s.n[i] = o.n[i].Load()
	}
	s.bytes, s.nanos = o.bytes.Load(), o.nanos.Load()
	return s
}
