package enrol

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/identity"
)

// turn is a rotation by hand, with something changed on the way.
type turn struct {
	change func(m *rotation, certify func(public []byte))
	opener func(ctx context.Context, credential, secret []byte) ([]byte, error)
	answer func(*rotationProof)
	other  bool // the answer goes over another channel
	twice  bool // the answer goes twice
}

func (c *Client) turn(t *testing.T, have Result, by turn) error {
	t.Helper()
	dev, err := c.keys()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := c.certificate(t.Context(), dev, have)
	if err != nil {
		t.Fatal(err)
	}
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next, err := dev.NextAK(t.Context(), bytes.Repeat([]byte{byte(time.Now().UnixNano())}, 32))
	if err != nil {
		t.Fatal(err)
	}
	dial := func() *channel {
		ch, err := c.dial(t.Context(), renewExporterLabel, cert)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ch.close)
		return ch
	}
	ch := dial()
	m := rotation{V: Version, EK: ek, AK: next}
	// What the AK on file certifies is whatever the device lets it.
	certify := func(public []byte) {
		name, err := keyName(public)
		if err != nil {
			t.Fatal(err)
		}
		extra := certifyBinding(rotateBinding(ch.exporter, cert.Certificate[0], m.EK), name)
		if m.Certify, m.CertifySig, err = dev.CertifyNextAK(t.Context(), extra[:]); err != nil {
			t.Fatal(err)
		}
	}
	certify(next)
	if by.change != nil {
		by.change(&m, certify)
	}
	body := must(encMode.Marshal(m))
	asked, _, err := post[challenge](t.Context(), ch.http, c.URL+PathRotate, body)
	if err != nil {
		return err
	}
	open := dev.ActivateNextAK
	if by.opener != nil {
		open = by.opener
	}
	secret, err := open(t.Context(), asked.Credential, asked.Secret)
	if err != nil {
		return err
	}
	answer := rotationProof{ID: asked.ID, Proof: proof(secret, binding(asked.ID, asked.Nonce, secret, ch.exporter, body))}
	if by.answer != nil {
		by.answer(&answer)
	}
	if by.other {
		ch = dial()
	}
	_, _, err = post[followed](t.Context(), ch.http, c.URL+PathRotated, must(encMode.Marshal(answer)))
	if err == nil && by.twice {
		_, _, err = post[followed](t.Context(), ch.http, c.URL+PathRotated, must(encMode.Marshal(answer)))
	}
	return err
}

func TestForgedRotations(t *testing.T) {
	s := newSite(t, true)
	dev, thief := s.till(t), s.till(t)
	c, d := s.join(t, dev)
	s.join(t, thief)
	theirEK, _, _, err := thief.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirAK, err := thief.NextAK(t.Context(), make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	software := newForger(t)
	var replay *rotation
	f := s.dir.reg.of(d.saved.Device)
	for _, tt := range []struct {
		name  string
		by    turn
		check string
		text  string
	}{
		{name: "nothing changed", by: turn{change: func(m *rotation, _ func([]byte)) { r := *m; replay = &r }}},
		{"old version", turn{change: func(m *rotation, _ func([]byte)) { m.V = 0 }}, "enrol.malformed", ""},
		{"long field", turn{change: func(m *rotation, _ func([]byte)) { m.AK = make([]byte, maxBlob+1) }}, "enrol.malformed", ""},
		{"another TPM's EK", turn{change: func(m *rotation, certify func([]byte)) { m.EK = theirEK; certify(m.AK) }}, "rotate.ek", "not the endorsement key that enrolled"},
		{"EK in another spelling", turn{change: func(m *rotation, certify func([]byte)) {
			m.EK = respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = true })(m.EK)
			certify(m.AK)
		}}, "enrol.key-attributes", ""},
		{"another TPM's AK", turn{change: func(m *rotation, _ func([]byte)) { m.AK = theirAK }}, "enrol.certify", "another challenge or channel"},
		{"another TPM's AK, its name bound", turn{change: func(m *rotation, certify func([]byte)) { m.AK = theirAK; certify(theirAK) }}, "enrol.certify", "another key was certified"},
		{"AK in software, certified by itself", turn{change: func(m *rotation, certify func([]byte)) {
			m.AK = software.ak
			certify(m.AK)
			m.CertifySig = software.sign(t, m.Certify)
		}}, "enrol.certify", "not by the attestation key"},
		{"AK that signs anything", turn{change: func(m *rotation, _ func([]byte)) {
			m.AK = respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false })(m.AK)
		}}, "enrol.key-attributes", "not a restricted signing key"},
		{"the AK itself", turn{change: func(m *rotation, _ func([]byte)) { m.AK = d.saved.AK }}, "enrol.key-attributes", "the one in use"},
		{"first step of another channel", turn{change: func(m *rotation, _ func([]byte)) { *m = *replay }}, "enrol.certify", "another challenge or channel"},
		{"credential opened by another TPM", turn{opener: thief.ActivateNextAK}, "", "activate credential"},
		{"wrong secret", turn{opener: func(context.Context, []byte, []byte) ([]byte, error) { return make([]byte, 32), nil }}, "enrol.activation", ""},
		{"another challenge", turn{answer: func(m *rotationProof) { m.ID[0] ^= 1 }}, "enrol.challenge", ""},
		{"answer over another channel", turn{other: true}, "enrol.binding", "another TLS channel"},
		{"answered twice", turn{twice: true}, "enrol.challenge", ""},
	} {
		f.NextAK = nil
		n := len(s.dir.reg.renewed)
		err := c.turn(t, d.saved, tt.by)
		good := tt.check == "" && tt.text == ""
		if Check(err) != tt.check || (err == nil) != good || (err != nil && !strings.Contains(err.Error(), tt.text)) {
			t.Errorf("%s: got %v with check %q, want %q and %q", tt.name, err, Check(err), tt.check, tt.text)
		}
		if got := len(s.dir.reg.renewed) > n; got != (good || tt.by.twice) {
			t.Errorf("%s: recorded %t", tt.name, got)
		}
		if tt.check != "" {
			s.audited(t, d.saved.Device+" "+tt.check)
		}
	}
}

// An enrolment's challenge is not a rotation's, and a recovery certificate
// changes no keys.
func TestRotationsNeedAMember(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	c, d := s.join(t, dev)
	s.reissue(t, d, identity.RoleMember, -time.Minute)
	if err := c.turn(t, d.saved, turn{}); Check(err) != "identity.recovery" || !errors.Is(err, ErrRefused) {
		t.Errorf("recovery certificate: got %v with check %q", err, Check(err))
	}
	hc, _ := s.http(t)
	for _, path := range []string{PathRotate, PathRotated, PathRenew} {
		if _, _, err := post[challenge](t.Context(), hc, s.url+path, []byte{0xa0}); Check(err) != "identity.certificate" {
			t.Errorf("%s without certificate: got %v with check %q", path, err, Check(err))
		}
	}
	s.server.o.Registry = nil
	plain := NewServer(s.server.o)
	if _, pattern := plain.mux.Handler(must(httpRequest(PathRenew))); pattern != "" {
		t.Error("members renew at a service that knows none")
	}
}

// An AK that follows was told to the service, and the device lost the answer:
// both go on, by the old one or by yet another.
func TestRotationWhoseAnswerIsLost(t *testing.T) {
	s := newSite(t, true)
	c, d := s.join(t, s.till(t))
	d.fails = errors.New("power cut")
	if _, err := c.RotateAK(t.Context(), d.saved); !errors.Is(err, d.fails) {
		t.Fatalf("got %v", err)
	}
	d.fails = nil
	f := s.dir.reg.of(d.saved.Device)
	lost := f.NextAK
	if lost == nil || bytes.Equal(d.saved.AK, lost) {
		t.Fatal("the service does not wait for another one")
	}
	if _, err := c.Renew(t.Context(), d.saved); err != nil {
		t.Fatal("the old one: ", err)
	}
	now, err := c.RotateAK(t.Context(), d.saved)
	if err != nil || !bytes.Equal(f.NextAK, now.AK) || bytes.Equal(now.AK, lost) {
		t.Errorf("another rotation: %v", err)
	}
	if _, err := c.Renew(t.Context(), now); err != nil || !bytes.Equal(f.AK, now.AK) {
		t.Error("the new one: ", err)
	}
}

// A TPM that answers and holds other keys has to enrol; one that does not
// answer has to be asked again.
func TestResumeTellsALostKeyFromABrokenTPM(t *testing.T) {
	s := newSite(t, true)
	dev, other := s.till(t), s.till(t)
	c, d := s.join(t, dev)
	if _, err := c.Resume(t.Context(), d.saved); err != nil {
		t.Fatal(err)
	}
	old := d.saved
	old.AK, old.LDevID = nil, nil // kept by an older agent
	if got, err := c.Resume(t.Context(), old); err != nil || !bytes.Equal(got.AK, d.saved.AK) || !bytes.Equal(got.LDevID, d.saved.LDevID) {
		t.Errorf("an older agent's identity: got %v", err)
	}
	moved := s.client(other)
	for name, have := range map[string]Result{"disk of another box": d.saved, "and of an older agent": old, "nothing": {}} {
		if _, err := moved.Resume(t.Context(), have); !errors.Is(err, ErrKeys) {
			t.Errorf("%s: got %v, want ErrKeys", name, err)
		}
	}
	_ = dev.Close()
	if _, err := c.Resume(t.Context(), d.saved); err == nil || errors.Is(err, ErrKeys) {
		t.Errorf("closed TPM: got %v, want no ErrKeys", err)
	}
	c.TPM = fixed{dev}
	if _, err := c.Resume(t.Context(), d.saved); err == nil || !strings.Contains(err.Error(), "cannot change keys") {
		t.Errorf("TPM with one key: got %v", err)
	}
}

// fixed is a TPM that changes no keys.
type fixed struct{ dev *tpm.TPM }

func (f fixed) Endorsement(ctx context.Context) (public, cert []byte, chain [][]byte, err error) {
	return f.dev.Endorsement(ctx)
}

func (f fixed) Activate(ctx context.Context, c, s []byte) ([]byte, error) {
	return f.dev.Activate(ctx, c, s)
}
func (f fixed) Keys(ctx context.Context) (ak, ldevid []byte, err error) { return f.dev.Keys(ctx) }
func (f fixed) Certify(ctx context.Context, extra []byte) (attest, sig []byte, err error) {
	return f.dev.Certify(ctx, extra)
}

func (f fixed) Quote(ctx context.Context, extra []byte) (attest, sig []byte, pcrs [][]byte, err error) {
	return f.dev.Quote(ctx, extra)
}

// A TPM with one device key enrols all the same, without a second certificate.
func TestEnrolmentWithoutRecoveryKey(t *testing.T) {
	s := newSite(t, true)
	c := s.client(s.till(t))
	c.TPM = fixed{c.TPM.(*tpm.TPM)}
	res, err := c.Enrol(t.Context())
	if err != nil || len(res.Recovery) != 0 || len(res.Chain) == 0 || s.dir.members[0].Recovery.Serial != "" {
		t.Errorf("got %+v and %v", res, err)
	}
}
