package emulator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/simulator/child"
)

// ErrNoPCSCD means that no pcscd can be had here: a program is missing, or the
// right to give it a /run and a network of its own.
var ErrNoPCSCD = errors.New("no isolated pcscd: apt-get install pcscd vsmartcard-vpcd, and run as root")

// vpcd is the driver of the virtual reader, where Debian and Ubuntu put it.
var vpcdPaths = []string{
	"/usr/lib/pcsc/drivers/serial/libifdvpcd.so",
	"/usr/lib/*/pcsc/drivers/serial/libifdvpcd.so",
}

const (
	slotsPerDaemon = 16 // PCSCLITE_MAX_READERS_CONTEXTS
	startWithin    = 20 * time.Second
	firstPort      = 35963 // the usual one of the virtual reader
)

// PCSCD is a real pcscd with virtual readers, apart from the one that the
// machine may run: it has a /run and a network of its own, and of both only its
// socket is seen from outside. It sees no USB reader.
type PCSCD struct {
	daemons []*daemon
	readers []Reader
}

// Reader is one virtual reader.
type Reader struct {
	Socket string // of its pcscd
	Name   string // as pcscd calls it
	Card   *Card
}

// daemon is one pcscd process.
type daemon struct {
	dir    string
	run    string // folder that it has as /run/pcscd
	cards  []*Card
	output bytes.Buffer
	end    context.CancelFunc // of the cards
	wg     sync.WaitGroup

	mu      sync.Mutex
	now     *child.Child // nil: off
	network *os.File
}

// StartPCSCD starts as many pcscd processes as it takes for that many readers,
// with their files in dir, and returns when they answer. Where none can be had
// the error is ErrNoPCSCD.
func StartPCSCD(ctx context.Context, dir string, readers int) (_ *PCSCD, err error) {
	lib, err := findVPCD()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("pcscd folder: %w", err)
	}
	p := &PCSCD{}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	for i := 0; len(p.readers) < readers; i++ {
		n := min(slotsPerDaemon, readers-len(p.readers))
		d, names, err := newDaemon(filepath.Join(dir, fmt.Sprint(i)), lib, n)
		if d != nil {
			p.daemons = append(p.daemons, d)
		}
		if err != nil {
			return nil, err
		}
		if err := d.start(ctx); err != nil {
			return nil, err
		}
		for j := range n {
			p.readers = append(p.readers, Reader{Socket: d.socket(), Name: names[j], Card: d.cards[j]})
		}
	}
	return p, nil
}

func findVPCD() (string, error) {
	for _, program := range []string{"pcscd", "mount", "sh"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%w (%s is missing)", ErrNoPCSCD, program)
		}
	}
	for _, pattern := range vpcdPaths {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("%w (vsmartcard-vpcd is missing)", ErrNoPCSCD)
}

// Reader returns reader i, from 0.
func (p *PCSCD) Reader(i int) Reader { return p.readers[i] }

// Restart stops and starts every daemon, as a package update does.
func (p *PCSCD) Restart(ctx context.Context) error {
	p.halt()
	for _, d := range p.daemons {
		if err := d.start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Halt stops the daemons; Restart brings them back. The cards stay.
func (p *PCSCD) Halt() { p.halt() }

func (p *PCSCD) halt() {
	for _, d := range p.daemons {
		d.stop()
	}
}

// Freeze makes the daemons hang: they take what they are told and do not answer.
func (p *PCSCD) Freeze(on bool) {
	signal := syscall.SIGCONT
	if on {
		signal = syscall.SIGSTOP
	}
	for _, d := range p.daemons {
		d.mu.Lock()
		if d.now != nil {
			_ = d.now.Signal(signal)
		}
		d.mu.Unlock()
	}
}

// Stop ends daemons and cards, and waits.
func (p *PCSCD) Stop() {
	p.halt()
	for _, d := range p.daemons {
		d.end()
		d.wg.Wait()
		if !strings.HasPrefix(d.run, d.dir) {
			_ = os.RemoveAll(d.run)
		}
	}
}

// newDaemon prepares the folder of a daemon with n readers. The reader driver
// keeps its slots in static variables, so each pair of slots gets a copy of it.
func newDaemon(dir, lib string, n int) (*daemon, []string, error) {
	d := &daemon{dir: dir, run: socketFolder(dir), end: func() {}}
	for _, sub := range []string{filepath.Join(dir, "conf"), filepath.Join(dir, "usb"), d.run} {
		if err := os.MkdirAll(sub, 0o750); err != nil {
			return d, nil, fmt.Errorf("pcscd folder: %w", err)
		}
	}
	code, err := os.ReadFile(lib)
	if err != nil {
		return d, nil, fmt.Errorf("virtual reader: %w", err)
	}
	play, end := context.WithCancel(context.Background())
	d.end = end
	var names []string
	var conf strings.Builder
	for pair := range (n + 1) / 2 {
		port := firstPort + 2*pair
		for p := port; p < port+2; p++ {
			c := NewCard(func(ctx context.Context) (net.Conn, error) { return d.dial(ctx, p) })
			d.cards = append(d.cards, c)
			d.wg.Go(func() { c.Run(play) })
		}
		driver := filepath.Join(dir, fmt.Sprintf("reader%d.so", pair))
		if err := os.WriteFile(driver, code, 0o700); err != nil { // #nosec G306 -- a program
			return d, nil, fmt.Errorf("virtual reader: %w", err)
		}
		name := fmt.Sprintf("Tillward virtual reader %d", pair)
		names = append(names, name+" 00 00", name+" 00 01")
		fmt.Fprintf(&conf, "FRIENDLYNAME \"%s\"\nDEVICENAME /dev/null:%d\nLIBPATH %s\nCHANNELID 0\n\n", name, port, driver)
	}
	if err := os.WriteFile(filepath.Join(dir, "conf", "readers"), []byte(conf.String()), 0o600); err != nil {
		return d, nil, fmt.Errorf("pcscd configuration: %w", err)
	}
	return d, names, nil
}

// socketFolder is a folder below dir for a pcscd's socket, or another one where
// the path would be too long: it has 108 bytes at most [unix(7)].
func socketFolder(dir string) string {
	run := filepath.Join(dir, "run")
	if len(run) < 85 {
		return run
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(os.TempDir(), fmt.Sprintf("tillward-pcscd-%x", sum[:8]))
}

func (d *daemon) socket() string { return filepath.Join(d.run, "pcscd.comm") }

// start runs pcscd in a mount namespace of its own. Its folder is bound to
// /run/pcscd there, so its socket is seen from outside in that folder.
func (d *daemon) start(ctx context.Context) error {
	_ = os.Remove(d.socket())
	_ = os.Remove(filepath.Join(d.run, "pcscd.pid"))
	// Not CommandContext: the daemon outlives the call that started it.
	cmd := exec.Command("sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/pcscd && mount --bind . /run/pcscd &&"+
		" exec pcscd --foreground -c \"$1\"", "sh", filepath.Join(d.dir, "conf"))
	cmd.Dir = d.run
	cmd.Env = append(os.Environ(), "PCSCLITE_HP_DROPDIR="+filepath.Join(d.dir, "usb"))
	d.output.Reset()
	cmd.Stdout, cmd.Stderr = &d.output, &d.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	c, err := child.Start(cmd)
	if err != nil {
		return fmt.Errorf("%w (%v)", ErrNoPCSCD, err) //nolint:errorlint // one sentinel for all of it
	}
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.PID()))
	d.mu.Lock()
	d.now, d.network = c, network
	d.mu.Unlock()
	if err == nil {
		err = within(network, loopbackUp)
	}
	if err != nil {
		d.stop()
		return fmt.Errorf("network of pcscd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !d.answers(ctx) {
		select {
		case <-c.Done():
			return fmt.Errorf("%w (it ended at once: %s)", ErrNoPCSCD, bytes.TrimSpace(d.output.Bytes()))
		case <-ctx.Done():
			d.stop()
			return fmt.Errorf("start pcscd: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// answers greets the daemon.
func (d *daemon) answers(ctx context.Context) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", d.socket())
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	// Protocol version 4.4, whose answer says that the daemon is up.
	hello := []byte{12, 0, 0, 0, 0x11, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}
	if _, err := conn.Write(hello); err != nil {
		return false
	}
	_, err = io.ReadFull(conn, make([]byte, 12))
	return err == nil
}

func (d *daemon) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		return
	}
	d.now.Kill()
	_ = d.now.Wait()
	d.now = nil
	_ = d.network.Close()
}

// dial connects to a slot of the virtual reader, which listens in a network of
// its own, so that nobody else can put cards in.
func (d *daemon) dial(ctx context.Context, port int) (conn net.Conn, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		return nil, net.ErrClosed
	}
	err = within(d.network, func() error {
		conn, err = (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	})
	return conn, err
}

// within runs do on a thread that is in the network namespace meanwhile. The
// thread has to live on: a daemon dies with the thread that started it.
func within(namespace *os.File, do func() error) error {
	out := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			out <- err
			return
		}
		defer home.Close()
		if err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err == nil { // #nosec G115 -- a file descriptor
			err = do()
		}
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil { // #nosec G115 -- a file descriptor
			runtime.UnlockOSThread() // otherwise the thread is of no use to anybody, and ends
		}
		out <- err
	}()
	return <-out
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}
