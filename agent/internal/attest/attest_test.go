package attest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/agent/internal/attest"
	"github.com/tillward/tillward/cloud/wire"
)

// recorder quotes what it is given, for the boot it is told to be in; a real TPM stands behind this interface in
// tpm_test.go.
type recorder struct {
	extra  []byte
	reset  uint32
	digest [32]byte
	r      []byte // of the signature; 32 bytes when nil
	broken func(quoted, signature []byte) ([]byte, []byte)
	err    error
}

func (r *recorder) Quote(_ context.Context, extraData []byte) (quoted, signature []byte, pcrs [][]byte, err error) {
	r.extra = bytes.Clone(extraData)
	quoted = tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: extraData},
		ClockInfo: tpm2.TPMSClockInfo{ResetCount: r.reset},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xff, 0x03, 0}}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: r.digest[:]},
		}),
	})
	if r.r == nil {
		r.r = bytes.Repeat([]byte{7}, 32)
	}
	signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.r}, SignatureS: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{8}, 32)},
	})})
	if r.broken != nil {
		quoted, signature = r.broken(quoted, signature)
	}
	return quoted, signature, [][]byte{make([]byte, 32)}, r.err
}

func bind(device string, secret []byte, seq uint64) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint64(append([]byte(device+"|"), secret...), seq))
}

func attester(q attest.Quoter) *attest.Attester {
	return &attest.Attester{
		Device: "dev-1", Version: "1.2.3", Quoter: q, Bind: bind,
		Next:     func() wire.Head { return wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: 7} },
		EventLog: func() ([]byte, error) { return []byte("measured"), nil },
		Pack:     func(raw []byte) ([]byte, error) { return append([]byte("gz:"), raw...), nil },
	}
}

// memory is the values of a spool.
type memory struct {
	values map[string][]byte
	err    error
	saves  int
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) { return m.values[key], m.err }

func (m *memory) Save(_ context.Context, key string, value []byte, _ string, _ func() ([]byte, error)) error {
	if m.err != nil {
		return m.err
	}
	m.saves++
	m.values[key] = bytes.Clone(value)
	return nil
}

var (
	exporter = bytes.Repeat([]byte{1}, 32)
	nonce    = bytes.Repeat([]byte{2}, 32)
)

func show(t *testing.T, a *attest.Attester, full bool) wire.EvidenceReport {
	t.Helper()
	b, err := a.Evidence(t.Context(), exporter, 1, nil, full)
	if err != nil {
		t.Fatal(err)
	}
	m, err := wire.Decode[wire.EvidenceReport](b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func isFull(m wire.EvidenceReport) bool {
	return len(m.PCRs) == 1 && string(m.Log) == "gz:measured" && m.AgentVersion == "1.2.3"
}

func isSteady(m wire.EvidenceReport) bool {
	return len(m.PCRs) == 0 && len(m.Log) == 0 && m.AgentVersion == ""
}

func TestEvidence(t *testing.T) {
	for name, tt := range map[string]struct {
		nonce, secret []byte
		seq           uint64
	}{
		"bound to the connection": {nil, exporter, 1},
		"bound to the challenge":  {nonce, nonce, 2},
	} {
		t.Run(name, func(t *testing.T) {
			q := &recorder{r: []byte{5}} // a TPM that leaves out leading zeros
			b, err := attester(q).Evidence(t.Context(), exporter, tt.seq, tt.nonce, false)
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
			sig := slices.Concat(make([]byte, 31), []byte{5}, bytes.Repeat([]byte{8}, 32))
			if m.Seq != tt.seq || len(m.Nonce) != 0 || m.Head.Seq != 7 || !bytes.Contains(m.Quoted, want[:]) || !bytes.Equal(m.Signature, sig) || !isFull(m) {
				t.Errorf("got %+v", m)
			}
		})
	}
}

// TestSteady follows a device: the log goes with what the service has not accepted, and with nothing else.
func TestSteady(t *testing.T) {
	q, mem := &recorder{reset: 1, digest: [32]byte{1}}, &memory{values: map[string][]byte{}}
	a := attester(q)
	a.Memory = mem
	judged := func(verdict string) { a.Judged(t.Context(), verdict) }
	for i, step := range []struct {
		what   string
		change func()
		full   bool // asked for
		want   func(wire.EvidenceReport) bool
	}{
		{"nothing accepted yet", func() {}, false, isFull},
		{"no verdict on it", func() { judged("pending") }, false, isFull},
		{"attested", func() { judged("attested") }, false, isSteady},
		{"attested again", func() { judged("attested") }, false, isSteady},
		{"asked for the log", func() {}, true, isFull},
		{"after a start of the agent", func() { a = attester(q); a.Memory = mem }, false, isSteady},
		{"after a reboot", func() { q.reset = 2 }, false, isFull},
		{"accepted though degraded", func() { judged("degraded") }, false, isSteady},
		{"another register", func() { q.digest[0]++ }, false, isFull},
		{"back in the accepted state", func() { q.digest[0]-- }, false, isSteady},
		{"refused", func() { judged("quarantined") }, false, isFull},
		{"and after a start", func() { a = attester(q); a.Memory = mem }, false, isFull},
	} {
		step.change()
		if m := show(t, a, step.full); !step.want(m) {
			t.Errorf("step %d, %s: got %d registers and %d bytes of log", i, step.what, len(m.PCRs), len(m.Log))
		}
	}
	if mem.saves != 3 {
		t.Errorf("wrote the memory %d times, want 3: once for each change", mem.saves)
	}
	for _, junk := range [][]byte{{1}, make([]byte, 37), nil} {
		mem.values["attest/boot"] = junk
		a = attester(q)
		a.Memory = mem
		if m := show(t, a, false); !isFull(m) {
			t.Errorf("memory of %d bytes: got steady evidence", len(junk))
		}
	}
}

// TestWithoutMemory: a device whose disk fails, or that keeps nothing, shows its log more often and is still attested.
func TestWithoutMemory(t *testing.T) {
	for name, mem := range map[string]attest.Memory{"none": nil, "broken": &memory{err: errors.New("disk is gone")}} {
		a := attester(&recorder{reset: 1, digest: [32]byte{1}})
		a.Memory = mem
		if m := show(t, a, false); !isFull(m) {
			t.Errorf("%s: got steady evidence at first", name)
		}
		a.Judged(t.Context(), "attested")
		if m := show(t, a, false); mem == nil && !isSteady(m) {
			t.Errorf("%s: got the log twice in one run", name)
		}
	}
}

// TestWithoutLog: evidence goes out all the same; what is missing is the service's to say.
func TestWithoutLog(t *testing.T) {
	for name, change := range map[string]func(*attest.Attester){
		"no log":    func(a *attest.Attester) { a.EventLog = nil },
		"empty log": func(a *attest.Attester) { a.EventLog = func() ([]byte, error) { return nil, nil } },
		"unreadable": func(a *attest.Attester) {
			a.EventLog = func() ([]byte, error) { return nil, errors.New("no permission") }
		},
		"too large": func(a *attest.Attester) {
			a.Pack = func([]byte) ([]byte, error) { return nil, errors.New("too large") }
		},
	} {
		a := attester(&recorder{})
		change(a)
		if m := show(t, a, true); len(m.PCRs) != 1 || len(m.Log) != 0 {
			t.Errorf("%s: got %d registers and %d bytes of log, want registers alone", name, len(m.PCRs), len(m.Log))
		}
	}
}

func TestNoEvidence(t *testing.T) {
	broken := errors.New("no TPM")
	other := func(quoted, signature []byte) func([]byte, []byte) ([]byte, []byte) {
		return func(q, s []byte) ([]byte, []byte) {
			if quoted == nil {
				quoted = q
			}
			if signature == nil {
				signature = s
			}
			return quoted, signature
		}
	}
	certify := tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{}),
	})
	hmac := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgHMAC, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgHMAC, &tpm2.TPMTHA{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)})})
	for name, tt := range map[string]struct {
		exporter, nonce []byte
		seq             uint64
		q               *recorder
	}{
		"no exporter":    {nil, nil, 1, &recorder{}},
		"short exporter": {exporter[:16], nil, 1, &recorder{}},
		"short nonce":    {exporter, exporter[:16], 1, &recorder{}},
		"no sequence":    {exporter, nil, 0, &recorder{}},
		"TPM fails":      {exporter, nil, 1, &recorder{err: broken}},
		"torn quote":     {exporter, nil, 1, &recorder{broken: other([]byte{1}, nil)}},
		"not a quote":    {exporter, nil, 1, &recorder{broken: other(certify, nil)}},
		"torn signature": {exporter, nil, 1, &recorder{broken: other(nil, []byte{1})}},
		"not ECDSA":      {exporter, nil, 1, &recorder{broken: other(nil, hmac)}},
		"not P-256":      {exporter, nil, 1, &recorder{r: bytes.Repeat([]byte{7}, 48)}},
	} {
		_, err := attester(tt.q).Evidence(t.Context(), tt.exporter, tt.seq, tt.nonce, false)
		if err == nil || (tt.q.err != nil && !errors.Is(err, tt.q.err)) {
			t.Errorf("%s: got %v, want an error", name, err)
		}
	}
	if b, err := attester(&recorder{r: append([]byte{0}, bytes.Repeat([]byte{7}, 32)...)}).Evidence(t.Context(), exporter, 1, nil, false); err != nil {
		t.Errorf("signature with a leading zero: got %x, %v", b, err)
	}
}

func ExampleAttester_Judged() {
	a := attester(&recorder{reset: 1, digest: [32]byte{1}})
	for range 2 {
		b, _ := a.Evidence(context.Background(), exporter, 1, nil, false)
		m, _ := wire.Decode[wire.EvidenceReport](b)
		fmt.Printf("registers %d, log %q\n", len(m.PCRs), m.Log)
		a.Judged(context.Background(), "attested")
	}
	// Output:
	// registers 1, log "gz:measured"
	// registers 0, log ""
}
