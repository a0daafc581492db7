package trust

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Repository is a TUF repository in a folder: metadata/ and targets/, with
// consistent snapshots. Its targets role holds delegations; who they are for is
// a matter of a target's path (RoleOf).
type Repository struct {
	Dir string
	// Life is how long the next snapshot and timestamp are good for; by default
	// 14 and 7 days.
	Life time.Duration
	// Medium is the name of the update medium that the next timestamp is for. No
	// device takes it from elsewhere.
	Medium string
}

// InitRepository makes an empty repository signed by keys, with a delegation
// for each delegated role that has a key; threshold is how many of a role's keys
// must sign (0: all).
func InitRepository(dir string, keys Keys, threshold map[string]int) (*Repository, error) {
	r := &Repository{Dir: dir}
	if _, err := os.Stat(r.metadata("timestamp.json")); err == nil {
		return nil, fmt.Errorf("%s already holds a repository", dir)
	}
	for _, d := range []string{"metadata", "targets"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil { // #nosec G301 -- public by nature
			return nil, fmt.Errorf("make repository: %w", err)
		}
	}
	b := &book{roles: map[string]*targetsMeta{}, edited: map[string]bool{}}
	for role, k := range keys {
		if err := b.give(role, public(k), threshold[role]); err != nil {
			return nil, err
		}
	}
	if err := b.whole(); err != nil {
		return nil, err
	}
	return r, r.publish(b, keys)
}

// give lets keys sign a role that has none yet; threshold 0 is all of them.
func (b *book) give(role string, keys []crypto.PublicKey, threshold int) (err error) {
	if !topRole(role) {
		if b.delegation(role) != nil {
			return fmt.Errorf("%s is delegated already", role)
		}
		b.edit(role)
		return b.delegate(role, keys, threshold)
	}
	root := b.editRoot()
	of := root.Signed.Roles[role]
	if err := addKeys(role, &of.KeyIDs, root.Signed.Keys, keys); err != nil {
		return err
	}
	of.Threshold, err = enough(role, threshold, len(of.KeyIDs))
	return err
}

// whole wants keys for all roles that every repository has.
func (b *book) whole() error {
	for _, role := range []string{RoleRoot, RoleTargets, RoleSnapshot, RoleTimestamp} {
		if b.root == nil || len(b.root.Signed.Roles[role].KeyIDs) == 0 {
			return fmt.Errorf("role %s has no key", role)
		}
	}
	if b.roles[RoleTargets] == nil {
		b.edit(RoleTargets)
	}
	if d := b.roles[RoleTargets].Signed.Delegations; d != nil { // the order in which they came means nothing
		slices.SortFunc(d.Roles, func(a, b metadata.DelegatedRole) int { return strings.Compare(a.Name, b.Name) })
	}
	return nil
}

// enough returns how many of n keys must sign.
func enough(role string, threshold, n int) (int, error) {
	if threshold == 0 {
		threshold = n
	}
	if threshold < 1 || threshold > n {
		return 0, fmt.Errorf("role %s: threshold %d with %d keys", role, threshold, n)
	}
	return threshold, nil
}

// NewTarget is a file to release.
type NewTarget struct {
	Path   string // TUF target path
	File   string
	Custom Custom
	Index  []byte // chunk index to put beside it, or nil
}

// Add releases files: it copies them into targets/ under their hash and signs
// the roles that they belong to, then snapshot and timestamp unless the keys of
// those are elsewhere, which Refresh makes up for. A path that is released
// already cannot be replaced: give it a new version.
//
// A role that nobody has delegated to yet is delegated to its keys or, when it
// has none of its own, to those of targets.
//
// Without keys nothing is signed: drafts wait for signatures.
func (r *Repository) Add(files []NewTarget, keys Keys) error {
	return r.change(keys, func(b *book) error {
		for _, f := range files {
			role := RoleOf(f.Path)
			for _, m := range b.roles {
				if _, ok := m.Signed.Targets[f.Path]; ok {
					return fmt.Errorf("%s is released already; a release never changes, raise the version", f.Path)
				}
			}
			if role != RoleTargets && b.delegation(role) == nil {
				own, n := keys[role], 0
				if len(own) == 0 {
					own, n = keys[RoleTargets], b.root.Signed.Roles[RoleTargets].Threshold
				}
				if len(own) == 0 {
					return fmt.Errorf("nobody may sign %s yet: delegate %s to its keys with tillward-provision release delegate add", f.Path, role)
				}
				if err := b.delegate(role, public(own), n); err != nil {
					return err
				}
			}
			info, err := r.copyIn(f)
			if err != nil {
				return fmt.Errorf("release %s: %w", f.Path, err)
			}
			b.edit(role).Signed.Targets[f.Path] = info
		}
		return nil
	})
}

// copyIn puts the file under its hash and describes it.
func (r *Repository) copyIn(f NewTarget) (*metadata.TargetFiles, error) {
	dir := filepath.Join(r.Dir, "targets", filepath.FromSlash(path.Dir(f.Path)))
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- public by nature
		return nil, err
	}
	if f.Index != nil {
		sum := sha256.Sum256(f.Index)
		f.Custom.Chunks = &Chunks{SHA256: hex.EncodeToString(sum[:]), Length: int64(len(f.Index))}
		if err := writeFile(filepath.Join(r.Dir, "targets", filepath.FromSlash(Target{Path: f.Path, Custom: f.Custom}.ChunkFile())), f.Index); err != nil {
			return nil, err
		}
	}
	custom, err := json.Marshal(f.Custom)
	if err != nil {
		return nil, err
	}
	temp := filepath.Join(dir, ".new-"+path.Base(f.Path))
	sum, n, err := copyFile(temp, f.File)
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp)
	raw := json.RawMessage(custom)
	info := metadata.TargetFile()
	info.Path, info.Length, info.Custom = f.Path, n, &raw
	info.Hashes = metadata.Hashes{"sha256": sum}
	to := filepath.Join(r.Dir, "targets", filepath.FromSlash(Target{Path: f.Path, SHA256: hex.EncodeToString(sum)}.File()))
	if err := os.Rename(temp, to); err != nil {
		return nil, err
	}
	return info, syncDir(dir)
}

// copyFile copies a file of any size and returns its hash and length.
func copyFile(to, from string) (sum []byte, n int64, err error) {
	in, err := os.Open(from) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644) // #nosec G302 G304 -- public by nature
	if err != nil {
		return nil, 0, err
	}
	h := sha256.New()
	n, err = io.Copy(io.MultiWriter(out, h), in)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		_ = os.Remove(to)
		return nil, 0, err
	}
	return h.Sum(nil), n, nil
}

// Refresh signs a snapshot of the newest metadata of each role and a timestamp,
// so that devices see what was released and do not take the repository for
// frozen. Metadata that too few have signed is refused: no device would take it.
func (r *Repository) Refresh(keys Keys) error {
	b, err := r.book()
	if err != nil {
		return err
	}
	if err := b.check(r.Dir); err != nil {
		return err
	}
	return r.freshen(b, keys)
}

// publish signs and writes the roles that were edited, then what points at them.
func (r *Repository) publish(b *book, keys Keys) error {
	var edited []string
	if b.edited[RoleRoot] {
		ids, n := b.signers(RoleRoot)
		if err := mayEach(r.Dir, RoleRoot, ids, n, keys); err != nil {
			return err
		}
		if err := sign(b.root, ids, keys); err != nil {
			return fmt.Errorf("sign root: %w", err)
		}
	}
	for _, role := range b.order() {
		if !b.edited[role] {
			continue
		}
		ids, n := b.signers(role)
		if err := mayEach(r.Dir, role, ids, n, keys); err != nil {
			return err
		}
		if err := sign(b.roles[role], ids, keys); err != nil {
			return fmt.Errorf("sign %s: %w", role, err)
		}
		edited = append(edited, role)
	}
	if err := b.check(r.Dir); err != nil {
		return err
	}
	if b.edited[RoleRoot] {
		if err := r.write(MetadataFile(RoleRoot, b.root.Signed.Version), b.root); err != nil {
			return err
		}
	}
	for _, role := range edited {
		if err := r.write(MetadataFile(role, b.roles[role].Signed.Version), b.roles[role]); err != nil {
			return err
		}
	}
	for _, role := range []string{RoleSnapshot, RoleTimestamp} {
		if fit(b.root.Signed.Roles[role].KeyIDs, keys) == 0 {
			return nil // an online key signs it
		}
	}
	return r.freshen(b, keys)
}

// freshen writes the next snapshot and timestamp. The timestamp, which makes
// the others visible, comes last.
func (r *Repository) freshen(b *book, keys Keys) error {
	snapshot, timestamp := metadata.Snapshot(r.until(RoleSnapshot)), metadata.Timestamp(r.until(RoleTimestamp))
	snapshot.Signed.Meta = map[string]*metadata.MetaFiles{}
	if old, err := metadata.Timestamp().FromFile(r.metadata("timestamp.json")); err == nil {
		timestamp.Signed.Version = old.Signed.Version + 1
		n := old.Signed.Meta["snapshot.json"].Version
		snapshot.Signed.Version = n + 1
		before, err := metadata.Snapshot().FromFile(r.metadata(MetadataFile(RoleSnapshot, n)))
		if err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		// What a snapshot once listed must stay: a device takes its absence for an attack.
		maps.Copy(snapshot.Signed.Meta, before.Signed.Meta)
	}
	for role, m := range b.roles {
		if was := snapshot.Signed.Meta[role+".json"]; was != nil && was.Version > m.Signed.Version {
			return fmt.Errorf("%s of %s has version %d, and the snapshot lists %d already: restore the folder from a newer backup", role, r.Dir, m.Signed.Version, was.Version)
		}
		snapshot.Signed.Meta[role+".json"] = metadata.MetaFile(m.Signed.Version)
	}
	timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(snapshot.Signed.Version)
	timestamp.Signed.UnrecognizedFields = map[string]any{signedAt: time.Now().UTC().Format(time.RFC3339)}
	if r.Medium != "" {
		timestamp.Signed.UnrecognizedFields[forMedium] = r.Medium
	}
	for _, one := range []struct {
		role string
		m    document
	}{{RoleSnapshot, snapshot}, {RoleTimestamp, timestamp}} {
		role, m := one.role, one.m
		of := b.root.Signed.Roles[role]
		if err := mayEach(r.Dir, role, of.KeyIDs, of.Threshold, keys); err != nil {
			return err
		}
		if err := sign(m, of.KeyIDs, keys); err != nil {
			return fmt.Errorf("sign %s: %w", role, err)
		}
		if err := b.root.VerifyDelegate(role, m); err != nil {
			return fmt.Errorf("sign %s: %w: %w", role, ErrSignature, err)
		}
	}
	if err := r.write(MetadataFile(RoleSnapshot, snapshot.Signed.Version), snapshot); err != nil {
		return err
	}
	return r.write("timestamp.json", timestamp)
}

func (r *Repository) until(role string) time.Time {
	if r.Life > 0 {
		return time.Now().Add(r.Life).UTC().Truncate(time.Second)
	}
	return expiry(role)
}

// expiry is when metadata of a role that is signed now ends. TUF knows whole
// seconds.
func expiry(role string) time.Time { return time.Now().Add(life(role)).UTC().Truncate(time.Second) }

func (r *Repository) metadata(name string) string { return filepath.Join(r.Dir, "metadata", name) }

func (r *Repository) write(name string, m document) error {
	b, err := m.ToBytes(true)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return writeFile(r.metadata(name), b)
}

// List returns what the newest metadata names, without looking at a signature
// or a date: for a folder that was verified when it was put together.
func (r *Repository) List() ([]Target, error) {
	b, err := r.book()
	if err != nil {
		return nil, err
	}
	var out []Target
	for role, m := range b.roles {
		for p, info := range m.Signed.Targets {
			if role != RoleTargets && RoleOf(p) != role {
				continue // no device finds it there
			}
			t, err := target(p, info)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Target) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Root returns the first root, which images carry.
func (r *Repository) Root() ([]byte, error) {
	b, err := os.ReadFile(r.metadata("1.root.json"))
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	return b, nil
}

// VerifyRepository checks a folder as a device that trusts root would, and
// that every target and chunk index is there as described. state is a folder of
// its own in which the newest root is kept between calls.
func VerifyRepository(ctx context.Context, dir, state string, root []byte) ([]Target, error) {
	const base = "https://folder.invalid/metadata"
	c := &Client{Dir: state, FactoryRoot: root, URL: base, Fetch: FolderFetch(base, filepath.Join(dir, "metadata"))}
	targets, err := c.Targets(ctx)
	if err != nil {
		return nil, err
	}
	return targets, checkFiles(dir, targets)
}

// checkFiles wants every target and chunk index in its place, and sorts them.
func checkFiles(dir string, targets []Target) error {
	for _, t := range targets {
		if err := t.CheckFile(filepath.Join(dir, "targets", filepath.FromSlash(t.File()))); err != nil {
			return err
		}
		if t.Custom.Chunks == nil {
			continue
		}
		index := Target{Path: t.Path + " (its chunk index)", SHA256: t.Custom.Chunks.SHA256, Length: t.Custom.Chunks.Length}
		if !fs.ValidPath(t.ChunkFile()) {
			return fmt.Errorf("target %s: its chunk index has no plain name: %w", t.Path, ErrMismatch)
		}
		if err := index.CheckFile(filepath.Join(dir, "targets", filepath.FromSlash(t.ChunkFile()))); err != nil {
			return err
		}
	}
	slices.SortFunc(targets, func(a, b Target) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

// ChunkFile is where the chunk index of the target lies below the targets
// folder; empty when it has none.
func (t Target) ChunkFile() string {
	if t.Custom.Chunks == nil {
		return ""
	}
	return path.Join(path.Dir(t.Path), t.Custom.Chunks.SHA256+"."+path.Base(t.Path)+".chunks")
}

// CheckFile checks that the file at path is the target, to the last byte.
func (t Target) CheckFile(path string) error {
	f, err := os.Open(path) // #nosec G304 -- the caller's folder
	if err != nil {
		return fmt.Errorf("target %s: %w", t.Path, err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, t.Length+1))
	if err != nil {
		return fmt.Errorf("target %s: %w", t.Path, err)
	}
	if n != t.Length || hex.EncodeToString(h.Sum(nil)) != t.SHA256 {
		return fmt.Errorf("target %s: %w", t.Path, ErrMismatch)
	}
	return nil
}
