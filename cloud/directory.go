package cloud

import (
	"context"
	"errors"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

// directory decides who may join this service: what the vendor's list names,
// and, with auto_claim, whoever has a trusted EK certificate.
type directory struct{ s *Service }

// Owner implements enrol.Directory.
func (d *directory) Owner(ctx context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	tenant, tier := "", a.Tier
	listed, err := d.s.store.ListedEK(ctx, a.EKHash)
	switch {
	case err == nil:
		tenant = string(listed.Tenant)
		if tier == "" {
			tier = identity.TierB
		}
	case !errors.Is(err, fleet.ErrNotFound):
		return "", "", err
	case tier == "":
		return "", "", enrol.Refuse("enrol.ek-listed", "this TPM is on no vendor list and no trusted authority vouches for it; import its list entry or configure its EK authority")
	case !d.s.cfg.Enrol.AutoClaim:
		return "", "", enrol.ErrUnclaimed
	default:
		tenant = d.s.cfg.Tenant
	}
	have, err := d.s.store.DeviceByID(ctx, fleet.DeviceID(a.Device))
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return tenant, tier, nil
	case err != nil:
		return "", "", err
	case string(have.Tenant) != tenant:
		return "", "", enrol.Refuse("enrol.owner", "the device belongs to another tenant, which has to give it up first")
	case tier > identity.Tier(have.Tier): // A is the strongest
		return "", "", enrol.Refuse("enrol.tier", "the device enrolled with tier %s and comes back with tier %s", have.Tier, tier)
	}
	return tenant, tier, nil
}

// Enrolled implements enrol.Directory.
func (d *directory) Enrolled(ctx context.Context, m enrol.Member) error {
	dev := fleet.Device{
		ID: fleet.DeviceID(m.Device), Tenant: fleet.TenantID(m.Tenant), Tier: fleet.Tier(m.Tier), Model: m.Model, Serial: m.SerialNo, EKHash: m.EKHash,
		AKPublic: m.AK, CertSerial: m.Serial, Recovery: m.Recovery.Serial, CertNotAfter: m.NotAfter, Trust: fleet.Pending, ResetCount: m.ResetCount, EnrolledAt: time.Now(),
	}
	if listed, err := d.s.store.ListedEK(ctx, m.EKHash); err == nil {
		dev.Site, dev.Group = listed.Site, listed.Group
	}
	if err := d.s.store.Enrol(ctx, dev); errors.Is(err, fleet.ErrConflict) {
		return enrol.Refuse("enrol.ek-duplicate", "%w", err)
	} else if err != nil {
		return err
	}
	d.s.broker.Disconnect(dev.ID, "enrolled anew")
	d.s.hub.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: m.Device, Tenant: dev.Tenant})
	return nil
}
