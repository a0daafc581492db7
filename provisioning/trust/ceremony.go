package trust

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Signers are the keys of a role, and how many of them must sign (0: all).
type Signers struct {
	Keys      []crypto.PublicKey
	Threshold int
}

// Begin drafts the root and the delegations of a new repository.
func (r *Repository) Begin(roles map[string]Signers) error {
	b, err := r.published()
	if err != nil {
		return err
	}
	open, err := r.drafts()
	if err != nil {
		return err
	}
	if b.root != nil || len(open) > 0 {
		return fmt.Errorf("%s already holds a repository or drafts of one", r.Dir)
	}
	for _, d := range []string{"metadata", "targets"} {
		if err := os.MkdirAll(filepath.Join(r.Dir, d), 0o755); err != nil { // #nosec G301 -- public by nature
			return fmt.Errorf("make repository: %w", err)
		}
	}
	for role, s := range roles {
		if err := b.give(role, s.Keys, s.Threshold); err != nil {
			return err
		}
	}
	if err := b.whole(); err != nil {
		return err
	}
	return r.saveDrafts(b)
}

// change edits the newest metadata. With keys the result is signed and
// published at once, without any it becomes drafts.
func (r *Repository) change(keys Keys, edit func(*book) error) error {
	b, err := r.drafted()
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		open, err := r.drafts()
		if err != nil {
			return err
		}
		if len(open) > 0 {
			return fmt.Errorf("drafts of %s wait for signatures: merge them or throw them away with release discard, then sign with --keys", strings.Join(open, ", "))
		}
	}
	if err := edit(b); err != nil {
		return err
	}
	b.settle()
	if len(keys) > 0 {
		return r.publish(b, keys)
	}
	return r.saveDrafts(b)
}

// drafted is book with the drafts over it.
func (r *Repository) drafted() (*book, error) {
	open, err := r.drafts()
	if err != nil {
		return nil, err
	}
	if len(open) == 0 {
		return r.book()
	}
	b, err := r.published()
	if err != nil {
		return nil, err
	}
	for _, role := range open {
		d, err := ReadDraft(r.DraftFile(role))
		if err != nil {
			return nil, err
		}
		if d.Role != role {
			return nil, fmt.Errorf("%s holds a draft of %.80q", r.DraftFile(role), d.Role)
		}
		v, err := d.view()
		if err != nil {
			return nil, err
		}
		if done, err := r.promoted(role, v); err != nil || done {
			if err != nil {
				return nil, err
			}
			continue
		}
		if v.root != nil {
			b.root, b.recovers = v.root, d.Recovers
		} else {
			b.roles[role] = v.targets
		}
		b.edited[role] = true
	}
	if b.root == nil || b.roles[RoleTargets] == nil {
		return nil, fmt.Errorf("%s is not a release repository: make one with tillward-provision release init", r.Dir)
	}
	for role := range b.roles {
		if role != RoleTargets && b.delegation(role) == nil { // the draft takes it back
			delete(b.roles, role)
			delete(b.edited, role)
		}
	}
	return b, nil
}

// promoted reports whether a draft was published, and a power cut left it; it
// then takes it away. One that another version has overtaken is an error.
func (r *Repository) promoted(role string, v *draftView) (bool, error) {
	file, err := r.latest(role)
	if err != nil || file == "" {
		return false, err
	}
	number, _, _ := strings.Cut(filepath.Base(file), ".")
	newest, err := strconv.ParseInt(number, 10, 64)
	if err != nil || v.version() > newest {
		return false, err
	}
	there, err := os.ReadFile(file) // #nosec G304 -- our own folder
	if err != nil {
		return false, fmt.Errorf("read %s: %w", role, err)
	}
	mine, err := v.document().ToBytes(true)
	if err != nil || !bytes.Equal(there, mine) {
		return false, errors.Join(err, fmt.Errorf("draft of %s: version %d is published already: throw the draft away with release discard %s", role, v.version(), role))
	}
	if err := os.Remove(r.DraftFile(role)); err != nil {
		return false, fmt.Errorf("close draft: %w", err)
	}
	return true, nil
}

// Delegate lets keys sign the targets of a role that nobody signs yet.
func (r *Repository) Delegate(role string, s Signers, keys Keys) error {
	return r.change(keys, func(b *book) error {
		if topRole(role) {
			return fmt.Errorf("%s is no role to delegate: its keys are in the root, release rotate changes them", role)
		}
		if b.delegation(role) == nil {
			// Of a role that was taken back once, the version goes on.
			file, err := r.latest(role)
			if err != nil {
				return err
			}
			if file != "" && b.roles[role] == nil {
				if b.roles[role], err = metadata.Targets().FromFile(file); err != nil {
					return fmt.Errorf("read %s: %w", role, err)
				}
			}
		}
		return b.give(role, s.Keys, s.Threshold)
	})
}

// Undelegate takes a role back: what it signed, no device finds any more.
func (r *Repository) Undelegate(role string, keys Keys) error {
	return r.change(keys, func(b *book) error {
		if b.delegation(role) == nil {
			return fmt.Errorf("nobody has delegated %s", role)
		}
		d := b.edit(RoleTargets).Signed.Delegations
		d.Roles = slices.DeleteFunc(d.Roles, func(x metadata.DelegatedRole) bool { return x.Name == role })
		dropUnused(d)
		delete(b.roles, role)
		delete(b.edited, role)
		if err := os.Remove(r.DraftFile(role)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("throw draft away: %w", err)
		}
		return nil
	})
}

func dropUnused(d *metadata.Delegations) {
	for id := range d.Keys {
		if !slices.ContainsFunc(d.Roles, func(x metadata.DelegatedRole) bool { return slices.Contains(x.KeyIDs, id) }) {
			delete(d.Keys, id)
		}
	}
}

// Rotate adds keys to a role, takes others from it, named by at least 8 digits
// of their ids, and sets its threshold (0: as it is). What the role has signed is
// drafted again where too few of its keys are left under it.
func (r *Repository) Rotate(role string, add []crypto.PublicKey, revoke []string, threshold int, keys Keys) error {
	return r.change(keys, func(b *book) error {
		var ids *[]string
		var need *int
		var known map[string]*metadata.Key
		if topRole(role) {
			root := b.editRoot()
			ids, need, known = &root.Signed.Roles[role].KeyIDs, &root.Signed.Roles[role].Threshold, root.Signed.Keys
		} else {
			if b.delegation(role) == nil {
				return fmt.Errorf("nobody has delegated %.80q: release status lists the roles", role)
			}
			known = b.edit(RoleTargets).Signed.Delegations.Keys
			d := b.delegation(role)
			ids, need = &d.KeyIDs, &d.Threshold
		}
		for _, prefix := range revoke {
			at := slices.IndexFunc(*ids, func(id string) bool { return len(prefix) >= 8 && strings.HasPrefix(id, strings.ToLower(prefix)) })
			if at < 0 {
				return fmt.Errorf("%s has no key %.64q; release status lists its keys, and 8 digits are the least", role, prefix)
			}
			*ids = slices.Delete(*ids, at, at+1)
		}
		if err := addKeys(role, ids, known, add); err != nil {
			return err
		}
		if threshold != 0 {
			*need = threshold
		}
		if n := len(*ids); *need < 1 || *need > n {
			return fmt.Errorf("role %s: threshold %d with %d keys", role, *need, n)
		}
		if topRole(role) {
			for id := range b.root.Signed.Keys {
				used := false
				for _, of := range b.root.Signed.Roles {
					used = used || slices.Contains(of.KeyIDs, id)
				}
				if !used {
					delete(b.root.Signed.Keys, id)
				}
			}
		} else {
			dropUnused(b.roles[RoleTargets].Signed.Delegations)
		}
		return nil
	})
}

// gap is how far the version of a recovered root lies ahead: devices that
// follow the old root must not meet the new one, which they cannot verify.
const gap = 100

// Recover drafts a root with other keys that the old ones need not sign, because
// fewer of them are left than must. No device follows it by itself: it takes an
// image that carries it. The other roles keep their keys, so that devices of
// both roots go on reading the same repository.
func (r *Repository) Recover(s Signers) error {
	return r.change(nil, func(b *book) error {
		if b.edited[RoleRoot] {
			return errors.New("a draft of root waits for signatures: throw it away with release discard root first")
		}
		root := b.editRoot()
		root.Signed.Version += gap - 1
		of := root.Signed.Roles[RoleRoot]
		was := of.KeyIDs
		of.KeyIDs = []string{}
		if err := addKeys(RoleRoot, &of.KeyIDs, root.Signed.Keys, s.Keys); err != nil {
			return err
		}
		for _, id := range was {
			used := false
			for _, of := range root.Signed.Roles {
				used = used || slices.Contains(of.KeyIDs, id)
			}
			if !used {
				delete(root.Signed.Keys, id)
			}
		}
		n, err := enough(RoleRoot, s.Threshold, len(of.KeyIDs))
		of.Threshold, b.recovers = n, true
		return err
	})
}

// Withdraw marks every target of a release as withdrawn: no device installs it
// any more, and those that run it go on.
func (r *Repository) Withdraw(release string, keys Keys) error {
	return r.change(keys, func(b *book) error {
		found := false
		for _, role := range b.order() {
			if b.roles[role] == nil {
				continue
			}
			for p, info := range b.roles[role].Signed.Targets {
				if path.Dir(p) != release {
					continue
				}
				t, err := target(p, info)
				if err != nil {
					return err
				}
				found = true
				if t.Custom.Withdrawn {
					continue
				}
				t.Custom.Withdrawn = true
				custom, err := json.Marshal(t.Custom)
				if err != nil {
					return err
				}
				raw := json.RawMessage(custom)
				info.Custom = &raw
				b.edit(role)
			}
		}
		if !found {
			return fmt.Errorf("no release %.100q: repo show lists them", release)
		}
		return nil
	})
}

// Renew drafts the roles again as they are, with a new end of life.
func (r *Repository) Renew(roles []string, keys Keys) error {
	return r.change(keys, func(b *book) error {
		for _, role := range roles {
			switch {
			case role == RoleRoot:
				b.editRoot()
			case b.roles[role] != nil:
				b.edit(role)
			case topRole(role):
				return fmt.Errorf("%s is signed by the service, or by release refresh", role)
			default:
				return fmt.Errorf("nobody has delegated %.80q: release status lists the roles", role)
			}
		}
		return nil
	})
}

// Merge puts signatures on their drafts, and publishes those that have enough.
// It returns the roles that it published. Without signatures it goes on where a
// power cut has stopped it.
func (r *Repository) Merge(list []Signature) ([]string, error) {
	b, err := r.drafted()
	if err != nil {
		return nil, err
	}
	drafts := map[string]*Draft{}
	for _, s := range list {
		d := drafts[s.Role]
		if d == nil {
			if !b.edited[s.Role] {
				return nil, fmt.Errorf("there is no draft of %.80q for the signature by %.16q", s.Role, s.KeyID)
			}
			if d, err = ReadDraft(r.DraftFile(s.Role)); err != nil {
				return nil, err
			}
			// Who may sign is said by the repository, not by the file.
			if d.Delegator, err = b.delegator(s.Role); err != nil {
				return nil, err
			}
			if s.Role == RoleRoot {
				if d.Roots, err = r.roots(); err != nil {
					return nil, err
				}
			}
		}
		if err := d.add(s); err != nil {
			return nil, err
		}
		drafts[s.Role] = d
	}
	for role, d := range drafts { // all or none
		v, err := d.view()
		if err != nil {
			return nil, err
		}
		if v.root != nil {
			b.root = v.root
		} else {
			b.roles[role] = v.targets
		}
	}
	if err := r.saveDrafts(b); err != nil {
		return nil, err
	}
	return r.promote(b)
}

// delegator returns the metadata that says whose keys sign a role.
func (b *book) delegator(role string) (json.RawMessage, error) {
	switch role {
	case RoleRoot:
		return nil, nil
	case RoleTargets:
		return b.root.ToBytes(true)
	}
	return b.roles[RoleTargets].ToBytes(true)
}

// promote publishes the drafts that have enough signatures, both under what
// delegates to them now and under what will. New keys are published together
// with what had to be signed again under them, and not before: in between, no
// device could read the repository.
func (r *Repository) promote(b *book) (done []string, err error) {
	now, err := r.published()
	if err != nil {
		return nil, err
	}
	move := func(role string, m document, version int64) error {
		if err := r.write(MetadataFile(role, version), m); err != nil {
			return err
		}
		if err := os.Remove(r.DraftFile(role)); err != nil {
			return fmt.Errorf("close draft: %w", err)
		}
		done = append(done, role)
		return nil
	}
	// Below what is published already must hold what is there, or its draft.
	holds := func(role string) bool {
		was, is := now.roles[role], b.roles[role]
		return was == nil || is == nil || b.verify(role, was) == nil || b.verify(role, is) == nil
	}
	targets := b.edited[RoleTargets] && b.roles[RoleTargets] != nil && b.root.VerifyDelegate(RoleTargets, b.roles[RoleTargets]) == nil
	for _, role := range b.order()[1:] {
		targets = targets && holds(role)
	}
	if b.edited[RoleRoot] && b.verifyRoot() == nil && (targets || now.roles[RoleTargets] == nil || b.root.VerifyDelegate(RoleTargets, now.roles[RoleTargets]) == nil) {
		if err := move(RoleRoot, b.root, b.root.Signed.Version); err != nil {
			return done, err
		}
		now.root = b.root
	}
	if now.root == nil {
		return done, nil
	}
	if targets && now.verify(RoleTargets, b.roles[RoleTargets]) == nil {
		if err := move(RoleTargets, b.roles[RoleTargets], b.roles[RoleTargets].Signed.Version); err != nil {
			return done, err
		}
		now.roles[RoleTargets] = b.roles[RoleTargets]
	}
	for _, role := range b.order()[1:] {
		m := b.roles[role]
		if !b.edited[role] || b.verify(role, m) != nil || now.verify(role, m) != nil {
			continue
		}
		if err := move(role, m, m.Signed.Version); err != nil {
			return done, err
		}
	}
	return done, nil
}
