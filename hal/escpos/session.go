package escpos

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

var (
	errMute    = errors.New("the printer does not answer")
	errNoBlock = errors.New("the printer does not tell about itself")
)

// blockPause is how long a printer is not asked for blocks after it has not
// answered one. Asking fills its buffer while it is off-line.
const blockPause = 5 * time.Minute

// session is one connection to a printer. One goroutine reads; whoever asks
// has to have the turn, because answers do not say what they answer.
type session struct {
	conn    net.Conn
	timeout time.Duration
	drawer  hal.Tri
	track   *hal.Tracker
	turn    chan struct{}
	lost    chan struct{} // closed when reading has ended
	wg      sync.WaitGroup

	mu     sync.Mutex
	ended  bool
	wanted int       // kind of the answer that is waited for
	answer chan unit // where it goes
	frames int       // seen so far
	owed   int       // blocks asked for that never came
	since  time.Time // of the newest of them
}

// begin starts to read conn.
func begin(conn net.Conn, timeout time.Duration, drawer hal.Tri, track *hal.Tracker) *session {
	s := &session{conn: conn, timeout: timeout, drawer: drawer, track: track, turn: make(chan struct{}, 1), lost: make(chan struct{})}
	s.start(s.read)
	return s
}

// start runs f in a goroutine that end waits for; false when it has ended.
func (s *session) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.wg.Go(f)
	return true
}

// end closes the connection and waits for all that works on it.
func (s *session) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	_ = s.conn.Close()
	s.wg.Wait()
}

// read takes in what the printer says until the connection ends. It needs no
// deadline of its own: a question that is not answered closes the connection.
func (s *session) read() {
	defer close(s.lost)
	defer s.conn.Close()
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
			s.track.Count("CommunicationErrorCount", float64(d.errors-before))
		}
		if err != nil {
			return
		}
	}
}

func (s *session) take(u unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case u.kind == frameAnswer:
		s.frames++
		s.track.Update(readFrame(u.frame).look(s.drawer))
	case u.kind == blockAnswer && s.owed > 0:
		s.owed-- // too late; what it answers is forgotten
	case u.kind == s.wanted:
		s.wanted = 0
		s.answer <- u
	default:
		s.track.Count("CommunicationErrorCount", 1)
	}
}

// ask sends a command and waits for the answer. When ctx ends first the turn
// stays taken until the answer has come or its time is over, so that the next
// question cannot get it.
func (s *session) ask(ctx context.Context, kind int, timeout time.Duration, cmd ...byte) (unit, error) {
	if err := s.acquire(ctx); err != nil {
		return unit{}, err
	}
	type result struct {
		u   unit
		err error
	}
	out := make(chan result, 1)
	if !s.start(func() {
		u, err := s.exchange(kind, timeout, cmd)
		<-s.turn
		out <- result{u, err}
	}) {
		<-s.turn
		return unit{}, net.ErrClosed
	}
	select {
	case r := <-out:
		return r.u, r.err
	case <-ctx.Done():
		return unit{}, ctx.Err()
	}
}

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

func (s *session) exchange(kind int, timeout time.Duration, cmd []byte) (unit, error) {
	answer := make(chan unit, 1)
	s.mu.Lock()
	if kind == blockAnswer && s.owed > 0 {
		if time.Since(s.since) < blockPause {
			s.mu.Unlock()
			return unit{}, errNoBlock
		}
		s.owed = 0
	}
	s.wanted, s.answer = kind, answer
	s.mu.Unlock()
	if err := s.write(cmd); err != nil {
		return unit{}, err
	}
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case u := <-answer:
		return u, nil
	case <-s.lost:
		return unit{}, net.ErrClosed
	case <-late.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted == 0 { // it came at the last moment
		return <-answer, nil
	}
	s.wanted = 0
	if kind == blockAnswer {
		s.owed++
		s.since = time.Now()
		return unit{}, errNoBlock
	}
	s.track.Count("CommunicationErrorCount", 1)
	_ = s.conn.Close() // a real-time question is always answered; this connection is of no use
	return unit{}, errMute
}

// write sends bytes; the caller has the turn.
func (s *session) write(b []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(b)
	return err
}

// send writes a command that has no answer.
func (s *session) send(ctx context.Context, b ...byte) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	return s.write(b)
}

// poll asks for the status in real time. A frame that arrives meanwhile is
// newer and whole, and wins.
func (s *session) poll(ctx context.Context, queries string) (hal.Status, error) {
	s.mu.Lock()
	frames := s.frames
	s.mu.Unlock()
	var r reading
	for _, n := range []byte(queries) {
		u, err := s.ask(ctx, realtimeAnswer, s.timeout, 0x10, 0x04, n-'0')
		if err != nil {
			return hal.Status{}, err
		}
		r.realtime(n-'0', u.b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frames != frames {
		return s.track.Status(), nil
	}
	return s.track.Update(r.look(s.drawer)), nil
}

// arm makes the printer tell of changes by itself: drawer, on-line, error,
// paper. A job of the till may have switched that off.
func (s *session) arm(ctx context.Context) error { return s.send(ctx, 0x1d, 'a', 0x0f) }

// identity asks who the printer is (GS I n); "" when it does not say.
func (s *session) identity(ctx context.Context, n byte) (string, error) {
	u, err := s.ask(ctx, blockAnswer, s.timeout, 0x1d, 'I', n)
	return u.block, err
}

// counter asks for a maintenance counter (GS g 2).
func (s *session) counter(ctx context.Context, n byte) (uint64, error) {
	u, err := s.ask(ctx, blockAnswer, s.timeout, 0x1d, 'g', '2', 0, n, 0)
	if err != nil {
		return 0, err
	}
	v, ok := parseCounter(u.block)
	if !ok {
		s.track.Count("CommunicationErrorCount", 1)
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
