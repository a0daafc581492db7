package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MaxReference is the largest document, in bytes.
const MaxReference = 512 << 10

const (
	version      = 1
	maxChains    = 8
	maxKnown     = 256 // events of a register
	maxApprovals = 32
	maxRef       = 32 // bytes of an approval's ref
	maxFloor     = 1 << 20
)

// ErrReference is returned for a document that is not a valid reference.
var ErrReference = errors.New("not a valid boot reference")

// Reference is what one release makes one model boot into. It is a document
// that is signed with the release, as a target of its own [TargetPath].
type Reference struct {
	Version   int        `json:"version"`
	Model     string     `json:"model"`
	Release   string     `json:"release"`   // agent/1.2.3, os/MODEL/prod/1.2.3
	Policy    []int      `json:"policy"`    // registers that count, ascending; each must be quoted and covered by the log
	Soft      []int      `json:"soft"`      // of those, where an unknown event degrades and does not quarantine
	Floor     uint64     `json:"floor"`     // rollback floor that the TPM is raised to once the release is committed; 0: none
	Chains    []Chain    `json:"chains"`    // ways this model may boot
	Approvals []Approval `json:"approvals"` // states in which sealed secrets open
}

// Chain is one way to boot: what each register of the policy is extended with,
// in order, by its number.
type Chain struct {
	Name      string             `json:"name"`
	Registers map[string][]Known `json:"registers"`
}

// Known is one expected event.
type Known struct {
	Digest   string `json:"digest"` // hex SHA-256
	What     string `json:"what,omitempty"`
	Optional bool   `json:"optional,omitempty"` // may be missing
}

// Approval is a release key's signature over a TPM policy. Its fields are those
// of hal/tpm.Approval, so that one converts to the other.
type Approval struct {
	PCRs      []int  `json:"pcrs"`
	Policy    []byte `json:"policy"` // digest over the values of these registers and the floor
	Ref       []byte `json:"ref"`    // what was sealed: the word that Seal was called with
	Floor     uint64 `json:"floor"`  // opens while the TPM's floor is at most this; 0: whatever the floor
	Signature []byte `json:"signature"`
}

// TargetPath is where a repository holds the reference of a model and release:
// boot/MODEL/RELEASE.json, with what a path may not hold replaced by _.
func TargetPath(model, release string) string {
	return "boot/" + plain(model) + "/" + plain(release) + ".json"
}

func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._+-", r) {
			return r
		}
		return '_'
	}, s)
}

// Bytes returns the document: indented, so that a change of it can be reviewed.
func (r Reference) Bytes() []byte {
	for _, list := range []*[]int{&r.Policy, &r.Soft} {
		if *list == nil {
			*list = []int{}
		}
	}
	if r.Chains == nil {
		r.Chains = []Chain{}
	}
	if r.Approvals == nil {
		r.Approvals = []Approval{}
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		panic("boot: a reference always encodes: " + err.Error())
	}
	return append(b, '\n')
}

// ParseReference reads a document. It takes only the form that Bytes writes, so
// that two readers cannot see two things in one document. Errors are
// ErrReference.
func ParseReference(b []byte) (Reference, error) {
	if len(b) > MaxReference {
		return Reference{}, fmt.Errorf("%d bytes, at most %d: %w", len(b), MaxReference, ErrReference)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var r Reference
	if err := dec.Decode(&r); err != nil {
		return Reference{}, fmt.Errorf("boot reference: %w: %w", ErrReference, err)
	}
	if err := r.check(); err != nil {
		return Reference{}, fmt.Errorf("boot reference of %.64q for %.64q: %w: %w", r.Release, r.Model, ErrReference, err)
	}
	if !bytes.Equal(r.Bytes(), b) {
		return Reference{}, fmt.Errorf("boot reference of %s for %s is not in the form that tillward-provision writes: %w", r.Release, r.Model, ErrReference)
	}
	return r, nil
}

// ParseTarget reads a reference that came as a target of a repository: it must
// lie where its own model and release belong, or one could pass for another.
func ParseTarget(path string, b []byte) (Reference, error) {
	r, err := ParseReference(b)
	if err != nil {
		return Reference{}, fmt.Errorf("target %.100q: %w", path, err)
	}
	if want := TargetPath(r.Model, r.Release); path != want {
		return Reference{}, fmt.Errorf("target %.100q holds the reference of %s: %w", path, want, ErrReference)
	}
	return r, nil
}

// The forms of names. Their lengths are counted in Go: an expression that counts
// to 64 takes up to 100 KB of a till for good.
var (
	modelForm   = regexp.MustCompile(`^[A-Za-z0-9][ -~]*$`)
	releaseForm = regexp.MustCompile(`^[a-z][a-z0-9]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*){1,3}$`)
	chainForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)
)

// isRelease reports whether s is the folder of a release.
func isRelease(s string) bool {
	parts := strings.Split(s, "/")
	return releaseForm.MatchString(s) && len(parts[0]) <= 16 && !slices.ContainsFunc(parts, func(p string) bool { return len(p) > 64 })
}

func (r Reference) check() error {
	switch {
	case r.Version != version:
		return fmt.Errorf("version %d, this program knows %d", r.Version, version)
	case len(r.Model) > 64 || !modelForm.MatchString(r.Model):
		return fmt.Errorf("model %.80q", r.Model)
	case !isRelease(r.Release):
		return fmt.Errorf("release %.80q is not like agent/1.2.3 or os/MODEL/prod/1.2.3", r.Release)
	case !rising(r.Policy, 24) || slices.ContainsFunc(r.Policy, func(p int) bool { return !slices.Contains(Quoted[:], p) }):
		return fmt.Errorf("policy %v is not a rising list of registers that are quoted: 0 to 9 and 11", r.Policy)
	case !rising(r.Soft, 24) || slices.ContainsFunc(r.Soft, func(p int) bool { return !slices.Contains(r.Policy, p) }):
		return fmt.Errorf("soft %v is not a rising list of registers of the policy", r.Soft)
	case r.Floor > maxFloor:
		return fmt.Errorf("floor %d, at most %d", r.Floor, maxFloor)
	case len(r.Chains) > maxChains || (len(r.Chains) == 0) != (len(r.Policy) == 0):
		return fmt.Errorf("%d chains, not 1 to %d, or none without a policy", len(r.Chains), maxChains)
	case len(r.Approvals) > maxApprovals:
		return fmt.Errorf("%d approvals, at most %d", len(r.Approvals), maxApprovals)
	}
	for i, c := range r.Chains {
		if slices.ContainsFunc(r.Chains[:i], func(o Chain) bool { return o.Name == c.Name }) {
			return fmt.Errorf("two chains are called %s", c.Name)
		}
		if err := c.check(r.Policy); err != nil {
			return fmt.Errorf("chain %.40q: %w", c.Name, err)
		}
	}
	for i, a := range r.Approvals {
		err := a.check()
		if err == nil && a.Floor > 0 && a.Floor < r.Floor {
			err = fmt.Errorf("up to floor %d opens nothing once this release has raised the floor to %d", a.Floor, r.Floor)
		}
		if err != nil {
			return fmt.Errorf("approval %d: %w", i+1, err)
		}
	}
	return nil
}

func (c Chain) check(policy []int) error {
	if len(c.Name) > 32 || !chainForm.MatchString(c.Name) {
		return errors.New("a name is lower-case letters, digits, dots and dashes, at most 32")
	}
	if len(c.Registers) != len(policy) {
		return fmt.Errorf("holds %d registers, the policy %d", len(c.Registers), len(policy))
	}
	for _, p := range policy {
		known := c.Registers[strconv.Itoa(p)]
		if len(known) > maxKnown || !slices.ContainsFunc(known, func(k Known) bool { return !k.Optional }) {
			return fmt.Errorf("PCR %d: %d events, at most %d, one of which must not be optional", p, len(known), maxKnown)
		}
		for _, k := range known {
			if b, err := hex.DecodeString(k.Digest); err != nil || len(b) != sha256.Size || strings.ToLower(k.Digest) != k.Digest {
				return fmt.Errorf("PCR %d: digest %.80q is not a SHA-256 in lower-case hex", p, k.Digest)
			}
			if len(k.What) > maxWhat || printable(k.What) != k.What {
				return fmt.Errorf("PCR %d: %.40q is not printable ASCII of at most %d bytes", p, k.What, maxWhat)
			}
		}
	}
	return nil
}

func (a Approval) check() error {
	switch {
	case len(a.PCRs) == 0 || !rising(a.PCRs, 24):
		return fmt.Errorf("registers %v are not a rising list of 0 to 23", a.PCRs)
	case len(a.Policy) != sha256.Size:
		return fmt.Errorf("policy of %d bytes", len(a.Policy))
	case len(a.Ref) == 0 || len(a.Ref) > maxRef:
		return fmt.Errorf("ref of %d bytes, not 1 to %d", len(a.Ref), maxRef)
	case a.Floor > maxFloor:
		return fmt.Errorf("floor %d, at most %d", a.Floor, maxFloor)
	case len(a.Signature) == 0 || len(a.Signature) > 80:
		return fmt.Errorf("signature of %d bytes", len(a.Signature))
	}
	return nil
}

// rising reports whether list holds numbers below limit, each once, ascending.
func rising(list []int, limit int) bool {
	for i, p := range list {
		if p < 0 || p >= limit || i > 0 && p <= list[i-1] {
			return false
		}
	}
	return true
}

// Observe makes a reference of the events of a known-good boot. What a release
// engineer knows better - optional events, soft registers, further chains - is
// added to it afterwards.
func Observe(model, release, chain string, policy []int, events []Event) Reference {
	c := Chain{Name: chain, Registers: make(map[string][]Known)}
	for _, p := range policy {
		c.Registers[strconv.Itoa(p)] = []Known{}
	}
	for _, e := range events {
		if !slices.Contains(policy, e.PCR) {
			continue
		}
		key := strconv.Itoa(e.PCR)
		c.Registers[key] = append(c.Registers[key], Known{Digest: hex.EncodeToString(e.Digest[:]), What: e.What})
	}
	return Reference{Version: version, Model: model, Release: release, Policy: slices.Sorted(slices.Values(policy)), Chains: []Chain{c}}
}
