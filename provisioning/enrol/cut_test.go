package enrol

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// box is a till whose power is cut: its TPM is reached over a wire that goes
// dead at one command, before the TPM has seen it or before it can answer.
type box struct {
	chip *tpmfarm.TPM
	path string

	mu    sync.Mutex
	left  int  // commands until the power goes; 0: it stays
	late  bool // the TPM still runs the last command
	dead  bool
	count int
	conns map[net.Conn]bool
}

func (s *site) box(t *testing.T) *box {
	t.Helper()
	chip, err := s.farm.Start(t.Context(), filepath.Join(t.TempDir(), "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	b := &box{chip: chip, path: filepath.Join(t.TempDir(), "s"), conns: make(map[net.Conn]bool)}
	l, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() { b.carry(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		b.off()
		g.Wait()
	})
	return b
}

// carry passes commands on until the power goes.
func (b *box) carry(host net.Conn) {
	defer host.Close()
	chip, err := net.Dial("unix", b.chip.Socket())
	if err != nil {
		return
	}
	defer chip.Close()
	b.mu.Lock()
	dead := b.dead
	if !dead {
		b.conns[host], b.conns[chip] = true, true
	}
	b.mu.Unlock()
	if dead {
		return
	}
	for {
		cmd, err := message(host)
		if err != nil {
			return
		}
		cut, late := b.spend(cmd)
		if cut && !late {
			b.off()
			return
		}
		if _, err := chip.Write(cmd); err != nil {
			return
		}
		rsp, err := message(chip)
		if err != nil {
			return
		}
		if cut {
			b.off()
			return
		}
		if _, err := host.Write(rsp); err != nil {
			return
		}
	}
}

// message reads a TPM command or response.
func message(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:6])
	if size < 10 || size > 8192 {
		return nil, errors.New("no TPM message")
	}
	body := make([]byte, size-10)
	_, err := io.ReadFull(r, body)
	return append(head, body...), err
}

// spend counts a command. A command that leaves nothing in the TPM need not be
// cut late.
func (b *box) spend(cmd []byte) (cut, late bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count++
	if b.left == 0 {
		return false, false
	}
	if b.late && tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:10])) != tpm2.TPMCCEvictControl {
		return false, false
	}
	b.left--
	return b.left == 0, b.late
}

// off is the power cut. The device learns of it when the TPM is gone, and what
// comes after the next start is not touched.
func (b *box) off() {
	b.mu.Lock()
	open := b.conns
	b.dead, b.conns = true, make(map[net.Conn]bool)
	b.mu.Unlock()
	b.chip.Stop()
	for c := range open {
		_ = c.Close()
	}
}

// arm lets the power go at the nth command from now, or, late, after the nth
// that changes what the TPM keeps.
func (b *box) arm(n int, late bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left, b.late = n, late
}

func (b *box) isDead() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dead
}

// boot switches the box on.
func (b *box) boot(t *testing.T) *tpm.TPM {
	t.Helper()
	if b.isDead() {
		if err := b.chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		b.dead, b.left = false, 0
		b.mu.Unlock()
	}
	dev, err := tpm.Open("unix:" + b.path)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// goesOn checks what a till must be able to do after a power cut, with what is
// on its disk: say which keys it uses, connect, prove itself and renew.
func (s *site) goesOn(t *testing.T, b *box, d *disk, what string, at int) {
	t.Helper()
	dev := b.boot(t)
	defer dev.Close()
	c := s.client(dev)
	c.Save = d.save
	have, err := c.Resume(t.Context(), d.saved)
	if err != nil {
		t.Fatalf("%s %d: resume: %v", what, at, err)
	}
	s.connects(t, dev, have, identity.RoleMember)
	s.connects(t, dev, have, identity.RoleRecovery)
	if have, err = c.Renew(t.Context(), have); err != nil {
		t.Fatalf("%s %d: renew: %v", what, at, err)
	}
	s.connects(t, dev, have, identity.RoleMember)
	if ak, ldevid, err := dev.Keys(t.Context()); err != nil || !bytes.Equal(ak, have.AK) || !bytes.Equal(ldevid, have.LDevID) {
		t.Errorf("%s %d: the TPM uses other keys than the identity (%v)", what, at, err)
	}
}

// change is one of the exchanges that change keys.
type change func(c *Client, t *testing.T, have Result) (Result, error)

var changes = map[string]change{
	"renewal": func(c *Client, t *testing.T, have Result) (Result, error) { return c.Renew(t.Context(), have) },
	"renewal-of-both": func(c *Client, t *testing.T, have Result) (Result, error) {
		have.Recovery = nil // as if its time had come
		return c.Renew(t.Context(), have)
	},
	"rotation": func(c *Client, t *testing.T, have Result) (Result, error) { return c.RotateAK(t.Context(), have) },
}

// The power goes at every command that the TPM gets, from the moment the box is
// switched on: before the command, and after it when it leaves something in
// the TPM.
func TestPowerCutAtEveryCommand(t *testing.T) {
	for name, do := range changes {
		for _, late := range []bool{false, true} {
			t.Run(map[bool]string{false: name, true: name + "-late"}[late], func(t *testing.T) {
				t.Parallel()
				s := newSite(t, true)
				b := s.box(t)
				dev := b.boot(t)
				_, d := s.join(t, dev)
				_ = dev.Close() // a software TPM listens to one at a time
				for n := 1; ; n++ {
					b.arm(n, late)
					err := attemptOn(t, s, b, d, do)
					cut := b.isDead()
					b.arm(0, false)
					if !cut {
						if err != nil || n < 3 {
							t.Fatalf("without a cut after %d: %v", n, err)
						}
						t.Logf("%d cuts", n-1)
						break
					}
					s.goesOn(t, b, d, "cut at command", n)
				}
			})
		}
	}
}

// attemptOn switches the box on and lets it change keys.
func attemptOn(t *testing.T, s *site, b *box, d *disk, do change) error {
	dev, err := tpm.Open("unix:" + b.path)
	if err != nil {
		return err
	}
	defer dev.Close()
	c := s.client(dev)
	c.Save = d.save
	have, err := c.Resume(t.Context(), d.saved)
	if err != nil {
		return err
	}
	_, err = do(c, t, have)
	return err
}

// frayed is a connection that breaks with the power: at a write before the
// service gets it, at a read after the service has answered.
type frayed struct {
	net.Conn
	fuse *fuse
}

var errCut = errors.New("power cut")

func (f frayed) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if f.fuse.spent() {
		return 0, errCut
	}
	return n, err
}

func (f frayed) Write(b []byte) (int, error) {
	if f.fuse.spent() {
		return 0, errCut
	}
	return f.Conn.Write(b)
}

// fuse takes the power away at one of the steps.
type fuse struct {
	off func()

	mu   sync.Mutex
	left int // steps
}

func (f *fuse) spent() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left--
	if f.left == 0 {
		f.off()
	}
	return f.left <= 0
}

// pull takes the fuse out: a connection that is put away later counts no more.
func (f *fuse) pull() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = 0
}

// The power goes at every step of the wire, and at the disk.
func TestPowerCutAtEveryStepOutside(t *testing.T) {
	for name, do := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, true)
			b := s.box(t)
			dev := b.boot(t)
			_, d := s.join(t, dev)
			_ = dev.Close() // a software TPM listens to one at a time
			for n := 1; ; n++ {
				cut := &fuse{off: b.off, left: n}
				dev := b.boot(t)
				c := s.client(dev)
				c.Save = d.save
				c.wire = func(conn net.Conn) net.Conn { return frayed{conn, cut} }
				have, err := c.Resume(t.Context(), d.saved)
				if err != nil {
					t.Fatal(err)
				}
				_, err = do(c, t, have)
				_ = dev.Close()
				cut.pull()
				if !b.isDead() {
					if err != nil || n < 5 {
						t.Fatalf("without a cut after %d: %v", n, err)
					}
					t.Logf("%d cuts", n-1)
					break
				}
				s.goesOn(t, b, d, "cut at the wire", n)
			}
			for n, stored := range []bool{false, true} {
				dev := b.boot(t)
				c := s.client(dev)
				c.Save = func(ctx context.Context, r Result) error {
					if stored {
						d.saved = r
					}
					b.off()
					return errCut
				}
				have, err := c.Resume(t.Context(), d.saved)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := do(c, t, have); !errors.Is(err, errCut) {
					t.Fatalf("got %v, want a power cut", err)
				}
				_ = dev.Close()
				s.goesOn(t, b, d, "cut at the disk", n)
			}
		})
	}
}
