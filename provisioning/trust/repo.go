package trust

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Roles of a repository, in the order they are signed.
const (
	RoleRoot      = "root"
	RoleTargets   = "targets"
	RoleSnapshot  = "snapshot"
	RoleTimestamp = "timestamp"
)

// life is how long each role's metadata is good for.
var life = map[string]time.Duration{
	RoleRoot: 365 * 24 * time.Hour, RoleTargets: 90 * 24 * time.Hour, RoleSnapshot: 14 * 24 * time.Hour, RoleTimestamp: 7 * 24 * time.Hour,
}

// Keys are the private keys of a repository by role. A role may have several.
type Keys map[string][]ed25519.PrivateKey

// NewKey makes a key and writes it to path, readable by its owner only. An
// existing file is never replaced.
func NewKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return key, nil
}

// ReadKey reads a private key that NewKey wrote.
func ReadKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read key %s: not a PEM file", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key %s: is %T, only Ed25519 keys sign releases", path, k)
	}
	return key, nil
}

// ReadKeys reads the keys in dir: {role}.pem, {role}-2.pem and so on. Roles
// without a file are left out: an offline machine holds only its own.
func ReadKeys(dir string) (Keys, error) {
	keys := make(Keys)
	for _, role := range []string{RoleRoot, RoleTargets, RoleSnapshot, RoleTimestamp} {
		names, err := filepath.Glob(filepath.Join(dir, role+"*.pem"))
		if err != nil {
			return nil, fmt.Errorf("read keys: %w", err)
		}
		slices.Sort(names)
		for _, n := range names {
			k, err := ReadKey(n)
			if err != nil {
				return nil, err
			}
			keys[role] = append(keys[role], k)
		}
	}
	return keys, nil
}

// Repository is a TUF repository in a folder: metadata/ and targets/, with
// consistent snapshots.
type Repository struct{ Dir string }

// InitRepository makes an empty repository signed by keys; threshold is how
// many of a role's keys must sign (0: all).
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
	root := metadata.Root(time.Now().Add(life[RoleRoot]).UTC())
	root.Signed.ConsistentSnapshot = true
	for role, ks := range keys {
		for _, k := range ks {
			pub, err := metadata.KeyFromPublicKey(k.Public())
			if err != nil {
				return nil, fmt.Errorf("key of %s: %w", role, err)
			}
			if err := root.Signed.AddKey(pub, role); err != nil {
				return nil, fmt.Errorf("key of %s: %w", role, err)
			}
		}
		n := threshold[role]
		if n == 0 {
			n = len(ks)
		}
		if n < 1 || n > len(ks) {
			return nil, fmt.Errorf("role %s: threshold %d with %d keys", role, n, len(ks))
		}
		root.Signed.Roles[role].Threshold = n
	}
	for role := range life {
		if len(keys[role]) == 0 {
			return nil, fmt.Errorf("role %s has no key", role)
		}
	}
	if err := sign(root, keys[RoleRoot]); err != nil {
		return nil, fmt.Errorf("sign root: %w", err)
	}
	if err := root.ToFile(r.metadata("1.root.json"), true); err != nil {
		return nil, fmt.Errorf("write root: %w", err)
	}
	return r, r.publish(metadata.Targets(time.Now().Add(life[RoleTargets]).UTC()), keys)
}

// NewTarget is a file to release.
type NewTarget struct {
	Path   string // TUF target path
	File   string
	Custom Custom
}

// Add releases files: it copies them into targets/ under their hash and signs
// targets, snapshot and timestamp anew. A path that is released already cannot
// be replaced: give it a new version.
func (r *Repository) Add(files []NewTarget, keys Keys) error {
	targets, err := r.targets()
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, ok := targets.Signed.Targets[f.Path]; ok {
			return fmt.Errorf("%s is released already; a release never changes, raise the version", f.Path)
		}
		info, err := r.copyIn(f)
		if err != nil {
			return fmt.Errorf("release %s: %w", f.Path, err)
		}
		targets.Signed.Targets[f.Path] = info
	}
	targets.Signed.Version++
	targets.Signed.Expires = time.Now().Add(life[RoleTargets]).UTC()
	targets.ClearSignatures()
	return r.publish(targets, keys)
}

// copyIn puts the file under its hash and describes it.
func (r *Repository) copyIn(f NewTarget) (*metadata.TargetFiles, error) {
	in, err := os.Open(f.File)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	h := sha256.New()
	n, err := io.Copy(h, in)
	if err != nil {
		return nil, err
	}
	sum := h.Sum(nil)
	custom, err := json.Marshal(f.Custom)
	if err != nil {
		return nil, err
	}
	raw := json.RawMessage(custom)
	info := metadata.TargetFile()
	info.Path, info.Length, info.Custom = f.Path, n, &raw
	info.Hashes = metadata.Hashes{"sha256": sum}
	to := filepath.Join(r.Dir, "targets", filepath.FromSlash(Target{Path: f.Path, SHA256: hex.EncodeToString(sum)}.File()))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { // #nosec G301 -- public by nature
		return nil, err
	}
	b, err := os.ReadFile(f.File)
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(b); string(got[:]) != string(sum) {
		return nil, errors.New("the file changes while it is being released")
	}
	return info, writeFile(to, b)
}

// Refresh signs snapshot and timestamp anew, so that devices do not take the
// repository for frozen.
func (r *Repository) Refresh(keys Keys) error {
	snapshot, err := r.latest(RoleSnapshot)
	if err != nil {
		return err
	}
	s, err := metadata.Snapshot().FromFile(snapshot)
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	return r.freshen(s.Signed.Meta["targets.json"].Version, keys)
}

// publish signs and writes targets, then what points at it.
func (r *Repository) publish(targets *metadata.Metadata[metadata.TargetsType], keys Keys) error {
	if err := sign(targets, keys[RoleTargets]); err != nil {
		return fmt.Errorf("sign targets: %w", err)
	}
	if err := targets.ToFile(r.metadata(fmt.Sprintf("%d.targets.json", targets.Signed.Version)), true); err != nil {
		return fmt.Errorf("write targets: %w", err)
	}
	return r.freshen(targets.Signed.Version, keys)
}

// freshen writes the next snapshot and timestamp. The timestamp, which makes
// the others visible, comes last.
func (r *Repository) freshen(targetsVersion int64, keys Keys) error {
	snapshot := metadata.Snapshot(time.Now().Add(life[RoleSnapshot]).UTC())
	timestamp := metadata.Timestamp(time.Now().Add(life[RoleTimestamp]).UTC())
	if old, err := metadata.Timestamp().FromFile(r.metadata("timestamp.json")); err == nil {
		timestamp.Signed.Version = old.Signed.Version + 1
		snapshot.Signed.Version = old.Signed.Meta["snapshot.json"].Version + 1
	}
	snapshot.Signed.Meta["targets.json"] = metadata.MetaFile(targetsVersion)
	timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(snapshot.Signed.Version)
	if err := sign(snapshot, keys[RoleSnapshot]); err != nil {
		return fmt.Errorf("sign snapshot: %w", err)
	}
	if err := sign(timestamp, keys[RoleTimestamp]); err != nil {
		return fmt.Errorf("sign timestamp: %w", err)
	}
	if err := snapshot.ToFile(r.metadata(fmt.Sprintf("%d.snapshot.json", snapshot.Signed.Version)), true); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	b, err := timestamp.ToBytes(true)
	if err != nil {
		return fmt.Errorf("write timestamp: %w", err)
	}
	return writeFile(r.metadata("timestamp.json"), b)
}

// signable is any metadata.
type signable interface {
	Sign(signer signature.Signer) (*metadata.Signature, error)
}

func sign(m signable, keys []ed25519.PrivateKey) error {
	if len(keys) == 0 {
		return errors.New("its key is not in the key folder")
	}
	for _, k := range keys {
		s, err := signature.LoadSigner(k, crypto.Hash(0))
		if err != nil {
			return err
		}
		if _, err := m.Sign(s); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) metadata(name string) string { return filepath.Join(r.Dir, "metadata", name) }

// latest returns the file with the highest version of a role.
func (r *Repository) latest(role string) (string, error) {
	names, err := filepath.Glob(r.metadata("*." + role + ".json"))
	if err != nil {
		return "", fmt.Errorf("repository: %w", err)
	}
	best, file := -1, ""
	for _, n := range names {
		v, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(n), "."+role+".json"))
		if err == nil && v > best {
			best, file = v, n
		}
	}
	if file == "" {
		return "", fmt.Errorf("%s is not a release repository: it has no %s metadata; make one with tillward-provision repo init", r.Dir, role)
	}
	return file, nil
}

func (r *Repository) targets() (*metadata.Metadata[metadata.TargetsType], error) {
	file, err := r.latest(RoleTargets)
	if err != nil {
		return nil, err
	}
	t, err := metadata.Targets().FromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read targets: %w", err)
	}
	return t, nil
}

// List returns what the newest targets metadata names, without looking at a
// signature or a date: for a folder that was verified when it was put together.
func (r *Repository) List() ([]Target, error) {
	m, err := r.targets()
	if err != nil {
		return nil, err
	}
	var out []Target
	for p, info := range m.Signed.Targets {
		t, err := target(p, info)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
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
// that every target is there as described. state is a folder of its own in
// which the newest root is kept between calls.
func VerifyRepository(ctx context.Context, dir, state string, root []byte) ([]Target, error) {
	const base = "https://folder.invalid/metadata"
	c := &Client{Dir: state, FactoryRoot: root, URL: base, Fetch: FolderFetch(base, filepath.Join(dir, "metadata"))}
	targets, err := c.Targets(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if err := t.CheckFile(filepath.Join(dir, "targets", filepath.FromSlash(t.File()))); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(targets, func(a, b Target) int { return strings.Compare(a.Path, b.Path) })
	return targets, nil
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
