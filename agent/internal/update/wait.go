package update

import (
	"context"
	"time"
)

// linger waits for what the content is held up by.
func (m *Machine) linger(ctx context.Context, j *journal, h *hold) error {
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

// wait holds until the gate opens, and says what it waits for.
func (m *Machine) wait(ctx context.Context, j *journal, p Phase) error {
	for {
		reason, text := m.closed(j, p)
		if reason == "" {
			return nil
		}
		if time.Now().After(j.Offer.NotAfter) {
			return Fail("expired", "the offer expired in WAITING: %s", text)
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
	spans, name, need := j.Offer.Download, "window-download", int64(0)
	if p == Touch {
		spans, name = j.Offer.Install, "window-install"
	}
	switch {
	case j.Target == nil || j.Part == partTry: // what it takes is taken
	case p == Touch:
		need = j.Target.Custom.Unpacked
	default:
		need = j.Target.Length + j.Target.Custom.Unpacked
	}
	if _, next, ok := spanAt(spans, time.Now()); !ok {
		if next.IsZero() {
			return name, "the last window is over"
		}
		return name, "opens at " + next.UTC().Format(time.RFC3339)
	}
	return m.o.Gate(p, need)
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
