package figures

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	lookEvery = 10 * time.Second
	lookTime  = 5 * time.Second // a part that has not answered by then does not answer
)

// Check looks at one part of the service. It returns a state, what there is to
// say of it, and what to do; for a part that comes in several, such as the sinks
// of the export, one of each.
type Check struct {
	Part string
	Look func(ctx context.Context) []fleet.PartHealth
}

// Watch looks at every part, again and again.
type Watch struct {
	checks []Check
	log    *slog.Logger

	mu    sync.Mutex
	ready chan struct{} // closed after the first round
	busy  map[string]bool
	parts map[string][]fleet.PartHealth // by check
	since map[string]fleet.PartHealth   // by part: as it was when its state changed last
}

// NewWatch returns a Watch that looks when Run is called.
func NewWatch(log *slog.Logger, checks ...Check) *Watch {
	return &Watch{checks: checks, log: log, ready: make(chan struct{}), busy: map[string]bool{}, parts: map[string][]fleet.PartHealth{}, since: map[string]fleet.PartHealth{}}
}

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.round(ctx)
		select {
		case <-w.ready:
		default:
			close(w.ready)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round looks at all parts at once. Who does not answer in time is left behind,
// and not asked again until he does.
func (w *Watch) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var all sync.WaitGroup
	for _, c := range w.checks {
		w.mu.Lock()
		busy := w.busy[c.Part]
		w.busy[c.Part] = true
		w.mu.Unlock()
		if busy {
			w.take(c.Part, silent(c.Part))
			continue
		}
		said := make(chan []fleet.PartHealth, 1)
		go func() {
			defer func() {
				w.mu.Lock()
				w.busy[c.Part] = false
				w.mu.Unlock()
			}()
			defer func() {
				if r := recover(); r != nil {
					w.log.Error("panic in a look at a part", slog.String("part", c.Part), slog.Any("panic", r))
					said <- []fleet.PartHealth{{Part: c.Part, State: fleet.PartFailing, What: "it could not be looked at", Todo: "see the service's log"}}
				}
			}()
			said <- c.Look(ctx)
		}()
		all.Go(func() {
			select {
			case parts := <-said:
				w.take(c.Part, parts)
			case <-ctx.Done():
				w.take(c.Part, silent(c.Part))
			}
		})
	}
	all.Wait()
}

func silent(part string) []fleet.PartHealth {
	return []fleet.PartHealth{{Part: part, State: fleet.PartFailing, What: "it did not answer within " + lookTime.String(), Todo: "see the service's log; when it stays so, restart the service"}}
}

// take notes how a part is, and since when.
func (w *Watch) take(check string, parts []fleet.PartHealth) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range parts {
		was, known := w.since[p.Part]
		if !known || was.State != p.State {
			if p.Since.IsZero() {
				p.Since = now
			}
			w.since[p.Part] = p
			if known || p.State != fleet.PartOK {
				w.told(p)
			}
		}
		parts[i].Since = w.since[p.Part].Since
	}
	w.parts[check] = parts
}

func (w *Watch) told(p fleet.PartHealth) {
	attrs := []any{slog.String("part", p.Part), slog.String("what", p.What)}
	switch p.State {
	case fleet.PartOK:
		w.log.Info("a part of the service is well again", attrs...)
	case fleet.PartDegraded:
		w.log.Warn("a part of the service needs a look", append(attrs, slog.String("todo", p.Todo))...)
	default:
		w.log.Error("a part of the service fails", append(attrs, slog.String("todo", p.Todo))...)
	}
}

// Parts tells how all parts are, as of the last look, in the order of the
// checks. Before the first it waits for that.
func (w *Watch) Parts(ctx context.Context) ([]fleet.PartHealth, error) {
	select {
	case <-w.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []fleet.PartHealth
	for _, c := range w.checks {
		out = append(out, w.parts[c.Part]...)
	}
	return out, nil
}

var (
	healthDesc = prometheus.NewDesc("tillward_part_health", "How a part of the service is: 0 ok, 1 degraded, 2 failing.", []string{"part"}, nil)
	healthNum  = map[string]float64{fleet.PartOK: 0, fleet.PartDegraded: 1, fleet.PartFailing: 2}
)

// Describe implements prometheus.Collector.
func (w *Watch) Describe(ch chan<- *prometheus.Desc) { ch <- healthDesc }

// Collect implements prometheus.Collector.
func (w *Watch) Collect(ch chan<- prometheus.Metric) {
	select {
	case <-w.ready:
	default:
		return
	}
	parts, err := w.Parts(context.Background())
	if err != nil {
		return
	}
	for _, p := range parts {
		ch <- prometheus.MustNewConstMetric(healthDesc, prometheus.GaugeValue, healthNum[p.State], p.Part)
	}
}
