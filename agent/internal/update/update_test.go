package update_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/binary"
	"github.com/tillward/tillward/provisioning/trust"
)

// box is a till with a golden agent 1.0.0, and a release repository it reads
// over HTTP. Its agents are small scripts that pass or fail their self-check.
type box struct {
	t        *testing.T
	repo     *trust.Repository
	keys     trust.Keys
	releases *trust.Client
	dir      string
	golden   string

	broken  atomic.Bool // the new agent cannot do its work
	unready string      // why the box must not have a release
	retries int         // how often getting ready fails first
	cutOff  int         // how often a download breaks off first
	reports []update.Progress
	audit   []string
	steps   int
	cutAt   int // 0: never
}

// cut is what the power does.
type cut struct{ step string }

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{t: t, dir: folder(t), golden: filepath.Join(t.TempDir(), "tillward-agent"), keys: make(trust.Keys)}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		k, err := trust.NewKey(filepath.Join(t.TempDir(), role))
		if err != nil {
			t.Fatal(err)
		}
		b.keys[role] = []ed25519.PrivateKey{k}
	}
	var err error
	if b.repo, err = trust.InitRepository(t.TempDir(), b.keys, nil); err != nil {
		t.Fatal(err)
	}
	root, err := b.repo.Root()
	if err != nil {
		t.Fatal(err)
	}
	const base = "https://repository.invalid/metadata"
	b.releases = &trust.Client{
		Dir: t.TempDir(), FactoryRoot: root, URL: base, Fetch: trust.FolderFetch(base, filepath.Join(b.repo.Dir, "metadata")),
	}
	b.write(b.golden, "1.0.0", 0)
	return b
}

// Get implements update.Content.
func (b *box) Get(_ context.Context, o update.Order) (string, error) {
	if b.cutOff > 0 {
		b.cutOff--
		return "", errors.New("the line broke")
	}
	c, err := os.ReadFile(filepath.Join(b.repo.Dir, "targets", filepath.FromSlash(o.Target.File())))
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.dir, "staging")
	if err := os.WriteFile(path, c, 0o600); err != nil {
		return "", err
	}
	o.Told(int64(len(c)), o.Target.Length, update.Bytes{Wire: int64(len(c))}, "")
	if err := o.Target.CheckFile(path); err != nil {
		return "", update.Refuse("signature", "%w", err)
	}
	return path, nil
}

// Open implements update.Content.
func (b *box) Open(context.Context, update.Order) (io.ReaderAt, error) {
	return nil, errors.ErrUnsupported
}

// Drop implements update.Content.
func (b *box) Drop(trust.Target) { _ = os.Remove(filepath.Join(b.dir, "staging")) }

// Held implements update.Content.
func (b *box) Held(trust.Target) int64 { return 0 }

func (b *box) write(path, version string, exit int) {
	b.t.Helper()
	s := fmt.Sprintf("#!/bin/sh\n# version=%s\nexit %d\n%s\n", version, exit, strings.Repeat("# padding\n", 500))
	if err := os.WriteFile(path, []byte(s), 0o700); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) release(version string, exit int) {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "agent")
	b.write(file, version, exit)
	err := b.repo.Add([]trust.NewTarget{{
		Path: "agent/" + version + "/tillward-agent-linux-amd64", File: file,
		Custom: trust.Custom{Class: "agent", Version: version, OS: "linux", Arch: "amd64"},
	}}, b.keys)
	if err != nil {
		b.t.Fatal(err)
	}
}

var versionLine = regexp.MustCompile(`# version=(\S+)`)

// boot starts what the launcher chooses and runs it with the offer until it
// ends by restart, or the offer has ended. It returns what ran, and whether
// the power was cut.
func (b *box) boot(o update.Offer) (version, slot string, wasCut bool) {
	b.t.Helper()
	path, slot := binary.Choose(b.dir, b.golden, "1.0.0")
	content, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatalf("the launcher chose what cannot be read: %v", err)
	}
	found := versionLine.FindSubmatch(content)
	if found == nil {
		b.t.Fatalf("the launcher chose a broken binary in slot %s", slot)
	}
	version = string(found[1])
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	step := func(step string) {
		if b.steps++; b.steps == b.cutAt {
			panic(cut{step})
		}
	}
	h, err := binary.New(binary.Options{Dir: b.dir, Version: version, Slot: slot, OS: "linux", Arch: "amd64", Step: step})
	if err != nil {
		b.t.Fatal(err)
	}
	m, err := update.New(update.Options{
		Dir: b.dir, Handlers: map[string]update.Handler{"agent": h}, Installed: []update.Component{{Name: "agent", Class: "agent"}},
		Releases: b.releases, Content: b, Names: func(o update.Offer) string { return binary.Path(o.Target, "linux", "amd64") },
		Report: func(_ context.Context, p update.Progress) error {
			b.reports = append(b.reports, p)
			switch p.State {
			case "SUCCEEDED", "ALREADY_INSTALLED", "FAILED", "ROLLED_BACK", "REJECTED":
				cancel()
			}
			return nil
		},
		Record: func(_ context.Context, kind, severity, subject string, detail map[string]string) error {
			b.audit = append(b.audit, kind+" "+severity+" "+subject+" "+detail["reason"])
			return nil
		},
		Gate: func(update.Phase, int64) (string, string) { return "", "" },
		Permit: func(context.Context, update.Offer, trust.Target) (string, string, error) {
			if b.retries > 0 {
				b.retries--
				return "", "", errors.New("no network")
			}
			if b.unready == "" {
				return "", "", nil
			}
			return "unsealable", b.unready, nil
		},
		Checks: []update.Check{{Name: "broker", Run: func(context.Context) error {
			if b.broken.Load() {
				return errors.New("not reached")
			}
			return nil
		}}},
		CheckFor: 300 * time.Millisecond,
		Log:      slog.New(slog.DiscardHandler),
		Step:     step,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	m.Submit(o)
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(cut); !ok {
				panic(r)
			}
			wasCut = true
		}
	}()
	if err := m.Run(ctx); err != nil && !errors.Is(err, update.ErrRestart) {
		b.t.Fatal(err)
	}
	return version, slot, false
}

// last boots until the execution has ended.
func (b *box) last(o update.Offer) update.Progress {
	b.t.Helper()
	for range 12 {
		b.boot(o)
		if n := len(b.reports); n > 0 {
			switch p := b.reports[n-1]; p.State {
			case "SUCCEEDED", "ALREADY_INSTALLED", "FAILED", "ROLLED_BACK", "REJECTED":
				return p
			}
		}
	}
	b.t.Fatalf("the update never ended: %+v", b.reports)
	return update.Progress{}
}

func offer(version string) update.Offer {
	return update.Offer{Execution: "x-" + version, Version: version, Target: "agent/" + version, NotAfter: time.Now().Add(time.Hour)}
}

func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		b.release("1.1.0", 0)
		if p := b.last(offer("1.1.0")); p.State != "SUCCEEDED" || p.From != "1.0.0" || p.To != "1.1.0" {
			t.Fatalf("got %+v", p)
		}
		if v, slot, _ := b.boot(offer("1.1.0")); v != "1.1.0" || slot != "a" {
			t.Errorf("runs %s from %s", v, slot)
		}
		var states []string
		for _, p := range b.reports {
			if len(states) == 0 || states[len(states)-1] != p.State {
				states = append(states, p.State)
			}
		}
		want := []string{"OFFERED", "DOWNLOADING", "STAGED", "INSTALLING", "INSTALLED", "REBOOTING", "CHECKING", "SUCCEEDED"}
		if !slices.Equal(states[:len(want)], want) {
			t.Errorf("states %v, want %v", states, want)
		}
		b.release("1.2.0", 0)
		if p := b.last(offer("1.2.0")); p.State != "SUCCEEDED" {
			t.Fatalf("got %+v", p)
		}
		if v, slot, _ := b.boot(offer("1.2.0")); v != "1.2.0" || slot != "b" {
			t.Errorf("runs %s from %s, want 1.2.0 from b", v, slot)
		}
	})
}

// What must not be installed leaves the running agent alone and says why.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(*box) update.Offer
		state   string
		reason  string
	}{
		"flipped byte": {func(b *box) update.Offer {
			b.release("1.1.0", 0)
			files, _ := filepath.Glob(filepath.Join(b.repo.Dir, "targets", "agent", "1.1.0", "*"))
			c, err := os.ReadFile(files[0])
			if err != nil {
				b.t.Fatal(err)
			}
			c[100] ^= 1
			if err := os.WriteFile(files[0], c, 0o600); err != nil {
				b.t.Fatal(err)
			}
			return offer("1.1.0")
		}, "REJECTED", "signature"},
		"older": {func(b *box) update.Offer {
			b.release("0.9.0", 0)
			return offer("0.9.0")
		}, "REJECTED", "downgrade"},
		"not in the release": {func(*box) update.Offer { return offer("1.1.0") }, "REJECTED", "incompatible"},
		"expired offer": {func(b *box) update.Offer {
			b.release("1.1.0", 0)
			o := offer("1.1.0")
			o.NotAfter = time.Now().Add(-time.Minute)
			return o
		}, "REJECTED", "expired"},
		"offer names another version": {func(b *box) update.Offer {
			b.release("1.1.0", 0)
			o := offer("1.2.0")
			o.Target = "agent/1.1.0"
			return o
		}, "REJECTED", "signature"},
		"runs already":     {func(*box) update.Offer { return offer("1.0.0") }, "ALREADY_INSTALLED", ""},
		"fails self-check": {func(b *box) update.Offer { b.release("1.1.0", 3); return offer("1.1.0") }, "FAILED", "selfcheck"},
		"fails its checks": {func(b *box) update.Offer { b.release("1.1.0", 0); b.broken.Store(true); return offer("1.1.0") }, "ROLLED_BACK", "unproven"},
		"would leave sealed data closed": {func(b *box) update.Offer {
			b.release("1.1.0", 0)
			b.unready, b.retries = "no approval for this model", 1
			return offer("1.1.0")
		}, "REJECTED", "unsealable"},
		"frozen repository": {func(b *box) update.Offer {
			b.release("1.1.0", 0)
			b.releases.NotBefore = time.Now().Add(30 * 24 * time.Hour)
			return offer("1.1.0")
		}, "REJECTED", "metadata-expired"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBox(t)
				o := tt.prepare(b)
				p := b.last(o)
				if p.State != tt.state || p.Reason != tt.reason {
					t.Errorf("got %+v, want %s (%s)", p, tt.state, tt.reason)
				}
				b.broken.Store(false)
				if v, slot, _ := b.boot(o); v != "1.0.0" || slot != binary.Golden {
					t.Errorf("%s runs from %s, want the golden 1.0.0", v, slot)
				}
				if tt.state != "ALREADY_INSTALLED" && !slices.ContainsFunc(b.audit, func(a string) bool { return strings.Contains(a, "alarm x-") }) {
					t.Errorf("audit trail %q holds no alarm", b.audit)
				}
			})
		})
	}
}

// A redelivered offer is answered, not run again.
func TestRedeliveredOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		b.release("1.1.0", 0)
		o := offer("1.1.0")
		b.last(o)
		n := len(b.reports)
		b.boot(o)
		if got := b.reports[n:]; len(got) != 1 || got[0].State != "SUCCEEDED" || got[0] != b.reports[n-1] {
			t.Errorf("redelivered offer: reports %+v, want the end alone", got)
		}
	})
}

// A download that breaks off is taken up again.
func TestDownloadIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		b.release("1.1.0", 0)
		b.cutOff = 1
		if p := b.last(offer("1.1.0")); p.State != "SUCCEEDED" || p.Bytes.Wire == 0 {
			t.Fatalf("got %+v", p)
		}
	})
}

// The power is cut before each step of the whole way in turn. Whatever was
// half done, something runs, and in the end the update has succeeded once.
func TestPowerCutAtEachStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := 1; ; n++ {
			b := newBox(t)
			b.release("1.1.0", 0)
			b.cutAt = n
			p := b.last(offer("1.1.0"))
			if p.State != "SUCCEEDED" {
				t.Fatalf("cut at step %d: %+v", n, p)
			}
			if v, _, _ := b.boot(offer("1.1.0")); v != "1.1.0" {
				t.Fatalf("cut at step %d: %s runs in the end", n, v)
			}
			if b.steps < n {
				if n < 15 {
					t.Errorf("only %d steps were tried", n)
				}
				return
			}
		}
	})
}

// The same for an update that cannot prove itself: in the end the old agent
// runs and the journal says so.
func TestPowerCutWhileFallingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := 1; ; n++ {
			b := newBox(t)
			b.release("1.1.0", 0)
			b.broken.Store(true)
			b.cutAt = n
			p := b.last(offer("1.1.0"))
			if p.State != "ROLLED_BACK" {
				t.Fatalf("cut at step %d: %+v", n, p)
			}
			if v, slot, _ := b.boot(offer("1.1.0")); v != "1.0.0" || slot != binary.Golden {
				t.Fatalf("cut at step %d: %s runs from %s in the end", n, v, slot)
			}
			if b.steps < n {
				return
			}
		}
	})
}

// An agent that dies at once is started three times, then the old one again.
func TestCrashLoopFallsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		b.release("1.1.0", 0)
		o := offer("1.1.0")
		b.boot(o) // installs and asks for the restart
		for range 3 {
			if _, slot := binary.Choose(b.dir, b.golden, "1.0.0"); slot != "a" {
				t.Fatalf("slot %s, want a on trial", slot)
			}
		}
		if _, slot := binary.Choose(b.dir, b.golden, "1.0.0"); slot != binary.Golden {
			t.Fatalf("slot %s after three crashes, want golden", slot)
		}
		if p := b.last(o); p.State != "ROLLED_BACK" {
			t.Errorf("got %+v", p)
		}
	})
}

func TestBrokenSlotIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		b.release("1.1.0", 0)
		b.last(offer("1.1.0"))
		b.release("1.2.0", 0)
		b.last(offer("1.2.0"))
		if err := os.WriteFile(filepath.Join(b.dir, "b", "tillward-agent"), []byte("rubbish"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, slot := binary.Choose(b.dir, b.golden, "1.0.0"); slot != "a" {
			t.Errorf("slot %s, want the other one", slot)
		}
		if err := os.Remove(filepath.Join(b.dir, "a", "tillward-agent")); err != nil {
			t.Fatal(err)
		}
		if _, slot := binary.Choose(b.dir, b.golden, "1.0.0"); slot != binary.Golden {
			t.Errorf("slot %s, want golden", slot)
		}
	})
}
