package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tillward/tillward/provisioning/durable"
)

// Leaving is the journal of a box that gives up its owner. It is a file of its
// own: what it removes cannot hold it. From Begin on there is no way back, and
// nothing else may be done before Wipe has ended.
type Leaving struct {
	File      string
	Ownership *Ownership
}

// parting is the file.
type parting struct {
	Entries int `json:"entries"` // of the voucher that says so
}

// Step is one thing that goes. It may run again after a power cut.
type Step struct {
	Name string
	Run  func() error
}

// Begun reports whether a wipe has begun. A file that cannot be read has.
func (l *Leaving) Begun() bool {
	_, err := os.Lstat(l.File)
	return !errors.Is(err, fs.ErrNotExist)
}

// Begin puts on record that everything of the owner goes, by a voucher of so
// many entries.
func (l *Leaving) Begin(entries int) error {
	b, err := json.Marshal(parting{entries})
	if err != nil {
		return fmt.Errorf("begin the wipe: %w", err)
	}
	if err := replace(l.File, b); err != nil {
		return fmt.Errorf("begin the wipe: %w", err)
	}
	return nil
}

// Wipe carries out all steps in order, and when each has worked the journal goes
// last. One that fails, a folder that cannot be emptied or a full disk, does not
// spare the others. After an error or a power cut Wipe is called again.
func (l *Leaving) Wipe(steps []Step) error {
	var p parting
	if b, err := os.ReadFile(l.File); err == nil {
		_ = json.Unmarshal(b, &p) // torn: it is not known how long the chain was
	}
	all := append([]Step{{"mark", func() error { return l.Ownership.give(p.Entries) }}}, steps...)
	var failed []error
	for _, s := range all {
		if err := s.Run(); err != nil {
			failed = append(failed, fmt.Errorf("wipe %s: %w", s.Name, err))
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	if err := os.Remove(l.File); err != nil {
		return fmt.Errorf("end the wipe: %w", err)
	}
	return durable.SyncDir(filepath.Dir(l.File))
}

// Empty removes what is in a folder, and not the folder; links in it go, what
// they point at stays. A folder that is not there is empty.
func Empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// Remove removes the files and folders in dir whose names begin with prefix.
func Remove(dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}
