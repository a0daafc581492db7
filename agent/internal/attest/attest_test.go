package attest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/tillward/tillward/agent/internal/attest"
	"github.com/tillward/tillward/cloud/wire"
)

// recorder quotes what it is given; the real TPM stands behind this interface in provisioning/enrol's tests.
type recorder struct {
	extra []byte
	err   error
}

func (r *recorder) Quote(_ context.Context, extraData []byte) (quoted, signature []byte, pcrs [][]byte, err error) {
	r.extra = bytes.Clone(extraData)
	return append([]byte("attest:"), extraData...), []byte("signature"), [][]byte{make([]byte, 32)}, r.err
}

func bind(device string, secret []byte, seq uint64) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint64(append([]byte(device+"|"), secret...), seq))
}

func attester(q attest.Quoter) *attest.Attester {
	return &attest.Attester{
		Device: "dev-1", Version: "1.2.3", Quoter: q, Bind: bind,
		Next: func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 7} },
	}
}

func TestEvidence(t *testing.T) {
	exporter, nonce := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	for name, tt := range map[string]struct {
		nonce, secret []byte
		seq           uint64
	}{
		"bound to the connection": {nil, exporter, 1},
		"bound to the challenge":  {nonce, nonce, 2},
	} {
		t.Run(name, func(t *testing.T) {
			q := &recorder{}
			b, err := attester(q).Evidence(t.Context(), exporter, tt.seq, tt.nonce)
			if err != nil {
				t.Fatal(err)
			}
			m, err := wire.Decode[wire.EvidenceReport](b)
			if err != nil {
				t.Fatal(err)
			}
			want := bind("dev-1", tt.secret, tt.seq)
			if !bytes.Equal(q.extra, want[:]) {
				t.Errorf("quoted %x, want %x", q.extra, want)
			}
			if m.Seq != tt.seq || !bytes.Equal(m.Nonce, tt.nonce) || m.AgentVersion != "1.2.3" || m.Head.Seq != 7 ||
				!bytes.HasPrefix(m.Quoted, []byte("attest:")) || string(m.Signature) != "signature" || len(m.PCRs) != 1 {
				t.Errorf("got %+v", m)
			}
		})
	}
}

func TestNoEvidence(t *testing.T) {
	exporter := make([]byte, 32)
	broken := errors.New("no TPM")
	for name, tt := range map[string]struct {
		exporter, nonce []byte
		seq             uint64
		err             error
	}{
		"no exporter":    {nil, nil, 1, nil},
		"short exporter": {exporter[:16], nil, 1, nil},
		"short nonce":    {exporter, exporter[:16], 1, nil},
		"no sequence":    {exporter, nil, 0, nil},
		"TPM fails":      {exporter, nil, 1, broken},
	} {
		_, err := attester(&recorder{err: tt.err}).Evidence(t.Context(), tt.exporter, tt.seq, tt.nonce)
		if err == nil || (tt.err != nil && !errors.Is(err, tt.err)) {
			t.Errorf("%s: got %v, want an error", name, err)
		}
	}
}
