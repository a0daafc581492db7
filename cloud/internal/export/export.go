// Package export hands the trails of the service and of every device to the
// security team: in the order they were stored, as syslog lines, CEF or OCSF,
// to syslog receivers over TLS [RFC 5424, RFC 5425], web hooks and files.
//
// Each sink has a cursor of its own in the database, and it only moves over
// what the receiver has for sure. So everything arrives at least once, and what
// arrives twice has the same number n, which grows by one from entry to entry:
// a receiver drops doubles by it and sees what is missing. A sink that is stuck
// holds no other and not the service; little of what waits is in memory. Only
// what retention deletes before it was sent is lost: it is counted, and raises
// an alarm.
//
// The room changes no entry and judges none. It is silent about what a sink
// needs to know a secret: neither its state nor its errors hold one.
package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Store has the trails and keeps the cursors; cloud/internal/store fits.
type Store interface {
	Trails(ctx context.Context, n int64, limit int) ([]fleet.TrailEntry, error)
	TrailsEnd(ctx context.Context) (int64, error)
	Cursor(ctx context.Context, sink string) (fleet.ExportCursor, error)
	SetCursor(ctx context.Context, sink string, c fleet.ExportCursor, events ...fleet.AuditEvent) error
	Audit(ctx context.Context, ev fleet.AuditEvent) error
}

// Options of an Exporter.
type Options struct {
	Store   Store
	Tenant  fleet.TenantID // whose trail tells of the export
	Sinks   []Sink
	Version string // of the service
	// Confirmed is told of entries that a receiver has, and how long that took
	// from when the first of them was sent; Failed of each try that came to
	// nothing. nil: nobody listens.
	Confirmed func(sink string, entries int, took time.Duration)
	Failed    func(sink string)
	Log       *slog.Logger
}

// Exporter sends to all sinks.
type Exporter struct {
	o     Options
	roads []*road
}

// New checks the sinks and reads the files they name. Nothing is sent before
// Run.
func New(o Options) (*Exporter, error) {
	x := &Exporter{o: o}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "tillward"
	}
	for _, s := range o.Sinks {
		if err := s.Check(); err != nil {
			return nil, err
		}
		if s.Name == "" {
			return nil, errors.New("export: a sink has no name")
		}
		out, err := s.open()
		if err != nil {
			return nil, fmt.Errorf("export %s: %w", s.Name, err)
		}
		x.roads = append(x.roads, &road{
			Sink: s, o: &x.o, out: out, to: renderer{format: s.Format, host: host, version: o.Version, frame: s.Kind == KindSyslog || s.Format == FormatSyslog},
			state: fleet.SinkIdle,
		})
	}
	return x, nil
}

// Run sends until ctx ends, and then has receivers confirm what they got.
func (x *Exporter) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, r := range x.roads {
		all.Go(func() { r.run(ctx) })
	}
	all.Wait()
	<-ctx.Done()
	return nil
}

// States tells how each sink does.
func (x *Exporter) States(ctx context.Context) ([]fleet.ExportState, error) {
	end, err := x.o.Store.TrailsEnd(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]fleet.ExportState, 0, len(x.roads))
	for _, r := range x.roads {
		s := r.told()
		if s.ExportCursor, err = x.o.Store.Cursor(ctx, r.Name); err != nil && !errors.Is(err, fleet.ErrNotFound) {
			return nil, err
		}
		if s.Stalled = !s.StalledAt.IsZero(); s.Stalled && s.FailingSince.IsZero() {
			s.FailingSince = s.StalledAt
		}
		switch s.Lag = max(end-s.N, 0); {
		case s.State == fleet.SinkFailing:
		case s.Lag == 0:
			s.State = fleet.SinkIdle
		default:
			s.State = fleet.SinkSending
		}
		out = append(out, s)
	}
	return out, nil
}

// testing is how long a receiver has to answer to a test event.
const testing = 15 * time.Second

// Test sends one sink an event of its own that stands in no trail, number 0,
// beside whatever else is under way, and returns when its receiver has it. The
// trail of the service tells how that went.
func (x *Exporter) Test(ctx context.Context, sink, by string) error {
	for _, r := range x.roads {
		if r.Name != sink {
			continue
		}
		err := r.test(ctx, by)
		ev := fleet.AuditEvent{Tenant: x.o.Tenant, Kind: "export.tested", Severity: "info", Actor: by, Subject: sink, Detail: map[string]string{"outcome": "confirmed"}}
		if err != nil {
			ev.Severity, ev.Outcome, ev.Detail = "warn", fleet.Failure, map[string]string{"outcome": "failed", "reason": short(err)}
			err = fmt.Errorf("%w: sink %s: %w", fleet.ErrConflict, sink, err)
		}
		return errors.Join(err, x.o.Store.Audit(context.WithoutCancel(ctx), ev))
	}
	return fmt.Errorf("sink %.64q: %w", sink, fleet.ErrNotFound)
}

func (r *road) test(ctx context.Context, by string) error {
	ctx, cancel := context.WithTimeout(ctx, testing)
	defer cancel()
	out, err := r.probe(r.out)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	e := fleet.TrailEntry{AuditEvent: fleet.AuditEvent{
		Tenant: r.o.Tenant, At: now, StoredAt: now, Kind: "export.test", Severity: "info", Actor: by, Subject: r.Name,
		Detail: map[string]string{"what": "somebody asked for this event to see whether it arrives; nothing happened"},
	}}
	if err := out.send(ctx, []line{{n: 0, b: r.to.render(e, 0)}}); err != nil {
		out.close()
		return err
	}
	return out.confirm(ctx)
}
