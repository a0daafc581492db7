package spool

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The reserve: a file of nothing beside the spool, for when others have filled
// the medium. It gives way a piece at a time. The first piece is for whoever
// comes first: with it the log can be written back, and from then on what is
// there changes places. Audit has the pieces after it, and the last is for
// forgetting, so that the service can make room. Room is set aside, not written.
const (
	reserveEnd   = ".reserve"
	reserveFirst = 1 << 20 // as much as is in the log
	reservePiece = 128 << 10
	reserveLast  = 2 * reservePiece
	reserveMost  = reserveFirst + 8*reservePiece + reserveLast
	smallLog     = 64          // pages in the log while the medium is full
	refillEvery  = time.Minute // between two tries to fill it up again
)

var fallocate = unix.Fallocate

// lays reports how large the reserve is.
func (s *Spool) lays() int64 {
	fi, err := os.Stat(s.path + reserveEnd)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// fillReserve sets aside what is missing.
func (s *Spool) fillReserve() error {
	f, err := os.OpenFile(s.path+reserveEnd, os.O_RDWR|os.O_CREATE, 0o600) // #nosec G304 -- beside the spool
	if err != nil {
		return err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); { // a signal is no lack of room
		err = fallocate(int(f.Fd()), 0, 0, reserveMost) // #nosec G115 -- a descriptor
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) { // UBIFS, NFS: this medium has no reserve, and is not full
		s.drawn = false
		s.log.Info("the file system sets no room aside for when the medium is full")
		return f.Close()
	}
	if err == nil && s.drawn {
		s.log.Info("there is room on the medium again")
	}
	s.drawn = err != nil && s.lays() < reserveMost
	return errors.Join(err, f.Close())
}

// draw frees a piece of the reserve for a transaction of this care.
func (s *Spool) draw(c care) error {
	now := s.lays()
	left := max(0, now-reservePiece)
	if now > reserveMost-reserveFirst {
		left = reserveMost - reserveFirst
	}
	least := int64(reserveMost - reserveFirst)
	switch c {
	case audit:
		least = reserveLast
	case forgets:
		least = 0
	}
	if left < least || left == now {
		return fmt.Errorf("the reserve is used up: %w", ErrDisk)
	}
	if err := os.Truncate(s.path+reserveEnd, left); err != nil {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	if !s.drawn {
		s.log.Error("the medium is full: only audit goes on, in its reserve")
	}
	s.drawn, s.refill = true, time.Now()
	return nil
}

// ready holds the log short while the medium is full: what is in it must have its
// place in the file, or the log can never begin anew.
func (s *Spool) ready(c care) error {
	if !s.drawn || s.flash.frames < smallLog || c == forgets {
		return nil
	}
	return s.checkpoint()
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
