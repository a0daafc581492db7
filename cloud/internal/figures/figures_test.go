package figures_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

var (
	quiet      = slog.New(slog.DiscardHandler)
	fleetQuery fleet.FigureQuery
)

// shelf is a store in memory; the one in SQL has its own test.
type shelf struct {
	mu     sync.Mutex
	rows   map[string]fleet.FigureRow
	writes int
	broken bool
}

func (s *shelf) PutFigures(_ context.Context, rows []fleet.FigureRow) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return errors.New("no room")
	}
	s.writes++
	for _, r := range rows {
		s.rows[fmt.Sprintf("%012d %s %s", r.At.Unix(), r.Part, r.Step)] = r
	}
	return nil
}

func (s *shelf) Figures(_ context.Context, part string, step time.Duration, from, to time.Time) (out []fleet.FigureRow, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for k, r := range s.rows {
		if r.Step == step && (part == "" || r.Part == part) && !r.At.Before(from) && r.At.Before(to) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		out = append(out, s.rows[k])
	}
	return out, nil
}

func (s *shelf) RollFigures(ctx context.Context, rows []fleet.FigureRow, step time.Duration, before, oldest time.Time) error {
	if err := s.PutFigures(ctx, rows); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, r := range s.rows {
		if r.Step == step && r.At.Before(before) || r.Step > step && r.At.Before(oldest) {
			delete(s.rows, k)
		}
	}
	return nil
}

// age makes all rows older.
func (s *shelf) age(by time.Duration) {
	old := s.rows
	s.rows = map[string]fleet.FigureRow{}
	for k, r := range old {
		r.At = r.At.Add(-by)
		s.rows[k] = r
	}
}

func newShelf() *shelf { return &shelf{rows: map[string]fleet.FigureRow{}} }

// life runs a book until end is called.
func life(t *testing.T, st figures.Store) (b *figures.Book, end func()) {
	t.Helper()
	b = figures.New(figures.Options{Store: st, Log: quiet})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	return b, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func query(t *testing.T, b *figures.Book, q fleet.FigureQuery) (parts, ops []fleet.PartFigures) {
	t.Helper()
	all, _, err := b.Query(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Op == "" {
			parts = append(parts, p)
		} else {
			ops = append(ops, p)
		}
	}
	return parts, ops
}

func sum(points []fleet.Figure) (n uint64) {
	for _, p := range points {
		n += p.Answers()
	}
	return n
}

// TestSeries counts for two hours and looks at each minute of it.
func TestSeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newShelf()
		b, end := life(t, st)
		op := b.Op("api", "GET /v1/devices")
		for i := range 7200 {
			op.Done(figures.OK, 10*time.Millisecond, 100)
			if i%10 == 0 {
				b.Op("api", "POST /v1/commands").Done(figures.Failed, time.Second, 0)
			}
			time.Sleep(time.Second)
		}
		parts, ops := query(t, b, fleet.FigureQuery{})
		if len(parts) != 1 || len(ops) != 2 {
			t.Fatalf("got %d parts and %d ops, want 1 and 2", len(parts), len(ops))
		}
		p := parts[0]
		if got := sum(p.Points); got < 3950 || got > 3970 || p.Total.Answers() != got {
			t.Errorf("the last hour has %d answers in %d points and %d in all, want about 3960", got, len(p.Points), p.Total.Answers())
		}
		if got := p.Total.P50; got < 8*time.Millisecond || got > 12*time.Millisecond {
			t.Errorf("half took less than %s, want about 10ms", got)
		}
		if got := p.Total.P99; got < 800*time.Millisecond || got > 1200*time.Millisecond {
			t.Errorf("99 %% took less than %s, want about 1s", got)
		}
		for _, f := range p.Points[1 : len(p.Points)-1] {
			if f.Span != 30*time.Second || f.OK < 29 || f.OK > 31 || f.Failed < 2 || f.Failed > 4 {
				t.Fatalf("a point is %+v, want 30 and 3 in 30s", f)
			}
		}
		all, _ := query(t, b, fleet.FigureQuery{From: time.Now().Add(-3 * time.Hour), Step: 5 * time.Minute})
		if got := sum(all[0].Points); got != 7200+720 {
			t.Errorf("all of it has %d answers, want %d", got, 7200+720)
		}
		one, op1 := query(t, b, fleet.FigureQuery{Part: "api", Op: "POST /v1/commands"})
		if len(one) != 0 || len(op1) != 1 || len(op1[0].Points) == 0 || op1[0].Total.OK != 0 {
			t.Errorf("one op: got %+v and %+v", one, op1)
		}
		end()
		if st.writes < 115 || st.writes > 125 {
			t.Errorf("written %d times in two hours, want once a minute", st.writes)
		}
	})
}

// TestRestart ends the process in the middle of a span, twice: the one behind
// it goes on counting where it was.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newShelf()
		var b *figures.Book
		var end func()
		for range 3 {
			b, end = life(t, st)
			synctest.Wait()
			for range 100 {
				b.Op("mqtt-up", "audit").Done(figures.OK, time.Millisecond, 10)
				time.Sleep(time.Second)
			}
			end()
		}
		b, end = life(t, st)
		synctest.Wait()
		defer end()
		for _, step := range []time.Duration{0, 10 * time.Second, time.Minute, 5 * time.Minute} {
			parts, _ := query(t, b, fleet.FigureQuery{Step: step})
			if len(parts) != 1 || sum(parts[0].Points) != 300 || parts[0].Total.Bytes != 3000 {
				t.Errorf("by %s: got %+v, want 300 answers", step, parts)
			}
		}
	})
}

// TestRoll lets figures become old: five minutes become hours, and hours go.
func TestRoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newShelf()
		b, end := life(t, st)
		for range 48 {
			b.Op("store", "commit").Done(figures.OK, time.Millisecond, 0)
			time.Sleep(30 * time.Minute)
		}
		end()
		st.age(40 * 24 * time.Hour)
		_, end = life(t, st)
		time.Sleep(time.Minute)
		end()
		fine, hours := 0, 0
		for _, r := range st.rows {
			if r.Step == time.Hour {
				hours++
			} else {
				fine++
			}
		}
		if hours != 24 || fine != 0 {
			t.Errorf("got %d hours and %d spans of five minutes, want 24 and 0", hours, fine)
		}
		b, end = life(t, st)
		synctest.Wait()
		parts, _ := query(t, b, fleet.FigureQuery{From: time.Now().Add(-60 * 24 * time.Hour)})
		if len(parts) != 1 || sum(parts[0].Points) != 48 {
			t.Errorf("got %+v, want 48 answers of 41 days ago", parts)
		}
		end()
		st.age(400 * 24 * time.Hour)
		_, end = life(t, st)
		time.Sleep(time.Minute)
		end()
		if len(st.rows) != 0 {
			t.Errorf("after 13 months %d rows are left", len(st.rows))
		}
	})
}

// TestBrokenStore keeps what cannot be written, and writes it when it can.
func TestBrokenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newShelf()
		st.broken = true
		b, end := life(t, st)
		for range 3600 {
			b.Op("api", "x").Done(figures.OK, time.Millisecond, 0)
			time.Sleep(time.Second)
		}
		parts, _ := query(t, b, fleet.FigureQuery{From: time.Now().Add(-2 * time.Hour), Step: 5 * time.Minute})
		if len(parts) != 1 || sum(parts[0].Points) != 3600 {
			t.Errorf("while nothing is written: got %+v", parts)
		}
		st.mu.Lock()
		st.broken = false
		st.mu.Unlock()
		end()
		b, end = life(t, st)
		defer end()
		synctest.Wait()
		parts, _ = query(t, b, fleet.FigureQuery{From: time.Now().Add(-2 * time.Hour), Step: 5 * time.Minute})
		if len(parts) != 1 || sum(parts[0].Points) != 3600 {
			t.Errorf("after it: got %+v, want 3600", parts)
		}
	})
}

func TestQueryRefuses(t *testing.T) {
	b := figures.New(figures.Options{Log: quiet})
	now := time.Now()
	for name, q := range map[string]fleet.FigureQuery{
		"backwards": {From: now, To: now.Add(-time.Hour)},
		"too fine":  {From: now.Add(-240 * time.Hour), Step: 10 * time.Second},
		"no step":   {Step: time.Millisecond},
	} {
		if _, _, err := b.Query(t.Context(), q); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

// TestBounded counts more kinds of things than there is room for.
func TestBounded(t *testing.T) {
	b := figures.New(figures.Options{Log: quiet})
	for i := range 5000 {
		b.Op("api", fmt.Sprint("route ", i)).Done(figures.OK, time.Millisecond, 0)
	}
	parts, ops := query(t, b, fleet.FigureQuery{})
	if len(ops) > 410 || parts[0].Total.OK != 5000 {
		t.Errorf("got %d ops and %d answers, want few and 5000", len(ops), parts[0].Total.OK)
	}
}

// TestCountingIsCheap holds the promise of the hot path.
func TestCountingIsCheap(t *testing.T) {
	op := figures.New(figures.Options{Log: quiet}).Op("mqtt-up", "telemetry")
	if n := testing.AllocsPerRun(1000, func() { op.Done(figures.OK, 1234*time.Microsecond, 512) }); n != 0 {
		t.Errorf("counting allocates %g times, want 0", n)
	}
	var none *figures.Op
	none.Done(figures.OK, time.Second, 1)
	none.Count(figures.OK, 1)
}

func BenchmarkDone(b *testing.B) {
	op := figures.New(figures.Options{Log: quiet}).Op("mqtt-up", "telemetry")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for d := time.Duration(0); pb.Next(); d += 777 * time.Microsecond {
			op.Done(figures.OK, d%time.Minute, 512)
		}
	})
}
