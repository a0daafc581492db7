package enrol

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// Where makers put their certificates [TCG EK Credential Profile 2.5, 2.2.1].
const (
	nvP256Cert  tpm2.TPMHandle = 0x01C0000A
	nvOnDie     tpm2.TPMHandle = 0x01C00100
	nvOnDieNext tpm2.TPMHandle = 0x01C00101
)

// bench is a TPM on its maker's desk: raw commands with platform authority.
type bench struct {
	net.Conn
	t *testing.T
}

func (s *site) chip(t *testing.T) *tpmfarm.TPM {
	t.Helper()
	chip, err := s.farm.Start(t.Context(), filepath.Join(t.TempDir(), "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	return chip
}

// atBench opens a TPM for a moment; it listens to one at a time.
func atBench(t *testing.T, chip *tpmfarm.TPM, do func(bench)) {
	t.Helper()
	c, err := net.Dial("unix", chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	do(bench{c, t})
}

func openChip(t *testing.T, chip *tpmfarm.TPM) *tpm.TPM {
	t.Helper()
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

// Send implements transport.TPM.
func (b bench) Send(cmd []byte) ([]byte, error) {
	if _, err := b.Write(cmd); err != nil {
		return nil, err
	}
	return message(b)
}

var platform = tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}

// erase takes an index away, if it is there.
func (b bench) erase(index tpm2.TPMHandle) {
	b.t.Helper()
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(b)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return
	}
	if err == nil {
		_, err = tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName}}.Execute(b)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// store writes an index.
func (b bench) store(index tpm2.TPMHandle, data []byte) {
	b.t.Helper()
	b.erase(index)
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	})}.Execute(b)
	if err != nil {
		b.t.Fatal(err)
	}
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(b)
	if err != nil {
		b.t.Fatal(err)
	}
	for at := 0; at < len(data); at += 512 {
		_, err := tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]}, Offset: uint16(at),
		}.Execute(b)
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

// farmCA is the certificate of the farm's authority.
func (s *site) farmCA(t *testing.T) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(s.farm.CA())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// above is a root that certifies the farm's authority: to who trusts the root
// alone that one is an intermediate.
func (s *site) above(t *testing.T) (root, middle *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker's root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	sign := func(tmpl, by *x509.Certificate, pub any) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, by, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root = sign(tmpl, tmpl, key.Public())
	ca := s.farmCA(t)
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(2), ca.Subject
	return root, sign(tmpl, root, ca.PublicKey)
}

// Every EK a maker may certify enrols, renews and changes its AK alike.
func TestEKWorlds(t *testing.T) {
	for name, tt := range map[string]struct {
		rsa, p384 bool
		maker     bool // on the list of makers: tier A, else that of virtual TPMs: C
		bare      bool // no certificate in the TPM
		listed    bool // on the vendor's list
		tier      identity.Tier
	}{
		"P-256":                {maker: true, tier: identity.TierA},
		"RSA-2048":             {rsa: true, maker: true, tier: identity.TierA},
		"P-384":                {p384: true, maker: true, tier: identity.TierA},
		"virtual P-256":        {tier: identity.TierC},
		"virtual RSA-2048":     {rsa: true, tier: identity.TierC},
		"virtual P-384":        {p384: true, tier: identity.TierC},
		"no certificate":       {bare: true, listed: true, tier: identity.TierB},
		"certified and listed": {maker: true, listed: true, tier: identity.TierB}, // what the test's directory makes of it
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, !tt.maker)
			if tt.maker {
				s.makers.AddCert(s.farmCA(t))
			}
			s.farm.RSA, s.farm.P384 = tt.rsa, tt.p384
			chip := s.chip(t)
			if tt.bare {
				atBench(t, chip, func(b bench) { b.erase(nvP256Cert) })
			}
			dev := openChip(t, chip)
			ek, cert, _, err := dev.Endorsement(t.Context())
			if err != nil || (cert == nil) != tt.bare {
				t.Fatalf("got a certificate of %d bytes and %v", len(cert), err)
			}
			if tt.listed {
				s.dir.list = []string{Hash(ek)}
			}
			c, d := s.join(t, dev)
			if d.saved.Tier != string(tt.tier) || d.saved.Device != identity.DeviceID(ek) {
				t.Errorf("enrolled as %s with tier %s, want %s", d.saved.Device, d.saved.Tier, tt.tier)
			}
			if _, err := c.RotateAK(t.Context(), d.saved); err != nil {
				t.Error("rotate: ", err)
			}
			if _, err := c.Renew(t.Context(), d.saved); err != nil {
				t.Error("renew: ", err)
			}
			s.connects(t, dev, d.saved, identity.RoleMember)
			if id, err := leaf(d.saved.Chain); err == nil {
				if got, err := identity.FromCertificate(id); err != nil || got.Tier != tt.tier {
					t.Errorf("renewed with tier %s and %v, want %s", got.Tier, err, tt.tier)
				}
			}
		})
	}
}

// A maker whose certificates chain over intermediates in the TPM's own memory
// is trusted by his root alone.
func TestIntermediatesComeFromTheTPM(t *testing.T) {
	s := newSite(t, false)
	root, middle := s.above(t)
	s.makers.AddCert(root)
	for name, tt := range map[string]struct {
		stored bool
		tier   string
		check  string
	}{"stored": {true, "A", ""}, "missing": {false, "", "enrol.ek-certificate"}} {
		chip := s.chip(t)
		if tt.stored {
			stream := append(bytes.Clone(middle.Raw), bytes.Repeat([]byte{0xff}, 20)...)
			atBench(t, chip, func(b bench) { b.store(nvOnDie, stream[:100]); b.store(nvOnDieNext, stream[100:]) })
		}
		res, err := s.client(openChip(t, chip)).Enrol(t.Context())
		if res.Tier != tt.tier || Check(err) != tt.check {
			t.Errorf("%s: got tier %q and %v with check %q", name, res.Tier, err, Check(err))
		}
	}
	// Whoever writes into that memory names no authority of his own.
	chip := s.chip(t)
	atBench(t, chip, func(b bench) { b.store(nvOnDie, s.farmCA(t).Raw) })
	if res, err := s.client(openChip(t, chip)).Enrol(t.Context()); Check(err) != "enrol.ek-certificate" {
		t.Errorf("a root in the TPM: got tier %q and %v", res.Tier, err)
	}
}

// A list makes good what a maker did not certify. It makes no good of another
// TPM's certificate.
func TestCertificateOfAnotherTPM(t *testing.T) {
	s := newSite(t, true)
	var theirs []byte
	donor := openChip(t, s.chip(t))
	_, theirs, _, err := donor.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	chip := s.chip(t)
	atBench(t, chip, func(b bench) { b.store(nvP256Cert, theirs) })
	dev := openChip(t, chip)
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, listed := range []bool{false, true} {
		for _, trusted := range []bool{true, false} {
			s.dir.list = nil
			if listed {
				s.dir.list = []string{Hash(ek)}
			}
			s.server.o.VirtualRoots = nil
			if trusted {
				s.server.o.VirtualRoots = x509.NewCertPool()
				s.server.o.VirtualRoots.AddCert(s.farmCA(t))
			}
			res, err := s.client(dev).Enrol(t.Context())
			if Check(err) != "enrol.ek-certificate" || !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "for another key") {
				t.Errorf("listed %t, trusted %t: got tier %q and %v", listed, trusted, res.Tier, err)
			}
		}
	}
	s.audited(t, "enrol.refused alarm "+identity.DeviceID(ek)+" enrol.ek-certificate")
	// Rubbish in that place is no other TPM's certificate: the list decides.
	chip2 := s.chip(t)
	atBench(t, chip2, func(b bench) { b.store(nvP256Cert, []byte("rubbish")) })
	bare := openChip(t, chip2)
	if ek, _, _, err = bare.Endorsement(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.dir.list = []string{Hash(ek)}
	if res, err := s.client(bare).Enrol(t.Context()); err != nil || res.Tier != "B" {
		t.Errorf("rubbish, listed: got tier %q and %v", res.Tier, err)
	}
}

// listening notes every secret that the TPM opened.
type listening struct {
	*tpm.TPM
	secrets [][]byte
	spoil   bool
}

func (l *listening) Activate(ctx context.Context, c, s []byte) ([]byte, error) {
	secret, err := l.TPM.Activate(ctx, c, s)
	l.secrets = append(l.secrets, slices.Clone(secret))
	if l.spoil && err == nil {
		secret[0] ^= 1
	}
	return secret, err
}

// What is refused is named and explained without a secret or the claim code.
func TestRefusalsHoldNoSecrets(t *testing.T) {
	s := newSite(t, true)
	dev := &listening{TPM: s.till(t)}
	c := s.client(dev.TPM)
	c.TPM, c.Claim = dev, "CLAIM-SECRET-77"
	var said []string
	fails := func(want string) {
		t.Helper()
		_, err := c.Enrol(t.Context())
		if Check(err) != want {
			t.Errorf("got %v with check %q, want %q", err, Check(err), want)
		}
		if err != nil {
			said = append(said, err.Error())
		}
	}
	dev.spoil = true
	fails("enrol.activation")
	dev.spoil = false
	s.judgeBy(func(identity.Identity, [][]byte, []byte) (bool, error) { return false, errors.New("no") })
	fails("enrol.boot")
	s.judgeBy(nil)
	s.dir.taken = true
	fails("enrol.owner")
	s.dir.taken = false
	c.Model = strings.Repeat("x", 65)
	fails("enrol.malformed")
	c.Model = "box-9"
	fails("")
	if len(dev.secrets) < 4 {
		t.Fatalf("%d secrets were opened", len(dev.secrets))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(append(said, s.audit...), "\n")
	for _, secret := range append(dev.secrets, []byte(c.Claim)) {
		for _, spelt := range []string{string(secret), hex.EncodeToString(secret)} {
			if strings.Contains(all, spelt) {
				t.Errorf("a secret is in %q", all)
			}
		}
	}
}
