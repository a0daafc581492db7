package attack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// box is a till whose owner is an attacker or his victim: a software TPM that
// booted, and no agent.
type box struct {
	d      *desk
	name   string // also its serial number
	chip   *tpmfarm.TPM
	dev    *tpm.TPM
	log    []byte // of the boot
	member enrol.Result
	seq    uint64
}

// box starts a TPM and boots the firmware of a release on it.
func (d *desk) box(ctx context.Context, f tpmfarm.Firmware) (*box, error) {
	d.n++
	b := &box{d: d, name: fmt.Sprintf("box-%d", d.n)}
	var err error
	if b.chip, err = d.world.Chip(ctx, b.name); err != nil {
		return nil, err
	}
	d.boxes = append(d.boxes, b)
	return b, b.boot(ctx, f)
}

// member is a box that has enrolled and is attested.
func (d *desk) member(ctx context.Context, f tpmfarm.Firmware) (*box, error) {
	b, err := d.box(ctx, f)
	if err != nil {
		return nil, err
	}
	if err := b.enrol(ctx); err != nil {
		return nil, err
	}
	return b, b.good(ctx)
}

// boot is a power cycle into f.
func (b *box) boot(ctx context.Context, f tpmfarm.Firmware) error {
	if b.dev != nil {
		if err := b.dev.Close(); err != nil {
			return err
		}
		b.dev = nil
		if err := b.chip.Restart(ctx); err != nil {
			return err
		}
	}
	file := filepath.Join(b.d.world.Dir(), b.name+".log")
	if err := f.Boot(b.chip, file); err != nil {
		return err
	}
	var err error
	if b.log, err = os.ReadFile(file); err != nil {
		return err
	}
	b.dev, err = tpm.Open("unix:" + b.chip.Socket())
	return err
}

// client is the enrolment of this box.
func (b *box) client() *enrol.Client {
	return &enrol.Client{
		URL: "https://" + b.d.at.HTTPS, Roots: b.d.roots, ServerName: "localhost", Serial: b.name, Model: b.d.world.Model(), TPM: b.dev,
	}
}

func (b *box) enrol(ctx context.Context) (err error) {
	b.member, err = b.client().Enrol(ctx)
	return err
}

// dial connects as this box.
func (b *box) dial(ctx context.Context) (*swarm.Session, error) {
	key, err := b.dev.Signer(ctx)
	if err != nil {
		return nil, err
	}
	return b.d.dial(ctx, tls.Certificate{Certificate: b.member.Chain, PrivateKey: key}, b.member)
}

func (d *desk) dial(ctx context.Context, cert tls.Certificate, m enrol.Result) (*swarm.Session, error) {
	return swarm.Dial(ctx, d.at.MQTT, &tls.Config{
		RootCAs: d.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
	}, m.Tenant, m.Device)
}

// report is full evidence by the TPM of b for whatever connection of whatever
// device, as an attacker may want it.
func (b *box) report(ctx context.Context, device string, exporter []byte) (wire.EvidenceReport, error) {
	extra := enrol.ConnBinding(device, exporter, 1)
	quoted, sig, pcrs, err := b.dev.Quote(ctx, extra[:])
	if err != nil {
		return wire.EvidenceReport{}, err
	}
	packed, err := boot.Pack(b.log)
	if err != nil {
		return wire.EvidenceReport{}, err
	}
	return wire.EvidenceReport{
		Head: b.head(), Quoted: quoted, Signature: sig, PCRs: pcrs, Seq: 1, AgentVersion: "0.0.0-attack", Log: packed,
	}, nil
}

func (b *box) head() wire.Head {
	b.seq++
	return wire.Head{V: wire.Version, Boot: wire.Boot{0: 0xa7, 15: byte(b.d.n)}, Seq: b.seq, Sent: time.Now().UnixMilli()}
}

// prove shows honest evidence on an open connection and returns it; anything
// but trust is an error.
func (b *box) prove(ctx context.Context, s *swarm.Session) (wire.EvidenceReport, error) {
	m, err := b.report(ctx, b.member.Device, s.Exporter)
	if err != nil {
		return m, err
	}
	e, err := wire.Encode(&m)
	if err != nil {
		return m, err
	}
	v, err := s.Prove(ctx, e)
	if err == nil && v.Verdict != "attested" {
		err = fmt.Errorf("%s is not attested: %v", b.name, v)
	}
	return m, err
}

// proved is an open connection of the box, on which it is attested.
func (b *box) proved(ctx context.Context) (*swarm.Session, error) {
	s, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = b.prove(ctx, s); err == nil {
		err = s.Listen(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// good shows honest evidence on a connection of its own; anything but trust is
// an error.
func (b *box) good(ctx context.Context) error {
	out, err := b.show(ctx, nil)
	if err != nil {
		return err
	}
	if out.refused {
		return fmt.Errorf("%s is not attested before the attack: %s: %s", b.name, out.check, out.answer)
	}
	return nil
}

// show connects, lets twist change the honest evidence, and returns what the
// service made of it.
func (b *box) show(ctx context.Context, twist func(*wire.EvidenceReport, []byte) error) (outcome, error) {
	s, err := b.dial(ctx)
	if err != nil {
		return shut(err)
	}
	m, err := b.report(ctx, b.member.Device, s.Exporter)
	if err == nil && twist != nil {
		err = twist(&m, s.Exporter)
	}
	if err != nil {
		return outcome{}, errors.Join(err, s.Close())
	}
	return prove(ctx, s, m)
}

// prove publishes evidence and closes the connection.
func prove(ctx context.Context, s *swarm.Session, m wire.EvidenceReport) (outcome, error) {
	e, err := wire.Encode(&m)
	if err != nil {
		return outcome{}, errors.Join(err, s.Close())
	}
	v, err := s.Prove(ctx, e)
	if err != nil {
		return shut(errors.Join(err, s.Close()))
	}
	return verdict(v), s.Close()
}

// verdict reads what the service answered.
func verdict(v wire.Challenge) outcome {
	out := outcome{refused: v.Verdict != "attested" && v.Verdict != "degraded", answer: v.Verdict}
	if len(v.Findings) > 0 {
		out.check, out.answer = v.Findings[0].Check, v.Verdict+": "+v.Findings[0].Text
	}
	return out
}

// shut is what a connection that was not let in, or was cut, says. Only a
// refusal counts; a network that fails is the attacker's bad luck.
func shut(err error) (outcome, error) {
	if check := enrol.Check(err); check != "" {
		return outcome{true, check, err.Error()}, nil
	}
	var alert tls.AlertError
	if errors.As(err, &alert) || tlsAlert(err) {
		return outcome{true, "tls.certificate-verify", err.Error()}, nil
	}
	return outcome{}, err
}
