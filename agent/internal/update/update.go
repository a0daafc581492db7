// Package update brings releases into the box and undoes them when they do not
// prove themselves.
//
// It owns the way from an offer to its end - wait, fetch, verify, stage, try,
// check, keep or go back - and the journal of it. What a class of artifacts
// needs done is behind a Handler. What is genuine is decided by
// provisioning/trust alone; the fleet service can only point, and delay.
//
// It promises that an offer is carried out once: a power cut at any instruction
// leaves what ran before, or what is on trial, and the next start finds out
// which and says so. What runs counts, whatever the journal hoped for. One
// execution is in work at a time.
//
// It exports more names than other rooms because its handlers are rooms of
// their own and stand on its words.
package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/provisioning/trust"
)

// Errors with which Run ends on purpose.
var (
	ErrRestart = errors.New("the agent must be started again") // by its supervisor
	ErrReboot  = errors.New("the box must be started again")
)

// States of an execution on the device, as they go on the wire.
const (
	offered     = "OFFERED"
	waiting     = "WAITING"
	downloading = "DOWNLOADING"
	staged      = "STAGED"
	installing  = "INSTALLING"
	installed   = "INSTALLED"
	rebooting   = "REBOOTING"
	checking    = "CHECKING"
	succeeded   = "SUCCEEDED"
	already     = "ALREADY_INSTALLED"
	failed      = "FAILED"
	rolledBack  = "ROLLED_BACK"
	rejected    = "REJECTED"
)

// Span is a stretch of time.
type Span struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Offer is one execution of a rollout, or of an update medium, its order
// verified.
type Offer struct {
	Execution string                   `json:"execution"`
	Attempt   uint32                   `json:"attempt,omitempty"`
	Class     string                   `json:"class,omitempty"` // empty: agent
	Version   string                   `json:"version"`
	Target    string                   `json:"target"` // TUF target folder: {component}/{version}
	NotAfter  time.Time                `json:"not_after"`
	Download  []Span                   `json:"download,omitempty"` // when it may be fetched; none: at any time
	Install   []Span                   `json:"install,omitempty"`  // when the till may be touched; none: at any time
	Steps     map[string]time.Duration `json:"steps,omitempty"`    // that a state may take, by its name
	Peers     []string                 `json:"peers,omitempty"`    // host:port
	RateKiB   uint32                   `json:"rate_kib,omitempty"`
	Medium    string                   `json:"medium,omitempty"` // folder it lies in; empty: the service has it
	Rollout   string                   `json:"rollout,omitempty"`
}

// component is what the offer would replace.
func (o Offer) component() string {
	target := strings.TrimSuffix(o.Target, "/")
	if c, ok := strings.CutSuffix(target, "/"+o.Version); ok {
		return c
	}
	return target
}

// class is the class of artifact offered.
func (o Offer) class() string {
	if o.Class == "" {
		return trust.ClassAgent // an offer of before there were others
	}
	return o.Class
}

// Bytes says where the bytes of an artifact came from.
type Bytes struct {
	Wire   int64 `json:"wire,omitempty"`
	Peer   int64 `json:"peer,omitempty"`
	Medium int64 `json:"medium,omitempty"`
	Reused int64 `json:"reused,omitempty"`
}

func (b Bytes) plus(c Bytes) Bytes {
	return Bytes{b.Wire + c.Wire, b.Peer + c.Peer, b.Medium + c.Medium, b.Reused + c.Reused}
}

// Progress is where an execution stands.
type Progress struct {
	Execution string `json:"execution"`
	Component string `json:"component,omitempty"`
	Attempt   uint32 `json:"attempt,omitempty"`
	Step      uint32 `json:"step,omitempty"` // counts the reports of an attempt
	State     string `json:"state"`
	Reason    string `json:"reason,omitempty"` // a code
	Text      string `json:"text,omitempty"`
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
	Done      int64  `json:"done,omitempty"`
	Total     int64  `json:"total,omitempty"` // bytes
	Bytes     Bytes  `json:"bytes,omitzero"`
	Medium    string `json:"medium,omitempty"` // that brought the offer; empty: the service did
}

// Releases says what is genuine; trust.Client fits.
type Releases interface {
	Target(ctx context.Context, path string) (trust.Target, error)
}

// Order is what a Content is to get.
type Order struct {
	Execution string
	Component string
	Target    trust.Target
	Peers     []string
	RateKiB   uint32
	Medium    string
	Seed      func() (io.ReadCloser, error) // what runs, as the target would be; nil: nothing like it
	// Told says how far it is, and, in words, why it is dearer than it might be.
	Told func(done, total int64, b Bytes, note string)
}

// Content gets the bytes of targets. What was cut short it goes on with.
type Content interface {
	// Get returns a file that is the whole target, verified. Errors: Refuse, Fail
	// and Hold; any other is tried again.
	Get(ctx context.Context, o Order) (path string, err error)
	// Open gives a target to read as it is fetched, unverified. It ends with ctx.
	Open(ctx context.Context, o Order) (io.ReaderAt, error)
	// Drop removes what was fetched of a target.
	Drop(t trust.Target)
	// Held says how many bytes of the disk are there for a target already, or
	// would be given up for it.
	Held(t trust.Target) int64
}

// Streamer is a Handler that can do without the whole content on the disk.
type Streamer interface{ Streams(t trust.Target) bool }

// Seeder is a Handler that can give back what it installed, as the content of
// the target it came from, or something like it.
type Seeder interface {
	Seed(ctx context.Context, component string) io.ReadCloser // nil: there is nothing
}

// Check is one thing that a box must be able to do after an update.
type Check struct {
	Name    string
	Classes []string // of artifacts that it judges; none: all
	Of      string   // must have been OK in the baseline, or says nothing; empty: it counts always
	Run     func(ctx context.Context) error
}

// Phase is a part of the way that has to wait for its time.
type Phase int

// The phases.
const (
	Fetch Phase = iota // bytes are fetched; the till is not touched
	Touch              // the till is touched: its disk written, something started anew
)

// Options of a Machine.
type Options struct {
	Dir       string                   // of the journal
	Handlers  map[string]Handler       // by class
	Installed []Component              // what the box had from the start
	Given     func() map[string]string // versions of what no release replaces, such as the boot loader; may be nil
	Releases  Releases
	Content   Content
	Medium    func(dir string) (Releases, error)          // what the metadata of a medium vouches for
	Names     func(o Offer) string                        // of the target of an offer
	Report    func(ctx context.Context, p Progress) error // durable
	Record    func(ctx context.Context, kind, severity, subject string, detail map[string]string) error
	// Gate says why to wait, as a code and for people; empty: go on. need is how
	// many bytes the disk must take.
	Gate func(p Phase, need int64) (reason, text string)
	// Permit says why the box must not have a target, as a code and for people;
	// empty: it may. It prepares the box for it. An error is tried again. May be nil.
	Permit func(ctx context.Context, o Offer, t trust.Target) (reason, text string, err error)
	// Health is how everything on the box is, found out after a time, by its name:
	// OK, or what is wrong. An error: that is not known yet. May be nil.
	Health   func(ctx context.Context, since time.Time) (map[string]string, error)
	Checks   []Check
	CheckFor time.Duration
	Log      *slog.Logger
	// Step is called with the name of each step before it is taken; tests cut
	// the power there.
	Step func(name string)
}

// Machine carries out one offer at a time.
type Machine struct {
	o    Options
	wake chan struct{}

	looking   sync.Mutex // held by look
	mu        sync.Mutex
	mail      []Offer
	interrupt context.CancelCauseFunc // ends what may be interrupted; nil: nothing
	current   string                  // execution in work
	queued    []string                // and those that wait
	before    map[string]string       // its baseline
	ended     []Progress
	truths    []Running
	settled   bool
}

const maxMail = 8

// errMail says that an offer came in while something was done that may be
// interrupted.
var errMail = errors.New("another offer came")

// New returns a Machine; Run works.
func New(o Options) (*Machine, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("update journal: %w", err)
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	m := &Machine{o: o, wake: make(chan struct{}, 1)}
	j := m.journal()
	if m.ended = j.Ended; j.Offer != nil {
		m.current = j.Offer.Execution
	}
	return m, nil
}

// Submit hands in an offer; false when there are too many.
func (m *Machine) Submit(o Offer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	// One that comes again, as on each connect, takes no room from others.
	same := func(other Offer) bool { return other.Execution == o.Execution && other.Attempt <= o.Attempt }
	if i := slices.IndexFunc(m.mail, same); i >= 0 {
		m.mail[i] = o
		return true
	}
	if o.Medium != "" { // nobody waits for an answer: what is known is done with, and the rest may come later
		known := func(p Progress) bool { return p.Execution == o.Execution && p.Attempt >= o.Attempt }
		if m.current == o.Execution || slices.Contains(m.queued, o.Execution) || slices.ContainsFunc(m.ended, known) {
			return true
		}
		if len(m.mail)+len(m.queued) >= maxQueue {
			return false
		}
	}
	if len(m.mail) >= maxMail {
		return false
	}
	m.mail = append(m.mail, o)
	if m.interrupt != nil {
		m.interrupt(errMail)
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return true
}

// Run finishes what was begun before the last start, then works on offers. It
// returns nil when ctx ends, or ErrRestart or ErrReboot.
func (m *Machine) Run(ctx context.Context) error {
	var j journal
	began := time.Now()
	err := m.insist(ctx, func() error {
		j = m.journal()
		err := m.settle(ctx, &j)
		if err != nil && time.Since(began) > m.o.CheckFor {
			return errors.Join(errFinal, err) // what runs may be on trial: whoever counts starts counts this one
		}
		return err
	})
	for err == nil && ctx.Err() == nil {
		err = m.insist(ctx, func() error { return m.turn(ctx, &j) })
		if err != nil || j.Offer != nil || len(j.Queue) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-m.wake:
		}
	}
	if ctx.Err() != nil && !errors.Is(err, ErrRestart) && !errors.Is(err, ErrReboot) {
		return nil
	}
	return err
}

// turn tells what was not told, takes the offers that came, and works on one.
func (m *Machine) turn(ctx context.Context, j *journal) error {
	if err := m.tellEnd(ctx, j); err != nil {
		return err
	}
	if j.Offer == nil || j.Part == partFetch { // else what is begun comes first
		if err := m.sort(ctx, j); err != nil {
			return err
		}
	}
	if j.Offer == nil {
		return nil
	}
	return m.work(ctx, j)
}

// errFinal marks an error that insist does not try to get over.
var errFinal = errors.New("updates cannot be worked on")

// insist does f until it succeeds, or ends on purpose: a disk or a trail without
// room holds updates up, and nothing else of the agent.
func (m *Machine) insist(ctx context.Context, f func() error) error {
	pause := pauseMin
	for {
		err := f()
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrRestart) || errors.Is(err, ErrReboot) || errors.Is(err, errFinal) {
			return err
		}
		m.o.Log.Warn("updates are held up", slog.Duration("again_in", pause), slog.Any("err", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// Execution returns what is in work; empty: nothing.
func (m *Machine) Execution() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

// Last returns how the newest attempt of an execution ended, if it is
// remembered.
func (m *Machine) Last(execution string) (Progress, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range slices.Backward(m.ended) {
		if p.Execution == execution {
			return p, true
		}
	}
	return Progress{}, false
}

// Before returns how everything on the box was before the present trial.
func (m *Machine) Before() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.before
}

// Truth returns what runs, as found last.
func (m *Machine) Truth() []Running {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.truths)
}

// Settled reports whether it is known what runs.
func (m *Machine) Settled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.settled
}

// OnTrial reports whether something that runs has yet to prove itself: nothing
// must be done that what was there before could not live with. While nothing is
// known it reports that, too.
func (m *Machine) OnTrial() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.settled || slices.ContainsFunc(m.truths, func(r Running) bool { return r.Trial })
}

// refusal ends an execution for a reason that trying again does not change.
type refusal struct {
	state, reason string
	err           error
}

// Error implements error.
func (r *refusal) Error() string { return r.err.Error() }

// Unwrap returns the cause.
func (r *refusal) Unwrap() error { return r.err }

// hold is a reason to wait.
type hold struct{ reason, text string }

// Error implements error.
func (h *hold) Error() string { return h.text }
