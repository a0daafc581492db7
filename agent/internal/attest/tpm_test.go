package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/agent/internal/attest"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// TestRealTPM lets a software TPM make evidence: good here, worthless on any other connection, and small once
// the boot is known.
func TestRealTPM(t *testing.T) {
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	chip, err := farm.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tpm.Open("unix:" + chip.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := &attest.Attester{
		Device: "dev-1", Version: "1.2.3", Quoter: dev, Bind: enrol.ConnBinding,
		Next: func() wire.Head {
			return wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: 65535, Sent: time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()}
		},
	}
	for _, tt := range []struct {
		name          string
		nonce, secret []byte
		seq           uint64
		full          bool
	}{
		{"connection", nil, exporter, 1, true},
		{"challenge", nonce, nonce, 2, false},
		{"connection of two weeks", nil, exporter, 65535, false},
	} {
		b, err := a.Evidence(t.Context(), exporter, tt.seq, tt.nonce, false)
		if err != nil {
			t.Fatal(err)
		}
		if !tt.full && len(b) > wire.MaxSteadyEvidence {
			t.Errorf("%s: steady evidence of %d bytes, want at most %d", tt.name, len(b), wire.MaxSteadyEvidence)
		}
		m, err := wire.Decode[wire.EvidenceReport](b)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(m.PCRs) == 11 && m.AgentVersion != ""; got != tt.full {
			t.Errorf("%s: got full evidence %v, want %v", tt.name, got, tt.full)
		}
		q := read(t, ak, m)
		for what, same := range map[string]bool{
			"here":               bytes.Equal(q.ExtraData.Buffer, bound("dev-1", tt.secret, tt.seq)),
			"another connection": !bytes.Equal(q.ExtraData.Buffer, bound("dev-1", bytes.Repeat([]byte{9}, 32), tt.seq)),
			"another device":     !bytes.Equal(q.ExtraData.Buffer, bound("dev-2", tt.secret, tt.seq)),
			"another sequence":   !bytes.Equal(q.ExtraData.Buffer, bound("dev-1", tt.secret, tt.seq+1)),
		} {
			if !same {
				t.Errorf("%s: binding is not as it must be: %s", tt.name, what)
			}
		}
		a.Judged(t.Context(), "attested")
	}
}

func bound(device string, secret []byte, seq uint64) []byte {
	b := enrol.ConnBinding(device, secret, seq)
	return b[:]
}

// read checks the signature as a verifier would that knows nothing of the TPM but its key.
func read(t *testing.T, ak []byte, m wire.EvidenceReport) *tpm2.TPMSAttest {
	t.Helper()
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](ak)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(m.Quoted)
	if !ecdsa.Verify(key.(*ecdsa.PublicKey), digest[:], new(big.Int).SetBytes(m.Signature[:32]), new(big.Int).SetBytes(m.Signature[32:])) {
		t.Fatal("the signature does not verify")
	}
	q, err := tpm2.Unmarshal[tpm2.TPMSAttest](m.Quoted)
	if err != nil {
		t.Fatal(err)
	}
	return q
}
