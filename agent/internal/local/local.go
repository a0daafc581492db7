// Package local is the door at which programs of this box print: sockets of a
// printer that the agent holds. On one of them the point-of-sale application
// talks to the printer as if it held the cable, ESC/POS or what else it speaks;
// on the other it hands in a job and is told whether that came out.
//
// It owns the sockets, who may wait at them and for how long. It promises that
// one program prints at a time and nobody waits for ever; that a job is bounded,
// passed on and forgotten - it is never logged, counted by its content or kept;
// that nothing but this box is served, and no web page that was told to talk to
// it; that a socket is there again as soon as the agent is, with the rights that
// the configuration names; and that a job under way is finished before the agent
// ends. It knows no printer: the driver prints.
package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	waiters   = 4                // programs that may wait while one prints
	patience  = 30 * time.Second // of those that wait
	idle      = 5 * time.Minute  // a connection that says nothing for longer is closed
	handIn    = 10 * time.Second // a pause while a job is handed in for proof
	handAll   = time.Minute      // all of that
	roomIn    = 2 * time.Second  // a connection may take to make room
	printIn   = 2 * time.Minute  // a job with proof
	answerIn  = 10 * time.Second
	finish    = 5 * time.Second // a job under way may take when the agent ends
	maxJob    = 2 << 20         // bytes of a job with proof
	maxBurst  = 16 << 20        // bytes without a pause: a program that is out of its mind empties the roll
	pause     = 2 * time.Second // between two jobs on one connection
	leastJob  = 32              // bytes; less is a question
	againMax  = 30 * time.Second
	yieldIn   = 10 * time.Second // a connection that is silent for so long makes room for one that waits
	lateIn    = 20 * time.Millisecond
	drainTime = 200 * time.Millisecond
)

// Options are the sockets of one printer.
type Options struct {
	ID string // of the printer
	// Print is where an application talks to it, unix:PATH or tcp:HOST:PORT of a
	// loopback address; Proof where a job is handed in for proof, unix:PATH. Empty:
	// there is none. See CheckAddress.
	Print, Proof string
	Mode         fs.FileMode // of unix sockets; 0: 0660
	Group        string      // of unix sockets; empty: the agent's own
	// Printer is the device: a hal.Tunneler or hal.Passthrough. It may wait for one
	// that is being opened; nil means that it is not open.
	Printer func(ctx context.Context) hal.Device
	Log     *slog.Logger
}

// Server serves the sockets of one printer. Make it with New.
type Server struct {
	o     Options
	epoch int64
	seats chan struct{} // taken by whoever prints or waits
	turn  chan struct{} // taken by whoever prints
	want  chan struct{} // somebody began to wait for it
	wg    sync.WaitGroup

	waiting atomic.Int32

	mu      sync.Mutex
	tunnels map[*app]bool // that are open; false: asked to end

	jobs, failed, refused atomic.Uint64
	said                  atomic.Int64 // when a refusal was logged last
}

// New makes a server; Run opens the sockets.
func New(o Options) *Server {
	if o.Mode == 0 {
		o.Mode = 0o660
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, epoch: time.Now().Unix(), seats: make(chan struct{}, 1+waiters), turn: make(chan struct{}, 1), want: make(chan struct{}, 1), tunnels: map[*app]bool{}}
}

// Stats are what the server counts: jobs, those that failed, and programs that
// were turned away. A job on the first socket is what comes without a pause of
// two seconds.
func (s *Server) Stats() []hal.Stat {
	count := func(name string, v *atomic.Uint64) hal.Stat {
		return hal.Stat{Name: name, Value: float64(v.Load()), Epoch: s.epoch}
	}
	return []hal.Stat{count("M_PrintJobCount", &s.jobs), count("M_PrintJobFailedCount", &s.failed), count("M_PrintRefusedCount", &s.refused)}
}

// Run serves until ctx ends and the job under way is finished. A socket that
// cannot be opened is said so and tried again.
func (s *Server) Run(ctx context.Context) error {
	var sockets sync.WaitGroup
	for _, socket := range []struct {
		at    string
		serve func(context.Context, net.Conn)
	}{{s.o.Print, s.tunnel}, {s.o.Proof, s.proof}} {
		if socket.at != "" {
			sockets.Go(func() { s.keep(ctx, socket.at, socket.serve) })
		}
	}
	sockets.Wait()
	s.wg.Wait()
	return ctx.Err()
}

// keep holds one socket open.
func (s *Server) keep(ctx context.Context, at string, serve func(context.Context, net.Conn)) {
	said := ""
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, againMax) {
		l, err := listen(ctx, at, s.o.Mode, s.o.Group)
		if err == nil {
			s.o.Log.Info("print socket is open", slog.String("printer", s.o.ID), slog.String("at", at))
			said, wait = "", time.Second
			err = s.accept(ctx, l, serve)
		}
		if ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			s.o.Log.Error("print socket", slog.String("printer", s.o.ID), slog.String("at", at), slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// accept lets programs in until ctx ends or the socket fails.
func (s *Server) accept(ctx context.Context, l net.Listener, serve func(context.Context, net.Conn)) error {
	stop := after(ctx, func() {
		if u, ok := l.(*socket); ok {
			u.hide()
		}
		if d, ok := l.(interface{ SetDeadline(time.Time) error }); ok { // who has come already is let in, and sent away
			_ = d.SetDeadline(time.Now().Add(lateIn))
		}
	})
	defer stop()
	defer l.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		seated := false
		select {
		case s.seats <- struct{}{}:
			seated = true
		default:
		}
		s.wg.Go(func() {
			defer part(c)
			if !seated && !s.room(ctx) {
				s.refuse("too many programs want to print")
				return
			}
			defer func() { <-s.seats }()
			serve(ctx, c)
		})
	}
}

// room asks the connection to end that has been silent for longest, and takes
// its seat: programs that left theirs open must not keep the till from printing.
func (s *Server) room(ctx context.Context) bool {
	s.mu.Lock()
	var quietest *app
	silence := yieldIn
	for a, stays := range s.tunnels {
		if d := a.resting(); stays && d >= silence {
			quietest, silence = a, d
		}
	}
	if quietest != nil {
		s.tunnels[quietest] = false
	}
	s.mu.Unlock()
	if quietest == nil {
		return false
	}
	quietest.finish()
	late := time.NewTimer(roomIn)
	defer late.Stop()
	select {
	case s.seats <- struct{}{}:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

// enter lets room know of a connection; the caller leaves.
func (s *Server) enter(a *app) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tunnels[a] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.tunnels, a)
	}
}

// after runs do when ctx ends. The function that it returns calls that off, or
// waits for do to end.
func after(ctx context.Context, do func()) (off func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(done); do() })
	return func() {
		if !stop() {
			<-done
		}
	}
}

// refuse counts who is turned away, and says so now and then.
func (s *Server) refuse(why string) {
	s.refused.Add(1)
	now := time.Now().Unix()
	if last := s.said.Load(); now-last >= 60 && s.said.CompareAndSwap(last, now) {
		s.o.Log.Warn("a program may not print", slog.String("printer", s.o.ID), slog.String("reason", why))
	}
}

// part hangs up so that the other side sees an end and no reset: what it still
// sends is read for a moment.
func part(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		_ = c.SetReadDeadline(time.Now().Add(drainTime))
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				break
			}
		}
	}
	_ = c.Close()
}

var errBusy = errors.New("another program prints")

// wait takes the turn to print; the caller gives it back. A driver that tunnels
// lets jobs take turns by itself, and lets others print between them.
func (s *Server) wait(ctx context.Context, d hal.Device) (give func(), err error) {
	if _, ok := d.(hal.Tunneler); ok {
		return func() {}, nil
	}
	give = func() { <-s.turn }
	select {
	case s.turn <- struct{}{}:
		return give, nil
	default:
	}
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	select {
	case s.want <- struct{}{}:
	default:
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case s.turn <- struct{}{}:
		return give, nil
	case <-late.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// printer is the device, or nil when it is not open in time.
func (s *Server) printer(ctx context.Context) hal.Device {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	return s.o.Printer(ctx)
}

// yield ends the connection when it is silent and somebody waits: what is open
// all day and used now and then must not keep all others out. An application has
// to cope with that, since printers themselves hang up on who is silent.
func (s *Server) yield(ctx context.Context, a *app) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.want:
		}
		for s.waiting.Load() > 0 {
			left := yieldIn - a.silent()
			if left <= 0 {
				a.finish()
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(left):
			}
		}
	}
}
