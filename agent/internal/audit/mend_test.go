package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// trail is what somebody has seen of a chain, over all that happened to the file.
type trail map[uint64][32]byte

// see takes in what is in the queue, and reports numbers that are used twice.
func (tr trail) see(t *testing.T, s *spool.Spool) (twice int) {
	t.Helper()
	all, hashes := entries(t, s)
	for i, r := range all {
		if h, ok := tr[r.Seq]; ok && h != hashes[i] {
			twice++
		}
		tr[r.Seq] = hashes[i]
	}
	return twice
}

// TestDamage does to the file what happens to files, and holds that the chain goes
// on with numbers nobody has used, says from where, and is anchored.
func TestDamage(t *testing.T) {
	garbage := func(t *testing.T, file string, from, to int64) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err == nil {
			b := make([]byte, to-from)
			for i := range b {
				b[i] = 0xa5
			}
			_, err = f.WriteAt(b, from)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	size := func(t *testing.T, file string) int64 {
		t.Helper()
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	for name, tt := range map[string]struct {
		harm   func(t *testing.T, file, older string)
		reason string // of the break; empty: as much is lost as the spool says, if anything
		copied string // when the spool has a copy of the head
	}{
		"nothing":    {harm: func(*testing.T, string, string) {}},
		"file gone":  {harm: func(t *testing.T, file, _ string) { remove(t, file) }, reason: "lost"},
		"file empty": {harm: func(t *testing.T, file, _ string) { remove(t, file); create(t, file, 0) }, reason: "lost"},
		"file of ones": {harm: func(t *testing.T, file, _ string) {
			remove(t, file)
			create(t, file, 40<<10)
			garbage(t, file, 0, 40<<10)
		}, reason: "lost", copied: "salvaged"},
		"begin gone":  {harm: func(t *testing.T, file, _ string) { garbage(t, file, 0, 100) }},
		"all garbage": {harm: func(t *testing.T, file, _ string) { garbage(t, file, 0, size(t, file)) }},
		"half gone":   {harm: func(t *testing.T, file, _ string) { truncate(t, file, size(t, file)/2/4096*4096) }},
		"end garbage": {harm: func(t *testing.T, file, _ string) { garbage(t, file, size(t, file)-3*4096, size(t, file)) }},
		"older copy":  {harm: func(t *testing.T, file, older string) { rename(t, older, file) }, reason: "rolled-back"},
	} {
		for _, options := range []spool.Options{{}, {Copied: []string{"audit.head"}}} {
			name, reason := name, tt.reason
			if options.Copied != nil {
				name += ", and its copy is there"
				if tt.copied != "" {
					reason = tt.copied
				}
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				file, older, mark := filepath.Join(dir, "spool.db"), filepath.Join(dir, "older.db"), filepath.Join(dir, "trail.json")
				seen := trail{}
				c := &chip{}
				o := audit.Options{Strict: true, Mark: mark, Sign: c.sign}
				s := openSpool(t, file, options)
				j := openWith(t, s, 1, o)
				record(t, j, 20)
				seen.see(t, s)
				s.Close()
				b, err := os.ReadFile(file)
				if err = errors.Join(err, os.WriteFile(older, b, 0o600)); err != nil {
					t.Fatal(err)
				}
				s = openSpool(t, file, options)
				j = openWith(t, s, 2, o)
				record(t, j, 150)
				j.Stop(t.Context()) // the mark is here
				known, _ := j.Head()
				record(t, j, 200) // and these are more than it knows of
				seen.see(t, s)
				last, _ := j.Head()
				s.Close()
				tt.harm(t, file, older)

				s = openSpool(t, file, options)
				before := len(seen)
				j = openWith(t, s, 3, o)
				record(t, j, 3)
				j.Stop(t.Context())
				if n := seen.see(t, s); n != 0 {
					t.Errorf("%d numbers are used twice", n)
				}
				all, hashes := entries(t, s)
				at := slices.IndexFunc(all, func(r wire.AuditRecord) bool { return r.Boot == wire.Boot{3} })
				first, head := all[at], all[len(all)-1]
				if head.Anchor == nil || len(seen) != before+len(all)-at {
					t.Errorf("%d new entries, the last is %+v", len(seen)-before, head)
				}
				for i := at + 1; i < len(all); i++ {
					if all[i].Seq != all[i-1].Seq+1 || all[i].Prev != hashes[i-1] {
						t.Errorf("entry %d does not follow entry %d", all[i].Seq, all[i-1].Seq)
					}
				}
				if first.Kind != "audit.break" && reason == "" {
					if first.Seq != last+1 || s.Rebuilt() != "" {
						t.Errorf("it goes on at %d, %d was the last, kept is %q", first.Seq, last, s.Rebuilt())
					}
					return
				}
				if first.Kind != "audit.break" || first.Break == nil || first.Severity != audit.Alarm || first.Detail["reason"] == "" ||
					reason != "" && first.Detail["reason"] != reason {
					t.Fatalf("it goes on with %+v", first)
				}
				if h, ok := seen[first.Break.Seq]; !ok || h != first.Break.Hash {
					t.Errorf("entry %d, as which the break says it is known, is another", first.Break.Seq)
				}
				switch {
				case s.Recalled():
					if first.Detail["reason"] != "salvaged" || first.Seq != first.Break.Seq+512 || first.Break.Seq != last {
						t.Errorf("behind %d it goes on at %d, %d was the last", first.Break.Seq, first.Seq, last)
					}
				case first.Detail["reason"] == "salvaged":
					if first.Seq != first.Break.Seq+1 || first.Prev != first.Break.Hash || first.Break.Seq != last {
						t.Errorf("behind %d it goes on at %d, %d was the last", first.Break.Seq, first.Seq, last)
					}
				default:
					if first.Seq <= last || first.Prev != [32]byte{} || first.Break.Seq < known || first.Seq != first.Break.Seq+512 {
						t.Errorf("behind %d it goes on at %d, %d was the last and %d the mark", first.Break.Seq, first.Seq, last, known)
					}
				}
				s.Close()
				s = openSpool(t, file, options)
				j = openWith(t, s, 4, o)
				record(t, j, 1)
				if all, _ := entries(t, s); all[len(all)-1].Break != nil || all[len(all)-2].Break != nil {
					t.Error("the break is told again")
				}
			})
		}
	}
}

// Must fail: without a mark the chain begins anew, and numbers are used twice.
func TestWithoutMark(t *testing.T) {
	file := filepath.Join(t.TempDir(), "spool.db")
	seen := trail{}
	s := openSpool(t, file, spool.Options{})
	record(t, openWith(t, s, 1, audit.Options{}), 3)
	seen.see(t, s)
	s.Close()
	remove(t, file)
	s = openSpool(t, file, spool.Options{})
	record(t, openWith(t, s, 2, audit.Options{}), 3)
	if n := seen.see(t, s); n == 0 {
		t.Error("nothing is used twice: the test above could not tell")
	}
}

// TestBreakWaits holds that a break which cannot be stored comes before the next
// entry that can.
func TestBreakWaits(t *testing.T) {
	m := &memory{head: []byte("torn")}
	full := &failing{memory: m, err: spool.ErrFull}
	o := audit.Options{Chain: full, Next: heads(1), Log: slog.New(slog.DiscardHandler)}
	j, err := audit.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Record(t.Context(), "link.up", audit.Info, "", nil); !errors.Is(err, spool.ErrFull) {
		t.Errorf("got %v", err)
	}
	full.err = nil
	record(t, j, 1)
	if len(m.all) != 2 || m.all[0].Kind != "audit.break" || m.all[0].Seq != 512 || m.all[1].Seq != 513 {
		t.Errorf("got %+v", m.all)
	}
}

// failing is a chain that fails.
type failing struct {
	*memory
	err error
}

func (f *failing) Append(ctx context.Context, key, channel string, link func([]byte) ([]byte, []byte, error)) error {
	if f.err != nil {
		return f.err
	}
	return f.memory.Append(ctx, key, channel, link)
}

func remove(t *testing.T, file string) {
	t.Helper()
	_ = os.Remove(file + "-wal")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, file string, size int) {
	t.Helper()
	if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, file string, size int64) {
	t.Helper()
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	_ = os.Remove(to + "-wal")
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestMarkIsTorn holds that a mark which cannot be read costs nothing but itself.
func TestMarkIsTorn(t *testing.T) {
	dir := t.TempDir()
	file, mark := filepath.Join(dir, "spool.db"), filepath.Join(dir, "trail.json")
	for n, content := range []string{"", "{", `{"seq":0}`, `{"seq":5,"hash":"AA=="}`, "null", `{"seq":18446744073709551615}`} {
		if err := os.WriteFile(mark, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s := openSpool(t, file, spool.Options{})
		j := openWith(t, s, byte(n+1), audit.Options{Mark: mark, Strict: true})
		record(t, j, 1)
		if seq, _ := j.Head(); seq != uint64(n+1) || audit.Marked(mark) != seq {
			t.Errorf("%q: head is %d, the mark says %d", content, seq, audit.Marked(mark))
		}
		s.Close()
	}
	records(t, openSpool(t, file, spool.Options{}))
}

// FuzzMark feeds what a disk may hold: what is taken is written as it was read.
func FuzzMark(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"device":"d","seq":7,"hash":%q}`, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "trail.json")
		if seq, err := audit.ParseMark(b, file); err == nil && audit.Marked(file) != seq {
			t.Errorf("entry %d became %d", seq, audit.Marked(file))
		}
	})
}

// TestStoredAllTheSame has the medium take entries and refuse to sync them. They are
// in the chain: the next one follows, and a break is told once.
func TestStoredAllTheSame(t *testing.T) {
	m := &memory{head: []byte("torn")}
	c := &unsure{memory: m, err: spool.ErrDisk}
	j, err := audit.Open(t.Context(), audit.Options{Chain: c, Next: heads(1), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Record(t.Context(), "link.up", audit.Info, "", nil); !errors.Is(err, spool.ErrDisk) {
		t.Errorf("got %v, want %v: nobody is told that it may be lost", err, spool.ErrDisk)
	}
	if seq, hash := j.Head(); seq != 513 || hash != m.hash[len(m.hash)-1] {
		t.Errorf("the head is %d, stored is %d: a TPM would vouch for another", seq, m.all[len(m.all)-1].Seq)
	}
	if err := j.Countersigned(t.Context(), wire.Countersign{Seq: 513, Hash: m.hash[len(m.hash)-1], At: 1}, "k", nil); !errors.Is(err, spool.ErrDisk) {
		t.Errorf("countersigned: got %v", err)
	}
	c.err = nil
	record(t, j, 1)
	for i, r := range m.all {
		if r.Seq != uint64(512+i) || i > 0 && r.Prev != m.hash[i-1] || (r.Break != nil) != (i == 0) || r.Kind == "audit.disputed" {
			t.Errorf("entry %d is %s of number %d", i, r.Kind, r.Seq)
		}
	}
}

// unsure is a chain that stores and cannot say that it is safe.
type unsure struct {
	*memory
	err error
}

func (u *unsure) Append(ctx context.Context, key, channel string, link func([]byte) ([]byte, []byte, error)) error {
	return errors.Join(u.memory.Append(ctx, key, channel, link), u.err)
}
