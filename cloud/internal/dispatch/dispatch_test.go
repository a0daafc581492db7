package dispatch_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/dispatch"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/postgres"
)

// link keeps what was sent to devices while it is up.
type link struct {
	mu   sync.Mutex
	up   bool
	sent [][]byte
	on   []wire.Channel
}

func (l *link) Send(_ fleet.DeviceID, c wire.Channel, payload []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		return errors.New("not connected")
	}
	l.sent, l.on = append(l.sent, payload), append(l.on, c)
	return nil
}

func (l *link) set(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = up
}

// world is a Dispatch over a real store with device d1 of tenant main.
type world struct {
	*dispatch.Dispatch
	store   *store.Store
	link    *link
	signer  *trust.OrderSigner
	ring    trust.Keyring
	changed chan fleet.Command
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), postgres.Place(t), quiet)
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	must(t, st.Enrol(t.Context(), fleet.Device{ID: "d1", Tenant: "main", Tier: fleet.TierC, EKHash: "ek", EnrolledAt: time.Now()}))
	key, err := trust.NewKey(filepath.Join(t.TempDir(), "order.key"))
	must(t, err)
	signer := trust.NewOrderSigner(key)
	id, pub := signer.Public()
	w := &world{store: st, link: &link{}, signer: signer, ring: trust.Keyring{id: ed25519.PublicKey(pub)}, changed: make(chan fleet.Command, 1000)}
	w.Dispatch = dispatch.New(dispatch.Options{Store: st, Signer: signer, Sender: w.link, Changed: func(c fleet.Command) { w.changed <- c }, Log: quiet})
	return w
}

func (w *world) send(t *testing.T, verb string, args map[string]string, life time.Duration) fleet.Command {
	t.Helper()
	c, err := w.Send(t.Context(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: verb, Args: args, By: "anna", Reason: "why", Life: life})
	must(t, err)
	return c
}

// received opens what the device was sent, as a device does.
func (w *world) received(t *testing.T) []wire.CommandOrder {
	t.Helper()
	w.link.mu.Lock()
	defer w.link.mu.Unlock()
	var out []wire.CommandOrder
	for i, b := range w.link.sent {
		o, err := wire.Decode[wire.Order](b)
		must(t, err)
		must(t, w.ring.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature))
		if o.Kind != wire.OrderCommand || w.link.on[i] != wire.DownCommand {
			t.Errorf("sent as %s on %s", o.Kind, w.link.on[i])
		}
		c, err := wire.Decode[wire.CommandOrder](o.Payload)
		must(t, err)
		out = append(out, c)
	}
	w.link.sent, w.link.on = nil, nil
	return out
}

func TestArguments(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 65)
	for _, c := range []struct {
		verb, args string // args as name=value;name=value
		life       time.Duration
		want       string // part of the refusal; empty: fine
	}{
		{"identify", "", 0, ""},
		{"diagnose", "", 0, ""},
		{"reboot", "", time.Second, ""},
		{"reboot", "", 7 * 24 * time.Hour, ""},
		{"collect-logs", "lines=1", 0, ""},
		{"collect-logs", "lines=2000", 0, ""},
		{"print-test", "peripheral=receipt", 0, ""},
		{"set-config", "label=Kasse 3 ü;poll_s=5;telemetry_s=3600;log_level=debug", 0, ""},
		{"factory-reset", "device=d1", 0, ""},

		{"format", "", 0, "use one of identify, reboot"},
		{"relinquish", "", 0, "use one of identify, reboot"}, // whoever asks: only the service itself sends it
		{"relinquish", "mark=1:aa", 0, "use one of identify, reboot"},
		{"diagnose", "deep=yes", 0, "it takes: none"},
		{"", "", 0, "use one of"},
		{"identify", "loud=yes", 0, "it takes: none"},
		{"collect-logs", "line=1", 0, "it takes: lines"},
		{"collect-logs", "lines=0", 0, "from 1 to 2000"},
		{"collect-logs", "lines=2001", 0, "from 1 to 2000"},
		{"collect-logs", "lines=1.5", 0, "whole number"},
		{"collect-logs", "lines=", 0, "whole number"},
		{"print-test", "peripheral=a\nb", 0, "printable"},
		{"print-test", "peripheral=a\x7f", 0, "printable"},
		{"print-test", "peripheral=\xff", 0, "printable"},
		{"set-config", "", 0, "at least one of"},
		{"set-config", "label=" + long, 0, "at most 64"},
		{"set-config", "poll_s=4", 0, "from 5 to 3600"},
		{"set-config", "log_level=loud", 0, "one of debug, info, warn, error"},
		{"factory-reset", "", 0, "device=d1"},
		{"factory-reset", "device=d2", 0, "device=d1"},
		{"factory-reset", "device=d1;data=yes", 0, "it takes: device"},
		{"set-config", "label=x;shell=sh", 0, "no argument \"shell\""},
		{"reboot", "", time.Millisecond, "from 1s"},
		{"reboot", "", -time.Hour, "from 1s"},
		{"reboot", "", 7*24*time.Hour + 1, "from 1s to"},
	} {
		args := map[string]string{}
		for a := range strings.SplitSeq(c.args, ";") {
			if k, v, ok := strings.Cut(a, "="); ok {
				args[k] = v
			}
		}
		_, err := w.Send(t.Context(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: c.verb, Args: args, Reason: "why", Life: c.life})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s %q: got %v, want it sent", c.verb, c.args, err)
		case c.want != "" && (!errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s %q for %s: got %v, want it refused with %q", c.verb, c.args, c.life, err, c.want)
		}
	}
	if all, _, err := w.store.Commands(t.Context(), "main", fleet.CommandFilter{}, fleet.Page{}); err != nil || len(all) != 9 {
		t.Errorf("%d commands in the table, %v; want the 9 good ones", len(all), err)
	}
	_, err := w.Send(t.Context(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: "reboot", Reason: strings.Repeat("x", wire.MaxText+1)})
	if !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("endless reason: got %v", err)
	}
	_, err = w.Send(t.Context(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: fleet.FactoryReset, Args: map[string]string{"device": "d1"}, Reason: " "})
	if !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "reason") {
		t.Errorf("a factory reset without a reason: got %v", err)
	}
	for _, to := range []fleet.CommandRequest{{Device: "d9", Tenant: "main", Verb: "reboot"}, {Device: "d1", Tenant: "other", Verb: "reboot"}} {
		if _, err := w.Send(t.Context(), to); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("to %s of %s: got %v, want not found", to.Device, to.Tenant, err)
		}
	}
}

func TestSend(t *testing.T) {
	w := newWorld(t)
	w.link.set(true)
	c := w.send(t, "collect-logs", map[string]string{"lines": "10"}, time.Minute)
	if c.State != fleet.CommandSent || c.Counter != 1 {
		t.Errorf("got %+v", c)
	}
	got := w.received(t)
	if len(got) != 1 {
		t.Fatalf("the device got %d orders, want 1", len(got))
	}
	o := got[0]
	if o.ID != string(c.ID) || o.Tenant != "main" || o.Device != "d1" || o.Counter != 1 || o.Verb != "collect-logs" || o.Args["lines"] != "10" || o.By != "anna" || o.Reason != "why" ||
		o.NotAfter-o.IssuedAt != time.Minute.Milliseconds() {
		t.Errorf("the device got %+v", o)
	}
	if changed := <-w.changed; changed.ID != c.ID || changed.State != fleet.CommandSent {
		t.Errorf("told of %+v", changed)
	}
	evs, _, err := w.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{})
	if err != nil || len(evs) != 1 || evs[0].Kind != "command.issued" || evs[0].Actor != "anna" || evs[0].Tenant != "main" || evs[0].Detail["verb"] != "collect-logs" {
		t.Errorf("audited as %+v, %v", evs, err)
	}
}

// TestWaits sends to a device that is away: it gets all in order when it is
// back, what it may have missed once more, and nothing that has ended.
func TestWaits(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		if c := w.send(t, "identify", nil, 0); c.State != fleet.CommandQueued {
			t.Errorf("got %s while the device is away", c.State)
		}
	}
	must(t, w.Deliver(t.Context(), "d1")) // gone again before the first
	if got := w.received(t); len(got) != 0 {
		t.Errorf("received %v", got)
	}
	w.link.set(true)
	for range 2 {
		must(t, w.Deliver(t.Context(), "d1"))
		got := w.received(t)
		if len(got) != 3 || got[0].Counter != 1 || got[1].Counter != 2 || got[2].Counter != 3 {
			t.Fatalf("received %v, want counters 1 to 3", got)
		}
	}
	all, _, err := w.store.Commands(t.Context(), "main", fleet.CommandFilter{State: fleet.CommandSent}, fleet.Page{})
	if must(t, err); len(all) != 3 {
		t.Errorf("%d are noted as sent, want 3", len(all))
	}
	_, err = w.store.Commit(t.Context(), []fleet.Intake{{Device: "d1", Tenant: "main", At: time.Now(), CommandEnd: &fleet.CommandEnd{ID: all[0].ID, State: fleet.CommandSucceeded}}})
	must(t, err)
	must(t, w.Deliver(t.Context(), "d1"))
	if got := w.received(t); len(got) != 2 || got[1].Counter != 2 {
		t.Errorf("received %v, want what is open", got)
	}
	states := map[string]int{}
	for len(w.changed) > 0 {
		states[string((<-w.changed).State)]++
	}
	if states["QUEUED"] != 3 || states["SENT"] != 3 {
		t.Errorf("told of %v, want each queued and then sent", states)
	}
}

// slow holds up the first thing that is sent until it is let go.
type slow struct {
	*link
	first         sync.Once
	entered, open chan struct{}
}

func (s *slow) Send(d fleet.DeviceID, c wire.Channel, payload []byte) error {
	s.entered <- struct{}{}
	s.first.Do(func() { <-s.open })
	return s.link.Send(d, c, payload)
}

// TestOrder sends a second command while the first is on its way: it does not
// overtake it.
// TestReminded: what could not be handed over goes to a device that is there without its coming anew, and what it has
// not answered goes again; not before its time, and to nobody who is away.
func TestReminded(t *testing.T) {
	w := newWorld(t)
	here := false
	w.Dispatch = dispatch.New(dispatch.Options{
		Store: w.store, Signer: w.signer, Sender: w.link, Changed: func(fleet.Command) {}, Log: slog.New(slog.DiscardHandler),
		Present: func(id fleet.DeviceID) bool { return here && id == "d1" },
	})
	c := w.send(t, "identify", nil, time.Hour)
	w.link.set(true)
	later := time.Now().Add(time.Minute)
	for _, step := range []struct {
		name   string
		here   bool
		before time.Time
		queued bool
		want   int
	}{
		{"away", false, later, true, 0},
		{"too early", true, c.IssuedAt.Add(-time.Second), true, 0},
		{"never handed over", true, later, true, 1},
		{"handed over", true, later, true, 0},
		{"not answered", true, later, false, 1},
		{"not answered, and away", false, later, false, 0},
	} {
		here = step.here
		w.Remind(t.Context(), step.before, step.queued)
		if got := w.received(t); len(got) != step.want || step.want == 1 && got[0].ID != string(c.ID) {
			t.Errorf("%s: got %d commands, want %d", step.name, len(got), step.want)
		}
	}
}

func TestOrder(t *testing.T) {
	w := newWorld(t)
	w.link.set(true)
	s := &slow{link: w.link, entered: make(chan struct{}, 2), open: make(chan struct{})}
	key, err := trust.NewKey(filepath.Join(t.TempDir(), "order.key"))
	must(t, err)
	signer := trust.NewOrderSigner(key)
	id, pub := signer.Public()
	w.ring[id] = pub
	d := dispatch.New(dispatch.Options{Store: w.store, Signer: signer, Sender: s, Changed: func(fleet.Command) {}, Log: slog.New(slog.DiscardHandler)})
	var wg sync.WaitGroup
	send := func() {
		if _, err := d.Send(context.Background(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: "identify"}); err != nil {
			t.Error(err)
		}
	}
	wg.Go(send)
	<-s.entered
	wg.Go(send)
	select {
	case <-s.entered:
		t.Error("the second was sent before the first had gone")
	case <-time.After(500 * time.Millisecond):
	}
	close(s.open)
	wg.Wait()
	if got := w.received(t); len(got) != 2 || got[0].Counter != 1 || got[1].Counter != 2 {
		t.Errorf("received %v, want counters 1 and 2", got)
	}
}

// TestExpiry lets a command run out: it ends as EXPIRED and is never sent.
func TestExpiry(t *testing.T) {
	w := newWorld(t)
	c := w.send(t, "reboot", nil, time.Second)
	stays := w.send(t, "identify", nil, time.Hour)
	<-w.changed
	<-w.changed
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	select {
	case got := <-w.changed:
		if got.ID != c.ID || got.State != fleet.CommandExpired || got.EndedAt.Before(c.NotAfter.Truncate(time.Millisecond)) {
			t.Errorf("told of %+v", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing expired")
	}
	cancel()
	must(t, <-done)
	w.link.set(true)
	must(t, w.Deliver(t.Context(), "d1"))
	if got := w.received(t); len(got) != 1 || got[0].ID != string(stays.ID) {
		t.Errorf("received %v, want only what has not expired", got)
	}
	evs, _, err := w.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{Limit: 1})
	if err != nil || evs[0].Kind != "command.expired" || evs[0].Tenant != "main" || evs[0].Detail["command"] != string(c.ID) {
		t.Errorf("audited as %+v, %v", evs, err)
	}
}

// mute signs nothing.
type mute struct{}

func (mute) SignOrder(string, []byte) (string, []byte, error) { return "", nil, errors.New("no key") }

// TestNoSignature shows that what cannot be signed is not sent, and stays.
func TestNoSignature(t *testing.T) {
	w := newWorld(t)
	w.link.set(true)
	d := dispatch.New(dispatch.Options{Store: w.store, Signer: mute{}, Sender: w.link, Changed: func(fleet.Command) {}, Log: slog.New(slog.DiscardHandler)})
	c, err := d.Send(t.Context(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: "reboot"})
	if err != nil || c.State != fleet.CommandQueued || len(w.link.sent) != 0 {
		t.Errorf("got %+v, %v with %d sent; want it queued and nothing sent", c, err, len(w.link.sent))
	}
}

// TestRestricted sends to a device that has only the q door: it gets what
// repairs it or lets it go, and the rest when it is trusted again.
func TestRestricted(t *testing.T) {
	w := newWorld(t)
	w.link.set(true)
	restricted := true
	key, err := trust.NewKey(filepath.Join(t.TempDir(), "order.key"))
	must(t, err)
	signer := trust.NewOrderSigner(key)
	id, pub := signer.Public()
	w.ring[id] = pub
	d := dispatch.New(dispatch.Options{
		Store: w.store, Signer: signer, Sender: w.link, Changed: func(fleet.Command) {}, Log: slog.New(slog.DiscardHandler),
		Restricted: func(fleet.DeviceID) bool { return restricted },
	})
	for verb, want := range map[string]fleet.CommandState{
		"identify": fleet.CommandQueued, "set-config": fleet.CommandQueued, "print-test": fleet.CommandQueued,
		"diagnose": fleet.CommandSent, "collect-logs": fleet.CommandSent, "reboot": fleet.CommandSent,
	} {
		r := fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: verb, By: "anna"}
		if verb == "set-config" {
			r.Args = map[string]string{"label": "Lane 1"}
		}
		if c, err := d.Send(t.Context(), r); err != nil || c.State != want {
			t.Errorf("%s: got %s, %v; want %s", verb, c.State, err, want)
		}
	}
	must(t, d.Relinquish(t.Context(), "main", "d1", "3:abcd", "accepted by the next owner"))
	must(t, d.Deliver(t.Context(), "d1"))
	for _, o := range w.received(t) {
		if o.Verb == "identify" || o.Verb == "set-config" || o.Verb == "print-test" {
			t.Errorf("a restricted device got %s", o.Verb)
		}
	}
	restricted = false
	must(t, d.Deliver(t.Context(), "d1"))
	if got := w.received(t); len(got) != 7 {
		t.Errorf("got %d when it was trusted again, want all 7", len(got))
	}
}

// TestRelinquish asks twice: one command, by the service, that lives long.
func TestRelinquish(t *testing.T) {
	w := newWorld(t)
	w.link.set(true)
	for range 2 {
		must(t, w.Relinquish(t.Context(), "main", "d1", "3:abcd", "accepted by Next"))
	}
	got := w.received(t)
	if len(got) != 1 || got[0].Verb != "relinquish" || got[0].Args["mark"] != "3:abcd" || got[0].By != "service" || got[0].Reason != "accepted by Next" ||
		got[0].NotAfter-got[0].IssuedAt != (7*24*time.Hour).Milliseconds() {
		t.Errorf("received %+v", got)
	}
	must(t, w.Relinquish(t.Context(), "main", "d1", "4:ef01", "accepted by Other"))
	if got := w.received(t); len(got) != 1 || got[0].Args["mark"] != "4:ef01" {
		t.Errorf("for another voucher: received %+v", got)
	}
	if err := w.Relinquish(t.Context(), "other", "d1", "5:aa", ""); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("another tenant's device: got %v", err)
	}
}

// TestDoorCloses: a device that loses its trust between the look at it and the sending gets no command that is not for
// it; the command waits.
func TestDoorCloses(t *testing.T) {
	w := newWorld(t)
	w.link.set(true)
	key, err := trust.NewKey(filepath.Join(t.TempDir(), "order.key"))
	must(t, err)
	d := dispatch.New(dispatch.Options{
		Store: w.store, Signer: trust.NewOrderSigner(key), Sender: w.link, Changed: func(fleet.Command) {}, Log: slog.New(slog.DiscardHandler),
		Restricted: func(fleet.DeviceID) bool { return false },
		Open:       func(fleet.DeviceID, wire.Channel, []byte) error { return errors.New("the open door is closed") },
	})
	for verb, want := range map[string]fleet.CommandState{"identify": fleet.CommandQueued, "diagnose": fleet.CommandSent} {
		if c, err := d.Send(t.Context(), fleet.CommandRequest{Device: "d1", Tenant: "main", Verb: verb, By: "anna"}); err != nil || c.State != want {
			t.Errorf("%s: got %s, %v; want %s", verb, c.State, err, want)
		}
	}
	if len(w.link.sent) != 1 {
		t.Errorf("sent %d, want the one that is for everybody", len(w.link.sent))
	}
}
