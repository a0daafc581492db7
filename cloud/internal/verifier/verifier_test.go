package verifier_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// desk is the store and the link of one device.
type desk struct {
	mu       sync.Mutex
	d        fleet.Device
	broken   error
	audits   []fleet.AuditEvent
	sent     []wire.Challenge
	exporter []byte // of the connection that is there
	offline  bool
}

func (k *desk) DeviceByID(_ context.Context, id fleet.DeviceID) (fleet.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if id != k.d.ID {
		return fleet.Device{}, fleet.ErrNotFound
	}
	return k.d, nil
}

func (k *desk) SetTrust(_ context.Context, _ fleet.DeviceID, trust fleet.Trust, reasons []string, at time.Time, resetCount uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return k.broken
	}
	k.d.Trust, k.d.TrustReasons, k.d.ResetCount = trust, reasons, max(k.d.ResetCount, resetCount)
	if trust == fleet.Attested {
		k.d.AttestedAt = at
	}
	return nil
}

func (k *desk) MarkStale(_ context.Context, before time.Time) ([]fleet.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.d.Trust != fleet.Attested || !k.d.AttestedAt.Before(before) {
		return nil, nil
	}
	k.d.Trust = fleet.Stale
	return []fleet.Device{k.d}, nil
}

func (k *desk) Audit(_ context.Context, ev fleet.AuditEvent) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.audits = append(k.audits, ev)
	return nil
}

func (k *desk) Send(_ fleet.DeviceID, _ wire.Channel, payload []byte) error {
	return k.take(payload)
}

func (k *desk) Verdict(_ fleet.DeviceID, exporter []byte, _ fleet.Trust, payload []byte) error {
	if !bytes.Equal(exporter, k.exporter) {
		return errors.New("another connection")
	}
	return k.take(payload)
}

func (k *desk) take(payload []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.offline {
		return errors.New("offline")
	}
	m, err := wire.Decode[wire.Challenge](payload)
	if err != nil {
		return err
	}
	k.sent = append(k.sent, m)
	return nil
}

func (k *desk) Connected() map[fleet.DeviceID]fleet.Trust {
	if k.offline {
		return nil
	}
	return map[fleet.DeviceID]fleet.Trust{"dev-1": fleet.Pending}
}

// last is the newest message to the device.
func (k *desk) last() wire.Challenge {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.sent) == 0 {
		return wire.Challenge{}
	}
	return k.sent[len(k.sent)-1]
}

// till is a software TPM and what it is asked to quote.
type till struct {
	t   *testing.T
	tpm *tpm.TPM
	ak  []byte
}

func farm(t *testing.T) *tpmfarm.Farm {
	t.Helper()
	f, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func newTill(t *testing.T, f *tpmfarm.Farm) *till {
	t.Helper()
	chip, err := f.Start(t.Context(), t.TempDir())
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
	return &till{t, dev, ak}
}

// report quotes for secret and seq; nonce is that of a challenge.
func (x *till) report(secret, nonce []byte, seq uint64) wire.EvidenceReport {
	x.t.Helper()
	b := enrol.ConnBinding("dev-1", secret, seq)
	quoted, sig, pcrs, err := x.tpm.Quote(x.t.Context(), b[:])
	if err != nil {
		x.t.Fatal(err)
	}
	return wire.EvidenceReport{
		Head:   wire.Head{V: 1, Boot: wire.Boot{1}, Seq: seq},
		Quoted: quoted, Signature: sig, PCRs: pcrs, Seq: seq, Nonce: nonce, AgentVersion: "1.0.0",
	}
}

func encode(t *testing.T, m wire.EvidenceReport) []byte {
	t.Helper()
	b, err := wire.Encode(&m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	here  = bytes.Repeat([]byte{1}, 32) // exporter of this connection
	there = bytes.Repeat([]byte{2}, 32) // of another one
)

func newVerifier(ak []byte, reference func(fleet.Device, [][]byte) []string) (*verifier.Verifier, *desk) {
	k := &desk{d: fleet.Device{ID: "dev-1", Tenant: "main", AKPublic: ak, Trust: fleet.Pending}, exporter: here}
	return verifier.New(verifier.Options{
		Store: k, Link: k, Every: time.Minute, Reference: reference, Changed: func(fleet.Device) {}, Log: slog.New(slog.DiscardHandler),
	}), k
}

// TestAppraise shows good evidence, and each way in which evidence can be bad, by a real software TPM.
func TestAppraise(t *testing.T) {
	f := farm(t)
	own, other := newTill(t, f), newTill(t, f)
	good := own.report(here, nil, 1)
	for name, tt := range map[string]struct {
		change func(*wire.EvidenceReport)
		device func(*fleet.Device)
		want   fleet.Trust
		reason string
	}{
		"good":               {want: fleet.Attested},
		"another connection": {change: func(m *wire.EvidenceReport) { *m = own.report(there, nil, 1) }, want: fleet.Quarantined, reason: "bound to another"},
		"another sequence":   {change: func(m *wire.EvidenceReport) { m.Seq = 2 }, want: fleet.Quarantined, reason: "bound to another"},
		"another TPM":        {change: func(m *wire.EvidenceReport) { *m = other.report(here, nil, 1) }, want: fleet.Quarantined, reason: "attestation key"},
		"no key on file":     {device: func(d *fleet.Device) { d.AKPublic = nil }, want: fleet.Quarantined, reason: "attestation key"},
		"flipped bit":        {change: func(m *wire.EvidenceReport) { m.Quoted = flip(m.Quoted, len(m.Quoted)-1) }, want: fleet.Quarantined, reason: "signature"},
		"not a TPM's magic":  {change: func(m *wire.EvidenceReport) { m.Quoted = flip(m.Quoted, 0) }, want: fleet.Quarantined, reason: "signature"},
		"another PCR value":  {change: func(m *wire.EvidenceReport) { m.PCRs = slices.Clone(m.PCRs); m.PCRs[4] = flip(m.PCRs[4], 0) }, want: fleet.Quarantined, reason: "register values"},
		"one PCR fewer":      {change: func(m *wire.EvidenceReport) { m.PCRs = m.PCRs[:9] }, want: fleet.Quarantined, reason: "register values"},
		"no challenge open":  {change: func(m *wire.EvidenceReport) { *m = own.report(there, there, 1) }, want: fleet.Quarantined, reason: "not open"},
		"cleared TPM":        {device: func(d *fleet.Device) { d.ResetCount = 1 << 30 }, want: fleet.Quarantined, reason: "reset count fell"},
	} {
		t.Run(name, func(t *testing.T) {
			v, k := newVerifier(own.ak, nil)
			m := good
			if tt.change != nil {
				own.t, other.t = t, t
				tt.change(&m)
			}
			if tt.device != nil {
				tt.device(&k.d)
			}
			if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, m), Exporter: here, At: noon}); err != nil {
				t.Fatal(err)
			}
			got := k.last()
			if k.d.Trust != tt.want || got.Verdict != string(tt.want) || len(k.audits) != 1 || k.audits[0].Kind != "attest."+string(tt.want) || k.audits[0].Tenant != "main" {
				t.Fatalf("got %s %q, verdict %+v, audit %+v; want %s", k.d.Trust, k.d.TrustReasons, got, k.audits, tt.want)
			}
			if tt.want == fleet.Attested {
				if len(k.d.TrustReasons) != 0 || k.d.ResetCount == 0 {
					t.Errorf("got reasons %q, reset count %d", k.d.TrustReasons, k.d.ResetCount)
				}
				return
			}
			if len(k.d.TrustReasons) != 1 || !strings.Contains(k.d.TrustReasons[0], tt.reason) || k.audits[0].Severity != "alarm" {
				t.Errorf("got reasons %q, want one about %q", k.d.TrustReasons, tt.reason)
			}
			// It heals by itself: fresh good evidence of the same TPM, the device as it was.
			own.t = t
			k.d.AKPublic, k.d.ResetCount = own.ak, 0
			if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, own.report(here, nil, 9)), Exporter: here, At: noon}); err != nil || k.d.Trust != fleet.Attested {
				t.Errorf("afterwards: got %s %q, %v, want attested", k.d.Trust, k.d.TrustReasons, err)
			}
		})
	}
}

func flip(b []byte, i int) []byte {
	b = slices.Clone(b)
	b[i] ^= 1
	return b
}

// TestNoEvidenceCountsTwice replays good evidence: on its own connection, on the next, and the answer to a
// challenge.
func TestNoEvidenceCountsTwice(t *testing.T) {
	own := newTill(t, farm(t))
	v, k := newVerifier(own.ak, nil)
	show := func(m wire.EvidenceReport, exporter []byte) fleet.Trust {
		t.Helper()
		k.exporter = exporter
		if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, m), Exporter: exporter, At: noon}); err != nil {
			t.Fatal(err)
		}
		return k.d.Trust
	}
	first := own.report(here, nil, 1)
	if got := show(first, here); got != fleet.Attested {
		t.Fatalf("first: got %s %q", got, k.d.TrustReasons)
	}
	if got := show(first, here); got != fleet.Quarantined {
		t.Errorf("again on its connection: got %s", got)
	}
	if got := show(first, there); got != fleet.Quarantined {
		t.Errorf("on the next connection: got %s", got)
	}
	if err := v.Challenge("dev-1"); err != nil {
		t.Fatal(err)
	}
	nonce := k.last().Nonce
	if len(nonce) != 32 {
		t.Fatalf("challenge: got %+v", k.last())
	}
	answer := own.report(nonce, nonce, 2)
	if got := show(answer, there); got != fleet.Attested {
		t.Errorf("answer: got %s %q", got, k.d.TrustReasons)
	}
	if got := show(answer, there); got != fleet.Quarantined {
		t.Errorf("answer again: got %s", got)
	}
	// A challenge on request crosses one by the clock: both may be answered, a third replaces the oldest.
	var nonces [][]byte
	for range 3 {
		if err := v.Challenge("dev-1"); err != nil {
			t.Fatal(err)
		}
		nonces = append(nonces, k.last().Nonce)
	}
	for i, want := range []fleet.Trust{fleet.Quarantined, fleet.Attested, fleet.Attested} {
		if got := show(own.report(nonces[i], nonces[i], uint64(10+i)), there); got != want {
			t.Errorf("challenge %d: got %s %q, want %s", i, got, k.d.TrustReasons, want)
		}
	}
}

// TestVerdictIsForItsConnection: the device reconnected while its evidence was appraised.
func TestVerdictIsForItsConnection(t *testing.T) {
	own := newTill(t, farm(t))
	v, k := newVerifier(own.ak, nil)
	m := own.report(here, nil, 1)
	k.exporter = there
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, m), Exporter: here, At: noon}); err != nil {
		t.Fatal(err)
	}
	if len(k.sent) != 0 {
		t.Errorf("got %+v sent to the new connection, want nothing", k.sent)
	}
}

func TestReference(t *testing.T) {
	own := newTill(t, farm(t))
	v, k := newVerifier(own.ak, func(_ fleet.Device, pcrs [][]byte) []string {
		if len(pcrs) != 10 {
			t.Errorf("got %d PCRs", len(pcrs))
		}
		return []string{"PCR 4 is unknown: " + strings.Repeat("ä", 400)}
	})
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: encode(t, own.report(here, nil, 1)), Exporter: here, At: noon}); err != nil {
		t.Fatal(err)
	}
	if got := k.last(); got.Verdict != "quarantined" || len(got.Reasons) != 1 || !strings.HasPrefix(got.Reasons[0], "PCR 4") {
		t.Errorf("got %+v", got)
	}
}

// TestStoreFails: what could not be recorded is told to nobody, and the caller can try again.
func TestStoreFails(t *testing.T) {
	v, k := newVerifier(nil, nil)
	k.broken = errors.New("disk full")
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: []byte("x"), Exporter: here, At: noon}); !errors.Is(err, k.broken) {
		t.Errorf("got %v, want %v", err, k.broken)
	}
	if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-2", Payload: []byte("x"), Exporter: here, At: noon}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("unknown device: got %v, want %v", err, fleet.ErrNotFound)
	}
	if len(k.sent) != 0 || k.d.Trust != fleet.Pending {
		t.Errorf("got %+v sent, trust %s", k.sent, k.d.Trust)
	}
}

// TestClock lets hours pass: who is connected is challenged about every interval, who shows nothing for
// twice as long is stale, online or not.
func TestClock(t *testing.T) {
	for _, offline := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			changed := 0
			k := &desk{d: fleet.Device{ID: "dev-1", Trust: fleet.Attested, AttestedAt: time.Now()}, exporter: here, offline: offline}
			v := verifier.New(verifier.Options{
				Store: k, Link: k, Every: 15 * time.Minute, Changed: func(fleet.Device) { changed++ }, Log: slog.New(slog.DiscardHandler),
			})
			ctx, cancel := context.WithTimeout(t.Context(), 29*time.Minute)
			defer cancel()
			if err := v.Run(ctx); err != nil {
				t.Fatal(err)
			}
			if k.d.Trust != fleet.Attested || changed != 0 {
				t.Errorf("before twice the interval: got %s", k.d.Trust)
			}
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Hour)
			defer cancel()
			if err := v.Run(ctx); err != nil {
				t.Fatal(err)
			}
			if k.d.Trust != fleet.Stale || changed != 1 {
				t.Errorf("afterwards: got %s, told %d times, want stale, once", k.d.Trust, changed)
			}
			if n := len(k.sent); (offline && n != 0) || (!offline && (n < 32 || n > 56)) {
				t.Errorf("offline %v: got %d challenges in 10 hours", offline, n)
			}
		})
	}
}

func FuzzAppraise(f *testing.F) {
	b, err := wire.Encode(&wire.EvidenceReport{
		Head: wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1}, Quoted: []byte("q"), Signature: []byte("s"), Seq: 1, AgentVersion: "1",
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, payload []byte) {
		v, k := newVerifier([]byte("no key"), nil)
		if err := v.Appraise(t.Context(), verifier.Evidence{Device: "dev-1", Payload: payload, Exporter: here, At: noon}); err != nil {
			t.Fatal(err)
		}
		if k.d.Trust != fleet.Quarantined || k.last().Verdict != "quarantined" {
			t.Errorf("got %s, %+v", k.d.Trust, k.last())
		}
	})
}
