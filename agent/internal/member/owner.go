package member

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/durable"
	"github.com/tillward/tillward/provisioning/owner"
)

// ErrOwner means that the ownership voucher does not allow what was asked: the
// box is not this service's, or the service shows an older chain than the box
// has seen.
var ErrOwner = errors.New("ownership of this box")

// Ownership checks whose the box is, by the vendor's key of the image. What it
// has seen is kept for ever, through a wipe too, in a file of its own.
type Ownership struct {
	File   string
	Vendor ed25519.PublicKey // nil: nothing is checked
}

// seen is the file.
type seen struct {
	Device string `json:"device,omitempty"` // whose mark it is; a disk may come into another box
	Count  int    `json:"count"`
	Head   []byte `json:"head,omitempty"`
	Owner  string `json:"owner,omitempty"`
	// Given is how long the chain must be after the box was given up: the owner
	// before cannot take it back by the chain he had.
	Given int `json:"given,omitempty"`
}

func (o *Ownership) load() (seen, error) {
	var s seen
	b, err := os.ReadFile(o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("mark of the ownership voucher: %w", err)
	}
	return s, nil
}

func (o *Ownership) save(s seen) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("mark of the ownership voucher: %w", err)
	}
	return replace(o.File, b)
}

// Check verifies the voucher of an enrolment with a service that acts for
// tenant, and keeps how far the chain was seen. device is the box's own word, not
// the service's. It returns who owns the box by the voucher, empty when nothing
// could be checked. Errors: ErrOwner.
func (o *Ownership) Check(device, tenant string, voucher []byte) (name string, err error) {
	if o.Vendor == nil {
		return "", nil
	}
	s, err := o.load()
	if err != nil {
		return "", err
	}
	if s.Device != "" && s.Device != device {
		s = seen{} // the disk was another box's: its chain is not ours to go on with
	}
	if len(voucher) == 0 {
		if s.Count > 0 || s.Given > 0 {
			return "", fmt.Errorf("%w: the service shows no voucher, and this box has seen one of %d entries", ErrOwner, max(s.Count, s.Given))
		}
		if s.Device == device {
			return "", nil // listed by its vendor without one
		}
		return "", o.save(seen{Device: device})
	}
	v, err := owner.DecodeVoucher(voucher)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrOwner, err)
	}
	if v.Device != device {
		return "", fmt.Errorf("%w: the voucher is for device %s", ErrOwner, v.Device)
	}
	state, err := v.Verify(o.Vendor, time.Now(), owner.Mark{Count: s.Count, Head: s.Head})
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrOwner, err)
	case state.Mark.Count < s.Given:
		return "", fmt.Errorf("%w: the voucher has %d entries, this box was given up by one of %d: %w", ErrOwner, state.Mark.Count, s.Given, owner.ErrStale)
	case state.Owner.Tenant != tenant:
		return "", fmt.Errorf("%w: it is %s's (tenant %q), not tenant %q's", ErrOwner, state.Owner.Name, state.Owner.Tenant, tenant)
	}
	next := seen{Device: device, Count: state.Mark.Count, Head: state.Mark.Head, Owner: state.Owner.Name, Given: s.Given}
	if next.Count == s.Count && string(next.Head) == string(s.Head) {
		return state.Owner.Name, nil
	}
	return state.Owner.Name, o.save(next)
}

var markForm = regexp.MustCompile(`^([0-9]+):([0-9a-f]+)$`)

// Fits says whether the box may be given up by the voucher of this mark, count
// and head in hex: it must not be older than what the box has seen. It
// returns how many entries the voucher has. Errors: ErrOwner.
func (o *Ownership) Fits(mark string) (count int, err error) {
	m := markForm.FindStringSubmatch(mark)
	if m == nil || len(m[1]) > 4 || len(m[2]) < 16 || len(m[2]) > 64 {
		return 0, fmt.Errorf("%w: %.40q is not the mark of a voucher, such as 3:0123456789abcdef", ErrOwner, mark)
	}
	count, _ = strconv.Atoi(m[1]) // four digits
	s, err := o.load()
	if err != nil {
		return 0, err
	}
	head := hex.EncodeToString(s.Head)
	if least := max(s.Count, s.Given); count < least || count == s.Count && len(s.Head) > 0 && !strings.HasPrefix(head, m[2]) {
		return 0, fmt.Errorf("%w: voucher %s is older than, or contradicts, the one this box has seen (%d:%s)", ErrOwner, mark, s.Count, head)
	}
	return count, nil
}

// give keeps that the box was given up by a voucher of so many entries.
func (o *Ownership) give(count int) error {
	s, err := o.load()
	if err != nil {
		return err
	}
	if s.Given >= count {
		return nil
	}
	s.Given = count
	return o.save(s)
}

// replace writes a file in one step that survives a power cut.
func replace(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Replace(path, b)
}
