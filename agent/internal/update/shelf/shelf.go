// Package shelf keeps the versions of a tree beside each other and switches
// between them by a link, for the handlers of applications and scripts.
//
// A shelf is a folder with one folder for each version, named by it; `current`
// is a link to the one that runs, `previous` to the one before. state.json
// holds what the disk must give back for each, and the trial that is open.
// Outside a trial there are those two and what is staged, nothing else. Every
// change survives a power cut at any instruction: current leads to a whole
// tree at all times.
//
// It runs nothing and decides nothing; what is put on it has been verified by
// provisioning/trust.
package shelf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/tree"
)

// Tree is one version on a shelf. The zero Tree is none.
type Tree struct {
	Dir     string `json:"dir"` // its folder's name
	Version string `json:"version"`
	SHA256  string `json:"sha256"` // of the archive it was unpacked from
}

// trial is a tree that has not proved itself.
type trial struct {
	Tree
	From      string `json:"from"`  // folder that was current; empty: none
	Older     string `json:"older"` // folder that was previous
	Over      bool   `json:"over"`  // it was given up; the links may not have followed yet
	Execution string `json:"execution"`
}

// state is state.json.
type state struct {
	Component string          `json:"component"`
	Trees     map[string]Tree `json:"trees"` // by folder
	Staged    *Tree           `json:"staged,omitempty"`
	Trial     *trial          `json:"trial,omitempty"`
}

// Shelf holds the versions of one component.
type Shelf struct {
	dir  string
	disk Disk

	mu   sync.Mutex
	s    state
	seen map[string]seen // by folder
}

// seen remembers the hash of a tree, and what it looked like from outside.
type seen struct{ mark, hash string }

// Open opens the shelf of the component at dir; it is made with the first tree.
// A power cut that fell into a change is settled. It reports whether one fell
// beside a switch: what is current may have been stopped for it.
func Open(dir, component string, d Disk) (s *Shelf, halted bool, err error) {
	s = &Shelf{dir: dir, disk: d, seen: make(map[string]seen)}
	if err := d.Load(s.path("state.json"), &s.s); err != nil {
		s.s = state{} // what lies there is of no known origin; it runs on until something is installed
	}
	if c := s.s.Component; c != "" && c != component {
		return nil, false, update.Refuse("policy", "%s holds %s, not %s: give one of them another name", dir, c, component)
	}
	s.s.Component = component
	if s.s.Trees == nil {
		s.s.Trees = make(map[string]Tree)
	}
	halted, err = s.settle()
	return s, halted, err
}

func (s *Shelf) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Shelf) save() error { return s.disk.Save(s.path("state.json"), s.s) }

// link reads current or previous; empty when there is none.
func (s *Shelf) link(name string) string {
	to, err := os.Readlink(s.path(name))
	if err != nil || filepath.Base(to) != to {
		return ""
	}
	return to
}

// settle finishes what a power cut interrupted.
func (s *Shelf) settle() (halted bool, err error) {
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	switch t := s.s.Trial; {
	case t == nil, s.link("current") == t.Dir: // Back itself ends what it has only begun
	case t.Over:
		halted = true
		if err := s.back(); err != nil {
			return halted, err
		}
	default: // begun, not switched
		halted = true
		if err := s.disk.Link(s.path("previous"), t.Older); err != nil {
			return halted, err
		}
		s.s.Staged, s.s.Trial = &t.Tree, nil
		if err := s.save(); err != nil {
			return halted, err
		}
	}
	return halted, s.tidy()
}

// tidy removes every folder that nothing leads to.
func (s *Shelf) tidy() error {
	keep := map[string]bool{s.link("current"): true, s.link("previous"): true}
	if s.s.Staged != nil {
		keep[s.s.Staged.Dir] = true
	}
	if t := s.s.Trial; t != nil {
		keep[t.Dir], keep[t.From], keep[t.Older] = true, true, true
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read shelf: %w", err)
	}
	for _, e := range entries {
		// Trees and parts of trees: whatever else lies here is not ours.
		version, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "."), ".part"), "~")
		if e.IsDir() && !keep[e.Name()] && semver.IsValid("v"+version) {
			if err := s.disk.Remove(s.path(e.Name())); err != nil {
				return err
			}
		}
	}
	for _, n := range [...]string{"state.json.new", "current.new", "previous.new"} { // half a change
		if err := s.disk.Remove(s.path(n)); err != nil {
			return err
		}
	}
	for n := range s.s.Trees {
		if !keep[n] {
			delete(s.s.Trees, n) // written with the next change
			delete(s.seen, n)
		}
	}
	return nil
}

// Stage unpacks the content of the job beside what runs and verifies what the
// disk gives back. The tree it made is returned, to be looked at; Drop removes
// one that does not please.
func (s *Shelf) Stage(ctx context.Context, j update.Job, l tree.Limits) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !semver.IsValid("v"+j.Version) || semver.Build("v"+j.Version) != "" {
		return "", update.Refuse("incompatible", "%.40q is not a version", j.Version)
	}
	if t := s.s.Trial; t != nil {
		if !t.Over && t.Version == j.Version && t.SHA256 == j.Target.SHA256 {
			return s.path(t.Dir), nil // it runs already
		}
		return "", update.Fail("install", "%s is still on trial", t.Version)
	}
	if t := s.s.Staged; t != nil && t.Version == j.Version && t.SHA256 == j.Target.SHA256 && s.check(*t) == nil {
		return s.path(t.Dir), nil
	}
	if err := s.disk.Folder(s.dir, 0o755); err != nil {
		return "", err
	}
	if s.s.Staged != nil {
		s.s.Staged = nil
		if err := s.save(); err != nil {
			return "", err
		}
	}
	if err := s.tidy(); err != nil {
		return "", err
	}
	dir := j.Version
	for n := 2; dir == s.link("current") || dir == s.link("previous"); n++ { // the version again: what is there was damaged
		dir = j.Version + "~" + strconv.Itoa(n)
	}
	t := Tree{Dir: dir, Version: j.Version, SHA256: j.Target.SHA256}
	if err := room(s.dir, j.Target.Custom.Unpacked); err != nil {
		return "", err
	}
	part := "." + dir + ".part"
	if err := s.disk.Folder(s.path(part), 0o755); err != nil {
		return "", err
	}
	s.disk.step("unpack", part)
	if err := s.unpack(ctx, j, s.path(part), l); err != nil {
		return "", errors.Join(err, os.RemoveAll(s.path(part)))
	}
	s.disk.step("read back", part)
	if hash, err := pack(s.path(part)); err != nil || hash != t.SHA256 {
		return "", update.Fail("storage", "tree of %s after writing: %w", j.Version, errors.Join(errDiffers, err))
	}
	if err := s.disk.Rename(s.path(part), s.path(dir)); err != nil {
		return "", err
	}
	s.s.Staged, s.s.Trees[dir] = &t, t
	return s.path(dir), s.save()
}

// unpack writes the content to dir.
func (s *Shelf) unpack(ctx context.Context, j update.Job, dir string, l tree.Limits) error {
	var r io.Reader
	switch {
	case j.File != "":
		f, err := os.Open(j.File)
		if err != nil {
			return fmt.Errorf("open content: %w", err)
		}
		defer f.Close()
		r = f
	case j.Content != nil:
		r = io.NewSectionReader(j.Content, 0, j.Target.Length)
	default:
		return update.Fail("install", "there is no content of %s", j.Version)
	}
	err := tree.Unpack(reader(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(b)
	}), dir, l)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, tree.ErrInvalid):
		return update.Refuse("incompatible", "content of %s: %w", j.Version, err)
	case errors.Is(err, tree.ErrTooLarge), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return update.Fail("storage", "content of %s: %w", j.Version, err)
	}
	return err
}

// reader is a function that reads.
type reader func([]byte) (int, error)

// Read implements io.Reader.
func (r reader) Read(b []byte) (int, error) { return r(b) }

// Drop removes what is staged.
func (s *Shelf) Drop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s.Staged == nil {
		return nil
	}
	s.s.Staged = nil
	return errors.Join(s.save(), s.tidy())
}

// Try puts the staged tree on trial for the execution and makes it current.
// Between the two stop is called with the folder that was current, or nothing.
func (s *Shelf) Try(execution string, stop func(dir string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s.Trial == nil {
		t := s.s.Staged
		if t == nil {
			return update.Fail("storage", "nothing is staged")
		}
		if err := s.check(*t); err != nil {
			return update.Fail("storage", "staged tree of %s: %w", t.Version, err)
		}
		// The trial before the links: a cut between them runs the old tree, and
		// nothing ever runs that is not on trial.
		s.s.Trial = &trial{Tree: *t, From: s.link("current"), Older: s.link("previous"), Execution: execution}
		s.s.Staged = nil
		if err := s.save(); err != nil {
			return err
		}
	}
	t := s.s.Trial
	if err := s.over(); err != nil {
		return err
	}
	if s.link("current") == t.Dir {
		return nil
	}
	from := ""
	if t.From != "" {
		from = s.path(t.From)
	}
	if err := stop(from); err != nil {
		if _, e := s.settle(); e != nil {
			err = errors.Join(err, e)
		}
		return err
	}
	if err := s.disk.Link(s.path("previous"), t.From); err != nil {
		return err
	}
	return s.disk.Link(s.path("current"), t.Dir)
}

// over is an error when the trial was given up: only Back ends it.
func (s *Shelf) over() error {
	if t := s.s.Trial; t != nil && t.Over {
		return update.Fail("install", "%s was given up, and is not yet taken back", t.Version)
	}
	return nil
}

// Keep ends the trial: the tree stays, and the one before it.
func (s *Shelf) Keep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.over(); err != nil {
		return err
	}
	if s.s.Trial != nil {
		s.s.Trial = nil
		if err := s.save(); err != nil {
			return err
		}
	}
	return s.tidy()
}

// Back ends the trial: what was current is current again.
func (s *Shelf) Back() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s.Trial == nil {
		return s.tidy()
	}
	if !s.s.Trial.Over {
		s.s.Trial.Over = true
		if err := s.save(); err != nil {
			return err
		}
	}
	if err := s.back(); err != nil {
		return err
	}
	return s.tidy()
}

func (s *Shelf) back() error {
	t := s.s.Trial
	if err := s.disk.Link(s.path("current"), t.From); err != nil {
		return err
	}
	if err := s.disk.Link(s.path("previous"), t.Older); err != nil {
		return err
	}
	s.s.Trial = nil
	return s.save()
}

// Current returns the folder of the tree that is current, and of what it is a
// copy; a tree of unknown origin has no version. Without one dir is empty.
func (s *Shelf) Current() (dir string, t Tree, onTrial bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current()
}

func (s *Shelf) current() (string, Tree, bool) {
	name := s.link("current")
	if name == "" {
		return "", Tree{}, false
	}
	return s.path(name), s.s.Trees[name], s.s.Trial != nil && s.s.Trial.Dir == name
}

var errDiffers = errors.New("the disk does not hold what was installed")

// Check compares the tree with what was installed.
func (s *Shelf) Check(t Tree) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.check(t)
}

func (s *Shelf) check(t Tree) error {
	hash, err := s.hash(t.Dir)
	if err == nil && hash != t.SHA256 {
		err = errDiffers
	}
	return err
}

// Truth says what is current, read from the disk. A tree that is not what was
// installed is no version of anything: Slot and Hash say what lies there.
func (s *Shelf) Truth() (update.Truth, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, t, onTrial := s.current()
	if dir == "" {
		return update.Truth{}, nil
	}
	truth := update.Truth{Slot: filepath.Base(dir), Trial: onTrial}
	if onTrial {
		truth.Execution = s.s.Trial.Execution
	}
	hash, err := s.hash(truth.Slot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, tree.ErrInvalid) {
		return truth, err
	}
	truth.Hash = hash
	if t.SHA256 != "" && hash == t.SHA256 {
		truth.Version = t.Version
	}
	return truth, nil
}

// hash packs the tree again. Only what changed is read: the time of a change
// of an inode cannot be set.
func (s *Shelf) hash(name string) (string, error) {
	m, err := mark(s.path(name))
	if err != nil {
		return "", err
	}
	if was := s.seen[name]; was.mark == m {
		return was.hash, nil
	}
	h, err := pack(s.path(name))
	if err != nil {
		return "", err
	}
	s.seen[name] = seen{m, h}
	return h, nil
}

// mark tells whether anything of a tree was changed.
func mark(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		fmt.Fprintln(h, p, st.Dev, st.Ino, st.Mode, st.Size, st.Mtim, st.Ctim)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

func pack(dir string) (string, error) {
	h := sha256.New()
	if err := tree.Pack(h, dir); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Seed packs the current tree, to be the seed of the next download; nil
// without one. It must be closed.
func (s *Shelf) Seed() io.ReadCloser {
	dir, _, _ := s.Current()
	if dir == "" {
		return nil
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(tree.Pack(w, dir)) }() // ends with its reader
	return r
}

// Name returns the last part of a component ops/{tenant}/{name}, which names
// its folder.
func Name(component string) (string, error) {
	parts := strings.Split(component, "/")
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}
	if len(parts) != 3 || parts[0] != "ops" || parts[1] == "" || parts[2] == "" || len(parts[2]) > 64 || parts[2][0] == '.' || strings.ContainsFunc(parts[2], bad) {
		return "", update.Refuse("incompatible", "component %.80q: must be ops/{tenant}/{name}, the name of letters, digits, - _ and .", component)
	}
	return parts[2], nil
}
