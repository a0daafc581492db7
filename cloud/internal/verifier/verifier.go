// Package verifier appraises the evidence devices show: is this the TPM that
// enrolled, on this very connection, and did it boot what a release says
// [RFC 9334].
//
// It promises that a device is attested only by evidence it made for the
// connection it came by, or for a challenge that went by it and that nothing
// else has answered, and that no evidence counts twice. A boot counts when each register
// of the policy is quoted and covered by the event log, and holds what the
// release says that the device runs or was offered. The quote alone is enough
// while the boot is the one that was accepted last; for any other the log is
// asked for. What no release knows waits for a decision, once for the model.
// Each verdict says which check spoke, about which event, against which
// release. Silence is stale, never failed, and heals by itself.
//
// Evidence waits in a queue of its own, so that a fleet that comes back at one
// moment is served in turn and nobody is sent away. It stores nothing itself,
// decides about no event and issues nothing.
//
// The package is larger than 600 lines: quote, boot and standing are one
// verdict, and none of them can be trusted without the others.
package verifier

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// Devices is what is on file of devices; cloud/internal/store fits.
type Devices interface {
	DeviceByID(ctx context.Context, id fleet.DeviceID) (fleet.Device, error)
	// Appraised notes a verdict, and ev in the service's trail, both or nothing;
	// fleet.ErrRevoked when nothing is to be noted.
	Appraised(ctx context.Context, a fleet.Attestation, committed bool, ev ...fleet.AuditEvent) error
	PromoteAK(ctx context.Context, id fleet.DeviceID, ak []byte) error
	MarkStale(ctx context.Context, before time.Time) ([]fleet.Device, error)
}

// Firmware is what is known of how models boot; cloud/internal/store fits.
type Firmware interface {
	References(ctx context.Context, model string) ([]fleet.BootReference, error)
	OfferedRelease(ctx context.Context, device fleet.DeviceID) (fleet.ReleaseID, error)
	FirmwareDecisions(ctx context.Context, t fleet.TenantID, model string) (map[string]fleet.Approval, error)
	SeeFirmware(ctx context.Context, t fleet.TenantID, model string, device fleet.DeviceID, events []fleet.FirmwareEvent) error
}

// Link reaches devices, and does not block; cloud/internal/broker fits.
type Link interface {
	// Challenge sends one and names the connection that it went by.
	Challenge(device fleet.DeviceID, payload []byte) (exporter []byte, err error)
	Verdict(device fleet.DeviceID, exporter []byte, trust fleet.Trust, payload []byte) error
	Connected() map[fleet.DeviceID]fleet.Trust
	Disconnect(device fleet.DeviceID, why string)
}

// Options of a Verifier.
type Options struct {
	Devices  Devices
	Firmware Firmware
	Link     Link
	Every    time.Duration // between challenges of a connected device; must not be 0
	// Unjudged is what a good quote earns a device of a model of which no release
	// says how it boots: attested, degraded or quarantined, which is also the
	// default.
	Unjudged fleet.Trust
	Changed  func(d fleet.Device) // after each appraisal, many at once, and when silence made a device stale
	// Appraised is told how long each appraisal took and why it could not be made; nil: nobody listens.
	Appraised func(took time.Duration, err error)
	Log       *slog.Logger
}

// Verifier holds the challenges that are open and the evidence that waits.
type Verifier struct {
	o     Options
	books books
	queue queue

	mu       sync.Mutex
	standing map[fleet.DeviceID]*standing
}

const (
	nextAsked  = 4                // a device that is not trusted is asked this many times as often
	appraising = 20 * time.Second // at most, the store included
	answering  = 2 * time.Minute  // after a waiver has ended, until the connection does
)

// New returns a Verifier; Run serves its queue and issues its challenges.
func New(o Options) *Verifier {
	if o.Unjudged == "" {
		o.Unjudged = fleet.Quarantined
	}
	v := &Verifier{o: o, standing: make(map[fleet.DeviceID]*standing)}
	v.books.init(o.Firmware)
	v.queue.init()
	return v
}

// Run appraises what is submitted, challenges connected devices when they are
// due, marks as stale every device without good evidence for twice the
// interval, and ends the connection of one that says nothing though the waiver
// that let it in is over, or though it is looked at again. What waits when ctx
// ends is not acknowledged: the devices show it again.
func (v *Verifier) Run(ctx context.Context) error {
	var g errgroup.Group
	for range workers() {
		g.Go(func() error { v.serve(); return nil })
	}
	tick := time.NewTicker(max(v.o.Every/20, 200*time.Millisecond))
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			v.round(ctx, time.Now())
		}
	}
	v.queue.close()
	return g.Wait()
}

// serve appraises until the queue is closed.
func (v *Verifier) serve() {
	for {
		w, ok := v.queue.next()
		if !ok {
			return
		}
		// Evidence that is in hand is finished, also when the service stops.
		ctx, cancel := context.WithTimeout(context.Background(), appraising)
		began := time.Now()
		err := v.Appraise(ctx, w.evidence)
		cancel()
		if v.o.Appraised != nil {
			v.o.Appraised(time.Since(began), err)
		}
		if err != nil {
			v.o.Log.Error("appraise evidence; the device shows it again", slog.String("device", string(w.evidence.Device)), slog.Any("err", err))
		}
		w.done(err)
		v.queue.finished(w)
	}
}

// round looks at every device once.
func (v *Verifier) round(ctx context.Context, now time.Time) {
	due, over := v.due(now)
	for _, id := range over {
		v.o.Link.Disconnect(id, "its waiver has ended or what counts has changed, and it shows no evidence")
	}
	for _, id := range due {
		if err := v.Challenge(id); err != nil {
			v.o.Log.Debug("challenge not sent", slog.String("device", string(id)), slog.Any("err", err))
		}
	}
	silent, err := v.o.Devices.MarkStale(ctx, now.Add(-2*v.o.Every))
	if err != nil && ctx.Err() == nil {
		v.o.Log.Error("mark silent devices stale", slog.Any("err", err))
	}
	for _, d := range silent {
		v.o.Log.Info("no evidence, device is stale", slog.String("device", string(d.ID)))
		v.o.Changed(d)
	}
}

// Challenge asks a connected device for evidence now: before something that
// only a trusted device may have, or because somebody wants to know.
func (v *Verifier) Challenge(id fleet.DeviceID) error {
	v.mu.Lock()
	full := v.of(id).wantsLog()
	v.mu.Unlock()
	return v.ask(id, full)
}

// ask sends a challenge; full asks for register values and event log too.
func (v *Verifier) ask(id fleet.DeviceID, full bool) error {
	nonce := make([]byte, secretLen)
	_, _ = rand.Read(nonce) // never fails [crypto/rand]
	c := wire.Challenge{V: wire.Version, Nonce: nonce}
	if full {
		c.Need = wire.NeedLog
	}
	b, err := wire.Encode(&c)
	if err != nil {
		return fmt.Errorf("challenge %s: %w", id, err)
	}
	v.mu.Lock() // its answer has to wait until it is open
	defer v.mu.Unlock()
	exporter, err := v.o.Link.Challenge(id, b)
	if err != nil {
		return fmt.Errorf("challenge %s: %w", id, err)
	}
	v.of(id).open(challenge{nonce: nonce, exporter: exporter, log: full})
	return nil
}

// Forget drops what is remembered of how a model boots: call it when references
// came or a decision about its firmware changed. An empty model is all.
func (v *Verifier) Forget(model string) { v.books.forget(model) }

// Reappraise forgets what is remembered of how a model boots and looks at its
// connected devices again: those that are not attested at once, the others when
// they are due. Nobody keeps by silence what he was given before: who shows
// nothing for twice the interval is cut off. It returns how many were asked.
func (v *Verifier) Reappraise(model string) (asked int) {
	v.Forget(model)
	var now []fleet.DeviceID
	connected := v.o.Link.Connected()
	v.mu.Lock()
	for id := range connected {
		s := v.of(id)
		if s.model != model { // also who has shown nothing yet, and will
			continue
		}
		if ends := time.Now().Add(2 * v.o.Every); s.ends.IsZero() || ends.Before(s.ends) {
			s.ends = ends
		}
		if s.trust == fleet.Attested {
			s.full = true
			continue
		}
		now = append(now, id)
	}
	v.mu.Unlock()
	for _, id := range now {
		if err := v.ask(id, true); err != nil {
			v.o.Log.Debug("challenge not sent", slog.String("device", string(id)), slog.Any("err", err))
			continue
		}
		asked++
	}
	return asked
}

// jitter spreads a fleet that reconnected at one moment: 0.75 to 1.25 of d.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + mrand.N(d/2+1) //nolint:gosec // jitter, not a secret
}
