package store

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/simulator/postgres"
)

// held opens a store and takes the writer, so that jobs have to wait.
func held(t *testing.T) (*Store, *writer) {
	t.Helper()
	s, err := Open(t.Context(), postgres.Place(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, <-s.w
}

// waiting waits until n jobs do.
func waiting(s *Store, n int) {
	for {
		s.mu.Lock()
		have := len(s.jobs)
		s.mu.Unlock()
		if have == n {
			return
		}
		runtime.Gosched()
	}
}

// TestSharedCommit lets jobs wait for the writer: they are done in one transaction, and those that fail take
// nothing else with them.
func TestSharedCommit(t *testing.T) {
	s, w := held(t)
	const n = 40
	var group sync.WaitGroup
	var mu sync.Mutex
	commits := map[time.Time]int{}
	errs := make([]error, n)
	for i := range n {
		group.Go(func() {
			errs[i] = s.shared(t.Context(), func(ctx context.Context, w *writer) error {
				mu.Lock()
				commits[w.now]++
				mu.Unlock()
				if i%4 == 2 { // at once
					return fleet.ErrConflict
				}
				if err := w.audit(ctx, "main", fleet.AuditEvent{Kind: "job"}); err != nil || i%4 == 3 {
					return err
				}
				if i%4 == 1 { // by the database, which may say so later
					return w.exec(ctx, `INSERT INTO series (device, peripheral, name) VALUES ('nobody', '', '')`)
				}
				return fleet.ErrConflict
			})
		})
	}
	waiting(s, n)
	s.w <- w
	group.Wait()
	if len(commits) != 1 {
		t.Errorf("got %d commits, want 1", len(commits))
	}
	for i, err := range errs {
		if want := i%4 != 3; want != (err != nil) || i%2 == 0 && !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("job %d: got error %v", i, err)
		}
	}
	rep, err := s.VerifyAudit(t.Context(), "main", "")
	if err != nil || !rep.OK || rep.Entries != n/4 {
		t.Errorf("got %+v, %v, want %d entries", rep, err, n/4)
	}
}

// TestSharedLimit gives the writer back between two commits when more wait than one holds.
func TestSharedLimit(t *testing.T) {
	s, w := held(t)
	var group sync.WaitGroup
	var mu sync.Mutex
	commits := map[time.Time]int{}
	for range maxJobs + 1 {
		group.Go(func() {
			_ = s.shared(t.Context(), func(_ context.Context, w *writer) error {
				mu.Lock()
				commits[w.now]++
				mu.Unlock()
				return nil
			})
		})
	}
	waiting(s, maxJobs+1)
	s.w <- w
	group.Wait()
	done := 0
	for _, n := range commits {
		done += n
	}
	if len(commits) != 2 || done != maxJobs+1 {
		t.Errorf("got %d jobs in %d commits, want %d in 2", done, len(commits), maxJobs+1)
	}
}

// TestSharedWithdraws ends a wait: the job is not done later either.
func TestSharedWithdraws(t *testing.T) {
	s, w := held(t)
	ctx, cancel := context.WithCancel(t.Context())
	never := func(context.Context, *writer) error { t.Error("a job that was given up was done"); return nil }
	errs := make(chan error, 1)
	go func() { errs <- s.shared(ctx, never) }()
	waiting(s, 1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	s.w <- w
	if err := s.shared(t.Context(), func(context.Context, *writer) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.shared(t.Context(), never); !errors.Is(err, errClosed) {
		t.Errorf("after Close: got %v, want %v", err, errClosed)
	}
}

// TestTouchedAreBounded writes steady verdicts before too many wait.
func TestTouchedAreBounded(t *testing.T) {
	s, w := held(t)
	s.w <- w
	for n := range maxTouched - 1 {
		if err := s.touch(t.Context(), fleet.DeviceID(rune(n)), time.Now()); err != nil {
			t.Fatal(err)
		}
		s.soon.Stop() // the clock would write them too
	}
	if len(s.touched) != maxTouched-1 {
		t.Fatalf("got %d waiting, want %d", len(s.touched), maxTouched-1)
	}
	if err := s.touch(t.Context(), "one more", time.Now()); err != nil || len(s.touched) != 0 {
		t.Errorf("got %d waiting, %v, want none", len(s.touched), err)
	}
}
