package ingest

import (
	"context"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// AnchorCheck says whether the TPM of a device signed an anchor, which is entry
// seq of its trail and follows the entry with hash prev: the key that it did so
// with, or what is wrong. Only a store that fails is an error.
type AnchorCheck func(ctx context.Context, device fleet.DeviceID, seq uint64, prev [32]byte, a wire.Anchor) (by fleet.AttestationKey, fault string, err error)

const kindAnchorBad = "audit.anchor_bad" // the store notes it

// anchor judges the anchor in a record, if there is one. What is made of it is
// decided when it is stored: a counter stands against the one before.
func (i *Ingest) anchor(ctx context.Context, in *fleet.Intake, r wire.AuditRecord) error {
	if r.Anchor == nil || i.o.Anchor == nil {
		return nil
	}
	by, fault, err := i.o.Anchor(ctx, in.Device, r.Seq, r.Prev, *r.Anchor)
	if err != nil {
		return fmt.Errorf("anchor of %s: %w", in.Device, err)
	}
	last, told := i.noted[note{in.Device, kindAnchorBad}]
	in.AnchorTold = told && in.At.Sub(last) < noteEvery
	in.Anchors = append(in.Anchors, fleet.AnchorSeen{Seq: r.Seq, Counter: r.Anchor.Counter, Key: by, Fault: fault})
	return nil
}
