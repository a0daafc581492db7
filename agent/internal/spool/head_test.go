package spool_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
)

// TestHeadGoesOn damages a file beyond reading: the chain goes on from the copy
// of its head, or from the one before when the power was cut in the newest.
func TestHeadGoesOn(t *testing.T) {
	const entries = 7
	ruin := func(t *testing.T, path string, cut int) {
		if err := os.WriteFile(path, bytes.Repeat([]byte("no database "), 2000), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path + "-wal"); err != nil { // it would heal what it still holds
			t.Fatal(err)
		}
		b, err := os.ReadFile(path + ".heads")
		if err != nil {
			t.Fatal(err)
		}
		newest := 0
		for i := 1; i < len(b)/512; i++ {
			if bytes.Compare(b[i*512+10:i*512+18], b[newest*512+10:newest*512+18]) > 0 {
				newest = i
			}
		}
		for i := range cut {
			b[(newest+i)%2*512+12] ^= 0xff
		}
		if err := os.WriteFile(path+".heads", b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		o    spool.Options
		cut  int
		want uint64
	}{
		"whole":            {o: spool.Options{Copied: []string{"chain"}}, want: entries},
		"newest is torn":   {o: spool.Options{Copied: []string{"chain"}}, cut: 1, want: entries - 1},
		"both are torn":    {o: spool.Options{Copied: []string{"chain"}}, cut: 2},
		"locked":           {o: spool.Options{Copied: []string{"chain"}, Key: newKey()}, want: entries},
		"locked but plain": {o: spool.Options{Copied: []string{"chain"}, Key: newKey(), Plain: []string{"chain"}}, want: entries},
		"no copy of it":    {want: 0, o: spool.Options{Copied: []string{"other"}}},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t)
			s := open(t, path, c.o)
			for range entries {
				if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
					t.Fatal(err)
				}
			}
			save(t, s, "other", "x")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			ruin(t, path, c.cut)
			s = open(t, path, c.o)
			if s.Rebuilt() == "" {
				t.Fatal("nobody was told of the damage")
			}
			blob, err := s.Load(t.Context(), "chain")
			if err != nil {
				t.Fatal(err)
			}
			if c.want == 0 {
				if blob != nil {
					t.Errorf("a head of %x from nowhere: whoever is told that it is lost begins the chain anew", blob)
				}
				return
			}
			if len(blob) != 8 || binary.BigEndian.Uint64(blob) != c.want {
				t.Errorf("the head is %x, want %d", blob, c.want)
			}
			if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
				t.Fatal(err)
			}
		})
	}
	// A file that is not there is another life: what lies beside it is of the one before.
	path, o := file(t), spool.Options{Copied: []string{"chain"}}
	s := open(t, path, o)
	if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, o)
	if blob, err := s.Load(t.Context(), "chain"); blob != nil || err != nil || s.Rebuilt() != "" {
		t.Errorf("a new file has the head %x (%v), rebuilt %q", blob, err, s.Rebuilt())
	}
}

// FuzzCopies reads copies of anything: what is taken for a head is whole.
func FuzzCopies(f *testing.F) {
	path := file(f)
	s := open(f, path, spool.Options{Copied: []string{"chain"}})
	for range 3 {
		if err := s.Append(f.Context(), "chain", "audit", grow); err != nil {
			f.Fatal(err)
		}
	}
	s.Close()
	genuine, err := os.ReadFile(path + ".heads")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(genuine[:512])
	f.Add(genuine[512:])
	f.Add([]byte("TWH1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		place := append(bytes.Clone(b), make([]byte, 512)...)[:512]
		v := spool.CopyIn(place)
		if v == nil {
			return
		}
		sum := binary.BigEndian.Uint32(place[4:])
		if len(v) != int(binary.BigEndian.Uint16(place[8:])) || sum != crc32.ChecksumIEEE(place[8:]) || string(place[:4]) != "TWH1" {
			t.Errorf("took %x of %x", v, place)
		}
	})
}
