package enrol

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// golden returns the bytes of a message of version 1.
func golden(f *testing.F, name string) []byte {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "v1", name+".pem"))
	if err != nil {
		f.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return block.Bytes
}

// fuzz feeds a decoder: what it takes it gives back as the same message.
func fuzz[T any](f *testing.F, name string) {
	f.Add([]byte{0xa0})
	f.Add(golden(f, name))
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

func FuzzEnrol(f *testing.F)     { fuzz[request](f, "enrol") }
func FuzzChallenge(f *testing.F) { fuzz[challenge](f, "challenge") }
func FuzzEvidence(f *testing.F)  { fuzz[evidence](f, "evidence") }
func FuzzResult(f *testing.F)    { fuzz[Result](f, "result") }

// FuzzKeys feeds the public areas of ENROL: an EK that is taken has one spelling.
func FuzzKeys(f *testing.F) {
	f.Add(tpm2.Marshal(tpm2.ECCEKTemplate))
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pub, _, err := endorsementKey(b); err == nil && !bytes.Equal(tpm2.Marshal(*pub), b) {
			t.Errorf("%x is another spelling", b)
		}
		_, _ = signingKey(b)
		_, _, _ = deviceKey(b)
	})
}

func FuzzQuote(f *testing.F) {
	f.Fuzz(func(t *testing.T, ak, attest, sig []byte) {
		if _, err := VerifyQuote(ak, attest, sig, make([][]byte, quotedPCRs), [32]byte{}); err == nil {
			t.Error("a quote without values was accepted")
		}
	})
}
