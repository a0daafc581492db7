package audit_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// vouch tells a journal what the service has.
func vouch(t *testing.T, j *audit.Journal, seq uint64, hash [32]byte, at int64) {
	t.Helper()
	c := wire.Countersign{V: wire.Version, Tenant: "t", Device: "dev-1", Seq: seq, Hash: hash, At: at}
	if err := j.Countersigned(t.Context(), c, "key-1", []byte("order")); err != nil {
		t.Fatal(err)
	}
}

// TestCountersigned holds that the service's word is compared with what the
// journal knows, recorded when it is right and an alarm when it is not.
func TestCountersigned(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, filepath.Join(dir, "spool.db"), spool.Options{})
	o := audit.Options{Mark: filepath.Join(dir, "trail.json"), Strict: true, Waiting: waiting(s)}
	j := openWith(t, s, 1, o)
	record(t, j, 5)
	all, hashes := entries(t, s)
	newest := func(what, kind string, n int) wire.AuditRecord {
		t.Helper()
		all, _ = entries(t, s)
		r := all[len(all)-1]
		if r.Kind != kind || len(all) != n {
			t.Errorf("%s: the last of %d entries is %s, want %s and %d", what, len(all), r.Kind, kind, n)
		}
		return r
	}
	vouch(t, j, 3, hashes[2], 10)
	if r := newest("right", "audit.countersigned", 6); r.Subject != "3" || r.Detail["seq"] != "3" || r.Detail["key"] != "key-1" || len(r.Detail["hash"]) != 64 || r.Actor != "service" {
		t.Errorf("got %+v", r)
	}
	vouch(t, j, 3, hashes[2], 20)
	newest("again", "audit.countersigned", 6)
	_, hashes = entries(t, s)
	vouch(t, j, 6, hashes[5], 30)
	newest("about what was countersigned alone", "audit.countersigned", 6)
	vouch(t, j, 9, hashes[0], 40)
	if r := newest("ahead", "audit.disputed", 7); r.Detail["reason"] != "ahead" || r.Severity != audit.Alarm || r.Outcome != wire.Refused {
		t.Errorf("got %+v", r)
	}
	vouch(t, j, 9, hashes[0], 41)
	newest("ahead again", "audit.disputed", 7)
	vouch(t, j, 4, hashes[0], 50)
	if r := newest("another chain", "audit.disputed", 8); r.Detail["reason"] != "differs" || r.Detail["have"] == r.Detail["hash"] {
		t.Errorf("got %+v", r)
	}
	vouch(t, j, 2, hashes[1], 60)
	if r := newest("it has lost what it had", "audit.disputed", 9); r.Detail["reason"] != "behind" {
		t.Errorf("got %+v", r)
	}
	vouch(t, j, 1, hashes[0], 5)
	newest("an older word", "audit.disputed", 9)
	record(t, j, 1)
	_, hashes = entries(t, s)
	vouch(t, j, 10, hashes[9], 70)
	newest("right again", "audit.countersigned", 11)
	if audit.Marked(o.Mark) != 11 {
		t.Errorf("the mark is at %d", audit.Marked(o.Mark))
	}
}

// TestRemembers holds what a journal knows after a restart: of what is not stored
// yet all and the one before, and of what is long gone nothing.
func TestRemembers(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, filepath.Join(dir, "spool.db"), spool.Options{})
	record(t, openWith(t, s, 1, audit.Options{Strict: true}), 20)
	_, hashes := entries(t, s)
	var ids []uint64
	if err := s.Next(t.Context(), 0, 10, []string{string(wire.Audit)}, func(id uint64, _ string, _ []byte) { ids = append(ids, id) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Done(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
	for seq, tt := range map[uint64]string{20: "", 15: "", 11: "", 10: "", 9: "forgotten", 1: "forgotten"} {
		for _, right := range []bool{true, false} {
			j := openWith(t, s, 2, audit.Options{Strict: true, Waiting: waiting(s)})
			before, _ := j.Head()
			hash := hashes[seq-1]
			if !right {
				hash[0] ^= 1
			}
			vouch(t, j, seq, hash, 1)
			all, h := entries(t, s)
			got := all[len(all)-1]
			if before+1 != got.Seq {
				t.Fatalf("entry %d: nothing is on record", seq)
			}
			if wrong := got.Kind == "audit.disputed"; wrong == right && tt == "" || wrong && tt != "" {
				t.Errorf("entry %d, %v: %s", seq, right, got.Kind)
			}
			if seq == 20 && right { // the later ones are about the same chain
				hashes = append(hashes[:20], h[len(h)-1])
			}
		}
	}
}

func waiting(s *spool.Spool) func(ctx context.Context, yield func([]byte)) error {
	return func(ctx context.Context, yield func([]byte)) error {
		return s.Next(ctx, 0, 64, []string{string(wire.Audit)}, func(_ uint64, _ string, payload []byte) { yield(payload) })
	}
}
