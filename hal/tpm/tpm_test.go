package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// start returns a farm's TPM, stopped with the test.
func start(t *testing.T) *tpmfarm.TPM {
	t.Helper()
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
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
	dev := open(t, start(t))
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
	if got, ok := key.(*ecdsa.PublicKey); !ok || !got.Equal(cert.PublicKey) {
		t.Errorf("EK %v is not the certificate's %v", key, cert.PublicKey)
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
	if _, err := open(t, chip).Activate(t.Context(), nil, nil); err == nil {
		t.Error("an empty credential was activated")
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
	if _, err := tpm.Open(t.TempDir()); err == nil {
		t.Error("opened a folder as a TPM")
	}
}
