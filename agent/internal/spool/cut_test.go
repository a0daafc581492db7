package spool_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/spool"
)

var everyCut = flag.Int("cuts", 0, "cut the power at each call of the spool on its files, and so often at each; 0: at a part of them")

const childWork = "TILLWARD_TEST_SPOOL_WORK"

// work is what the child does until it has done enough.
func work(path, what string, o spool.Options) error {
	spool.WriteBackEvery(60)
	if what == "trust" {
		spool.SyncOff()
	}
	o = cutOptions(what, o)
	s, err := spool.Open(path, o)
	if err != nil {
		return err
	}
	fmt.Println("open")
	written := func() {
		n, _ := s.Written()
		fmt.Println("written", n)
	}
	written()
	switch what {
	case "shed":
		err = shedding(s)
	case "rebuild":
		err = s.Append(context.Background(), "chain", "audit", grow)
		fmt.Println("entry")
	default:
		err = queueing(s, map[string]int{"queue": 60, "trust": 60, "old": 12}[what])
	}
	written()
	return errors.Join(err, s.Close())
}

func cutOptions(what string, o spool.Options) spool.Options {
	o.Window = 30 * time.Millisecond
	o.Copied = []string{"chain"}
	if what == "shed" {
		o.MaxBytes, o.Thin, o.Tally = 48<<10, halve, dots
	}
	return o
}

// body makes a message of which each byte can be told: half of one is none.
func body(kind string, n uint64) []byte {
	b := fmt.Appendf(nil, "%s %d ", kind, n)
	r := rand.New(rand.NewPCG(n, uint64(len(kind))))
	for range r.IntN(1 + 3000/(1+int(n%4))) {
		b = append(b, 'a'+byte(r.IntN(26)))
	}
	return b
}

// number is that of a message, if it is whole.
func number(b []byte) (kind string, n uint64, whole bool) {
	kind, rest, _ := strings.Cut(string(b), " ")
	digits, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(digits, 10, 64)
	return kind, n, err == nil && bytes.Equal(b, body(kind, n))
}

// queueing does all that rooms do with a spool, and says what it has done.
func queueing(s *spool.Spool, rounds int) error {
	ctx := context.Background()
	said := func(kind string, n uint64, err error) error {
		if err == nil {
			fmt.Println(kind, n)
		}
		return err
	}
	for n := uint64(1); n <= uint64(rounds); n++ {
		err := said("entry", n, s.Append(ctx, "chain", "audit", func(head []byte) ([]byte, []byte, error) {
			_, next, err := grow(head)
			return body("entry", binary.BigEndian.Uint64(next)), next, err
		}))
		for i := range uint64(3) { // these wait for the window, or for the next entry
			k := 3*n - 2 + i
			one := func() ([]byte, error) { return body("sample", k), nil }
			err = errors.Join(err, said("sample", k, s.Compose(ctx, spool.Telemetry, "telemetry", one, map[string]uint64{"samples": 1})))
		}
		err = errors.Join(err, said("event", n, s.Put(ctx, spool.Event, "event", body("event", n))))
		if n%2 == 0 {
			err = errors.Join(err, said("state", n, s.Put(ctx, spool.State, "state", body("state", n))))
		}
		if n%3 == 0 {
			compose := func() ([]byte, error) { return body("result", n), nil }
			err = errors.Join(err, said("result", n, s.Save(ctx, fmt.Sprint("command/", n%4), binary.BigEndian.AppendUint64(nil, n), "result", compose)))
		}
		if n%5 == 0 {
			var ids []uint64
			err = errors.Join(err, s.Next(ctx, 0, 12, nil, func(id uint64, _ string, b []byte) {
				kind, k, _ := number(b)
				fmt.Println("forget", kind, k)
				ids = append(ids, id)
			}), s.Done(ctx, ids...))
		}
		if n%20 == 0 {
			time.Sleep(40 * time.Millisecond) // the window passes: nothing but the spool syncs here
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// shedding puts more than there is room for, and tells what went.
func shedding(s *spool.Spool) error {
	ctx := context.Background()
	for n := uint64(1); n <= 240; n++ {
		one := func() ([]byte, error) { return fmt.Appendf(nil, "%04d%s", n, strings.Repeat(".", 500)), nil }
		if err := s.Compose(ctx, spool.Telemetry, "telemetry", one, map[string]uint64{"samples": 500}); err != nil {
			return err
		}
		if n%12 != 0 {
			continue
		}
		losses, err := s.Losses(ctx)
		if err != nil {
			return err
		}
		var told uint64
		for _, l := range losses {
			told += l.Samples
		}
		err = s.Append(spool.Telling(ctx, losses...), "chain", "audit", func(head []byte) ([]byte, []byte, error) {
			_, next, err := grow(head)
			return fmt.Appendf(nil, "told %d", told), next, err
		})
		if err != nil {
			return err
		}
		fmt.Println("entry", n/12)
	}
	return nil
}

// memory is what the child has said.
type memory struct {
	acked, firm map[string]uint64 // the newest of a kind that was acknowledged; and before the last that is safe at once
	gone        map[string]bool   // may have been forgotten
}

func (m *memory) hear(said string) {
	f := strings.Fields(said)
	switch f[0] {
	case "open", "written":
	case "forget":
		m.gone[f[1]+" "+f[2]] = true
	default:
		n, _ := strconv.ParseUint(f[1], 10, 64)
		m.acked[f[0]] = n
		if f[0] == "entry" || f[0] == "result" {
			maps.Copy(m.firm, m.acked)
		}
	}
}

// judge opens what a power cut has left, and returns what is wrong with it.
func (m *memory) judge(ctx context.Context, path, what string, o spool.Options) (wrong []string) {
	fault := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	s, err := spool.Open(path, cutOptions(what, o))
	if err != nil {
		return []string{"not opened: " + err.Error()}
	}
	defer s.Close()
	if s.Rebuilt() != "" {
		return []string{"the file is damaged"}
	}
	var items []item
	for after := uint64(0); ; {
		n := len(items)
		err := s.Next(ctx, after, 100, nil, func(id uint64, channel string, b []byte) {
			items, after = append(items, item{id, channel, string(b)}), id
		})
		if err != nil {
			return []string{err.Error()}
		}
		if n == len(items) {
			break
		}
	}
	if int(s.Depth()) != len(items) {
		fault("%d messages are there, counted are %d", len(items), s.Depth())
	}
	blob, err := s.Load(ctx, "chain")
	if err != nil {
		return []string{err.Error()}
	}
	var head uint64
	if blob != nil {
		head = binary.BigEndian.Uint64(blob)
	}
	if a := m.acked["entry"]; head != a && head != a+1 {
		fault("the head is %d, acknowledged was %d", head, a)
	}
	samples, err := s.Counter(ctx, "samples")
	if err != nil {
		return []string{err.Error()}
	}
	if what == "shed" {
		m.judgeLedger(ctx, s, items, samples, head, fault)
	} else {
		m.judgeQueue(ctx, s, items, samples, head, fault)
	}
	if what == "old" {
		if v, err := s.Load(ctx, "identity"); string(v) != marker {
			fault("the identity is %q (%v)", v, err)
		}
	}
	if err := s.Append(ctx, "chain", "audit", grow); err != nil { // and it goes on
		fault("does not go on: %v", err)
	}
	return wrong
}

func (m *memory) judgeQueue(ctx context.Context, s *spool.Spool, items []item, samples, head uint64, fault func(string, ...any)) {
	here := map[string]bool{}
	last := map[string]uint64{"sample": samples, "entry": head} // of a kind that was ever stored
	old := 0
	for _, i := range items {
		if strings.HasPrefix(i.payload, marker) {
			if n, _ := strconv.Atoi(strings.TrimSpace(i.payload[len(marker):])); n < old {
				fault("message %d of the old file is behind %d", n, old)
			} else {
				old = n
			}
			here["old"] = true
			continue
		}
		kind, n, whole := number([]byte(i.payload))
		if !whole {
			fault("half a message: %.40q", i.payload)
			continue
		}
		name := fmt.Sprint(kind, " ", n)
		if here[name] || n < last["seen "+kind] {
			fault("%s is there twice or behind a newer one", name)
		}
		here[name], last["seen "+kind] = true, n
		last[kind] = max(last[kind], n)
	}
	step := map[string]uint64{"entry": 1, "sample": 1, "event": 1, "result": 3}
	for kind, by := range step {
		if last[kind] < m.firm[kind] && !m.gone[fmt.Sprint(kind, " ", m.firm[kind])] {
			fault("%s %d was acknowledged and safe; the last is %d", kind, m.firm[kind], last[kind])
		}
		if last[kind] > m.acked[kind]+by {
			fault("%s %d was never put; acknowledged was %d", kind, last[kind], m.acked[kind])
		}
		for n := by; n <= last[kind]; n += by { // none out of the middle
			if name := fmt.Sprint(kind, " ", n); !here[name] && !m.gone[name] {
				fault("%s is not there; the last is %d", name, last[kind])
			}
		}
	}
	if n := last["state"]; n < m.firm["state"] && !m.gone[fmt.Sprint("state ", m.firm["state"])] || n > m.acked["state"]+2 {
		fault("the state is %d, acknowledged %d, safe %d", n, m.acked["state"], m.firm["state"])
	}
	for n := m.acked["result"]; n+9 >= m.acked["result"] && n > 0 && n >= 3; n -= 3 {
		v, err := s.Load(ctx, fmt.Sprint("command/", n%4))
		if err != nil || len(v) != 8 || binary.BigEndian.Uint64(v) < n {
			fault("the value of command %d is %x (%v)", n, v, err)
		}
	}
}

// judgeLedger holds that each sample that was put is there, or in the ledger, or told.
func (m *memory) judgeLedger(ctx context.Context, s *spool.Spool, items []item, samples, head uint64, fault func(string, ...any)) {
	var there, told, entries uint64
	for _, i := range items {
		if n, ok := strings.CutPrefix(i.payload, "told "); ok {
			k, _ := strconv.ParseUint(n, 10, 64)
			told += k
			entries++
			continue
		}
		if len(i.payload) < 4 || strings.Trim(i.payload[4:], ".") != "" {
			fault("half a message: %.40q", i.payload)
		}
		there += uint64(len(i.payload) - 4)
	}
	if entries != head {
		fault("%d entries and a head of %d", entries, head)
	}
	losses, err := s.Losses(ctx)
	if err != nil {
		fault("%v", err)
	}
	var ledger uint64
	for _, l := range losses {
		ledger += l.Samples
	}
	if there+ledger+told != samples {
		fault("%d samples were put; %d are there, %d in the ledger, %d told", samples, there, ledger, told)
	}
	if samples < m.firm["entry"]*12*500 {
		fault("%d samples are known; %d were safe", samples, m.firm["entry"]*12*500)
	}
}

// recording is what a child does with a spool.
type recording struct {
	dir, what, word string
	begin           func() *disk
	calls           []call
}

func recordWork(t *testing.T, what, word string) recording {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "spool.db")
	if what == "old" {
		oldSpool(t, path, nil)
	}
	before := newDisk(t, dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childOf+"="+path, childKey+"="+word, childWork+"="+what)
	r := recording{dir: dir, what: what, word: word, begin: before.clone, calls: record(t, dir, cmd)}
	counts := map[string]int{}
	for _, c := range r.calls {
		counts[c.name]++
	}
	t.Logf("%d calls (%v)", len(r.calls), counts)
	if counts["sync"] < 20 || counts["says"] < 20 || counts["pwrite64"] < 200 {
		t.Errorf("calls %v: the child did not do its work", counts)
	}
	return r
}

// cutAll cuts the power at every step-th of the calls, so often at each. It
// returns the faults.
func (r recording) cutAll(t *testing.T, step, often int, lies bool) (cuts int, faults []string) {
	t.Helper()
	d := r.begin()
	d.lies = lies
	memory := &memory{acked: map[string]uint64{}, firm: map[string]uint64{}, gone: map[string]bool{}}
	scratch, o := scratchDir(t), keyOf(r.word)
	for i, c := range r.calls {
		if c.name == "says" {
			memory.hear(c.said)
		} else {
			d.do(t, c)
		}
		if i%step != 0 {
			continue
		}
		for k := range often {
			d.cut(t, r.dir, scratch, rand.New(rand.NewPCG(uint64(i), uint64(k))))
			cuts++
			for _, f := range memory.judge(t.Context(), filepath.Join(scratch, "spool.db"), r.what, o) {
				faults = append(faults, fmt.Sprintf("cut %d.%d of %d (%s): %s", i, k, len(r.calls), c.name, f))
			}
		}
	}
	return cuts, faults
}

// TestWritten holds what the spool says it has written against what it hands to
// the system.
func TestWritten(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childOf+"="+filepath.Join(dir, "spool.db"), childKey+"=word", childWork+"=queue")
	var counted, passed []int64
	bytes := int64(0)
	for _, c := range record(t, dir, cmd) {
		bytes += int64(len(c.data))
		if n, ok := strings.CutPrefix(c.said, "written "); ok {
			v, err := strconv.ParseInt(n, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			counted, passed = append(counted, v), append(passed, bytes)
		}
	}
	if len(counted) != 2 || counted[1]-counted[0] != passed[1]-passed[0] || counted[1]-counted[0] < 500_000 {
		t.Errorf("counted %d, handed over %d", counted, passed)
	}
}

// TestPowerCutAtEveryCall loses what was not synced, at any call. It has a twin:
// on a disk that syncs nothing what was acknowledged is lost, and the judge says so.
func TestPowerCutAtEveryCall(t *testing.T) {
	var cuts atomic.Int64
	t.Run("all", func(t *testing.T) {
		for _, c := range []struct {
			what, word  string
			step, often int // of the short form
			twin        bool
		}{
			{"queue", "", 23, 1, true},
			{"queue", "word", 23, 1, false},
			{"shed", "", 23, 1, true},
			{"shed", "word", 23, 1, false},
			{"old", "word", 23, 1, false},
			{"old", "", 23, 1, false},
		} {
			t.Run(c.what+c.word, func(t *testing.T) {
				t.Parallel()
				if *everyCut > 0 {
					c.step, c.often = 1, *everyCut
				}
				r := recordWork(t, c.what, c.word)
				n, faults := r.cutAll(t, c.step, c.often, false)
				t.Logf("the power was cut %d times", n)
				cuts.Add(int64(n))
				for i, f := range faults {
					if t.Error(f); i == 10 {
						t.Fatalf("and %d more", len(faults)-i)
					}
				}
				if !c.twin {
					return
				}
				if _, faults := r.cutAll(t, 97, 1, true); len(faults) == 0 {
					t.Error("a disk that syncs nothing loses nothing: the test cuts nothing")
				}
			})
		}
	})
	if t.Logf("the power was cut %d times", cuts.Load()); cuts.Load() < 1000 {
		t.Errorf("the power was cut %d times only", cuts.Load())
	}
}

// TestPowerCutWithSyncOff is the other twin: the disk is honest, and SQLite is told
// to leave it to the system when what it writes back is safe.
func TestPowerCutWithSyncOff(t *testing.T) {
	t.Parallel()
	cuts, faults := recordWork(t, "trust", "").cutAll(t, 97, 1, false)
	if len(faults) == 0 {
		t.Errorf("%d cuts lose nothing where nothing that is written back is synced: the test cuts nothing", cuts)
	} else {
		t.Logf("%d cuts, %d faults: %s", cuts, len(faults), faults[0])
	}
}
