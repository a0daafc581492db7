package trust

import (
	"bytes"
	"crypto"
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

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Draft is metadata of a role that lacks signatures, with what somebody needs
// to judge and sign it on a machine that has nothing else.
type Draft struct {
	Role     string          `json:"role"`
	Metadata json.RawMessage `json:"metadata"` // as TUF has it, with the signatures so far
	// Recovers says that the root follows from none: devices take it only with
	// an image that carries it.
	Recovers  bool              `json:"recovers,omitempty"`
	Roots     []json.RawMessage `json:"roots,omitempty"`     // the published ones
	Delegator json.RawMessage   `json:"delegator,omitempty"` // says whose keys sign: targets of a delegated role, root of targets
	Previous  json.RawMessage   `json:"previous,omitempty"`  // what it replaces
}

// Signature is what a signer hands back.
type Signature struct {
	Role    string `json:"role"`
	Version int64  `json:"version"`
	KeyID   string `json:"keyid"`
	Sig     string `json:"sig"` // hex
}

// maxDraft bounds a draft file: a role's metadata twice, and roots.
const maxDraft = 16 << 20

// DraftFile is where the draft of a role lies.
func (r *Repository) DraftFile(role string) string {
	return filepath.Join(r.Dir, "draft", filepath.FromSlash(role)+".json")
}

// drafts lists the roles that have one, in the order to sign them.
func (r *Repository) drafts() (roles []string, err error) {
	dir := filepath.Join(r.Dir, "draft")
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		role, ok := strings.CutSuffix(filepath.ToSlash(rel), ".json")
		if ok && (role == RoleRoot || role == RoleTargets || Delegated(role)) {
			roles = append(roles, role)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("drafts: %w", err)
	}
	rank := func(role string) int { return slices.Index([]string{RoleRoot, RoleTargets}, role) }
	slices.SortFunc(roles, func(a, b string) int {
		if x, y := rank(a), rank(b); x >= 0 && y >= 0 {
			return x - y
		} else if x >= 0 || y >= 0 {
			return y - x
		}
		return strings.Compare(a, b)
	})
	return roles, nil
}

// ReadDraft reads a draft that somebody handed over.
func ReadDraft(file string) (*Draft, error) {
	b, err := readBounded(os.Open, file, maxDraft)
	if err != nil {
		return nil, fmt.Errorf("read draft: %w", err)
	}
	d, err := ParseDraft(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

// ParseDraft reads a draft and checks that it is one that a repository makes:
// of the role that it says, each target in the paths of the role and with one
// hash. Who signed it, and who may, is for Sign and Merge.
func ParseDraft(b []byte) (*Draft, error) {
	d := new(Draft)
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("not a draft: %w", err)
	}
	v, err := d.view()
	if err != nil {
		return nil, fmt.Errorf("draft of %.80q: %w", d.Role, err)
	}
	if v.root != nil {
		return d, nil
	}
	for p, info := range v.targets.Signed.Targets {
		if _, err := target(p, info); err != nil {
			return nil, fmt.Errorf("draft of %s: %w", d.Role, err)
		}
		if d.Role != RoleTargets && RoleOf(p) != d.Role {
			return nil, fmt.Errorf("draft of %s: %.200q is not for it to sign, no device would look for it there: %w", d.Role, p, ErrSignature)
		}
	}
	return d, nil
}

// draftView is a draft as read. Of root and targets one is set.
type draftView struct {
	root     *rootMeta
	targets  *targetsMeta
	before   *rootMeta    // root before a root
	previous *targetsMeta // what targets replaces
	ids      []string     // who may sign
	keys     map[string]*metadata.Key
	need     int
}

func (d *Draft) view() (v *draftView, err error) {
	defer func() { // go-tuf follows pointers that a null leaves empty
		if r := recover(); r != nil {
			v, err = nil, fmt.Errorf("malformed: %v: %w", r, ErrMismatch)
		}
	}()
	v = &draftView{keys: map[string]*metadata.Key{}}
	take := func(keys map[string]*metadata.Key, ids []string, need int) error {
		v.need = need
		for _, id := range ids {
			k := keys[id]
			if k == nil {
				return fmt.Errorf("key %s is not described: %w", Short(id), ErrMismatch)
			}
			// An id that is not the one of its key would let one key count as two.
			if is, err := (&metadata.Key{Type: k.Type, Scheme: k.Scheme, Value: k.Value}).ID(); err != nil || is != id {
				return fmt.Errorf("key %s has another id than its own: %w", Short(id), ErrMismatch)
			}
			if !slices.Contains(v.ids, id) {
				v.ids, v.keys[id] = append(v.ids, id), k
			}
		}
		return nil
	}
	if d.Role == RoleRoot {
		if v.root, err = metadata.Root().FromBytes(d.Metadata); err != nil {
			return nil, err
		}
		if len(d.Roots) > 0 {
			if v.before, err = metadata.Root().FromBytes(d.Roots[len(d.Roots)-1]); err != nil {
				return nil, err
			}
			if of := v.before.Signed.Roles[RoleRoot]; !d.Recovers {
				if err := take(v.before.Signed.Keys, of.KeyIDs, of.Threshold); err != nil {
					return nil, err
				}
			}
		}
		of := v.root.Signed.Roles[RoleRoot]
		return v, take(v.root.Signed.Keys, of.KeyIDs, of.Threshold)
	}
	if d.Role != RoleTargets && !Delegated(d.Role) {
		return nil, fmt.Errorf("no role that is signed offline: %w", ErrMismatch)
	}
	if v.targets, err = metadata.Targets().FromBytes(d.Metadata); err != nil {
		return nil, err
	}
	if len(d.Previous) > 0 {
		if v.previous, err = metadata.Targets().FromBytes(d.Previous); err != nil {
			return nil, err
		}
	}
	if d.Role == RoleTargets {
		by, err := metadata.Root().FromBytes(d.Delegator)
		if err != nil {
			return nil, err
		}
		of := by.Signed.Roles[RoleTargets]
		return v, take(by.Signed.Keys, of.KeyIDs, of.Threshold)
	}
	by, err := metadata.Targets().FromBytes(d.Delegator)
	if err != nil {
		return nil, err
	}
	for _, of := range by.Signed.Delegations.Roles {
		if of.Name == d.Role {
			return v, take(by.Signed.Delegations.Keys, of.KeyIDs, of.Threshold)
		}
	}
	return nil, fmt.Errorf("nobody delegates to it: %w", ErrSignature)
}

func (v *draftView) version() int64 {
	if v.root != nil {
		return v.root.Signed.Version
	}
	return v.targets.Signed.Version
}

func (v *draftView) expires() time.Time {
	if v.root != nil {
		return v.root.Signed.Expires
	}
	return v.targets.Signed.Expires
}

func (v *draftView) signatures() *[]metadata.Signature {
	if v.root != nil {
		return &v.root.Signatures
	}
	return &v.targets.Signatures
}

func (v *draftView) document() document {
	if v.root != nil {
		return v.root
	}
	return v.targets
}

var errLate = errors.New("has expired while it waited: throw it away with release discard and make it again")

// Sign signs a draft with a key, which must be one that counts for it.
func (d *Draft) Sign(key crypto.Signer) (Signature, error) {
	v, err := d.view()
	if err != nil {
		return Signature{}, fmt.Errorf("draft of %.80q: %w", d.Role, err)
	}
	id, _, err := tufKey(key.Public())
	if err != nil {
		return Signature{}, err
	}
	switch {
	case !slices.Contains(v.ids, id):
		return Signature{}, fmt.Errorf("key %s is none of those that sign %s: %w", Short(id), d.Role, ErrUnknownKey)
	case time.Now().After(v.expires()):
		return Signature{}, fmt.Errorf("draft of %s: %w", d.Role, errLate)
	}
	*v.signatures() = nil
	sig, err := v.document().Sign(signer{key})
	if err != nil {
		return Signature{}, fmt.Errorf("sign %s: %w", d.Role, err)
	}
	return Signature{Role: d.Role, Version: v.version(), KeyID: id, Sig: hex.EncodeToString(sig.Signature)}, nil
}

// add puts a signature on the draft if it counts, and not yet.
func (d *Draft) add(s Signature) error {
	v, err := d.view()
	if err != nil {
		return fmt.Errorf("draft of %s: %w", d.Role, err)
	}
	sig, err := hex.DecodeString(s.Sig)
	switch {
	case err != nil:
		return fmt.Errorf("signature of %s by %.16q: not in hex: %w", d.Role, s.KeyID, ErrBadSignature)
	case s.Version != v.version():
		return fmt.Errorf("the signature by %.16q is for version %d of %s, the draft is version %d: %w", s.KeyID, s.Version, d.Role, v.version(), ErrBadSignature)
	case !slices.Contains(v.ids, s.KeyID):
		return fmt.Errorf("key %.16q is none of those that sign %s: %w", s.KeyID, d.Role, ErrUnknownKey)
	case time.Now().After(v.expires()):
		return fmt.Errorf("draft of %s: %w", d.Role, errLate)
	}
	have := v.signatures()
	if slices.ContainsFunc(*have, func(h metadata.Signature) bool { return h.KeyID == s.KeyID }) {
		return fmt.Errorf("key %s has signed %s %d already, and counts once; it needs another one's signature", Short(s.KeyID), d.Role, v.version())
	}
	if !v.counts(s.KeyID, sig) {
		return fmt.Errorf("the signature by %s does not fit the draft of %s: it was made for another draft, or one of them was changed on the way: %w", Short(s.KeyID), d.Role, ErrBadSignature)
	}
	*have = append(*have, metadata.Signature{KeyID: s.KeyID, Signature: sig})
	d.Metadata, err = v.document().ToBytes(true)
	return err
}

// counts verifies one signature: it has go-tuf judge it for a role of that key
// alone.
func (v *draftView) counts(id string, sig []byte) bool {
	alone := metadata.Root()
	for _, role := range []string{RoleRoot, RoleTargets} {
		alone.Signed.Roles[role].KeyIDs = []string{id}
	}
	alone.Signed.Keys[id] = v.keys[id]
	one := []metadata.Signature{{KeyID: id, Signature: sig}}
	if v.root != nil {
		m := *v.root
		m.Signatures = one
		return alone.VerifyDelegate(RoleRoot, &m) == nil
	}
	m := *v.targets
	m.Signatures = one
	return alone.VerifyDelegate(RoleTargets, &m) == nil
}

// saveDrafts writes what was edited, for signers to sign.
func (r *Repository) saveDrafts(b *book) error {
	roots, err := r.roots()
	if err != nil {
		return err
	}
	pub, err := r.published()
	if err != nil {
		return err
	}
	save := func(d *Draft) error {
		out, err := json.MarshalIndent(d, "", "\t")
		if err != nil {
			return fmt.Errorf("write draft: %w", err)
		}
		file := r.DraftFile(d.Role)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { // #nosec G301 -- public by nature
			return fmt.Errorf("write draft: %w", err)
		}
		if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, out) { // #nosec G304 -- our own folder
			return nil
		}
		return writeFile(file, out)
	}
	root, err := b.root.ToBytes(true)
	if err != nil {
		return err
	}
	if b.edited[RoleRoot] {
		if err := save(&Draft{Role: RoleRoot, Metadata: root, Roots: roots, Recovers: b.recovers}); err != nil {
			return err
		}
	}
	by := root
	for _, role := range b.order() {
		if !b.edited[role] {
			if role == RoleTargets && b.roles[role] != nil {
				if by, err = b.roles[role].ToBytes(true); err != nil {
					return err
				}
			}
			continue
		}
		d := &Draft{Role: role, Roots: roots, Delegator: by}
		if d.Metadata, err = b.roles[role].ToBytes(true); err != nil {
			return err
		}
		if m := pub.roles[role]; m != nil {
			if d.Previous, err = m.ToBytes(true); err != nil {
				return err
			}
		}
		if err := save(d); err != nil {
			return err
		}
		if role == RoleTargets {
			by = d.Metadata
		}
	}
	return nil
}

// roots returns the published roots from the newest unbroken chain.
func (r *Repository) roots() (list []json.RawMessage, err error) {
	file, err := r.latest(RoleRoot)
	if err != nil || file == "" {
		return nil, err
	}
	m, err := metadata.Root().FromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	for v := m.Signed.Version; v > 0; v-- {
		b, err := os.ReadFile(r.metadata(MetadataFile(RoleRoot, v)))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read root: %w", err)
		}
		list = append(list, b)
	}
	slices.Reverse(list)
	return list, nil
}
