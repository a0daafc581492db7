package update

import (
	"context"
	"slices"
	"time"
)

// windowDownload is the reason to wait for the time to fetch.
const windowDownload = "window-download"

// linger waits for what the content is held up by.
func (m *Machine) linger(ctx context.Context, j *journal, h *hold) error {
	if time.Now().After(j.Offer.NotAfter) {
		return Fail("timeout", "the offer expired in WAITING: %s", h.text)
	}
	if j.State != waiting || j.Last.Reason != h.reason {
		if err := m.advance(ctx, j, Progress{State: waiting, Reason: h.reason, Text: h.text, Done: j.Last.Done, Total: j.Last.Total}); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Minute):
		return nil
	}
}

// wait holds until the gates of all phases are open at once, and says what it
// waits for.
func (m *Machine) wait(ctx context.Context, j *journal, phases ...Phase) error {
	for {
		if over(j.Offer.Install) {
			return Fail("timeout", "the last window to install is over")
		}
		reason, text := "", ""
		for _, p := range phases {
			if reason, text = m.closed(j, p); reason != "" {
				break
			}
		}
		if reason == "" {
			return nil
		}
		if time.Now().After(j.Offer.NotAfter) {
			return Fail("expired", "the offer expired in WAITING: %s", text)
		}
		if slices.Contains(phases, Fetch) && over(j.Offer.Download) {
			return Fail("timeout", "the last window to fetch is over")
		}
		if j.Part == partTry { // nothing interrupts it: others are told to wait
			if err := m.open(ctx, j); err != nil {
				return err
			}
		}
		if j.State != waiting || reason != j.Last.Reason {
			if err := m.advance(ctx, j, Progress{State: waiting, Reason: reason, Text: text, Done: j.Last.Done, Total: j.Last.Total}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(gateEvery):
		}
	}
}

// closed says why it is not the time for a phase.
func (m *Machine) closed(j *journal, p Phase) (reason, text string) {
	spans, name, need := j.Offer.Download, windowDownload, int64(0)
	if p == Touch {
		spans, name = j.Offer.Install, "window-install"
	}
	switch {
	case j.Target == nil || j.Part == partTry: // what it takes is taken
	case p == Touch, j.streams:
		need = j.Target.Custom.Unpacked
	default:
		need = max(j.Target.Length-m.o.Content.Held(*j.Target), 0) + j.Target.Custom.Unpacked
	}
	if _, next, ok := spanAt(spans, time.Now()); !ok {
		return name, "opens at " + next.UTC().Format(time.RFC3339)
	}
	return m.o.Gate(p, need)
}

// over reports whether the last of the spans is.
func over(spans []Span) bool {
	return len(spans) > 0 && !slices.ContainsFunc(spans, func(s Span) bool { return time.Now().Before(s.To) })
}

// spanAt finds the span that holds a time, or when the next begins. No spans
// are one without end.
func spanAt(spans []Span, t time.Time) (in Span, next time.Time, ok bool) {
	if len(spans) == 0 {
		return Span{}, time.Time{}, true
	}
	for _, s := range spans {
		switch {
		case !t.Before(s.From) && t.Before(s.To):
			return s, time.Time{}, true
		case t.Before(s.From) && (next.IsZero() || s.From.Before(next)):
			next = s.From
		}
	}
	return Span{}, next, false
}
