package escpos

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"
)

// stream is a job on its way through: it is taken apart into commands, of
// which some are not for the printer, and holds the session's turn for as long
// as the printer has a command half way. It keeps of a job what may become
// such a command, which is a few bytes, and nothing else.
type stream struct {
	p     *printer
	s     *session
	w     walker
	held  []byte // of the present command, not passed on yet
	out   []byte
	turn  bool // we have it
	bytes int64
	noted struct{ kicks, cuts, dots int } // that the printer's books have
	// meet is asked of each command that is no plain part of a job, with all
	// before it passed on; true passes it on too.
	meet func(ctx context.Context, k kind, cmd []byte) (bool, error)
	// begin is asked before anything is written, and waits for the printer to be
	// free; nil: it is.
	begin func(ctx context.Context) error
	// goOn is asked before each write; nil: nobody minds.
	goOn func() error
	// stuck is asked when the printer takes nothing for a while; nil goes on.
	stuck func() error
}

// pass takes in more of the job.
func (j *stream) pass(ctx context.Context, b []byte) error {
	piece := len(b)
	if j.s.flow {
		piece = flowPiece
	}
	for part := range slices.Chunk(b, max(1, piece)) {
		for _, c := range part {
			if err := j.step(ctx, c); err != nil {
				return err
			}
		}
		if err := j.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (j *stream) step(ctx context.Context, c byte) error {
	j.held = append(j.held, c)
	var k kind
	var cmd []byte
	if j.w.step(c) {
		k, cmd = j.w.command()
	} else if j.w.perhaps() {
		return nil
	}
	if k == other {
		cmd = nil
	}
	j.out = append(j.out, j.held[:len(j.held)-len(cmd)]...)
	j.held = j.held[:0]
	if k == other {
		return nil
	}
	if err := j.flush(ctx); err != nil {
		return err
	}
	on, err := j.meet(ctx, k, cmd)
	if err != nil || !on {
		return err
	}
	j.out = append(j.out, cmd...)
	if err := j.flush(ctx); err != nil || k != reset || j.p.queries() == "" {
		return err
	}
	return j.s.arm(ctx) // it may have been switched off, and nothing would be told of this job
}

// between reports whether the printer has no command half way.
func (j *stream) between() bool { return j.w.between() || len(j.held) > 0 }

// flush writes what has been collected.
func (j *stream) flush(ctx context.Context) error {
	if len(j.out) == 0 {
		return nil
	}
	if j.begin != nil {
		if err := j.begin(ctx); err != nil {
			return err
		}
	}
	if !j.turn {
		if err := j.open(ctx); err != nil {
			return err
		}
		if err := j.s.acquire(ctx); err != nil {
			return err
		}
		j.turn = true
	}
	if j.w.murky {
		j.w.murky = false
		j.s.blur()
	}
	j.note()
	err := j.write(ctx, j.out)
	j.out = j.out[:0]
	if err == nil && j.between() {
		j.give()
	}
	return err
}

// note enters into the printer's books what goes out now.
func (j *stream) note() {
	j.p.passed(j.w.kicks-j.noted.kicks, j.w.cuts-j.noted.cuts, j.w.dots-j.noted.dots)
	j.noted.kicks, j.noted.cuts, j.noted.dots = j.w.kicks, j.w.cuts, j.w.dots
}

func (j *stream) write(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		var err error
		if j.goOn != nil {
			err = j.goOn()
		}
		if err == nil {
			err = j.s.pushTail()
		}
		if err == nil {
			var n int
			j.s.laden()
			n, err = j.s.push(b)
			b = b[n:]
			j.bytes += int64(n)
		}
		if errors.Is(err, errBusy) {
			err = j.stuck()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *stream) give() {
	if j.turn {
		j.turn = false
		j.s.release()
	}
}

// finish ends a job. A command that was left half way is filled up, so that
// the next job is not taken for its data; one that would take too much costs
// the connection.
func (j *stream) finish(ctx context.Context) error {
	defer j.give()
	j.held = nil
	if j.between() || !j.turn {
		return nil
	}
	n, ok := j.w.padding(64 << 10)
	if !ok {
		j.p.spoil(j.s)
		return net.ErrClosed
	}
	bytes := j.bytes
	defer func() { j.bytes = bytes }()
	return j.write(ctx, make([]byte, n))
}

// open waits until XOFF is over, for as long as goOn says.
func (j *stream) open(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		j.s.mu.Lock()
		gate := j.s.gate
		j.s.mu.Unlock()
		if gate == nil {
			return nil
		}
		select {
		case <-gate:
		case <-tick.C:
			if j.goOn == nil {
				continue
			}
			if err := j.goOn(); err != nil {
				return err
			}
		case <-j.s.lost:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// blur notes that real-time answers may be to something in a picture.
func (s *session) blur() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.murky = time.Now()
}
