package attack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// clonedDisk is all of a victim but his TPM.
func clonedDisk(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	thief, err := d.box(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	key, err := thief.dev.Signer(ctx)
	if err != nil {
		return outcome{}, err
	}
	s, err := d.dial(ctx, tls.Certificate{Certificate: victim.member.Chain, PrivateKey: key}, victim.member)
	if err != nil {
		return shut(err)
	}
	return outcome{answer: "connected"}, s.Close()
}

// relayedQuote lets a good TPM quote for the connection of a bad box.
func relayedQuote(ctx context.Context, d *desk) (outcome, error) {
	bad, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	good, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	return bad.show(ctx, func(m *wire.EvidenceReport, exporter []byte) (err error) {
		*m, err = good.report(ctx, bad.member.Device, exporter)
		return err
	})
}

// replayedEvidence shows on a new connection what was good on the last.
func replayedEvidence(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	var caught wire.EvidenceReport
	first, err := victim.show(ctx, func(m *wire.EvidenceReport, _ []byte) error {
		caught = *m
		return nil
	})
	if err != nil || first.refused {
		return outcome{}, errors.Join(err, fmt.Errorf("the evidence was not good in the first place: %s", first.answer))
	}
	return victim.show(ctx, func(m *wire.EvidenceReport, _ []byte) error {
		*m = caught
		return nil
	})
}

// doubledEvidence shows the same evidence twice on one connection.
func doubledEvidence(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	s, err := victim.dial(ctx)
	if err != nil {
		return outcome{}, err
	}
	m, err := victim.prove(ctx, s)
	if err != nil {
		return outcome{}, errors.Join(fmt.Errorf("the evidence was not good in the first place: %w", err), s.Close())
	}
	return prove(ctx, s, m)
}

// afterBoot shows the evidence of a fresh boot of f, twisted.
func afterBoot(ctx context.Context, d *desk, f tpmfarm.Firmware, twist func(b *box, m *wire.EvidenceReport) error) (outcome, error) {
	b, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	if err := b.boot(ctx, f); err != nil {
		return outcome{}, err
	}
	return b.show(ctx, func(m *wire.EvidenceReport, _ []byte) error {
		if twist == nil {
			return nil
		}
		return twist(b, m)
	})
}

// strippedLog leaves the log out after a boot with another kernel.
func strippedLog(ctx context.Context, d *desk) (outcome, error) {
	return afterBoot(ctx, d, evil(), func(_ *box, m *wire.EvidenceReport) error {
		m.Log = nil
		return nil
	})
}

// editedLog tells of the good kernel after a boot with another one.
func editedLog(ctx context.Context, d *desk) (outcome, error) {
	return afterBoot(ctx, d, evil(), func(_ *box, m *wire.EvidenceReport) (err error) {
		m.Log, err = boot.Pack(firmware().Log())
		return err
	})
}

// shortLog cuts the events of one register out of the log.
func shortLog(ctx context.Context, d *desk) (outcome, error) {
	f := evil()
	f.Event("kernel").Hidden = true
	return afterBoot(ctx, d, f, nil)
}

// otherKernel tells the truth about a kernel nobody signed.
func otherKernel(ctx context.Context, d *desk) (outcome, error) {
	return afterBoot(ctx, d, evil(), nil)
}

// evil is a boot with a kernel that no release has.
func evil() tpmfarm.Firmware {
	f := firmware()
	f.Event("kernel").Image = []byte("a kernel with a back door")
	return f
}

// editedValues gives the register values of the good boot with the quote of
// another.
func editedValues(ctx context.Context, d *desk) (outcome, error) {
	return afterBoot(ctx, d, evil(), func(_ *box, m *wire.EvidenceReport) (err error) {
		m.PCRs = firmware().Registers()
		m.Log, err = boot.Pack(firmware().Log())
		return err
	})
}

// waivedValues does it under a waiver, which lets in whoever tells the truth
// about another kernel, and nobody else.
func waivedValues(ctx context.Context, d *desk) (outcome, error) {
	b, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	if err := d.world.Operator.Put(ctx, "/v1/devices/"+b.member.Device+"/waiver", map[string]any{"until": time.Now().Add(time.Hour), "reason": "attack"}); err != nil {
		return outcome{}, err
	}
	if err := b.boot(ctx, evil()); err != nil {
		return outcome{}, err
	}
	if honest, err := b.show(ctx, nil); err != nil || honest.refused {
		return outcome{}, errors.Join(err, fmt.Errorf("the waiver does not help who tells the truth: %s", honest.answer))
	}
	return b.show(ctx, func(m *wire.EvidenceReport, _ []byte) (err error) {
		m.PCRs = firmware().Registers()
		m.Log, err = boot.Pack(firmware().Log())
		return err
	})
}

// outsideSelection quotes all registers but those that tell of the kernel. The
// key is in software, for a TPM's own quote says what was asked of it; the
// service takes it for a TPM.
func outsideSelection(ctx context.Context, d *desk) (outcome, error) {
	dev, m, err := d.software(ctx, d.maker, "selection")
	if err != nil {
		return outcome{}, err
	}
	s, err := dev.Connect(ctx, d.at.MQTT, &tls.Config{RootCAs: d.roots, ServerName: "localhost"}, m)
	if err != nil {
		return shut(err)
	}
	dev.Selection = []byte{0x0f, 0x00, 0x00}
	e, err := dev.Evidence(s.Exporter, 1, 1)
	if err != nil {
		return outcome{}, errors.Join(err, s.Close())
	}
	v, err := s.Prove(ctx, e)
	if err != nil {
		return shut(errors.Join(err, s.Close()))
	}
	return verdict(v), s.Close()
}

// software enrols a device with keys in software that maker vouches for.
func (d *desk) software(ctx context.Context, maker *swarm.Authority, seed string) (*swarm.Device, enrol.Result, error) {
	d.n++
	dev := swarm.New(seed, uint64(d.n), maker, nil) // #nosec G115 -- counts up from 0
	c := &enrol.Client{
		URL: "https://" + d.at.HTTPS, Roots: d.roots, ServerName: "localhost", Serial: fmt.Sprint("soft-", d.n), Model: d.world.Model(), TPM: dev,
	}
	m, err := c.Enrol(ctx)
	return dev, m, err
}

// clearedTPM brings the same AK back after TPM2_Clear, with its counters at
// the start, and a certificate for a key that is gone.
func clearedTPM(ctx context.Context, d *desk) (outcome, error) {
	victim, err := d.member(ctx, firmware())
	if err != nil {
		return outcome{}, err
	}
	if err := victim.boot(ctx, firmware()); err != nil {
		return outcome{}, err
	}
	if err := victim.good(ctx); err != nil {
		return outcome{}, err
	}
	// The LDevID key dies with the clear: the attacker holds the connection
	// open that it signed for.
	s, err := victim.dial(ctx)
	if err != nil {
		return outcome{}, err
	}
	if err := victim.raw(func(t tpmTransport) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(t)
		return err
	}); err != nil {
		return outcome{}, errors.Join(err, s.Close())
	}
	m, err := victim.report(ctx, victim.member.Device, s.Exporter)
	if err != nil {
		return outcome{}, errors.Join(err, s.Close())
	}
	return prove(ctx, s, m)
}
