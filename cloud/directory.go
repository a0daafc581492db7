package cloud

import (
	"context"
	"errors"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

// directory decides who may join this service: what a list or a voucher gives
// to a tenant, who shows the code of its label, and, with auto_claim, whoever
// has a trusted EK certificate. A genuine device that is nobody's waits.
type directory struct{ s *Service }

// Owner implements enrol.Directory.
func (d *directory) Owner(ctx context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	id := fleet.DeviceID(a.Device)
	have, err := d.s.store.DeviceByID(ctx, id)
	known := err == nil
	switch {
	case known && !have.RevokedAt.IsZero():
		return "", "", enrol.Refuse("identity.revoked", "the device is revoked: %s; readmit it first", have.RevokedWhy)
	case known && otherSerial(have.Serial, a.Serial):
		return "", "", enrol.Refuse("enrol.ek-duplicate", "the TPM enrolled in the box with serial number %s and comes back in %s", have.Serial, a.Serial)
	case err != nil && !errors.Is(err, fleet.ErrNotFound):
		return "", "", err
	}
	if err := d.left(ctx, id); err != nil {
		return "", "", err
	}
	tenant, tier, err := d.joins(ctx, a)
	switch {
	case err != nil:
		return "", "", err
	case known && string(have.Tenant) != tenant:
		return "", "", enrol.Refuse("enrol.owner", "the device belongs to another tenant, which has to give it up first")
	case known && tier > identity.Tier(have.Tier): // A is the strongest
		return "", "", enrol.Refuse("enrol.tier", "the device enrolled with tier %s and comes back with tier %s", have.Tier, tier)
	case known && have.Model != "" && have.Model != a.Model:
		if listed, err := d.s.store.ListedEK(ctx, a.EKHash); err != nil || listed.Model != a.Model { // a list may correct it
			return "", "", enrol.Refuse("enrol.model", "the device enrolled as model %q and comes back as %q", have.Model, a.Model)
		}
	}
	return tenant, tier, nil
}

// otherSerial reports whether two serial numbers are known and differ.
func otherSerial(a, b string) bool { return a != "" && b != "" && a != b }

// left refuses a device that was sold on.
func (d *directory) left(ctx context.Context, id fleet.DeviceID) error {
	to, left, err := d.s.owners.Left(ctx, id)
	if err == nil && left {
		return enrol.Refuse("enrol.owner", "the device belongs to %s and enrols at his service", to)
	}
	return err
}

// joins finds the tenant of a device, and its tier.
func (d *directory) joins(ctx context.Context, a enrol.Applicant) (string, identity.Tier, error) {
	listed, err := d.s.store.ListedEK(ctx, a.EKHash)
	onList := err == nil
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return "", "", err
	}
	tier := a.Tier
	if tier == "" && onList {
		tier = identity.TierB
	}
	switch {
	case tier == "":
		return "", "", enrol.Refuse("enrol.ek-listed", "this TPM is on no vendor list and no trusted authority vouches for it; import its manifest or configure its EK authority")
	case otherSerial(listed.Serial, a.Serial):
		return "", "", enrol.Refuse("enrol.ek-duplicate", "the TPM is listed in the box with serial number %s and comes in %s", listed.Serial, a.Serial)
	case listed.Model != "" && listed.Model != a.Model:
		// By its model a device is judged: it must not choose one of which no release says how it boots.
		return "", "", enrol.Refuse("enrol.model", "the TPM is listed in a box of model %q and comes as %q; set model in the agent's configuration as the list has it", listed.Model, a.Model)
	case listed.Tenant != "":
		return string(listed.Tenant), tier, nil
	case onList && a.Claim != "":
		return d.s.cfg.Tenant, tier, d.claim(ctx, a, listed)
	case a.Tier != "" && d.s.cfg.Enrol.AutoClaim && listed.ClaimHash == "": // a label is there to be asked for
		return d.s.cfg.Tenant, tier, nil
	}
	err = d.s.store.NoteWaiting(ctx, fleet.Waiting{
		Device: fleet.DeviceID(a.Device), EKHash: a.EKHash, Tier: fleet.Tier(a.Tier), Model: a.Model, Serial: a.Serial, From: a.From, LastAt: time.Now(),
	})
	if err == nil {
		err = enrol.ErrUnclaimed
	}
	return "", "", err
}

// claim takes a device by the code of its label that it shows itself, from its
// configuration or a stick. A wrong code is not counted against the device:
// anybody may knock with its public key.
func (d *directory) claim(ctx context.Context, a enrol.Applicant, listed fleet.Listing) error {
	if !d.s.owners.Shown(a.Claim, listed) {
		return enrol.Refuse("enrol.claim", "the claim code is not that of this device's label, or was used before")
	}
	_, err := d.s.owners.Claim(ctx, fleet.Claim{Tenant: d.s.tenant, Device: listed.Device, Code: a.Claim, By: "device " + a.Device})
	if errors.Is(err, fleet.ErrForbidden) || errors.Is(err, fleet.ErrConflict) {
		return enrol.Refuse("enrol.claim", "%w", err)
	}
	return err
}

// checkKeys is failed by a device that makes attestation keys without end.
const checkKeys = "identity.keys"

// Enrolled implements enrol.Directory.
func (d *directory) Enrolled(ctx context.Context, m enrol.Member) error {
	dev := fleet.Device{
		ID: fleet.DeviceID(m.Device), Tenant: fleet.TenantID(m.Tenant), Tier: fleet.Tier(m.Tier), Model: m.Model, Serial: m.SerialNo, EKHash: m.EKHash,
		AKPublic: m.AK, CertSerial: m.Serial, Recovery: m.Recovery.Serial, CertNotAfter: m.NotAfter, Trust: fleet.Pending, ResetCount: m.ResetCount, EnrolledAt: time.Now(),
	}
	if err := d.left(ctx, dev.ID); err != nil { // sold while it proved itself
		return err
	}
	if listed, err := d.s.store.ListedEK(ctx, m.EKHash); err == nil {
		dev.Site, dev.Group = listed.Site, listed.Group
	}
	switch err := d.s.store.Enrol(ctx, dev); {
	case errors.Is(err, fleet.ErrRevoked):
		return enrol.Refuse("identity.revoked", "%w", err)
	case errors.Is(err, fleet.ErrManyKeys):
		return enrol.Refuse(checkKeys, "%w; give the device up, and let it enrol anew", err)
	case errors.Is(err, fleet.ErrConflict):
		return enrol.Refuse("enrol.ek-duplicate", "%w", err)
	case err != nil:
		return err
	}
	d.s.broker.Disconnect(dev.ID, "enrolled anew")
	d.s.hub.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: m.Device, Tenant: dev.Tenant})
	return nil
}

// Standing implements enrol.Registry. What a certificate does not open, it does
// not renew.
func (d *directory) Standing(ctx context.Context, id identity.Identity) (enrol.Standing, error) {
	if err := d.s.signs(id.Issuer); err != nil {
		return enrol.Standing{}, enrol.Refuse("identity.certificate", "%w", err)
	}
	device := fleet.DeviceID(id.Device)
	_, err := d.s.store.Admit(ctx, device, fleet.TenantID(id.Tenant), id.Serial)
	switch {
	case errors.Is(err, fleet.ErrRevoked):
		return enrol.Standing{}, enrol.Refuse("identity.revoked", "%w", err)
	case errors.Is(err, fleet.ErrReplaced):
		return enrol.Standing{}, enrol.Refuse("identity.replaced", "%w", err)
	case errors.Is(err, fleet.ErrNotFound):
		return enrol.Standing{}, enrol.Refuse("identity.certificate", "the device is no member; enrol again")
	case err != nil:
		return enrol.Standing{}, err
	}
	if err := d.left(ctx, device); err != nil {
		return enrol.Standing{}, err
	}
	have, err := d.s.store.DeviceByID(ctx, device)
	if err != nil {
		return enrol.Standing{}, err
	}
	return enrol.Standing{
		AK: have.AKPublic, NextAK: have.NextAK, EKHash: have.EKHash, Tier: identity.Tier(have.Tier), Model: have.Model,
		Good: have.Trust == fleet.Attested || have.Trust == fleet.Degraded,
	}, nil
}

// Renewed implements enrol.Registry.
func (d *directory) Renewed(ctx context.Context, r enrol.Renewal) error {
	device := fleet.DeviceID(r.Shown.Device)
	have, err := d.s.store.DeviceByID(ctx, device)
	if err != nil {
		return err
	}
	if r.ResetCount != 0 && r.ResetCount < have.ResetCount {
		return enrol.Refuse("tpm.reset-count", "the TPM has started %d times and had started %d times before: it was cleared, or is another; enrol again", r.ResetCount, have.ResetCount)
	}
	next := fleet.Renewed{CertSerial: r.Certificate.Serial, NotAfter: r.Certificate.NotAfter}
	switch err := d.s.store.SetRenewed(ctx, device, next, r.Recovery.Serial, r.NextAK); {
	case errors.Is(err, fleet.ErrRevoked):
		return enrol.Refuse("identity.revoked", "%w", err)
	case errors.Is(err, fleet.ErrManyKeys): // it goes on with those that it has
		return enrol.Refuse(checkKeys, "%w", err)
	case err != nil:
		return err
	}
	d.s.hub.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: r.Shown.Device, Tenant: have.Tenant})
	return nil
}
