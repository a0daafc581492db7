package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	tries     = 6        // fruitless answers of the service in a row, after which the fetch is given up for now
	peerTries = 2        // of a till or medium
	lieTries  = 3        // wrong bytes from the service
	fruitful  = 16 << 10 // bytes that make a try worth it
	pauseMin  = time.Second
	pauseMax  = time.Minute
)

// run asks the sources for the blob, nearest first, until want says that
// nothing is missing. pull takes one answer from a source and returns how many
// bytes of it were of use; an error of our own disk ends the run.
func (j *job) run(ctx context.Context, c blob, want func() bool, pull func(ctx context.Context, s *source) (int64, error)) error {
	for want() {
		s, why := j.pick(c)
		if s == nil {
			return why
		}
		n, err := pull(ctx, s)
		if n >= fruitful || err == nil && n > 0 {
			s.fails = 0
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if own, ok := errors.AsType[errDisk](err); ok {
			return own
		}
		if err == nil && n > 0 {
			continue
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		pause := j.judge(s, c, err)
		if pause == 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	return nil
}

// pick returns the nearest source that may still have the blob, or why there is
// none.
func (j *job) pick(c blob) (*source, error) {
	var why error
	for _, s := range j.sources {
		switch {
		case s.dead != nil:
			why = s.dead // that of the service comes last, and counts
		case s.lacks[c.sum] != nil:
			why = fmt.Errorf("%s %w", s.name, s.lacks[c.sum])
		case time.Now().Before(s.later):
			why = fmt.Errorf("%s is busy", s.name)
		default:
			return s, nil
		}
	}
	return nil, why
}

// judge decides what becomes of a source that failed, and how long to wait
// before anything is asked again.
func (j *job) judge(s *source, c blob, err error) time.Duration {
	switch {
	case errors.Is(err, errNoRanges):
		if s.stream {
			err = errAnswer // it began elsewhere than at the beginning
			break
		}
		s.stream = true
		if s.kind == wire {
			j.whole("the service knows no ranges")
		}
		return 0
	case errors.Is(err, ErrBudget):
		s.dead = err
		return 0
	case errors.Is(err, errLacks):
		s.lacks[c.sum] = err
		return 0
	case errors.Is(err, errLies):
		j.f.o.Log.Error("source sent wrong bytes", slog.String("source", s.name), slog.String("target", j.t.Path))
		if s.kind != wire {
			s.dead = fmt.Errorf("%s %w", s.name, err)
			return 0
		}
		if j.lies++; j.lies >= lieTries {
			s.lacks[c.sum], j.lies = fmt.Errorf("%w: %w", err, ErrMismatch), 0
			return 0
		}
	}
	if later, ok := errors.AsType[*errLater](err); ok && s.kind == peer {
		s.later = time.Now().Add(max(later.after, pauseMin)) // others are asked meanwhile
		return 0
	}
	s.fails++
	enough := s.fails >= tries && !j.patient
	if s.kind != wire {
		enough = s.fails >= peerTries || errors.Is(err, errAnswer) || errors.Is(err, errSlow)
	}
	if enough {
		s.dead = fmt.Errorf("%s: %w", s.name, err)
		return 0
	}
	if s.kind != wire {
		return 0 // the next one is asked meanwhile
	}
	pause := min(pauseMin<<min(s.fails-1, 10), pauseMax)
	// Half of it by chance: a fleet that lost its service must not come back as one.
	pause = pause/2 + rand.N(pause/2+1) // #nosec G404 -- no secret
	if later, ok := errors.AsType[*errLater](err); ok {
		pause = max(pause, later.after)
	}
	j.f.o.Log.Warn("fetch will go on", slog.String("target", j.t.Path), slog.Int64("done", j.done), slog.Duration("in", pause), slog.Any("err", err))
	return pause
}
