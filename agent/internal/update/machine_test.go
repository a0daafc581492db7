package update_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
)

const pos, system = "ops/shop/pos", "os/box/prod"

// on runs a test on a till, in a time of its own.
func on(t *testing.T, f func(t *testing.T, b *till)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newTill(t, folder(t))) })
}

// end is the one end of an offer.
func (b *till) end(t *testing.T, o update.Offer) update.Progress {
	t.Helper()
	ends := b.ends(o.Execution, o.Attempt)
	if len(ends) != 1 {
		t.Fatalf("%s ended %d times: %+v", o.Execution, len(ends), b.reports)
	}
	return ends[0]
}

func is(t *testing.T, p update.Progress, state, reason string) {
	t.Helper()
	if p.State != state || p.Reason != reason {
		t.Errorf("got %s %q (%s), want %s %q", p.State, p.Reason, p.Text, state, reason)
	}
}

// The power is cut at each step of the way of each class, and of each way back.
// In the end the box runs the old or the new, says which, and has told one end.
func TestPowerCutOfEachClass(t *testing.T) {
	for _, component := range []string{"agent", system, pos} {
		for _, fate := range []string{"", "sick", "dead", "stays", "broken"} {
			if fate == "dead" && component == pos {
				continue // nothing is started anew
			}
			t.Run(strings.ReplaceAll(component, "/", "-")+" "+fate, func(t *testing.T) {
				for n := 1; ; n++ {
					steps := 0
					on(t, func(t *testing.T, b *till) {
						b.parts[pos].Runs = "1.0.0"
						o := b.offerOf(component, "1.1.0")
						b.fate[o.Target] = fate
						b.cutAt = n
						b.boot(time.Hour, o)
						b.rest(o)
						last := map[string]string{"agent": "1.0.0", system: "1.0.0", pos: "1.0.0"}
						p := b.end(t, o)
						switch want := map[string]string{"": "SUCCEEDED", "broken": "FAILED"}[fate]; {
						case want == "" && p.State != "ROLLED_BACK", want != "" && p.State != want:
							t.Errorf("cut at step %d: got %+v", n, p)
						}
						if p.State == "SUCCEEDED" {
							last[component] = "1.1.0"
						}
						b.truthful(last)
						if k := b.parts[component].Kept; len(k) > 1 || len(k) == 1 && fate != "" {
							t.Errorf("cut at step %d: kept %q", n, k)
						}
						steps = b.steps
					})
					if steps < n || t.Failed() {
						if n < 10 {
							t.Errorf("only %d steps were tried", n)
						}
						return
					}
				}
			})
		}
	}
}

// Whatever is not told apart by the journal is found by what runs.
func TestLostJournal(t *testing.T) {
	for what, spoil := range map[string]func(string) error{
		"gone":    os.Remove,
		"rubbish": func(f string) error { return os.WriteFile(f, []byte("{"), 0o600) },
	} {
		for _, fate := range []string{"", "sick", "dead"} {
			t.Run(what+" "+fate, func(t *testing.T) {
				on(t, func(t *testing.T, b *till) {
					o := b.offerOf("agent", "1.1.0")
					b.fate[o.Target] = fate
					if b.boot(time.Hour, o) {
						t.Fatal("it did not ask for a start")
					}
					if err := spoil(filepath.Join(b.dir, "journal.json")); err != nil {
						t.Fatal(err)
					}
					b.rest()
					last := map[string]string{"agent": "1.0.0", system: "1.0.0"}
					switch p := b.end(t, update.Offer{Execution: o.Execution}); fate {
					case "":
						last["agent"] = "1.1.0"
						is(t, p, "SUCCEEDED", "")
					case "sick":
						is(t, p, "ROLLED_BACK", "unhealthy")
					case "dead":
						is(t, p, "ROLLED_BACK", "crashed")
					}
					b.truthful(last)
				})
			})
		}
	}
}

// Windows hold each phase by itself, and say until when.
func TestWindows(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		now := time.Now()
		o := b.offerOf(pos, "1.0.0")
		o.Download = []update.Span{{From: now.Add(3 * time.Hour), To: now.Add(4 * time.Hour)}, {From: now.Add(time.Hour), To: now.Add(2 * time.Hour)}}
		o.Install = []update.Span{{From: now.Add(5 * time.Hour), To: now.Add(6 * time.Hour)}}
		b.boot(59*time.Minute, o)
		if p := b.reports[len(b.reports)-1]; p.Reason != "window-download" || !strings.Contains(p.Text, now.Add(time.Hour).UTC().Format(time.RFC3339)) {
			t.Errorf("got %+v", p)
		}
		b.boot(3 * time.Hour)
		if p := b.reports[len(b.reports)-1]; p.Reason != "window-install" || !slices.Contains(b.states(o.Execution), "STAGED") {
			t.Errorf("got %+v", p)
		}
		b.boot(3 * time.Hour)
		is(t, b.end(t, o), "SUCCEEDED", "")
		want := []string{"OFFERED", "WAITING window-download", "DOWNLOADING", "STAGED", "WAITING window-install", "INSTALLING", "INSTALLED", "CHECKING", "SUCCEEDED"}
		if got := slices.DeleteFunc(b.states(o.Execution), func(s string) bool { return false }); !slices.Equal(compact(got), want) {
			t.Errorf("states %q, want %q", got, want)
		}
	})
}

// compact drops what a start reports again.
func compact(in []string) (out []string) {
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// A download ends with its window, and goes on in the next.
func TestWindowCloses(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		now := time.Now()
		o := b.offerOf(pos, "1.0.0")
		o.Download = []update.Span{{From: now, To: now.Add(time.Hour)}, {From: now.Add(10 * time.Hour), To: now.Add(11 * time.Hour)}}
		b.slow = 90 * time.Minute // there is no more in one window
		b.boot(9*time.Hour, o)
		if got := b.states(o.Execution); got[len(got)-1] != "WAITING window-download" {
			t.Fatalf("states %q", got)
		}
		b.slow = 0
		b.boot(9 * time.Hour)
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}

// An offer that ends while it waits may be tried again by the service.
func TestExpiresWhileWaiting(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		o.NotAfter = time.Now().Add(time.Hour)
		b.reason, b.opens = "power", time.Now().Add(10*time.Hour)
		b.rest(o)
		is(t, b.end(t, o), "FAILED", "expired")
		again := o
		again.Attempt, again.NotAfter = 2, time.Now().Add(24*time.Hour)
		b.boot(12*time.Hour, again)
		is(t, b.end(t, again), "SUCCEEDED", "")
		n := len(b.reports)
		b.rest(o, again) // both are redelivered
		for _, p := range b.reports[n:] {
			if p != b.end(t, again) {
				t.Errorf("redelivered: got %+v", p)
			}
		}
		if tried := b.parts[pos].Tried; len(tried) != 1 {
			t.Errorf("tried %q", tried)
		}
	})
}

// Each state has its time.
func TestStepTimers(t *testing.T) {
	for state, tt := range map[string]struct {
		set   func(*till, *update.Offer)
		state string
	}{
		"OFFERED":     {func(b *till, _ *update.Offer) { b.offline = time.Now().Add(20 * time.Hour) }, "FAILED"},
		"DOWNLOADING": {func(b *till, _ *update.Offer) { b.slow = 20 * time.Hour }, "FAILED"},
		"INSTALLING":  {func(b *till, o *update.Offer) { b.fate[o.Target] = "endless" }, "FAILED"},
	} {
		t.Run(state, func(t *testing.T) {
			on(t, func(t *testing.T, b *till) {
				o := b.offerOf(pos, "1.0.0")
				o.Steps = map[string]time.Duration{state: 10 * time.Minute}
				tt.set(b, &o)
				b.boot(9*time.Minute, o)
				if len(b.ends(o.Execution, 1)) != 0 {
					t.Fatal("it ended before its time")
				}
				b.rest()
				is(t, b.end(t, o), tt.state, "timeout")
				if text := b.end(t, o).Text; !strings.Contains(text, state) {
					t.Errorf("%q does not name the state", text)
				}
				b.truthful(map[string]string{"agent": "1.0.0", system: "1.0.0"})
			})
		})
	}
}

// A newer offer of a component takes the place of one that has not begun to be
// installed; of another component it waits its turn.
func TestNewerOffers(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		old, now, other := b.offerOf(pos, "1.0.0"), b.offerOf(pos, "1.1.0"), b.offerOf("agent", "1.1.0")
		b.reason, b.opens = "idle-lock", time.Now().Add(2*time.Hour)
		b.boot(time.Hour, old)
		b.boot(30*time.Minute, other, now)
		is(t, b.end(t, old), "FAILED", "superseded")
		if got := b.states(other.Execution); !slices.Equal(got, []string{"WAITING busy"}) && got[0] != "WAITING busy" {
			t.Errorf("states of the other %q", got)
		}
		b.rest()
		b.rest()
		is(t, b.end(t, now), "SUCCEEDED", "")
		is(t, b.end(t, other), "SUCCEEDED", "")
		b.truthful(map[string]string{"agent": "1.1.0", system: "1.0.0", pos: "1.1.0"})
		if slices.ContainsFunc(b.audit, func(a string) bool { return strings.Contains(a, "alarm") }) {
			t.Errorf("what was done on purpose is no alarm: %q", b.audit)
		}
	})
}

// What is being installed finishes, whatever comes.
func TestInstallingFinishes(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o, next := b.offerOf("agent", "1.1.0"), b.offerOf("agent", "1.2.0")
		b.boot(time.Hour, o) // until the restart
		b.rest(next)
		is(t, b.end(t, o), "SUCCEEDED", "")
		is(t, b.end(t, next), "SUCCEEDED", "")
	})
}

// The service takes an offer back by one that has expired.
func TestCancel(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		b.reason, b.opens = "idle-lock", time.Now().Add(2*time.Hour)
		b.boot(time.Hour, o)
		back := o
		back.NotAfter = time.Now().Add(-time.Second)
		b.rest(back)
		is(t, b.end(t, o), "FAILED", "canceled")
		b.rest(o)
		b.truthful(map[string]string{"agent": "1.0.0", system: "1.0.0"})
	})
}

// What was well before must be after it; what was broken is not held against
// the update.
func TestBaseline(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after string
		state, reason string
	}{
		"breaks":        {"OK", "Offline", "ROLLED_BACK", "unhealthy"},
		"stays well":    {"OK", "OK", "SUCCEEDED", ""},
		"stays broken":  {"Fault", "Fault", "SUCCEEDED", ""},
		"another fault": {"Fault", "Offline", "SUCCEEDED", ""},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(t *testing.T, b *till) {
				o := b.offerOf(system, "1.1.0")
				b.health["printer"] = tt.before
				b.boot(time.Hour, o)
				b.health["printer"] = tt.after
				for range 10 {
					if b.boot(time.Hour) {
						break
					}
					if b.parts[system].Next == "1.0.0" {
						b.health["printer"] = tt.before // the old one drives it
					}
				}
				is(t, b.end(t, o), tt.state, tt.reason)
				if tt.reason != "" && !strings.Contains(b.end(t, o).Text, "printer") {
					t.Errorf("%q does not name the printer", b.end(t, o).Text)
				}
			})
		})
	}
}

// An update that needs no restart is not judged by what was seen before it.
func TestBaselineAsksAgain(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		b.lazy = true
		o := b.offerOf(pos, "1.0.0")
		b.checks = append(b.checks, update.Check{Name: "it runs", Run: func(context.Context) error {
			b.health["printer"] = "Offline" // by what was switched to
			return nil
		}})
		b.rest(o)
		is(t, b.end(t, o), "ROLLED_BACK", "unhealthy")
	})
}

// A system on trial gets some boots to prove itself, and no more.
func TestSystemRebootsItself(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(system, "1.1.0")
		b.fate[o.Target] = "sick"
		b.rest(o)
		is(t, b.end(t, o), "ROLLED_BACK", "unhealthy")
		if b.boots != 6 { // the first, the trial, three more, and back
			t.Errorf("%d boots, want 6", b.boots)
		}
		b.truthful(map[string]string{"agent": "1.0.0", system: "1.0.0"})
	})
	on(t, func(t *testing.T, b *till) { // a boot loader that tries once gets no more to do, and why is known
		o := b.offerOf(system, "1.1.0")
		b.fate[o.Target], b.parts[system].once = "sick", true
		b.rest(o)
		is(t, b.end(t, o), "ROLLED_BACK", "unhealthy")
		if b.boots != 3 { // the first, the trial, and back
			t.Errorf("%d boots, want 3", b.boots)
		}
	})
	on(t, func(t *testing.T, b *till) { // one that recovers stays
		o := b.offerOf(system, "1.1.0")
		b.fate[o.Target] = "sick"
		b.boot(time.Hour, o)
		b.boot(time.Hour)
		delete(b.fate, o.Target)
		b.rest()
		is(t, b.end(t, o), "SUCCEEDED", "")
	})
}

// A release that was taken back again and again is refused.
func TestLoop(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(pos, "1.0.0")
		b.fate[o.Target] = "sick"
		for i := range 3 {
			o.Attempt = uint32(i + 1)
			b.rest(o)
			is(t, b.end(t, o), "ROLLED_BACK", "unhealthy")
		}
		o.Attempt = 4
		b.rest(o)
		is(t, b.end(t, o), "REJECTED", "loop")
	})
}

// What cannot be taken back is not said to be back.
func TestStuck(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		b.parts[pos].Runs, b.parts[pos].backFail = "1.0.0", 100
		o := b.offerOf(pos, "1.1.0")
		b.fate[o.Target] = "sick"
		b.rest(o)
		is(t, b.end(t, o), "FAILED", "unhealthy")
		if p := b.end(t, o); !strings.Contains(p.Text, "could not be taken back") || b.parts[pos].Runs != "1.1.0" {
			t.Errorf("got %+v, runs %s", p, b.parts[pos].Runs)
		}
	})
}

// Below what was ever kept nothing is installed, though something older runs.
func TestFloor(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		b.rest(b.offerOf(pos, "1.2.0"))
		b.parts[pos].Runs = "" // somebody emptied the folder
		o := b.offerOf(pos, "1.1.0")
		b.rest(o)
		is(t, b.end(t, o), "REJECTED", "downgrade")
		same := b.offerOf(pos, "1.2.0")
		same.Attempt = 2
		b.rest(same)
		is(t, b.end(t, same), "SUCCEEDED", "") // it was lost, and comes back
		if err := os.WriteFile(filepath.Join(b.dir, "floors.json"), []byte("rot"), 0o600); err != nil {
			t.Fatal(err)
		}
		o.Attempt = 2
		b.rest(o)
		is(t, b.end(t, o), "REJECTED", "downgrade")
	})
}

// A boot loader that falls back weeks later is told, and what is in work then
// is not blamed.
func TestLateFallback(t *testing.T) {
	on(t, func(t *testing.T, b *till) {
		o := b.offerOf(system, "1.1.0")
		b.reason, b.opens = "idle-lock", time.Now().Add(2*time.Hour)
		b.boot(time.Hour, o)
		b.parts[system].Failed = "the boot loader fell back"
		b.rest()
		is(t, b.end(t, o), "SUCCEEDED", "")
		if !slices.ContainsFunc(b.audit, func(a string) bool { return strings.HasPrefix(a, "update.fallback alarm") }) {
			t.Errorf("trail %q", b.audit)
		}
	})
}

// A check that says nothing of a box which was offline before does not count.
func TestCheckOfTheLink(t *testing.T) {
	for name, before := range map[string]string{"online before": "OK", "offline before": ""} {
		t.Run(name, func(t *testing.T) {
			on(t, func(t *testing.T, b *till) {
				if before != "" {
					b.health["link"] = before
				}
				b.checks = []update.Check{
					{Name: "link", Classes: []string{"agent"}, Of: "link", Run: func(context.Context) error { return errors.New("not reached") }},
					{Name: "of others", Classes: []string{"os"}, Run: func(context.Context) error { return errors.New("must not be asked") }},
				}
				o := b.offerOf("agent", "1.1.0")
				b.rest(o)
				if before == "" {
					is(t, b.end(t, o), "SUCCEEDED", "")
				} else {
					is(t, b.end(t, o), "ROLLED_BACK", "unproven")
				}
			})
		})
	}
}

// An agent of before has left its journal in the middle of an update.
func TestOlderJournal(t *testing.T) {
	for state, trial := range map[string]bool{"DOWNLOADING": false, "INSTALLED": false, "REBOOTING": true, "CHECKING": true} {
		t.Run(state, func(t *testing.T) {
			on(t, func(t *testing.T, b *till) {
				text := fmt.Sprintf(`{"offer":{"execution":"x","version":"1.1.0","target":"agent/1.1.0","not_after":%q},"state":%q,"from":"1.0.0",`+
					`"ended":[{"execution":"w","state":"SUCCEEDED","from":"0.9.0","to":"1.0.0"}]}`, time.Now().Add(time.Hour).Format(time.RFC3339), state)
				if err := os.WriteFile(filepath.Join(b.dir, "journal.json"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if p := b.parts["agent"]; trial {
					p.Before, p.Runs, p.Trial = "1.0.0", "1.1.0", true
				}
				b.rest()
				is(t, b.end(t, update.Offer{Execution: "x"}), "SUCCEEDED", "")
				b.rest(update.Offer{Execution: "w", Version: "1.0.0", Target: "agent/1.0.0", NotAfter: time.Now().Add(time.Hour)})
				is(t, b.end(t, update.Offer{Execution: "w"}), "SUCCEEDED", "")
			})
		})
	}
}
