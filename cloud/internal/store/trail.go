package store

import (
	"context"
	"database/sql"
	"fmt"
	"sort"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// unanchoredAfter is how long a device may record without an anchor, by its
// clock and by ours, before that is told.
const unanchoredAfter = 24 * time.Hour

// Alarms after which entries of a trail may be missing.
const (
	kindBroken = "audit.chain_broken"
	kindBreak  = "audit.break"
)

const trailStateQuery = `SELECT device, head, hash, entries, broken, lost, base, base_hash, anchored, anchor_counter, anchor_at, countersigned FROM trail WHERE device = ?`

// TrailState says how far the trail of a device of tenant t has come, or with an
// empty id the service's own.
func (s *Store) TrailState(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (fleet.TrailState, error) {
	if id != "" {
		if err := s.owns(ctx, t, id); err != nil {
			return fleet.TrailState{}, fmt.Errorf("state of a trail: %w", err)
		}
	}
	return s.TrailStateOf(ctx, id)
}

// TrailStateOf is TrailState for the service itself, which knows the device.
func (s *Store) TrailStateOf(ctx context.Context, id fleet.DeviceID) (fleet.TrailState, error) {
	var st fleet.TrailState
	var entries uint64
	var anchorAt int64
	var hash, base []byte
	err := s.stmts.trail.QueryRowContext(ctx, id).Scan(&st.Device, &st.Head, &hash, &entries, &st.Broken, &st.Lost, &st.Base, &base,
		&st.Anchored, &st.AnchorCounter, &anchorAt, &st.Countersigned)
	if err != nil {
		return st, fmt.Errorf("state of the trail of %s: %w", id, found(err))
	}
	copy(st.Hash[:], hash)
	copy(st.BaseHash[:], base)
	if have := entries + st.Lost; have < st.Head {
		st.Missing, st.Broken = st.Head-have, true
	}
	st.AnchoredAt = at(anchorAt)
	return st, nil
}

// TrailEntries lists the entries of a trail behind number seq and up to last, by
// number. Whose trail it is must have been asked before.
func (s *Store) TrailEntries(ctx context.Context, id fleet.DeviceID, seq, last uint64, limit int) ([]fleet.AuditEvent, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+auditColumns+` FROM audit WHERE device = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?`, id, seq, last, limit)
	out, err := list(rows, err, scanAudit)
	if err != nil {
		return nil, fmt.Errorf("entries of the trail of %s: %w", id, err)
	}
	return out, nil
}

// TrailHeadBefore returns the last entry of a trail before number seq, or where
// its segments end.
func (s *Store) TrailHeadBefore(ctx context.Context, id fleet.DeviceID, seq uint64) (h fleet.Head, err error) {
	var hash []byte
	err = s.read.QueryRowContext(ctx, `SELECT seq, hash FROM audit WHERE device = ? AND seq < ? AND seq > (SELECT base FROM trail WHERE device = ?)
		UNION ALL SELECT base, base_hash FROM trail WHERE device = ? ORDER BY seq DESC LIMIT 1`, id, seq, id, id).Scan(&h.Seq, &hash)
	if err != nil {
		return h, fmt.Errorf("entry before %d of the trail of %s: %w", seq, id, found(err))
	}
	copy(h.Hash[:], hash)
	return h, nil
}

// TrailShared reports whether the service's own trail holds, or has held,
// entries of other tenants than t.
func (s *Store) TrailShared(ctx context.Context, t fleet.TenantID) (bool, error) {
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM facet WHERE own <> 0 AND tenant NOT IN (?, '')`, t).Scan(&n); err != nil {
		return false, fmt.Errorf("whose the service's trail is: %w", err)
	}
	return n > 0, nil
}

// Countersignatures lists what the service told a device about its entries
// behind number seq and up to last.
func (s *Store) Countersignatures(ctx context.Context, id fleet.DeviceID, seq, last uint64) ([]fleet.Countersigned, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT seq, hash, at, body FROM countersign WHERE device = ? AND seq > ? AND seq <= ? ORDER BY seq`, id, seq, last)
	out, err := list(rows, err, func(r scanner) (fleet.Countersigned, error) {
		c := fleet.Countersigned{Device: id}
		var hash []byte
		var when int64
		err := r.Scan(&c.Seq, &hash, &when, &c.Order)
		copy(c.Hash[:], hash)
		c.At = at(when)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("countersignatures of %s: %w", id, err)
	}
	return out, nil
}

// AddCountersign keeps what the service is about to tell a device. Those of
// many devices at one moment share a commit.
func (s *Store) AddCountersign(ctx context.Context, c fleet.Countersigned) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `UPDATE trail SET countersigned = ? WHERE device = ? AND countersigned < ?`, c.Seq, c.Device, c.Seq)
		if err != nil || n == 0 {
			return err
		}
		return w.exec(ctx, `INSERT INTO countersign (device, seq, hash, at, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (device, seq) DO NOTHING`,
			c.Device, c.Seq, c.Hash[:], ms(c.At), c.Order)
	})
	if err != nil {
		return fmt.Errorf("countersign the trail of %s: %w", c.Device, err)
	}
	return nil
}

// proof is what is on file of how far a trail is proven.
type proof struct {
	base                        uint64
	baseHash                    []byte
	anchored, counter           uint64
	anchorAt, anchorStored      int64
	told                        bool
	lost, breakSeq, breakLosing uint64
	breakFirst                  uint64 // of what breakSeq says is lost, as far as it did not come late
	gapTold                     bool   // the service's trail says that entries are missing
}

const proofColumns = `base, base_hash, anchored, anchor_counter, anchor_at, anchor_stored, told, lost, break_seq, break_lost, break_first, gap_told`

func (p *proof) columns() []any {
	return []any{&p.base, &p.baseHash, &p.anchored, &p.counter, &p.anchorAt, &p.anchorStored, &p.told, &p.lost, &p.breakSeq, &p.breakLosing, &p.breakFirst, &p.gapTold}
}

func (w *writer) setProof(ctx context.Context, id fleet.DeviceID, p proof) error {
	return w.exec(ctx, `UPDATE trail SET anchored = ?, anchor_counter = ?, anchor_at = ?, anchor_stored = ?, told = ?, lost = ?, break_seq = ?, break_lost = ?, break_first = ?, gap_told = ?
		WHERE device = ?`, p.anchored, p.counter, p.anchorAt, p.anchorStored, p.told, p.lost, p.breakSeq, p.breakLosing, p.breakFirst, p.gapTold, id)
}

// breaks reports whether an entry is a device's record of what it lost with a
// damaged file, and not only called one.
func breaks(ev fleet.AuditEvent) bool {
	if ev.Kind != kindBreak {
		return false
	}
	r, err := wire.AuditEntry{Body: ev.Body, Hash: ev.Hash}.Open()
	return err == nil && r.Break != nil
}

// proves looks at what an entry that is new says about how far the trail is
// proven.
func (g *group) proves(ctx context.Context, t *tally, in *Intake, out *Outcome, ev fleet.AuditEvent) error {
	p, before := &t.proof, t.head
	switch {
	case ev.Seq <= before: // it fills a gap, which may be one that was explained
		if err := g.came(ctx, p, ev); err != nil {
			return err
		}
	case ev.Seq > before+1 && breaks(ev):
		p.breakSeq, p.breakFirst, p.breakLosing = ev.Seq, before+1, ev.Seq-before-1
	case ev.Seq > before+1:
		p.breakSeq, p.breakFirst, p.breakLosing = 0, 0, 0
	}
	for _, a := range in.Anchors {
		if a.Seq == ev.Seq {
			t.signed(a)
			return g.anchor(ctx, t, in, out, ev, a)
		}
	}
	if p.told || p.anchorStored == 0 || in.At.Sub(at(p.anchorStored)) < unanchoredAfter || ev.At.Sub(at(p.anchorAt)) < unanchoredAfter {
		return nil
	}
	p.told = true
	return g.w.audit(ctx, in.Tenant, fleet.AuditEvent{
		At: in.At, Kind: "audit.unanchored", Severity: "warn", Actor: "ingest", Subject: string(in.Device),
		Detail: map[string]string{"what": fmt.Sprintf("it has recorded for a day without its TPM signing that, last at entry %d", p.anchored)},
	})
}

// lostRanges says whether entries from one number to another are lost for one
// reason that the device's TPM has signed.
func lostRanges(ctx context.Context, tx *sql.Tx, id fleet.DeviceID) (func(first, last uint64) bool, error) {
	rows, err := tx.QueryContext(ctx, `SELECT first, last FROM lost_range WHERE device = ? ORDER BY first`, id)
	all, err := list(rows, err, func(r scanner) ([2]uint64, error) {
		var l [2]uint64
		err := r.Scan(&l[0], &l[1])
		return l, err
	})
	if err != nil {
		return nil, err
	}
	return func(first, last uint64) bool {
		behind := sort.Search(len(all), func(i int) bool { return all[i][0] > first })
		return behind > 0 && last <= all[behind-1][1]
	}, nil
}

// came takes an entry that came late off what is lost, if it was held for that.
func (g *group) came(ctx context.Context, p *proof, ev fleet.AuditEvent) error {
	if p.breakFirst <= ev.Seq && ev.Seq < p.breakSeq { // as nobody has signed yet
		p.breakLosing--
	}
	if p.lost == 0 {
		return nil
	}
	var n uint64
	if err := g.w.row(ctx, `SELECT COUNT(*) FROM lost_range WHERE device = ? AND first <= ? AND last >= ?`, ev.Device, ev.Seq, ev.Seq).Scan(&n); err != nil {
		return err
	}
	p.lost -= min(n, 1)
	return nil
}

// loses keeps what a break says is lost, now that an anchor has signed it.
func (g *group) loses(ctx context.Context, p *proof, id fleet.DeviceID) error {
	first, last, n := p.breakFirst, p.breakSeq-1, p.breakLosing
	p.lost, p.breakSeq, p.breakFirst, p.breakLosing = p.lost+n, 0, 0, 0
	if n == 0 || last <= p.base { // it is in a sealed file
		return nil
	}
	return g.w.exec(ctx, `INSERT INTO lost_range (device, first, last) VALUES (?, ?, ?) ON CONFLICT (device, first) DO NOTHING`, id, first, last)
}

func (g *group) anchor(ctx context.Context, t *tally, in *Intake, out *Outcome, ev fleet.AuditEvent, a fleet.AnchorSeen) error {
	p := &t.proof
	switch {
	case a.Fault != "":
	case ev.Seq < p.anchored: // it came late, and the counter has gone on
		return nil
	case p.anchorStored > 0 && a.Counter == p.counter:
		a.Fault = fmt.Sprintf("it has the counter %d of an anchor before: one of them is a copy", a.Counter)
	case p.anchorStored > 0 && a.Counter < p.counter:
		a.Fault = fmt.Sprintf("the counter of the TPM went back from %d to %d: the entries belong to an older history", p.counter, a.Counter)
	}
	if a.Fault != "" {
		if in.AnchorTold || t.anchorTold {
			return nil
		}
		t.anchorTold, out.AnchorBad = true, true
		return g.w.audit(ctx, in.Tenant, fleet.AuditEvent{
			At: in.At, Kind: "audit.anchor_bad", Severity: "alarm", Actor: "ingest", Subject: string(in.Device),
			Detail: map[string]string{"entry": fmt.Sprint(ev.Seq), "fault": a.Fault},
		})
	}
	if p.breakSeq > 0 && ev.Seq > p.breakSeq {
		if err := g.loses(ctx, p, in.Device); err != nil {
			return err
		}
	}
	p.anchored, p.counter, p.anchorAt, p.anchorStored, p.told = ev.Seq-1, a.Counter, deviceMS(ev.At), ms(in.At), false
	return nil
}
