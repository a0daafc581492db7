package trust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// RoleStatus says how it stands with a role.
type RoleStatus struct {
	Role      string       `json:"role"`
	Version   int64        `json:"version"` // published; 0: nothing yet
	Expires   *time.Time   `json:"expires,omitempty"`
	Threshold int          `json:"threshold"`
	Keys      []string     `json:"keys"` // ids
	Draft     *DraftStatus `json:"draft,omitempty"`
	// Unseen: published, and not yet in the snapshot that lies in the folder.
	Unseen bool `json:"unseen,omitempty"`
}

// DraftStatus says who has signed a draft and who could.
type DraftStatus struct {
	Version int64     `json:"version"`
	File    string    `json:"file"`
	Expires time.Time `json:"expires"`
	Signed  []string  `json:"signed"`  // ids of keys
	Missing []Missing `json:"missing"` // none: it waits for another draft
}

// Missing is a set of keys of which some must still sign.
type Missing struct {
	Of   string   `json:"of"` // whose keys: root 1, say
	Need int      `json:"need"`
	Keys []string `json:"keys"`
}

// Status says for each role what is published, until when it is good, and what
// a draft of it still lacks.
func (r *Repository) Status() ([]RoleStatus, error) {
	b, err := r.drafted()
	if err != nil {
		return nil, err
	}
	pub, err := r.published()
	if err != nil {
		return nil, err
	}
	seen, stamps := r.seen()
	var list []RoleStatus
	roles := []string{RoleRoot, RoleTargets, RoleSnapshot, RoleTimestamp}
	if d := b.roles[RoleTargets].Signed.Delegations; d != nil {
		for _, role := range d.Roles {
			roles = append(roles, role.Name)
		}
	}
	for _, role := range roles {
		s := RoleStatus{Role: role}
		s.Keys, s.Threshold = b.signers(role)
		switch {
		case role == RoleRoot && pub.root != nil:
			s.Version, s.Expires = pub.old.Signed.Version, &pub.old.Signed.Expires
			s.Keys = pub.old.Signed.Roles[role].KeyIDs
		case stamps[role] != nil:
			s.Version, s.Expires = stamps[role].version, &stamps[role].expires
		case pub.roles[role] != nil:
			s.Version, s.Expires = pub.roles[role].Signed.Version, &pub.roles[role].Signed.Expires
			s.Unseen = stamps[RoleTimestamp] != nil && seen[role] != s.Version
		}
		if b.edited[role] {
			if s.Draft, err = r.draftStatus(b, role); err != nil {
				return nil, err
			}
		}
		list = append(list, s)
	}
	return list, nil
}

func (r *Repository) draftStatus(b *book, role string) (*DraftStatus, error) {
	d := &DraftStatus{File: r.DraftFile(role), Signed: []string{}, Missing: []Missing{}}
	var have []metadata.Signature
	lack := func(of string, ids []string, need int) {
		m := Missing{Of: of, Need: need, Keys: []string{}}
		for _, id := range ids {
			if slices.ContainsFunc(have, func(s metadata.Signature) bool { return s.KeyID == id }) {
				m.Need--
			} else {
				m.Keys = append(m.Keys, id)
			}
		}
		if m.Need > 0 {
			d.Missing = append(d.Missing, m)
		}
	}
	if role == RoleRoot {
		have, d.Version, d.Expires = b.root.Signatures, b.root.Signed.Version, b.root.Signed.Expires
		if of := b.old; of != nil && !b.recovers {
			lack(fmt.Sprintf("root %d", of.Signed.Version), of.Signed.Roles[role].KeyIDs, of.Signed.Roles[role].Threshold)
		}
		lack(fmt.Sprintf("root %d", d.Version), b.root.Signed.Roles[role].KeyIDs, b.root.Signed.Roles[role].Threshold)
	} else {
		m := b.roles[role]
		have, d.Version, d.Expires = m.Signatures, m.Signed.Version, m.Signed.Expires
		ids, need := b.signers(role)
		lack(role, ids, need)
	}
	for _, s := range have {
		d.Signed = append(d.Signed, s.KeyID)
	}
	return d, nil
}

type stamp struct {
	version int64
	expires time.Time
}

// seen returns the versions of the newest snapshot, and how it stands with
// snapshot and timestamp themselves.
func (r *Repository) seen() (map[string]int64, map[string]*stamp) {
	seen, stamps := map[string]int64{}, map[string]*stamp{}
	t, err := metadata.Timestamp().FromFile(r.metadata("timestamp.json"))
	if err != nil || t.Signed.Meta["snapshot.json"] == nil {
		return seen, stamps
	}
	stamps[RoleTimestamp] = &stamp{t.Signed.Version, t.Signed.Expires}
	s, err := metadata.Snapshot().FromFile(r.metadata(MetadataFile(RoleSnapshot, t.Signed.Meta["snapshot.json"].Version)))
	if err != nil {
		return seen, stamps
	}
	stamps[RoleSnapshot] = &stamp{s.Signed.Version, s.Signed.Expires}
	for name, m := range s.Signed.Meta {
		seen[strings.TrimSuffix(name, ".json")] = m.Version
	}
	return seen, stamps
}

// Describe says in lines what a signature on the draft would cover: all of it
// that differs from what it replaces.
func (d *Draft) Describe() (lines []string, err error) {
	defer func() { // go-tuf follows pointers that a null leaves empty
		if r := recover(); r != nil {
			lines, err = nil, fmt.Errorf("malformed: %v: %w", r, ErrMismatch)
		}
	}()
	v, err := d.view()
	if err != nil {
		return nil, fmt.Errorf("draft of %.80q: %w", d.Role, err)
	}
	was := "nothing before"
	switch {
	case v.before != nil:
		was = fmt.Sprintf("after %d", v.before.Signed.Version)
	case v.previous != nil:
		was = fmt.Sprintf("after %d", v.previous.Signed.Version)
	}
	lines = []string{fmt.Sprintf("%s version %d, %s, good until %s", d.Role, v.version(), was, v.expires().Format("2006-01-02 15:04 MST"))}
	if d.Recovers {
		lines = append(lines, "! this root follows from no other: devices take it only with an image that carries it")
	}
	if v.root != nil {
		return append(lines, describeRoot(v.before, v.root)...), nil
	}
	return append(lines, describeTargets(v.previous, v.targets)...), nil
}

func describeRoot(before, root *rootMeta) (lines []string) {
	for _, role := range []string{RoleRoot, RoleTargets, RoleSnapshot, RoleTimestamp} {
		was := &metadata.Role{}
		if before != nil {
			was = before.Signed.Roles[role]
		}
		lines = append(lines, describeKeys(role, was.KeyIDs, was.Threshold, root.Signed.Roles[role].KeyIDs, root.Signed.Roles[role].Threshold)...)
	}
	return lines
}

func describeKeys(role string, was []string, n int, is []string, need int) (lines []string) {
	how := ""
	if n != need && n > 0 {
		how = fmt.Sprintf(", before %d of %d", n, len(was))
	}
	lines = append(lines, fmt.Sprintf("  %s: signed by %d of %d%s", role, need, len(is), how))
	for _, id := range is {
		mark := "+"
		if slices.Contains(was, id) {
			mark = "="
		}
		lines = append(lines, "  "+mark+" key "+id)
	}
	for _, id := range was {
		if !slices.Contains(is, id) {
			lines = append(lines, "  - key "+id)
		}
	}
	return lines
}

func describeTargets(before, m *targetsMeta) (lines []string) {
	if before == nil {
		before = metadata.Targets()
	}
	was := map[string]metadata.DelegatedRole{}
	if before.Signed.Delegations != nil {
		for _, d := range before.Signed.Delegations.Roles {
			was[d.Name] = d
		}
	}
	if m.Signed.Delegations != nil {
		for _, d := range m.Signed.Delegations.Roles {
			o := was[d.Name]
			delete(was, d.Name)
			lines = append(lines, describeKeys(d.Name, o.KeyIDs, o.Threshold, d.KeyIDs, d.Threshold)...)
			lines = append(lines, "    for "+strings.Join(d.Paths, ", "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		lines = append(lines, "- "+name+": taken back")
	}
	same := 0
	for _, p := range slices.Sorted(maps.Keys(m.Signed.Targets)) {
		info, old := m.Signed.Targets[p], before.Signed.Targets[p]
		mark := "+"
		if old != nil {
			mark = "~"
			if old.Equal(*info) && bytes.Equal(custom(old), custom(info)) {
				same++
				continue
			}
		}
		lines = append(lines, fmt.Sprintf("%s %s", mark, p), fmt.Sprintf("    %d bytes, sha256 %s", info.Length, info.Hashes["sha256"]))
		if c := custom(info); c != nil {
			lines = append(lines, "    "+string(c))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(before.Signed.Targets)) {
		if m.Signed.Targets[p] == nil {
			lines = append(lines, "- "+p)
		}
	}
	if same > 0 {
		lines = append(lines, fmt.Sprintf("= %d targets as before", same))
	}
	return lines
}

// custom returns a target's custom part in one line.
func custom(info *metadata.TargetFiles) []byte {
	if info.Custom == nil {
		return nil
	}
	var b bytes.Buffer
	if json.Compact(&b, *info.Custom) != nil {
		return *info.Custom
	}
	return b.Bytes()
}

// Follows checks a draft under a root that the signer trusts: the published
// roots follow from it, and who signs is said by those who may say so. A draft
// alone may say anything; what it says was before counts after this only if it
// was signed.
func (d *Draft) Follows(root []byte) (err error) {
	defer func() { // go-tuf follows pointers that a null leaves empty
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed: %v: %w", r, ErrMismatch)
		}
	}()
	v, err := d.view()
	if err != nil {
		return fmt.Errorf("draft of %.80q: %w", d.Role, err)
	}
	at, err := metadata.Root().FromBytes(root)
	if err != nil {
		return fmt.Errorf("trusted root: %w", err)
	}
	for _, raw := range d.Roots {
		next, err := metadata.Root().FromBytes(raw)
		if err != nil {
			return fmt.Errorf("root in the draft: %w", err)
		}
		switch n := next.Signed.Version; {
		case n < at.Signed.Version:
			continue
		case n == at.Signed.Version:
			a, _ := at.ToBytes(false)
			if b, _ := next.ToBytes(false); !bytes.Equal(a, b) {
				return fmt.Errorf("root %d of the draft is another than the one that you trust: %w", n, ErrSignature)
			}
		default:
			if n != at.Signed.Version+1 || at.VerifyDelegate(RoleRoot, next) != nil || next.VerifyDelegate(RoleRoot, next) != nil {
				return fmt.Errorf("root %d of the draft does not follow from root %d: %w", n, at.Signed.Version, ErrSignature)
			}
			at = next
		}
	}
	if v.root != nil {
		if v.before == nil || v.before.Signed.Version != at.Signed.Version || v.root.Signed.Version <= at.Signed.Version {
			return fmt.Errorf("the draft does not come after root %d that you trust: %w", at.Signed.Version, ErrRollback)
		}
		return nil
	}
	by, err := d.delegators(at)
	if err != nil {
		return err
	}
	// What was not signed by those who sign now is shown as new, all of it.
	if v.previous != nil && (by == nil && at.VerifyDelegate(RoleTargets, v.previous) != nil || by != nil && by.VerifyDelegate(d.Role, v.previous) != nil) {
		d.Previous = nil
	}
	return nil
}

// delegators checks the metadata that a draft names its signers by.
func (d *Draft) delegators(at *rootMeta) (*targetsMeta, error) {
	if d.Role == RoleTargets {
		by, err := metadata.Root().FromBytes(d.Delegator)
		if err == nil && by.Signed.Version != at.Signed.Version {
			err = at.VerifyDelegate(RoleRoot, by)
		}
		if err != nil {
			return nil, fmt.Errorf("the root that names who signs targets is not signed itself yet, sign that first: %w: %w", ErrSignature, err)
		}
		return nil, nil
	}
	by, err := metadata.Targets().FromBytes(d.Delegator)
	if err == nil {
		err = at.VerifyDelegate(RoleTargets, by)
	}
	if err != nil {
		return nil, fmt.Errorf("what says who signs %s is not signed itself yet, sign that first: %w: %w", d.Role, ErrSignature, err)
	}
	return by, nil
}
