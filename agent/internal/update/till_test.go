package update_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/trust"
)

// till is a box with three components that behave as they are told: an agent
// that is started anew, a system that the box is booted into, and an
// application that is switched in place. What is in it survives a power cut;
// the machine is made anew by each start.
type till struct {
	fatal func(string, ...any)
	dir   string
	parts map[string]*part
	fate  map[string]string // of a release, by component/version; see the words in part and till

	health  map[string]string
	seen    map[string]string // of that, when it was looked at last
	lazy    bool              // nobody looks unless what was seen is too old
	reason  string            // why the gate is closed
	opens   time.Time
	offline time.Time     // until then nothing can be asked or fetched
	slow    time.Duration // how long a download takes
	full    time.Time     // until then the trail takes nothing
	deaf    time.Time     // until then reports are not taken
	free    int64         // bytes of the disk; 0: enough
	held    atomic.Int64  // of them, what was fetched
	hours   func() bool   // of the box itself, to fetch; nil: at any time
	after   func()        // called once something is staged
	beside  func()        // runs beside the machine, from its start on
	trickle time.Duration // how long a download takes that tells each second of it

	machine *update.Machine
	reports []update.Progress
	audit   []string
	steps   int
	cutAt   int // 0: never
	boots   int
	checks  []update.Check
}

// part is what a handler keeps on the disk.
type part struct {
	t        *till
	class    string
	effect   update.Effect
	Runs     string
	Before   string // that ran before what is on trial
	Staged   string
	Next     string // started next
	Trial    bool
	Failed   string
	On       string   // whose trial it is
	Kept     []string // executions, each time Keep did something
	Tried    []string
	backFail int
	streams  bool
	once     bool // the boot loader starts what is on trial once
}

// folder is one in memory, where there is one: what a real disk loses the tests
// of the handlers show.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "till")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newTill(t testing.TB, dir string) *till {
	b := &till{
		fatal: t.Fatalf, dir: dir, fate: map[string]string{}, health: map[string]string{"printer": "OK", "reader": "Fault"},
		parts: map[string]*part{
			"agent":        {class: "agent", effect: update.Restart, Runs: "1.0.0"},
			"os/box/prod":  {class: "os", effect: update.Reboot, Runs: "1.0.0"},
			"ops/shop/pos": {class: "app", effect: update.None},
		},
	}
	for _, p := range b.parts {
		p.t = b
	}
	return b
}

func (b *till) step(name string) {
	if b.steps++; b.steps == b.cutAt {
		panic(cut{name})
	}
}

// Streams implements update.Streamer.
func (p *part) Streams(trust.Target) bool { return p.streams }

// Lasts reports whether a trial outlives a restart.
func (p *part) Lasts(context.Context) bool { return !p.once }

// Stage implements update.Handler.
func (p *part) Stage(ctx context.Context, j update.Job) error {
	switch p.t.fate[j.Component+"/"+j.Version] {
	case "endless":
		<-ctx.Done()
		return ctx.Err()
	case "cramped":
		if time.Now().Before(p.t.opens) {
			return update.Hold("space", "there is no room for it")
		}
	case "broken":
		return update.Fail("selfcheck", "it does not run")
	case "misfit":
		return update.Refuse("incompatible", "it does not fit")
	}
	p.t.step("write")
	p.Staged, p.Failed = j.Version, ""
	if p.t.after != nil {
		p.t.after()
	}
	return nil
}

// Move implements update.Handler.
func (p *part) Move(_ context.Context, j update.Job, m update.Move) (update.Effect, error) {
	fate := p.t.fate[j.Component+"/"+j.Version]
	switch m {
	case update.Try:
		p.Tried = append(p.Tried, j.Execution)
		p.t.step("switch")
		switch {
		case fate == "stays" || p.Runs == j.Version:
		case p.Staged != j.Version:
			return update.None, update.Fail("storage", "it is not staged")
		case p.effect == update.None:
			p.Before, p.Runs, p.Trial, p.On = p.Runs, j.Version, true, j.Execution
		default:
			p.Next, p.On = j.Version, j.Execution
		}
		p.t.step("switched")
		return p.effect, nil
	case update.Prove:
		if fate == "sick" {
			return update.None, errors.New("it is not well")
		}
	case update.Keep:
		p.t.step("keeping")
		if p.Trial {
			p.Kept = append(p.Kept, p.On)
		}
		p.Trial, p.Before = false, ""
	case update.Back:
		p.t.step("going back")
		p.Failed, p.Next = "", ""
		if !p.Trial {
			return update.None, nil
		}
		if p.backFail > 0 {
			p.backFail--
			return update.None, errors.New("the switch is stuck")
		}
		if p.effect != update.None {
			p.Next, p.Trial = p.Before, false
			return p.effect, nil
		}
		p.Runs, p.Trial = p.Before, false
	}
	return update.None, nil
}

// Running implements update.Handler.
func (p *part) Running(context.Context, string) (update.Truth, error) {
	return update.Truth{Version: p.Runs, Trial: p.Trial, Failed: p.Failed, Execution: p.On}, nil
}

// start is what launcher and boot loader do.
func (p *part) start(component string) {
	if p.Next == "" {
		return
	}
	next := p.Next
	p.Next = ""
	if next == p.Before { // went back
		p.Runs, p.Before = next, ""
		return
	}
	if p.t.fate[component+"/"+next] == "dead" {
		p.Failed = "it died at once"
		return
	}
	p.Before, p.Runs, p.Trial = p.Runs, next, true
}

// Target implements update.Releases.
func (b *till) Target(_ context.Context, name string) (trust.Target, error) {
	if time.Now().Before(b.offline) {
		return trust.Target{}, errors.New("no network")
	}
	release := path.Dir(name)
	t := trust.Target{Path: name, SHA256: strings.Repeat("0", 64), Length: 100}
	t.Custom = trust.Custom{Class: b.parts[path.Dir(release)].class, Version: path.Base(release)}
	switch b.fate[release] {
	case "unknown":
		return t, fmt.Errorf("%s: %w", name, trust.ErrNoTarget)
	case "forged":
		return t, fmt.Errorf("%s: %w", name, trust.ErrSignature)
	case "withdrawn":
		t.Custom.Withdrawn = true
	case "needy":
		t.Custom.Requires = map[string]string{"agent": "1.1.0"}
	case "other":
		t.Custom.Class = "script"
	}
	return t, nil
}

// Get implements update.Content.
func (b *till) Get(ctx context.Context, o update.Order) (string, error) {
	if time.Now().Before(b.offline) {
		return "", errors.New("no network")
	}
	b.step("fetch")
	b.held.Store(o.Target.Length)
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(b.slow):
	}
	for began := time.Now(); time.Since(began) < b.trickle; time.Sleep(time.Second) {
		o.Told(int64(float64(o.Target.Length)*float64(time.Since(began))/float64(b.trickle)), o.Target.Length, update.Bytes{}, "")
	}
	o.Told(o.Target.Length, o.Target.Length, update.Bytes{Wire: o.Target.Length}, "")
	return "content", nil
}

// Open implements update.Content.
func (b *till) Open(context.Context, update.Order) (io.ReaderAt, error) {
	return strings.NewReader("content"), nil
}

// Drop implements update.Content.
func (b *till) Drop(trust.Target) { b.held.Store(0) }

// Held implements update.Content.
func (b *till) Held(trust.Target) int64 { return b.held.Load() }

// boot starts the box and lets it run for some time, or until the power is cut
// or the machine asks for a start. It reports whether it came to rest.
func (b *till) boot(d time.Duration, offers ...update.Offer) (rested bool) {
	b.boots++
	for name, p := range b.parts {
		p.start(name)
	}
	handlers := map[string]update.Handler{}
	var there []update.Component
	for _, name := range slices.Sorted(maps.Keys(b.parts)) {
		handlers[b.parts[name].class] = b.parts[name]
		there = append(there, update.Component{Name: name, Class: b.parts[name].class})
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var err error
	b.machine, err = update.New(update.Options{
		Dir: b.dir, Handlers: handlers, Installed: there, Releases: b, Medium: func(string) (update.Releases, error) { return b, nil }, Content: b, Names: func(o update.Offer) string { return o.Target + "/x" },
		Report: func(_ context.Context, p update.Progress) error {
			if time.Now().Before(b.deaf) {
				return errors.New("the spool is full")
			}
			b.reports = append(b.reports, p)
			return nil
		},
		Record: func(_ context.Context, kind, severity, subject string, detail map[string]string) error {
			if time.Now().Before(b.full) {
				return errors.New("the spool is full")
			}
			b.audit = append(b.audit, kind+" "+severity+" "+subject+" "+detail["reason"])
			return nil
		},
		Gate: func(p update.Phase, need int64) (string, string) {
			if p == update.Fetch && b.hours != nil && !b.hours() {
				return "window-download", "not at this hour"
			}
			if b.free > 0 && b.free-b.held.Load() < need {
				return "space", fmt.Sprintf("%d are free, %d are needed", b.free-b.held.Load(), need)
			}
			if time.Now().Before(b.opens) {
				return b.reason, "not now"
			}
			return "", ""
		},
		Health: b.healthSince,
		Checks: b.checks, CheckFor: 2 * time.Minute, Log: slog.New(slog.DiscardHandler), Step: b.step,
	})
	if err != nil {
		b.fatal("%v", err)
	}
	for _, o := range offers {
		b.machine.Submit(o)
	}
	if b.beside != nil {
		go b.beside()
	}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(cut); !ok {
				panic(r)
			}
			rested = false
		}
	}()
	switch err := b.machine.Run(ctx); {
	case err == nil:
		return true
	case errors.Is(err, update.ErrRestart), errors.Is(err, update.ErrReboot):
		return false
	default:
		b.fatal("the machine ended: %v", err)
		return true
	}
}

// rest starts the box until it comes to rest.
func (b *till) rest(offers ...update.Offer) {
	for range 100 {
		if b.boot(3*time.Hour, offers...) {
			return
		}
		offers = nil
	}
	b.fatal("the box never comes to rest; reports %+v", b.reports)
}

// ends returns how the attempt of an execution ended, each end once.
func (b *till) ends(execution string, attempt uint32) (out []update.Progress) {
	for _, p := range b.reports {
		if p.Execution == execution && p.Attempt == attempt && ended(p.State) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func ended(state string) bool {
	return slices.Contains([]string{"SUCCEEDED", "ALREADY_INSTALLED", "FAILED", "ROLLED_BACK", "REJECTED"}, state)
}

// states lists what was reported of an execution, without repetitions.
func (b *till) states(execution string) (out []string) {
	for _, p := range b.reports {
		s := strings.TrimSpace(p.State + " " + p.Reason)
		if p.Execution == execution && (len(out) == 0 || out[len(out)-1] != s) {
			out = append(out, s)
		}
	}
	return out
}

// offerOf makes an offer that lives for a day.
func (b *till) offerOf(component, version string) update.Offer {
	return update.Offer{
		Execution: path.Base(component) + "-" + version, Attempt: 1, Class: b.parts[component].class, Version: version,
		Target: component + "/" + version, NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// truthful holds the till against what it said: nothing is on trial, the
// machine tells what runs, and what runs is what was said to have succeeded
// last.
func (b *till) truthful(last map[string]string) {
	if x := b.machine.Execution(); x != "" {
		b.fatal("%s never ends: %+v", x, b.reports)
	}
	for _, r := range b.machine.Truth() {
		if p := b.parts[r.Name]; r.Version != p.Runs || r.Trial != p.Trial {
			b.fatal("the machine says %+v, the box has %+v", r, *p)
		}
	}
	for name, p := range b.parts {
		if p.Trial || p.Failed != "" || p.Next != "" {
			b.fatal("%s came to rest on trial: %+v", name, *p)
		}
		if want := last[name]; p.Runs != want {
			b.fatal("%s runs %q, the reports say %q: %+v", name, p.Runs, want, b.reports)
		}
	}
}

// healthSince is how everything was found after a time.
func (b *till) healthSince(_ context.Context, since time.Time) (map[string]string, error) {
	if !b.lazy || b.seen == nil || !since.IsZero() {
		b.seen = maps.Clone(b.health)
	}
	return b.seen, nil
}
