//go:build firmware

package firmware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/firmware"
)

// given looks at the image that was given, as it is: whether this checkout makes
// the same of it, and whether the disk boots that its vendor would flash.
func (l *lab) given(t *testing.T) {
	g := l.kit.Given
	t.Run("rebuilt", func(t *testing.T) {
		err := l.report.task("rebuilt", func(note func(string, any)) error {
			note("image", fmt.Sprintf("%s %s for %s", g.Compatible, g.Version, g.Model))
			note("kernel", g.Kernel)
			note("stub", g.Stub)
			note("root MiB", fmt.Sprintf("%.1f", g.RootMiB))
			if len(g.Foreign) > 0 {
				note("not root's", strings.Join(g.Foreign, " "))
			}
			changed, err := l.kit.Rebuild(t.Context(), filepath.Join(l.dir, "rebuilt"))
			if err == nil && len(changed) > 0 {
				err = fmt.Errorf("the image is of another state of this repository, build it again (make image):\n%s", strings.Join(changed, "\n"))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("flashed", func(t *testing.T) {
		if err := l.flashedAsItIs(t); err != nil {
			t.Error(err)
		}
	})
}

// flashedAsItIs boots the disk of the image in a box of its own, without a
// network: its fleet is its vendor's. What it does is in the log on its state
// partition, which anybody can read. It has to become well: the agent has been up
// for 2 minutes, and the whole root reads as it was signed.
func (l *lab) flashedAsItIs(t *testing.T) (err error) {
	x := row{Stage: "flashed", Notes: map[string]any{}}
	dir := filepath.Join(l.dir, "flashed")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	disk := filepath.Join(dir, "disk.img")
	if err := l.carries(t.Context(), filepath.Join(l.kit.Given.Dir, "disk.img")); err != nil {
		return err
	}
	if err := copyDisk(t.Context(), filepath.Join(l.kit.Given.Dir, "disk.img"), disk); err != nil {
		return err
	}
	serial, err := os.Create(filepath.Join(dir, "serial.log"))
	if err != nil {
		return err
	}
	defer serial.Close()
	m := l.kit.Machine(dir, firmware.MachineOptions{Disk: disk, Serial: serial, Restrict: true})
	began := time.Now()
	defer func() {
		err = errors.Join(err, m.Kill())
		x.Wall, x.CPU, x.OK = seconds(time.Since(began)), seconds(m.CPU()), err == nil
		if err != nil {
			x.Why = err.Error()
		}
		l.report.add(x)
	}()
	if err := m.Start(t.Context()); err != nil {
		return err
	}
	limit := 8 * time.Minute * time.Duration(*slowFlag)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	said := ""
	for {
		if said, err = journal(ctx, disk, filepath.Join(dir, "state.img")); err == nil && strings.Contains(said, "the box is well") {
			break
		}
		select {
		case <-ctx.Done():
			b, _ := os.ReadFile(serial.Name())
			return fmt.Errorf("it is not well after %v (%w); its log ends:\n%s\nthe serial line: %s", limit, err, tail(said, 3000), printable(tail(string(b), 2000)))
		case <-tick.C:
		}
	}
	for line := range strings.Lines(said) {
		if _, what, ok := strings.Cut(line, "the data partition is "); ok {
			x.Notes["data"] = strings.TrimSpace(what)
		}
		if strings.Contains(line, "restarting the box") {
			return fmt.Errorf("it restarted: %s", line)
		}
	}
	return nil
}

// carries reports whether slot a of a disk holds the image that lies beside it.
func (l *lab) carries(ctx context.Context, disk string) error {
	for name, file := range map[string]string{"rootfs-a": "rootfs.img", "esp-a": "esp.img"} {
		want, err := os.ReadFile(filepath.Join(l.kit.Given.Dir, file))
		if err != nil {
			return err
		}
		r, f, err := read(ctx, disk, name)
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		_, err = io.ReadFull(r, got)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("disk.img does not hold %s in %s: they are of two builds; build the image again (make image)", file, name)
		}
	}
	esp := filepath.Join(l.dir, "flashed.efi")
	defer os.Remove(esp)
	if err := mcopy(ctx, filepath.Join(l.kit.Given.Dir, "esp.img"), loader, esp); err != nil {
		return err
	}
	a, b, err := sums([2]string{esp, filepath.Join(l.kit.Given.Dir, "uki.efi")})
	if err == nil && a != b {
		err = errors.New("esp.img does not start uki.efi: they are of two builds; build the image again (make image)")
	}
	return err
}

// journal is the log on the state partition of a disk, by way of a copy whose
// journal is played back.
func journal(ctx context.Context, disk, to string) (string, error) {
	in, f, err := read(ctx, disk, "state")
	if err != nil {
		return "", err
	}
	defer f.Close()
	out, err := os.Create(to)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return "", err
	}
	defer os.Remove(to)
	var failed *exec.ExitError
	if said, err := exec.CommandContext(ctx, "e2fsck", "-fy", to).CombinedOutput(); err != nil && (!errors.As(err, &failed) || failed.ExitCode() > 1) {
		return "", fmt.Errorf("e2fsck: %w: %s", err, said)
	}
	said, err := exec.CommandContext(ctx, "debugfs", "-R", "cat /log/messages", to).Output()
	return string(said), err
}
