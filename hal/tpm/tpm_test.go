package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// start returns a farm's TPM, stopped with the test.
func start(t *testing.T) *tpmfarm.TPM { return startKind(t, false) }

func startKind(t *testing.T, rsa bool) *tpmfarm.TPM {
	t.Helper()
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	farm.RSA = rsa
	chip, err := farm.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return chip
}

func open(t *testing.T, chip *tpmfarm.TPM) *tpm.TPM {
	t.Helper()
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

func TestEndorsementMatchesItsCertificate(t *testing.T) {
	for name, rsa := range map[string]bool{"P-256": false, "RSA-2048": true} {
		t.Run(name, func(t *testing.T) {
			dev := open(t, startKind(t, rsa))
			pub, der, _, err := dev.Endorsement(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			area, err := tpm2.Unmarshal[tpm2.TPMTPublic](pub)
			if err != nil {
				t.Fatal(err)
			}
			key, err := tpm2.Pub(*area)
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !got.Equal(cert.PublicKey) {
				t.Errorf("EK %v is not the certificate's %v", key, cert.PublicKey)
			}
			if got, err := activate(t, dev, pub); err != nil || string(got) != "secret" {
				t.Errorf("activated %q and %v, want the secret", got, err)
			}
		})
	}
}

// store writes data to an NV index with platform authority, as a maker does.
func store(t *testing.T, dev *tpm.TPM, index tpm2.TPMHandle, data []byte) {
	t.Helper()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	})}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 512 {
		_, err := tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]}, Offset: uint16(at),
		}.Execute(tpm.Raw(dev))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Intermediates of an on-die authority: one stream over several indices, cut
// anywhere, with padding behind each certificate or none [TCG EK Credential
// Profile 2.5, 2.2.1.5].
func TestIntermediatesAreRead(t *testing.T) {
	dev := open(t, start(t))
	_, cert, chain, err := dev.Endorsement(t.Context())
	if err != nil || len(chain) != 0 {
		t.Fatalf("got a chain of %d and %v, want none", len(chain), err)
	}
	stream := slices.Concat(cert, []byte{0xff, 0xff, 0}, cert, cert, bytes.Repeat([]byte{0xff}, 40))
	store(t, dev, 0x01C00100, stream[:200])
	store(t, dev, 0x01C00101, stream[200:])
	store(t, dev, 0x01C00103, cert) // not part of it: 0x01C00102 is missing
	_, _, chain, err = dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || !bytes.Equal(chain[0], cert) || !bytes.Equal(chain[2], cert) {
		t.Errorf("got %x, want the certificate three times", chain)
	}
}

// A TPM without EK certificate is for the vendor's list to know.
func TestNoCertificateIsNoError(t *testing.T) {
	dev := open(t, start(t))
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01C0000A)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: 0x01C0000A, Name: pub.NVName},
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	ek, cert, chain, err := dev.Endorsement(t.Context())
	if err != nil || len(ek) == 0 || cert != nil || chain != nil {
		t.Errorf("got EK %x, certificate %x, chain %x and %v", ek, cert, chain, err)
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Error(err)
	}
}

// activate makes a credential for dev as the fleet service does, and opens it.
func activate(t *testing.T, dev *tpm.TPM, ek []byte) ([]byte, error) {
	t.Helper()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		t.Fatal(err)
	}
	kem, err := tpm2.ImportEncapsulationKey(area)
	if err != nil {
		t.Fatal(err)
	}
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	akArea, err := tpm2.Unmarshal[tpm2.TPMTPublic](ak)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(akArea)
	if err != nil {
		t.Fatal(err)
	}
	blob, secret, err := tpm2.CreateCredential(rand.Reader, kem, name.Buffer, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	return dev.Activate(t.Context(), blob, secret)
}

// Many TPMs have room for three transient objects and three sessions, and a
// socket has no resource manager.
func TestNothingTransientStays(t *testing.T) {
	dev := open(t, start(t))
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dev.Certify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := dev.Quote(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 8}.Execute(tpm.Raw(dev))
		if err != nil {
			t.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Handle) > 0 {
			t.Errorf("the TPM still holds %#x", list.Handle)
		}
	}
}

// A service that sends nonsense must not use up the TPM's sessions.
func TestFailedActivationsLeaveNothing(t *testing.T) {
	dev := open(t, start(t))
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := dev.Activate(t.Context(), []byte{0, 1, 2}, []byte{3}); err == nil {
			t.Fatal("nonsense was activated")
		}
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Error(err)
	}
}

// Power cuts are daily business at a till; with keys that count as a
// dictionary attack swtpm would lock at the third.
func TestPowerCutsAreNoAttack(t *testing.T) {
	chip := start(t)
	for range 5 {
		dev := open(t, chip)
		ek, _, _, err := dev.Endorsement(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := activate(t, dev, ek); err != nil {
			t.Fatal(err)
		}
		if _, _, err := dev.Certify(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := dev.Quote(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		key, err := dev.Signer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := attacks(t, open(t, chip)); n != 0 {
		t.Errorf("the TPM counted %d attacks in 5 power cuts", n)
	}
}

// The twin: one use of a key without noDA, one power cut, one attack counted.
func TestPowerCutWithAnotherKeyIsCounted(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	parent := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	tmpl := tpm2.ECCSRKTemplate
	tmpl.ObjectAttributes.NoDA = false
	made, err := tpm2.Create{
		ParentHandle: parent, InPublic: tpm2.New2B(tmpl),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("auth")}}},
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	use := tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth([]byte("auth"))}
	if _, err := (tpm2.Create{ParentHandle: use, InPublic: tpm2.New2B(tmpl)}).Execute(tpm.Raw(dev)); err != nil {
		t.Fatal(err)
	}
	if err := chip.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := attacks(t, open(t, chip)); n != 1 {
		t.Errorf("the TPM counted %d attacks, want 1", n)
	}
}

// attacks is the TPM's dictionary attack counter.
func attacks(t *testing.T, dev *tpm.TPM) uint32 {
	t.Helper()
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1,
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		t.Fatal(err)
	}
	return props.TPMProperty[0].Value
}

// A quote tells how often the TPM was started, in clear.
func TestResetCountGrowsWithEachPowerCycle(t *testing.T) {
	chip := start(t)
	var last uint32
	for i := range 3 {
		dev := open(t, chip)
		attest, _, _, err := dev.Quote(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
		if err != nil {
			t.Fatal(err)
		}
		if n := a.ClockInfo.ResetCount; i > 0 && n != last+1 {
			t.Errorf("reset count went from %d to %d", last, n)
		}
		last = a.ClockInfo.ResetCount
		if err := chip.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The attributes that keep a private key in its TPM, read from the TPM.
func TestPrivateKeysStay(t *testing.T) {
	ak, ldevid, err := open(t, start(t)).Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, public := range map[string][]byte{"AK": ak, "LDevID": ldevid} {
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
		if err != nil {
			t.Fatal(err)
		}
		at := pub.ObjectAttributes
		if !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin || !at.NoDA || at.Restricted != (name == "AK") {
			t.Errorf("%s has attributes %+v", name, at)
		}
	}
}

func TestForeignKeyAtOurHandleIsNotUsed(t *testing.T) {
	dev := open(t, start(t))
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: 0x8100F002,
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := dev.Keys(t.Context()); err == nil || !strings.Contains(err.Error(), "0x8100f002 holds a key of other software") {
		t.Errorf("got %v, want what is at the handle", err)
	}
}

// A command that broke off spoils neither the next one nor the keys.
func TestBrokenExchangeHeals(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	key, err := dev.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tpm.Break(dev)
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
		t.Fatal("signed over a closed descriptor")
	}
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("the next signature: %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: got %v, want os.ErrClosed", err)
	}
}

func TestKeysSurviveAPowerCycle(t *testing.T) {
	chip := start(t)
	dev := open(t, chip)
	ak, ldevid, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = dev.Close()
	if err := chip.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ak2, ldevid2, err := open(t, chip).Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ak, ak2) || !bytes.Equal(ldevid, ldevid2) {
		t.Error("the keys changed with a power cycle")
	}
}

func TestSignerSignsWithTheLDevIDKey(t *testing.T) {
	key, err := open(t, start(t)).Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("handshake"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Error("signature does not verify")
	}
	if _, err := key.Sign(nil, digest[:], crypto.SHA384); err == nil {
		t.Error("signed a SHA-384 digest with a SHA-256 key")
	}
}

// An agent that is killed leaves objects and sessions behind; without a
// resource manager a few of them would fill the TPM for good.
func TestOpenTidiesUpAfterAKilledAgent(t *testing.T) {
	chip := start(t)
	for range 8 {
		dev := open(t, chip)
		if _, _, err := dev.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := tpm.Litter(dev); err != nil {
			t.Fatal(err)
		}
		_ = dev.Close() // the kernel does this for a killed process
	}
	dev := open(t, chip)
	ek, _, _, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Error(err)
	}
}

func TestQuoteCoversTheRegisters(t *testing.T) {
	dev := open(t, start(t))
	extra := sha256.Sum256([]byte("nonce"))
	attest, sig, pcrs, err := dev.Quote(t.Context(), extra[:])
	if err != nil {
		t.Fatal(err)
	}
	if len(pcrs) != 10 || len(sig) == 0 {
		t.Fatalf("got %d PCRs and a signature of %d bytes, want 10 and some", len(pcrs), len(sig))
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.ExtraData.Buffer, extra[:]) {
		t.Errorf("extraData %x, want %x", a.ExtraData.Buffer, extra)
	}
	q, err := a.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	for _, p := range pcrs {
		h.Write(p)
	}
	if got := h.Sum(nil); !bytes.Equal(got, q.PCRDigest.Buffer) {
		t.Errorf("digest of the values is %x, quoted is %x", got, q.PCRDigest.Buffer)
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	if _, err := tpm.Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "write unix:") {
		t.Errorf("a folder: got %v, want how to write a software TPM", err)
	}
	if _, err := tpm.Open("unix:" + t.TempDir() + "/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that is not there: got %v, want os.ErrNotExist", err)
	}
}
