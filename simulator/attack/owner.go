package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// staleClaim uses the code of a label again after its device was claimed.
func staleClaim(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	claim, err := d.world.Ship(ctx, b.dev, b.name)
	if err != nil {
		return outcome{}, err
	}
	if err := d.claim(ctx, claim, "paid"); err != nil {
		return outcome{}, fmt.Errorf("the code is not good in the first place: %w", err)
	}
	if err := b.enrol(ctx); err != nil {
		return outcome{}, err
	}
	return d.refusedClaim(ctx, claim)
}

// wrongClaim guesses the code of a device that waits.
func wrongClaim(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	claim, err := d.world.Ship(ctx, b.dev, b.name)
	if err != nil {
		return outcome{}, err
	}
	return d.refusedClaim(ctx, owner.NewClaim(claim.Device))
}

// oldRelease boots the release before the one the device has committed to.
func oldRelease(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	next := tpmfarm.Default(newer)
	if err := d.update(ctx, b, next); err != nil {
		return outcome{}, fmt.Errorf("update: %w", err)
	}
	if err := b.good(ctx); err != nil {
		return outcome{}, fmt.Errorf("after the update: %w", err)
	}
	if err := b.boot(ctx, firmware()); err != nil {
		return outcome{}, err
	}
	return b.show(ctx, nil)
}

// update takes b through a rollout to a release that boots into f, as an agent
// would report it.
func (d *desk) update(ctx context.Context, b *box, f tpmfarm.Firmware) error {
	group := "lab-" + b.name
	if err := d.world.Operator.Patch(ctx, "/v1/devices/"+b.member.Device, map[string]string{"group": group}); err != nil {
		return err
	}
	log := filepath.Join(d.world.Dir(), "newer.log")
	if err := os.WriteFile(log, f.Log(), 0o600); err != nil {
		return err
	}
	if err := d.world.ReleaseBoot(ctx, "9.9.9", newer, log); err != nil {
		return err
	}
	id, err := d.world.RolloutTo(ctx, newer, group)
	if err != nil {
		return err
	}
	// The offer comes while the device is connected and attested.
	s, err := b.proved(ctx)
	if err != nil {
		return err
	}
	var execution string
	err = d.world.Until(ctx, "the offer", func(ctx context.Context) (_ bool, err error) {
		execution, err = d.world.Execution(ctx, id, b.member.Device)
		return execution != "", err
	})
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	if err := b.boot(ctx, f); err != nil {
		return err
	}
	if s, err = b.proved(ctx); err != nil {
		return fmt.Errorf("the offered release: %w", err)
	}
	for _, state := range []string{"CHECKING", "SUCCEEDED"} {
		r, err := wire.Encode(&wire.ResultReport{Head: b.head(), Kind: wire.OrderOffer, ID: execution, State: state, From: "1.0.0", To: "9.9.9"})
		if err != nil {
			return errors.Join(err, s.Close())
		}
		if err := s.Publish(ctx, wire.Result, r); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	return s.Close()
}

// openDoor publishes on the d door while quarantined.
func openDoor(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	if err := b.boot(ctx, evil()); err != nil {
		return outcome{}, err
	}
	since := time.Now()
	s, err := b.dial(ctx)
	if err != nil {
		return outcome{}, err
	}
	m, err := wire.Encode(&wire.TelemetryBatch{Head: b.head(), Samples: []wire.Sample{{At: since.UnixMilli(), Name: "temp_mc", Value: 1}}})
	if err != nil {
		return outcome{}, errors.Join(err, s.Close())
	}
	if err := s.Publish(ctx, wire.Telemetry, m); err == nil {
		return outcome{answer: "acknowledged"}, s.Close()
	}
	_ = s.Close()
	check, text, err := d.noted(ctx, b.member.Device, since)
	return outcome{err == nil, check, text}, err
}

// attacks in the order they are played.
var attacks = []attack{
	{"cloned-disk", "all of a device's disk in a box with another TPM", []string{"tls.certificate-verify"}, clonedDisk},
	{"stolen-ldevid-blob", "a key made below one TPM's storage root, loaded by another TPM", []string{"tpm.integrity"}, stolenBlob},
	{"relayed-quote", "a good TPM quotes for a bad box's connection", []string{"quote.signature"}, relayedQuote},
	{"replayed-evidence", "evidence of an earlier connection", []string{"quote.binding"}, replayedEvidence},
	{"doubled-evidence", "the same evidence twice on one connection", []string{"quote.replayed"}, doubledEvidence},
	{"edited-values", "register values of the good boot beside the quote of another", []string{"quote.values"}, editedValues},
	{"waived-values", "the same, by a device that a waiver lets in whatever it boots", []string{"quote.values"}, waivedValues},
	{"outside-selection", "a quote that leaves out the kernel's registers", []string{"quote.selection"}, outsideSelection},
	{"stripped-log", "another kernel, and no event log", []string{"boot.no-log"}, strippedLog},
	{"edited-log", "another kernel, and the log of the good one", []string{"boot.log-replay"}, editedLog},
	{"shortened-log", "another kernel, and its event cut out of the log", []string{"boot.log-replay", "boot.missing-event"}, shortLog},
	{"unsigned-kernel", "another kernel, and the truth about it", []string{"boot.unknown-event", "boot.missing-event"}, otherKernel},
	{"old-release", "the release before the one the device has committed to", []string{"boot.old-release"}, oldRelease},
	{"cleared-tpm", "the same attestation key after TPM2_Clear", []string{"tpm.reset-count"}, clearedTPM},
	{"closed-door", "telemetry on the open door while nothing is proved", []string{"broker.violation"}, openDoor},
	{"software-key", "keys in a file that pose as a TPM", []string{"enrol.ek-certificate", "enrol.ek-listed"}, softwareKey},
	{"wrong-ek-certificate", "the EK certificate of another TPM", []string{"enrol.ek-certificate"}, wrongCertificate},
	{"foreign-ek", "EK and certificate of a TPM that the attacker does not have", []string{"enrol.activation"}, foreignEndorsement},
	{"foreign-ldevid", "a device key outside of the TPM", []string{"enrol.certify", "enrol.key-attributes"}, foreignKey},
	{"ek-enrolled-twice", "an enrolled TPM in a box with another serial number", []string{"enrol.ek-duplicate"}, twice},
	{"downgraded-tier", "a device of tier A with proof for tier C", []string{"enrol.tier"}, downgradedTier},
	{"revoked-enrolment", "a revoked device enrols again", []string{"identity.revoked"}, revokedEnrolment},
	{"revoked-connection", "a revoked device connects with its certificate", []string{"identity.revoked"}, revokedConnection},
	{"stale-claim-code", "the code of a label after its device was claimed", []string{"enrol.claim"}, staleClaim},
	{"guessed-claim-code", "a code that is on no label", []string{"enrol.claim"}, wrongClaim},
}
