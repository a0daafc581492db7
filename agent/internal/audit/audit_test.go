package audit_test

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// heads numbers messages as agent.go does.
func heads(boot byte) func() wire.Head {
	var seq uint64
	return func() wire.Head {
		seq++
		return wire.Head{V: wire.Version, Boot: wire.Boot{boot}, Seq: seq, Sent: 1}
	}
}

func openSpool(t *testing.T, path string, o spool.Options) *spool.Spool {
	t.Helper()
	s, err := spool.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openJournal(t *testing.T, s *spool.Spool, boot byte) *audit.Journal {
	t.Helper()
	return openWith(t, s, boot, audit.Options{Strict: true})
}

func openWith(t *testing.T, s *spool.Spool, boot byte, o audit.Options) *audit.Journal {
	t.Helper()
	o.Chain, o.Next, o.Rebuilt, o.Recalled, o.Log = s, heads(boot), s.Rebuilt(), s.Recalled(), slog.New(slog.DiscardHandler)
	j, err := audit.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// entries reads the queue; a break may stand in it.
func entries(t *testing.T, s *spool.Spool) (out []wire.AuditRecord, hashes [][32]byte) {
	t.Helper()
	err := s.Next(t.Context(), 0, 5000, []string{string(wire.Audit)}, func(_ uint64, _ string, payload []byte) {
		batch, err := wire.Decode[wire.AuditBatch](payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch.Entries {
			r, err := e.Open()
			if err != nil {
				t.Fatal(err)
			}
			out, hashes = append(out, r), append(hashes, e.Hash)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, hashes
}

// records reads the chain back as the service does.
func records(t *testing.T, s *spool.Spool) (out []wire.AuditRecord) {
	t.Helper()
	var prev [32]byte
	err := s.Next(t.Context(), 0, 1000, []string{string(wire.Audit)}, func(_ uint64, _ string, payload []byte) {
		batch, err := wire.Decode[wire.AuditBatch](payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch.Entries {
			r, err := e.Open()
			if err != nil {
				t.Fatal(err)
			}
			if r.Prev != prev || r.Seq != uint64(len(out)+1) || r.Boot != batch.Head.Boot {
				t.Fatalf("entry %d: got sequence %d after %x, want it after %x", len(out)+1, r.Seq, r.Prev, prev)
			}
			out, prev = append(out, r), e.Hash
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestChainGoesOnOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool.db")
	var hash [32]byte
	for run := range byte(3) {
		s := openSpool(t, path, spool.Options{})
		j := openJournal(t, s, run+1)
		if seq, h := j.Head(); seq != uint64(run)*2 || h != hash {
			t.Errorf("run %d begins at %d %x, want %d %x", run, seq, h, run*2, hash)
		}
		if err := j.Record(t.Context(), "agent.start", audit.Info, "", nil); err != nil {
			t.Fatal(err)
		}
		if err := j.Record(t.Context(), "peripheral.fault", audit.Warn, "printer-1", map[string]string{"reason": "REC_EMPTY"}); err != nil {
			t.Fatal(err)
		}
		_, hash = j.Head()
		s.Close()
	}
	got := records(t, openSpool(t, path, spool.Options{}))
	if len(got) != 6 {
		t.Fatalf("%d entries, want 6", len(got))
	}
	if r := got[5]; r.Kind != "peripheral.fault" || r.Severity != audit.Warn || r.Subject != "printer-1" || r.Detail["reason"] != "REC_EMPTY" || r.Boot != (wire.Boot{3}) || r.At == 0 {
		t.Errorf("last entry: %+v", r)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	j := openJournal(t, s, 1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 8 {
				if err := j.Record(t.Context(), "link.up", audit.Info, fmt.Sprint(i), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := records(t, s); len(got) != 64 {
		t.Errorf("%d entries, want 64", len(got))
	}
	if seq, _ := j.Head(); seq != 64 {
		t.Errorf("head is %d, want 64", seq)
	}
}

// TestNoTextCostsTheEvent holds that whatever is to be told, however long or
// broken, the entry is made, and holds no text but what its kind may say.
func TestNoTextCostsTheEvent(t *testing.T) {
	s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	j := openWith(t, s, 1, audit.Options{})
	long := strings.Repeat("ä", 4000)
	for _, r := range []struct {
		kind, subject string
		detail        map[string]string
	}{
		{"command.failed", long, map[string]string{"a name\nwith all": "x", "": "empty", "reason": "a\xffb", "verb": long}},
		{"link.down", "fleet.example:8883", map[string]string{"reason": "read tcp 10.0.0.1:5: i/o timeout"}},
		{"till.poem", "roses", map[string]string{"line": "are red"}},
		{"a poem", "", nil},
	} {
		if err := j.Record(t.Context(), r.kind, audit.Warn, r.subject, r.detail); err != nil {
			t.Fatal(err)
		}
	}
	got := records(t, s)
	if len(got) != 4 || got[0].Subject != "?" || !maps.Equal(got[0].Detail, map[string]string{"reason": "?", "verb": "?"}) || got[0].Outcome != wire.Failure ||
		got[1].Detail["reason"] != "?" || got[2].Kind != "till.poem" || got[2].Subject != "" || got[2].Detail != nil || got[3].Kind != "?" {
		t.Errorf("got %+v", got)
	}
}

// TestStrict is the twin: where it is asked for, what the contract does not list is
// refused.
func TestStrict(t *testing.T) {
	j := openJournal(t, openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{}), 1)
	for kind, detail := range map[string]map[string]string{
		"till.poem": nil, "link.up": {"poem": "roses"}, "link.down": {"reason": "i/o timeout"},
	} {
		if err := j.Record(t.Context(), kind, audit.Info, "", detail); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: got %v", kind, err)
		}
	}
	if seq, _ := j.Head(); seq != 0 {
		t.Errorf("head is %d", seq)
	}
}

// TestStamped holds what time an entry has, whatever the clock does.
func TestStamped(t *testing.T) {
	s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	at, mono := time.UnixMilli(5000), time.Second
	j := openWith(t, s, 1, audit.Options{Stamp: func() (time.Time, time.Duration, string) { return at, mono, wire.ClockHeld }})
	for range 3 {
		if err := j.Record(t.Context(), "link.up", audit.Info, "", nil); err != nil {
			t.Fatal(err)
		}
		at, mono = at.Add(-time.Second), mono+time.Second
	}
	for i, r := range records(t, s) {
		if r.At != int64(5000-1000*i) || r.Mono != int64(1000+1000*i) || r.Clock != wire.ClockHeld {
			t.Errorf("entry %d: %+v", i+1, r)
		}
	}
}

const pan = "4111111111111111"

// TestNoCardNumberIsRecorded puts a card number into each place of each kind, and
// reads what would leave the box. Its twin has no guard, and finds them.
func TestNoCardNumberIsRecorded(t *testing.T) {
	for _, guarded := range []bool{true, false} {
		s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
		o := audit.Options{}
		if !guarded {
			o.Holds = func(string) bool { return false }
		}
		j := openWith(t, s, 1, o)
		n := 0
		for _, k := range append(wire.AuditKinds(), wire.AuditKind{Name: "k" + pan}) {
			detail := map[string]string{"by": pan, pan: pan}
			for field := range strings.FieldsSeq(k.Details) {
				name, _, _ := strings.Cut(field, ":")
				detail[name] = pan
			}
			if err := j.Record(t.Context(), k.Name, audit.Info, pan, detail); err != nil {
				t.Fatalf("%s: %v", k.Name, err)
			}
		}
		for _, r := range records(t, s) {
			for _, text := range append(slices.Collect(maps.Values(r.Detail)), append(slices.Collect(maps.Keys(r.Detail)), r.Kind, r.Subject, r.Actor, r.Outcome, r.Clock)...) {
				if hal.MayHoldPAN(text) {
					n++
					if guarded {
						t.Errorf("%s tells %q", r.Kind, text)
					}
				}
			}
		}
		if !guarded && n < 100 {
			t.Errorf("without a guard %d card numbers are found: the test could not tell", n)
		}
	}
}

func TestRefused(t *testing.T) {
	s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{MaxBytes: 8 << 10})
	j := openJournal(t, s, 1)
	if err := j.Record(t.Context(), "no such severity", "loud", "", nil); err == nil {
		t.Error("an entry outside the contract was recorded")
	}
	var err error
	n := uint64(0)
	for ; err == nil; n++ {
		err = j.Record(t.Context(), "link.up", audit.Info, "", nil)
	}
	if !errors.Is(err, spool.ErrFull) {
		t.Errorf("got %v, want %v", err, spool.ErrFull)
	}
	if seq, _ := j.Head(); seq != n-1 || len(records(t, s)) != int(n-1) {
		t.Errorf("head is %d, %d entries, want %d", seq, len(records(t, s)), n-1)
	}
}
