// Package durable changes files so that a power cut leaves the old or the new,
// and never a part of one: POSIX promises that a rename is seen whole, and only
// a sync of the file before it and of the folder behind it brings both to the
// disk in that order.
//
// It owns those few lines for all who keep small files, on the till and at the
// service. What has to be cut between two of its steps, for a test or a journal,
// takes the steps for itself.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Replace puts b in the place of the file at path, readable by its owner only,
// in one step that survives a power cut. Until then it lies beside it, with the
// ending .new.
func Replace(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // #nosec G304 -- named by the caller
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
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes what was created, renamed and removed in dir survive a power
// cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- named by the caller
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
