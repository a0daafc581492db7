package audit_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// memory is a chain without a file: a bubble of time has no place for one.
type memory struct {
	mu   sync.Mutex
	head []byte
	all  []wire.AuditRecord
	hash [][32]byte
}

func (m *memory) Load(context.Context, string) ([]byte, error) { return m.head, nil }

func (m *memory) Append(_ context.Context, _, _ string, link func([]byte) ([]byte, []byte, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	payload, head, err := link(m.head)
	if err != nil {
		return err
	}
	b, err := wire.Decode[wire.AuditBatch](payload)
	if err != nil {
		return err
	}
	r, err := b.Entries[0].Open()
	m.head, m.all, m.hash = head, append(m.all, r), append(m.hash, b.Entries[0].Hash)
	return err
}

// why lists the anchors of a chain.
func (m *memory) why() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.all {
		if r.Anchor != nil {
			out = append(out, r.Anchor.Why)
		}
	}
	return out
}

// chip stands for a TPM: what one really signs is tested with one, in hal/tpm and agent.
type chip struct {
	mu      sync.Mutex
	count   uint64
	err     error
	takes   time.Duration
	asked   int
	between func() // while it signs
}

func (c *chip) sign(ctx context.Context, seq uint64, hash [32]byte) (string, wire.Anchor, error) {
	c.mu.Lock()
	takes, fails, between := c.takes, c.err, c.between
	c.asked++
	c.mu.Unlock()
	if takes > 0 {
		select {
		case <-ctx.Done():
			return "", wire.Anchor{}, ctx.Err()
		case <-time.After(takes):
		}
	}
	if fails != nil {
		return "", wire.Anchor{}, fails
	}
	if between != nil {
		between()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	b := wire.AnchorBinding("dev-1", seq, hash)
	return "dev-1", wire.Anchor{Attest: b[:], Signature: make([]byte, 64), Counter: c.count}, nil
}

// running is a journal whose Run runs in a bubble of time.
func running(t *testing.T, m *memory, c *chip, o audit.Options) *audit.Journal {
	t.Helper()
	o.Chain, o.Next, o.Sign, o.Strict, o.Log = m, heads(1), c.sign, true, slog.New(slog.DiscardHandler)
	j, err := audit.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- j.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return j
}

func record(t *testing.T, j *audit.Journal, n int) {
	t.Helper()
	for range n {
		if err := j.Record(t.Context(), "link.up", audit.Info, "", nil); err != nil {
			t.Fatal(err)
		}
	}
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: anchors %q, want %q", what, got, want)
	}
}

// TestWhenAnchored holds when an anchor is made: at boot, when entries are many
// or old, at the stop, and never when nothing happened.
func TestWhenAnchored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := &memory{}, &chip{}
		j := running(t, m, c, audit.Options{})
		time.Sleep(24 * time.Hour)
		want(t, "nothing happened", m.why())
		record(t, j, 1)
		synctest.Wait()
		want(t, "at boot", m.why(), "boot")
		time.Sleep(24 * time.Hour)
		want(t, "nothing happened since", m.why(), "boot")
		record(t, j, 3)
		time.Sleep(10*time.Minute - time.Second)
		want(t, "not old yet", m.why(), "boot")
		time.Sleep(time.Second)
		synctest.Wait()
		want(t, "old", m.why(), "boot", "time")
		record(t, j, 255)
		synctest.Wait()
		want(t, "not many yet", m.why(), "boot", "time")
		record(t, j, 1)
		synctest.Wait()
		want(t, "many", m.why(), "boot", "time", "count")
		j.Stop(t.Context())
		want(t, "stopped, and nothing happened", m.why(), "boot", "time", "count")
		record(t, j, 1)
		j.Stop(t.Context())
		want(t, "stopped", m.why(), "boot", "time", "count", "stop")
		for i, r := range m.all {
			if r.Anchor == nil {
				continue
			}
			if b := wire.AnchorBinding("dev-1", r.Seq-1, m.hash[i-1]); !bytes.Equal(b[:], r.Anchor.Attest) || r.Kind != "audit.anchor" || r.Detail["why"] != r.Anchor.Why {
				t.Errorf("entry %d is not bound to the one before: %+v", r.Seq, r)
			}
		}
	})
}

// TestAnchorsAreBounded holds that no flood of entries wears out the TPM.
func TestAnchorsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := &memory{}, &chip{}
		j := running(t, m, c, audit.Options{})
		for range 8 * 12 {
			record(t, j, 260)
			time.Sleep(5 * time.Minute)
		}
		synctest.Wait()
		if n, most := c.asked, 8*6+7; n > most || n < most-2 {
			t.Errorf("%d flash writes in eight hours, want %d", n, most)
		}
	})
}

// TestTPMCostsNothing holds that a TPM which is slow, fails or is not there keeps
// no entry, and that the anchor comes when it can.
func TestTPMCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := &memory{}, &chip{takes: time.Hour}
		j := running(t, m, c, audit.Options{})
		began := time.Now()
		record(t, j, 100)
		if d := time.Since(began); d != 0 {
			t.Errorf("100 entries waited for the TPM for %s", d)
		}
		time.Sleep(3 * time.Hour) // it has gone on, and is bound again
		synctest.Wait()
		want(t, "slow", m.why(), "boot")
		c.mu.Lock()
		c.takes, c.err = 0, errors.New("TPM_RC_FAILURE")
		c.asked = 0
		c.mu.Unlock()
		record(t, j, 1)
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if n := c.asked; n < 5 || n > 45 {
			t.Errorf("a TPM that fails was asked %d times in five hours", n)
		}
		c.mu.Lock()
		c.err = audit.ErrNoTPM
		c.mu.Unlock()
		time.Sleep(time.Hour)
		c.mu.Lock()
		c.err = nil
		c.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, "there again", m.why(), "boot", "time")
		if len(m.all) != 103 {
			t.Errorf("%d entries, want 103", len(m.all))
		}
	})
}

// TestStopWaitsNotForLong holds that a TPM which hangs does not keep a box from
// stopping.
func TestStopWaitsNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := &memory{}, &chip{}
		j := running(t, m, c, audit.Options{})
		record(t, j, 1)
		synctest.Wait()
		release := make(chan struct{})
		c.between = func() { <-release }
		record(t, j, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		j.Stop(ctx)
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("the stop took %s", d)
		}
		close(release)
		synctest.Wait()
		want(t, "late", m.why(), "boot")
	})
}

// TestBusyChain holds that an anchor is bound again when the chain has gone on,
// and given up for now when it goes on all the time.
func TestBusyChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := &memory{}, &chip{}
		var j *audit.Journal
		left := 2
		c.between = func() {
			if left--; left >= 0 {
				record(t, j, 1)
			}
		}
		j = running(t, m, c, audit.Options{})
		record(t, j, 1)
		synctest.Wait()
		want(t, "bound again", m.why(), "boot")
		if c.asked != 3 || len(m.all) != 4 {
			t.Errorf("asked %d times for %d entries", c.asked, len(m.all))
		}
		left = 5
		record(t, j, 1)
		j.Stop(t.Context())
		want(t, "given up", m.why(), "boot")
		if c.asked != 6 {
			t.Errorf("asked %d times", c.asked)
		}
	})
}

// TestMarkKeepsUp holds that the mark is never so far behind that numbers could
// be used again, TPM or not, and that it is not written for each entry.
func TestMarkKeepsUp(t *testing.T) {
	for name, sign := range map[string]error{"with a TPM": nil, "without": audit.ErrNoTPM} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := &memory{}, &chip{err: sign}
				file := filepath.Join(t.TempDir(), "trail.json")
				j := running(t, m, c, audit.Options{Mark: file})
				writes, last := 0, uint64(0)
				for n := range 2000 {
					record(t, j, 1)
					synctest.Wait()
					now := audit.Marked(file)
					if now != last {
						writes, last = writes+1, now
					}
					if seq, _ := j.Head(); now == 0 || seq > now+256 {
						t.Fatalf("after %d entries the mark is at %d", n+1, now)
					}
				}
				if writes > 2+2*2000/256 {
					t.Errorf("the mark was written %d times", writes)
				}
			})
		})
	}
}

// TestRestartIsNoBoot holds that an agent that starts again and again wears out
// nothing: the system has to boot.
func TestRestartIsNoBoot(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, filepath.Join(dir, "spool.db"), spool.Options{})
	c := &chip{}
	for range 5 {
		j := openWith(t, s, 1, audit.Options{Mark: filepath.Join(dir, "trail.json"), Sign: c.sign})
		record(t, j, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- j.Run(ctx) }()
		for seq := uint64(0); seq < 2; seq, _ = j.Head() { // the first anchor
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if c.count != 1 {
		t.Errorf("%d anchors, want one", c.count)
	}
}

// TestAlwaysMoved records an entry whenever the TPM signs, so that no anchor fits:
// its flash is spared all the same.
func TestAlwaysMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := &memory{}, &chip{}
		j := running(t, m, c, audit.Options{})
		c.between = func() { _ = j.Record(context.Background(), "link.up", audit.Info, "", nil) }
		record(t, j, 1)
		time.Sleep(24 * time.Hour)
		if c.mu.Lock(); c.asked > 6+24*6+3 || c.asked < 24*6 {
			t.Errorf("the TPM was asked %d times in a day", c.asked)
		}
		c.between = nil
		c.mu.Unlock()
		time.Sleep(time.Hour)
		want(t, "when it fits", m.why(), "boot")
	})
}
