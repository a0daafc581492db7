package trust

import (
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

type (
	rootMeta    = metadata.Metadata[metadata.RootType]
	targetsMeta = metadata.Metadata[metadata.TargetsType]
)

// document is the metadata of any role.
type document interface {
	Sign(signer signature.Signer) (*metadata.Signature, error)
	ToBytes(pretty bool) ([]byte, error)
}

// book is the newest metadata of a repository, and what is changed in it.
type book struct {
	root   *rootMeta
	roles  map[string]*targetsMeta // targets and those it delegates to
	edited map[string]bool
}

// book reads the newest metadata of each role. A delegated role that nobody has
// signed anything for yet is not in it.
func (r *Repository) book() (*book, error) {
	b := &book{roles: map[string]*targetsMeta{}}
	file, err := r.latest(RoleRoot)
	if err != nil {
		return nil, err
	}
	if b.root, err = metadata.Root().FromFile(file); err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	names := []string{RoleTargets}
	for i := 0; i < len(names); i++ {
		file, err := r.latest(names[i])
		if err != nil && i > 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := metadata.Targets().FromFile(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", names[i], err)
		}
		b.roles[names[i]] = m
		if i == 0 && m.Signed.Delegations != nil {
			for _, d := range m.Signed.Delegations.Roles {
				names = append(names, d.Name)
			}
		}
	}
	return b, nil
}

// latest returns the file with the highest version of a role.
func (r *Repository) latest(role string) (string, error) {
	suffix := strings.TrimPrefix(MetadataFile(role, 0), "0")
	entries, err := os.ReadDir(r.metadata(""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("repository: %w", err)
	}
	best, file := -1, ""
	for _, e := range entries {
		number, ok := strings.CutSuffix(e.Name(), suffix)
		v, err := strconv.Atoi(number)
		if ok && err == nil && v > best {
			best, file = v, filepath.Join(r.metadata(e.Name()))
		}
	}
	if file == "" {
		return "", fmt.Errorf("%s is not a release repository: it has no %s metadata; make one with tillward-provision repo init", r.Dir, role)
	}
	return file, nil
}

// delegation returns what targets says about a delegated role, or nil.
func (b *book) delegation(role string) *metadata.DelegatedRole {
	m := b.roles[RoleTargets]
	if m == nil || m.Signed.Delegations == nil {
		return nil
	}
	for i := range m.Signed.Delegations.Roles {
		if m.Signed.Delegations.Roles[i].Name == role {
			return &m.Signed.Delegations.Roles[i]
		}
	}
	return nil
}

// signers returns whose keys sign a role, and how many of them must.
func (b *book) signers(role string) (ids []string, threshold int) {
	if topRole(role) {
		of := b.root.Signed.Roles[role]
		return of.KeyIDs, of.Threshold
	}
	if d := b.delegation(role); d != nil {
		return d.KeyIDs, d.Threshold
	}
	return nil, 0
}

// order lists the roles that are there, targets first.
func (b *book) order() []string {
	var list []string
	for role := range b.roles {
		if role != RoleTargets {
			list = append(list, role)
		}
	}
	slices.Sort(list)
	return append([]string{RoleTargets}, list...)
}

// edit returns the next version of a role's metadata, not signed yet, to change.
func (b *book) edit(role string) *targetsMeta {
	m := b.roles[role]
	switch {
	case b.edited[role]:
		return m
	case m == nil:
		m = metadata.Targets(expiry(role))
		b.roles[role] = m
	default:
		m.Signed.Version++
		m.Signed.Expires = expiry(role)
		m.Signatures = []metadata.Signature{}
	}
	if b.edited == nil {
		b.edited = map[string]bool{}
	}
	b.edited[role] = true
	return m
}

// delegate lets keys sign a role from now on; threshold 0 is all of them.
func (b *book) delegate(role string, keys []crypto.Signer, threshold int) error {
	patterns, err := paths(role)
	if err != nil {
		return err
	}
	d := metadata.DelegatedRole{Name: role, Terminating: true, Paths: patterns}
	m := b.edit(RoleTargets)
	if m.Signed.Delegations == nil {
		m.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	}
	for _, k := range keys {
		id, key, err := tufKey(k.Public())
		if err != nil {
			return fmt.Errorf("key of %s: %w", role, err)
		}
		if !slices.Contains(d.KeyIDs, id) {
			d.KeyIDs = append(d.KeyIDs, id)
		}
		m.Signed.Delegations.Keys[id] = key
	}
	if d.Threshold, err = enough(role, threshold, len(d.KeyIDs)); err != nil {
		return err
	}
	m.Signed.Delegations.Roles = append(m.Signed.Delegations.Roles, d)
	return nil
}

// check wants enough signatures on the newest metadata of each role.
func (b *book) check(dir string) error {
	if err := b.root.VerifyDelegate(RoleRoot, b.root); err != nil {
		return fmt.Errorf("root %d of %s: %w: %w", b.root.Signed.Version, dir, ErrSignature, err)
	}
	for _, role := range b.order() {
		m := b.roles[role]
		if m == nil {
			return fmt.Errorf("%s has no %s metadata yet", dir, role)
		}
		err := b.verify(role, m)
		if err != nil {
			return fmt.Errorf("%s %d of %s: %w: %w", role, m.Signed.Version, dir, ErrSignature, err)
		}
	}
	return nil
}

// verify checks the signatures on metadata of targets or a delegated role.
func (b *book) verify(role string, m *targetsMeta) error {
	if role == RoleTargets {
		return b.root.VerifyDelegate(role, m)
	}
	return b.roles[RoleTargets].VerifyDelegate(role, m)
}

// sign signs with those of the keys that ids names.
func sign(m document, ids []string, keys Keys) error {
	for _, k := range keys.all() {
		id, _, err := tufKey(k.Public())
		if err != nil {
			return err
		}
		if !slices.Contains(ids, id) {
			continue
		}
		if _, err := m.Sign(signer{k}); err != nil {
			return err
		}
	}
	return nil
}

// fit counts the keys that ids names.
func fit(ids []string, keys Keys) (n int) {
	for _, k := range keys.all() {
		if id, _, err := tufKey(k.Public()); err == nil && slices.Contains(ids, id) {
			n++
		}
	}
	return n
}

// mayEach wants enough of the keys that may sign a role: what others sign would
// replace a good repository by one that no device takes.
func mayEach(dir, role string, ids []string, threshold int, keys Keys) error {
	if n := fit(ids, keys); n < max(threshold, 1) {
		return fmt.Errorf("%d of the keys given may sign %s of %s, %d must: use the keys that the repository was made with", n, role, dir, threshold)
	}
	return nil
}
