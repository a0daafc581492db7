package audit

import (
	"context"
	"path/filepath"
	"strconv"

	"github.com/tillward/tillward/cloud/wire"
)

// Kinds that the journal records by itself.
const (
	kindAnchor        = "audit.anchor"
	kindBreak         = "audit.break"
	kindCountersigned = "audit.countersigned"
	kindDisputed      = "audit.disputed"
)

// broken is a break that no entry tells of yet.
type broken struct {
	reason string
	known  head // the last entry that is known for certain
	skip   bool // what came behind it may have used numbers
}

// damage finds out whether the chain can go on where the spool says. The mark
// knows as much or less, unless the spool was lost or is an older one.
func damage(h head, bad error, marked bool, m head, o Options) *broken {
	switch {
	case h.seq == 0 && (bad != nil || o.Rebuilt != "" || marked):
		return &broken{"lost", m, true}
	case m.seq > h.seq || marked && m.seq == h.seq && m.hash != h.hash:
		return &broken{"rolled-back", m, true}
	case o.Rebuilt != "":
		return &broken{"salvaged", h, o.Recalled}
	}
	return nil
}

// mend tells of the break, if there is one. It knows nothing of what the entry
// behind it brings along. j.mu is held.
func (j *Journal) mend() error {
	b := j.broken
	if b == nil {
		return nil
	}
	detail := map[string]string{"reason": b.reason, "seq": strconv.FormatUint(b.known.seq, 10)}
	if j.o.Rebuilt != "" {
		detail["kept"] = filepath.Base(j.o.Rebuilt)
	}
	r, err := j.clean(wire.AuditRecord{
		Kind: kindBreak, Severity: Alarm, Detail: detail, Break: &wire.Break{Seq: b.known.seq, Hash: b.known.hash},
	})
	if err != nil {
		return err
	}
	behind := b.known
	if b.skip { // at most so many entries come behind a mark before there is another
		behind = head{seq: b.known.seq + 2*every - 1}
	}
	err = j.append(context.Background(), r, nil, &behind)
	if j.head.seq == behind.seq+1 { // it is stored
		j.broken, j.first = nil, "break"
	}
	return err
}
