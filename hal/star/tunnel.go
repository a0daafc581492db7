package star

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	idleFor   = time.Second // until another job may begin
	stallFor  = time.Minute // for an ETB that the printer does not come to
	maxUnread = 64          // answers that an application may leave unread, beside what its line holds
	unreadFor = 10 * time.Second
	readAhead = 4096 // bytes
)

var errUnread = errors.New("the application does not read its answers")

// tunnel is an application that talks to the printer as if it were a network
// printer: frames end with two bytes of length.
type tunnel struct {
	p    *printer
	s    *session
	app  io.ReadWriter
	out  chan []byte
	over chan struct{} // closed when the tunnel has ended
	fail chan error

	mu    sync.Mutex
	auto  bool // it wants frames by themselves
	holds bool // its job is being printed
	etb   int  // what the application believes the counter to be; -1: there is none
	sent  []byte
}

// Tunnel implements hal.Tunneler. Jobs go through in order; one application
// prints at a time, and others wait until its job is over. Status is answered
// from what the printer has told, and what the application wants to be told of
// by itself is its own affair. Its ETB are counted by the printer, and between
// its jobs the counter stands still for it, whatever the driver asks. An
// application that does not read its answers, or whose printer is lost, is
// hung up.
func (p *printer) Tunnel(ctx context.Context, app io.ReadWriter) error {
	const op = "tunnel"
	if p.Info().Claim != hal.Own {
		return &hal.Error{Code: "E_ILLEGAL", Op: op, Err: errors.New("the till owns this printer; claim it with own")}
	}
	st, err := p.Status(ctx)
	if err != nil {
		return err
	}
	s := p.session()
	if s == nil {
		return stopped(op, st)
	}
	t := &tunnel{p: p, s: s, app: app, out: make(chan []byte, maxUnread), over: make(chan struct{}), fail: make(chan error, 2), auto: true}
	defer close(t.over)
	defer t.unblock()
	in := make(chan []byte)
	go t.read(in)
	go t.write()
	s.join(t)
	defer s.leave(t)
	err = t.work(ctx, in)
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, net.ErrClosed):
		return &hal.Error{Code: "E_OFFLINE", Op: op, Err: errors.New("the printer is lost")}
	}
	if _, ok := errors.AsType[*hal.Error](err); ok {
		return err
	}
	return failed(op, err)
}

// unblock ends what still reads and writes, as far as the application's end
// can do that.
func (t *tunnel) unblock() {
	switch app := t.app.(type) {
	case interface{ SetDeadline(time.Time) error }:
		_ = app.SetDeadline(time.Now())
	case io.Closer:
		_ = app.Close()
	}
}

// read hands on what the application says; it is not asked for more before
// that is taken.
func (t *tunnel) read(in chan<- []byte) {
	for {
		b := make([]byte, readAhead)
		n, err := t.app.Read(b)
		if n > 0 {
			select {
			case in <- b[:n]:
			case <-t.over:
				return
			}
		}
		if err != nil {
			t.end(err)
			return
		}
	}
}

// write tells the application.
func (t *tunnel) write() {
	deadline, _ := t.app.(interface{ SetWriteDeadline(time.Time) error })
	for {
		select {
		case b := <-t.out:
			if deadline != nil {
				_ = deadline.SetWriteDeadline(time.Now().Add(unreadFor))
			}
			if _, err := t.app.Write(b); err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					err = io.EOF // it has hung up
				} else {
					err = errUnread
				}
				t.end(err)
				return
			}
		case <-t.over:
			return
		}
	}
}

func (t *tunnel) end(err error) {
	select {
	case t.fail <- err:
	default:
	}
}

// say tells the application something; it never waits.
func (t *tunnel) say(b []byte) {
	select {
	case t.out <- b:
	default:
		t.end(errUnread)
	}
}

// join lets a tunnel be told of frames, and tells it how the printer is.
func (s *session) join(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ears = append(s.ears, t)
	t.etb = s.last.etb
	if s.raw != nil {
		t.frame(s.raw, false)
	}
}

func (s *session) leave(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range s.ears {
		if e == t {
			s.ears = append(s.ears[:i:i], s.ears[i+1:]...)
			return
		}
	}
}

// frame tells the application of a frame, if it wants to know or has asked.
func (t *tunnel) frame(raw []byte, asked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := bytes.Clone(raw)
	if !t.holds {
		f[2] &^= 0x02 // ETB that it has not sent
		if t.etb >= 0 && len(f) > 8 {
			f[7] = byte(t.etb&7<<1 | t.etb&0x18<<2)
		}
	}
	if !asked && (!t.auto || bytes.Equal(f, t.sent)) {
		return
	}
	t.say(network(f, nil))
	f[2] &^= 0x02 // told once
	t.sent = f
}

// network puts a frame as network cards do, with data behind it.
func network(frame, data []byte) []byte {
	b := append(bytes.Clone(frame), byte(len(data)>>8), byte(len(data)))
	b[1] |= 0x80
	return append(b, data...)
}

// asked answers a question of the application.
func (t *tunnel) asked(cmd []byte) {
	t.s.mu.Lock()
	raw := t.s.raw
	t.s.mu.Unlock()
	one := func(kind string, b byte) {
		t.say(network(raw, []byte{kind[0], kind[1], ':', 'B', 0, 1, b, ';'}))
	}
	r := readFrame(raw)
	switch {
	case cmd[0] == 0x05:
		one("01", flags(0x20, flag{0x80, r.switched}, flag{0x08, r.end}, flag{0x04, r.cover || r.unrecoverable}))
	case cmd[0] == 0x04:
		one("02", flags(0x10, flag{0x08, r.end}, flag{0x04, r.nearEnd}))
	case cmd[1] == 0x1e: // ESC RS a n; a network card tells nothing that it has told, and applications count frames
		t.mu.Lock()
		was := t.auto
		t.auto = cmd[3]&1 != 0
		t.mu.Unlock()
		if !was {
			t.frame(raw, t.auto)
		}
	default: // ESC ACK SOH
		t.frame(raw, true)
	}
}

// flag is a bit of an answer.
type flag struct {
	bit byte
	on  bool
}

func flags(b byte, list ...flag) byte {
	for _, f := range list {
		if f.on {
			b |= f.bit
		}
	}
	return b
}

// work passes on what comes, and gives the printer to others in between.
func (t *tunnel) work(ctx context.Context, in <-chan []byte) error {
	f := filter{asked: t.asked, counts: counts{level: max(t.etb, 0)}}
	defer t.rest()
	defer func() {
		if end := f.rest(); len(end) > 0 {
			_ = t.s.write(end)
		}
	}()
	heard := time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case b := <-in:
			was := f.counts
			out := f.pass(b)
			t.p.noted(was, f.counts)
			if len(out) > 0 {
				if err := t.during(ctx, func(ctx context.Context) error { return t.print(ctx, out) }); err != nil {
					return err
				}
			}
			heard = time.Now()
		case <-tick.C:
			quiet := time.Since(heard)
			if err := t.see(ctx); err != nil {
				return err
			}
			if f.idle() && quiet > idleFor && (t.etb < 0 || t.s.counter() == f.level || quiet > stallFor) {
				t.rest()
			}
		case err := <-t.fail:
			return err
		case <-t.s.lost:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// see asks a printer that does not tell by itself, while the application has
// the turn.
func (t *tunnel) see(ctx context.Context) error {
	t.mu.Lock()
	holds := t.holds
	t.mu.Unlock()
	if !holds || t.s.tellsItself() {
		return nil
	}
	return t.s.ask(ctx)
}

// during ends what waits for the printer when the application has gone wrong.
func (t *tunnel) during(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	var watch sync.WaitGroup
	var failure error
	watch.Go(func() {
		select {
		case failure = <-t.fail:
			if !errors.Is(failure, io.EOF) { // what it has said before it hung up is still printed
				cancel()
			}
		case <-done:
		}
	})
	err := do(ctx)
	close(done)
	watch.Wait()
	if failure != nil {
		t.end(failure)
	}
	return err
}

// print sends part of a job. A printer that stands gets no more than it has,
// as if its buffer were full.
func (t *tunnel) print(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		if err := t.s.until(ctx, func() bool { return !t.s.last.offline }); err != nil {
			return err
		}
		if err := t.hold(ctx); err != nil {
			return err
		}
		n := min(len(b), 1024)
		if err := t.s.feed(ctx, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// hold takes the printer for a job, with the counter as the application knows
// it.
func (t *tunnel) hold(ctx context.Context) error {
	t.mu.Lock()
	holds, etb := t.holds, t.etb
	t.mu.Unlock()
	if holds {
		return nil
	}
	if err := t.s.acquire(ctx); err != nil {
		return err
	}
	t.s.occupy(true)
	if is := t.s.counter(); etb >= 0 && is != etb {
		if err := t.p.bring(ctx, t.s, etb); err != nil {
			t.s.occupy(false)
			t.s.release()
			return err
		}
	}
	t.mu.Lock()
	t.holds = true
	t.mu.Unlock()
	return nil
}

// rest gives the printer to others: the job is over.
func (t *tunnel) rest() {
	t.mu.Lock()
	holds := t.holds
	t.mu.Unlock()
	if !holds {
		return
	}
	etb := t.s.counter()
	t.mu.Lock()
	t.holds, t.etb = false, etb
	t.mu.Unlock()
	t.p.drawer.settled()
	t.s.occupy(false)
	t.s.release()
}
