package audit_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
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
	j, err := audit.Open(t.Context(), s, heads(boot), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return j
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
		if err := j.Record(t.Context(), "peripheral.fault", audit.Warn, "printer-1", map[string]string{"code": "REC_EMPTY"}); err != nil {
			t.Fatal(err)
		}
		_, hash = j.Head()
		s.Close()
	}
	got := records(t, openSpool(t, path, spool.Options{}))
	if len(got) != 6 {
		t.Fatalf("%d entries, want 6", len(got))
	}
	if r := got[5]; r.Kind != "peripheral.fault" || r.Severity != audit.Warn || r.Subject != "printer-1" || r.Detail["code"] != "REC_EMPTY" || r.Boot != (wire.Boot{3}) || r.At == 0 {
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
				if err := j.Record(t.Context(), "test.event", audit.Info, fmt.Sprint(i), nil); err != nil {
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

// TestLongTexts holds that no text, however long or broken, costs the event.
func TestLongTexts(t *testing.T) {
	s := openSpool(t, filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	j := openJournal(t, s, 1)
	detail := map[string]string{"a name\nwith all": "x", "": "empty", "broken": "a\xffb", "error": strings.Repeat("ä", 4000)}
	if err := j.Record(t.Context(), "command.failed", audit.Warn, strings.Repeat("s", 9999), detail); err != nil {
		t.Fatal(err)
	}
	many := map[string]string{}
	for i := range 40 {
		many[fmt.Sprintf("%02d%s", i, strings.Repeat("k", 100))] = strings.Repeat("v", 5000)
	}
	if err := j.Record(t.Context(), "command.failed", audit.Warn, "", many); err != nil {
		t.Fatal(err)
	}
	got := records(t, s)
	if len(got) != 2 || len(got[0].Subject) != wire.MaxText || !strings.HasSuffix(got[0].Detail["error"], "...") ||
		got[0].Detail["a_name_with_all"] != "x" || got[0].Detail["broken"] != "a?b" || len(got[1].Detail) != 16 {
		t.Errorf("got %+v", got)
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
		err = j.Record(t.Context(), "test.event", audit.Info, "", nil)
	}
	if !errors.Is(err, spool.ErrFull) {
		t.Errorf("got %v, want %v", err, spool.ErrFull)
	}
	if seq, _ := j.Head(); seq != n-1 || len(records(t, s)) != int(n-1) {
		t.Errorf("head is %d, %d entries, want %d", seq, len(records(t, s)), n-1)
	}
}
