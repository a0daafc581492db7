package enrol

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// golden returns the bytes of a message, such as v1/enrol.
func golden(f *testing.F, name string) []byte {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(name)+".pem"))
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return block.Bytes
}

// fuzz feeds a decoder: what it takes it gives back as the same message.
func fuzz[T any](f *testing.F, names ...string) {
	f.Add([]byte{0xa0})
	for _, name := range names {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode[T](b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Errorf("got %v, want ErrMessage", err)
			}
			return
		}
		once, err := encMode.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode[T](once)
		if err != nil {
			t.Fatalf("own encoding: %v", err)
		}
		if twice, err := encMode.Marshal(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%x became %x (%v)", once, twice, err)
		}
	})
}

func FuzzEnrol(f *testing.F)         { fuzz[request](f, "v1/enrol", "v2/enrol") }
func FuzzChallenge(f *testing.F)     { fuzz[challenge](f, "v1/challenge") }
func FuzzEvidence(f *testing.F)      { fuzz[evidence](f, "v1/evidence", "v2/evidence") }
func FuzzResult(f *testing.F)        { fuzz[Result](f, "v1/result", "v2/result") }
func FuzzProblem(f *testing.F)       { fuzz[problem](f, "v1/problem", "v2/problem") }
func FuzzRenewal(f *testing.F)       { fuzz[renewal](f, "v2/renew") }
func FuzzRenewed(f *testing.F)       { fuzz[renewed](f, "v2/renewed") }
func FuzzRotation(f *testing.F)      { fuzz[rotation](f, "v2/rotate") }
func FuzzRotationProof(f *testing.F) { fuzz[rotationProof](f, "v2/proof") }
func FuzzFollowed(f *testing.F)      { fuzz[followed](f, "v2/followed") }

// FuzzCSR feeds what a tool of others may send to EST: whatever is taken for a
// request asks for what the certificate says, or is refused.
func FuzzCSR(f *testing.F) {
	f.Add([]byte("MIIB"))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		csr, err := parseCSR(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) || Check(err) != checkCSR {
				t.Errorf("got %v, want ErrMessage with a check", err)
			}
			return
		}
		if err := sameAs(csr, &x509.Certificate{}); !errors.Is(err, ErrProof) {
			t.Errorf("a request passed for a certificate of nobody: %v", err)
		}
	})
}

// FuzzKeys feeds the public areas of ENROL: an EK that is taken has one spelling.
func FuzzKeys(f *testing.F) {
	f.Add(tpm2.Marshal(tpm2.ECCEKTemplate))
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pub, _, err := endorsementKey(b); err == nil && !bytes.Equal(tpm2.Marshal(*pub), b) {
			t.Errorf("%x is another spelling", b)
		}
		_, _ = signingKey(b)
		_, _, _ = deviceKey(b, "key")
	})
}

func FuzzQuote(f *testing.F) {
	f.Fuzz(func(t *testing.T, ak, attest, sig []byte) {
		if _, err := VerifyQuote(ak, attest, sig, make([][]byte, 11), [32]byte{}); err == nil {
			t.Error("a quote without values was accepted")
		}
	})
}
