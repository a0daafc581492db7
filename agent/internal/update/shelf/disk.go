package shelf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/durable"
)

// Disk changes files so that a power cut at any instruction leaves each change
// done or not done. Step is called with the name of each change before it is
// made; tests cut the power there. It may be nil.
type Disk struct{ Step func(name string) }

func (d Disk) step(what, path string) {
	if d.Step != nil {
		d.Step(what + " " + filepath.Base(path))
	}
}

// Save replaces the file at path by v as JSON.
func (d Disk) Save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	d.step("write", path)
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return d.Rename(tmp, path)
}

// Load reads what Save wrote. A file that is not there leaves v as it is.
func (d Disk) Load(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}

// Rename moves from to to, in the same folder, in place of what is there.
func (d Disk) Rename(from, to string) error {
	d.step("rename", to)
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	return durable.SyncDir(filepath.Dir(to))
}

// Link makes the symbolic link at path lead to to; without to there is none.
func (d Disk) Link(path, to string) error {
	if now, err := os.Readlink(path); err == nil && now == to {
		return durable.SyncDir(filepath.Dir(path)) // a change that a cut kept from being synced counts as well
	}
	if to == "" {
		d.step("unlink", path)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove link: %w", err)
		}
		return durable.SyncDir(filepath.Dir(path))
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	if err := os.Symlink(to, tmp); err != nil {
		return fmt.Errorf("link %s: %w", filepath.Base(path), err)
	}
	return d.Rename(tmp, path)
}

// Remove removes what is at path with all below it. A cut may leave a part.
func (d Disk) Remove(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	d.step("remove", path)
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

// Folder makes the folder at path, and those above it.
func (d Disk) Folder(path string, mode fs.FileMode) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	if err := d.Folder(filepath.Dir(path), mode); err != nil {
		return err
	}
	d.step("make", path)
	if err := errors.Join(os.Mkdir(path, mode), os.Chmod(path, mode)); err != nil { // whatever the umask says
		return fmt.Errorf("make folder: %w", err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

// reserve is what is to be left of the disk that trees are unpacked on, which
// may be another one than that of the agent.
const reserve = 16 << 20

// room wants room for a tree.
func room(dir string, unpacked int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return nil //nolint:nilerr // it will be found out
	}
	if free := st.Bavail * uint64(st.Bsize); free < uint64(max(unpacked, 0))+reserve { // #nosec G115 -- positive
		return update.Hold("space", "%d MiB are free where it is to be unpacked, %d are needed", free>>20, (unpacked+reserve)>>20)
	}
	return nil
}
