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
	began   time.Time          // when the first of them was sent
	isKnown bool               // cur was read

	mu     sync.Mutex
	state  string
	err    string
	failed time.Time
}

func (r *road) told() fleet.ExportState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fleet.ExportState{Name: r.Name, Kind: r.Kind, Format: r.Format, To: r.Sink.to(), State: r.state, LastError: r.err, FailedAt: r.failed}
}

func (r *road) is(state string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = state
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
	r.pos, r.sent, r.lost = r.cur.N, 0, 0
	r.mu.Lock()
	first := r.state != fleet.SinkFailing
	r.state, r.err, r.failed = fleet.SinkFailing, short(err), time.Now()
	r.mu.Unlock()
	if first {
		r.o.Log.Warn("export waits and tries again", slog.String("sink", r.Name), slog.String("err", short(err)))
	}
}

// leave confirms what is under way; what cannot be is sent again at the next
// start.
func (r *road) leave(ctx context.Context) {
	if r.sent == 0 {
		return
	}
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
		if r.sent+r.lost > 0 {
			err = r.confirm(ctx)
		}
		return false, err
	}
	if r.told().State != fleet.SinkFailing {
		r.is(fleet.SinkSending)
	}
	lines, pos, lost := make([]line, 0, len(entries)), r.pos, r.lost
	for _, e := range entries {
		lost += uint64(e.N - pos - 1)
		pos = e.N
		lines = append(lines, line{e.N, r.to.render(e)})
	}
	if r.sent == 0 {
		r.began = time.Now()
	}
	if err := r.out.send(ctx, lines); err != nil {
		return false, err
	}
	r.pos, r.lost = pos, lost
	r.sent += uint64(len(lines))
	if r.Kind != KindSyslog || r.sent >= confirmMost || time.Since(r.began) >= confirmEvery {
		if err := r.confirm(ctx); err != nil {
			return false, err
		}
	}
	return len(entries) == atOnce, nil
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
		if err == nil {
			err = r.o.Store.SetCursor(ctx, r.Name, c)
		}
	}
	if err != nil {
		return err
	}
	r.cur, r.pos, r.isKnown = c, c.N, true
	return nil
}

// confirm moves the cursor over what the receiver has.
func (r *road) confirm(ctx context.Context) error {
	if err := r.out.confirm(ctx); err != nil {
		return err
	}
	c := fleet.ExportCursor{N: r.pos, Sent: r.cur.Sent + r.sent, Lost: r.cur.Lost + r.lost, At: time.Now()}
	var events []fleet.AuditEvent
	if r.lost > 0 {
		events = append(events, fleet.AuditEvent{
			Tenant: r.o.Tenant, Kind: "export.lost", Severity: "alarm", Actor: "export", Subject: r.Name, Detail: map[string]string{
				"entries": strconv.FormatUint(r.lost, 10), "what": "entries were deleted before this sink had them",
			},
		})
	}
	if err := r.o.Store.SetCursor(ctx, r.Name, c, events...); err != nil {
		return err
	}
	r.cur, r.sent, r.lost = c, 0, 0
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
