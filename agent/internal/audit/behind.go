package audit

import (
	"context"
	"log/slog"

	"github.com/tillward/tillward/cloud/wire"
)

// Behind has a chain that begins anew go on behind the newest entry that the
// service has of this device: with what lay on the disk the chain was lost, e.g.
// by a factory reset, and nobody here can know that there was one. It does nothing
// when the chain is the one that the service knows.
//
// waiting are all messages of the chain that the service has not stored. Their
// numbers are those of other entries; drop takes them out of the queue, and what
// they tell is told again behind the break.
func (j *Journal) Behind(ctx context.Context, seq uint64, hash [32]byte, waiting [][]byte, drop func(context.Context) error) error {
	var mine []wire.AuditRecord
	same, other := false, false
	for _, payload := range waiting {
		b, err := wire.Decode[wire.AuditBatch](payload)
		if err != nil {
			return err
		}
		for _, e := range b.Entries {
			r, err := e.Open()
			if err != nil {
				return err
			}
			mine = append(mine, r)
			if r.Seq == seq {
				same, other = e.Hash == hash, e.Hash != hash
			}
		}
	}
	last, _ := j.Head()
	fresh := len(mine) > 0 && mine[0].Seq == 1 // nothing of it was ever handed over
	if lost := last < seq || fresh && other; same || !lost {
		return nil
	}
	j.o.Log.Error("the audit chain of this device was lost; going on behind what the service has", slog.Uint64("known", seq))
	if err := drop(ctx); err != nil {
		return err
	}
	err := func() error {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.broken = &broken{"lost", head{seq, hash}, true}
		return j.mend()
	}()
	if err != nil {
		return err
	}
	for _, r := range mine {
		switch r.Kind {
		case kindAnchor, kindBreak, kindCountersigned: // of the chain that is no more
			continue
		}
		if err := j.Record(ctx, r.Kind, r.Severity, r.Subject, r.Detail); err != nil {
			return err
		}
	}
	j.keep(nil)
	return nil
}
