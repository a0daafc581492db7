package firmware_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/firmware"
)

const block = 4096

// image makes a file of some blocks, which is not a whole number of them.
func image(t *testing.T, blocks int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, blocks*block-512), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPowerCut writes, and looks at what is there after a cut.
func TestPowerCut(t *testing.T) {
	ones, twos := bytes.Repeat([]byte{1}, block), bytes.Repeat([]byte{2}, block)
	for name, c := range map[string]struct {
		then func(d *firmware.Disk) error
		want [4]byte // the first byte of each block
	}{
		"nothing is flushed":       {func(*firmware.Disk) error { return nil }, [4]byte{0, 0, 0, 0}},
		"all is flushed":           {func(d *firmware.Disk) error { return d.Flush() }, [4]byte{1, 0, 2, 0}},
		"one is written through":   {func(d *firmware.Disk) error { return d.WriteAt(twos, block, true) }, [4]byte{0, 2, 0, 0}},
		"what follows a flush":     {func(d *firmware.Disk) error { must(t, d.Flush()); return d.WriteAt(twos, 0, false) }, [4]byte{1, 0, 2, 0}},
		"a flushed one once more":  {func(d *firmware.Disk) error { must(t, d.WriteAt(twos, 0, true)); return d.WriteAt(ones, 0, false) }, [4]byte{2, 0, 0, 0}},
		"over the edge of a block": {func(d *firmware.Disk) error { return d.WriteAt(twos, block/2, true) }, [4]byte{1, 2, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, 4)
			d, err := firmware.OpenDisk(path)
			must(t, err)
			must(t, d.WriteAt(ones, 0, false))
			must(t, d.WriteAt(twos, 2*block, false))
			must(t, c.then(d))
			must(t, d.PowerOff(func() bool { return false }))
			b := content(t, path)
			if got := [4]byte{b[0], b[block], b[2*block], b[3*block]}; got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if err := d.WriteAt(ones, 0, true); err == nil {
				t.Error("a write after the cut: got no error")
			}
			if err := d.ReadAt(make([]byte, 1), 0); err == nil {
				t.Error("a read after the cut: got no error")
			}
		})
	}
}

// TestPowerCutByChance keeps some of what was not flushed, and the same again
// with the same seed.
func TestPowerCutByChance(t *testing.T) {
	cut := func(seed uint64) []byte {
		path := image(t, 65)
		d, err := firmware.OpenDisk(path)
		must(t, err)
		must(t, d.WriteAt(bytes.Repeat([]byte{1}, 64*block), 0, false))
		must(t, d.PowerOff(firmware.Coin(seed, 1)))
		return content(t, path)
	}
	a, b, other := cut(1), cut(1), cut(2)
	if n := bytes.Count(a, []byte{1}) / block; n < 10 || n > 54 {
		t.Errorf("%d of 64 blocks are kept", n)
	}
	if !bytes.Equal(a, b) {
		t.Error("the same seed lost other blocks")
	}
	if bytes.Equal(a, other) {
		t.Error("another seed lost the same blocks")
	}
}

// TestCutAfter takes the power away at the write that was asked for.
func TestCutAfter(t *testing.T) {
	d, err := firmware.OpenDisk(image(t, 100))
	must(t, err)
	gone := make(chan struct{})
	d.OnCut(func() { close(gone) })
	b := make([]byte, block)
	must(t, d.WriteAt(b, 0, false))
	d.CutAfter(3*block - 1)
	for i := range 3 {
		must(t, d.WriteAt(b, int64(i)*block, false))
	}
	<-gone
	if err := d.WriteAt(b, 0, false); err == nil {
		t.Error("a write after the cut: got no error")
	}
	if err := d.Flush(); err == nil {
		t.Error("a flush after the cut: got no error")
	}
	must(t, d.PowerOff(func() bool { return true }))
}

// TestDiskOfQEMU lets QEMU's own client use the disk: it writes, and compares
// what it reads.
func TestDiskOfQEMU(t *testing.T) {
	program, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("no qemu-io here, which is in the package qemu-utils")
	}
	path := image(t, 3000)
	d, err := firmware.OpenDisk(path)
	must(t, err)
	dir, err := os.MkdirTemp("", "nbd")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	done := make(chan struct{})
	go func() { defer close(done); d.Serve(l) }()
	args := []string{"-f", "raw", "-t", "writeback", "nbd:unix:" + socket}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20 {
		at, n := r.IntN(10<<20)&^511, (1+r.IntN(1<<20))&^511+512
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", i+1, at, n), "-c", fmt.Sprintf("read -P %d %d %d", i+1, at, n))
	}
	args = append(args, "-c", "write -P 77 0 512", "-c", "flush", "-c", "read -P 77 0 512", "-c", "read -P 99 0 512")
	out, _ := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	<-done
	if got := bytes.Count(out, []byte("Pattern verification failed")); got != 1 {
		t.Errorf("%d reads found something else, want the one that should:\n%s", got, out)
	}
	must(t, d.PowerOff(func() bool { return false }))
	if b := content(t, path); b[0] != 77 {
		t.Error("what was flushed is not in the file")
	}
}

// FuzzDisk speaks as a broken client: the disk neither panics nor hangs.
func FuzzDisk(f *testing.F) {
	option := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00"
	request := func(command byte, n string) string {
		return "\x25\x60\x95\x13\x00\x00\x00" + string(command) + "cookiecoo\x00\x00\x00\x00\x00\x00\x10"[:8] + "\x00\x00\x00\x00\x00\x00\x10\x00" + n
	}
	f.Add([]byte(option + request(0, "\x00\x00\x10\x00") + request(1, "\x00\x00\x00\x04") + "abcd" + request(3, "\x00\x00\x00\x00") + request(2, "\x00\x00\x00\x00")))
	f.Add([]byte(option + request(0, "\xff\xff\xff\xff")))
	f.Add([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00" + option[4:]))
	path := filepath.Join(f.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 3*block), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		d, err := firmware.OpenDisk(path)
		must(t, err)
		began := time.Now()
		_ = d.Speak(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(said), io.Discard})
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		must(t, d.PowerOff(func() bool { return true }))
		if n := len(content(t, path)); n != 3*block {
			t.Errorf("the file has %d bytes now", n)
		}
	})
}
