package link

import (
	"testing"
	"time"
)

// TestPace lets an hour go by: the backlog keeps to its rate, gives way when acknowledgements are slow, and never stops.
func TestPace(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	rates := map[int]bool{}
	for range 50 {
		p := newPace(64, 8, start)
		sent, at := 0, start
		for at.Before(start.Add(time.Hour)) {
			if w := p.wait(at); w > 0 {
				at = at.Add(w)
				continue
			}
			p.spend(2000)
			sent += 2000
		}
		kib := sent / 3600 / 1024
		if kib < 47 || kib > 81 {
			t.Fatalf("%d KiB a second, want 64 and a quarter more or less", kib)
		}
		rates[kib] = true
	}
	if len(rates) < 10 {
		t.Errorf("50 connections have %d rates: they march in step", len(rates))
	}

	p := newPace(-1, 8, start)
	at := start
	answers := func(took time.Duration, n int) {
		for range n {
			p.acked(at, at.Add(took))
			at = at.Add(took)
		}
	}
	if answers(20*time.Millisecond, 100); p.allowed() != 8 || p.wait(at) != 0 {
		t.Errorf("%d in flight with quick answers, want 8", p.allowed())
	}
	if answers(5*time.Second, 10); p.allowed() != 1 {
		t.Errorf("%d in flight with slow answers, want 1", p.allowed())
	}
	if answers(time.Hour, 1); p.allowed() != 1 {
		t.Errorf("%d in flight after an hour without answer, want 1 all the same", p.allowed())
	}
	if answers(30*time.Millisecond, 100); p.allowed() != 8 {
		t.Errorf("%d in flight when answers are quick again, want 8", p.allowed())
	}
	p = newPace(-1, 8, start)
	if answers(900*time.Millisecond, 100); p.allowed() != 8 {
		t.Errorf("%d in flight over a long line, want 8: it is far away, not slow", p.allowed())
	}
	p = newPace(-1, 1, start)
	if answers(time.Millisecond, 100); p.allowed() != 1 {
		t.Errorf("%d in flight, 1 was asked for", p.allowed())
	}
}
