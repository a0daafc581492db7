package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// resettable is a member whose supervisor knows a factory reset.
func (f *fleet) resettable() (b *box, file string) {
	f.t.Helper()
	b = f.box()
	file = filepath.Join(f.t.TempDir(), "factory-reset")
	b.cfg.FactoryReset = file
	b.boot(tpmfarm.Default(release))
	f.until("not connected", func() bool { return f.has("link.up", 1) })
	return b, file
}

// gone waits for the agent to have the box restarted.
func (b *box) gone() {
	b.f.t.Helper()
	err := <-b.ended
	b.cancel()
	if b.cancel = nil; !errors.Is(err, agent.ErrReboot) {
		b.f.t.Fatalf("the agent ended with %v", err)
	}
}

// TestFactoryReset: the service has the trail and the result before the box goes,
// and the supervisor is asked.
func TestFactoryReset(t *testing.T) {
	f := newFleet(t)
	b, file := f.resettable()
	for name, args := range map[string]map[string]string{"nothing": nil, "another device": {"device": "another"}} {
		if r := f.command(f.device(), "factory-reset", args); r.State != "FAILED" || !strings.Contains(r.Text, "confirmed for") {
			t.Errorf("confirmed by %s: got %s %q", name, r.State, r.Text)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Fatal("the supervisor is asked though nobody confirmed it")
	}
	if r := f.command(f.device(), "factory-reset", map[string]string{"device": f.device()}); r.State != "SUCCEEDED" {
		t.Fatalf("got %s %q", r.State, r.Text)
	}
	b.gone()
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the supervisor is not asked: %v", err)
	}
	if !f.audited("agent.factory-reset") || !f.audited("command.done") {
		t.Errorf("the service has %q", f.kinds())
	}
}

// TestFactoryResetWaits keeps the box as it is until the service has stored the
// result, through a power cut, and asks no supervisor for ever.
func TestFactoryResetWaits(t *testing.T) {
	f := newFleet(t)
	b, file := f.resettable()
	f.set(func() { f.deaf[wire.Result] = true })
	id := f.order(f.device(), "factory-reset", map[string]string{"device": f.device()})
	f.until("no result", func() bool {
		return slices.ContainsFunc(f.results, func(r wire.ResultReport) bool { return r.ID == id })
	})
	b.stop() // the power goes
	if _, err := os.Stat(file); err == nil {
		t.Fatal("the supervisor is asked before the service has said that it stored the result")
	}
	f.set(func() { f.deaf[wire.Result] = false })
	for range 3 {
		b.start()
		b.gone()
		must(t, os.Remove(file)) // the supervisor does nothing
	}
	seq := len(f.kinds())
	b.start()
	f.until("the box does not go on", func() bool { return len(f.audit) > seq && f.has("agent.start", 5) })
	if r := f.command(f.device(), "diagnose", nil); r.State != "SUCCEEDED" {
		t.Errorf("afterwards: got %s %q", r.State, r.Text)
	}
	b.stop()
	if _, err := os.Stat(file); err == nil {
		t.Error("the supervisor is asked for ever")
	}
	f.chained()
}

// TestNoFactoryReset: an image whose supervisor knows none says so.
func TestNoFactoryReset(t *testing.T) {
	f := newFleet(t)
	f.connected()
	if r := f.command(f.device(), "factory-reset", map[string]string{"device": f.device()}); r.State != "FAILED" || !strings.Contains(r.Text, "factory_reset") {
		t.Errorf("got %s %q", r.State, r.Text)
	}
}

// TestAfterFactoryReset: a box of which nothing is left but its TPM enrols again
// as who it was, and its trail goes on behind what the service has.
func TestAfterFactoryReset(t *testing.T) {
	f := newFleet(t)
	b, _ := f.resettable()
	b.stop()
	device, had := f.device(), len(f.kinds())
	for i := range 2 {
		must(t, os.RemoveAll(b.cfg.StateDir))
		b.boot(tpmfarm.Default(release))
		f.until("not enrolled again", func() bool { return f.has("audit.break", 1+i) && f.has("agent.start", 2+i) && f.has("link.up", 2+i) })
		b.stop()
		if again := f.device(); again != device || len(f.members) != 1 {
			t.Errorf("enrolled as %s, was %s", again, device)
		}
	}
	f.chained()
	kinds := f.kinds()
	if len(kinds) < had+6 || !f.has("agent.start", 3) || !f.has("audit.break", 2) {
		t.Errorf("the trail has %q: want what came before, and all that came after", kinds)
	}
}
