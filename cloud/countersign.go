package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tillward/tillward/cloud/internal/dispatch"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
)

// countersign tells a device, signed, how much of its audit trail the service
// holds, when that is more than it was told before. Of a trail that did not
// hold, or of which entries are missing, nothing is signed: the word of the
// service is that all up to there is there.
func (s *Service) countersign(ctx context.Context, device fleet.DeviceID) error {
	st, err := s.store.TrailStateOf(ctx, device)
	if err != nil {
		return err
	}
	if st.Broken || st.Head <= st.Countersigned || s.broker.Restricted(device) {
		return nil
	}
	now := time.Now()
	order, err := dispatch.Order(s.signer, wire.OrderHead, &wire.Countersign{
		V: wire.Version, Tenant: string(s.tenant), Device: string(device), Seq: st.Head, Hash: st.Hash, At: now.UnixMilli(),
	})
	if err != nil {
		return err
	}
	if err := s.store.AddCountersign(ctx, fleet.Countersigned{Device: device, Seq: st.Head, Hash: st.Hash, At: now, Order: order}); err != nil {
		return err
	}
	if err := s.broker.SendOpen(device, wire.DownConfig, order); err != nil {
		s.log.Info("countersignature not sent; the next one will say more", slog.String("device", string(device)), slog.Any("err", err))
	}
	return nil
}

// anchored checks an anchor against the newest attestation keys that its device
// has had: what was recorded before the key was renewed may come after.
func (s *Service) anchored(ctx context.Context, device fleet.DeviceID, seq uint64, prev [32]byte, a wire.Anchor) (by fleet.AttestationKey, fault string, err error) {
	keys, err := s.store.AttestationKeys(ctx, device)
	if err != nil {
		return by, "", err
	}
	if len(keys) == 0 {
		return by, "the device has no attestation key on file", nil
	}
	binding := wire.AnchorBinding(string(device), seq-1, prev)
	for _, k := range keys[:min(len(keys), fleet.AnchorKeys)] {
		err := enrol.VerifyAnchor(k.Public, binding, a.Attest, a.Signature, a.Counter)
		if err == nil {
			return k, "", nil
		}
		if fault == "" { // by the key in use
			fault = fmt.Sprintf("%.300v", err)
		}
	}
	return by, fault, nil
}
