// Package verifier appraises the evidence devices show: is this the TPM that
// enrolled, on this very connection, in a state that may be trusted
// [RFC 9334].
//
// It promises that a device is attested only by evidence it made for the
// connection it came by, or for a challenge of ours that nothing else has
// answered, and that no evidence counts twice. Silence is stale, never failed,
// and heals by itself. What is expected of the quoted registers is behind
// Reference; without reference values the registers are quoted and not judged.
package verifier

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
)

// Store is what the verifier reads and writes; cloud/internal/store fits.
type Store interface {
	DeviceByID(ctx context.Context, id fleet.DeviceID) (fleet.Device, error)
	SetTrust(ctx context.Context, id fleet.DeviceID, trust fleet.Trust, reasons []string, at time.Time, resetCount uint32) error
	MarkStale(ctx context.Context, before time.Time) ([]fleet.Device, error)
	Audit(ctx context.Context, ev fleet.AuditEvent) error
}

// Link reaches devices; cloud/internal/broker fits.
type Link interface {
	Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	Verdict(device fleet.DeviceID, exporter []byte, trust fleet.Trust, payload []byte) error
	Connected() map[fleet.DeviceID]fleet.Trust
}

// Options of a Verifier.
type Options struct {
	Store Store
	Link  Link
	Every time.Duration // between challenges of a connected device; must not be 0
	// Reference says what is wrong with a verified quote, in sentences an
	// operator understands; nil or no reasons: nothing.
	Reference func(d fleet.Device, pcrs [][]byte) []string
	Changed   func(d fleet.Device) // after each appraisal, and when silence made a device stale
	Log       *slog.Logger
}

// Verifier holds the challenges that are open.
type Verifier struct {
	o Options

	mu       sync.Mutex
	standing map[fleet.DeviceID]*standing
}

// standing is what is known of a device while it is connected.
type standing struct {
	nonces   [][]byte  // of open challenges, newest last
	due      time.Time // of the next challenge
	exporter []byte    // of the connection that showed evidence last
	seq      uint64    // of that evidence
}

const (
	nonceLen   = 32
	openNonces = 2 // a challenge on request may cross one by the clock
	nextAsked  = 4 // a device that is not trusted is asked this many times as often
)

// New returns a Verifier; Run issues its challenges.
func New(o Options) *Verifier {
	return &Verifier{o: o, standing: make(map[fleet.DeviceID]*standing)}
}

// Evidence is one EvidenceReport and the connection it came by.
type Evidence struct {
	Device   fleet.DeviceID
	Payload  []byte
	Exporter []byte
	At       time.Time
}

// Appraise judges e, records the outcome and tells the device. The error is
// one of the store; evidence that does not hold is an outcome, not an error.
func (v *Verifier) Appraise(ctx context.Context, e Evidence) error {
	d, err := v.o.Store.DeviceByID(ctx, e.Device)
	if err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	trust, reset := fleet.Attested, d.ResetCount
	q, reasons := v.judge(d, e)
	if len(reasons) > 0 {
		trust = fleet.Quarantined
	} else {
		reset = q.reset
	}
	if err := v.o.Store.SetTrust(ctx, d.ID, trust, reasons, e.At, reset); err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	if trust != d.Trust {
		ev := fleet.AuditEvent{Tenant: d.Tenant, At: e.At, Kind: "attest." + string(trust), Severity: "info", Actor: "verifier", Subject: string(d.ID)}
		if len(reasons) > 0 {
			ev.Severity, ev.Detail = "alarm", map[string]string{"reason": reasons[0]}
		}
		if err := v.o.Store.Audit(ctx, ev); err != nil {
			return fmt.Errorf("appraise %s: %w", e.Device, err)
		}
	}
	v.settle(d.ID, trust, e.At)
	verdict, err := wire.Encode(&wire.Challenge{V: wire.Version, Verdict: string(trust), Reasons: reasons})
	if err != nil {
		return fmt.Errorf("verdict for %s: %w", d.ID, err)
	}
	if err := v.o.Link.Verdict(d.ID, e.Exporter, trust, verdict); err != nil {
		v.o.Log.Info("device left before its verdict", slog.String("device", string(d.ID)), slog.Any("err", err))
	}
	d.Trust, d.TrustReasons = trust, reasons
	v.o.Changed(d)
	return nil
}

// judge checks evidence against what is on file and returns what is wrong with
// it, in sentences that fit into a verdict.
func (v *Verifier) judge(d fleet.Device, e Evidence) (quote, []string) {
	q, pcrs, err := v.prove(d, e)
	if err != nil {
		return quote{}, []string{clip(err.Error())}
	}
	if v.o.Reference == nil {
		return q, nil
	}
	reasons := v.o.Reference(d, pcrs)
	for i, r := range reasons {
		reasons[i] = clip(r)
	}
	return q, reasons[:min(len(reasons), 16)]
}

// clip fits a sentence into the limits of the contract.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 400)], "?") }

// prove checks that e is a fresh quote of the TPM that enrolled as d, made for
// the connection or the challenge it is shown on.
func (v *Verifier) prove(d fleet.Device, e Evidence) (quote, [][]byte, error) {
	m, err := wire.Decode[wire.EvidenceReport](e.Payload)
	if err != nil {
		return quote{}, nil, fmt.Errorf("evidence cannot be read: %w", err)
	}
	q, f := openQuote(d.AKPublic, m.Quoted, m.Signature)
	if f == nil && len(m.PCRs) > 0 {
		f = q.covers(m.PCRs)
	}
	if f != nil {
		return quote{}, nil, errors.New(f.Text)
	}
	if !v.bound(d.ID, q.extra, e.Exporter, m.Seq) {
		return quote{}, nil, errors.New("evidence is bound to another connection or to a challenge that is not open")
	}
	if !v.advance(d.ID, e.Exporter, m.Seq) {
		return quote{}, nil, fmt.Errorf("evidence %d of this connection was shown before", m.Seq)
	}
	if q.reset < d.ResetCount {
		return quote{}, nil, fmt.Errorf("the TPM's reset count fell from %d to %d: it was cleared, enrol the device again", d.ResetCount, q.reset)
	}
	return q, m.PCRs, nil
}

// bound reports whether extra binds a quote to the connection or to an open
// challenge, which is answered by it.
func (v *Verifier) bound(id fleet.DeviceID, extra, exporter []byte, seq uint64) bool {
	is := func(secret []byte) bool {
		b := enrol.ConnBinding(string(id), secret, seq)
		return len(secret) == nonceLen && bytes.Equal(b[:], extra)
	}
	if is(exporter) {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.of(id)
	n := len(s.nonces)
	s.nonces = slices.DeleteFunc(s.nonces, is)
	return len(s.nonces) < n
}

// advance notes the sequence of evidence; false when it does not count up
// within its connection.
func (v *Verifier) advance(id fleet.DeviceID, exporter []byte, seq uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.of(id)
	if bytes.Equal(s.exporter, exporter) && seq <= s.seq {
		return false
	}
	s.exporter, s.seq = exporter, seq
	return true
}

// settle notes when the device is due again.
func (v *Verifier) settle(id fleet.DeviceID, trust fleet.Trust, at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	every := v.o.Every
	if trust != fleet.Attested && trust != fleet.Degraded {
		every /= nextAsked
	}
	v.of(id).due = at.Add(jitter(every))
}

// of returns the standing of a device; the caller holds the lock.
func (v *Verifier) of(id fleet.DeviceID) *standing {
	s := v.standing[id]
	if s == nil {
		s = &standing{}
		v.standing[id] = s
	}
	return s
}

// jitter spreads a fleet that reconnected at one moment: 0.75 to 1.25 of d.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + mrand.N(d/2+1) //nolint:gosec // jitter, not a secret
}

// Run challenges connected devices when they are due, and marks as stale every
// device without good evidence for twice the interval.
func (v *Verifier) Run(ctx context.Context) error {
	tick := time.NewTicker(max(v.o.Every/20, 200*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			v.round(ctx, time.Now())
		}
	}
}

// round looks at every device once.
func (v *Verifier) round(ctx context.Context, now time.Time) {
	for _, id := range v.due(now) {
		if err := v.Challenge(id); err != nil {
			v.o.Log.Debug("challenge not sent", slog.String("device", string(id)), slog.Any("err", err))
		}
	}
	silent, err := v.o.Store.MarkStale(ctx, now.Add(-2*v.o.Every))
	if err != nil && ctx.Err() == nil {
		v.o.Log.Error("mark silent devices stale", slog.Any("err", err))
	}
	for _, d := range silent {
		v.o.Log.Info("no evidence, device is stale", slog.String("device", string(d.ID)))
		v.o.Changed(d)
	}
}

// due returns whom to challenge and forgets who has gone.
func (v *Verifier) due(now time.Time) (due []fleet.DeviceID) {
	connected := v.o.Link.Connected()
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.standing {
		if _, here := connected[id]; !here {
			delete(v.standing, id)
		}
	}
	for id := range connected {
		s := v.of(id)
		if s.due.IsZero() { // has shown nothing yet
			s.due = now.Add(jitter(v.o.Every / nextAsked))
		}
		if now.After(s.due) {
			s.due = now.Add(jitter(v.o.Every))
			due = append(due, id)
		}
	}
	return due
}

// Challenge asks a connected device for evidence now.
func (v *Verifier) Challenge(id fleet.DeviceID) error {
	nonce := make([]byte, nonceLen)
	_, _ = rand.Read(nonce) // never fails [crypto/rand]
	b, err := wire.Encode(&wire.Challenge{V: wire.Version, Nonce: nonce})
	if err != nil {
		return fmt.Errorf("challenge %s: %w", id, err)
	}
	v.mu.Lock()
	s := v.of(id)
	s.nonces = append(s.nonces[max(0, len(s.nonces)-openNonces+1):], nonce)
	v.mu.Unlock()
	if err := v.o.Link.Send(id, wire.DownChallenge, b); err != nil {
		return fmt.Errorf("challenge %s: %w", id, err)
	}
	return nil
}
