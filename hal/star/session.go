package star

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/tillward/tillward/hal/port"
)

var errMute = errors.New("the printer does not answer")

const (
	helloWithin = 250 * time.Millisecond // at most, for a printer that tells its status by itself
	silence     = 15                     // times the patience for an answer, of a printer that is off-line, before its connection is doubted
	lookEvery   = 50 * time.Millisecond
)

// session is one connection to a printer. One goroutine reads; whoever writes
// has to have the turn.
//
// A printer tells its status by itself or it is asked for it, never both: that
// is what auto says. With automatic status an on-line printer shows that it
// lives by counting an ETB; one that is off-line obeys nothing that waits in
// its buffer, and its silence means nothing.
type session struct {
	contain func(work func()) bool
	conn    port.Conn
	timeout time.Duration
	told    func(reading) // what each frame says
	failed  func(n int)   // runs of bytes that meant nothing
	turn    chan struct{}
	lost    chan struct{} // closed when reading has ended
	wg      sync.WaitGroup
	flow    bool // XON and XOFF are ours to obey

	mu      sync.Mutex
	ended   bool
	auto    bool // it tells its status by itself
	asked   int  // ESC ACK SOH that wait for their frame
	frames  int  // seen so far
	raw     []byte
	last    reading
	heard   time.Time     // of the last frame
	news    chan struct{} // closed when something has come
	version chan string   // where the version goes; nil: nobody asks
	held    bool          // XOFF
	busy    bool          // a job or an application has the turn
	ears    []*tunnel
}

// begin starts to read conn.
func begin(conn port.Conn, timeout time.Duration, told func(reading), failed func(int), contain func(func()) bool) *session {
	s := &session{
		contain: contain, conn: conn, timeout: timeout, told: told, failed: failed, turn: make(chan struct{}, 1), lost: make(chan struct{}),
		news: make(chan struct{}), heard: time.Now(),
	}
	s.flow, _ = port.GiveFlow(conn)
	s.wg.Go(func() { s.contain(s.read) })
	return s
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
			for _, u := range d.feed(c) {
				s.take(u)
			}
		}
		if d.errors > before {
			s.failed(d.errors - before)
		}
		if err != nil {
			return
		}
	}
}

func (s *session) take(u unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch u.kind {
	case goUnit, holdUnit:
		s.held = s.flow && u.kind == holdUnit
	case versionUnit:
		if s.version != nil {
			s.version <- u.version
			s.version = nil
		}
	case frameUnit:
		if s.asked > 0 {
			s.asked--
		} else {
			s.auto = true
		}
		s.frames++
		s.raw, s.last, s.heard = u.frame, readFrame(u.frame), time.Now()
		s.told(s.last)
		for _, t := range s.ears {
			t.frame(u.frame, false)
		}
	}
	close(s.news)
	s.news = make(chan struct{})
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

// write sends; the caller has the turn.
func (s *session) write(parts ...[]byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(slices.Concat(parts...))
	return err
}

// feed sends part of a job when the printer has room for it, or has stopped;
// the caller has the turn. What is not sent whole leaves the printer in the
// middle of something: the connection is closed.
func (s *session) feed(ctx context.Context, b []byte) error {
	err := s.until(ctx, func() bool { return !s.held || s.last.offline })
	if err != nil {
		return err
	}
	if err = s.write(b); err != nil {
		_ = s.conn.Close()
	}
	return err
}

// until waits for what a unit brings; ok is called with s.mu held.
func (s *session) until(ctx context.Context, ok func() bool) error {
	for {
		s.mu.Lock()
		done, news := ok(), s.news
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-news:
		case <-s.lost:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// within waits no longer than d: errMute.
func (s *session) within(ctx context.Context, d time.Duration, ok func() bool) error {
	limit, cancel := context.WithTimeoutCause(ctx, d, errMute)
	defer cancel()
	err := s.until(limit, ok)
	if err != nil && ctx.Err() == nil && limit.Err() != nil {
		return errMute
	}
	return err
}

// hello finds out whether the printer tells its status by itself, and looks
// once.
func (s *session) hello(ctx context.Context) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	if err := s.write(tellStatus); err != nil {
		return err
	}
	err := s.within(ctx, min(helloWithin, s.timeout/8), func() bool { return s.frames > 0 })
	if errors.Is(err, errMute) {
		return s.ask(ctx)
	}
	return err
}

// ask asks for the status in real time, and waits for the frame. The caller
// has the turn. A printer that does not answer is of no use: the connection is
// closed.
func (s *session) ask(ctx context.Context) error {
	s.mu.Lock()
	if s.auto { // it has begun to tell by itself meanwhile
		s.mu.Unlock()
		return nil
	}
	seen := s.frames
	s.asked++
	s.mu.Unlock()
	if err := s.write(askStatus); err != nil {
		return err
	}
	return s.answered(ctx, func() bool { return s.frames > seen })
}

// answered waits for what must come; ok is called with s.mu held.
func (s *session) answered(ctx context.Context, ok func() bool) error {
	err := s.within(ctx, s.timeout, ok)
	if errors.Is(err, errMute) {
		s.failed(1)
		_ = s.conn.Close()
	}
	return err
}

// poll makes sure that the last look is fresh.
func (s *session) poll(ctx context.Context) error {
	s.mu.Lock()
	busy := s.busy
	s.mu.Unlock()
	if busy {
		return nil // frames come, or the job asks
	}
	if err := s.acquire(ctx); err != nil {
		return err
	}
	out := make(chan error, 1)
	if !s.start(func() { // to its end, so that the next question cannot get the answer
		defer s.release()
		out <- s.look()
	}) {
		s.release()
		return net.ErrClosed
	}
	select {
	case err := <-out:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
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

func (s *session) look() error {
	ctx := context.Background() // bounded by s.timeout and the connection
	s.mu.Lock()
	auto, offline, quiet := s.auto, s.last.offline, time.Since(s.heard)
	seen, counted := s.frames, s.last.etb
	s.mu.Unlock()
	switch {
	case !auto:
		return s.ask(ctx)
	case offline && quiet < silence*s.timeout:
		return nil
	case offline:
		_ = s.conn.Close()
		return errMute
	}
	if err := s.write(tellStatus, countUp); err != nil {
		return err
	}
	// Not the first frame but that of the ETB, so that no later one is still on
	// its way: the proof of a job stands on that.
	return s.answered(ctx, func() bool { return s.frames > seen && (s.last.etb != counted || counted < 0) || s.last.offline })
}

// identity asks for the version; "" when the printer does not tell.
func (s *session) identity(ctx context.Context) (string, error) {
	if err := s.acquire(ctx); err != nil {
		return "", err
	}
	defer s.release()
	answer := make(chan string, 1)
	s.mu.Lock()
	s.version = answer
	s.mu.Unlock()
	if err := s.write(askVersion); err != nil {
		return "", err
	}
	late := time.NewTimer(s.timeout)
	defer late.Stop()
	select {
	case v := <-answer:
		return v, nil
	case <-late.C:
		return "", nil
	case <-s.lost:
		return "", net.ErrClosed
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// tellsItself reports whether status comes without asking.
func (s *session) tellsItself() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.auto
}

func (s *session) occupy(busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = busy
}
