// Package update replaces the agent by a newer one, and undoes it when the new
// one does not prove itself.
//
// Two slots, a and b, lie on the state partition; the golden agent is on the
// image. `current` is a link to the slot that runs; trial.json says that it
// has not proved itself yet. Every change of either survives a power cut at
// any instruction: there is always something to start, and what started is
// known. What is genuine is decided by provisioning/trust alone; the fleet
// service can only point.
//
// The whole new binary is held in memory once while it is applied (selfupdate
// does so); idle, the package costs nothing.
//
// It exports more names than other rooms because it is the launcher, too
// (docs/adr/0002).
package update

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
)

// EnvSlot tells a started agent which slot it runs from.
const EnvSlot = "TILLWARD_SLOT"

// Golden is the slot name of the agent on the image.
const Golden = "golden"

// maxStarts is how often a slot on trial is started before it is given up.
const maxStarts = 3

const binary = "tillward-agent"

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

func (s slots) path(slot string) string { return filepath.Join(s.dir, slot, binary) }

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
		return syncDir(s.dir)
	}
	tmp := link + ".new"
	_ = os.Remove(tmp)
	if err := os.Symlink(slot, tmp); err != nil {
		return fmt.Errorf("point at slot %s: %w", slot, err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return fmt.Errorf("point at slot %s: %w", slot, err)
	}
	return syncDir(s.dir)
}

func (s slots) trial() *trial {
	var t trial
	if err := load(filepath.Join(s.dir, "trial.json"), &t); err != nil {
		return nil
	}
	return &t
}

func (s slots) setTrial(t *trial) error {
	path := filepath.Join(s.dir, "trial.json")
	if t == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("end trial: %w", err)
		}
		return syncDir(s.dir)
	}
	return save(path, t)
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
// sound. The last resort is golden.
func Choose(dir, golden string) (path, slot string) {
	s := slots{dir}
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
		if s.sound(c) == nil {
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

// Launch replaces this process by the slot's agent, with the arguments it was
// started with. It returns only when the golden agent itself is to run, or
// when this process was started by Launch already; the slot that runs is
// returned.
func Launch(dir string) (string, error) {
	if slot := os.Getenv(EnvSlot); slot != "" {
		return slot, nil
	}
	golden, err := os.Executable()
	if err != nil {
		return Golden, fmt.Errorf("find own binary: %w", err)
	}
	path, slot := Choose(dir, golden)
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

// save replaces the file at path in one step that survives a power cut.
func save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return write(path, b)
}

func write(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // #nosec G304 -- below the state folder
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- below the state folder
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
