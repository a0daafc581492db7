// Package vault keeps the keys of what a till has on its disk: sealed in the
// TPM, so that they open only on this box and only in a booted state that the
// release key approved.
//
// It owns the sealed keys, of the books and of the data partition, and the
// approvals that came with releases, in a folder of the state partition. The
// approvals are for both; else no key knows of the other, so that one which is
// lost or given up takes nothing with it. None of it is a secret and none is
// believed: the TPM checks each approval's signature, state and floor. It
// promises that no key is put to use before it has opened once in the state of
// now, and that an update which was prepared finds its approval without a
// network. It fetches nothing and encrypts nothing itself.
package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/durable"
)

// TPM seals and opens; hal/tpm does, behind a few lines.
type TPM interface {
	// Seal encrypts secret so that only this TPM opens it, and only in a state
	// that release approved for ref.
	Seal(ctx context.Context, release *ecdsa.PublicKey, ref, secret []byte) (blob []byte, err error)
	// Unseal opens what Seal made. ErrLost: this TPM never will.
	Unseal(ctx context.Context, release *ecdsa.PublicKey, blob []byte, a boot.Approval) (secret []byte, err error)
}

var (
	// ErrNone means that no key has been sealed yet.
	ErrNone = errors.New("no key has been sealed")
	// ErrClosed means that the release key did not approve the state of now.
	ErrClosed = errors.New("no approval fits how this box has booted")
	// ErrLost means that the key was sealed by another TPM, or by this one before
	// it was cleared: what it encrypts is lost.
	ErrLost = errors.New("the key is sealed to another TPM, or to this one before it was cleared")
)

const (
	keyLen   = 32
	kept     = 16 // releases whose approvals are on file
	baseFile = "baseline.json"
	approved = ".approved.json"
)

// Key says which of the sealed keys is meant: its file in the folder.
type Key string

// The keys.
const (
	Books Key = "key.json"  // of queue, trail and identity
	Data  Key = "data.json" // of the data partition, for whoever opens it
)

var keys = [...]Key{Books, Data}

// Vault is a folder and the release key that it believes in.
type Vault struct {
	Dir     string
	Release *ecdsa.PublicKey // pinned in the image, P-256
}

// sealed is the file of a key.
type sealed struct {
	Ref  []byte `json:"ref"`  // what approvals have to name
	Blob []byte `json:"blob"` // opens in this TPM alone
}

// Begun reports whether a key has been sealed. One that cannot be read has.
func (v *Vault) Begun(k Key) bool {
	_, err := os.Stat(filepath.Join(v.Dir, string(k)))
	return !errors.Is(err, fs.ErrNotExist)
}

// Any reports whether one of the keys has been sealed.
func (v *Vault) Any() bool { return slices.ContainsFunc(keys[:], v.Begun) }

// Open returns a key. Errors: ErrNone, ErrClosed, ErrLost; or the TPM's.
func (v *Vault) Open(ctx context.Context, t TPM, k Key) ([]byte, error) {
	s, err := v.load(k)
	if err != nil {
		return nil, err
	}
	return v.unseal(ctx, t, s)
}

func (v *Vault) load(k Key) (s sealed, err error) {
	b, err := os.ReadFile(filepath.Join(v.Dir, string(k)))
	if errors.Is(err, fs.ErrNotExist) {
		return s, ErrNone
	}
	if err != nil { // the medium fails now; what is lost is given up for ever
		return s, fmt.Errorf("sealed key: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("sealed key: %w: %w", ErrLost, err)
	}
	return s, nil
}

// Make draws a key, seals it and keeps it, once it has opened in the state of
// now by an approval on file. With one there already it does nothing. When it
// returns, the sealed key outlives a power cut. Errors: ErrClosed, or the TPM's.
func (v *Vault) Make(ctx context.Context, t TPM, k Key) error {
	if v.Begun(k) {
		return nil
	}
	key := make([]byte, keyLen)
	_, _ = rand.Read(key) // never fails [crypto/rand]
	why := ErrClosed
	for _, ref := range v.refs() {
		blob, err := t.Seal(ctx, v.Release, ref, key)
		if err != nil {
			return fmt.Errorf("seal a key: %w", err)
		}
		s := sealed{Ref: ref, Blob: blob}
		got, err := v.unseal(ctx, t, s)
		if err != nil {
			why = err
			continue
		}
		if !bytes.Equal(got, key) {
			return errors.New("seal a key: the TPM gave back another")
		}
		return v.write(string(k), s)
	}
	return why
}

// Outlives reports whether every key that is sealed would still open in the
// state of now, by an approval of r, with the TPM's floor raised to that of r. A
// box may have booted before the release that runs on it was installed.
func (v *Vault) Outlives(ctx context.Context, t TPM, r boot.Reference) bool {
	return !slices.ContainsFunc(keys[:], func(k Key) bool { return !v.outlives(ctx, t, r, k) })
}

func (v *Vault) outlives(ctx context.Context, t TPM, r boot.Reference, k Key) bool {
	s, err := v.load(k)
	if err != nil { // one that is lost closes no more; one that cannot be read now may open yet
		return errors.Is(err, ErrNone) || errors.Is(err, ErrLost)
	}
	return slices.ContainsFunc(r.Approvals, func(a boot.Approval) bool {
		if a.Floor != 0 && a.Floor < r.Floor || !bytes.Equal(a.Ref, s.Ref) {
			return false
		}
		_, err := t.Unseal(ctx, v.Release, s.Blob, a)
		return err == nil
	})
}

// Covers reports whether a release approves a state for every key that is sealed:
// what was sealed for one word no approval for another opens.
func (v *Vault) Covers(r boot.Reference) bool {
	return !slices.ContainsFunc(keys[:], func(k Key) bool {
		s, err := v.load(k)
		return err == nil && !slices.ContainsFunc(r.Approvals, func(a boot.Approval) bool { return bytes.Equal(a.Ref, s.Ref) && a.Signed(v.Release) })
	})
}

// unseal tries the approvals on file, those kept last first: that is the
// release that runs, or the one offered.
func (v *Vault) unseal(ctx context.Context, t TPM, s sealed) ([]byte, error) {
	var wrong []error
	for _, a := range v.approvals() {
		if !bytes.Equal(a.Ref, s.Ref) {
			continue
		}
		key, err := t.Unseal(ctx, v.Release, s.Blob, a)
		switch {
		case err == nil && len(key) == keyLen:
			return key, nil
		case err == nil:
			return nil, fmt.Errorf("sealed key has %d bytes: %w", len(key), ErrLost)
		case errors.Is(err, ErrLost), ctx.Err() != nil:
			return nil, err
		}
		wrong = append(wrong, err)
	}
	if len(wrong) == 0 {
		return nil, fmt.Errorf("%w: there is none on file", ErrClosed)
	}
	return nil, fmt.Errorf("%w: %w", ErrClosed, wrong[0])
}

// Keep puts the approvals of a release on file, those of the release key. It
// reports whether there is one; none is no error, such a release seals nothing.
func (v *Vault) Keep(r boot.Reference) (bool, error) { return v.KeepFrom("", r) }

// KeepFrom is Keep for what a file of this box says, by its path. It stands
// beside what was published of the same release, which may be newer, and takes
// nothing of that away.
func (v *Vault) KeepFrom(file string, r boot.Reference) (bool, error) {
	mine := slices.DeleteFunc(slices.Clone(r.Approvals), func(a boot.Approval) bool { return !a.Signed(v.Release) })
	if len(mine) == 0 {
		return false, nil
	}
	name := fileOf(cmp.Or(file, r.Release)) // a path is no release
	var there []boot.Approval
	if v.read(name, &there) && slices.EqualFunc(there, mine, same) {
		now := time.Now()
		return true, os.Chtimes(filepath.Join(v.Dir, name), now, now)
	}
	if err := v.write(name, mine); err != nil {
		return false, err
	}
	others := slices.DeleteFunc(v.files(), func(f string) bool { return f == name }) // whatever its date: the clock may be wrong
	for _, old := range others[min(kept-1, len(others)):] {
		if err := os.Remove(filepath.Join(v.Dir, old)); err != nil {
			return true, fmt.Errorf("drop the approvals of an old release: %w", err)
		}
	}
	return true, nil
}

func same(a, b boot.Approval) bool { return bytes.Equal(a.Signature, b.Signature) }

// Has reports whether approvals of the release are on file.
func (v *Vault) Has(release string) bool {
	_, err := os.Stat(filepath.Join(v.Dir, fileOf(release)))
	return err == nil
}

// baseline is baseline.json: how it was when an update was offered.
type baseline struct {
	Release string `json:"release"`               // offered
	Open    bool   `json:"open"`                  // the key of the books
	Closed  bool   `json:"data_closed,omitempty"` // that of the data partition; agents before it know none
}

// Baseline keeps which keys did not open when a release was offered.
func (v *Vault) Baseline(release string, closed ...Key) error {
	return v.write(baseFile, baseline{release, !slices.Contains(closed, Books), slices.Contains(closed, Data)})
}

// OpenBefore reports whether a key opened when the release was offered; yes,
// unless it is known that it did not.
func (v *Vault) OpenBefore(release string, k Key) bool {
	var b baseline
	if !v.read(baseFile, &b) || b.Release != release {
		return true
	}
	return k == Books && b.Open || k == Data && !b.Closed
}

// Forget removes a sealed key: what it encrypts cannot be read any more.
func (v *Vault) Forget(k Key) error {
	err := os.Remove(filepath.Join(v.Dir, string(k)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, durable.SyncDir(v.Dir))
}

// fileOf is a plain name for any release.
func fileOf(release string) string {
	sum := sha256.Sum256([]byte(release))
	return hex.EncodeToString(sum[:8]) + approved
}

// files returns those with approvals, the newest first.
func (v *Vault) files() []string {
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		return nil
	}
	age := make(map[string]time.Time)
	var names []string
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), approved) {
			names, age[e.Name()] = append(names, e.Name()), fi.ModTime()
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return age[b].Compare(age[a]) })
	return names
}

// approvals returns what is on file; a file that cannot be read is as good as
// none.
func (v *Vault) approvals() (all []boot.Approval) {
	for _, name := range v.files() {
		var some []boot.Approval
		if v.read(name, &some) {
			all = append(all, some...)
		}
	}
	return all
}

// refs returns what the approvals on file are for, each once.
func (v *Vault) refs() (refs [][]byte) {
	for _, a := range v.approvals() {
		if !slices.ContainsFunc(refs, func(r []byte) bool { return bytes.Equal(r, a.Ref) }) {
			refs = append(refs, a.Ref)
		}
	}
	return refs
}

func (v *Vault) read(name string, to any) bool {
	b, err := os.ReadFile(filepath.Join(v.Dir, name))
	return err == nil && json.Unmarshal(b, to) == nil
}

// write replaces a file in one step that survives a power cut.
func (v *Vault) write(name string, what any) error {
	b, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.MkdirAll(v.Dir, 0o700); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return durable.Replace(filepath.Join(v.Dir, name), b)
}
