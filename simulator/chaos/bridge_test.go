package chaos

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// answering is a TPM that answers everything with success, behind a bridge.
func answering(t *testing.T) *bridge {
	t.Helper()
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "t"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				for {
					if _, err := message(c); err != nil {
						_ = c.Close()
						return
					}
					_, _ = c.Write([]byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0})
				}
			}()
		}
	}()
	b, err := newBridge(filepath.Join(dir, "b"), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.close(); _ = ln.Close() })
	return b
}

// ask sends a command on a connection and returns the response code.
func ask(c net.Conn) (uint32, error) {
	if _, err := c.Write([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 4}); err != nil {
		return 0, err
	}
	b, err := message(c)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b[6:]), nil
}

// TestBridge: a TPM answers itself, or is busy, fails and is gone as it is told,
// and is well again after it.
func TestBridge(t *testing.T) {
	b := answering(t)
	dial := func() net.Conn {
		c, err := net.Dial("unix", b.socket())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	for _, tt := range []struct {
		codes []uint32
		want  []uint32
	}{
		{nil, []uint32{0}},
		{[]uint32{rcRetry}, []uint32{rcRetry, rcRetry}},
		{[]uint32{rcFailure, 0x902}, []uint32{rcFailure, 0x902, rcFailure}},
		{nil, []uint32{0, 0}},
	} {
		b.set(false, tt.codes...)
		for _, want := range tt.want {
			if got, err := ask(c); got != want || err != nil {
				t.Errorf("codes %x: got %x, %v, want %x", tt.codes, got, err, want)
			}
		}
	}
	if n := b.refused(); n != 5 {
		t.Errorf("%d commands were not done, want 5", n)
	}
	b.set(true)
	if _, err := ask(c); err == nil {
		t.Error("a TPM that is gone answers")
	}
	if _, err := ask(dial()); err == nil {
		t.Error("a TPM that is gone answers on a new connection")
	}
	b.set(false)
	if got, err := ask(dial()); got != 0 || err != nil {
		t.Errorf("back again: got %x, %v", got, err)
	}
}

// FuzzMessage: what comes from an agent or a TPM is whole, or no message.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 4, 9})
	f.Add([]byte{0x80, 1, 0, 0, 0, 1})
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := sink{in: bytes.NewReader(in)}
		b, err := message(c)
		if err == nil && (len(b) < 10 || int(binary.BigEndian.Uint32(b[2:])) != len(b) || !bytes.HasPrefix(in, b)) {
			t.Errorf("%x came out of %x", b, in)
		}
	})
}

// TestDisk: a disk that is full takes nothing, one that is nearly full takes a
// little, and it is as before when it is emptied.
func TestDisk(t *testing.T) {
	d, err := newDisk(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if !d.mounted {
		t.Skip("no right to mount a disk: what a limit does, TestShort shows")
	}
	file := filepath.Join(d.dir, "x")
	for spare, pages := range map[int]int{0: 1, 3: 8} {
		if err := d.fill(0, spare); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, pages*page), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d pages on a disk with %d: %v", pages, spare, err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := d.empty(0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
			t.Errorf("emptied: %v", err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.empty(0); err != nil {
		t.Errorf("emptied twice: %v", err)
	}
}
