package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Commit stores what came from devices, in order, in one transaction for the
// whole slice. When it returns nil, all of it survives a power cut; when it
// returns an error, nothing of it is there.
//
// fleet.ErrInvalid and fleet.ErrNotFound mean that an intake can never be
// stored: its numbers lie outside what can be kept, or its device is not of
// its tenant. Every other error is one of the database.
func (s *Store) Commit(ctx context.Context, in []Intake) ([]Outcome, error) {
	out, err := s.commit(ctx, in, false)
	if isThere(err) { // what comes twice is rare, and looked for only then
		out, err = s.commit(ctx, in, true)
	}
	if err != nil {
		return nil, fmt.Errorf("store what came from devices: %w", err)
	}
	return out, nil
}

func (s *Store) commit(ctx context.Context, in []Intake, careful bool) ([]Outcome, error) {
	out := make([]Outcome, len(in))
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		g := &group{w: w, devices: map[fleet.DeviceID]*tally{}, series: map[int64]*recent{}}
		if err := g.load(ctx, in); err != nil {
			return err
		}
		if w.pg {
			w.bulk, w.careful = true, careful
			if err := g.ahead(ctx, in); err != nil {
				return err
			}
		}
		for i := range in {
			if err := g.take(ctx, &in[i], &out[i]); err != nil {
				return fmt.Errorf("device %s: %w", in[i].Device, err)
			}
		}
		return g.flush(ctx)
	})
	return out, err
}

// group is one group commit: what is summed up over its intakes and written
// once.
type group struct {
	w       *writer
	devices map[fleet.DeviceID]*tally
	series  map[int64]*recent
	fronts  []front // of boots, in the order in which they came
	pending []pending
	early   *added // that were stored ahead, on PostgreSQL
}

// front is how far the telemetry of a boot is whole.
type front struct {
	boot int64
	seq  uint64
}

// tally is what changes in a device's row and trail.
type tally struct {
	tenant  fleet.TenantID
	site    string
	samples int
	seen    int64
	faults  int
	crashes uint64

	audit   bool // the fields below were read
	head    uint64
	hash    [32]byte
	entries uint64
	added   int
	broken  bool
	proof   proof

	anchorTold bool                            // a bad anchor, in this group
	keys       map[string]fleet.AttestationKey // that signed anchors of it
}

// gap reports whether entries of the trail are missing.
func (t *tally) gap() bool { return t.entries+uint64(t.added)+t.proof.lost < t.head } // #nosec G115 -- a count

// recent is what changes in a series' row.
type recent struct {
	count int
	at    int64
	value float64
}

// tally returns that of the device of an intake.
func (g *group) tally(in *Intake) (*tally, error) {
	t := g.devices[in.Device]
	switch {
	case t == nil:
		return nil, fleet.ErrNotFound
	case t.tenant != in.Tenant:
		return nil, fmt.Errorf("not of tenant %s: %w", in.Tenant, fleet.ErrNotFound)
	}
	return t, nil
}

func (g *group) take(ctx context.Context, in *Intake, out *Outcome) error {
	t, err := g.tally(in)
	if err != nil {
		return err
	}
	t.seen = max(t.seen, ms(in.At))
	if err := g.samples(ctx, t, in, out); err != nil {
		return err
	}
	if err := g.whole(ctx, in); err != nil {
		return err
	}
	if err := g.events(ctx, in, out); err != nil {
		return err
	}
	if err := g.checks(ctx, in, out); err != nil {
		return err
	}
	if err := g.audit(ctx, t, in, out); err != nil {
		return err
	}
	if in.Report != nil {
		if err := g.report(ctx, t, in, out); err != nil {
			return err
		}
	}
	if in.CommandEnd != nil {
		c, err := g.w.endCommand(ctx, in.Device, *in.CommandEnd)
		if err != nil {
			return err
		}
		out.Command = c
	}
	if in.Step != nil {
		e, err := g.w.moveExecution(ctx, in.Device, *in.Step, in.At)
		if err != nil {
			return err
		}
		out.Execution = e
	}
	if out.NewEvents > 0 {
		for _, ev := range in.Alarms {
			if err := g.w.audit(ctx, in.Tenant, ev); err != nil {
				return err
			}
		}
	}
	if in.Service != nil {
		t.proof.gapTold = t.proof.gapTold || in.Service.Kind == kindBroken || in.Service.Kind == kindBreak
		return g.w.audit(ctx, in.Tenant, *in.Service)
	}
	return nil
}

func (g *group) samples(ctx context.Context, t *tally, in *Intake, out *Outcome) error {
	for _, s := range in.Samples {
		if err := kept(s); err != nil {
			return err
		}
		boot, err := g.w.boot(ctx, in.Device, s.Boot)
		if err != nil {
			return err
		}
		series, err := g.w.seriesID(ctx, in.Device, s.Peripheral, s.Name)
		if err != nil {
			return err
		}
		g.pending = append(g.pending, pending{
			[8]any{boot, int64(s.Seq), int64(s.Index), series, deviceMS(s.At), s.Value, s.Epoch, s.Kept}, out, t, // #nosec G115 -- number has looked
		})
	}
	if len(g.pending) >= sizes[0] && !g.w.bulk {
		return g.write(ctx)
	}
	return nil
}

// whole notes that nothing is missing before telemetry that came in order: the
// device sends it, new or again, only when all before it was acknowledged or
// sent by the same connection.
func (g *group) whole(ctx context.Context, in *Intake) error {
	if len(in.Samples) == 0 || in.Ahead {
		return nil
	}
	s := in.Samples[0]
	boot, err := g.w.boot(ctx, in.Device, s.Boot)
	if err != nil {
		return err
	}
	if n := len(g.fronts); n > 0 && g.fronts[n-1].boot == boot {
		g.fronts[n-1].seq = max(g.fronts[n-1].seq, s.Seq)
		return nil
	}
	g.fronts = append(g.fronts, front{boot, s.Seq})
	return nil
}

func (g *group) events(ctx context.Context, in *Intake, out *Outcome) error {
	for _, e := range in.Events {
		if err := number("sequence", e.Seq); err != nil {
			return err
		}
		boot, err := g.w.boot(ctx, in.Device, e.Boot)
		if err != nil {
			return err
		}
		isNew := g.early.isNew(boot, e.Seq, e.Index)
		if g.early == nil {
			n, err := g.w.changed(ctx, `INSERT INTO event (device, boot, seq, idx, at, peripheral, category, code, from_value, to_value, mono, count)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
				in.Device, boot, e.Seq, e.Index, deviceMS(e.At), e.Peripheral, e.Category, e.Code, e.From, e.To, e.Mono, e.Count)
			if err != nil {
				return fmt.Errorf("event: %w", err)
			}
			isNew = n == 1
		}
		if isNew {
			out.NewEvents++
		} else {
			out.Duplicates++
		}
	}
	return nil
}

func (g *group) audit(ctx context.Context, t *tally, in *Intake, out *Outcome) error {
	if len(in.Audit) == 0 && !in.AuditBroken {
		return nil
	}
	if !t.audit {
		return fmt.Errorf("audit trail: %w", fleet.ErrNotFound)
	}
	t.broken = t.broken || in.AuditBroken
	gap, late := t.gap(), 0
	for _, ev := range in.Audit {
		if err := number("sequence", max(ev.Seq, ev.Seq+1)); err != nil { // it is asked for what lies before the next one
			return err
		}
		if ev.Seq <= t.proof.base { // what is here of it lies in a sealed file now
			out.Duplicates++
			switch {
			case ev.Seq < t.proof.base:
				out.Sealed = cmp.Or(out.Sealed, ev.Seq)
			case !bytes.Equal(t.proof.baseHash, ev.Hash[:]):
				out.Forked = ev.Seq
				if err := g.breaks(ctx, t, in, fmt.Sprintf("another entry %d came after it was stored", ev.Seq)); err != nil {
					return err
				}
			}
			continue
		}
		ev.Device, ev.Tenant, ev.Actor, ev.Site, ev.StoredAt = in.Device, in.Tenant, cmp.Or(ev.Actor, string(in.Device)), t.site, in.At
		added, err := g.w.insertAudit(ctx, ev, ev.Seq > t.head)
		if err != nil {
			return fmt.Errorf("audit entry: %w", err)
		}
		if added {
			if err := g.proves(ctx, t, in, out, ev); err != nil {
				return fmt.Errorf("audit entry: %w", err)
			}
			out.NewAudit++
			t.added++
			if ev.Kind == "peripheral.fault" && in.At.Sub(ev.At) < trustedAge {
				t.faults++
			}
			if ev.Seq > t.head {
				t.head, t.hash = ev.Seq, ev.Hash
				continue
			}
			late++
			if fits, err := g.w.fits(ctx, ev); err != nil {
				return fmt.Errorf("audit entry: %w", err)
			} else if !fits {
				if err := g.breaks(ctx, t, in, fmt.Sprintf("entry %d came late and does not fit in its place", ev.Seq)); err != nil {
					return err
				}
			}
			continue
		}
		out.Duplicates++
		var stored []byte
		if err := g.w.row(ctx, `SELECT hash FROM audit WHERE device = ? AND seq = ?`, in.Device, ev.Seq).Scan(&stored); err != nil {
			return fmt.Errorf("audit entry: %w", err)
		}
		if bytes.Equal(stored, ev.Hash[:]) {
			continue
		}
		out.Forked = ev.Seq
		if err := g.breaks(ctx, t, in, fmt.Sprintf("another entry %d came after it was stored", ev.Seq)); err != nil {
			return err
		}
	}
	out.Gap = gap || t.gap()
	if !gap || t.gap() || !t.proof.gapTold { // one for each alarm, of which there are few: a device could open and fill gaps all day
		return nil
	}
	t.proof.gapTold = false
	what := fmt.Sprintf("what was missing has come, %d entries late; the chain is whole", late)
	if t.broken {
		what = fmt.Sprintf("what was missing has come, %d entries late; the chain did not hold otherwise", late)
	}
	return g.w.audit(ctx, in.Tenant, fleet.AuditEvent{
		At: in.At, Kind: "audit.chain_filled", Severity: "info", Actor: "ingest", Subject: string(in.Device),
		Detail: map[string]string{"what": what},
	})
}

// breaks flags the device for good, with an alarm the first time.
func (g *group) breaks(ctx context.Context, t *tally, in *Intake, why string) error {
	if t.broken {
		return nil
	}
	t.broken = true
	return g.w.audit(ctx, in.Tenant, fleet.AuditEvent{
		At: in.At, Kind: kindBroken, Severity: "alarm", Actor: "ingest", Subject: string(in.Device), Detail: map[string]string{"reason": why},
	})
}

// fits reports whether an entry that came late links those on either side of
// it, as far as they are there.
func (w *writer) fits(ctx context.Context, ev fleet.AuditEvent) (bool, error) {
	var wrong int
	err := w.row(ctx, `SELECT COUNT(*) FROM audit WHERE device = ? AND (seq = ? - 1 AND hash <> ? OR seq = ? + 1 AND prev <> ?)`,
		ev.Device, ev.Seq, ev.Prev[:], ev.Seq, ev.Hash[:]).Scan(&wrong)
	return wrong == 0 && (ev.Seq > 1 || ev.Prev == [32]byte{}), err
}

func (g *group) report(ctx context.Context, t *tally, in *Intake, out *Outcome) error {
	r := in.Report
	if err := number("sequence", r.Seq); err != nil {
		return err
	}
	boot, err := g.w.boot(ctx, in.Device, r.Boot)
	if err != nil {
		return err
	}
	next := version{boot: boot, seq: int64(r.Seq), sent: deviceMS(r.Sent), arrived: ms(in.At)}
	var have version
	var mark []byte
	err = found(g.w.row(ctx, `SELECT boot, seq, sent, stored_at, peripherals FROM state WHERE device = ?`, in.Device).Scan(&have.boot, &have.seq, &have.sent, &have.arrived, &mark))
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return fmt.Errorf("state: %w", err)
	}
	if err == nil && !next.newer(have) {
		return nil
	}
	if err := g.w.exec(ctx, `INSERT INTO state (device, boot, seq, sent, stored_at, agent_version, slot, raw) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (device) DO UPDATE SET boot = excluded.boot, seq = excluded.seq, sent = excluded.sent, stored_at = excluded.stored_at,
		agent_version = excluded.agent_version, slot = excluded.slot, raw = excluded.raw`,
		in.Device, next.boot, next.seq, next.sent, next.arrived, r.AgentVersion, r.Slot, blob(r.Raw)); err != nil {
		return err
	}
	if err := g.peripherals(ctx, in, out, mark); err != nil {
		return err
	}
	return g.truth(ctx, t, in, out)
}

// version orders the reports of one device.
type version struct{ boot, seq, sent, arrived int64 }

// newer reports whether v replaces have. Within a boot the sequence decides.
// Between boots the device's clock does, as long as it agrees with ours to a
// day at both; else the order in which the boots were first heard of, so that
// a clock that once ran ahead does not freeze the state.
func (v version) newer(have version) bool {
	if v.boot == have.boot {
		return v.seq > have.seq
	}
	if v.plausible() && have.plausible() && v.sent != have.sent {
		return v.sent > have.sent
	}
	return v.boot > have.boot
}

func (v version) plausible() bool {
	const day = int64(24 * time.Hour / time.Millisecond)
	return v.sent > v.arrived-day && v.sent < v.arrived+day
}

func (g *group) flush(ctx context.Context) error {
	if err := g.write(ctx); err != nil {
		return err
	}
	for id, t := range g.devices {
		if err := g.w.exec(ctx, `UPDATE device SET samples = samples + ?, last_seen = CASE WHEN ? > last_seen THEN ? ELSE last_seen END WHERE id = ?`,
			t.samples, t.seen, t.seen, id); err != nil {
			return err
		}
		if t.faults > 0 || t.crashes > 0 {
			if err := g.w.trouble(ctx, id, at(t.seen), t.faults, 0, t.crashes); err != nil {
				return err
			}
		}
		if !t.audit {
			continue
		}
		if err := g.w.exec(ctx, `UPDATE trail SET head = ?, hash = ?, entries = entries + ?, broken = ? WHERE device = ?`,
			t.head, t.hash[:], t.added, t.broken, id); err != nil {
			return err
		}
		if err := errors.Join(g.w.setProof(ctx, id, t.proof), g.needKeys(ctx, id, t)); err != nil {
			return err
		}
	}
	for _, f := range g.fronts {
		if err := g.w.exec(ctx, `UPDATE boot SET front = CASE WHEN front < ? THEN ? ELSE front END,
			turn = CASE WHEN turn = 0 THEN 1 + (SELECT MAX(b.turn) FROM boot b WHERE b.device = boot.device) ELSE turn END WHERE id = ?`, f.seq, f.seq, f.boot); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
	}
	return g.recents(ctx)
}

// number checks that a number from a device can be kept.
func number(what string, n uint64) error {
	if n > math.MaxInt64 {
		return fmt.Errorf("%s %d: %w", what, n, fleet.ErrInvalid)
	}
	return nil
}
