package display

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/tillward/tillward/hal/port"
)

var errMute = errors.New("the display does not answer")

const clearAll = 0x0c // CLR

// text writes two lines, at a brightness if that is not 0 [Epson ESC/POS for
// customer displays: CLR, US MD1, US X, US $].
func text(columns, brightness int, lines ...string) []byte {
	b := []byte{0x1f, 0x01, clearAll}
	if brightness > 0 {
		b = append(b, 0x1f, 'X', byte(brightness))
	}
	for i, l := range lines {
		b = append(b, 0x1f, '$', 1, byte(i+1))
		for _, c := range []byte(l[:min(len(l), columns)]) {
			if c < ' ' || c > '~' {
				c = '?'
			}
			b = append(b, c)
		}
	}
	return b
}

// heard takes apart what a display says: how often it answered DLE EOT, and
// how many runs of bytes meant nothing.
func heard(b []byte) (answers, junk int) {
	bad := false
	for _, c := range b {
		switch {
		case c == 0x11 || c == 0x13: // XON, XOFF
			continue
		case c&0x93 == 0x12:
			answers++
			bad = false
		default:
			if !bad {
				junk++
			}
			bad = true
		}
	}
	return answers, junk
}

// session is one connection to a display. One goroutine reads; whoever writes
// has to have the turn.
type session struct {
	conn    port.Conn
	timeout time.Duration
	failed  func()
	turn    chan struct{}
	answer  chan struct{}
	lost    chan struct{} // closed when reading has ended
	wg      sync.WaitGroup
}

func begin(conn port.Conn, timeout time.Duration, failed func(), contain func(func()) bool) *session {
	s := &session{conn: conn, timeout: timeout, failed: failed, turn: make(chan struct{}, 1), answer: make(chan struct{}, 1), lost: make(chan struct{})}
	s.wg.Go(func() { contain(s.read) })
	return s
}

// end closes the line and waits.
func (s *session) end() {
	_ = s.conn.Close()
	s.wg.Wait()
}

func (s *session) read() {
	defer close(s.lost)
	defer s.conn.Close()
	b := make([]byte, 64)
	for {
		n, err := s.conn.Read(b)
		answers, junk := heard(b[:n])
		for range junk {
			s.failed()
		}
		if answers > 0 {
			select {
			case s.answer <- struct{}{}:
			default:
			}
		}
		if err != nil {
			return
		}
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

// send writes in one piece.
func (s *session) send(ctx context.Context, b []byte) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	return s.write(b)
}

func (s *session) write(b []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(b)
	return err
}

// ask asks DLE EOT 1. A display that does not answer is gone: the line is
// closed.
func (s *session) ask(ctx context.Context) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	select {
	case <-s.answer: // of a question that nobody waited for
	default:
	}
	if err := s.write([]byte{0x10, 0x04, 0x01}); err != nil {
		return err
	}
	late := time.NewTimer(s.timeout)
	defer late.Stop()
	select {
	case <-s.answer:
		return nil
	case <-s.lost:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
	}
	s.failed()
	_ = s.conn.Close()
	return errMute
}
