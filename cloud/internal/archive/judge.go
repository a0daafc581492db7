package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/wire"
)

// breaks reports whether an entry is a break record that goes on behind an
// entry of this trail, behind one that was lost with what came before it, or
// behind nothing that the device knows of any more. Where numbers were left out
// it has no hash before.
func (v *reader) breaks(rec wire.AuditRecord, e Entry) bool {
	b := rec.Break
	if b == nil || rec.Kind != "audit.break" {
		return false
	}
	if b.Seq > v.last.Seq {
		return true
	}
	if b.Seq == 0 && b.Hash == (Hash{}) {
		return e.Prev == v.last.Hash || e.Prev == Hash{}
	}
	h, known := v.recall[b.Seq]
	return known && h == b.Hash && (e.Prev == v.last.Hash || e.Prev == h || e.Prev == Hash{})
}

// judge looks at what an entry of a device proves: a break record, which an
// anchor has to sign, and an anchor, which the device's TPM has.
func (v *reader) judge(rec wire.AuditRecord, e Entry, missed bool) {
	if missed {
		v.broke = -1
	}
	if n := len(v.rep.Missing); missed && n > 0 && v.rep.Missing[n-1].To == e.Seq-1 && v.breaks(rec, e) { // of very many gaps only the first are listed
		v.broke, v.since = len(v.rep.Missing)-1, v.faults
	}
	a := rec.Anchor
	if a == nil {
		return
	}
	v.rep.AnchorsSeen++
	switch {
	case v.counted && a.Counter == v.counter:
		v.fault(Forked, e.Seq, "anchor %d has the counter of the anchor before: one of them is a copy", e.Seq)
	case v.counted && a.Counter < v.counter:
		v.fault(Forked, e.Seq, "the TPM's counter went back at anchor %d, from %d to %d: it belongs to an older history", e.Seq, v.counter, a.Counter)
	}
	v.counter, v.counted = max(v.counter, a.Counter), true
	if v.trust.Anchor == nil || len(v.h.AKs) == 0 {
		return
	}
	v.rep.AK = "file"
	if len(v.trust.AKs) > 0 {
		v.rep.AK = "given"
	}
	binding := wire.AnchorBinding(v.h.Device, e.Seq-1, e.Prev)
	why := errors.New("it is of no attestation key that was given")
	for _, k := range v.h.AKs {
		id := Hash(sha256.Sum256(k.Public))
		if v.rep.AK == "given" && !slices.Contains(v.trust.AKs, id) {
			continue
		}
		if why = v.trust.Anchor(k.Public, binding, a.Attest, a.Signature, a.Counter); why == nil {
			if !slices.Contains(v.rep.AKs, id) {
				v.rep.AKs = append(v.rep.AKs, id)
			}
			break
		}
	}
	if why != nil {
		v.fault(Edited, e.Seq, "anchor %d does not hold: %v", e.Seq, why)
		return
	}
	v.rep.Anchors++
	if v.rep.Verdict == "" {
		v.rep.AnchoredTo = e.Seq - 1
	}
	v.explain()
}

// explain takes a gap that a break record spoke of, now that the TPM has signed
// the record, off what is wrong.
func (v *reader) explain() {
	if v.broke < 0 || v.faults != v.since {
		return
	}
	m := &v.rep.Missing[v.broke]
	m.Explained, v.broke = true, -1
	if v.rep.Verdict == Gap && v.rep.FirstBad == m.From {
		v.rep.Verdict, v.rep.FirstBad, v.rep.Text = "", 0, ""
		v.rep.AnchoredTo = v.last.Seq
	}
}

// countersign checks what the service signed at a connect against the entry
// that stands before.
func (v *reader) countersign(line []byte) {
	var c countersignLine
	seq := v.last.Seq
	bad := func(format string, args ...any) { v.fault(Edited, seq, format, args...) }
	if err := json.Unmarshal(line, &c); err != nil {
		bad("the countersignature of entry %d cannot be read", seq)
		return
	}
	cs, err := v.signed(c.Order)
	switch {
	case err != nil:
		v.canonical(line, c, seq, fmt.Sprintf("the countersignature of entry %d", seq))
		bad("the countersignature of entry %d does not hold: %v", seq, err)
		return
	case cs.Tenant != v.h.Tenant || cs.Device != v.h.Device:
		bad("the countersignature of entry %d is for device %.40q of tenant %.40q", seq, cs.Device, cs.Tenant)
		return
	case cs.Seq > seq: // the service had seen what is not here
		v.miss(cs.Seq)
		v.last, v.linked = Point{cs.Seq, cs.Hash}, true
		v.remember(v.last)
	case cs.Seq < seq:
		v.fault(Forked, cs.Seq, "the countersignature of entry %d stands behind entry %d", cs.Seq, seq)
		return
	case cs.Hash != v.last.Hash && v.linked:
		v.fault(Forked, seq, "the service has signed another entry %d than is here", seq)
		return
	}
	if c.Seq != cs.Seq || !c.At.Equal(time.UnixMilli(cs.At)) {
		bad("the countersignature of entry %d shows something else than was signed", seq)
	}
	v.canonical(line, c, cs.Seq, fmt.Sprintf("the countersignature of entry %d", cs.Seq))
	v.rep.Countersigned++
	if v.rep.Verdict == "" {
		v.rep.CountersignedTo = cs.Seq
	}
}

// signed opens a countersignature. Keys of the service that are no longer in use are
// named by the header, which a seal with a key given by hand covers.
func (v *reader) signed(order []byte) (wire.Countersign, error) {
	o, err := wire.Decode[wire.Order](order)
	if err != nil {
		return wire.Countersign{}, err
	}
	if o.Kind != wire.OrderHead {
		return wire.Countersign{}, fmt.Errorf("it is an order of kind %s", o.Kind)
	}
	if err := v.keys.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature); err != nil {
		if err2 := v.own.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature); err2 != nil {
			return wire.Countersign{}, err2
		}
	}
	return wire.Decode[wire.Countersign](o.Payload)
}

// seal checks the last line against all that was read.
func (v *reader) seal(line []byte) {
	var s Seal
	v.rep.Sealed = true
	err := json.Unmarshal(line, &s)
	var want []byte
	if err == nil {
		want, err = marshal(&v.buf, s)
	}
	if err != nil || !bytes.Equal(want, line) {
		v.fault(Unsealed, 0, "the seal was changed after it was written")
		return
	}
	v.rep.KeyID = s.KeyID
	payload, err := s.signed()
	if err == nil {
		err = v.keys.VerifyOrder(sealKind, payload, s.KeyID, s.Signature)
	}
	if err != nil && v.rep.Key == "given" {
		v.fault(Unsealed, 0, "the seal does not hold with the key that was given: %v", err)
	} else if err != nil {
		v.fault(Unsealed, 0, "the seal does not hold: %v", err)
	}
	if s.Head.Seq > v.head().Seq {
		v.cut(s.Head.Seq, "the seal says")
	}
	var sum Hash
	v.sum.Sum(sum[:0])
	switch {
	case s.Entries != v.rep.Entries || s.First != v.rep.First:
		v.fault(Edited, 0, "the seal is of %d entries, and there are %d", s.Entries, v.rep.Entries)
	case s.Head != v.head():
		v.fault(Edited, v.rep.Head.Seq, "the trail ends in another entry %d than was sealed", s.Head.Seq)
	case s.SHA256 != sum:
		v.fault(Edited, 0, "something that no hash of an entry covers was changed or removed")
	}
}

// head is the last entry that is there, or what the first would follow.
func (v *reader) head() Point {
	if v.rep.Entries == 0 {
		return v.h.After
	}
	return v.rep.Head
}

// cut notes that the trail ends before entry last, of which who speaks.
func (v *reader) cut(last uint64, who string) {
	from := v.head().Seq + 1
	if v.rep.Verdict == Gap && v.rep.FirstBad == from { // nothing came behind what is missing
		v.rep.Verdict = ""
	}
	v.fault(Truncated, from, "the trail ends before entry %d; %s that it goes on to entry %d", from, who, last)
	if n := len(v.rep.Missing); n > 0 && v.rep.Missing[n-1].From == from {
		v.rep.Missing[n-1].To = max(v.rep.Missing[n-1].To, last)
	} else if n < maxGaps {
		v.rep.Missing = append(v.rep.Missing, Missing{From: from, To: last})
	}
}

// end says what came of it.
func (v *reader) end() {
	if v.rep.What == "" {
		return
	}
	head := v.head().Seq
	if v.last.Seq > head {
		v.cut(v.last.Seq, "a countersignature says")
	}
	if !v.rep.Sealed {
		if v.h.Last > head {
			v.cut(v.h.Last, "the header says")
		}
		v.fault(Unsealed, 0, "the file has no seal: nobody signed that this is all")
	}
	if v.rep.Verdict != "" {
		return
	}
	for _, m := range v.rep.Missing {
		v.fault(Gap, m.From, "entries %d to %d were lost with a damaged file, as the device has recorded and its TPM signed; all others are whole", m.From, m.To)
	}
	if v.rep.Verdict == "" {
		v.rep.Verdict, v.rep.Text = Whole, fmt.Sprintf("%d entries, nothing was changed and nothing is missing", v.rep.Entries)
	}
}
