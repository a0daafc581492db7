package ingest

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// This file checks the audit chains of devices.

// forked tells that a device's chain goes on in two ways.
func (i *Ingest) forked(m Message, out fleet.Outcome) {
	what := i.forks[m.Device]
	switch {
	case out.Forked != 0:
		what = fmt.Sprintf("entry %d came a second time with other content", out.Forked)
	case out.Sealed != 0 && what == "":
		what = fmt.Sprintf("entry %d came a second time, long after it was put away in a sealed file", out.Sealed)
	}
	k := note{m.Device, "fork"}
	last, told := i.noted[k]
	if what == "" || i.o.Forked == nil || told && m.At.Sub(last) < noteEvery {
		return
	}
	i.noted[k] = m.At
	i.o.Forked(m.Device, what)
}

const kindBreak = "audit.break"

// broke is the alarm of a break that a device itself has recorded: its file was
// damaged, and what was behind the last entry that it knows is lost. It is no
// chain that was tampered with, as far as the anchor that follows signs it.
func broke(r wire.AuditRecord, have uint64) *fleet.AuditEvent {
	d := map[string]string{"entry": fmt.Sprint(r.Seq), "known": fmt.Sprint(r.Break.Seq)}
	if r.Seq > have+1 {
		d["lost"] = fmt.Sprintf("%d to %d", have+1, r.Seq-1)
	}
	return &fleet.AuditEvent{Kind: kindBreak, Severity: "alarm", Detail: d}
}

// audit checks the entries against the stored head of the device's chain.
func (i *Ingest) audit(ctx context.Context, in *fleet.Intake, m Message) (time.Time, error) {
	b, err := wire.Decode[wire.AuditBatch](m.Payload)
	if err != nil {
		return time.Time{}, err
	}
	h, known := i.heads[m.Device]
	if !known {
		if h.seq, h.hash, err = i.o.Store.AuditHead(ctx, m.Device); err != nil {
			return time.Time{}, fmt.Errorf("audit head of %s: %w", m.Device, err)
		}
	}
	var fault, gap string
	var lost *fleet.AuditEvent
	for n, e := range b.Entries {
		r, err := e.Open()
		if err != nil { // not what the device chained: the rest of the batch is as good as it is
			fault = fmt.Sprintf("entry %d of %d behind entry %d is not intact: %.200v", n+1, len(b.Entries), h.seq, err)
			continue
		}
		if r.Seq > h.seq {
			switch {
			case r.Kind == kindBreak && r.Break != nil && r.Seq != h.seq+1:
			case r.Seq != h.seq+1:
				gap = cmp.Or(gap, fmt.Sprintf("entries %d to %d are missing", h.seq+1, r.Seq-1))
			case r.Prev != h.hash:
				fault = cmp.Or(fault, fmt.Sprintf("entry %d does not follow entry %d", r.Seq, h.seq))
				i.forks[m.Device] = fault
			}
			if r.Kind == kindBreak && r.Break != nil {
				lost = broke(r, h.seq)
			}
			h = head{seq: r.Seq, hash: e.Hash}
		} else if r.Seq == h.seq && e.Hash != h.hash {
			fault = cmp.Or(fault, fmt.Sprintf("entry %d came a second time with other content", r.Seq))
			i.forks[m.Device] = fault
		}
		if err := i.anchor(ctx, in, r); err != nil {
			return time.Time{}, err
		}
		in.Audit = append(in.Audit, fleet.AuditEvent{
			Device: m.Device, Seq: r.Seq, At: time.UnixMilli(r.At), Kind: r.Kind, Severity: r.Severity, Actor: cmp.Or(r.Actor, string(m.Device)),
			Subject: r.Subject, Outcome: r.Outcome, Detail: r.Detail, Body: e.Body, Hash: e.Hash, Prev: r.Prev,
		})
	}
	if len(i.heads) >= maxDevices {
		clear(i.heads)
	}
	i.heads[m.Device] = h
	in.AuditBroken = fault != ""
	if lost != nil && fault == "" {
		in.Service = i.note(m, noteEvery, *lost)
	} else if fault = cmp.Or(fault, gap); fault != "" { // what is missing may come yet; the store counts
		in.Service = i.note(m, noteEvery, fleet.AuditEvent{Kind: "audit.chain_broken", Severity: "alarm", Detail: map[string]string{"fault": fault}})
	}
	return time.UnixMilli(b.Head.Sent), nil
}
