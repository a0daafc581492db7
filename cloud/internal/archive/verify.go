package archive

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"time"

	"github.com/tillward/tillward/provisioning/trust"
)

// Verdicts.
const (
	Whole     = "whole"
	Edited    = "edited"    // a record is not what was hashed and signed
	Gap       = "gap"       // records are missing in the middle
	Truncated = "truncated" // records are missing at the end or at the beginning
	Forked    = "forked"    // records out of order, twice, or of a second history
	Unsealed  = "unsealed"  // all that is there holds, and nobody signed that it is all
)

// ErrNoTrail is returned for what is no sealed file.
var ErrNoTrail = errors.New("not a sealed audit trail")

const (
	maxLine   = 256 << 10
	maxGaps   = 256
	maxRecall = 8 << 10 // hashes kept for break records, which refer back
)

// Trust is what the reader believes before he opens the file.
type Trust struct {
	// Keys are the service's keys, by id, as its owner gave them by hand. With
	// none the file is checked against the keys that it carries itself, which
	// whoever made it may have chosen.
	Keys trust.Keyring
	// Anchor checks that the TPM of the attestation key signed that its counter
	// stood at counter for what is bound; provisioning/enrol.VerifyAnchor fits.
	// nil: anchors are counted and not checked.
	Anchor func(ak []byte, binding [32]byte, attest, signature []byte, counter uint64) error
	// AKs are the SHA-256 of the attestation keys that the device is known to
	// have, as an earlier file or the device itself told them. With none, those
	// count that the file names: whoever has the service's key can name others.
	AKs []Hash
}

// Missing is a stretch of entries that are not there.
type Missing struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	// Explained: the device said itself, in a record that its TPM has signed, that
	// it lost them with a damaged file.
	Explained bool `json:"explained"`
}

// Report is what was found.
type Report struct {
	Verdict  string `json:"verdict"`
	FirstBad uint64 `json:"first_bad"` // number of the first record that is wrong or missing; 0: none
	Text     string `json:"text"`

	What    string    `json:"what"`
	Tenant  string    `json:"tenant"`
	Device  string    `json:"device,omitempty"`
	MadeAt  time.Time `json:"made_at"`
	MadeBy  string    `json:"made_by"`
	After   Point     `json:"after"` // what the file follows: 0, or the end of a segment
	Entries uint64    `json:"entries"`
	First   uint64    `json:"first"`
	Head    Point     `json:"head"`
	Missing []Missing `json:"missing,omitempty"`

	Anchors         int    `json:"anchors"` // signed by the TPM and checked
	AnchorsSeen     int    `json:"anchors_seen"`
	AnchoredTo      uint64 `json:"anchored_to"`   // entries up to here are covered by the TPM's word
	AKs             []Hash `json:"aks,omitempty"` // SHA-256 of the attestation keys that signed anchors
	AK              string `json:"ak,omitempty"`  // given: only keys given by hand counted; file: those that the file names
	Countersigned   int    `json:"countersigned"`
	CountersignedTo uint64 `json:"countersigned_to"`

	Sealed bool   `json:"sealed"`
	KeyID  string `json:"key_id"`
	Key    string `json:"key"` // given: checked against a key given by hand; file: only against the file's own
}

// reader is the state of one reading.
type reader struct {
	trust Trust
	keys  trust.Keyring
	own   trust.Keyring // as the header names them
	rep   Report
	h     Header
	sum   hash.Hash // over all lines but the seal

	last    Point // the entry before, or what stands for it
	linked  bool  // last.Hash is known
	counter uint64
	counted bool
	broke   int // index in Missing of a gap that a break record speaks of and no anchor has signed yet; -1: none
	recall  map[uint64]Hash
	kept    []uint64 // what recall holds, from the oldest on
	faults  int
	since   int    // faults when the break record came
	before  string // the sum of the line before
	buf     bytes.Buffer
}

// Verify reads a sealed file to its end and says whether it is whole. Only
// what is no sealed file, or cannot be read, is an error.
func Verify(r io.Reader, t Trust) (Report, error) {
	v := &reader{trust: t, sum: sha256.New(), broke: -1, recall: map[uint64]Hash{}, linked: true}
	br := bufio.NewReaderSize(r, maxLine)
	first, err := v.next(br)
	if err != nil {
		return v.rep, err
	}
	if err := v.begin(first); err != nil {
		return v.rep, err
	}
	for v.rep.What != "" {
		line, err := v.next(br)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return v.rep, err
		}
		v.line(line)
	}
	v.end()
	return v.rep, nil
}

// next returns a line with its line feed, or without when the file ends in it.
func (v *reader) next(br *bufio.Reader) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	switch {
	case len(line) > 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
		return line, nil // half a line says so by itself
	case errors.Is(err, io.ErrUnexpectedEOF): // of a compressed file
		return nil, io.EOF
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("a line of more than %d bytes: %w", maxLine, ErrNoTrail)
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case err != nil:
		return nil, fmt.Errorf("read the trail: %w", err)
	}
	return line, nil
}

// fault notes what is wrong, if nothing was before.
func (v *reader) fault(verdict string, seq uint64, format string, args ...any) {
	v.faults++
	if v.rep.Verdict == "" {
		v.rep.Verdict, v.rep.FirstBad, v.rep.Text = verdict, seq, fmt.Sprintf(format, args...)
	}
}

// begin reads the header.
func (v *reader) begin(line []byte) error {
	kind := kindOf(line)
	switch {
	case kind == lineEntry || kind == lineCountersign || kind == lineSeal:
		v.fault(Truncated, 0, "the file was cut at the front: it begins with a line of kind %s and has no header", kind)
		return nil
	case kind != lineHeader:
		return ErrNoTrail
	}
	_, _ = v.sum.Write(line)
	err := json.Unmarshal(line, &v.h)
	switch {
	case err == nil && v.h.Version > Version:
		return fmt.Errorf("format %d, and this program knows up to %d: take a newer one: %w", v.h.Version, Version, ErrNoTrail)
	case err != nil || v.h.What != DeviceTrail && v.h.What != ServiceTrail || v.h.Version < 1:
		v.fault(Edited, 0, "the header cannot be read; nothing behind it can be judged")
		return nil
	}
	v.canonical(line, v.h, 0, "the header")
	v.rep.What, v.rep.Tenant, v.rep.Device, v.rep.MadeAt, v.rep.MadeBy, v.rep.After = v.h.What, v.h.Tenant, v.h.Device, v.h.MadeAt, v.h.MadeBy, v.h.After
	v.last = v.h.After
	v.remember(v.last)
	v.own = trust.Keyring{}
	for _, k := range v.h.Keys {
		if len(k.Public) == ed25519.PublicKeySize {
			v.own[trust.KeyID(k.Public)] = k.Public
		}
	}
	v.keys, v.rep.Key = v.trust.Keys, "given"
	if len(v.keys) == 0 {
		v.keys, v.rep.Key = v.own, "file"
	}
	return nil
}

// canonical checks that a line is, byte by byte, what a writer makes of what was read
// from it: nothing is hidden between the fields, and its sum is right.
func (v *reader) canonical(line []byte, read any, seq uint64, what string) {
	want, err := marshal(&v.buf, read)
	if err != nil || len(want) != len(line) {
		v.fault(Edited, seq, "%s was changed after it was written", what)
		return
	}
	sum := fillSum(want, v.before)
	if !bytes.Equal(want, line) {
		v.fault(Edited, seq, "%s, or what stood before it, was changed after it was written", what)
	}
	v.before = sum
	if at := sumAt(line); string(line[at:at+len(noSum)]) != sum { // what it says itself is what the next one rests on
		v.before = string(line[at : at+len(noSum)])
	}
}

func (v *reader) line(line []byte) {
	if line[len(line)-1] != '\n' && !v.rep.Sealed {
		return // half a line, as a cut leaves it: the end says what is missing
	}
	kind := kindOf(line)
	if kind == lineSeal && !v.rep.Sealed {
		v.seal(line)
		return
	}
	if v.rep.Sealed && kind != lineEntry {
		v.fault(Edited, 0, "something stands behind the seal")
		return
	}
	_, _ = v.sum.Write(line)
	switch kind {
	case lineEntry:
		v.entry(line)
	case lineCountersign:
		v.countersign(line)
	default:
		v.unreadable(v.last.Seq + 1)
	}
}

// kindOf reads what a line is off its first bytes, which a writer always writes so.
func kindOf(line []byte) string {
	const mark = `{"line":"`
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	if !ok {
		return ""
	}
	kind, _, _ := bytes.Cut(rest[:min(len(rest), 20)], []byte(`"`))
	return string(kind)
}

// unreadable stands for the entry whose line this was.
func (v *reader) unreadable(seq uint64) {
	if seq > v.h.Last {
		v.fault(Edited, 0, "a line behind entry %d, the last, cannot be read", v.h.Last)
		return
	}
	v.fault(Edited, seq, "the line of entry %d cannot be read", seq)
	v.last, v.linked = Point{Seq: seq}, false
	v.rep.Head = v.last
	v.rep.Entries++
}

func (v *reader) entry(line []byte) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		v.unreadable(v.last.Seq + 1)
		return
	}
	said, rec, err := v.h.open(e)
	if err == nil && said.Seq != e.Seq {
		e.Seq = said.Seq // what was hashed counts
		v.order(e)
		v.fault(Edited, e.Seq, "entry %d shows another number than was hashed", e.Seq)
	} else {
		v.order(e)
	}
	what := fmt.Sprintf("entry %d", e.Seq)
	switch {
	case err != nil:
		v.fault(Edited, e.Seq, "entry %d is not what was hashed: %v", e.Seq, err)
	case !e.says(said):
		v.fault(Edited, e.Seq, "entry %d shows something else than was hashed", e.Seq)
	default:
		v.canonical(line, e, e.Seq, what)
	}
	v.rep.Entries++
	if e.Seq <= v.last.Seq {
		return
	}
	if v.rep.First == 0 {
		v.rep.First = e.Seq
	}
	if v.linked && e.Seq == v.last.Seq+1 && e.Prev != v.last.Hash && !v.breaks(rec, e) {
		v.fault(Edited, e.Seq, "entry %d does not follow entry %d", e.Seq, v.last.Seq)
	}
	missed := e.Seq > v.last.Seq+1
	if err == nil && v.h.What == DeviceTrail {
		v.judge(rec, e, missed)
	}
	v.last, v.linked = Point{e.Seq, e.Hash}, err == nil
	v.rep.Head = v.last
	v.remember(v.last)
}

// says reports whether an entry shows what its body says.
func (e Entry) says(b Entry) bool {
	return e.Seq == b.Seq && e.At.Equal(b.At) && e.Kind == b.Kind && e.Severity == b.Severity && e.Actor == b.Actor && e.Subject == b.Subject &&
		e.Outcome == b.Outcome && e.Site == b.Site && e.Tenant == b.Tenant && e.Prev == b.Prev && maps.Equal(e.Detail, b.Detail)
}

// order notes what is missing before an entry, or that it comes at the wrong place.
func (v *reader) order(e Entry) {
	switch {
	case v.rep.Sealed:
		v.displaced(e.Seq, "entry %d stands behind the seal", e.Seq)
	case e.Seq <= v.last.Seq:
		h, known := v.recall[e.Seq]
		switch {
		case v.displaced(e.Seq, "entry %d stands behind entry %d", e.Seq, v.last.Seq):
		case known && h == e.Hash:
			v.fault(Forked, e.Seq, "entry %d is there twice", e.Seq)
		default:
			v.fault(Forked, e.Seq, "entry %d stands behind entry %d", e.Seq, v.last.Seq)
		}
	case e.Seq > v.last.Seq+1:
		v.miss(e.Seq - 1)
	}
}

// displaced turns the loss of an entry that shows up elsewhere into what it is.
func (v *reader) displaced(seq uint64, format string, args ...any) bool {
	for _, m := range v.rep.Missing {
		if m.From <= seq && seq <= m.To {
			if v.rep.FirstBad == m.From && (v.rep.Verdict == Gap || v.rep.Verdict == Truncated) {
				v.rep.Verdict = ""
				v.fault(Forked, m.From, format, args...)
			}
			return true
		}
	}
	return false
}

// miss notes that what lies behind the last entry, up to number to, is not there.
func (v *reader) miss(to uint64) {
	from := v.last.Seq + 1
	if v.rep.Entries == 0 && from == v.h.After.Seq+1 && len(v.rep.Missing) == 0 {
		v.fault(Truncated, from, "the file was cut at the front: it should begin with entry %d, and begins behind entry %d", from, to)
	} else {
		v.fault(Gap, from, "entries %d to %d are missing", from, to)
	}
	if len(v.rep.Missing) < maxGaps {
		v.rep.Missing = append(v.rep.Missing, Missing{From: from, To: to})
	}
	v.linked = false
}

// remember keeps the hash of an entry, for what refers back to it.
func (v *reader) remember(p Point) {
	if _, known := v.recall[p.Seq]; !known {
		v.kept = append(v.kept, p.Seq)
	}
	v.recall[p.Seq] = p.Hash
	if len(v.kept) < 2*maxRecall {
		return
	}
	for _, seq := range v.kept[:maxRecall] {
		delete(v.recall, seq)
	}
	v.kept = append(v.kept[:0], v.kept[maxRecall:]...)
}
