// Package haltest is the conformance suite of hardware drivers: thirteen laws.
// Each driver brings a Bench - hardware or an emulator of it, and hands that
// break it - and has to pass Run. It proves that a driver tells the truth, in
// time, and holds nothing back when it is closed; it does not prove what only
// one model does.
//
// A law that cannot apply to a kind of device is declared so, with the reason,
// in the Bench: nothing is skipped in silence.
package haltest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// Bench is one device on the bench. A law whose means are nil fails, unless
// NotApplicable says why there are none.
type Bench struct {
	Open  func(t *testing.T) hal.Device // may be called again and again
	Close func(d hal.Device) error      // nil: d.Close; of a part of a device: closes its parent
	Ready func(s hal.Status) bool       // what a device in order says; nil: on-line and OK

	Faults []Fault
	Unplug func(on bool) // takes the device away
	Mute   func(on bool) // the device takes what it is told and never answers
	Noise  func(on bool) // the device says things that mean nothing
	Reset  func()        // the device forgets what it has counted itself; where it counts at all
	Blind  func(t *testing.T) hal.Device
	// Unseen are the sensors that the device of Blind does not have.
	Unseen []string
	// Output tells how much the device has physically put out so far.
	Output func() int
	// Feed lets the device meet a card number, in any way it could.
	Feed func(t *testing.T, d hal.Device, number string)
	// Observe opens the device without claiming it, or sharing it where nobody
	// can claim it; Compete is then what its owner does, and must not be kept
	// waiting.
	Observe func(t *testing.T) hal.Device
	Compete func(ctx context.Context) error

	// Apart says that the bench of each law has a device of its own, so that all
	// laws but the first may run beside each other.
	Apart bool

	// NotApplicable are the laws that cannot apply to this kind of device, by
	// number, each with the reason.
	NotApplicable map[int]string
}

// Fault is something that can happen to a device, and what it must say then.
type Fault struct {
	Name   string
	Set    func(on bool)
	Sensor string // that must read Yes while it is on and No when it is off; empty: none shows it
	On     string // event when it comes
	Off    string // event when it goes
	Alone  bool   // it cannot come or go while another is on
}

// law is one of the thirteen. missing says what the bench lacks for it.
type law struct {
	name    string
	missing func(b Bench) string
	do      func(t *testing.T, b Bench)
}

var laws = []law{
	{"open and close leave nothing behind", nil, leaks},
	{"a mute device hangs no call", need(func(b Bench) bool { return b.Mute != nil }, "Mute"), mute},
	{"each fault tells its events once", need(func(b Bench) bool { return len(b.Faults) > 0 }, "Faults"), faults},
	{"a lost device is told once and comes back", need(func(b Bench) bool { return b.Unplug != nil }, "Unplug"), unplugged},
	{"noise is counted and survived", need(func(b Bench) bool { return b.Noise != nil }, "Noise"), noise},
	{"counts only grow within their epoch", nil, epochs},
	{"observing keeps nobody waiting", need(func(b Bench) bool { return b.Observe != nil && b.Compete != nil }, "Observe and Compete"), observing},
	{"an absent sensor is unknown", need(func(b Bench) bool { return b.Blind != nil && len(b.Unseen) > 0 }, "Blind and Unseen"), blind},
	{"cancelling is prompt", nil, cancelling},
	{"no card number comes out", need(func(b Bench) bool { return b.Feed != nil }, "Feed"), cardNumber},
	{"an internal check moves nothing", need(func(b Bench) bool { return b.Output != nil }, "Output"), internalCheck},
	{"calls from all sides at once", nil, allAtOnce},
	{"events equal snapshots", need(func(b Bench) bool { return len(b.Faults) > 0 }, "Faults"), replayed},
}

func need(has func(Bench) bool, what string) func(Bench) string {
	return func(b Bench) string {
		if has(b) {
			return ""
		}
		return what
	}
}

const prompt = time.Second // for everything that must not wait

var patience = 10 * time.Second // until a device has noticed something

// Run tests the driver. bench is called for each law and brings a fresh bench,
// which it takes down with t.Cleanup.
func Run(t *testing.T, bench func(t *testing.T) Bench) {
	t.Run("bench", func(t *testing.T) {
		b := bench(t)
		for n, reason := range b.NotApplicable {
			switch {
			case n < 1 || n > len(laws):
				t.Errorf("there is no law %d", n)
			case reason == "":
				t.Errorf("law %d is declared not to apply, without a reason", n)
			case laws[n-1].missing == nil && n != 6:
				t.Errorf("law %d, %q, applies to every device", n, laws[n-1].name)
			case laws[n-1].missing != nil && laws[n-1].missing(b) == "":
				t.Errorf("law %d is declared not to apply, and the bench brings what it needs", n)
			}
		}
		healthy(t, b)
	})
	for i, law := range laws {
		t.Run(fmt.Sprintf("law %02d %s", i+1, law.name), func(t *testing.T) {
			b := bench(t)
			if reason := b.NotApplicable[i+1]; reason != "" {
				t.Skipf("law %d does not apply: %s", i+1, reason)
			}
			if b.Apart && i > 0 { // the first counts all goroutines and files that there are
				t.Parallel()
			}
			if law.missing != nil {
				if what := law.missing(b); what != "" {
					t.Fatalf("the bench has no %s, and does not declare why law %d cannot apply", what, i+1)
				}
			}
			law.do(t, b)
		})
	}
}

// healthy is no law but what they build on: a device in order says so, and who
// it is.
func healthy(t *testing.T, b Bench) {
	d := b.open(t)
	s := status(t, d)
	if s.Health == hal.OK && (s.Reason != "" || s.Advice != "") {
		t.Errorf("a healthy device gives reason %q and advice %q", s.Reason, s.Advice)
	}
	if s.Health != hal.OK && s.Reason == "" {
		t.Errorf("it is %s and says not why", s.Health)
	}
	if i := d.Info(); i.ID == "" || i.Category == "" || i.Driver == "" || d.String() == "" {
		t.Errorf("incomplete identity: %+v", i)
	}
	if p, ok := d.(hal.Parent); ok {
		seen := map[string]bool{d.Info().ID: true}
		for _, part := range p.Parts() {
			if id := part.Info().ID; id == "" || seen[id] {
				t.Errorf("a part has no ID of its own: %q", id)
			} else {
				seen[id] = true
			}
		}
	}
}
