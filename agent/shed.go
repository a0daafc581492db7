package agent

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// What the spool gives up for lack of space. The spool knows bytes: what a
// sample is it is told here. What is gone is on record: one entry of the trail
// for each class of messages, a while after it began, and then once in an hour
// while it goes on, or as soon as the service can be told.

const (
	shedLook   = time.Minute // between two looks at what was given up
	shedPeriod = time.Hour   // between two entries while it goes on
)

// tellShed records what was given up. It also looks after the books.
func (a *Agent) tellShed(ctx context.Context) error {
	look := time.NewTicker(shedLook)
	defer look.Stop()
	var told time.Time
	online := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		if a.spool.Damaged() { // a start sets the file aside, and takes over what can be read
			a.log.Error("the books are damaged: starting anew")
			return ErrRestart
		}
		was := online
		if online = a.isOnline(); !told.IsZero() && time.Since(told) < shedPeriod && (was || !online) {
			continue
		}
		if n, err := a.recordShed(ctx); err != nil {
			a.log.Error("what was shed is not on record yet", slog.Any("err", err))
		} else if n > 0 {
			told = time.Now()
		}
	}
}

// recordShed puts what was given up into the trail, and returns how many entries
// that were. An entry and its line in the spool's ledger change places in one step.
func (a *Agent) recordShed(ctx context.Context) (n int, err error) {
	losses, err := a.spool.Losses(ctx)
	if err != nil || a.quiet.Load() {
		return 0, err
	}
	for _, l := range losses {
		count := func(v uint64) string { return strconv.FormatUint(v, 10) }
		detail := map[string]string{"class": l.Class, "messages": count(l.Messages), "thinned": count(l.Thinned), "samples": count(l.Samples)}
		if l.From != 0 {
			detail["from"], detail["to"] = moment(l.From), moment(l.To)
		}
		if err := a.note(spool.Telling(ctx, l), "spool.shed", "warn", "", detail); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// moment writes milliseconds as the trail has times.
func moment(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// thin leaves every second sample of each series in a run of telemetry. The last
// stays, so that of a count nothing is lost but when it was reached. A message
// keeps its number: sent twice, it is dropped as a duplicate.
func thin(run [][]byte) [][]byte {
	type series struct {
		peripheral, name string
		epoch            int64
	}
	out := make([][]byte, len(run))
	odd := map[series]bool{} // of those seen so far, from the end
	for i := len(run) - 1; i >= 0; i-- {
		out[i] = run[i]
		m, err := wire.Decode[wire.TelemetryBatch](run[i])
		if err != nil {
			continue
		}
		left := make([]wire.Sample, 0, len(m.Samples))
		for _, s := range slices.Backward(m.Samples) {
			of := series{s.Peripheral, s.Name, s.Epoch}
			if odd[of] = !odd[of]; odd[of] {
				left = append(left, s)
			}
		}
		if len(left) == len(m.Samples) {
			continue
		}
		if len(left) == 0 {
			out[i] = nil
			continue
		}
		slices.Reverse(left)
		m.Samples = left
		if b, err := wire.Encode(&m); err == nil {
			out[i] = b
		}
	}
	return out
}

// tally tells what a message holds that is given up.
func tally(channel string, payload []byte) (samples uint64, from, to int64) {
	span := func(at int64) {
		samples++
		if from == 0 || at < from {
			from = at
		}
		to = max(to, at)
	}
	switch wire.Channel(channel) {
	case wire.Telemetry:
		if m, err := wire.Decode[wire.TelemetryBatch](payload); err == nil {
			for _, s := range m.Samples {
				span(s.At)
			}
		}
	case wire.Event:
		if m, err := wire.Decode[wire.EventBatch](payload); err == nil {
			for _, e := range m.Events {
				span(e.At)
			}
			for _, c := range m.Checks {
				span(c.At)
			}
		}
	}
	return samples, from, to
}

// spoolStats is what the spool has written since the agent began: how long the
// flash lives.
func (a *Agent) spoolStats() []hal.Stat {
	bytes, messages := a.spool.Written()
	epoch := a.started.Unix()
	return []hal.Stat{
		{Name: "spool_written_bytes", Value: float64(bytes), Epoch: epoch},
		{Name: "spool_stored_messages", Value: float64(messages), Epoch: epoch},
	}
}
