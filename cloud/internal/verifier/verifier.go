// Package verifier appraises the evidence devices show: is this the TPM that
// enrolled, on this very connection, in a state that may be trusted
// [RFC 9334].
//
// It promises that a device is attested only by evidence it made for the
// connection it came by, or for a challenge of ours that nothing else has
// answered. Silence is stale, never failed, and heals by itself. What is
// expected of the quoted registers is behind Reference; without reference
// values the registers are recorded and not judged.
package verifier

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
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
	Audit(ctx context.Context, ev fleet.AuditEvent) error
}

// Link reaches devices; cloud/internal/broker fits.
type Link interface {
	Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	Verdict(device fleet.DeviceID, trust fleet.Trust, payload []byte) error
	Connected() map[fleet.DeviceID]fleet.Trust
}

// Options of a Verifier.
type Options struct {
	Store Store
	Link  Link
	Every time.Duration // between challenges of a connected device
	// Reference says what is wrong with a verified quote, in sentences an
	// operator understands; nil or no reasons: nothing.
	Reference func(d fleet.Device, q enrol.Quoted, pcrs [][]byte) []string
	Changed   func(d fleet.Device)
	Log       *slog.Logger
}

// Verifier holds the challenges that are open.
type Verifier struct {
	o Options

	mu   sync.Mutex
	open map[fleet.DeviceID]*standing
}

// standing is what is known of a device while it is connected.
type standing struct {
	nonce []byte    // of the open challenge
	due   time.Time // next challenge
	last  time.Time // evidence accepted
}

// New returns a Verifier; Run issues its challenges.
func New(o Options) *Verifier {
	return &Verifier{o: o, open: make(map[fleet.DeviceID]*standing)}
}

// Evidence is one EvidenceReport and the connection it came by.
type Evidence struct {
	Device   fleet.DeviceID
	Tenant   fleet.TenantID
	Payload  []byte
	Exporter []byte
	At       time.Time
}

// Appraise judges e, records the outcome and tells the device. The error is
// one of store or link; evidence that does not hold is an outcome, not an
// error.
func (v *Verifier) Appraise(ctx context.Context, e Evidence) error {
	d, err := v.o.Store.DeviceByID(ctx, e.Device)
	if err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	trust, reasons, reset := v.judge(d, e)
	if err := v.o.Store.SetTrust(ctx, d.ID, trust, reasons, e.At, reset); err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	if trust != d.Trust {
		ev := fleet.AuditEvent{At: e.At, Kind: "attest." + string(trust), Severity: "info", Actor: "verifier", Subject: string(d.ID)}
		if len(reasons) > 0 {
			ev.Severity = "alarm"
			ev.Detail = map[string]string{"reason": fmt.Sprintf("%.400s", reasons[0])}
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
	if err := v.o.Link.Verdict(d.ID, trust, verdict); err != nil {
		v.o.Log.Info("device left before its verdict", slog.String("device", string(d.ID)))
	}
	d.Trust, d.TrustReasons = trust, reasons
	v.o.Changed(d)
	return nil
}

// judge checks evidence against what is on file.
func (v *Verifier) judge(d fleet.Device, e Evidence) (trust fleet.Trust, reasons []string, reset uint32) {
	quarantine := func(format string, args ...any) (fleet.Trust, []string, uint32) {
		return fleet.Quarantined, []string{fmt.Sprintf(format, args...)}, d.ResetCount
	}
	m, err := wire.Decode[wire.EvidenceReport](e.Payload)
	if err != nil {
		return quarantine("evidence could not be read: %v", err)
	}
	secret := e.Exporter
	if len(m.Nonce) > 0 {
		if !v.redeem(d.ID, m.Nonce) {
			return quarantine("evidence answers a challenge that is not open")
		}
		secret = m.Nonce
	}
	q, err := enrol.VerifyQuote(d.AKPublic, m.Quoted, m.Signature, m.PCRs, enrol.ConnBinding(string(d.ID), secret, m.Seq))
	if err != nil {
		return quarantine("quote: %v", err)
	}
	if q.ResetCount < d.ResetCount {
		return quarantine("the TPM's reset count fell from %d to %d: it was cleared, enrol the device again", d.ResetCount, q.ResetCount)
	}
	if v.o.Reference != nil {
		reasons = v.o.Reference(d, q, m.PCRs)
	}
	if len(reasons) > 0 {
		return fleet.Quarantined, reasons, q.ResetCount
	}
	return fleet.Attested, nil, q.ResetCount
}

// redeem takes the device's open challenge if nonce is its.
func (v *Verifier) redeem(id fleet.DeviceID, nonce []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.open[id]
	if s == nil || s.nonce == nil || !bytes.Equal(s.nonce, nonce) {
		return false
	}
	s.nonce = nil
	return true
}

// settle notes when the device is due again; a wrong answer is due soon.
func (v *Verifier) settle(id fleet.DeviceID, trust fleet.Trust, at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.open[id]
	if s == nil {
		s = &standing{}
		v.open[id] = s
	}
	s.due = at.Add(jitter(v.o.Every))
	if trust == fleet.Attested || trust == fleet.Degraded {
		s.last = at
	}
}

// jitter spreads a fleet that reconnected at one moment: 0.75 to 1.25 of d.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + mrand.N(d/2+1) //nolint:gosec // jitter, not a secret
}

// Run challenges connected devices when they are due, and marks as stale those
// that stayed silent for twice the interval.
func (v *Verifier) Run(ctx context.Context) error {
	tick := time.NewTicker(max(v.o.Every/20, 200*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			v.round(ctx, now)
		}
	}
}

// round looks at every connected device once.
func (v *Verifier) round(ctx context.Context, now time.Time) {
	connected := v.o.Link.Connected()
	v.mu.Lock()
	var due, silent []fleet.DeviceID
	for id := range v.open {
		if _, here := connected[id]; !here {
			delete(v.open, id)
		}
	}
	for id, trust := range connected {
		s := v.open[id]
		if s == nil { // has not shown anything yet on this connection
			v.open[id] = &standing{due: now.Add(v.o.Every), last: now}
			continue
		}
		if now.Sub(s.last) > 2*v.o.Every && (trust == fleet.Attested || trust == fleet.Degraded) {
			silent = append(silent, id)
		}
		if now.After(s.due) {
			s.nonce = make([]byte, 32)
			_, _ = rand.Read(s.nonce) // never fails [crypto/rand]
			s.due = now.Add(jitter(v.o.Every))
			due = append(due, id)
		}
	}
	v.mu.Unlock()
	for _, id := range due {
		v.challenge(id)
	}
	for _, id := range silent {
		v.stale(ctx, id, now)
	}
}

func (v *Verifier) challenge(id fleet.DeviceID) {
	v.mu.Lock()
	var nonce []byte
	if s := v.open[id]; s != nil {
		nonce = s.nonce
	}
	v.mu.Unlock()
	if nonce == nil {
		return
	}
	b, err := wire.Encode(&wire.Challenge{V: wire.Version, Nonce: nonce})
	if err == nil {
		err = v.o.Link.Send(id, wire.DownChallenge, b)
	}
	if err != nil {
		v.o.Log.Debug("challenge not sent", slog.String("device", string(id)), slog.Any("err", err))
	}
}

// stale withdraws trust from a device that does not answer; its next good
// evidence restores it.
func (v *Verifier) stale(ctx context.Context, id fleet.DeviceID, now time.Time) {
	d, err := v.o.Store.DeviceByID(ctx, id)
	if err != nil || d.Trust == fleet.Stale {
		return
	}
	reasons := []string{"no evidence for " + (2 * v.o.Every).String()}
	if err := v.o.Store.SetTrust(ctx, id, fleet.Stale, reasons, now, d.ResetCount); err != nil {
		v.o.Log.Error("mark device stale", slog.String("device", string(id)), slog.Any("err", err))
		return
	}
	d.Trust, d.TrustReasons = fleet.Stale, reasons
	v.o.Changed(d)
}
