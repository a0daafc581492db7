package verifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
)

// Checks that are not about the quote; their names are stable.
const (
	checkReset      = "tpm.reset-count"
	checkFirmware   = "tpm.firmware"
	checkRevoked    = "identity.revoked"
	checkRestricted = "identity.restricted"
	checkNoLog      = "boot.no-log"
)

const maxFindings = 16 // as the contract allows in one verdict

// Evidence is one EvidenceReport and the connection it came by.
type Evidence struct {
	Device     fleet.DeviceID
	Payload    []byte
	Exporter   []byte
	Restricted bool // the connection opens nothing but quarantine, whatever the evidence says
	At         time.Time
}

// outcome is what an appraisal says and what has to be noted beside it.
type outcome struct {
	fleet.Attestation
	release string       // for the device; of steady evidence, what it was accepted for
	needLog bool         // no verdict yet: the log is asked for
	judged  bool         // by registers and log, and not by what was said before
	unknown []boot.Event // firmware events that nobody has decided about
	nextAK  []byte       // the key that signed, when it takes the place of the one on file
}

// errCrowd closes the connection.
var errCrowd = errors.New("the device shows much more evidence than it is asked for")

// Appraise judges e, records the outcome and tells the device. The error is
// one of the store, and then nothing was told; evidence that does not hold is
// an outcome, not an error.
func (v *Verifier) Appraise(ctx context.Context, e Evidence) error {
	if v.crowds(e.Device, e.At) {
		return fmt.Errorf("appraise %s: %w", e.Device, errCrowd)
	}
	d, err := v.o.Devices.DeviceByID(ctx, e.Device)
	if err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	age := v.books.age(d.Model)
	o, err := v.judge(ctx, d, e)
	if err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	if o.needLog {
		if err := v.ask(d.ID, true); err != nil {
			v.o.Log.Info("device left before it was asked for its event log", slog.String("device", string(d.ID)), slog.Any("err", err))
		}
		return nil
	}
	if e.Restricted {
		o.restrict()
	}
	o.waive(d.Waiver, e.At)
	if err := v.record(ctx, d, &o); err != nil {
		return fmt.Errorf("appraise %s: %w", e.Device, err)
	}
	v.settle(o, d.Model, v.books.age(d.Model) != age)
	if err := v.tell(e, o); err != nil {
		return fmt.Errorf("verdict for %s: %w", d.ID, err)
	}
	d.Trust, d.Findings, d.TrustReasons = o.Trust, o.Findings, reasons(o.Findings)
	v.o.Changed(d)
	return nil
}

// judge checks evidence against what is on file. An error is one of the store.
func (v *Verifier) judge(ctx context.Context, d fleet.Device, e Evidence) (outcome, error) {
	o := outcome{Attestation: fleet.Attestation{Device: d.ID, At: e.At, ResetCount: d.ResetCount}}
	if !d.RevokedAt.IsZero() {
		return o.refuse(revoked(d)), nil
	}
	m, err := wire.Decode[wire.EvidenceReport](e.Payload)
	if err != nil {
		return o.refuse(fault(checkMalformed, "the evidence cannot be read: %v", err)), nil
	}
	q, f := openQuote(d.AKPublic, m.Quoted, m.Signature)
	if f != nil && len(d.NextAK) > 0 {
		if next, nf := openQuote(d.NextAK, m.Quoted, m.Signature); nf == nil {
			q, f, o.nextAK = next, nil, d.NextAK
		}
	}
	if f == nil && len(m.PCRs) > 0 {
		f = q.covers(m.PCRs)
	}
	if f != nil {
		o.nextAK = nil
		return o.refuse(f), nil
	}
	asked, f := v.fresh(e, q.extra, m.Seq)
	if f != nil {
		o.nextAK = nil
		return o.refuse(f), nil
	}
	if q.reset < d.ResetCount {
		return o.refuse(fell(d.ResetCount, q.reset)), nil
	}
	if f := v.sameBoot(d, q); f != nil {
		return o.refuse(f), nil
	}
	o.ResetCount, o.Digest = q.reset, q.digest
	return o, v.weigh(ctx, d, m, asked, &o)
}

// weigh judges the boot behind a quote that holds.
func (v *Verifier) weigh(ctx context.Context, d fleet.Device, m wire.EvidenceReport, asked bool, o *outcome) error {
	if len(m.PCRs) == 0 {
		known, err := v.known(ctx, d, o)
		if err != nil || known {
			return err
		}
		if asked { // twice is enough
			o.Trust, o.Findings = fleet.Quarantined, []fleet.Finding{*fault(checkNoLog, "the device was asked for its event log and answered without: update the agent, or look at what keeps it from reading the log")}
			return nil
		}
		o.needLog = true
		return nil
	}
	verdict, err := v.judgeBoot(ctx, d, m.PCRs, m.Log)
	if err != nil {
		return err
	}
	o.Trust, o.Findings, o.unknown = verdict.trust, verdict.findings, verdict.unknown
	o.Release, o.release, o.judged = verdict.release, verdict.release, true
	return nil
}

// known reports whether the boot is the one that was accepted last, and then
// says of it what was said. The store forgets an accepted boot when what it was
// judged by changes.
func (v *Verifier) known(ctx context.Context, d fleet.Device, o *outcome) (bool, error) {
	if len(d.BootDigest) == 0 || !bytes.Equal(d.BootDigest, o.Digest) || o.ResetCount != d.ResetCount || v.wants(d.ID) {
		return false, nil
	}
	if d.Trust != fleet.Attested && d.Trust != fleet.Degraded && d.Trust != fleet.Stale {
		return false, nil
	}
	refs, err := v.books.references(ctx, d.Model)
	if err != nil {
		return false, err
	}
	unjudged := len(d.Findings) > 0 && d.Findings[0].Check == checkUnjudged
	switch {
	case unjudged != (len(refs) == 0): // releases began to say how this model boots
		return false, nil
	case unjudged:
		verdict := v.unjudged(d.Model)
		o.Trust, o.Findings = verdict.trust, verdict.findings
	case len(d.Findings) > 0:
		o.Trust, o.Findings = fleet.Degraded, d.Findings
	default:
		o.Trust = fleet.Attested
	}
	o.release = d.BootRelease
	return true, nil
}

// wants reports whether the device has to show its log the next time.
func (v *Verifier) wants(id fleet.DeviceID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.of(id).full
}

// refuse ends an appraisal with what one check says.
func (o outcome) refuse(f *fleet.Finding) outcome {
	o.Trust, o.Findings = fleet.Quarantined, []fleet.Finding{*f}
	return o
}

// restrict keeps the device in quarantine by what its connection is.
func (o *outcome) restrict() {
	f := fault(checkRestricted, "this connection opens nothing but quarantine: the device came with its recovery certificate, or it is being given up")
	o.Trust, o.Findings = fleet.Quarantined, append([]fleet.Finding{*f}, o.Findings...)
}

// waive lets a device in on somebody's word, until a date. A word stands
// against what a release says of a boot; against a quote that proves nothing,
// or an identity, there is none.
func (o *outcome) waive(w fleet.Waiver, now time.Time) {
	if o.Trust != fleet.Quarantined || !w.Covers(now) {
		return
	}
	for _, f := range o.Findings {
		if !strings.HasPrefix(f.Check, "boot.") {
			return
		}
	}
	o.Trust, o.Until = fleet.Degraded, w.Until
}

// record notes the outcome, and in the trail of the service when it says
// something else than the one before.
func (v *Verifier) record(ctx context.Context, d fleet.Device, o *outcome) error {
	o.Findings = o.Findings[:min(len(o.Findings), maxFindings)]
	if o.nextAK != nil {
		if err := v.o.Devices.PromoteAK(ctx, d.ID, o.nextAK); err != nil {
			return err
		}
	}
	if len(o.unknown) > 0 {
		if err := v.o.Firmware.SeeFirmware(ctx, d.Tenant, d.Model, d.ID, sightings(d, o.At, o.unknown)); err != nil {
			return err
		}
	}
	var said []fleet.AuditEvent
	if news(d, o.Attestation) {
		said = append(said, event(d, *o))
	}
	err := v.o.Devices.Appraised(ctx, o.Attestation, false, said...)
	if errors.Is(err, fleet.ErrRevoked) { // in this very moment, and noted by who did it
		*o = o.refuse(revoked(d))
		return nil
	}
	return err
}

// event is what the trail of the service says of an outcome.
func event(d fleet.Device, o outcome) fleet.AuditEvent {
	ev := fleet.AuditEvent{
		Tenant: d.Tenant, At: o.At, Kind: "attest." + string(o.Trust), Severity: "info", Actor: "verifier", Subject: string(d.ID), Detail: map[string]string{},
	}
	switch o.Trust {
	case fleet.Quarantined:
		ev.Severity = "alarm"
	case fleet.Degraded:
		ev.Severity = "warn"
	}
	put := func(k, val string) {
		if val != "" {
			ev.Detail[k] = val
		}
	}
	put("release", o.Release)
	if len(o.Findings) > 0 {
		f := o.Findings[0]
		put("check", f.Check)
		put("pcr", f.PCR)
		put("event", f.Event)
		put("reason", f.Text)
		if o.Release == "" {
			put("release", f.Release)
		}
	}
	if !o.Until.IsZero() {
		put("until", o.Until.UTC().Format(time.RFC3339))
		put("waived_by", d.Waiver.By)
	}
	return ev
}

// news reports whether a says something else of d than was said before: another
// trust, or that another check spoke first.
func news(d fleet.Device, a fleet.Attestation) bool {
	if a.Trust != d.Trust || (len(a.Findings) == 0) != (len(d.Findings) == 0) {
		return true
	}
	return len(a.Findings) > 0 && (a.Findings[0].Check != d.Findings[0].Check || a.Findings[0].Event != d.Findings[0].Event)
}

// tell sends the verdict to the connection that the evidence came by.
func (v *Verifier) tell(e Evidence, o outcome) error {
	c := wire.Challenge{
		V: wire.Version, Verdict: string(o.Trust), Reasons: reasons(o.Findings), Release: o.release, Actions: actions(o.Attestation),
	}
	for _, f := range o.Findings {
		c.Findings = append(c.Findings, wire.Finding{Check: f.Check, PCR: f.PCR, Event: f.Event, Release: f.Release, Text: f.Text})
	}
	if !o.Until.IsZero() {
		c.Until = o.Until.UnixMilli()
	}
	verdict, err := wire.Encode(&c)
	if err != nil {
		return err
	}
	if err := v.o.Link.Verdict(e.Device, e.Exporter, o.Trust, verdict); err != nil {
		v.o.Log.Info("device left before its verdict", slog.String("device", string(e.Device)), slog.Any("err", err))
	}
	return nil
}

// actions are what a device may do to be trusted again.
func actions(a fleet.Attestation) []string {
	switch a.Trust {
	case fleet.Attested:
		return nil
	case fleet.Degraded:
		return []string{wire.ActionDiagnose, wire.ActionUpdate}
	}
	for _, f := range a.Findings {
		if f.Check == checkReset || f.Check == checkFirmware || f.Check == checkSignature {
			return []string{wire.ActionDiagnose, wire.ActionEnrol}
		}
	}
	return []string{wire.ActionDiagnose, wire.ActionUpdate, wire.ActionReboot}
}

func reasons(findings []fleet.Finding) (out []string) {
	for _, f := range findings {
		out = append(out, f.Text)
	}
	return out
}

func revoked(d fleet.Device) *fleet.Finding {
	if d.RevokedWhy == "" {
		return fault(checkRevoked, "the identity of this device was revoked")
	}
	return fault(checkRevoked, "the identity of this device was revoked: %s", d.RevokedWhy)
}

// fault is what one check says against evidence.
func fault(check, format string, args ...any) *fleet.Finding {
	return &fleet.Finding{Check: check, Text: clip(fmt.Sprintf(format, args...))}
}

// clip fits a sentence into the limits of the contract.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 400)], "") }
