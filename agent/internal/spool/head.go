package spool

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"
)

// Values that Options.Copied names have a copy beside the file: when the file is
// damaged, the chain whose head one is goes on. A copy has two places, which are
// written in turn, so that a power cut costs one of them at most. It is synced when
// the window has passed: after a power cut it may be behind by that, never ahead
// of what was stored.
const (
	copyEnd    = ".heads"
	copyPlace  = 512 // bytes: a sector
	copyMagic  = 0x54574831
	copyFixed  = 10 // magic, sum, length
	copyLength = copyPlace - copyFixed
)

// keepHead writes a copy of a value as it lies in the file.
func (s *Spool) keepHead(key string, value []byte) {
	i := s.copied(key)
	if i < 0 || len(value) > copyLength {
		return
	}
	if s.heads == nil {
		f, err := os.OpenFile(s.path+copyEnd, os.O_RDWR|os.O_CREATE, 0o600) // #nosec G304 -- beside the spool
		if err != nil {
			s.log.Warn("no copy of the head of the chain", "error", err)
			return
		}
		s.heads = f
	}
	place := make([]byte, copyPlace)
	binary.BigEndian.PutUint32(place, copyMagic)
	binary.BigEndian.PutUint16(place[8:], uint16(len(value))) // #nosec G115 -- no longer than a place
	copy(place[copyFixed:], value)
	binary.BigEndian.PutUint32(place[4:], crc32.ChecksumIEEE(place[8:]))
	s.turn++
	if _, err := s.heads.WriteAt(place, int64(2*i+s.turn%2)*copyPlace); err != nil {
		s.log.Warn("no copy of the head of the chain", "error", err)
		return
	}
	s.flash.written += copyPlace
	s.late = true
	s.flash.arm()
}

// syncHeads makes the copies survive a power cut.
func (s *Spool) syncHeads() error {
	if !s.late || s.heads == nil {
		return nil
	}
	if err := unix.Fdatasync(int(s.heads.Fd())); err != nil { // #nosec G115 -- a descriptor
		return err
	}
	s.late = false
	return nil
}

func (s *Spool) copied(key string) int {
	for i, k := range s.o.Copied {
		if k == key {
			return i
		}
	}
	return -1
}

// recall puts back what the copies beside a damaged file have and what was
// salvaged has not, or not as far, and writes down as what that file is kept. A
// head begins with the number of its entry, so the greater is the newer.
func (s *Spool) recall(damaged string, keys []string, kept string) error {
	b, _ := os.ReadFile(damaged + copyEnd) // #nosec G304 -- beside the spool; or there are none
	recalled := byte('0')
	return s.attempt(firm, func(t *tx) error {
		if v, err := s.load(rebuiltKey); err != nil {
			return err
		} else if len(v) > 0 { // that has not been told either
			recalled = v[0]
		}
		for i, key := range keys {
			var best []byte
			for place := 2 * i; place < 2*i+2 && len(b) >= (place+1)*copyPlace; place++ {
				blob := copyIn(b[place*copyPlace : (place+1)*copyPlace])
				if v, err := s.safe.unpack(ofValue(key), blob); blob != nil && err == nil && bytes.Compare(v, best) > 0 {
					best = v
				}
			}
			now, err := s.load(key)
			if err == nil && bytes.Compare(best, now) > 0 {
				s.log.Warn("the head of the chain comes from its copy", "key", key)
				recalled = '1'
				err = t.set(key, best)
			}
			if err != nil {
				return err
			}
		}
		return t.set(rebuiltKey, append([]byte{recalled}, kept...))
	})
}

func copyIn(place []byte) []byte {
	n := int(binary.BigEndian.Uint16(place[8:]))
	if binary.BigEndian.Uint32(place) != copyMagic || binary.BigEndian.Uint32(place[4:]) != crc32.ChecksumIEEE(place[8:]) || n > copyLength {
		return nil
	}
	return place[copyFixed : copyFixed+n]
}
