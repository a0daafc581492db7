package trust_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

// stick copies the repository onto a medium, with a timestamp of its own.
func (w *world) stick(t *testing.T, life time.Duration) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(w.repo.Dir)))
	must(t, (&trust.Repository{Dir: dir, Life: life, Medium: "stick"}).Refresh(w.keys))
	return dir
}

// kept is every file that the device keeps, but the roots.
func kept(t *testing.T, dev *trust.Client) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dev.Dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Base(filepath.Dir(p)) != "roots" {
			b.WriteString(p + "\n" + string(read(t, p)) + "\n")
		}
		return err
	}))
	return b.String()
}

// A pipe in place of the metadata of a medium holds nobody up.
func TestMediumIsAPipe(t *testing.T) {
	w := fleet(t)
	dir := t.TempDir()
	must(t, syscall.Mkfifo(filepath.Join(dir, "metadata"), 0o600))
	if _, err := w.dev.Medium(dir).Target(t.Context(), next); err == nil {
		t.Error("a target was found in a pipe")
	}
}

// A device takes a release from a medium that it has not seen on the network,
// and goes on with the service as if there had been no medium.
func TestMedium(t *testing.T) {
	w := fleet(t)
	before := kept(t, w.dev)
	honest := w.dev.Fetch
	w.release(t, "1.3.0")
	for range 5 {
		must(t, w.repo.Refresh(w.keys)) // the medium is ahead of what the device knows
	}
	dir := w.stick(t, 80*24*time.Hour)
	w.dev.Fetch = nil // nobody is asked
	got, err := w.dev.Medium(dir).Target(t.Context(), next)
	must(t, err)
	must(t, got.CheckFile(filepath.Join(dir, "targets", got.File())))
	if kept(t, w.dev) != before {
		t.Error("the medium left something behind")
	}
	w.dev.Fetch = honest
	if _, err := w.dev.Target(t.Context(), next); err != nil {
		t.Errorf("the service after the medium: %v", err)
	}
}

// What counts on the network counts on a medium: signatures, dates, the floor.
func TestBadMedium(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(t *testing.T, w *world, dir string)
		want error
	}{
		"a forged role": {func(t *testing.T, w *world, dir string) {
			f := filepath.Join(dir, "metadata", "3.agent%2Fprod.json")
			forge(t, f, f, func(m *metadata.Metadata[metadata.TargetsType]) { m.Signed.Targets[next].Length++ }, w.keys["agent/prod"][0])
		}, trust.ErrSignature},
		"its time is over": {func(t *testing.T, w *world, dir string) {
			f := filepath.Join(dir, "metadata", "timestamp.json")
			forge(t, f, f, func(m *metadata.Metadata[metadata.TimestampType]) { m.Signed.Expires = time.Now().Add(-time.Hour) }, w.keys[trust.RoleTimestamp]...)
		}, trust.ErrExpired},
		"of before a key was revoked": {func(t *testing.T, w *world, _ string) {
			w.rotateOnline(t, newKey(t))
			must(t, w.dev.Refresh(t.Context()))
		}, trust.ErrSignature},
		"of before a key was revoked, on a wiped box": {func(t *testing.T, w *world, _ string) {
			w.dev.Floor = &nv{at: 2}
		}, trust.ErrRollback},
		"a link to what is not on it": {func(t *testing.T, w *world, dir string) {
			f := filepath.Join(dir, "metadata", "timestamp.json")
			elsewhere := filepath.Join(t.TempDir(), "timestamp.json")
			must(t, os.Rename(f, elsewhere))
			must(t, os.Symlink(elsewhere, f))
		}, nil},
		"a pipe that nobody writes to": {func(t *testing.T, w *world, dir string) {
			f := filepath.Join(dir, "metadata", "timestamp.json")
			must(t, os.Remove(f))
			must(t, syscall.Mkfifo(f, 0o600))
		}, trust.ErrMismatch},
		"a file without end": {func(t *testing.T, w *world, dir string) {
			must(t, os.Truncate(filepath.Join(dir, "metadata", "timestamp.json"), 1<<40))
		}, trust.ErrMismatch},
		"no metadata": {func(t *testing.T, w *world, dir string) {
			must(t, os.RemoveAll(filepath.Join(dir, "metadata")))
		}, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			w := fleet(t)
			w.release(t, "1.3.0")
			dir := w.stick(t, 24*time.Hour)
			tt.do(t, w, dir)
			_, err := w.dev.Medium(dir).Target(t.Context(), next)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// A medium brings a newer root to a box that the network does not reach, and the
// old key is worth nothing there from then on.
func TestMediumBringsARoot(t *testing.T) {
	w := fleet(t)
	stolen := w.stick(t, 24*time.Hour)
	tpm := &nv{}
	w.dev.Floor = tpm
	w.rotateOnline(t, newKey(t))
	dir := w.stick(t, 24*time.Hour)
	if err := w.dev.Medium(dir).Refresh(t.Context()); err != nil || tpm.at != 2 {
		t.Fatalf("got %v and floor %d, want the new root", err, tpm.at)
	}
	if err := w.dev.Medium(stolen).Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("an old medium afterwards: got %v, want ErrSignature", err)
	}
	must(t, w.dev.Refresh(t.Context()))
}

// What the service has withdrawn stays withdrawn for a medium of before that.
func TestMediumDoesNotBringBackWhatWasWithdrawn(t *testing.T) {
	w := fleet(t)
	w.release(t, "1.3.0")
	dir := w.stick(t, 24*time.Hour)
	from := w.newest(t, "agent/prod")
	forge(t, from, w.file("4.agent%2Fprod.json"), func(m *metadata.Metadata[metadata.TargetsType]) {
		m.Signed.Version = 4
		raw := []byte(strings.Replace(string(*m.Signed.Targets[next].Custom), "{", `{"withdrawn":true,`, 1))
		*m.Signed.Targets[next].Custom = raw
	}, w.keys["agent/prod"]...)
	must(t, w.repo.Refresh(w.keys))
	if got, err := w.dev.Medium(dir).Target(t.Context(), next); err != nil || got.Custom.Withdrawn {
		t.Fatalf("before the device has heard of it: got %+v and %v", got, err)
	}
	if got, err := w.dev.Target(t.Context(), next); err != nil || !got.Custom.Withdrawn {
		t.Fatalf("from the service: got %+v and %v", got, err)
	}
	if got, err := w.dev.Medium(dir).Target(t.Context(), next); err != nil || !got.Custom.Withdrawn {
		t.Errorf("from the medium: got %+v and %v, want it withdrawn", got, err)
	}
	if got, err := w.dev.Medium(w.stick(t, time.Hour)).Target(t.Context(), path); err != nil || got.Custom.Withdrawn {
		t.Errorf("another release: got %+v and %v", got, err)
	}
}
