package escpos

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	idleFor   = time.Second      // until another job may begin
	maxUnread = 64               // answers that an application may leave unread
	readAhead = 4096             // bytes
	stallFor  = 30 * time.Second // for the rest of a command
)

var (
	errUnread  = errors.New("the application does not read its answers")
	errStalled = errors.New("the application has stopped within a command")
)

// tunnel lets an application talk to the printer.
type tunnel struct {
	p    *printer
	s    *session
	app  io.ReadWriter
	out  chan []byte
	over chan struct{} // closed when the tunnel has ended
	fail chan error

	mu   sync.Mutex
	asb  byte // what its GS a wants to be told of
	sent [4]byte
	due  bool // the frame that answers GS a itself
}

// Tunnel implements hal.Tunneler. Jobs go through in order; one application
// prints at a time, and others wait until its job is over. Questions in real
// time are answered at once, those that printers answer in their turn are
// passed on, and GS a is answered for this application alone: what the driver
// itself is told of stays as it is. An application that does not read its
// answers, or whose printer is lost, is hung up.
func (p *printer) Tunnel(ctx context.Context, app io.ReadWriter) error {
	const op = "tunnel"
	if p.claim != hal.Own {
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &tunnel{p: p, s: s, app: app, out: make(chan []byte, maxUnread), over: make(chan struct{}), fail: make(chan error, 2)}
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
	var twice [2][readAhead]byte // one is read into while the other is passed on
	for i := 0; ; i++ {
		b := twice[i%2][:]
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
	gone := false
	for {
		select {
		case b := <-t.out:
			if deadline != nil {
				_ = deadline.SetWriteDeadline(time.Now().Add(t.p.timeout))
			}
			if gone {
				continue
			}
			if _, err := t.app.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
				t.end(errUnread)
				return
			} else if err != nil {
				gone = true // what it has said before is still to be read
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

// say tells the application something; it never waits. False when it is not
// told any more.
func (t *tunnel) say(b []byte) bool {
	select {
	case t.out <- b:
		return true
	default:
		t.end(errUnread)
		return false
	}
}

// What each bit of GS a watches, by the byte of the frame.
var watched = map[byte][3]byte{
	0x01: {0x04, 0, 0},    // drawer
	0x02: {0x68, 0x01, 0}, // on-line or not
	0x04: {0, 0x6c, 0},    // errors
	0x08: {0, 0, 0x0f},    // paper
	0x40: {0, 0x02, 0},    // feed button
}

// frame tells the application of a change, if it wanted to know.
func (t *tunnel) frame(f [4]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.due {
		t.due, t.sent = false, f
		t.say(f[:])
		return
	}
	for bit, masks := range watched {
		for i, m := range masks {
			if t.asb&bit != 0 && (f[i]^t.sent[i])&m != 0 {
				t.sent = f
				t.say(f[:])
				return
			}
		}
	}
}

// subscribe is GS a of the application. Like the printer itself it tells the
// status once the printer comes to the command, which one that is off-line does
// not; what is switched on in the printer stays what the driver needs.
func (t *tunnel) subscribe(ctx context.Context, n byte) error {
	t.mu.Lock()
	t.asb, t.due = n, n != 0
	t.mu.Unlock()
	if n == 0 {
		return nil
	}
	return t.pose(ctx, nil, armed)
}

// work passes on what comes, and gives the printer to others in between.
func (t *tunnel) work(ctx context.Context, in <-chan []byte) error {
	j := &stream{p: t.p, s: t.s, stuck: func() error { return nil }}
	var give func()
	rest := func() { // the job is over
		if give != nil {
			t.prove()
			t.s.print(nil)
			give()
			give = nil
		}
	}
	defer rest()
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.p.timeout)
		defer cancel()
		_ = j.finish(last)
	}()
	j.begin = func(ctx context.Context) error {
		if give != nil {
			return nil
		}
		var err error
		if give, err = t.queue(ctx); err != nil {
			return err
		}
		t.s.print(t)
		if t.p.queries() == "" {
			return nil
		}
		// A job may come before the connection was armed: what stops it would not be
		// told, and while the job has a command half way nobody can ask.
		if err = t.s.arm(ctx); errors.Is(err, errBusy) {
			return nil
		}
		return err
	}
	j.meet = func(ctx context.Context, k kind, cmd []byte) (bool, error) {
		if k == urgent {
			j.note()
		}
		return t.meet(ctx, k, bytes.Clone(cmd))
	}
	heard := time.Now()
	idle := time.NewTimer(idleFor)
	defer idle.Stop()
	for {
		select {
		case b := <-in:
			if err := t.during(ctx, func(ctx context.Context) error { return j.pass(ctx, b) }); err != nil {
				return err
			}
			heard = time.Now()
			idle.Reset(idleFor)
		case <-idle.C:
			switch {
			case j.between():
				rest()
			case time.Since(heard) > stallFor:
				return errStalled
			}
			idle.Reset(idleFor)
		case err := <-t.fail:
			return err
		case <-t.s.lost:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
			if errors.Is(failure, errUnread) { // else what it has said before it hung up is still printed
				cancel()
			}
		case <-t.s.lost:
			cancel()
		case <-done:
		}
	})
	err := do(ctx)
	close(done)
	watch.Wait()
	if failure != nil {
		t.end(failure)
	}
	select {
	case <-t.s.lost:
		return net.ErrClosed
	default:
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) { // which the reader has not seen yet
		return net.ErrClosed
	}
	return err
}

// queue waits until no other job is printed, for as long as the application
// has the patience.
func (t *tunnel) queue(ctx context.Context) (func(), error) {
	select {
	case t.p.jobs <- struct{}{}:
		return func() { <-t.p.jobs }, nil
	case <-t.s.lost:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// meet deals with what is no plain part of a job.
func (t *tunnel) meet(ctx context.Context, k kind, cmd []byte) (bool, error) {
	switch k {
	case statusOn:
		return false, t.subscribe(ctx, cmd[2])
	case realtime:
		return false, t.realtime(ctx, cmd)
	case query:
		return false, t.pose(ctx, &question{kind: answerTo(cmd), to: func(u unit) { t.say(u.bytes()) }}, cmd)
	case urgent:
		return false, t.pose(ctx, nil, cmd)
	}
	return true, nil
}

// pose sends a command between two commands of whoever prints.
func (t *tunnel) pose(ctx context.Context, q *question, cmd []byte) error {
	if err := t.s.acquire(ctx); err != nil {
		return err
	}
	defer t.s.release()
	for {
		err := t.s.send(q, cmd...)
		if !errors.Is(err, errBusy) {
			return err
		}
		if len(t.s.tail) > 0 { // it is on its way
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// answerTo tells the kind of the answer to a question that is answered in its
// turn.
func answerTo(cmd []byte) int {
	if cmd[0] == gs && (cmd[1] == 'g' || cmd[1] == 'I' && cmd[2] >= 65) {
		return blockAnswer
	}
	return plainAnswer
}

// realtime answers DLE EOT n: as the printer does now or, when somebody's job
// is in the way, from what is known of it. What is not known is not answered.
func (t *tunnel) realtime(ctx context.Context, cmd []byte) error {
	within, cancel := context.WithTimeout(ctx, min(t.p.timeout, glanceFor))
	defer cancel()
	if asked := strings.IndexByte(t.p.queries(), cmd[2]+'0') >= 0; asked && t.s.acquire(within) == nil {
		err := t.s.send(&question{kind: realtimeAnswer, to: func(u unit) { t.say(u.bytes()) }}, cmd...)
		t.s.release()
		if !errors.Is(err, errBusy) {
			return err
		}
	}
	t.s.mu.Lock()
	b, ok := t.s.known.answer(cmd[2])
	t.s.mu.Unlock()
	if ok && t.p.track.Status().Power != hal.PowerOffOffline {
		t.say([]byte{b})
	}
	return nil
}

// prove finds out when the job that is over has come out, without waiting.
func (t *tunnel) prove() {
	mark := t.p.handed()
	if !t.p.answers.Load() || !t.s.asks() {
		t.p.settled(mark, false)
		return
	}
	q := t.p.proving()
	select {
	case t.s.turn <- struct{}{}:
		defer t.s.release()
		_ = t.s.send(&question{kind: q.kind, to: func(unit) { t.p.settled(mark, true) }}, q.cmd...)
	default: // the next job has begun; what proves that proves this
	}
}

// join lets a tunnel be told of frames.
func (s *session) join(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ears = append(s.ears, t)
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

// print notes whose job it is that is being printed.
func (s *session) print(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.printing = t
}
