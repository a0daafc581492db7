package escpos

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/port"
)

var (
	errMute    = errors.New("the printer does not answer")
	errNoBlock = errors.New("the printer does not tell about itself")
	errBusy    = errors.New("the printer takes nothing now")
)

const (
	// blockPause is how long a printer is not asked for blocks after it has not
	// answered one. Asking fills its buffer while it is off-line.
	blockPause = 5 * time.Minute
	// murkyFor is how long a picture that holds what a printer may take for a
	// question makes its real-time answers worth nothing.
	murkyFor = 3 * time.Second
	// flowPiece is how much goes out at once where XOFF may come.
	flowPiece = 64
	// maxOrdered is how many questions may wait for their turn.
	maxOrdered = 256
	// How long a printer may be silent that has a job before it, and one that
	// said besides that it stands: somebody has to fetch paper.
	slowFor   = 30 * time.Second
	standsFor = 10 * time.Minute
)

// session is one connection to a printer. One goroutine reads. Answers do not
// say what they answer, but come in the order of the questions: those in real
// time among themselves, and the others behind all that was sent before.
type session struct {
	conn    port.Conn
	timeout time.Duration
	flow    bool // XON and XOFF of this line are ours to obey
	learn   func(reading) hal.Status
	noise   func(n int)
	contain func(work func()) bool
	turn    chan struct{} // who may write; changes hands between two commands only
	lost    chan struct{} // closed when reading has ended
	oneWay  chan struct{} // closed when there is nothing to read, ever
	mute    atomic.Bool   // why it was lost
	wg      sync.WaitGroup

	tail []byte // of our own question, that the printer has not taken yet; belongs to who has the turn

	mu       sync.Mutex
	ended    bool
	urgent   []*question // in real time
	ordered  []*question // behind what is printed
	frame    [4]byte
	frames   int // seen so far
	known    reading
	quiet    time.Time // a question in its turn was not answered then
	murky    time.Time
	backlog  bool          // of a job, that may keep a question from the printer
	heard    time.Time     // when there was none yet, or something came last
	gate     chan struct{} // closed by XON; nil: XOFF was not said
	ears     []*tunnel
	printing *tunnel // what nobody asked for is for this one
}

// question waits for an answer. Where nobody waits any more the answer still
// comes, and must not be taken for that to the next question.
type question struct {
	kind int
	to   func(unit) // called with session.mu held; nil: nobody
}

// start runs f in a goroutine that end waits for; false when it has ended.
func (s *session) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.wg.Go(func() { s.contain(f) })
	return true
}

// listen reads, and loses the connection when what came was too much for us.
func (s *session) listen() {
	if !s.contain(s.read) {
		_ = s.conn.Close()
		close(s.lost)
	}
}

// silence makes nothing come of what is still read: the printer is about to be
// told as lost.
func (s *session) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// end closes the connection and waits for all that works on it.
func (s *session) end() {
	s.silence()
	_ = s.conn.Close()
	s.wg.Wait()
}

// drop closes the connection and throws away what the cable has not passed on.
func (s *session) drop() {
	if c, ok := s.conn.(interface{ SetLinger(sec int) error }); ok {
		_ = c.SetLinger(0)
	}
	_ = s.conn.Close()
}

// read takes in what the printer says until the connection ends. It needs no
// deadline of its own: a question that is not answered closes the connection.
func (s *session) read() {
	var d decoder
	b := make([]byte, 256)
	for {
		n, err := s.conn.Read(b)
		before := d.errors
		for _, c := range b[:n] {
			if u, ok := d.feed(c); ok {
				s.take(u)
			}
		}
		if d.errors > before {
			s.noise(d.errors - before)
		}
		if errors.Is(err, port.ErrOneWay) {
			close(s.oneWay)
			return
		}
		if err != nil {
			_ = s.conn.Close()
			close(s.lost)
			return
		}
	}
}

func (s *session) take(u unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.heard = time.Now()
	switch u.kind {
	case flowControl:
		switch {
		case !s.flow:
		case u.b == xoff && s.gate == nil:
			s.gate = make(chan struct{})
		case u.b == xon && s.gate != nil:
			close(s.gate)
			s.gate = nil
		}
	case frameAnswer:
		s.frames++
		s.frame, s.known = u.frame, readFrame(u.frame)
		s.learn(s.known)
		for _, t := range s.ears {
			t.frame(u.frame)
		}
	case realtimeAnswer:
		if len(s.urgent) > 0 {
			q := s.urgent[0]
			s.urgent, s.backlog = s.urgent[1:], false
			q.answer(u)
		} else if time.Since(s.murky) > murkyFor {
			s.noise(1)
		}
	default:
		// In its turn: whatever was asked before and has not been answered never
		// will be.
		if i := slices.IndexFunc(s.ordered, func(q *question) bool { return q.kind == u.kind }); i >= 0 {
			q := s.ordered[i]
			s.ordered, s.quiet, s.backlog = s.ordered[i+1:], time.Time{}, false
			q.answer(u)
		} else if s.printing == nil || !s.printing.say(u.bytes()) {
			s.noise(1)
		}
	}
}

func (q *question) answer(u unit) {
	if q.to != nil {
		q.to(u)
	}
}

// acquire takes the turn.
func (s *session) acquire(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-s.lost:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *session) release() { <-s.turn }

// push writes; whoever calls has the turn. It returns errBusy when the printer
// takes nothing for as long as it may take to answer.
func (s *session) push(b []byte) (int, error) {
	for n := 0; n < len(b); {
		if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
			return n, err
		}
		m, err := s.conn.Write(b[n:])
		n += m
		switch {
		case err == nil || m > 0 && errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, errBusy
		default:
			return n, err
		}
	}
	return len(b), nil
}

// pushTail finishes a question of ours that was cut short.
func (s *session) pushTail() error {
	n, err := s.push(s.tail)
	s.tail = s.tail[n:]
	return err
}

// send writes a whole command; whoever calls has the turn. q, if any, gets the
// answer to it.
func (s *session) send(q *question, cmd ...byte) error {
	if err := s.pushTail(); err != nil {
		return err
	}
	s.expect(q)
	n, err := s.push(cmd)
	switch {
	case !errors.Is(err, errBusy):
	case n > 0:
		s.tail = append(s.tail, cmd[n:]...) // the rest goes before anything else
	case q != nil:
		s.mu.Lock()
		gone := func(o *question) bool { return o == q }
		s.urgent, s.ordered = slices.DeleteFunc(s.urgent, gone), slices.DeleteFunc(s.ordered, gone)
		s.mu.Unlock()
	}
	return err
}

// expect notes that an answer will come for q.
func (s *session) expect(q *question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case q == nil:
	case q.kind == realtimeAnswer:
		s.urgent = append(s.urgent, q)
	default:
		if len(s.ordered) == maxOrdered { // nobody will answer that
			s.ordered = s.ordered[1:]
		}
		s.ordered = append(s.ordered, q)
	}
}

// tell sends a command that has no answer.
func (s *session) tell(ctx context.Context, cmd ...byte) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	return s.send(nil, cmd...)
}

// ask sends a question and waits for the answer.
func (s *session) ask(ctx context.Context, kind int, timeout time.Duration, cmd ...byte) (unit, error) {
	return s.askAny(ctx, timeout, asking{kind, cmd})
}

// asking is a question and the kind of its answer.
type asking struct {
	kind int
	cmd  []byte
}

// askAny sends questions of which the printer may know but one, and waits for
// an answer to any.
func (s *session) askAny(ctx context.Context, timeout time.Duration, questions ...asking) (unit, error) {
	kind := questions[0].kind
	if kind != realtimeAnswer && !s.asks() {
		return unit{}, errNoBlock
	}
	if err := s.acquire(ctx); err != nil {
		return unit{}, err
	}
	got := make(chan unit, len(questions))
	var err error
	for _, q := range questions {
		if err == nil {
			err = s.send(&question{kind: q.kind, to: func(u unit) { got <- u }}, q.cmd...)
		}
	}
	s.release()
	if err != nil {
		return unit{}, err
	}
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case u := <-got:
		return u, nil
	case <-ctx.Done():
		return unit{}, ctx.Err()
	case <-s.lost:
		return unit{}, net.ErrClosed
	case <-s.oneWay:
		return unit{}, port.ErrOneWay
	case <-late.C:
	}
	if kind != realtimeAnswer {
		s.mu.Lock()
		s.quiet = time.Now()
		s.mu.Unlock()
		return unit{}, errNoBlock
	}
	if s.excused() {
		return unit{}, errBusy
	}
	s.noise(1)
	s.mute.Store(true)
	_ = s.conn.Close() // a real-time question is always answered; this connection is of no use
	return unit{}, errMute
}

// excused reports whether a question may still be on its way behind a job that
// the printer has not taken in, which it does not while it stands.
func (s *session) excused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	patience := slowFor
	if s.known.offline == hal.Yes {
		patience = standsFor
	}
	return s.backlog && time.Since(s.heard) < patience
}

// laden notes that a question now has something before it.
func (s *session) laden() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.backlog {
		s.backlog, s.heard = true, time.Now()
	}
}

// pins asks by the cable's own means, which may take longer than anybody waits.
func (s *session) pins(ctx context.Context) (port.Pins, error) {
	type result struct {
		pins port.Pins
		err  error
	}
	out := make(chan result, 1)
	if !s.start(func() {
		pins, err := port.AskPins(s.conn)
		out <- result{pins, err}
	}) {
		return port.Pins{}, net.ErrClosed
	}
	select {
	case r := <-out:
		return r.pins, r.err
	case <-ctx.Done():
		return port.Pins{}, ctx.Err()
	}
}

// asks reports whether it is worth while to ask in turn.
func (s *session) asks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet.IsZero() {
		return true
	}
	if time.Since(s.quiet) < blockPause {
		return false
	}
	s.quiet, s.ordered = time.Time{}, nil
	return true
}

// poll asks for the status in real time. A frame that arrives meanwhile is
// newer and whole, and wins. Without queries there is nothing to ask, and what
// is known of the printer is that its cable is there.
func (s *session) poll(ctx context.Context, queries string) (hal.Status, error) {
	s.mu.Lock()
	frames := s.frames
	murky := time.Since(s.murky) < murkyFor
	s.mu.Unlock()
	var r reading
	for _, n := range []byte(queries) {
		if murky {
			break
		}
		u, err := s.ask(ctx, realtimeAnswer, s.timeout, dle, 0x04, n-'0')
		if err != nil {
			return hal.Status{}, err
		}
		r.realtime(n-'0', u.b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frames == frames && !murky {
		s.known = r.over(s.known)
	}
	return s.learn(s.known), nil
}

// arm makes the printer tell of changes by itself: drawer, on-line, error,
// paper. A job of the till may have switched that off.
func (s *session) arm(ctx context.Context) error { return s.tell(ctx, armed...) }

var armed = []byte{gs, 'a', 0x0f}

// identity asks who the printer is (GS I n); "" when it does not say.
func (s *session) identity(ctx context.Context, n byte) (string, error) {
	u, err := s.ask(ctx, blockAnswer, s.timeout, gs, 'I', n)
	return u.block, err
}

// counter asks for a maintenance counter (GS g 2).
func (s *session) counter(ctx context.Context, n byte) (uint64, error) {
	u, err := s.ask(ctx, blockAnswer, s.timeout, gs, 'g', '2', 0, n, 0)
	if err != nil {
		return 0, err
	}
	v, ok := parseCounter(u.block)
	if !ok {
		s.noise(1)
		return 0, errNoBlock
	}
	return v, nil
}

// parseCounter reads a counter's block. More digits than a printer can live to
// count are refused, so that no other number ever passes for one.
func parseCounter(s string) (uint64, bool) {
	if s == "" || len(s) > 12 {
		return 0, false
	}
	var v uint64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, true
}

// forgive lets a printer be asked in its turn again though it did not answer.
func (s *session) forgive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quiet, s.ordered = time.Time{}, nil
}
