// Package binary is the agent as a thing that is updated: two slots on the state
// partition, the golden agent on the image, and the launcher that chooses among
// them.
//
// Two slots, a and b, lie on the state partition; the golden agent is on the
// image. `current` is a link to the slot that runs; trial.json says that it has
// not proved itself yet. Every change of either survives a power cut at any
// instruction: there is always something to start, and what started is known.
//
// The whole new binary is held in memory once while it is applied (selfupdate
// does so); idle, the package costs nothing. The launcher is the golden agent
// itself (docs/adr/0002).
package binary

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/provisioning/durable"
)

// EnvSlot tells a started agent which slot it runs from.
const EnvSlot = "TILLWARD_SLOT"

// Golden is the slot name of the agent on the image.
const Golden = "golden"

// maxStarts is how often a slot on trial is started before it is given up.
const maxStarts = 3

const program = "tillward-agent"

// trial is trial.json: a slot that has not proved itself.
type trial struct {
	Slot      string `json:"slot"`
	Previous  string `json:"previous"` // a, b or golden
	Execution string `json:"execution"`
	Version   string `json:"version"`
	Starts    int    `json:"starts"`
	Failed    string `json:"failed,omitempty"` // why it was given up; the link points at Previous again
}

// slots is the folder with both slots.
type slots struct{ dir string }

func (s slots) path(slot string) string { return filepath.Join(s.dir, slot, program) }

// current reads the link; golden when there is none.
func (s slots) current() string {
	to, err := os.Readlink(filepath.Join(s.dir, "current"))
	if err != nil || (to != "a" && to != "b") {
		return Golden
	}
	return to
}

// point makes slot the one to start next.
func (s slots) point(slot string) error {
	link := filepath.Join(s.dir, "current")
	if slot == Golden {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("point at the golden agent: %w", err)
		}
		return durable.SyncDir(s.dir)
	}
	tmp := link + ".new"
	_ = os.Remove(tmp)
	if err := os.Symlink(slot, tmp); err != nil {
		return fmt.Errorf("point at slot %s: %w", slot, err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return fmt.Errorf("point at slot %s: %w", slot, err)
	}
	return durable.SyncDir(s.dir)
}

// trial reads the trial; nil: there is none. One that cannot be read is one all
// the same, of what is current: what has not proved itself must not come to stay
// because the disk lost a byte. Golden is what there is to go back to.
func (s slots) trial() *trial {
	var t trial
	err := load(filepath.Join(s.dir, "trial.json"), &t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if slot := s.current(); err != nil || t.Slot != "a" && t.Slot != "b" || other(t.Previous) == Golden && t.Previous != Golden {
		if slot == Golden { // of none that can be started, then
			return &trial{Previous: Golden}
		}
		return &trial{Slot: slot, Previous: Golden, Version: s.version(slot)}
	}
	return &t
}

func (s slots) setTrial(t *trial) error {
	path := filepath.Join(s.dir, "trial.json")
	if t == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("end trial: %w", err)
		}
		return durable.SyncDir(s.dir)
	}
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode trial: %w", err)
	}
	return durable.Replace(path, b)
}

// version says which agent lies in the slot; empty: an agent wrote it that did
// not say.
func (s slots) version(slot string) string {
	b, err := os.ReadFile(s.path(slot) + ".version")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// outdated reports whether the golden agent, of the given version, is no older
// than what lies in the slot: the image was updated since.
func (s slots) outdated(slot, golden string) bool {
	v := s.version(slot)
	return v != "" && semver.IsValid("v"+golden) && semver.Compare("v"+golden, "v"+v) >= 0
}

// clear gives a slot up that the image has overtaken. What starts it goes
// first.
func (s slots) clear(slot string) error {
	if s.current() == slot {
		if err := s.point(Golden); err != nil {
			return err
		}
	}
	if err := os.Remove(s.path(slot) + ".sha256"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear slot %s: %w", slot, err)
	}
	return durable.SyncDir(filepath.Join(s.dir, slot))
}

// sound checks that the slot's binary is what was written there.
func (s slots) sound(slot string) error {
	want, err := os.ReadFile(s.path(slot) + ".sha256")
	if err != nil {
		return fmt.Errorf("slot %s: %w", slot, err)
	}
	got, err := hashFile(s.path(slot))
	if err != nil {
		return fmt.Errorf("slot %s: %w", slot, err)
	}
	if got != strings.TrimSpace(string(want)) {
		return fmt.Errorf("slot %s: the binary is not what was written", slot)
	}
	return nil
}

// giveUp ends a trial in favour of what ran before.
func (s slots) giveUp(t *trial, why string) error {
	t.Failed = why
	if err := s.setTrial(t); err != nil {
		return err
	}
	return s.point(t.Previous)
}

// Choose says what to start: the binary and its slot. It counts the start of a
// slot on trial first, so that a crash counts too, and passes over what is not
// sound and what the image, whose golden agent has the given version, has
// overtaken. The last resort is golden.
func Choose(dir, golden, version string) (path, slot string) {
	s := slots{dir}
	for _, c := range []string{"a", "b"} {
		if s.outdated(c, version) {
			_ = s.clear(c) // a disk that cannot be written: it is not chosen, either
		}
	}
	cur := s.current()
	if t := s.trial(); t != nil && t.Slot == cur {
		t.Starts++
		var err error
		switch {
		case t.Failed != "": // cut between giving up and switching back
			err = s.giveUp(t, t.Failed)
			cur = t.Previous
		case t.Starts > maxStarts:
			err = s.giveUp(t, fmt.Sprintf("started %d times without proving itself", maxStarts))
			cur = t.Previous
		default:
			err = s.setTrial(t)
		}
		if err != nil { // a disk that cannot be written must not start what is on trial for ever
			cur = t.Previous
		}
	}
	for _, c := range []string{cur, other(cur)} {
		if c == Golden {
			break
		}
		if c != cur && s.trial() != nil {
			break // the other slot is half written or was given up
		}
		if !s.outdated(c, version) && s.sound(c) == nil {
			return s.path(c), c
		}
	}
	return golden, Golden
}

func other(slot string) string {
	switch slot {
	case "a":
		return "b"
	case "b":
		return "a"
	}
	return Golden
}

// Launch replaces this process, the golden agent of the given version, by the
// slot's agent, with the arguments it was started with. It returns only when the
// golden agent itself is to run, or when this process was started by Launch
// already; the slot that runs is returned.
func Launch(dir, version string) (string, error) {
	if slot := os.Getenv(EnvSlot); slot != "" {
		return slot, nil
	}
	golden, err := os.Executable()
	if err != nil {
		return Golden, fmt.Errorf("find own binary: %w", err)
	}
	path, slot := Choose(dir, golden, version)
	if slot == Golden {
		return Golden, nil
	}
	env := append(os.Environ(), EnvSlot+"="+slot)
	err = syscall.Exec(path, append([]string{path}, os.Args[1:]...), env) // #nosec G204 -- a verified slot
	return Golden, fmt.Errorf("start slot %s: %w", slot, err)
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path) // #nosec G304 -- below the state folder
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func load(path string, v any) error {
	b, err := os.ReadFile(path) // #nosec G304 -- below the state folder
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
