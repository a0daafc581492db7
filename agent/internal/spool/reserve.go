package spool

import (
	"context"
	"fmt"
	"time"
)

// The reserve in the file: rows of nothing, which only audit may take the place
// of. When others have filled the medium the file cannot grow, and what happens
// is still recorded. The log keeps its size for the same reason.
const (
	ballast      = 32 << 10    // bytes of a row
	mostBallast  = 1 << 20     // bytes in all
	ballastShare = 64          // at most this part of the quota
	refillEvery  = time.Minute // between two tries to fill it up again
)

func (s *Spool) wantedBallast() int64 { return min(mostBallast, s.max/ballastShare) / ballast }

// fillReserve makes the rows that are missing.
func (s *Spool) fillReserve() error {
	var n int64
	if err := s.conn.QueryRowContext(context.Background(), "SELECT count(*) FROM reserve").Scan(&n); err != nil {
		return err
	}
	for ; n < s.wantedBallast(); n++ {
		if err := s.attempt("NORMAL", func(t *tx) error {
			return t.do("INSERT INTO reserve (room) VALUES (zeroblob(?))", ballast)
		}); err != nil {
			return typed(err)
		}
	}
	s.drawn = false
	return nil
}

// draw frees a row of the reserve.
func (t *tx) draw() error {
	res, err := t.s.conn.ExecContext(context.Background(), "DELETE FROM reserve WHERE id = (SELECT max(id) FROM reserve)")
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return fmt.Errorf("the reserve is used up: %w", ErrDisk)
	}
	if !t.s.drawn {
		t.s.log.Error("the medium is full: audit goes on in its reserve")
	}
	t.s.drawn, t.s.refill = true, time.Now()
	return nil
}

// replenish fills the reserve up again when there is room.
func (s *Spool) replenish() {
	if time.Since(s.refill) < refillEvery {
		return
	}
	s.refill = time.Now()
	if err := s.fillReserve(); err != nil {
		s.log.Debug("the medium is still full", "error", err)
	}
}
