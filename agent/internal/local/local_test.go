package local_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/local"
	"github.com/tillward/tillward/hal"
)

// fake is a printer, held by us, that remembers what it is given. It answers
// DLE EOT as a printer that is well.
type fake struct {
	mu     sync.Mutex
	paper  []byte
	fail   error
	status hal.Status
	block  chan struct{} // Print waits for it
	begun  chan struct{}
}

func (*fake) String() string { return "fake" }
func (*fake) Halt() error    { return nil }
func (*fake) Close() error   { return nil }
func (*fake) Info() hal.Info { return hal.Info{ID: "front", Category: hal.POSPrinter, Claim: hal.Own} }

func (f *fake) Status(context.Context) (hal.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status, nil
}

func (f *fake) took(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paper = append(f.paper, b...)
}

func (f *fake) has() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.paper)
}

func (f *fake) Tunnel(ctx context.Context, c io.ReadWriter) error {
	b := make([]byte, 512)
	for ctx.Err() == nil {
		n, err := c.Read(b)
		if bytes.HasPrefix(b[:n], []byte{0x10, 0x04}) {
			if _, err := c.Write([]byte{0x12}); err != nil {
				return err
			}
		} else {
			f.took(b[:n])
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fake) Print(ctx context.Context, job io.Reader) (hal.Job, error) {
	f.mu.Lock()
	fail, block := f.fail, f.block
	f.mu.Unlock()
	if fail != nil {
		return hal.Job{}, fail
	}
	b, err := io.ReadAll(job)
	if err != nil {
		return hal.Job{}, err
	}
	if block != nil {
		f.begun <- struct{}{}
		select {
		case <-block:
		case <-ctx.Done():
			return hal.Job{}, ctx.Err()
		}
	}
	if string(b) == "panic" {
		panic(string(b))
	}
	f.took(b)
	return hal.Job{Bytes: int64(len(b)), Cuts: bytes.Count(b, []byte{0x1d, 'V'}), Confirmed: true}, nil
}

// passing is the same printer with a driver that cannot tunnel.
type passing struct {
	hal.Device
	f *fake
}

func (p passing) Print(ctx context.Context, job io.Reader) (hal.Job, error) {
	return p.f.Print(ctx, job)
}

// shop is a server on sockets of its own.
type shop struct {
	*fake
	s            *local.Server
	cannotTunnel atomic.Bool
	dir          string
	log          *lines
	stop         func()
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func open(t *testing.T, change func(*local.Options)) *shop {
	t.Helper()
	dir, err := os.MkdirTemp("", "p") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &shop{fake: &fake{status: hal.Status{Health: hal.OK}}, dir: dir, log: &lines{}}
	o := local.Options{
		ID: "front", Print: "unix:" + dir + "/s/print", Proof: "unix:" + dir + "/s/proof",
		Printer: h.printer, Log: slog.New(slog.NewTextHandler(h.log, nil)),
	}
	if change != nil {
		change(&o)
	}
	h.s = local.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.s.Run(ctx) })
	h.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(h.stop)
	return h
}

func (h *shop) printer(context.Context) hal.Device {
	if h.cannotTunnel.Load() {
		return passing{h.fake, h.fake}
	}
	return h.fake
}

func (h *shop) path(name string) string { return h.dir + "/s/" + name }

// dial connects as soon as the socket is there.
func (h *shop) dial(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("unix", h.path(name))
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c.(*net.UnixConn)
		}
		if time.Now().After(deadline) {
			t.Fatal(err, h.log)
		}
		time.Sleep(time.Millisecond)
	}
}

type answer struct {
	Printed, Confirmed bool
	Bytes              int64
	Cuts               int
	Code, Error        string
}

// handIn prints for proof.
func (h *shop) handIn(t *testing.T, job string) answer {
	t.Helper()
	c := h.dial(t, "proof")
	if _, err := io.WriteString(c, job); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return read(t, c)
}

func read(t *testing.T, c net.Conn) (a answer) {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(b, []byte("\n")) != 1 {
		t.Fatalf("answer %q, want one line", b)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatalf("answer %q: %v", b, err)
	}
	return a
}

func (h *shop) stat(name string) float64 {
	for _, s := range h.s.Stats() {
		if s.Name == name {
			return s.Value
		}
	}
	return -1
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatal("never " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

const receipt = "\x1b@Thank you, and do come again. 4111 1111 1111 1111\n\x1dV\x00"

// TestTunnel holds that an application talks to the printer through the socket
// as if it held the cable, and that it may hang up and come again.
func TestTunnel(t *testing.T) {
	h := open(t, nil)
	for range 2 {
		c := h.dial(t, "print")
		if _, err := c.Write([]byte{0x10, 0x04, 0x01}); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || b[0] != 0x12 {
			t.Fatalf("status %x, %v", b, err)
		}
		if _, err := io.WriteString(c, receipt); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	eventually(t, "printed twice", func() bool { return h.has() == receipt+receipt })
	eventually(t, "counted", func() bool { return h.stat("M_PrintJobCount") == 2 })
	if h.stat("M_PrintRefusedCount") != 0 || h.stat("M_PrintJobFailedCount") != 0 {
		t.Errorf("stats %+v", h.s.Stats())
	}
}

// TestProof holds that whoever hands in a job is told what became of it, and
// that nothing of it is in the log.
func TestProof(t *testing.T) {
	h := open(t, nil)
	if a := h.handIn(t, receipt); !a.Printed || !a.Confirmed || a.Bytes != int64(len(receipt)) || a.Cuts != 1 || a.Code != "" {
		t.Errorf("a job that came out: %+v", a)
	}
	h.mu.Lock()
	h.fail = &hal.Error{Code: "E_OFFLINE", Op: "print"}
	h.status = hal.Status{Health: hal.Fault, Reason: "REC_EMPTY"}
	h.mu.Unlock()
	if a := h.handIn(t, receipt); a.Printed || a.Code != "REC_EMPTY" || a.Error == "" {
		t.Errorf("no paper: %+v", a)
	}
	h.mu.Lock()
	h.fail = &hal.Error{Code: "E_ILLEGAL", Op: "print"}
	h.mu.Unlock()
	if a := h.handIn(t, receipt); a.Printed || a.Code != "E_ILLEGAL" {
		t.Errorf("illegal: %+v", a)
	}
	h.mu.Lock()
	h.fail = nil
	h.mu.Unlock()
	if a := h.handIn(t, ""); a.Printed || a.Code != "E_ILLEGAL" || !strings.Contains(a.Error, "empty") {
		t.Errorf("an empty job: %+v", a)
	}
	if a := h.handIn(t, "panic"); a.Printed || a.Code != "M_DRIVER_PANIC" {
		t.Errorf("a driver that panics: %+v", a)
	}
	if a := h.handIn(t, receipt); !a.Printed || h.has() != receipt+receipt {
		t.Errorf("after all that: %+v, %d bytes on paper", a, len(h.has()))
	}
	if h.stat("M_PrintJobCount") != 5 || h.stat("M_PrintJobFailedCount") != 3 || h.stat("M_PrintRefusedCount") != 1 {
		t.Errorf("stats %+v", h.s.Stats())
	}
	if s := h.log.String(); strings.Contains(s, "4111") || strings.Contains(s, "Thank") {
		t.Errorf("a job is in the log: %s", s)
	}
}

// TestHalfAJob holds that what was not handed in to its end is not printed, nor
// what is larger than a job may be.
func TestHalfAJob(t *testing.T) {
	h := open(t, nil)
	c := h.dial(t, "proof")
	go func() { _, _ = io.Copy(c, io.LimitReader(zeros{}, local.MaxJob+1)); _ = c.CloseWrite() }()
	if a := read(t, c); a.Printed || a.Code != "E_ILLEGAL" || !strings.Contains(a.Error, "more than") {
		t.Errorf("too large: %+v", a)
	}
	c = h.dial(t, "proof")
	_, _ = io.WriteString(c, receipt)
	go h.stop()
	if a := read(t, c); a.Printed || a.Code != "E_BUSY" {
		t.Errorf("the agent ended meanwhile: %+v", a)
	}
	if h.has() != "" {
		t.Errorf("%d bytes were printed", len(h.has()))
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestOneAtATime holds that others wait, that few do, and that they are told.
func TestOneAtATime(t *testing.T) {
	h := open(t, nil)
	h.cannotTunnel.Store(true)
	h.fake.block, h.fake.begun = make(chan struct{}), make(chan struct{}, 9)
	answers := make(chan answer, 9)
	conns := []*net.UnixConn{}
	for range 5 {
		c := h.dial(t, "proof")
		conns = append(conns, c)
		go func() {
			_, _ = io.WriteString(c, receipt)
			_ = c.CloseWrite()
			line, err := bufio.NewReader(c).ReadString('\n')
			var a answer
			if err == nil {
				err = json.Unmarshal([]byte(line), &a)
			}
			if err != nil {
				a.Error = err.Error()
			}
			answers <- a
		}()
	}
	<-h.begun
	for _, socket := range []string{"proof", "print"} { // the first comes behind all five
		if b, err := io.ReadAll(h.dial(t, socket)); err != nil || len(b) != 0 {
			t.Errorf("one too many at %s got %q, %v; want an end", socket, b, err)
		}
	}
	if n := h.stat("M_PrintRefusedCount"); n != 2 {
		t.Errorf("%v that were turned away are counted, want 2", n)
	}
	close(h.block)
	for range conns {
		if a := <-answers; !a.Printed {
			t.Errorf("one that waited: %+v", a)
		}
	}
	if h.has() != strings.Repeat(receipt, 5) {
		t.Error("jobs were mixed")
	}
}

// TestFinishesAndComesBack holds that a job under way is finished when the
// agent ends, that the application sees an end and no reset, that the socket is
// gone, and there again with the next agent.
func TestFinishesAndComesBack(t *testing.T) {
	h := open(t, nil)
	talks := h.dial(t, "print")
	_, _ = io.WriteString(talks, receipt)
	eventually(t, "printed", func() bool { return h.has() == receipt })
	go h.stop()
	b, err := io.ReadAll(talks)
	if err != nil || len(b) != 0 {
		t.Errorf("the application got %q, %v, want an end", b, err)
	}
	h.stop()
	if _, err := os.Lstat(h.path("print")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	again := local.New(local.Options{ID: "front", Print: "unix:" + h.path("print"), Printer: func(context.Context) hal.Device { return h.fake }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = again.Run(ctx) }()
	_, _ = io.WriteString(h.dial(t, "print"), receipt)
	eventually(t, "printed again", func() bool { return h.has() == receipt+receipt })
	cancel()
	<-done
}

// TestNoPrinter holds that an application sees an end while the printer is not open.
func TestNoPrinter(t *testing.T) {
	h := open(t, func(o *local.Options) { o.Printer = func(context.Context) hal.Device { return nil } })
	if b, err := io.ReadAll(h.dial(t, "print")); err != nil || len(b) != 0 {
		t.Errorf("got %q, %v", b, err)
	}
	if a := h.handIn(t, receipt); a.Printed || a.Code != "E_OFFLINE" {
		t.Errorf("got %+v", a)
	}
}

// TestSockets holds that a socket has the rights it was given from its first
// moment, and that only what a dead process has left makes room for it.
func TestSockets(t *testing.T) {
	h := open(t, func(o *local.Options) { o.Mode, o.Proof = 0o600, "" })
	_ = h.dial(t, "print").Close()
	is, err := os.Lstat(h.path("print"))
	if err != nil || is.Mode().Perm() != 0o600 {
		t.Errorf("rights %v, %v", is.Mode(), err)
	}
	if left, _ := filepath.Glob(h.dir + "/s/.print*"); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	h.stop()

	// A socket that nobody answers on any more is replaced.
	l, err := net.Listen("unix", h.path("print"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	run := func() (*lines, func()) {
		log := &lines{}
		s := local.New(local.Options{ID: "front", Print: "unix:" + h.path("print"), Printer: func(context.Context) hal.Device { return h.fake }, Log: slog.New(slog.NewTextHandler(log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Run(ctx) }()
		return log, func() { cancel(); <-done }
	}
	_, stop := run()
	_, _ = io.WriteString(h.dial(t, "print"), receipt)
	eventually(t, "printed", func() bool { return h.has() == receipt })

	// One that somebody answers on, and a file that is no socket, are not.
	log, stop2 := run()
	eventually(t, "refused", func() bool { return strings.Contains(log.String(), "in use by another program") })
	stop2()
	_ = h.dial(t, "print").Close() // the first one is still there
	stop()
	if err := os.WriteFile(h.path("print"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, stop = run()
	eventually(t, "refused", func() bool { return strings.Contains(log.String(), "is no socket") })
	stop()
	if b, err := os.ReadFile(h.path("print")); err != nil || string(b) != "mine" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// TestTCP prints over loopback.
func TestTCP(t *testing.T) {
	h := open(t, func(o *local.Options) { o.Print, o.Proof = "tcp:127.7.9.100:9100", "" })
	eventually(t, "open", func() bool {
		c, err := net.Dial("tcp", "127.7.9.100:9100")
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = io.WriteString(c, receipt)
		return err == nil
	})
	eventually(t, "printed", func() bool { return h.has() == receipt })
}

// TestAddresses holds that no socket is open to another box.
func TestAddresses(t *testing.T) {
	for at, want := range map[string]string{
		"unix:/run/tillward/print/front": "", "tcp:127.0.0.1:9100": "", "tcp:127.3.0.1:0": "", "tcp:[::1]:9100": "",
		"tcp:0.0.0.0:9100": "this box alone", "tcp::9100": "this box alone", "tcp:192.0.2.1:9100": "this box alone", "tcp:[::]:9100": "this box alone",
		"tcp:localhost:9100": "this box alone", "127.0.0.1:9100": "unix:PATH, or tcp", "tcp:127.0.0.1": "unix:PATH, or tcp", "tcp:127.0.0.1:99": "from 1024",
		"tcp:127.0.0.1:http": "unix:PATH", "unix:front": "absolute path", "unix:/run/../x/y": "absolute path", "unix:/front": "folder of its own",
		"unix:/run/" + strings.Repeat("x", 90): "at most", "": "unix:PATH",
	} {
		err := local.CheckAddress(at, false)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", at, err, want)
		}
	}
	if err := local.CheckAddress("tcp:127.0.0.1:9100", true); err == nil {
		t.Error("proof over TCP is taken")
	}
}

// served is a server with one application on a pipe, in a bubble of time.
func served(t *testing.T, tunnels bool, body func(t *testing.T, h *shop, c net.Conn, end func())) {
	synctest.Test(t, func(t *testing.T) {
		h := &shop{fake: &fake{}, log: &lines{}}
		h.cannotTunnel.Store(!tunnels)
		h.s = local.New(local.Options{ID: "front", Printer: h.printer, Log: slog.New(slog.NewTextHandler(h.log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		theirs, ours := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { h.s.Tunnel(ctx, ours) })
		body(t, h, theirs, cancel)
		_ = theirs.Close()
		wg.Wait()
	})
}

// TestWebPage holds that a browser that was told to talk to the printer gets
// nothing printed; the twin is every other test, whose jobs are.
func TestWebPage(t *testing.T) {
	for _, first := range []string{"POST / HTTP/1.1\r\nHost: 127.0.0.1:9100\r\n\r\nbuy now", "GET /", "OPTIONS *", "\x16\x03\x01\x02\x00"} {
		served(t, true, func(t *testing.T, h *shop, c net.Conn, _ func()) {
			_, _ = io.WriteString(c, first)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%q: got %v, want an end", first, err)
			}
			synctest.Wait()
			if h.has() != "" || h.stat("M_PrintRefusedCount") != 1 || !strings.Contains(h.log.String(), "web page") {
				t.Errorf("%q: printed %q; %s", first, h.has(), h.log)
			}
		})
	}
}

// TestTimes holds that silence, a flood, and a queue end.
func TestTimes(t *testing.T) {
	t.Run("silence", func(t *testing.T) {
		served(t, true, func(t *testing.T, h *shop, c net.Conn, _ func()) {
			_, _ = io.WriteString(c, receipt)
			began := time.Now()
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != local.Idle {
				t.Errorf("got %v after %s", err, time.Since(began))
			}
			synctest.Wait()
			if h.has() != receipt || h.stat("M_PrintJobCount") != 1 || h.stat("M_PrintJobFailedCount") != 0 {
				t.Errorf("stats %+v", h.s.Stats())
			}
		})
	})
	t.Run("flood", func(t *testing.T) {
		served(t, true, func(t *testing.T, h *shop, c net.Conn, _ func()) {
			n, err := io.Copy(c, zeros{})
			if err == nil || n > local.MaxBurst+1<<16 {
				t.Errorf("%d bytes were taken, %v", n, err)
			}
			synctest.Wait()
			if h.stat("M_PrintJobFailedCount") != 1 {
				t.Errorf("stats %+v", h.s.Stats())
			}
		})
	})
	t.Run("jobs with pauses", func(t *testing.T) {
		served(t, true, func(t *testing.T, h *shop, c net.Conn, _ func()) {
			for range 12 {
				_, _ = io.Copy(c, io.LimitReader(zeros{}, local.MaxBurst/10))
				<-time.After(3 * time.Second)
				_, _ = c.Write([]byte{0x10, 0x04, 1}) // a question is no job
				_, _ = c.Read(make([]byte, 1))
				<-time.After(3 * time.Second)
			}
			_ = c.Close()
			synctest.Wait()
			if h.stat("M_PrintJobCount") != 12 {
				t.Errorf("stats %+v", h.s.Stats())
			}
		})
	})
	t.Run("the one that waits gets its turn", func(t *testing.T) {
		served(t, false, func(t *testing.T, h *shop, c net.Conn, _ func()) {
			_, _ = io.WriteString(c, receipt)
			synctest.Wait()
			began := time.Now()
			theirs, ours := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { h.s.Tunnel(t.Context(), ours) })
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != local.YieldIn {
				t.Errorf("the silent one: %v after %s", err, time.Since(began))
			}
			_, _ = io.WriteString(theirs, receipt)
			_ = theirs.Close()
			wg.Wait()
			if h.has() != receipt+receipt {
				t.Error("the one that waited did not print")
			}
		})
	})
	t.Run("and not from one that prints", func(t *testing.T) {
		served(t, false, func(t *testing.T, h *shop, c net.Conn, _ func()) {
			_, _ = io.WriteString(c, receipt)
			synctest.Wait()
			began := time.Now()
			theirs, ours := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { h.s.Tunnel(t.Context(), ours) })
			gone := make(chan time.Duration, 1)
			go func() { _, _ = theirs.Read(make([]byte, 1)); gone <- time.Since(began) }()
			for range 40 {
				<-time.After(time.Second)
				if _, err := io.WriteString(c, "x"); err != nil {
					t.Fatalf("the one that prints was cut off: %v", err)
				}
			}
			if d := <-gone; d != local.Patience {
				t.Errorf("the one that waited was let go after %s", d)
			}
			wg.Wait()
		})
	})
	t.Run("a job is finished", func(t *testing.T) {
		served(t, true, func(t *testing.T, h *shop, c net.Conn, end func()) {
			for i := range 10 {
				if _, err := io.WriteString(c, receipt); err != nil {
					t.Fatal(err)
				}
				if i == 3 {
					end()
				}
				<-time.After(100 * time.Millisecond)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want an end", err)
			}
			if h.has() != strings.Repeat(receipt, 10) {
				t.Errorf("%d bytes of ten receipts were printed", len(h.has()))
			}
		})
	})
}

// pipes is a listener whose programs come over a channel.
type pipes chan net.Conn

func (l pipes) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l pipes) Close() error { return nil }
func (pipes) Addr() net.Addr { return &net.UnixAddr{} }

// TestMakesRoom holds that programs which leave their connections open do not
// keep others out, and that one which still says something is not cut off.
func TestMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &shop{fake: &fake{}, log: &lines{}}
		h.s = local.New(local.Options{ID: "front", Printer: h.printer, Log: slog.New(slog.NewTextHandler(h.log, nil))})
		l := make(pipes)
		var wg sync.WaitGroup
		wg.Go(func() { h.s.Accept(t.Context(), l) })
		come := func() net.Conn {
			theirs, ours := net.Pipe()
			l <- ours
			return theirs
		}
		held := func(c net.Conn) bool {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			_, err := c.Read(make([]byte, 1))
			return errors.Is(err, os.ErrDeadlineExceeded)
		}
		var open []net.Conn
		for range 5 {
			open = append(open, come())
			<-time.After(time.Second)
		}
		if c := come(); held(c) || h.stat("M_PrintRefusedCount") != 1 {
			t.Error("a sixth was let in though nobody has been silent for long")
		}
		<-time.After(local.YieldIn)
		_, _ = io.WriteString(open[0], "\n")
		late := come()
		_, _ = io.WriteString(late, receipt)
		for i, c := range open {
			if is := held(c); is != (i != 1) {
				t.Errorf("connection %d is held: %v; the second has been silent for longest", i, is)
			}
		}
		if !held(late) || h.has() != "\n"+receipt || h.stat("M_PrintRefusedCount") != 1 {
			t.Errorf("the one that came has printed %q", h.has())
		}
		for _, c := range append(open, late) {
			_ = c.Close()
		}
		close(l)
		wg.Wait()
		h.s.Wait()
	})
}

// TestHandsInForEver holds that a job which never ends holds no seat for ever.
func TestHandsInForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &shop{fake: &fake{}, log: &lines{}}
		h.s = local.New(local.Options{ID: "front", Printer: h.printer})
		theirs, ours := net.Pipe()
		began := time.Now()
		var writer sync.WaitGroup
		writer.Go(func() {
			for {
				if _, err := theirs.Write([]byte("x")); err != nil {
					return
				}
				<-time.After(5 * time.Second)
			}
		})
		go h.s.Proof(t.Context(), ours)
		a := bufio.NewReader(theirs)
		line, err := a.ReadString('\n')
		if err != nil || !strings.Contains(line, "E_ILLEGAL") || time.Since(began) > 2*time.Minute || h.has() != "" {
			t.Errorf("after %s: %q, %v; printed %q", time.Since(began), line, err, h.has())
		}
		_ = theirs.Close()
		writer.Wait() // time stands still when this returns
	})
}

// TestGroup holds that the socket belongs to the group that is named, and that
// there is none rather than one with other rights.
func TestGroup(t *testing.T) {
	g, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		t.Skip(err)
	}
	h := open(t, func(o *local.Options) { o.Group = g.Name })
	_ = h.dial(t, "print").Close()
	is, err := os.Lstat(h.path("print"))
	if err != nil || is.Sys().(*syscall.Stat_t).Gid != uint32(os.Getgid()) || is.Mode().Perm() != 0o660 {
		t.Errorf("%+v, %v", is, err)
	}
	h = open(t, func(o *local.Options) { o.Group = "nobody-has-such-a-group" })
	eventually(t, "said", func() bool { return strings.Contains(h.log.String(), "nobody-has-such-a-group") })
	if _, err := os.Lstat(h.path("print")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket without its group is there: %v", err)
	}
}
