package trust

import (
	"crypto"
	"errors"
	"fmt"
	"maps"
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
	root     *rootMeta
	roles    map[string]*targetsMeta // targets and those it delegates to
	edited   map[string]bool         // differs from what is published
	old      *rootMeta               // the published root, which the next must follow from
	recovers bool                    // the root that was edited follows from none
}

// book reads the newest published metadata of each role. A delegated role that
// nobody has signed anything for yet is not in it.
func (r *Repository) book() (*book, error) {
	b, err := r.published()
	if err != nil {
		return nil, err
	}
	for _, role := range []string{RoleRoot, RoleTargets} {
		if b.root == nil || role == RoleTargets && b.roles[role] == nil {
			return nil, fmt.Errorf("%s is not a release repository: it has no %s metadata; make one with tillward-provision repo init", r.Dir, role)
		}
	}
	return b, nil
}

// published is book where root or targets may not be there yet.
func (r *Repository) published() (*book, error) {
	b := &book{roles: map[string]*targetsMeta{}, edited: map[string]bool{}}
	file, err := r.latest(RoleRoot)
	if err != nil || file == "" {
		return b, err
	}
	if b.root, err = metadata.Root().FromFile(file); err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	if b.old, err = metadata.Root().FromFile(file); err != nil { // a copy that nobody edits
		return nil, fmt.Errorf("read root: %w", err)
	}
	names := []string{RoleTargets}
	for i := 0; i < len(names); i++ {
		file, err := r.latest(names[i])
		if err != nil {
			return nil, err
		}
		if file == "" {
			continue
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

// latest returns the file with the highest version of a role; empty when there is none.
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

// signers returns whose keys sign a role, and how many of them must. A new root
// is signed by those of the root before it, too.
func (b *book) signers(role string) (ids []string, threshold int) {
	if topRole(role) {
		of := b.root.Signed.Roles[role]
		ids = slices.Clone(of.KeyIDs)
		if role == RoleRoot && b.edited[role] && b.old != nil && !b.recovers {
			ids = append(ids, b.old.Signed.Roles[role].KeyIDs...)
			slices.Sort(ids)
			ids = slices.Compact(ids)
		}
		return ids, of.Threshold
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
	case m == nil:
		m = metadata.Targets()
		b.roles[role] = m
	case !b.edited[role]:
		m.Signed.Version++
	}
	m.Signed.Expires = expiry(role)
	m.Signatures = []metadata.Signature{}
	b.edited[role] = true
	return m
}

// editRoot is edit for the root.
func (b *book) editRoot() *rootMeta {
	switch {
	case b.root == nil:
		b.root = metadata.Root()
		b.root.Signed.ConsistentSnapshot = true
	case !b.edited[RoleRoot]:
		b.root.Signed.Version++
	}
	b.root.Signed.Expires = expiry(RoleRoot)
	b.root.Signatures = []metadata.Signature{}
	b.edited[RoleRoot] = true
	return b.root
}

// delegate lets keys sign a role from now on; threshold 0 is all of them.
func (b *book) delegate(role string, keys []crypto.PublicKey, threshold int) error {
	patterns, err := paths(role)
	if err != nil {
		return err
	}
	d := metadata.DelegatedRole{Name: role, Terminating: true, Paths: patterns, KeyIDs: []string{}}
	known := map[string]*metadata.Key{}
	if err := addKeys(role, &d.KeyIDs, known, keys); err != nil {
		return err
	}
	if d.Threshold, err = enough(role, threshold, len(d.KeyIDs)); err != nil {
		return err
	}
	m := b.edit(RoleTargets)
	if m.Signed.Delegations == nil {
		m.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	}
	maps.Copy(m.Signed.Delegations.Keys, known)
	m.Signed.Delegations.Roles = append(m.Signed.Delegations.Roles, d)
	return nil
}

// addKeys adds keys to those of a role. The same key twice would count once, and
// a threshold would look higher than it is.
func addKeys(role string, ids *[]string, known map[string]*metadata.Key, keys []crypto.PublicKey) error {
	for _, k := range keys {
		id, key, err := tufKey(k)
		if err != nil {
			return fmt.Errorf("key of %s: %w", role, err)
		}
		if slices.Contains(*ids, id) {
			return fmt.Errorf("key %s is one of %s already; each counts once", Short(id), role)
		}
		*ids = append(*ids, id)
		known[id] = key
	}
	return nil
}

// settle has every role signed again whose keys are others now.
func (b *book) settle() {
	for _, role := range b.order() {
		if m := b.roles[role]; m != nil && !b.edited[role] && b.verify(role, m) != nil {
			b.edit(role)
		}
	}
}

// check wants enough signatures on the newest metadata of each role.
func (b *book) check(dir string) error {
	if err := b.verifyRoot(); err != nil {
		return fmt.Errorf("root %d of %s: %w: %w", b.root.Signed.Version, dir, ErrSignature, err)
	}
	for _, role := range b.order() {
		m := b.roles[role]
		if m == nil {
			return fmt.Errorf("%s has no %s metadata yet", dir, role)
		}
		if err := b.verify(role, m); err != nil {
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
	by := b.roles[RoleTargets]
	if by == nil {
		return errors.New("nobody delegates to it")
	}
	return by.VerifyDelegate(role, m)
}

// verifyRoot checks the signatures on the root: its own and, when it is a new
// one, those of the root before it.
func (b *book) verifyRoot() error {
	if b.edited[RoleRoot] && b.old != nil && !b.recovers {
		if err := b.old.VerifyDelegate(RoleRoot, b.root); err != nil {
			return fmt.Errorf("by the keys of root %d: %w", b.old.Signed.Version, err)
		}
	}
	return b.root.VerifyDelegate(RoleRoot, b.root)
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

// Short is a key id as people compare it.
func Short(id string) string { return id[:min(len(id), 16)] }
