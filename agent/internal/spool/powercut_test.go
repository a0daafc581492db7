package spool_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent/internal/spool"
)

const (
	childOf  = "TILLWARD_TEST_SPOOL"
	childKey = "TILLWARD_TEST_SPOOL_KEY"
)

// keyOf makes a key of a word; without one the spool is plain.
func keyOf(word string) spool.Options {
	if word == "" {
		return spool.Options{}
	}
	sum := sha256.Sum256([]byte(word))
	return spool.Options{Key: sum[:], Plain: []string{"chain"}}
}

// TestMain lets the test binary be the child that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(childOf); path != "" {
		do := write
		if what := os.Getenv(childWork); what != "" {
			do = func(path string, o spool.Options) error { return work(path, what, o) }
		}
		if err := do(path, keyOf(os.Getenv(childKey))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// grow adds one link: the payload is the number of the entry, the head its 8 bytes.
func grow(head []byte) (payload, next []byte, err error) {
	n := uint64(1)
	if head != nil {
		n = binary.BigEndian.Uint64(head) + 1
	}
	return fmt.Appendf(nil, "%d", n), binary.BigEndian.AppendUint64(nil, n), nil
}

// write puts for ever and says after each acknowledgement what was acknowledged.
func write(path string, o spool.Options) error {
	s, err := spool.Open(path, o)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for i := 1; ; i++ {
		var entry string
		err := s.Append(ctx, "chain", "audit", func(head []byte) ([]byte, []byte, error) {
			payload, next, err := grow(head)
			entry = string(payload)
			return payload, next, err
		})
		if err != nil {
			return err
		}
		fmt.Println("entry", entry)
		name := fmt.Sprintf("%d-%d", os.Getpid(), i)
		one := func() ([]byte, error) { return []byte(name), nil }
		if err := s.Compose(ctx, spool.Telemetry, "telemetry", one, map[string]uint64{"samples": 1}); err != nil {
			return err
		}
		fmt.Println("sample", name)
		if i%7 != 0 {
			continue
		}
		var ids []uint64
		if err := s.Next(ctx, 0, 3, []string{"telemetry"}, func(id uint64, _ string, payload []byte) {
			ids = append(ids, id)
			fmt.Println("forget", string(payload))
		}); err != nil {
			return err
		}
		if err := s.Done(ctx, ids...); err != nil {
			return err
		}
	}
}

// TestPowerCut kills a writing process again and again, at a random line of
// what it has acknowledged, on the same file.
func TestPowerCut(t *testing.T) {
	for name, word := range map[string]string{"plain": "", "locked": "word"} {
		t.Run(name, func(t *testing.T) { cutPower(t, word) })
	}
}

func cutPower(t *testing.T, word string) {
	path, o := file(t), keyOf(word)
	r := rand.New(rand.NewPCG(1, 2))
	sent := map[string]bool{} // samples that were acknowledged and not handed to Done
	gone := map[string]bool{} // samples that Done may have removed
	var last uint64
	for range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childOf+"="+path, childKey+"="+word)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cut := 5 + r.IntN(60)
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == cut {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			word, rest, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "entry":
				if last, err = strconv.ParseUint(rest, 10, 64); err != nil {
					t.Fatal(err)
				}
			case "sample":
				sent[rest] = true
			case "forget":
				gone[rest] = true
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		head := checkChain(t, path, o)
		if head != last && head != last+1 {
			t.Fatalf("the chain ends at %d, acknowledged was %d", head, last)
		}
		checkSamples(t, path, o, sent, gone)
	}
}

// checkChain opens the spool and holds that entries are consecutive and that
// the head is the last of them.
func checkChain(t *testing.T, path string, o spool.Options) uint64 {
	t.Helper()
	s, err := spool.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Rebuilt() != "" {
		t.Fatal("a power cut damaged the file")
	}
	n := uint64(0)
	for _, i := range all(t, s, "audit") {
		n++
		if i.payload != strconv.FormatUint(n, 10) {
			t.Fatalf("entry %d reads %q", n, i.payload)
		}
	}
	blob, err := s.Load(t.Context(), "chain")
	if err != nil {
		t.Fatal(err)
	}
	head := uint64(0)
	if blob != nil {
		head = binary.BigEndian.Uint64(blob)
	}
	if head != n {
		t.Fatalf("the head is %d, the last entry %d", head, n)
	}
	return head
}

func checkSamples(t *testing.T, path string, o spool.Options, sent, gone map[string]bool) {
	t.Helper()
	s, err := spool.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	seen := map[string]int{}
	for _, i := range all(t, s, "telemetry") {
		seen[i.payload]++
	}
	for name := range sent {
		if !gone[name] && seen[name] != 1 {
			t.Errorf("sample %s was acknowledged and is there %d times", name, seen[name])
		}
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("sample %s is there %d times", name, n)
		}
	}
	n, err := s.Counter(t.Context(), "samples")
	if err != nil || n < uint64(len(sent)) {
		t.Errorf("counted %d samples (%v), %d were acknowledged", n, err, len(sent))
	}
}

// TestTornLog cuts the write-ahead log at arbitrary bytes, as a medium may that
// loses what was not flushed: an older state comes back, never a mixed one.
func TestTornLog(t *testing.T) {
	path := file(t)
	s := open(t, path, spool.Options{})
	for range 40 {
		if err := s.Append(t.Context(), "chain", "audit", grow); err != nil {
			t.Fatal(err)
		}
		put(t, s, spool.Telemetry, "telemetry", strings.Repeat("x", 1500))
	}
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path + "-wal")
	if err != nil || len(log) < 100_000 {
		t.Fatalf("log of %d bytes (%v): the test cuts nothing", len(log), err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	heads := map[uint64]bool{}
	for i := range 30 {
		cut := r.IntN(len(log) + 1)
		dir := t.TempDir()
		copied := filepath.Join(dir, fmt.Sprintf("spool%d.db", i))
		if err := os.WriteFile(copied, db, 0o600); err != nil {
			t.Fatal(err)
		}
		torn := log[:cut]
		if i%2 == 1 { // a hole of zeros instead of an end
			torn = append(append([]byte(nil), torn...), make([]byte, len(log)-cut)...)
		}
		if err := os.WriteFile(copied+"-wal", torn, 0o600); err != nil {
			t.Fatal(err)
		}
		heads[checkChain(t, copied, spool.Options{})] = true
	}
	if len(heads) < 5 {
		t.Errorf("30 cuts gave %d different states: the test cuts nothing", len(heads))
	}
}
