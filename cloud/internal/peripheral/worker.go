package peripheral

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	pace       = 200 // devices a second, at most: a hundred thousand tills are gone through in eight minutes
	atOnce     = 50  // devices in one transaction
	sweepEvery = 5 * time.Second
	sweepMost  = 500 // printers in one transaction
	soonSure   = 0.5 // confidence of a prediction that turns a light
	retryAfter = time.Second
	// By more a clock must not run ahead of ours; what it says happened later than now happened now.
	clockAhead = 2 * time.Minute
)

// Store has what is counted, and keeps what is derived; cloud/internal/store
// fits.
type Store interface {
	Usage(ctx context.Context, device fleet.DeviceID) (fleet.Usage, error)
	Derive(ctx context.Context, all []fleet.Derived, now time.Time) ([]fleet.DeviceID, error)
	Baseline(ctx context.Context, t fleet.TenantID, model string, since int64) (fleet.ReadDay, error)
	Counting(ctx context.Context, p fleet.Page) ([]fleet.DeviceID, string, error)
	RunningOut(ctx context.Context, before time.Time, sure float64, limit int, now time.Time) ([]fleet.DeviceID, error)
}

// Options of a Worker.
type Options struct {
	Store   Store
	Soon    time.Duration // a roll that is predicted to end within it turns the light; 0: none does
	Changed func(device fleet.DeviceID)
	Log     *slog.Logger
}

// Worker derives. There is one.
type Worker struct {
	o      Options
	wake   chan struct{}
	places map[string]*time.Location // Run's own

	mu    sync.Mutex
	queue []fleet.DeviceID // of which something came
	in    map[fleet.DeviceID]bool
}

// New returns a worker that works when Run is called.
func New(o Options) *Worker {
	return &Worker{o: o, wake: make(chan struct{}, 1), in: map[fleet.DeviceID]bool{}, places: map[string]*time.Location{}}
}

// Stored is told what was stored of a device.
func (w *Worker) Stored(in fleet.Intake, out fleet.Outcome) {
	counts := out.NewSamples > 0 && slices.ContainsFunc(in.Samples, func(s fleet.Sample) bool {
		return s.Name == lineFeeds || s.Name == lines || s.Name == inserted || s.Name == resetFails
	})
	tells := out.NewEvents > 0 && slices.ContainsFunc(in.Events, func(e fleet.PeripheralEvent) bool { return slices.Contains(paperCodes, e.Code) })
	if counts || tells || out.Peripherals > 0 {
		w.put(in.Device)
	}
}

func (w *Worker) put(device fleet.DeviceID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.in[device] {
		return
	}
	w.in[device] = true
	w.queue = append(w.queue, device)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns the devices that have waited longest.
func (w *Worker) take() []fleet.DeviceID {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.queue), atOnce)
	some := slices.Clone(w.queue[:n])
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
	}
	for _, d := range some {
		delete(w.in, d)
	}
	return some
}

// Run derives until ctx ends: first of all devices, then of those of which
// something comes.
func (w *Worker) Run(ctx context.Context) error {
	for page := (fleet.Page{Limit: 1000}); ; {
		ids, next, err := w.o.Store.Counting(ctx, page)
		if err != nil {
			if ctx.Err() == nil {
				w.o.Log.Error("devices that count", slog.Any("err", err))
			}
			break
		}
		for _, id := range ids {
			w.put(id)
		}
		if page.After = next; next == "" {
			break
		}
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	for wake := (<-chan struct{})(nil); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			w.sweep(ctx)
		case <-wake:
			wake = nil
			rest.Reset(0)
		case <-rest.C:
			some := w.take()
			if len(some) == 0 {
				wake = w.wake
				continue
			}
			if err := w.derive(ctx, some); err != nil && ctx.Err() == nil && !w.each(ctx, some, err) {
				rest.Reset(retryAfter)
				continue
			}
			rest.Reset(time.Duration(len(some)) * time.Second / pace)
		}
	}
}

// each derives of some devices one by one, after all at once could not be: one
// of which it can never be must not stop the others. It is left until something
// comes of it again. When none can be, all are put back and each returns false.
func (w *Worker) each(ctx context.Context, some []fleet.DeviceID, err error) bool {
	failed := some
	if len(some) > 1 {
		failed = nil
		for _, d := range some {
			if one := w.derive(ctx, []fleet.DeviceID{d}); one != nil {
				failed, err = append(failed, d), one
			}
		}
	}
	if len(failed) == 0 || ctx.Err() != nil {
		return true
	}
	w.o.Log.Error("derive what peripherals do not say", slog.Int("devices", len(failed)), slog.Any("err", err))
	if len(failed) < len(some) {
		return true
	}
	for _, d := range failed {
		w.put(d)
	}
	return false
}

// sweep turns the light of printers that come nearer to their end by time alone.
func (w *Worker) sweep(ctx context.Context) {
	if w.o.Soon <= 0 {
		return
	}
	now := time.Now()
	changed, err := w.o.Store.RunningOut(ctx, now.Add(w.o.Soon), soonSure, sweepMost, now)
	if err != nil && ctx.Err() == nil {
		w.o.Log.Error("look for paper that ends soon", slog.Any("err", err))
	}
	for _, d := range changed {
		w.o.Changed(d)
	}
}

func (w *Worker) derive(ctx context.Context, devices []fleet.DeviceID) error {
	now := time.Now()
	var all []fleet.Derived
	var more []fleet.DeviceID
	for _, id := range devices {
		u, err := w.o.Store.Usage(ctx, id)
		switch {
		case errors.Is(err, fleet.ErrNotFound): // it has left
			continue
		case err != nil:
			return err
		case len(u.Peripherals) == 0:
			continue
		}
		d, err := w.of(ctx, u, now)
		if err != nil {
			return fmt.Errorf("device %s: %w", id, err)
		}
		all = append(all, d)
		if u.More {
			more = append(more, id)
		}
	}
	if len(all) == 0 {
		return nil
	}
	changed, err := w.o.Store.Derive(ctx, all, now)
	if err != nil {
		return err
	}
	for _, d := range changed {
		w.o.Changed(d)
	}
	for _, d := range more {
		w.put(d)
	}
	return nil
}

// models are what is remembered of a device's peripherals, by id.
type models struct {
	Printers map[string]*Printer `json:"printers,omitempty"`
	Readers  map[string]*Reader  `json:"readers,omitempty"`
}

// of derives what a device's usage means.
func (w *Worker) of(ctx context.Context, u fleet.Usage, now time.Time) (fleet.Derived, error) {
	d := fleet.Derived{Device: u.Device, Tenant: u.Tenant, Cursor: u.Next}
	var had models
	if len(u.Body) > 0 {
		if err := json.Unmarshal(u.Body, &had); err != nil { // of another version: it is learned anew
			w.o.Log.Warn("usage that cannot be read", slog.String("device", string(u.Device)), slog.Any("err", err))
			had = models{}
		}
	}
	place := w.place(u.Zone)
	for i := range u.Samples {
		u.Samples[i].At = notAhead(u.Samples[i].At, now)
	}
	for i := range u.Events {
		u.Events[i].At = notAhead(u.Events[i].At, now)
	}
	have := models{Printers: map[string]*Printer{}, Readers: map[string]*Reader{}}
	for _, p := range u.Peripherals {
		next := fleet.DerivedPeripheral{ID: p.ID}
		samples, events := of(u.Samples, p.ID, func(s fleet.Sample) string { return s.Peripheral }), of(u.Events, p.ID, func(e fleet.PeripheralEvent) string { return e.Peripheral })
		if p.Category == "POSPrinter" {
			m := had.Printers[p.ID]
			if m == nil {
				m = &Printer{}
			}
			have.Printers[p.ID] = m
			m.RollLines = float64(p.RollLines)
			if m.Serial != p.Serial && p.Serial != "" {
				if m.Serial != "" {
					m.Replaced(p.Serial)
				}
				m.Serial = p.Serial
			}
			m.Fold(samples, events, place)
			if next.Paper = m.Predict(place); next.Paper != nil && (!next.Paper.Latest.After(now) || !p.GoneAt.IsZero()) {
				next.Paper = nil // it is of long ago: nobody knows what became of that roll
			}
			next.Soon = w.soon(next.Paper, u.Soon[p.ID], now)
		} else {
			m := had.Readers[p.ID]
			if model := modelOf(p); m == nil || m.Of != model {
				m = &Reader{Of: model}
			}
			have.Readers[p.ID] = m
			mine := m.Fold(samples)
			for _, day := range mine {
				d.Reads = append(d.Reads, fleet.ReadDay{Model: m.Of, Day: day.Day, Reads: day.Reads, Failures: day.Failures})
			}
			all, err := w.o.Store.Baseline(ctx, u.Tenant, m.Of, Since(now))
			if err != nil {
				return d, err
			}
			sum := Day{Reads: all.Reads, Failures: all.Failures}
			for _, day := range mine { // that is not there yet
				sum.Reads, sum.Failures = sum.Reads+day.Reads, sum.Failures+day.Failures
			}
			next.Reads = m.Judge(sum, now)
		}
		if news(p, next, u.Soon[p.ID], now) {
			d.Peripherals = append(d.Peripherals, next)
		}
	}
	var err error
	d.Body, err = json.Marshal(have)
	return d, err
}

func notAhead(at, now time.Time) time.Time {
	if at.After(now.Add(clockAhead)) {
		return now
	}
	return at
}

// place is the time zone of that name, or UTC.
func (w *Worker) place(zone string) *time.Location {
	if p := w.places[zone]; p != nil {
		return p
	}
	p, err := time.LoadLocation(zone)
	if err != nil {
		p = time.UTC
	}
	w.places[zone] = p
	return p
}

// modelOf is what readers are compared by.
func modelOf(p fleet.Peripheral) string {
	if m := strings.TrimSpace(p.Maker + " " + p.Model); m != "" {
		return m
	}
	return p.Driver
}

func of[T any](all []T, id string, whose func(T) string) []T {
	var out []T
	for _, v := range all {
		if whose(v) == id {
			out = append(out, v)
		}
	}
	return out
}

// soon reports whether a prediction turns the light; one that is on goes out
// only when there is clearly more time.
func (w *Worker) soon(p *fleet.Paper, is bool, now time.Time) bool {
	switch {
	case p == nil || w.o.Soon <= 0:
		return false
	case is:
		return p.RunOutAt.Before(now.Add(w.o.Soon * 5 / 4))
	}
	return p.Confidence >= soonSure && p.RunOutAt.Before(now.Add(w.o.Soon))
}

// news reports whether somebody would see that something is different.
func news(p fleet.Peripheral, d fleet.DerivedPeripheral, soon bool, now time.Time) bool {
	a, b := p.Paper, d.Paper
	if (a == nil) != (b == nil) || soon != d.Soon || (p.Reads == nil) != (d.Reads == nil) {
		return true
	}
	if b != nil {
		moved, ahead := b.RunOutAt.Sub(a.RunOutAt).Abs(), b.RunOutAt.Sub(now)
		if a.Basis != b.Basis || moved > max(ahead/100, 100*time.Millisecond) || math.Abs(a.LinesLeft-b.LinesLeft) > b.LinesLeft/100 || math.Abs(a.Confidence-b.Confidence) > 0.05 {
			return true
		}
	}
	return d.Reads != nil && *p.Reads != *d.Reads
}
