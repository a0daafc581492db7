package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// job is one small transaction that shares a commit with others.
type job struct {
	f    func(context.Context, *writer) error
	err  error
	done chan struct{}
}

const (
	maxJobs = 512 // in one commit
	saveJob = `SAVEPOINT job`
)

// shared is tx for small transactions that many devices cause at one moment.
// Those that wait for the writer together are done in one commit: whoever gets
// the writer works for all of them. When shared returns nil, what f did
// survives a power cut; f that fails takes nothing else with it.
func (s *Store) shared(ctx context.Context, f func(context.Context, *writer) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{f: f, done: make(chan struct{})}
	s.mu.Lock()
	s.jobs = append(s.jobs, j)
	s.mu.Unlock()
	for {
		select {
		case <-j.done:
			return j.err
		case w := <-s.w:
			if w == nil {
				if s.withdraw(j) {
					return errClosed
				}
				<-j.done
				return j.err
			}
			s.lead(ctx, w)
			s.w <- w
		case <-ctx.Done():
			if s.withdraw(j) {
				return ctx.Err()
			}
			<-j.done // somebody has it in hand
			return j.err
		}
	}
}

// withdraw takes back a job that nobody has begun.
func (s *Store) withdraw(j *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.jobs, j)
	if i < 0 {
		return false
	}
	s.jobs = slices.Delete(s.jobs, i, i+1)
	return true
}

// lead does the jobs that wait, in their order, in one transaction.
func (s *Store) lead(ctx context.Context, w *writer) {
	s.mu.Lock()
	n := min(len(s.jobs), maxJobs)
	jobs := slices.Clone(s.jobs[:n])
	s.jobs = slices.Delete(s.jobs, 0, n)
	s.mu.Unlock()
	if n == 0 {
		return // the one before did them all
	}
	err := s.with(ctx, w, func(ctx context.Context, w *writer) error {
		for _, j := range jobs {
			if err := w.sync(ctx); err != nil { // of the job before
				return err
			}
			if err := w.exec(ctx, saveJob); err != nil {
				return fmt.Errorf("begin: %w", err)
			}
			if j.err = j.f(ctx, w); j.err == nil {
				j.err = w.sync(ctx)
			}
			if j.err != nil {
				w.forget() // ids that it gave
				w.newest = -1
				if len(w.queue) > 0 && w.queue[0].query == saveJob { // nothing of it was sent
					w.queue = nil
					continue
				}
				w.queue = nil
				if _, err := w.changed(ctx, `ROLLBACK TO job`); err != nil {
					return errors.Join(j.err, fmt.Errorf("roll back: %w", err))
				}
			}
			if err := w.exec(ctx, `RELEASE job`); err != nil {
				return fmt.Errorf("release: %w", err)
			}
		}
		return nil
	})
	for _, j := range jobs {
		if err != nil {
			j.err = err
		}
		close(j.done)
	}
}

// Queued is how many small transactions wait for the next shared commit.
func (s *Store) Queued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs)
}
