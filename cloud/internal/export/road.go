package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	atOnce       = 256             // entries in memory, and in one send
	confirmMost  = 1000            // entries that may be unconfirmed
	confirmEvery = 5 * time.Second // while more comes
	look         = time.Second     // how often is looked for more
	lastWords    = 3 * time.Second // to confirm what is under way when the service stops
	firstWait    = time.Second     // after a failure; doubled up to
	longestWait  = time.Minute
	skipMost     = 10_000           // entries kept back until the cursor moves over them
	lostEvery    = 10 * time.Minute // alarms of entries that are gone; between two of them they are summed up

	// DefaultStall is how long something waits for a sink until it is an alarm.
	DefaultStall = 15 * time.Minute
)

// road is what leads to one sink.
type road struct {
	Sink
	o   *Options
	out receiver
	to  renderer

	cur     fleet.ExportCursor // confirmed
	pos     int64              // sent
	sent    uint64             // since cur
	lost    uint64             // since cur: numbers that nobody has any more
	unsaid  uint64             // lost as of cur, and in no alarm yet
	said    time.Time          // when the alarm was raised last
	skipped uint64             // since cur: kept back by the filter
	last    int64              // number of the last one that passed
	began   time.Time          // when the first of them was sent
	moved   time.Time          // when the cursor was written
	waits   time.Time          // since when something waits that is not confirmed; zero: nothing does
	isKnown bool               // cur was read

	mu     sync.Mutex
	state  string
	err    string
	failed time.Time
	since  time.Time // it fails
}

func (r *road) told() fleet.ExportState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fleet.ExportState{Name: r.Name, Kind: r.Kind, Format: r.Format, To: r.Sink.to(), State: r.state, LastError: r.err, FailedAt: r.failed, FailingSince: r.since}
}

func (r *road) is(state string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = state
	if state != fleet.SinkFailing {
		r.since = time.Time{}
	}
}

func (r *road) run(ctx context.Context) {
	defer r.out.close()
	wait, rest := firstWait, time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			r.leave(ctx)
			return
		case <-rest.C:
		}
		more, err := r.step(ctx)
		switch {
		case ctx.Err() != nil:
			rest.Reset(0)
		case err != nil:
			r.fail(err)
			rest.Reset(wait/2 + rand.N(wait/2)) //nolint:gosec // spreads who comes back
			wait = min(2*wait, longestWait)
		case more:
			rest.Reset(0)
		default:
			rest.Reset(look)
		}
		if ctx.Err() == nil {
			r.stall(ctx)
		}
		if err == nil && r.sent+r.lost == 0 { // confirmed, not just written
			if r.told().State == fleet.SinkFailing {
				r.o.Log.Info("export goes on", slog.String("sink", r.Name))
			}
			r.is(fleet.SinkIdle)
			wait = firstWait
		}
	}
}

// fail goes back to what is confirmed.
func (r *road) fail(err error) {
	r.out.close()
	r.pos, r.last, r.sent, r.lost, r.skipped = r.cur.N, r.cur.Last, 0, 0, 0
	r.mu.Lock()
	first := r.state != fleet.SinkFailing
	if first {
		r.since = time.Now()
		if !r.waits.IsZero() {
			r.since = r.waits
		}
	}
	r.state, r.err, r.failed = fleet.SinkFailing, short(err), time.Now()
	r.mu.Unlock()
	if r.o.Failed != nil {
		r.o.Failed(r.Name)
	}
	if first {
		r.o.Log.Warn("export waits and tries again", slog.String("sink", r.Name), slog.String("err", short(err)))
	}
}

// leave confirms what is under way; what cannot be is sent again at the next
// start.
func (r *road) leave(ctx context.Context) {
	if r.sent == 0 && r.unsaid == 0 {
		return
	}
	r.said = time.Time{} // nobody says it later
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if err := r.confirm(ctx); err != nil {
		r.o.Log.Info("export is sent again from what is confirmed", slog.String("sink", r.Name), slog.String("err", short(err)))
	}
}

// step sends what can be read at once, and says whether there may be more.
func (r *road) step(ctx context.Context) (more bool, err error) {
	if !r.isKnown {
		if err := r.begin(ctx); err != nil {
			return false, err
		}
	}
	entries, err := r.o.Store.Trails(ctx, r.pos, atOnce)
	if err != nil {
		return false, err
	}
	if len(entries) == 0 {
		if r.sent+r.lost > 0 || r.skipped > 0 && time.Since(r.moved) >= confirmEvery || r.unsaid > 0 && time.Since(r.said) >= lostEvery {
			err = r.confirm(ctx)
		}
		return false, err
	}
	lines, pos, last, lost, skipped := make([]line, 0, len(entries)), r.pos, r.last, r.lost, r.skipped
	for _, e := range entries {
		if gone := uint64(e.N - pos - 1); gone > 0 { // #nosec G115 -- numbers go up
			lost += gone
			last = e.N - 1 // it may have passed: let it be missed
		}
		pos = e.N
		if !r.passes(e) {
			skipped++
			continue
		}
		lines = append(lines, line{e.N, r.to.render(e, last)})
		last = e.N
	}
	if len(lines) > 0 {
		if r.told().State != fleet.SinkFailing {
			r.is(fleet.SinkSending)
		}
		now := time.Now()
		if r.waits.IsZero() {
			r.waits = now
		}
		if r.sent == 0 {
			r.began = now
		}
		if err := r.out.send(ctx, lines); err != nil {
			return false, err
		}
	}
	r.pos, r.last, r.lost, r.skipped = pos, last, lost, skipped
	r.sent += uint64(len(lines))
	if r.sent > 0 && (r.Kind != KindSyslog || r.sent >= confirmMost || time.Since(r.began) >= confirmEvery) || r.sent == 0 && r.skipped >= skipMost {
		if err := r.confirm(ctx); err != nil {
			return false, err
		}
	}
	return len(entries) == atOnce, nil
}

// stall raises the alarm of a sink for which something waits for too long, once.
func (r *road) stall(ctx context.Context) {
	most := r.StallAfter
	if most == 0 {
		most = DefaultStall
	}
	if r.waits.IsZero() || !r.cur.StalledAt.IsZero() || time.Since(r.waits) < most {
		return
	}
	c := r.cur
	c.StalledAt = r.waits
	detail := map[string]string{"since": r.waits.UTC().Format(time.RFC3339), "what": "its receiver has confirmed nothing since then; entries wait, none is lost"}
	if s := r.told(); s.LastError != "" {
		detail["reason"] = s.LastError
	}
	err := r.o.Store.SetCursor(ctx, r.Name, c, fleet.AuditEvent{
		Tenant: r.o.Tenant, Kind: "export.stalled", Severity: "alarm", Actor: "export", Subject: r.Name, Detail: detail,
	})
	if err != nil {
		r.o.Log.Error("alarm of a sink that stands still", slog.String("sink", r.Name), slog.Any("err", err))
		return
	}
	r.cur = c
	r.o.Log.Error("export stands still", slog.String("sink", r.Name), slog.Time("since", c.StalledAt), slog.String("err", detail["reason"]))
}

// begin reads the cursor, and gives a new sink one.
func (r *road) begin(ctx context.Context) error {
	c, err := r.o.Store.Cursor(ctx, r.Name)
	if errors.Is(err, fleet.ErrNotFound) {
		if r.Since == "now" {
			c.N, err = r.o.Store.TrailsEnd(ctx)
		} else {
			var first []fleet.TrailEntry
			if first, err = r.o.Store.Trails(ctx, 0, 1); len(first) > 0 { // what was deleted before there was a sink is not its loss
				c.N = first[0].N - 1
			}
		}
		c.Last = c.N
		if err == nil {
			err = r.o.Store.SetCursor(ctx, r.Name, c)
		}
	}
	if err != nil {
		return err
	}
	r.cur, r.pos, r.last, r.isKnown = c, c.N, c.Last, true
	r.waits = c.StalledAt
	return nil
}

// confirm moves the cursor over what the receiver has.
func (r *road) confirm(ctx context.Context) error {
	if r.sent > 0 {
		if err := r.out.confirm(ctx); err != nil {
			return err
		}
	}
	now := time.Now()
	c := fleet.ExportCursor{N: r.pos, Sent: r.cur.Sent + r.sent, Lost: r.cur.Lost + r.lost, At: now, Last: r.last, Skipped: r.cur.Skipped + r.skipped}
	var events []fleet.AuditEvent
	// Of a database whose old entries were put away before there was this sink, pieces are missing all along.
	unsaid, said := r.unsaid+r.lost, r.said
	if unsaid > 0 && now.Sub(said) >= lostEvery {
		events = append(events, fleet.AuditEvent{
			Tenant: r.o.Tenant, Kind: "export.lost", Severity: "alarm", Actor: "export", Subject: r.Name, Detail: map[string]string{
				"entries": strconv.FormatUint(unsaid, 10), "what": "entries were deleted before this sink had them",
			},
		})
		unsaid, said = 0, now
	}
	if !r.cur.StalledAt.IsZero() {
		events = append(events, fleet.AuditEvent{
			Tenant: r.o.Tenant, Kind: "export.resumed", Severity: "info", Actor: "export", Subject: r.Name, Detail: map[string]string{
				"since": r.cur.StalledAt.UTC().Format(time.RFC3339), "stood": now.Sub(r.cur.StalledAt).Round(time.Second).String(),
			},
		})
	}
	if err := r.o.Store.SetCursor(ctx, r.Name, c, events...); err != nil {
		return err
	}
	if r.o.Confirmed != nil && r.sent > 0 {
		r.o.Confirmed(r.Name, int(r.sent), now.Sub(r.began)) // #nosec G115 -- a count
	}
	r.cur, r.sent, r.lost, r.skipped, r.waits, r.moved, r.unsaid, r.said = c, 0, 0, 0, time.Time{}, now, unsaid, said
	return nil
}

// short is an error for a trail, a log and an answer: one line, not too long.
func short(err error) string {
	return cut(strings.Join(strings.Fields(clean(err.Error(), "")), " "), 300)
}

// cut returns at most n bytes of s, and whole runes.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

var errClosed = fmt.Errorf("the receiver closed the connection")
