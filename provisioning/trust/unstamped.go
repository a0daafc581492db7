package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Stamped reports whether there are snapshot and timestamp in the folder. Where
// the service signs them there are none: it does so when it is published.
func (r *Repository) Stamped() bool {
	_, err := os.Stat(r.metadata("timestamp.json"))
	return err == nil
}

// Verify checks a folder without snapshot and timestamp as far as people sign:
// the roots from one that the caller trusts, the newest metadata of each role,
// and every file. VerifyRepository checks one that has them.
func (r *Repository) Verify(root []byte) (list []Target, err error) {
	defer func() { // go-tuf follows pointers that a null leaves empty
		if p := recover(); p != nil {
			list, err = nil, fmt.Errorf("release metadata is malformed: %v: %w", p, ErrSignature)
		}
	}()
	b, err := r.book()
	if err != nil {
		return nil, err
	}
	if b.root, err = metadata.Root().FromBytes(root); err != nil {
		return nil, fmt.Errorf("read root: %w: %w", ErrSignature, err)
	}
	for {
		n := b.root.Signed.Version + 1
		raw, err := readBounded(os.Open, r.metadata(MetadataFile(RoleRoot, n)), maxRoot)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read root %d: %w", n, err)
		}
		next, err := metadata.Root().FromBytes(raw)
		if err == nil && next.Signed.Version != n {
			err = fmt.Errorf("it says that it is version %d", next.Signed.Version)
		}
		if err == nil {
			err = errors.Join(b.root.VerifyDelegate(RoleRoot, next), next.VerifyDelegate(RoleRoot, next))
		}
		if err != nil {
			return nil, fmt.Errorf("root %d: %w: %w", n, ErrSignature, err)
		}
		b.root = next
	}
	b.edited, b.old = map[string]bool{}, nil
	if err := b.check(r.Dir); err != nil {
		return nil, err
	}
	now := time.Now()
	if b.root.Signed.IsExpired(now) || b.roles[RoleTargets].Signed.IsExpired(now) {
		return nil, fmt.Errorf("root or targets of %s: %w", r.Dir, ErrExpired)
	}
	for role, m := range b.roles {
		for p, info := range m.Signed.Targets {
			if role != RoleTargets && RoleOf(p) != role || m.Signed.IsExpired(now) {
				continue // no device takes it
			}
			t, err := target(p, info)
			if err != nil {
				return nil, err
			}
			list = append(list, t)
		}
	}
	return list, checkFiles(r.Dir, list)
}
