package shelf_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/powercut"
	"github.com/tillward/tillward/agent/internal/update/shelf"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

const component = "ops/shop/pos"

// job packs files, a link where the content begins with "->", as a release.
func job(t *testing.T, version string, files map[string]string) update.Job {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		to, isLink := strings.CutPrefix(content, "->")
		err := os.WriteFile(path, []byte(content), 0o755)
		if isLink {
			err = errors.Join(os.Remove(path), os.Symlink(to, path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := tree.Pack(&b, dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tree.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return update.Job{
		Execution: "x-" + version, Component: component, Version: version, File: file,
		Target: trust.Target{SHA256: hex.EncodeToString(sum[:]), Length: int64(b.Len()), Custom: trust.Custom{Class: trust.ClassApp, Version: version}},
	}
}

func files(version string) map[string]string {
	return map[string]string{"bin/pos": version + strings.Repeat("\n", 9000), "lib": "->bin", "version": version}
}

func open(t *testing.T, dir string, step func(string)) *shelf.Shelf {
	t.Helper()
	s, _, err := shelf.Open(filepath.Join(dir, "pos"), component, shelf.Disk{Step: step})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stage(t *testing.T, s *shelf.Shelf, j update.Job) {
	t.Helper()
	if _, err := s.Stage(t.Context(), j, tree.Limits{}); err != nil {
		t.Fatal(err)
	}
}

func nothing(string) error { return nil }

// install takes the release all the way.
func install(t *testing.T, s *shelf.Shelf, j update.Job) {
	t.Helper()
	stage(t, s, j)
	if err := errors.Join(s.Try("x", nothing), s.Keep()); err != nil {
		t.Fatal(err)
	}
}

// on lists what lies on the shelf.
func on(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "pos"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if to, err := os.Readlink(filepath.Join(dir, "pos", name)); err == nil {
			name += "->" + to
		}
		names = append(names, name)
	}
	return names
}

func truth(t *testing.T, s *shelf.Shelf) update.Truth {
	t.Helper()
	got, err := s.Truth()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// refused reports whether the error ends the execution with the reason.
func refused(t *testing.T, err error, reason string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("got %v, want %q", err, reason)
	}
}

func TestShelf(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	if got := truth(t, s); got != (update.Truth{}) {
		t.Errorf("an empty shelf: %+v", got)
	}
	if s.Seed() != nil {
		t.Error("an empty shelf has a seed")
	}
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0"} {
		install(t, s, job(t, v, files(v)))
	}
	if got, want := on(t, dir), []string{"1.1.0", "1.2.0", "current->1.2.0", "previous->1.1.0", "state.json"}; !slices.Equal(got, want) {
		t.Errorf("on the shelf: %v, want exactly two trees %v", got, want)
	}
	j := job(t, "1.3.0", files("1.3.0"))
	stage(t, s, j)
	s = open(t, dir, nil) // as after a restart: what is staged stays
	if err := s.Try("x", nothing); err != nil {
		t.Fatal(err)
	}
	if got, want := truth(t, s), (update.Truth{Version: "1.3.0", Slot: "1.3.0", Hash: j.Target.SHA256, Trial: true, Execution: "x"}); got != want {
		t.Errorf("on trial: %+v, want %+v", got, want)
	}
	_, err := s.Stage(t.Context(), job(t, "1.4.0", files("1.4.0")), tree.Limits{})
	refused(t, err, "1.3.0 is still on trial")
	s = open(t, dir, nil)
	if err := errors.Join(s.Back(), s.Back()); err != nil {
		t.Fatal(err)
	}
	if got, want := on(t, dir), []string{"1.1.0", "1.2.0", "current->1.2.0", "previous->1.1.0", "state.json"}; !slices.Equal(got, want) {
		t.Errorf("after going back: %v, want %v", got, want)
	}
	r := s.Seed()
	b, err := io.ReadAll(r)
	if sum := sha256.Sum256(b); err != nil || hex.EncodeToString(sum[:]) != truth(t, s).Hash {
		t.Errorf("the seed is not what was installed: %v", err)
	}
	_ = r.Close()
	_ = s.Seed().Close() // one that is not read to its end leaves nothing behind
}

// What is streamed is unpacked as it comes.
func TestStream(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	j := job(t, "1.0.0", files("1.0.0"))
	f, err := os.Open(j.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	j.File, j.Content = "", f
	install(t, s, j)
	if got := truth(t, s); got.Version != "1.0.0" {
		t.Errorf("runs %+v", got)
	}
}

// A first version that does not please leaves an empty shelf.
func TestFirstGoesBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	stage(t, s, job(t, "1.0.0", files("1.0.0")))
	if err := errors.Join(s.Try("x", nothing), s.Back()); err != nil {
		t.Fatal(err)
	}
	if got := on(t, dir); !slices.Equal(got, []string{"state.json"}) {
		t.Errorf("on the shelf: %v", got)
	}
	stage(t, s, job(t, "1.0.0", files("1.0.0")))
	if err := s.Drop(); err != nil {
		t.Fatal(err)
	}
	refused(t, s.Try("x", nothing), "nothing is staged")
}

// What has been stopped for a trial that did not come is told at the next start.
func TestHalted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	install(t, s, job(t, "1.0.0", files("1.0.0")))
	stage(t, s, job(t, "1.1.0", files("1.1.0")))
	func() {
		defer func() { _ = recover() }()
		_ = s.Try("x", func(string) error { panic("the power is cut") })
	}()
	s, halted, err := shelf.Open(filepath.Join(dir, "pos"), component, shelf.Disk{})
	if err != nil || !halted {
		t.Errorf("halted %t, %v", halted, err)
	}
	if got := truth(t, s); got.Version != "1.0.0" || got.Trial {
		t.Errorf("runs %+v", got)
	}
	refused(t, s.Try("x", func(string) error { return errors.New("it does not stop") }), "does not stop")
	if got := truth(t, s); got.Version != "1.0.0" || got.Trial {
		t.Errorf("runs %+v", got)
	}
	if err := s.Try("x", nothing); err != nil {
		t.Errorf("what was staged is gone: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	good := job(t, "1.0.0", files("1.0.0"))
	for name, tt := range map[string]struct {
		change func(*update.Job)
		want   string
	}{
		"no version":   {func(j *update.Job) { j.Version = "../../etc" }, "is not a version"},
		"build":        {func(j *update.Job) { j.Version = "1.0.0+a" }, "is not a version"},
		"no room":      {func(j *update.Job) { j.Target.Custom.Unpacked = 1 << 50 }, "are free where it is to be unpacked"},
		"no content":   {func(j *update.Job) { j.File = "" }, "no content"},
		"another hash": {func(j *update.Job) { j.Target.SHA256 = strings.Repeat("0", 64) }, "does not hold"},
		"link out of it": {func(j *update.Job) {
			b, err := os.ReadFile(j.File)
			if err != nil {
				t.Fatal(err)
			}
			j.File = filepath.Join(t.TempDir(), "tree.tar")
			// The link of lib leads to bin; a header's checksum is mended, so that nothing but the link is wrong.
			b = relink(t, b, "bin", "../../../etc")
			if err := os.WriteFile(j.File, b, 0o600); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(b)
			j.Target.SHA256, j.Target.Length = hex.EncodeToString(sum[:]), int64(len(b))
		}, "leads out of the tree"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, nil)
			j := good
			tt.change(&j)
			_, err := s.Stage(t.Context(), j, tree.Limits{})
			refused(t, err, tt.want)
			refused(t, s.Try("x", nothing), "nothing is staged")
			if _, err := os.Stat(filepath.Join(dir, "pos", "1.0.0")); err == nil {
				t.Error("it lies on the shelf")
			}
		})
	}
	s := open(t, t.TempDir(), nil)
	_, err := s.Stage(t.Context(), good, tree.Limits{Bytes: 4096})
	refused(t, err, "too large")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Stage(ctx, good, tree.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
	dir := t.TempDir()
	install(t, open(t, dir, nil), good)
	_, _, err = shelf.Open(filepath.Join(dir, "pos"), "ops/other/pos", shelf.Disk{})
	refused(t, err, "holds ops/shop/pos")
}

// relink changes the target of the only link in the archive.
func relink(t *testing.T, b []byte, from, to string) []byte {
	t.Helper()
	b = bytes.Clone(b)
	for at := 0; at+512 <= len(b); at += 512 {
		h := b[at : at+512]
		if h[156] != '2' || string(bytes.TrimRight(h[157:257], "\x00")) != from {
			continue
		}
		clear(h[157:257])
		copy(h[157:], to)
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
		return b
	}
	t.Fatal("no link in the archive")
	return nil
}

// Whatever is changed in a tree after it was written is noticed, and the
// version can be installed again beside it.
func TestTampered(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"content, with the old time": func(dir string) error {
			path := filepath.Join(dir, "version")
			return errors.Join(os.WriteFile(path, []byte("1.0.1"), 0o600), os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)))
		},
		"a file more": func(dir string) error { return os.WriteFile(filepath.Join(dir, "more"), nil, 0o600) },
		"a file less": func(dir string) error { return os.Remove(filepath.Join(dir, "version")) },
		"a link out":  func(dir string) error { return os.Symlink("/etc", filepath.Join(dir, "etc")) },
		"setuid":      func(dir string) error { return os.Chmod(filepath.Join(dir, "version"), os.ModeSetuid|0o755) },
		"all of it":   os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, nil)
			j := job(t, "1.0.0", files("1.0.0"))
			install(t, s, j)
			truth(t, s)
			if err := change(filepath.Join(dir, "pos", "1.0.0")); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*shelf.Shelf{s, open(t, dir, nil)} {
				if got := truth(t, s); got.Version != "" || got.Slot != "1.0.0" || got.Hash == j.Target.SHA256 {
					t.Errorf("truth %+v", got)
				}
			}
			install(t, s, j)
			if got := truth(t, s); got.Version != "1.0.0" || got.Slot != "1.0.0~2" {
				t.Errorf("installed again: %+v", got)
			}
			install(t, s, job(t, "1.1.0", files("1.1.0")))
			stage(t, s, job(t, "1.2.0", files("1.2.0")))
			if err := change(filepath.Join(dir, "pos", "1.2.0")); err != nil {
				t.Fatal(err)
			}
			if err := s.Try("x", nothing); err == nil {
				t.Error("a staged tree that was changed is tried")
			}
			if got := truth(t, s); got.Version != "1.1.0" {
				t.Errorf("runs %+v", got)
			}
		})
	}
}

// A shelf whose state is lost lets what runs run, knows it for nothing, and
// takes the next version.
func TestLostState(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	install(t, s, job(t, "1.0.0", files("1.0.0")))
	if err := os.WriteFile(filepath.Join(dir, "pos", "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, nil)
	if got := truth(t, s); got.Version != "" || got.Slot != "1.0.0" || got.Hash == "" {
		t.Errorf("truth %+v", got)
	}
	install(t, s, job(t, "1.1.0", files("1.1.0")))
	if got := truth(t, s); got.Version != "1.1.0" {
		t.Errorf("truth %+v", got)
	}
}

// What was given up is neither tried nor kept any more, whatever a cut left.
func TestGivenUp(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"1.0.0", "1.1.0"} {
		install(t, open(t, dir, nil), job(t, v, files(v)))
	}
	stage(t, open(t, dir, nil), job(t, "1.2.0", files("1.2.0")))
	if err := open(t, dir, nil).Try("x", nothing); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, func(step string) {
		if step == "rename current" {
			panic("the power is cut")
		}
	})
	func() {
		defer func() { _ = recover() }()
		_ = s.Back()
	}()
	s = open(t, dir, nil)
	if got := truth(t, s); got.Version != "1.2.0" || !got.Trial {
		t.Errorf("runs %+v", got)
	}
	refused(t, s.Keep(), "given up")
	refused(t, s.Try("x", nothing), "given up")
	_, err := s.Stage(t.Context(), job(t, "1.2.0", files("1.2.0")), tree.Limits{})
	refused(t, err, "still on trial")
	if err := s.Back(); err != nil {
		t.Fatal(err)
	}
	if got := truth(t, s); got.Version != "1.1.0" || got.Trial {
		t.Errorf("runs %+v", got)
	}
}

// The power is cut at each step of an update that stays, and of one that does
// not. What runs is whole and known, and what was to happen can still happen.
func TestPowerCut(t *testing.T) {
	releases := make(map[string]update.Job)
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0", "1.3.0"} {
		releases[v] = job(t, v, files(v))
	}
	prepare := func(dir string) {
		s := open(t, dir, nil)
		install(t, s, releases["1.0.0"])
		install(t, s, releases["1.1.0"])
	}
	sound := func(t *testing.T, dir string) (*shelf.Shelf, update.Truth) {
		t.Helper()
		s := open(t, dir, nil)
		got := truth(t, s)
		if got.Version != "1.1.0" && got.Version != "1.2.0" {
			t.Fatalf("runs %+v", got)
		}
		b, err := os.ReadFile(filepath.Join(dir, "pos", "current", "version"))
		if err != nil || string(b) != got.Version {
			t.Fatalf("%s runs (%v), truth %+v", b, err, got)
		}
		return s, got
	}
	exactly := func(t *testing.T, dir string, want ...string) {
		t.Helper()
		if got := on(t, dir); !slices.Equal(got, want) {
			t.Errorf("on the shelf: %v, want %v", got, want)
		}
	}
	t.Run("keep", func(t *testing.T) {
		cuts := powercut.Run(t, prepare, func(dir string, step func(string)) {
			s := open(t, dir, step)
			install(t, s, releases["1.2.0"])
		}, func(t *testing.T, dir string) {
			s, got := sound(t, dir)
			if strings.HasSuffix(t.Name(), "the_end") && (got.Version != "1.2.0" || got.Trial) {
				t.Errorf("what was done is not there to stay: %+v", got)
			}
			if got.Version == "1.1.0" {
				if got.Trial {
					t.Errorf("the old one is on trial")
				}
				stage(t, s, releases["1.2.0"])
				if err := s.Try("x", nothing); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Keep(); err != nil {
				t.Fatal(err)
			}
			exactly(t, dir, "1.1.0", "1.2.0", "current->1.2.0", "previous->1.1.0", "state.json")
		})
		if cuts < 20 {
			t.Errorf("only %d cuts", cuts)
		}
	})
	t.Run("back", func(t *testing.T) {
		powercut.Run(t, prepare, func(dir string, step func(string)) {
			s := open(t, dir, step)
			stage(t, s, releases["1.2.0"])
			if err := errors.Join(s.Try("x", nothing), s.Back()); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, dir string) {
			s, _ := sound(t, dir)
			if err := errors.Join(s.Back(), s.Drop()); err != nil {
				t.Fatal(err)
			}
			if got := truth(t, s); got.Version != "1.1.0" || got.Trial {
				t.Errorf("runs %+v", got)
			}
			exactly(t, dir, "1.0.0", "1.1.0", "current->1.1.0", "previous->1.0.0", "state.json")
			install(t, s, releases["1.3.0"])
			exactly(t, dir, "1.1.0", "1.3.0", "current->1.3.0", "previous->1.1.0", "state.json")
		})
	})
}

func TestName(t *testing.T) {
	if got, err := shelf.Name("ops/shop/pos-1.x_y"); got != "pos-1.x_y" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"", "agent", "ops/shop", "ops/shop/", "ops//pos", "ops/shop/..", "ops/shop/.x", "ops/shop/a b", "ops/shop/a/b", "os/shop/pos", "ops/shop/" + strings.Repeat("a", 65)} {
		if got, err := shelf.Name(bad); err == nil {
			t.Errorf("%q: got %q", bad, got)
		}
	}
}
