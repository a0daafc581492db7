package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A till's medium is flash, and lives as long as little is written to it. Pages
// are small, because a transaction writes whole ones; what is not kept for its
// own sake is not synced by itself; what the service has stored is forgotten
// with what is written next; and the log is written back when it has grown, so
// that a page which changes often is written back once.
const (
	pageSize = 1024

	walHead   = 32 // bytes of the log's header, and of each frame's [SQLite file format, 4.1 and 4.2]
	frameHead = 24
	mostPages = 1 << 27 // of the largest quota
)

var logFrames int64 = 1000 // pages in the log before it is written back

// flash knows what goes to the medium: it counts the pages in the log and those
// that are written back from it, and syncs the log when the window has passed.
// Whoever calls it holds the spool's lock.
type flash struct {
	window time.Duration
	settle func() // runs when the window has passed
	timer  *time.Timer
	armed  bool
	dirty  bool // written and not synced

	wal     *os.File
	page    int64
	salt    [8]byte
	frames  int64    // in the log
	touched []uint64 // a bit for each page in the log
	pages   int64    // bits set

	written int64  // bytes
	stored  uint64 // messages
}

// arm has settle run when the window has passed.
func (f *flash) arm() {
	if f.armed || f.settle == nil {
		return
	}
	f.armed = true
	if f.timer == nil {
		f.timer = time.AfterFunc(f.window, f.settle)
		return
	}
	f.timer.Reset(f.window)
}

// wrote takes note of a transaction, and makes it survive a power cut when it is
// to do so at once. SQLite would sync more than the bytes that count: its size
// and times are the same as before, and to write them costs flash.
func (s *Spool) wrote(now bool) error {
	f := &s.flash
	f.follow(s.path)
	f.dirty = true
	var err error
	if now {
		err = f.sync()
	}
	if f.frames >= logFrames {
		_ = s.checkpoint() // or the next time
	}
	if f.dirty {
		f.arm()
	}
	return err
}

// follow reads what has been added to the log: of each frame the number of its
// page, and that it is of this round of the log.
func (f *flash) follow(path string) {
	if f.wal == nil {
		w, err := os.Open(path + "-wal") // #nosec G304 -- beside the spool
		if err != nil {
			return
		}
		f.wal = w
	}
	var head [walHead]byte
	if _, err := f.wal.ReadAt(head[:], 0); err != nil {
		return
	}
	if salt := [8]byte(head[16:24]); salt != f.salt {
		f.salt, f.frames, f.page = salt, 0, int64(binary.BigEndian.Uint32(head[8:]))
		f.written += walHead
	}
	for {
		var frame [frameHead]byte
		if _, err := f.wal.ReadAt(frame[:], walHead+f.frames*(frameHead+f.page)); err != nil || [8]byte(frame[8:16]) != f.salt {
			return
		}
		f.frames++
		f.written += frameHead + f.page
		f.touch(binary.BigEndian.Uint32(frame[:]))
	}
}

func (f *flash) touch(page uint32) {
	word, bit := int(page/64), uint64(1)<<(page%64)
	if page > mostPages { // no page of ours: the log is damaged
		return
	}
	if word >= len(f.touched) {
		f.touched = append(f.touched, make([]uint64, word+1-len(f.touched))...)
	}
	if f.touched[word]&bit == 0 {
		f.touched[word] |= bit
		f.pages++
	}
}

// checkpoint writes the log back.
func (s *Spool) checkpoint() error {
	var busy, log, done int64
	err := s.conn.QueryRowContext(context.Background(), "PRAGMA wal_checkpoint(RESTART)").Scan(&busy, &log, &done)
	if err == nil && (busy != 0 || log != done) {
		err = fmt.Errorf("%d of %d pages written back: %w", done, log, ErrDisk)
	}
	if err != nil {
		s.log.Warn("spool log not written back", "error", err)
		return typed(err)
	}
	f := &s.flash
	f.written += f.pages * f.page
	f.frames, f.pages, f.dirty = 0, 0, false
	clear(f.touched)
	f.salt = [8]byte{} // the next transaction begins the log anew, under another
	return nil
}

// sync makes what was written survive a power cut.
func (f *flash) sync() error {
	if !f.dirty {
		return nil
	}
	if f.wal == nil {
		return errors.New("there is no log")
	}
	if err := unix.Fdatasync(int(f.wal.Fd())); err != nil { // #nosec G115 -- a descriptor
		return err
	}
	f.dirty = false
	return nil
}

// Sync makes all that was acknowledged survive a power cut, as happens by itself
// when the window has passed.
func (s *Spool) Sync() error {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	if s.conn == nil {
		return ErrClosed
	}
	return errors.Join(s.flash.sync(), s.syncHeads())
}

// pass is what happens when the window has passed.
func (s *Spool) pass() {
	s.lock <- struct{}{}
	s.flash.armed = false
	<-s.lock
	err := s.Sync()
	if err == nil || errors.Is(err, ErrClosed) {
		return
	}
	s.log.Warn("spool not synced; a power cut may cost the last telemetry", "error", err)
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	if s.conn != nil {
		s.flash.arm()
	}
}

func (f *flash) close() {
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.wal != nil {
		_ = f.wal.Close()
	}
	f.timer, f.wal, f.armed, f.dirty = nil, nil, false, false
	f.salt, f.frames, f.pages, f.touched = [8]byte{}, 0, 0, nil
}

// Written returns how many bytes the spool has written to its file and the log
// beside it since it was opened, and how many messages it has stored with them.
func (s *Spool) Written() (bytes, messages uint64) {
	s.lock <- struct{}{}
	defer func() { <-s.lock }()
	return uint64(s.flash.written), s.flash.stored // #nosec G115 -- counts up
}
