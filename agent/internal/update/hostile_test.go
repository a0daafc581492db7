package update_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
)

// What an offer calls a component is the service's word. A class is no way to
// the floor of something else: whoever holds the service must not be able to
// keep releases from a box for ever.
func TestFloorOfAnotherComponent(t *testing.T) {
	for name, o := range map[string]update.Offer{
		"an agent that is called an application": {Class: "agent", Target: pos + "/1.0.0"},
		"an agent that is called a system":       {Class: "agent", Target: system + "/1.0.0"},
		"a system of another channel":            {Class: "os", Target: "os/box/beta/1.0.0"},
		"an agent of no name":                    {Class: "agent", Target: "1.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(t *testing.T, b *till) {
				o.Execution, o.Attempt, o.Version, o.NotAfter = "x", 1, "1.0.0", time.Now().Add(time.Hour)
				b.rest(o)
				reason := "policy"
				if o.Target == o.Version {
					reason = "signature"
				}
				is(t, b.end(t, o), "REJECTED", reason)
				if f, err := os.ReadFile(filepath.Join(b.dir, "floors.json")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("floors: %s, %v", f, err)
				}
			})
		})
	}
}

// One name is one class: what was installed as one is not lost sight of.
func TestComponentKeepsItsClass(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		first := b.offerOf(pos, "1.0.0")
		b.rest(first)
		is(t, b.end(t, first), "SUCCEEDED", "")
		floors := filepath.Join(b.dir, "floors.json")
		other := map[string]any{pos: map[string]string{"class": "config", "version": "1.0.0"}}
		raw, _ := json.Marshal(other)
		if err := os.WriteFile(floors, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		next := b.offerOf(pos, "1.1.0")
		b.rest(next)
		is(t, b.end(t, next), "REJECTED", "policy")
	})
}

// What of the content is on the disk already needs no room: a cut in the middle
// of a download must not close the gate to its rest.
func TestSpaceIsNotCountedTwice(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		b.free, b.slow = 150, 2*time.Hour // the content takes 100
		b.boot(time.Hour, o)
		if s := b.states(o.Execution); s[len(s)-1] != "DOWNLOADING" {
			t.Fatalf("states %q", s)
		}
		b.slow = time.Hour
		b.rest(o)
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}

// A trail or a spool without room holds an update up. It does not end the
// agent, and when there is room again what was held up goes on.
func TestFullTrailHolds(t *testing.T) {
	for name, fate := range map[string]string{"good": "", "forged": "forged", "sick": "sick"} {
		for _, deaf := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", deaf), func(t *testing.T) {
				on(t, func(t *testing.T, b *till) {
					o := b.offerOf(pos, "1.0.0")
					b.fate[o.Target] = fate
					until := time.Now().Add(time.Hour)
					b.full = until
					if deaf {
						b.full, b.deaf = time.Time{}, until
					}
					b.rest(o)
					want := map[string][2]string{"": {"SUCCEEDED", ""}, "forged": {"REJECTED", "signature"}, "sick": {"ROLLED_BACK", "unhealthy"}}[fate]
					is(t, b.end(t, o), want[0], want[1])
				})
			})
		}
	}
}

// A trail without room must not keep a box on what broke it: what runs first
// goes back, and is recorded when there is room.
func TestFullTrailDoesNotHoldTheWayBack(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		first, o := b.offerOf(pos, "1.0.0"), b.offerOf(pos, "1.1.0")
		b.rest(first)
		b.fate[o.Target] = "sick"
		b.checks = []update.Check{{Name: "fills the trail", Run: func(context.Context) error { b.full = time.Now().Add(5 * time.Hour); return nil }}}
		b.boot(time.Hour, o)
		if p := b.parts[pos]; p.Runs != "1.0.0" || p.Trial {
			t.Errorf("an hour later: %+v", *p)
		}
		b.checks, b.full = nil, time.Time{}
		b.rest()
		is(t, b.end(t, o), "ROLLED_BACK", "unhealthy")
	})
}

// What was kept stays, though it cannot be recorded yet and is not well later.
func TestKeptStaysKept(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		well := true
		b.checks = []update.Check{{Name: "well once", Run: func(context.Context) error {
			if !well {
				return errors.New("ill")
			}
			well, b.full = false, time.Now().Add(30*time.Minute)
			return nil
		}}}
		b.rest(o)
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}

// The hours of the box itself end a download, too.
func TestOwnHoursClose(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		began := time.Now()
		b.hours = func() bool { return time.Since(began) < time.Hour || time.Since(began) > 3*time.Hour }
		b.slow = 90 * time.Minute
		b.boot(2*time.Hour, o)
		if s := b.states(o.Execution); s[len(s)-1] != "WAITING window-download" {
			t.Errorf("states %q", s)
		}
		b.rest(o)
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}

// An offer whose windows are over keeps nobody waiting.
func TestWindowsInThePast(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o, next := b.offerOf(system, "1.1.0"), b.offerOf(pos, "1.0.0")
		now := time.Now()
		o.Install = []update.Span{{From: now.Add(-2 * time.Hour), To: now.Add(-time.Hour)}}
		b.boot(time.Hour, o, next)
		is(t, b.end(t, o), "FAILED", "timeout")
		is(t, b.end(t, next), "SUCCEEDED", "")
	})
}

// Once the content is there the time to fetch is of no matter, whatever starts
// anew: the gate that is still to open is the one to install.
func TestStagedNeedsNoDownloadWindow(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		now := time.Now()
		o.Download = []update.Span{{From: now, To: now.Add(time.Hour)}}
		o.Install = []update.Span{{From: now.Add(3 * time.Hour), To: now.Add(4 * time.Hour)}}
		b.boot(2*time.Hour, o)
		b.boot(30*time.Minute, o)
		if s := b.states(o.Execution); s[len(s)-1] != "WAITING window-install" {
			t.Errorf("states %q", s)
		}
		b.rest()
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}

// Nothing is fetched for windows that are over.
func TestNothingIsFetchedInVain(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		o.Install = []update.Span{{From: time.Now().Add(-2 * time.Hour), To: time.Now().Add(-time.Hour)}}
		b.rest(o)
		if s := b.states(o.Execution); slices.Contains(s, "DOWNLOADING") {
			t.Errorf("states %q", s)
		}
	})
}

// A system on which the agent does not live long enough to judge it is gone back
// from: the boot loader sees nothing wrong with it.
func TestAgentDiesOnTheNewSystem(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(system, "1.1.0")
		ill := true
		b.checks = []update.Check{{Name: "takes a while", Run: func(context.Context) error {
			if ill {
				return errors.New("not yet")
			}
			return nil
		}}}
		b.boot(time.Hour, o)
		for range 20 {
			if b.boot(10 * time.Second); b.parts[system].Runs == "1.0.0" && !b.parts[system].Trial {
				break
			}
		}
		b.rest()
		is(t, b.end(t, o), "ROLLED_BACK", "crashed")
		// The twin: a till that is switched off a few times meanwhile keeps what is well.
		next := b.offerOf(system, "1.2.0")
		b.boot(time.Hour, next)
		for range 4 {
			b.boot(10 * time.Second)
		}
		ill = false
		b.rest()
		is(t, b.end(t, next), "SUCCEEDED", "")
	})
}

// What is in work is known from the start, and what runs only once it was found
// out: a report before that must say neither that nothing is in work nor that
// nothing is installed.
func TestKnownFromTheStart(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		b.slow = time.Hour
		b.boot(time.Minute, o)
		m, err := update.New(update.Options{Dir: b.dir})
		if err != nil || m.Execution() != o.Execution || m.Settled() {
			t.Errorf("got %q, settled %v, %v", m.Execution(), m.Settled(), err)
		}
		if !b.machine.Settled() {
			t.Error("what runs is not known after a minute")
		}
	})
}

// A handler that has to wait, e.g. for room where it unpacks, says so, and the
// update waits with that reason.
func TestHandlerHolds(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		b.fate[o.Target], b.opens = "cramped", time.Now().Add(10*time.Hour) // far beyond the time to install
		b.rest(o)
		b.rest()
		b.rest()
		if s := b.states(o.Execution); !slices.Contains(s[len(s)-2:], "WAITING space") { // it may be trying just then
			t.Fatalf("states %q", s)
		}
		b.rest()
		is(t, b.end(t, o), "SUCCEEDED", "")
		if s := compact(b.states(o.Execution)); len(s) != 8 {
			t.Errorf("states %q", s)
		}
	})
}

// A medium may bring more than may wait at once: what is not taken yet is handed
// in again, and none of it fails for that.
func TestMediumBringsMuch(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		var offers []update.Offer
		for n := range 20 {
			o := b.offerOf(pos, fmt.Sprintf("1.0.%d", n))
			o.Execution, o.Target, o.Medium = fmt.Sprint("m-", n), fmt.Sprintf("ops/shop/app%d/%s", n, o.Version), "stick"
			b.parts[fmt.Sprint("ops/shop/app", n)] = b.parts[pos]
			offers = append(offers, o)
		}
		b.reason, b.opens = "idle-lock", time.Now().Add(time.Minute)
		b.beside = func() {
			time.Sleep(time.Second)
			for range 200 {
				for _, o := range offers {
					if !b.machine.Submit(o) {
						break
					}
				}
				time.Sleep(5 * time.Second)
			}
		}
		b.boot(time.Hour)
		for _, o := range offers {
			for _, p := range b.ends(o.Execution, 1) {
				if p.Reason == "busy" {
					t.Errorf("%s: %+v", o.Execution, p)
				}
			}
			if len(b.ends(o.Execution, 1)) == 0 {
				t.Errorf("%s has no end", o.Execution)
			}
		}
	})
}

// While what is installed waits to be tried, other offers are answered; and one
// that comes again and again leaves room for others.
func TestOffersAreAnsweredWhileOneWaits(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o, next := b.offerOf(pos, "1.0.0"), b.offerOf(system, "1.1.0")
		b.checks = nil
		b.after = func() {
			b.reason, b.opens, b.after = "idle-lock", time.Now().Add(2*time.Hour), nil
			go func() {
				for range 20 {
					time.Sleep(time.Second)
					if !b.machine.Submit(next) {
						t.Error("no room for an offer")
					}
				}
			}()
		}
		b.boot(time.Hour, o)
		if s := b.states(next.Execution); !slices.Equal(s, []string{"WAITING busy"}) {
			t.Errorf("states %q", s)
		}
	})
}

// That a release failed its trials is not forgotten for the offers that come
// between.
func TestLoopIsRemembered(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		o.NotAfter = time.Now().Add(24 * 30 * time.Hour)
		b.fate[o.Target] = "sick"
		for n := range 3 {
			o.Execution = fmt.Sprint("loop-", n)
			b.rest(o)
			is(t, b.end(t, o), "ROLLED_BACK", "unhealthy")
		}
		for n := range 70 {
			other := b.offerOf("agent", "1.0.0")
			other.NotAfter = time.Now().Add(24 * 30 * time.Hour)
			other.Execution = fmt.Sprint("other-", n)
			b.rest(other)
		}
		o.Execution = "loop-again"
		b.rest(o)
		is(t, b.end(t, o), "REJECTED", "loop")
	})
}

// How often a download is told, and so written down, has a bound.
func TestTellingIsBounded(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		b.trickle = 10 * time.Hour
		b.boot(12*time.Hour, o)
		is(t, b.end(t, o), "SUCCEEDED", "")
		n := 0
		for _, p := range b.reports {
			if p.State == "DOWNLOADING" {
				n++
			}
		}
		if n < 50 || n > 800 {
			t.Errorf("told %d times in 10 hours", n)
		}
	})
}

// What is streamed is fetched while the till is touched: it waits for the time
// of both.
func TestStreamKeepsToTheDownloadWindow(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		b.parts[system].streams, b.free = true, 50 // and needs no room
		o := b.offerOf(system, "1.1.0")
		now := time.Now()
		o.Download = []update.Span{{From: now.Add(2 * time.Hour), To: now.Add(4 * time.Hour)}}
		b.boot(time.Hour, o)
		if s := b.states(o.Execution); s[len(s)-1] != "WAITING window-download" {
			t.Errorf("states %q", s)
		}
		b.rest()
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}
