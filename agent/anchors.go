package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/identity"
)

// Who vouches for the audit trail beside its own hashes: the TPM, whose counter
// nobody turns back, and the service, which says at each connect up to where it
// has it.

const (
	trailMark  = "trail.json"    // beside the books: as far as the trail is known to have come
	lastAnchor = 3 * time.Second // that an orderly stop waits for the TPM
	mayWait    = 64              // messages of the trail that are looked at for what the service vouches for
	disputes   = time.Minute     // between two on record that do not verify
)

// openJournal continues the trail in the books that are open.
func (a *Agent) openJournal(ctx context.Context) (err error) {
	a.ownMark(ctx)
	a.journal, err = audit.Open(ctx, audit.Options{
		Chain: a.books(), Next: a.heads.Next, Stamp: a.clock.Stamp, Holds: a.o.Guard.holds, Mark: a.file(trailMark), Rebuilt: a.spool.Rebuilt(), Recalled: a.spool.Recalled(),
		Sign: a.anchor, Waiting: func(ctx context.Context, yield func([]byte)) error {
			return a.spool.Next(ctx, 0, mayWait, []string{string(wire.Audit)}, func(_ uint64, _ string, payload []byte) { yield(payload) })
		},
		Strict: strictTrail, Log: a.log,
	})
	return err
}

// ownMark puts the mark of another box's trail aside. A disk whose books do not
// open may come from one; what this one had lies elsewhere.
func (a *Agent) ownMark(ctx context.Context) {
	device := audit.Whose(a.file(trailMark))
	if a.lost == nil || device == "" {
		return
	}
	dev, done, err := a.openTPM(ctx)
	if err == nil {
		defer done()
		var public []byte
		if public, _, _, err = dev.Endorsement(ctx); err == nil && identity.DeviceID(public) != device {
			err = os.Rename(a.file(trailMark), a.file(trailMark)+aside+device)
		}
	}
	if err != nil {
		a.log.Error("whose trail the mark is about", slog.Any("err", err))
	}
}

// behind has the trail go on where the service says that it was, when it was lost
// here with everything else. It comes before the identity is kept: cut off in
// between, the device enrols again and does it again.
func (a *Agent) behind(ctx context.Context, seq uint64, hash []byte) error {
	if seq == 0 || len(hash) != 32 {
		return nil
	}
	var ids []uint64
	var waiting [][]byte
	for more := true; more; {
		more = false
		after := uint64(0)
		if len(ids) > 0 {
			after = ids[len(ids)-1]
		}
		err := a.spool.Next(ctx, after, mayWait, []string{string(wire.Audit)}, func(id uint64, _ string, payload []byte) {
			ids, waiting, more = append(ids, id), append(waiting, bytes.Clone(payload)), true
		})
		if err != nil {
			return err
		}
	}
	return a.journal.Behind(ctx, seq, [32]byte(hash), waiting, func(ctx context.Context) error { return a.spool.Done(ctx, ids...) })
}

// strictTrail is set by tests: what the contract does not list is refused there.
var strictTrail bool

// anchor has the TPM that is open vouch for the head of the trail.
func (a *Agent) anchor(ctx context.Context, seq uint64, hash [32]byte) (string, wire.Anchor, error) {
	a.mu.Lock()
	dev, m := a.dev, a.member
	a.mu.Unlock()
	if dev == nil || m == nil || a.quiet.Load() { // whose trail it is only a member knows
		return "", wire.Anchor{}, audit.ErrNoTPM
	}
	attest, signature, counter, err := dev.Anchor(ctx, wire.AnchorBinding(m.Device, seq, hash))
	if err == nil && a.quiet.Load() {
		err = audit.ErrNoTPM
	}
	return m.Device, wire.Anchor{Attest: attest, Signature: signature, Counter: counter}, err
}

// stopTrail makes the last anchor, if the TPM is quick.
func (a *Agent) stopTrail(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastAnchor)
	defer cancel()
	a.journal.Stop(ctx)
}

// configured takes what comes on the topic of settings: commands, and the
// service's word for the trail.
func (a *Agent) configured(ctx context.Context, m *membership, run *command.Runner) func([]byte) bool {
	var refused time.Time
	return func(payload []byte) bool {
		o, err := wire.Decode[wire.Order](payload)
		if err != nil || o.Kind != wire.OrderHead {
			return run.Submit(payload)
		}
		if err := a.countersigned(ctx, m, o, payload); err != nil {
			a.log.Error("the service's word for the audit trail is not taken", slog.Any("err", err))
			if time.Since(refused) > disputes {
				refused = time.Now()
				a.record(ctx, "audit.disputed", "alarm", "", map[string]string{"reason": reason(err), "key": o.KeyID})
			}
		}
		return true
	}
}

func (a *Agent) countersigned(ctx context.Context, m *membership, o wire.Order, payload []byte) error {
	if a.quiet.Load() {
		return nil
	}
	if err := m.keys.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature); err != nil {
		return err
	}
	c, err := wire.Decode[wire.Countersign](o.Payload)
	if err != nil {
		return err
	}
	if c.Device != m.Device || c.Tenant != m.Tenant {
		return fmt.Errorf("it is about device %s of tenant %s: %w", c.Device, c.Tenant, errOtherDevice)
	}
	if err := a.journal.Countersigned(ctx, c, o.KeyID, payload); err != nil {
		a.log.Error("audit", slog.String("kind", "audit.countersigned"), slog.Any("err", err)) // it comes again at the next connect
	}
	return nil
}
