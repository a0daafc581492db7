package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-attestation/attest"
)

// Swap is what one image measures at a place of its boot, and what another will
// measure there.
type Swap struct {
	PCR    int
	What   string // for people
	Was    [][sha256.Size]byte
	Is     [][sha256.Size]byte // in the same forms as Was
	Always bool                // no boot of the image lacks it
}

// Registers that hold nothing but what an image measures: what cannot be
// explained by the image in these would be foretold by guessing. Into 12 and 13
// goes what did not come with the image, such as another command line
// [systemd-stub(7), "TPM PCR Notes"].
var (
	imageOnly = []int{9, imageParts}
	neverUsed = []int{12, 13}
)

// Translate makes of the log of one image's boot that of another's: each event
// that a swap explains gets the other digest, every other one stays. The result
// has the SHA-256 bank alone. The firmware of the other boot tries so many entries
// of its boot menu in vain before it comes to the image. Errors are ErrLog: a swap that must be there and
// is not, one that is there twice or could mean two things, and an event in PCR
// 9 or 11 that no swap explains, or any in 12 or 13.
//
// Events keep their data, which may tell of the first image; only register and
// digest are ever judged.
func Translate(raw []byte, swaps []Swap, failed int) ([]byte, error) {
	if _, err := parse(raw); err != nil {
		return nil, err
	}
	head, entries, err := split(raw)
	if err != nil {
		return nil, err
	}
	done, first := make([]bool, len(swaps)), -1 // event of the image in PCR 4
	for i := range entries {
		e := &entries[i]
		if e.Type == noAction {
			continue
		}
		if slices.Contains(neverUsed, e.PCR) {
			return nil, fmt.Errorf("PCR %d holds an event (%s): the boot had more than its image: %w", e.PCR, e.says(), ErrLog)
		}
		n := slices.IndexFunc(swaps, func(s Swap) bool { return s.PCR == e.PCR && slices.Contains(s.Was, e.digest) })
		for n >= 0 && done[n] { // the next one that explains it
			more := slices.IndexFunc(swaps[n+1:], func(s Swap) bool { return s.PCR == e.PCR && slices.Contains(s.Was, e.digest) })
			if more < 0 {
				return nil, fmt.Errorf("PCR %d holds the %s of the image twice: %w", e.PCR, swaps[n].What, ErrLog)
			}
			n += 1 + more
		}
		if n < 0 {
			if slices.Contains(imageOnly, e.PCR) {
				return nil, fmt.Errorf("PCR %d holds an event that the image does not explain (%s, digest %x): is the log that of this image, and was nothing added to its boot: %w", e.PCR, e.says(), e.digest, ErrLog)
			}
			continue
		}
		if e.digest, err = swaps[n].to(e.digest); err != nil {
			return nil, err
		}
		if done[n] = true; e.PCR == 4 && first < 0 {
			first = i
		}
	}
	for n, s := range swaps {
		if s.Always && !done[n] {
			return nil, fmt.Errorf("PCR %d lacks the %s of the image: is the log that of this image, and does its kernel measure: %w", s.PCR, s.What, ErrLog)
		}
	}
	if failed > 0 {
		if entries, err = try(entries, first, failed); err != nil {
			return nil, err
		}
	}
	for _, e := range entries {
		head = e.append(head)
	}
	if _, err := parse(head); err != nil {
		return nil, fmt.Errorf("translated: %w", err)
	}
	return head, nil
}

const (
	action    attest.EventType = 0x80000007
	calling                    = "Calling EFI Application from Boot Option"
	returning                  = "Returning from EFI Application from Boot Option"
	maxFailed                  = 8
)

// try puts in front of an event of PCR 4 what firmware measures when entries of
// its boot menu come back or cannot be loaded [TCG PC Client Platform Firmware
// Profile 1.06, 10.4.4]: it has called the first one already.
func try(entries []entry, at, failed int) ([]entry, error) {
	says := func(text string) entry {
		return entry{PCR: 4, Type: action, digest: sha256.Sum256([]byte(text)), data: []byte(text)}
	}
	is := func(text string) func(entry) bool {
		return func(e entry) bool { return e.PCR == 4 && e.digest == sha256.Sum256([]byte(text)) }
	}
	switch {
	case failed > maxFailed:
		return nil, fmt.Errorf("%d entries that fail, at most %d: %w", failed, maxFailed, ErrLog)
	case at < 0 || !slices.ContainsFunc(entries[:at], is(calling)):
		return nil, fmt.Errorf("PCR 4 does not tell of the entries of the boot menu: %w", ErrLog)
	case slices.ContainsFunc(entries, is(returning)):
		return nil, fmt.Errorf("PCR 4 holds an entry of the boot menu that failed already: take the log of a boot without: %w", ErrLog)
	}
	var more []entry
	for range failed {
		more = append(more, says(returning), says(calling))
	}
	return slices.Insert(entries, at, more...), nil
}

// to returns the digest in the place of one that matched.
func (s Swap) to(was [sha256.Size]byte) (is [sha256.Size]byte, err error) {
	found := false
	for i, d := range s.Was {
		switch {
		case d != was:
		case i >= len(s.Is) || found && s.Is[i] != is:
			return is, fmt.Errorf("PCR %d: the %s of the other image can be measured in more than one form: %w", s.PCR, s.What, ErrLog)
		default:
			is, found = s.Is[i], true
		}
	}
	return is, nil
}

// entry is one event of a log as it is stored.
type entry struct {
	PCR    int
	Type   attest.EventType
	digest [sha256.Size]byte
	data   []byte
}

func (e entry) says() string {
	return event(attest.Event{Index: e.PCR, Type: e.Type, Data: e.data, Digest: e.digest[:]}).What
}

// append writes TCG_PCR_EVENT2 with one digest [TCG PC Client Platform Firmware
// Profile 1.06, 10.2.2].
func (e entry) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(le.AppendUint32(b, uint32(e.PCR)), uint32(e.Type)) // #nosec G115 -- read as such
	b = le.AppendUint16(le.AppendUint32(b, 1), algSHA256)
	b = le.AppendUint32(append(b, e.digest[:]...), uint32(len(e.data))) // #nosec G115 -- bounded by the log
	return append(b, e.data...)
}

const algSHA256 = 0x000b

var errShort = errors.New("it ends in the middle of an event")

// split takes a log apart that parse has read: its first event, with SHA-256 as
// the only bank, and the others.
func split(raw []byte) (head []byte, entries []entry, err error) {
	r := cursor{b: raw}
	head = append(head, r.take(4+4+20)...) // register, type, a digest of zeros
	spec := cursor{b: r.take(int(r.u32()))}
	fixed := spec.take(len(specID) + 4 + 4)
	sizes := make(map[uint16]int)
	for range min(spec.u32(), maxBanks) {
		alg := spec.u16()
		sizes[alg] = int(spec.u16())
	}
	le := binary.LittleEndian
	data := le.AppendUint32(bytes.Clone(fixed), 1)
	data = le.AppendUint16(le.AppendUint16(data, algSHA256), sha256.Size)
	data = append(data, spec.b...)                                   // the maker's words
	head = append(le.AppendUint32(head, uint32(len(data))), data...) // #nosec G115 -- bounded by the log
	for len(r.b) > 0 && !r.short && !spec.short {
		e := entry{PCR: int(r.u32()), Type: attest.EventType(r.u32())}
		for n := r.u32(); n > 0 && !r.short; n-- {
			alg := r.u16()
			size, ok := sizes[alg]
			if !ok {
				return nil, nil, fmt.Errorf("event %d has a digest of kind %#x, which its head does not name: %w", len(entries), alg, ErrLog)
			}
			if d := r.take(size); alg == algSHA256 && len(d) == sha256.Size {
				e.digest = [sha256.Size]byte(d)
			}
		}
		e.data = r.take(int(r.u32()))
		entries = append(entries, e)
	}
	if r.short || spec.short {
		return nil, nil, fmt.Errorf("read event log: %w: %w", errShort, ErrLog)
	}
	return head, entries, nil
}

// cursor reads numbers and bytes; short is set for good when there are too few.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.short = nil, true
		return nil
	}
	b := c.b[:n:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}
