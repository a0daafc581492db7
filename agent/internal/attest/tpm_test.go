package attest_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tillward/tillward/agent/internal/attest"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// TestRealTPM lets a software TPM make evidence and the verifier's own check
// read it: good here, worthless on any other connection.
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
		Next: func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1} },
	}
	exporter, nonce := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	for _, tt := range []struct {
		name   string
		nonce  []byte
		secret []byte
	}{{"connection", nil, exporter}, {"challenge", nonce, nonce}} {
		b, err := a.Evidence(t.Context(), exporter, 3, tt.nonce)
		if err != nil {
			t.Fatal(err)
		}
		e, err := wire.Decode[wire.EvidenceReport](b)
		if err != nil {
			t.Fatal(err)
		}
		verify := func(device string, secret []byte, seq uint64) error {
			_, err := enrol.VerifyQuote(ak, e.Quoted, e.Signature, e.PCRs, enrol.ConnBinding(device, secret, seq))
			return err
		}
		if err := verify("dev-1", tt.secret, e.Seq); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		for what, err := range map[string]error{
			"another connection": verify("dev-1", bytes.Repeat([]byte{9}, 32), e.Seq),
			"another device":     verify("dev-2", tt.secret, e.Seq),
			"another sequence":   verify("dev-1", tt.secret, e.Seq+1),
		} {
			if !errors.Is(err, enrol.ErrProof) {
				t.Errorf("%s: evidence shown on %s: got %v, want %v", tt.name, what, err, enrol.ErrProof)
			}
		}
	}
}
