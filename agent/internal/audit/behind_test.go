package audit_test

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// TestBehind: a chain that begins anew goes on behind what the service has, with
// all that it tells; the one that the service knows is left alone.
func TestBehind(t *testing.T) {
	old := [32]byte{7}
	for name, tt := range map[string]struct {
		records int
		stored  int // of them the service has, and has said so
		seq     uint64
		own     bool // the service's hash is that of the entry with this number
		moves   bool
	}{
		"nothing of it was handed over, the old one was longer":   {records: 3, seq: 900, moves: true},
		"nothing of it was handed over, the old one was shorter":  {records: 5, seq: 2, moves: true},
		"nothing was recorded yet":                                {records: 0, seq: 4, moves: true},
		"cut off when its messages were dropped":                  {records: 3, stored: 3, seq: 900, moves: true},
		"the service has it, and has not said so":                 {records: 5, seq: 2, own: true},
		"the service has all of it, and has not said so":          {records: 5, seq: 5, own: true},
		"the service knows it":                                    {records: 5, stored: 3, seq: 3, own: true},
		"another chain, a part of which the service has: a clone": {records: 5, stored: 1, seq: 3},
	} {
		t.Run(name, func(t *testing.T) {
			s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
			j := openJournal(t, s, 1)
			for range tt.records {
				if err := j.Record(t.Context(), "agent.start", "info", "1.0.0", map[string]string{"slot": "a"}); err != nil {
					t.Fatal(err)
				}
			}
			_, hashes := entries(t, s)
			hash := old
			if tt.own {
				hash = hashes[tt.seq-1]
			}
			var ids []uint64
			var waiting [][]byte
			look := func() {
				ids, waiting = nil, nil
				if err := s.Next(t.Context(), 0, 100, nil, func(id uint64, _ string, payload []byte) {
					ids, waiting = append(ids, id), append(waiting, bytes.Clone(payload))
				}); err != nil {
					t.Fatal(err)
				}
			}
			look()
			if err := s.Done(t.Context(), ids[:tt.stored]...); err != nil {
				t.Fatal(err)
			}
			look()
			head, _ := j.Head()
			for range 2 { // the second time it is the chain that the service is told
				if err := j.Behind(t.Context(), tt.seq, hash, waiting, func(ctx context.Context) error { return s.Done(ctx, ids...) }); err != nil {
					t.Fatal(err)
				}
				look()
				if !tt.moves {
					break
				}
			}
			got, _ := entries(t, s)
			if now, _ := j.Head(); !tt.moves {
				if now != head || len(got) != tt.records-tt.stored {
					t.Errorf("head %d and %d waiting, want %d and %d: nothing was to happen", now, len(got), head, tt.records-tt.stored)
				}
				return
			}
			if len(got) != 1+tt.records-tt.stored || got[0].Kind != "audit.break" || got[0].Break == nil || got[0].Break.Seq != tt.seq || got[0].Break.Hash != old {
				t.Fatalf("got %+v", got)
			}
			if got[0].Seq <= tt.seq || slices.ContainsFunc(got[1:], func(r wire.AuditRecord) bool {
				return r.Kind != "agent.start" || r.Detail["slot"] != "a" || r.Subject != "1.0.0"
			}) {
				t.Errorf("behind the break: %+v", got)
			}
		})
	}
}
