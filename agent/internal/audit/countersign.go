package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/tillward/tillward/cloud/wire"
)

// Countersigned takes the service's word for the chain up to an entry. The caller
// has verified that it is the service's, and for this device; key names the key,
// and order is the word as it came. It is kept when it is right and newer, and
// recorded when it is about more than the last one that was recorded. One that is
// wrong is an alarm: the service holds another chain, or has lost what it had.
func (j *Journal) Countersigned(ctx context.Context, c wire.Countersign, key string, order []byte) error {
	have, known, err := j.remembers(ctx, c.Seq)
	if err != nil {
		return err
	}
	j.mu.Lock()
	last, signed, at, told := j.head.seq, j.mark.Signed, j.mark.At, j.told
	j.mu.Unlock()
	detail := map[string]string{"seq": strconv.FormatUint(c.Seq, 10), "key": key, "hash": hex.EncodeToString(c.Hash[:])}
	switch {
	case c.Seq > last:
		return j.dispute(ctx, "ahead", "", detail)
	case known && have != c.Hash:
		return j.dispute(ctx, "differs", hex.EncodeToString(have[:]), detail)
	case c.Seq < signed && c.At > at:
		return j.dispute(ctx, "behind", "", detail)
	case c.Seq <= signed:
		return nil
	}
	if c.Seq > told { // else every word would be one more entry to have a word for
		if err := j.Record(ctx, kindCountersigned, Info, detail["seq"], detail); err != nil {
			return err
		}
	}
	j.mu.Lock()
	if c.Seq > told {
		j.told = j.head.seq
	}
	j.mu.Unlock()
	j.keep(func(m *mark) { m.Countersigned, m.Signed, m.At = order, c.Seq, c.At })
	return nil
}

// dispute records it once, and with it the hash that the journal has instead.
func (j *Journal) dispute(ctx context.Context, reason, have string, detail map[string]string) error {
	what := sha256.Sum256([]byte(reason + " " + detail["seq"] + " " + detail["hash"]))
	j.mu.Lock()
	again := j.denied == what
	j.denied = what
	j.mu.Unlock()
	if again {
		return nil
	}
	detail["reason"], detail["have"] = reason, have
	return j.Record(ctx, kindDisputed, Alarm, detail["seq"], detail)
}

// remembers returns the hash of an entry, if the journal still knows it: it knows
// the last ones, the mark, and what the service had not stored a moment ago with
// the one before.
func (j *Journal) remembers(ctx context.Context, seq uint64) (hash [32]byte, known bool, err error) {
	j.mu.Lock()
	near := [...]head{j.head, j.recent[seq%uint64(len(j.recent))], j.mark.head()}
	j.mu.Unlock()
	for _, h := range near {
		if h.seq == seq {
			return h.hash, true, nil
		}
	}
	if j.o.Waiting == nil {
		return hash, false, nil
	}
	err = j.o.Waiting(ctx, func(payload []byte) {
		b, err := wire.Decode[wire.AuditBatch](payload)
		if err != nil {
			return
		}
		for _, e := range b.Entries {
			r, err := e.Open()
			switch {
			case err != nil:
			case r.Seq == seq:
				hash, known = e.Hash, true
			case r.Seq == seq+1 && r.Prev != [32]byte{}:
				hash, known = r.Prev, true
			}
		}
	})
	return hash, known, err
}
