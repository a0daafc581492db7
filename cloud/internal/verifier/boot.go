package verifier

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/boot"
)

// Checks about the release that a boot belongs to.
const (
	checkUnjudged   = "boot.unjudged"
	checkOldRelease = "boot.old-release"
	checkNotOffered = "boot.not-offered"
	checkReplay     = "boot.log-replay"
)

// verdict is what a boot is worth.
type verdict struct {
	trust    fleet.Trust
	release  string // whose reference values it has
	findings []fleet.Finding
	unknown  []boot.Event
}

// judgeBoot measures a boot against the release that the device runs and the
// one it was offered; before it has committed to one, against all of its model.
func (v *Verifier) judgeBoot(ctx context.Context, d fleet.Device, pcrs [][]byte, log []byte) (verdict, error) {
	refs, err := v.books.references(ctx, d.Model)
	if err != nil {
		return verdict{}, err
	}
	if len(refs) == 0 {
		return v.unjudged(d.Model), nil
	}
	raw, f := unpack(log)
	if f != nil {
		return verdict{trust: fleet.Quarantined, findings: []fleet.Finding{*f}}, nil
	}
	decide, err := v.books.decisions(ctx, d.Tenant, d.Model)
	if err != nil {
		return verdict{}, err
	}
	good := refs
	if d.BootRelease != "" {
		offered, err := v.o.Firmware.OfferedRelease(ctx, d.ID)
		if err != nil && !errors.Is(err, fleet.ErrNotFound) {
			return verdict{}, err
		}
		good = slices.DeleteFunc(slices.Clone(refs), func(r boot.Reference) bool { return r.Release != d.BootRelease && r.Release != string(offered) })
	}
	res := boot.Appraise(good, decide, pcrs, raw)
	out := of(res)
	if out.trust == fleet.Quarantined && len(good) < len(refs) {
		if f := elsewhere(refs, good, d.BootRelease, decide, pcrs, raw); f != nil {
			return verdict{trust: fleet.Quarantined, findings: []fleet.Finding{*f}}, nil
		}
	}
	return out, nil
}

// elsewhere finds out whether a boot that is not good for a device is that of
// another release: one that it has left behind, or that nobody offered it.
// References are in the order in which they were published.
func elsewhere(refs, good []boot.Reference, running string, decide func(int, string) boot.Decision, pcrs [][]byte, log []byte) *fleet.Finding {
	at := slices.IndexFunc(refs, func(r boot.Reference) bool { return r.Release == running })
	for i, r := range refs {
		// A reference without a policy would fit every boot.
		if len(r.Policy) == 0 || slices.ContainsFunc(good, func(g boot.Reference) bool { return g.Release == r.Release }) {
			continue
		}
		res := boot.Appraise([]boot.Reference{r}, decide, pcrs, log)
		if res.Trust == boot.Quarantined {
			continue
		}
		f := fault(checkNotOffered, "the device booted %s, which it was not offered; it runs %s: offer it the release, or boot the other slot", r.Release, running)
		if i < at {
			f = fault(checkOldRelease, "the device booted %s, older than %s which it has committed to: old releases have old holes, update it", r.Release, running)
		}
		f.Release = r.Release
		return f
	}
	return nil
}

// unjudged is the verdict on a boot of a model of which no release says
// anything.
func (v *Verifier) unjudged(model string) verdict {
	return verdict{trust: v.o.Unjudged, findings: []fleet.Finding{*fault(checkUnjudged,
		"no release says how model %.64q boots, so its registers are quoted and not judged: publish boot reference values with a release", model)}}
}

// AppraiseBoot measures the boot of an applicant, which is no device yet,
// against every release of its model. tenant is whose decisions about firmware
// hold. The quote over pcrs has been verified; log is packed. An error is one
// of the store.
func (v *Verifier) AppraiseBoot(ctx context.Context, model, tenant string, pcrs [][]byte, log []byte) (boot.Result, error) {
	return v.appraiseBoot(ctx, fleet.Device{Model: model, Tenant: fleet.TenantID(tenant)}, pcrs, log)
}

// AppraiseMember measures the boot of a device as Appraise does: against the
// release that it runs and the one it was offered, and by a waiver that holds.
func (v *Verifier) AppraiseMember(ctx context.Context, id fleet.DeviceID, pcrs [][]byte, log []byte) (boot.Result, error) {
	d, err := v.o.Devices.DeviceByID(ctx, id)
	if err != nil {
		return boot.Result{}, fmt.Errorf("appraise the boot of %s: %w", id, err)
	}
	return v.appraiseBoot(ctx, d, pcrs, log)
}

func (v *Verifier) appraiseBoot(ctx context.Context, d fleet.Device, pcrs [][]byte, log []byte) (boot.Result, error) {
	out, err := v.judgeBoot(ctx, d, pcrs, log)
	if err != nil {
		return boot.Result{}, fmt.Errorf("appraise the boot of a %.64q: %w", d.Model, err)
	}
	o := outcome{Attestation: fleet.Attestation{Trust: out.trust, Findings: out.findings}}
	o.waive(d.Waiver, time.Now())
	res := boot.Result{Trust: string(o.Trust), Release: out.release, Unknown: out.unknown}
	for _, f := range out.findings {
		res.Findings = append(res.Findings, boot.Finding{Check: f.Check, PCR: f.PCR, Event: f.Event, Release: f.Release, Text: f.Text})
	}
	return res, nil
}

func unpack(log []byte) ([]byte, *fleet.Finding) {
	if len(log) == 0 {
		return nil, nil
	}
	raw, err := boot.Unpack(log)
	if err != nil {
		return nil, fault(checkReplay, "the event log cannot be read: %v", err)
	}
	return raw, nil
}

func of(res boot.Result) verdict {
	out := verdict{trust: fleet.Trust(res.Trust), release: res.Release, unknown: res.Unknown}
	for _, f := range res.Findings {
		out.findings = append(out.findings, fleet.Finding{Check: f.Check, PCR: f.PCR, Event: f.Event, Release: f.Release, Text: clip(f.Text)})
	}
	return out
}

func sightings(d fleet.Device, at time.Time, events []boot.Event) []fleet.FirmwareEvent {
	out := make([]fleet.FirmwareEvent, len(events))
	for i, e := range events {
		out[i] = fleet.FirmwareEvent{
			Tenant: d.Tenant, Model: d.Model, PCR: e.PCR, Digest: hex.EncodeToString(e.Digest[:]), What: e.What, First: d.ID, FirstAt: at, State: fleet.ApprovalOpen,
		}
	}
	return out
}

// books are the references of models and the decisions about their firmware,
// read once and kept until they are forgotten.
type books struct {
	firmware Firmware

	mu      sync.Mutex
	refs    map[string][]boot.Reference // by model, as they were published
	decided map[ownModel]map[string]fleet.Approval
	ages    map[string]int // of a model, one more at each forget
	all     int            // times everything was forgotten
}

// ownModel is a model in the hands of one tenant.
type ownModel struct {
	tenant fleet.TenantID
	model  string
}

const maxBooks = 4096 // models remembered; applicants may name any

func (b *books) init(f Firmware) {
	b.firmware, b.ages = f, make(map[string]int)
	b.clear()
}

// clear starts with empty books; the caller holds the lock, or nobody else has
// seen them.
func (b *books) clear() {
	b.refs, b.decided = make(map[string][]boot.Reference), make(map[ownModel]map[string]fleet.Approval)
}

func (b *books) forget(model string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if model == "" || len(b.ages) >= maxBooks {
		b.all++
		clear(b.ages)
		b.clear()
		return
	}
	b.ages[model]++
	delete(b.refs, model)
	for k := range b.decided {
		if k.model == model {
			delete(b.decided, k)
		}
	}
}

// age changes when something about the model was forgotten.
func (b *books) age(model string) [2]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return [2]int{b.all, b.ages[model]}
}

// keep remembers what was read of a model, unless it was to be forgotten while
// it was read.
func (b *books) keep(model string, age [2]int, set func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if age != [2]int{b.all, b.ages[model]} {
		return
	}
	if len(b.refs)+len(b.decided) >= maxBooks {
		b.clear()
	}
	set()
}

// references returns those of a model.
func (b *books) references(ctx context.Context, model string) ([]boot.Reference, error) {
	b.mu.Lock()
	refs, ok := b.refs[model]
	b.mu.Unlock()
	if ok {
		return refs, nil
	}
	age := b.age(model)
	stored, err := b.firmware.References(ctx, model)
	if err != nil {
		return nil, err
	}
	for _, s := range stored {
		r, err := boot.ParseReference(s.Body)
		if err != nil { // it was signed and parsed when it came: this is no device's fault
			return nil, fmt.Errorf("reference values of %s for %s: %w", s.Release, model, err)
		}
		refs = append(refs, r)
	}
	b.keep(model, age, func() { b.refs[model] = refs })
	return refs, nil
}

// decisions returns what a tenant has decided about the firmware of a model.
func (b *books) decisions(ctx context.Context, tenant fleet.TenantID, model string) (func(pcr int, digest string) boot.Decision, error) {
	k := ownModel{tenant, model}
	b.mu.Lock()
	decided, ok := b.decided[k]
	b.mu.Unlock()
	if !ok {
		age := b.age(model)
		var err error
		if decided, err = b.firmware.FirmwareDecisions(ctx, tenant, model); err != nil {
			return nil, err
		}
		b.keep(model, age, func() { b.decided[k] = decided })
	}
	return func(pcr int, digest string) boot.Decision {
		switch decided[strconv.Itoa(pcr)+":"+digest] {
		case fleet.ApprovalGranted:
			return boot.Approved
		case fleet.ApprovalRejected:
			return boot.Rejected
		}
		return boot.Open
	}, nil
}
