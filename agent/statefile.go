package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// loadJSON reads the file at path into v. A file that is not there is
// fs.ErrNotExist; one that cannot be read as JSON is moved aside, so that the
// agent starts anew from it instead of failing for ever.
func loadJSON(path string, v any) error {
	b, err := os.ReadFile(path) // #nosec G304 -- a fixed name below state_dir
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		if mv := os.Rename(path, path+".broken"); mv != nil {
			err = errors.Join(err, mv)
		}
		return fmt.Errorf("read %s: %w: %w", filepath.Base(path), fs.ErrNotExist, err)
	}
	return nil
}

// saveJSON replaces the file at path in one step that survives a power cut:
// write beside, sync, rename, sync the folder.
func saveJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	d, err := os.Open(dir) // #nosec G304 -- state_dir
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
