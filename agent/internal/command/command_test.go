package command_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// key is the order key of these tests; the seed is fixed so that a child process has the same.
var key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func verify(kind string, payload []byte, keyID string, signature []byte) error {
	if keyID != "k1" {
		return errors.New("unknown key")
	}
	if !ed25519.Verify(key.Public().(ed25519.PublicKey), append([]byte(kind+"|"), payload...), signature) {
		return errors.New("signature does not fit")
	}
	return nil
}

func sign(t testing.TB, kind string, payload []byte) []byte {
	t.Helper()
	b, err := wire.Encode(&wire.Order{
		Kind: kind, Payload: payload, KeyID: "k1", Signature: ed25519.Sign(key, append([]byte(kind+"|"), payload...)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func plain(id string, counter uint64, verb string) wire.CommandOrder {
	now := time.Now()
	return wire.CommandOrder{
		V: 1, ID: id, Tenant: "acme", Device: "dev-1", Counter: counter, Verb: verb, By: "ada", Reason: "test",
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(), Args: map[string]string{"label": "Kasse 1"},
	}
}

func order(t testing.TB, c wire.CommandOrder) []byte {
	t.Helper()
	payload, err := wire.Encode(&c)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, wire.OrderCommand, payload)
}

// box is a device with a real spool; the runner may be started again and again.
type box struct {
	t     testing.TB
	spool *spool.Spool
	verbs map[string]command.Verb
	full  bool

	mu    sync.Mutex
	runs  []string
	audit []string
	seq   uint64
	stop  func()
	r     *command.Runner
}

func newBox(t testing.TB, path string) *box {
	t.Helper()
	s, err := spool.Open(path, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, spool: s}
	b.verbs = map[string]command.Verb{
		"identify": {Idempotent: true, Run: func(_ context.Context, args map[string]string) ([]byte, error) {
			b.ran("identify " + args["label"])
			return []byte("blinked"), nil
		}},
		"reboot": {Risky: true, Run: func(context.Context, map[string]string) ([]byte, error) { b.ran("reboot"); return nil, nil }, After: func(context.Context) { b.ran("after") }},
		"fail": {Run: func(context.Context, map[string]string) ([]byte, error) {
			b.ran("fail")
			return []byte("half"), errors.New("printer is offline")
		}},
		"panic": {Run: func(context.Context, map[string]string) ([]byte, error) { panic("nil map") }},
		"big": {Run: func(context.Context, map[string]string) ([]byte, error) {
			return bytes.Repeat([]byte{'x'}, 100_000), nil
		}},
	}
	t.Cleanup(func() {
		if b.stop != nil {
			b.stop()
		}
		s.Close()
	})
	return b
}

func (b *box) ran(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.runs = append(b.runs, what)
}

func (b *box) record(_ context.Context, kind, severity, subject string, detail map[string]string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.audit = append(b.audit, strings.TrimSpace(kind+" "+severity+" "+subject+" "+detail["reason"]))
	if b.full {
		return spool.ErrFull
	}
	return nil
}

func (b *box) options() command.Options {
	return command.Options{
		Tenant: "acme", Device: "dev-1", Verify: verify, Journal: b.spool, Record: b.record, Verbs: b.verbs,
		Next: func() wire.Head {
			b.seq++ // under the spool's lock
			return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: b.seq}
		},
		Full: func() bool { return b.full },
	}
}

func (b *box) start() {
	b.r = command.New(b.options())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.r.Run(ctx); !errors.Is(err, context.Canceled) {
			b.t.Errorf("run ended with %v", err)
		}
	})
	b.stop = func() { cancel(); wg.Wait() }
}

// do submits orders and returns once n results are in the spool.
func (b *box) do(n int, orders ...[]byte) []wire.ResultReport {
	b.t.Helper()
	for _, o := range orders {
		if !b.r.Submit(o) {
			b.t.Fatal("not taken")
		}
	}
	deadline := time.After(20 * time.Second)
	for {
		out := b.results()
		if len(out) >= n {
			return out
		}
		select {
		case <-b.spool.Wake():
		case <-deadline:
			b.t.Fatalf("after 20 s there are %d results, want %d: %+v", len(out), n, out)
		}
	}
}

func (b *box) results() (out []wire.ResultReport) {
	b.t.Helper()
	err := b.spool.Next(context.Background(), 0, 1000, []string{string(wire.Result)}, func(_ uint64, _ string, p []byte) {
		r, err := wire.Decode[wire.ResultReport](p)
		if err != nil {
			b.t.Error(err)
		}
		out = append(out, r)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *box) took() (runs, audit []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.runs), slices.Clone(b.audit)
}

func file(t testing.TB) string { return filepath.Join(t.TempDir(), "spool.db") }

func TestOutcomes(t *testing.T) {
	b := newBox(t, file(t))
	b.start()
	late := plain("c6", 6, "identify")
	late.IssuedAt, late.NotAfter = 1, 2
	got := b.do(7,
		order(t, plain("c1", 1, "identify")), order(t, plain("c2", 2, "fail")), order(t, plain("c3", 3, "panic")),
		order(t, plain("c4", 4, "big")), order(t, plain("c5", 5, "format-disk")), order(t, late), order(t, plain("c7", 7, "reboot")))
	b.stop() // reboot's After has run
	for i, want := range []struct{ id, state, reason, text string }{
		{"c1", "SUCCEEDED", "", ""},
		{"c2", "FAILED", "error", "printer is offline"},
		{"c3", "FAILED", "panic", "nil map"},
		{"c4", "SUCCEEDED", "", ""},
		{"c5", "REJECTED", "verb", "this agent knows big, fail, identify, panic, reboot"},
		{"c6", "EXPIRED", "expired", "valid until 1970"},
		{"c7", "SUCCEEDED", "", ""},
	} {
		r := got[i]
		if r.ID != want.id || r.State != want.state || r.Reason != want.reason || !strings.Contains(r.Text, want.text) || r.Counter != uint64(i+1) {
			t.Errorf("result %d: got %s %s %q %q, want %+v", i, r.ID, r.State, r.Reason, r.Text, want)
		}
	}
	if string(got[0].Output) != "blinked" || string(got[1].Output) != "half" {
		t.Errorf("outputs %q and %q", got[0].Output, got[1].Output)
	}
	if n := len(got[3].Output); n != wire.MaxOutput || !strings.Contains(string(got[3].Output[n-200:]), "100000 bytes") {
		t.Errorf("cut output has %d bytes and ends %q", n, got[3].Output[n-100:])
	}
	runs, audit := b.took()
	if want := []string{"identify Kasse 1", "fail", "reboot", "after"}; !slices.Equal(runs, want) {
		t.Errorf("ran %q, want %q", runs, want)
	}
	want := []string{
		"command.start info c1", "command.done info c1", "command.start info c2", "command.failed warn c2 error",
		"command.start info c3", "command.failed warn c3 panic", "command.start info c4", "command.done info c4",
		"command.rejected warn c5 verb", "command.expired warn c6 expired", "command.start info c7", "command.done info c7",
	}
	if !slices.Equal(audit, want) {
		t.Errorf("audited\n%q, want\n%q", audit, want)
	}
}

// TestRefused holds what must never run. Each breaks one thing of an order that would run.
func TestRefused(t *testing.T) {
	good := plain("c1", 5, "reboot")
	change := func(f func(*wire.CommandOrder)) []byte {
		c := good
		f(&c)
		return order(t, c)
	}
	payload, err := wire.Encode(&good)
	if err != nil {
		t.Fatal(err)
	}
	raw := func(o wire.Order) []byte {
		b, err := wire.Encode(&o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	signature := ed25519.Sign(key, append([]byte("command|"), payload...))
	flipped := slices.Clone(payload)
	flipped[len(flipped)-1] ^= 1
	for _, tt := range []struct {
		name, reason string
		order        []byte
		answered     bool
	}{
		{"no order", "malformed", []byte{1, 2, 3}, false},
		{"order of another kind", "kind", sign(t, wire.OrderOffer, payload), false},
		{"offer taken for a command", "signature", raw(wire.Order{Kind: wire.OrderCommand, Payload: payload, KeyID: "k1", Signature: ed25519.Sign(key, append([]byte("offer|"), payload...))}), true},
		{"flipped byte", "signature", raw(wire.Order{Kind: wire.OrderCommand, Payload: flipped, KeyID: "k1", Signature: signature}), true},
		{"unknown key", "signature", raw(wire.Order{Kind: wire.OrderCommand, Payload: payload, KeyID: "k2", Signature: signature}), true},
		{"signed, but no command", "malformed", sign(t, wire.OrderCommand, []byte{0xa0}), false},
		{"another device", "device", change(func(c *wire.CommandOrder) { c.Device = "dev-2" }), false},
		{"another tenant", "device", change(func(c *wire.CommandOrder) { c.Tenant = "evil" }), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t, file(t))
			b.start()
			n := 1
			if tt.answered {
				n++
			}
			// identify behind it shows that the refused one has been looked at.
			got := b.do(n, tt.order, order(t, plain("c9", 9, "identify")))
			b.stop()
			if tt.answered && (got[0].State != "REJECTED" || got[0].Reason != tt.reason || got[0].ID != "c1") {
				t.Errorf("answer %+v", got[0])
			}
			if len(got) != n || got[n-1].ID != "c9" {
				t.Errorf("%d results, want %d", len(got), n)
			}
			runs, audit := b.took()
			if !slices.Equal(runs, []string{"identify Kasse 1"}) {
				t.Errorf("ran %q", runs)
			}
			if !strings.HasPrefix(audit[0], "command.refused alarm") || !strings.HasSuffix(audit[0], tt.reason) {
				t.Errorf("audited %q, want a refusal for %s", audit[0], tt.reason)
			}
		})
	}
	t.Run("twin that runs", func(t *testing.T) {
		b := newBox(t, file(t))
		b.start()
		b.do(1, order(t, good))
		b.stop()
		if runs, _ := b.took(); !slices.Equal(runs, []string{"reboot", "after"}) {
			t.Errorf("ran %q: the refused ones prove nothing", runs)
		}
	})
}

func TestOnceOnly(t *testing.T) {
	path := file(t)
	b := newBox(t, path)
	b.start()
	first := order(t, plain("c1", 1, "identify"))
	b.do(2, first, first)
	b.stop()
	b.start() // another run of the agent
	got := b.do(3, first)
	if got[0].Head.Seq == got[1].Head.Seq {
		t.Error("a result that is sent again has the number of the first")
	}
	for _, r := range got {
		if r.ID != "c1" || r.State != "SUCCEEDED" || string(r.Output) != "blinked" {
			t.Errorf("got %+v, want the stored result", r)
		}
	}
	// The same counter under another id, signed: somebody replays or the service lost its mind.
	if r := b.do(4, order(t, plain("c2", 1, "identify")))[3]; r.ID != "c2" || r.State != "REJECTED" || r.Reason != "replay" {
		t.Errorf("got %+v", r)
	}
	b.stop()
	if runs, _ := b.took(); len(runs) != 1 {
		t.Errorf("ran %q, want one run", runs)
	}
}

// TestForgottenCountersStayUsed runs more commands than the journal keeps.
func TestForgottenCountersStayUsed(t *testing.T) {
	b := newBox(t, file(t))
	b.start()
	for i := range uint64(140) {
		b.do(int(i+1), order(t, plain(fmt.Sprintf("c%d", i+1), i+1, "identify")))
	}
	got := b.do(142, order(t, plain("c1", 1, "identify")), order(t, plain("c139", 139, "identify")))
	b.stop()
	if got[140].State != "REJECTED" || got[140].Reason != "replay" || got[141].State != "SUCCEEDED" {
		t.Errorf("got %s %s and %s", got[140].State, got[140].Reason, got[141].State)
	}
	if runs, _ := b.took(); len(runs) != 140 {
		t.Errorf("%d runs, want 140", len(runs))
	}
	if keys, err := b.spool.Keys(t.Context(), "command/"); err != nil || len(keys) != 128 {
		t.Errorf("the journal holds %d commands (%v), want 128", len(keys), err)
	}
}

func TestFullAuditRefusesRiskyOnly(t *testing.T) {
	b := newBox(t, file(t))
	b.full = true
	b.start()
	got := b.do(2, order(t, plain("c1", 1, "reboot")), order(t, plain("c2", 2, "identify")))
	b.stop()
	if got[0].State != "REJECTED" || got[0].Reason != "audit-full" || got[1].State != "SUCCEEDED" {
		t.Errorf("got %s %s and %s", got[0].State, got[0].Reason, got[1].State)
	}
	if runs, _ := b.took(); !slices.Equal(runs, []string{"identify Kasse 1"}) {
		t.Errorf("ran %q", runs)
	}
}

func TestFloodIsBounded(t *testing.T) {
	b := newBox(t, file(t))
	b.start()
	forged := order(t, plain("c1", 1, "reboot"))
	forged[len(forged)-1] ^= 1
	for n := 0; n < 100; {
		if b.r.Submit(forged) {
			n++
		}
	}
	for !b.r.Submit(order(t, plain("c2", 2, "identify"))) {
	}
	got := b.do(31)
	b.stop()
	_, audit := b.took()
	if len(got) != 31 || len(audit) != 32 {
		t.Errorf("100 forged orders made %d results and %d audit entries, want 31 and 32", len(got), len(audit))
	}
}

func TestSubmitNeverBlocks(t *testing.T) {
	r := command.New(command.Options{})
	n := 0
	for r.Submit([]byte{1}) {
		if n++; n > 1000 {
			t.Fatal("everything is taken and nothing runs")
		}
	}
}

func TestTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := &memory{}
		ended := make(chan struct{})
		r := command.New(command.Options{
			Tenant: "acme", Device: "dev-1", Verify: verify, Journal: kv,
			Record: func(context.Context, string, string, string, map[string]string) error { return nil },
			Next:   func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1} },
			Verbs: map[string]command.Verb{
				"slow": {Timeout: 5 * time.Second, Run: func(ctx context.Context, _ map[string]string) ([]byte, error) {
					<-ctx.Done()
					return []byte("so far"), ctx.Err()
				}},
				"deaf": {Timeout: 5 * time.Second, Run: func(context.Context, map[string]string) ([]byte, error) {
					<-ended
					return nil, nil
				}},
				"long": {Run: func(ctx context.Context, _ map[string]string) ([]byte, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}},
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.Run(ctx) })
		for i, verb := range []string{"slow", "deaf", "long"} {
			r.Submit(order(t, plain(verb, uint64(i+1), verb)))
		}
		synctest.Wait()
		began := time.Now()
		want := []struct {
			reason string
			after  time.Duration
		}{{"timeout", 5 * time.Second}, {"timeout", 12 * time.Second}}
		for i, w := range want {
			<-time.After(w.after - time.Since(began))
			synctest.Wait()
			if sent := kv.results(); len(sent) != i+1 || sent[i].State != "FAILED" || sent[i].Reason != w.reason {
				t.Fatalf("after %v: %+v", time.Since(began), sent)
			}
		}
		if out := kv.results()[0].Output; string(out) != "so far" {
			t.Errorf("output %q", out)
		}
		cancel() // the agent ends while "long" runs
		wg.Wait()
		if len(kv.sent) != 3 || kv.sent[2].Reason != "interrupted" {
			t.Errorf("got %+v, want the third interrupted", kv.sent)
		}
		close(ended)
	})
}

// TestEndsWhileItRuns ends the agent in the middle of a command that may run
// twice: nothing is told of it, and the next start runs it.
func TestEndsWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv, runs := &memory{}, 0
		start := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			r := command.New(command.Options{
				Tenant: "acme", Device: "dev-1", Verify: verify, Journal: kv,
				Record: func(context.Context, string, string, string, map[string]string) error { return nil },
				Next:   func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1} },
				Verbs: map[string]command.Verb{"look": {Idempotent: true, Run: func(ctx context.Context, _ map[string]string) ([]byte, error) {
					if runs++; runs == 1 {
						<-ctx.Done()
					}
					return []byte(fmt.Sprint("run ", runs)), ctx.Err()
				}}},
			})
			var wg sync.WaitGroup
			wg.Go(func() { _ = r.Run(ctx) })
			r.Submit(order(t, plain("look", 1, "look")))
			synctest.Wait()
			return func() { cancel(); wg.Wait() }
		}
		start()()
		if len(kv.sent) != 0 {
			t.Errorf("the agent ended, and told %+v", kv.sent)
		}
		start()()
		if len(kv.sent) == 0 || kv.sent[0].State != "SUCCEEDED" || string(kv.sent[0].Output) != "run 2" || runs != 2 {
			t.Errorf("after the next start %+v, %d runs", kv.sent, runs)
		}
	})
}

// memory is a journal for tests in a bubble, where no file may be waited for.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	sent   []wire.ResultReport
	fail   error // of messages
	full   error // of everything
}

func (m *memory) results() []wire.ResultReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.sent)
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key], nil
}

func (m *memory) Save(_ context.Context, key string, value []byte, _ string, compose func() ([]byte, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full != nil {
		return m.full
	}
	if compose != nil {
		if m.fail != nil {
			return m.fail
		}
		b, err := compose()
		if err != nil {
			return err
		}
		r, err := wire.Decode[wire.ResultReport](b)
		if err != nil {
			return err
		}
		m.sent = append(m.sent, r)
	}
	if m.values == nil {
		m.values = map[string][]byte{}
	}
	m.values[key] = value
	return nil
}

func (m *memory) Keys(_ context.Context, prefix string) (keys []string, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.values {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

func (m *memory) Drop(_ context.Context, keys ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		delete(m.values, k)
	}
	return nil
}

// TestResultFollowsWhenThereIsRoom cannot queue the result at first; the next run of the agent does.
func TestResultFollowsWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := &memory{fail: spool.ErrFull}
		runs := 0
		o := command.Options{
			Tenant: "acme", Device: "dev-1", Verify: verify, Journal: kv,
			Record: func(context.Context, string, string, string, map[string]string) error { return nil },
			Next:   func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1} },
			Verbs: map[string]command.Verb{"identify": {Run: func(context.Context, map[string]string) ([]byte, error) {
				runs++
				return nil, nil
			}}},
		}
		for range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			r := command.New(o)
			var wg sync.WaitGroup
			wg.Go(func() { _ = r.Run(ctx) })
			if kv.fail != nil {
				r.Submit(order(t, plain("c1", 1, "identify")))
			}
			synctest.Wait()
			cancel()
			wg.Wait()
			kv.fail = nil
		}
		if runs != 1 || len(kv.sent) != 1 || kv.sent[0].State != "SUCCEEDED" {
			t.Errorf("%d runs and results %+v, want one of each", runs, kv.sent)
		}
	})
}

// TestFullMedium: a command that comes while nothing can be written runs once
// there is room, and the result of one that has run by then follows, all in one
// run of the agent and one connection.
func TestFullMedium(t *testing.T) {
	for name, fill := range map[string]func(kv *memory, ran bool){
		"no room for the order": func(kv *memory, ran bool) {
			if !ran {
				kv.full = spool.ErrFull
			}
		},
		"none for how it ended":                 func(kv *memory, ran bool) { kv.full = map[bool]error{true: spool.ErrFull}[ran] },
		"none for the message alone":            func(kv *memory, _ bool) { kv.fail = spool.ErrFull },
		"none for what the service sends again": func(kv *memory, ran bool) { kv.full = map[bool]error{true: spool.ErrFull}[ran] },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kv, runs, after := &memory{}, 0, 0
				set := func(ran bool) {
					kv.mu.Lock()
					defer kv.mu.Unlock()
					fill(kv, ran)
				}
				r := command.New(command.Options{
					Tenant: "acme", Device: "dev-1", Verify: verify, Journal: kv,
					Record: func(context.Context, string, string, string, map[string]string) error { return nil },
					Next:   func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1} },
					Verbs: map[string]command.Verb{"print": {Run: func(context.Context, map[string]string) ([]byte, error) {
						runs++
						set(true)
						return nil, nil
					}, After: func(context.Context) { after++ }}},
				})
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { _ = r.Run(ctx) })
				set(false)
				c := order(t, plain("c1", 1, "print"))
				r.Submit(c)
				if strings.Contains(name, "again") {
					r.Submit(c)
				}
				<-time.After(30 * time.Minute) // of the bubble's clock
				if sent := kv.results(); len(sent) != 0 {
					t.Errorf("there is no room, and it sent %+v", sent)
				}
				kv.mu.Lock()
				kv.full, kv.fail = nil, nil
				kv.mu.Unlock()
				<-time.After(time.Minute)
				sent := kv.results()
				cancel()
				wg.Wait()
				if runs != 1 || after != 1 || len(sent) != 1 || sent[0].State != "SUCCEEDED" {
					t.Errorf("%d runs, %d afterwards, results %+v; want one of each", runs, after, sent)
				}
			})
		})
	}
}

const childOf = "TILLWARD_TEST_COMMAND"

// TestMain lets the test binary be the agent that is killed while a handler runs.
func TestMain(m *testing.M) {
	if path := os.Getenv(childOf); path != "" {
		child(path)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child runs one command whose handler says that it has had its effect and never returns.
func child(path string) {
	t := &testing.T{}
	b := newBox(t, path)
	for _, verb := range []string{"reboot", "identify"} {
		v := b.verbs[verb]
		v.Timeout = time.Hour
		v.Run = func(context.Context, map[string]string) ([]byte, error) {
			fmt.Println("ran")
			select {}
		}
		b.verbs[verb] = v
	}
	r := command.New(b.options())
	r.Submit(order(t, plain("c1", 1, os.Getenv("VERB"))))
	_ = r.Run(context.Background())
}

// TestKilledWhileItRuns kills the agent in the middle of a command: a verb that
// must not run twice has failed, one that may is run again.
func TestKilledWhileItRuns(t *testing.T) {
	for verb, want := range map[string]struct {
		state, reason string
		runs          []string
	}{
		"reboot":   {"FAILED", "interrupted", nil},
		"identify": {"SUCCEEDED", "", []string{"identify Kasse 1"}},
	} {
		t.Run(verb, func(t *testing.T) {
			path := file(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childOf+"="+path, "VERB="+verb)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || line != "ran\n" {
				t.Fatalf("the child says %q (%v)", line, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()

			b := newBox(t, path)
			b.start()
			b.do(1)
			got := b.do(2, order(t, plain("c1", 1, verb))) // the service sends it again
			b.stop()
			for _, r := range got {
				if r.State != want.state || r.Reason != want.reason || r.ID != "c1" {
					t.Errorf("got %+v, want %s", r, want.state)
				}
			}
			if runs, _ := b.took(); !slices.Equal(runs, want.runs) {
				t.Errorf("ran %q, want %q", runs, want.runs)
			}
		})
	}
}

func FuzzOrder(f *testing.F) {
	f.Add(order(f, plain("c1", 1, "identify")))
	f.Add(order(f, plain("c1", 1, "reboot"))[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		kv, runs := &memory{}, 0
		ctx, cancel := context.WithCancel(t.Context())
		r := command.New(command.Options{
			Tenant: "acme", Device: "dev-1", Journal: kv,
			Verify: func(string, []byte, string, []byte) error { return errors.New("nobody signed this") },
			Record: func(context.Context, string, string, string, map[string]string) error { cancel(); return nil },
			Next:   func() wire.Head { return wire.Head{V: 1, Boot: wire.Boot{1}, Seq: 1} },
			Verbs: map[string]command.Verb{"identify": {Run: func(context.Context, map[string]string) ([]byte, error) {
				runs++
				return nil, nil
			}}},
		})
		r.Submit(b)
		_ = r.Run(ctx) // ends with the audit entry of the refusal
		if runs != 0 {
			t.Fatal("an unsigned order ran")
		}
		for _, s := range kv.sent {
			if s.State != "REJECTED" {
				t.Fatalf("answered with %s", s.State)
			}
		}
	})
}
