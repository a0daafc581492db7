package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Discard throws a draft away, and the files that it alone would have released.
func (r *Repository) Discard(role string) error {
	open, err := r.drafts()
	if err != nil {
		return err
	}
	if !slices.Contains(open, role) {
		return fmt.Errorf("there is no draft of %.80q", role)
	}
	// One that cannot be read any more is thrown away, too; its files stay.
	var gone map[string]bool
	if d, err := ReadDraft(r.DraftFile(role)); err == nil {
		if v, err := d.view(); err == nil && v.targets != nil {
			gone = files(v.targets)
		}
	}
	if err := os.Remove(r.DraftFile(role)); err != nil {
		return fmt.Errorf("throw draft away: %w", err)
	}
	for _, b := range []func() (*book, error){r.published, r.drafted} {
		left, err := b()
		if err != nil {
			return nil // who else names the files is not known
		}
		for _, m := range left.roles {
			for name := range files(m) {
				delete(gone, name)
			}
		}
	}
	for name := range gone {
		if err := os.Remove(filepath.Join(r.Dir, "targets", filepath.FromSlash(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("throw draft away: %w", err)
		}
	}
	return nil
}

// files lists what a role has under targets/.
func files(m *targetsMeta) map[string]bool {
	names := map[string]bool{}
	for p, info := range m.Signed.Targets {
		if t, err := target(p, info); err == nil {
			names[t.File()] = true
			if c := t.ChunkFile(); fs.ValidPath(c) {
				names[c] = true
			}
		}
	}
	return names
}
