package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
)

// halve is what an agent does to telemetry here: a message is a number and a
// line of dots, of which half stay.
func halve(run [][]byte) [][]byte {
	out := slices.Clone(run)
	for i, m := range run {
		if dots := len(m) - 4; dots > 100 {
			out[i] = m[:4+dots/2]
		}
	}
	return out
}

// dots tells a sample a dot, measured at the number of the message.
func dots(_ string, m []byte) (n uint64, from, to int64) {
	at, _ := strconv.ParseInt(string(m[:4]), 10, 64)
	return uint64(len(m) - 4), at, at
}

// checkLedger holds that what went in is there, or told as lost.
func checkLedger(t *testing.T, s *spool.Spool, class, channel string, messages int, samples uint64) (here []item) {
	t.Helper()
	here = all(t, s, channel)
	losses, err := s.Losses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range losses {
		if l.Class != class {
			continue
		}
		for _, i := range here {
			samples -= uint64(len(i.payload) - 4)
		}
		if int(l.Messages) != messages-len(here) || l.Samples != samples {
			t.Errorf("the ledger says %d messages and %d samples of %s, gone are %d and %d", l.Messages, l.Samples, class, messages-len(here), samples)
		}
		return here
	}
	t.Errorf("nothing is told of %s", class)
	return here
}

func TestTelemetryIsThinnedThenShed(t *testing.T) {
	const size = 1 << 10
	path := file(t)
	o := spool.Options{MaxBytes: 256 * size, Thin: halve, Tally: dots}
	s := open(t, path, o)
	body := func(i int) string { return fmt.Sprintf("%04d", i+1000) + strings.Repeat(".", size-204) }
	put(t, s, spool.Audit, "audit", "first")
	put(t, s, spool.Event, "event", "second")
	n, samples := 0, uint64(0)
	more := func() {
		put(t, s, spool.Telemetry, "telemetry", body(n))
		n, samples = n+1, samples+size-204
	}
	for losses := []spool.Loss(nil); losses == nil; losses, _ = s.Losses(t.Context()) {
		if more(); n > 1000 {
			t.Fatal("nothing was ever thinned")
		}
	}
	left := checkLedger(t, s, spool.Telemetry, "telemetry", n, samples)
	if s.Shed() != 0 || len(left) != n || len(left[0].payload) >= size/2 || len(left[len(left)/2].payload) != size-200 {
		t.Errorf("first of %d: %d shed, %d left, oldest of %d and middle of %d bytes: want the oldest thinned and none shed",
			n, s.Shed(), len(left), len(left[0].payload), len(left[len(left)/2].payload))
	}
	for range 1500 {
		more()
	}
	left = checkLedger(t, s, spool.Telemetry, "telemetry", n, samples)
	if s.Shed() == 0 || uint64(n-len(left)) != s.Shed() {
		t.Errorf("%d messages are gone, %d are counted", n-len(left), s.Shed())
	}
	if !slices.IsSortedFunc(left, func(a, b item) int { return len(a.payload) - len(b.payload) }) {
		t.Error("what is older is finer than what is newer")
	}
	steps := map[int]bool{}
	for i, it := range left {
		steps[len(it.payload)] = true
		if i >= len(left)/2+1 && it.payload != body(n-len(left)+i) {
			t.Fatalf("message %d of %d is thinned, or not in its place", i, len(left))
		}
	}
	if len(steps) != 4 {
		t.Errorf("%d steps of coarseness, want whole, a half, a quarter, an eighth", len(steps))
	}
	if got := payloads(all(t, s, "audit", "event")); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("got %q: what must be kept was shed, or events before telemetry", got)
	}
	shed := s.Shed()
	s.Close()
	if s = open(t, path, o); s.Shed() != shed {
		t.Errorf("shed count after reopening is %d, want %d", s.Shed(), shed)
	}
	checkLedger(t, s, spool.Telemetry, "telemetry", n, samples)

	// Who tells it takes it out of the ledger in the same step, and nothing else.
	losses, _ := s.Losses(t.Context())
	for range 200 {
		more()
	}
	grown, _ := s.Losses(t.Context())
	full := errors.New("no entry")
	err := s.Append(spool.Telling(t.Context(), losses...), "chain", "audit", func([]byte) ([]byte, []byte, error) { return nil, nil, full })
	if now, _ := s.Losses(t.Context()); !errors.Is(err, full) || !slices.Equal(now, grown) {
		t.Errorf("an entry that was not stored took %v out of %v (%v)", now, grown, err)
	}
	entry := func([]byte) ([]byte, []byte, error) { return []byte("shed"), []byte("1"), nil }
	if err := s.Append(spool.Telling(t.Context(), losses...), "chain", "audit", entry); err != nil {
		t.Fatal(err)
	}
	rest, _ := s.Losses(t.Context())
	if len(rest) != 1 || rest[0].Messages < grown[0].Messages-losses[0].Messages || rest[0].Samples < grown[0].Samples-losses[0].Samples ||
		rest[0].From < losses[0].To {
		t.Errorf("left in the ledger: %+v, want what came after %+v of %+v", rest, losses, grown)
	}
	if err := s.Append(spool.Telling(t.Context(), rest...), "chain", "audit", entry); err != nil {
		t.Fatal(err)
	}
	if rest, _ := s.Losses(t.Context()); len(rest) > 1 {
		t.Errorf("told again: %v", rest)
	}
}

// TestEventsGoLast fills the spool with events and what is kept.
func TestEventsGoLast(t *testing.T) {
	const size = 1 << 10
	s := open(t, file(t), spool.Options{MaxBytes: 256 * size, Tally: dots})
	body := func(i int) string { return fmt.Sprintf("%04d", i+1000) + strings.Repeat(".", size-204) }
	for i := range 200 {
		put(t, s, spool.Telemetry, "telemetry", body(i))
	}
	for i := range 100 {
		put(t, s, spool.Event, "event", body(i))
	}
	// An event is shed when events have more than their quarter, and else telemetry is.
	if left := checkLedger(t, s, spool.Event, "event", 100, 100*(size-204)); len(left) < 50 || left[len(left)-1].payload != body(99) {
		t.Errorf("%d events are left", len(left))
	}
	events := len(all(t, s, "event"))
	n := 0
	for len(all(t, s, "telemetry")) > 0 {
		if len(all(t, s, "event")) != events {
			t.Fatal("an event was shed while there is telemetry")
		}
		put(t, s, spool.Audit, "audit", body(n))
		n++
	}
	for range 3 * events {
		if s.Put(t.Context(), spool.Audit, "audit", []byte(body(n))) == nil {
			n++
		}
	}
	if got := len(all(t, s, "event")); got != 0 {
		t.Errorf("%d events are left beside a full trail", got)
	}
	if got := len(all(t, s, "audit")); got != n {
		t.Errorf("%d entries are there, %d were acknowledged", got, n)
	}
}

// TestReserve holds that what is not audit leaves audit its part, and has its own.
func TestReserve(t *testing.T) {
	const size = 1 << 10
	s := open(t, file(t), spool.Options{MaxBytes: 256 * size, Shares: spool.Shares{Audit: 25, Result: 75, State: 10}})
	body := []byte(strings.Repeat("r", size))
	n := 0
	for ; s.Put(t.Context(), spool.Result, "result", body) == nil; n++ {
		if n > 256 {
			t.Fatal("results fill more than there is")
		}
	}
	if err := s.Put(t.Context(), spool.Result, "result", body); !errors.Is(err, spool.ErrFull) {
		t.Errorf("result: got %v, want %v", err, spool.ErrFull)
	}
	for _, class := range []string{spool.Telemetry, spool.Event, spool.State} {
		if err := s.Put(t.Context(), class, class, body); !errors.Is(err, spool.ErrFull) {
			t.Errorf("%s: got %v, want %v: the rest is for audit", class, err, spool.ErrFull)
		}
	}
	if got := len(all(t, s, "result")); got != n {
		t.Errorf("%d results are there, %d were acknowledged: they are never shed", got, n)
	}
	entries := 0
	for ; s.Put(t.Context(), spool.Audit, "audit", body) == nil; entries++ {
		if !s.Full() && entries > 50 {
			t.Fatal("not full with hardly anything left")
		}
	}
	if entries < 50 || !s.Full() {
		t.Errorf("%d entries found room and Full is %v, want a quarter of 256 and true", entries, s.Full())
	}
	if err := s.Put(t.Context(), spool.State, "s", bytes.Repeat(body, 30)); !errors.Is(err, spool.ErrFull) {
		t.Errorf("a state larger than its share: got %v", err)
	}
}

// TestThinningLooksOnce fills the quota with telemetry of which little can be
// thinned, and holds how much of the file is read for each message that comes.
func TestThinningLooksOnce(t *testing.T) {
	path := file(t)
	some := func(run [][]byte) [][]byte {
		out := slices.Clone(run)
		for i := 0; i < len(run); i += 3 {
			out[i] = run[i][:len(run[i])/2+1]
		}
		return out
	}
	s := open(t, path, spool.Options{MaxBytes: 4 << 20, Thin: some})
	add := func(n int) {
		for range n {
			put(t, s, spool.Telemetry, "telemetry", strings.Repeat(".", 800))
		}
	}
	add(5000)
	before := readSoFar(t)
	const more = 400
	add(more)
	if each := (readSoFar(t) - before) / more; s.Shed() == 0 || each > 200<<10 {
		t.Errorf("%d bytes read for each message, of %d in the file", each, sizeOf(t, path))
	}
}

// readSoFar is how many bytes this process has read.
func readSoFar(t *testing.T) (n int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip(err)
	}
	if _, err := fmt.Sscanf(string(b), "rchar: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}
