package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/app"
	"github.com/tillward/tillward/agent/internal/update/binary"
	"github.com/tillward/tillward/agent/internal/update/image"
	"github.com/tillward/tillward/agent/internal/update/script"
	"github.com/tillward/tillward/agent/internal/update/setting"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/trust"
)

// newMachine wires the update room.
func (a *Agent) newMachine(ctx context.Context) (*update.Machine, error) {
	handlers, err := a.handlers(ctx)
	if err != nil {
		return nil, err
	}
	if a.fetcher, err = a.newFetcher(); err != nil {
		return nil, err
	}
	installed := []update.Component{{Name: binary.Component, Class: trust.ClassAgent}}
	if handlers[trust.ClassOS] != nil {
		installed = append(installed, update.Component{Name: a.system(), Class: trust.ClassOS})
	}
	whole := []string{trust.ClassAgent, trust.ClassOS}
	return update.New(update.Options{
		Dir:       a.file("agent"),
		Handlers:  handlers,
		Installed: installed, Given: a.given,
		Releases: releases{a}, Content: content{a, a.fetcher}, Names: targetOf, Medium: a.fromMedium,
		Report: a.reportUpdate, Record: a.note, Gate: a.gate, Permit: a.permit, Health: a.health,
		Checks: []update.Check{
			{Name: "drivers are loaded", Classes: whole, Of: healthDrivers, Run: func(context.Context) error { return a.driversLoaded() }},
			{Name: "the state partition has room", Of: healthRoom, Run: func(context.Context) error { return a.roomLeft() }},
			{Name: "what is sealed can be opened", Classes: whole, Run: func(context.Context) error { return a.opensAsBefore() }},
			{Name: "the broker is reached and the device trusted as before", Classes: whole, Of: healthLink, Run: a.trustedAsBefore},
			{Name: "release metadata is refreshed", Classes: whole, Of: healthLink, Run: func(ctx context.Context) error { return releases{a}.refresh(ctx) }},
		},
		CheckFor: a.cfg.Update.CheckFor.Duration, Log: a.log,
	})
}

// given are versions that the image states.
func (a *Agent) given() map[string]string {
	file := a.cfg.Update.Bootloader
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file) // #nosec G304 -- the configuration names the file
	v := strings.TrimSpace(string(b[:min(len(b), wire.MaxName)]))
	if err == nil && !semver.IsValid("v"+v) {
		err = fmt.Errorf("%s: %.20q is not a version such as 2025.10.0", file, v)
	}
	if err != nil {
		a.log.Warn("the version of the boot loader is not known, so releases that require one are refused", slog.Any("err", err))
		return nil
	}
	return map[string]string{"bootloader": v}
}

// handlers are what this box can install, by class.
func (a *Agent) handlers(ctx context.Context) (map[string]update.Handler, error) {
	self, err := binary.New(binary.Options{Dir: a.file("agent"), Version: a.o.Version, Slot: a.o.Slot, OS: runtime.GOOS, Arch: runtime.GOARCH})
	if err != nil {
		return nil, err
	}
	config, err := setting.Open(ctx, setting.Options{Dir: a.file("settings"), Box: box{a}, Link: a.linkAsBefore, Log: a.log})
	if err != nil {
		return nil, err
	}
	out := map[string]update.Handler{trust.ClassAgent: self, trust.ClassConfig: config}
	c := a.cfg.Update
	if c.RAUC != "" && a.o.Slots != nil {
		dir := a.file("system")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder of system images: %w", err)
		}
		out[trust.ClassOS] = image.New(image.Options{Dir: dir, Slots: a.o.Slots(c.RAUC), Whole: c.BudgetMiB > 0, Log: a.log})
	}
	if len(c.Scripts) > 0 {
		if out[trust.ClassScript], err = script.New(script.Options{Dir: a.file("scripts"), Scripts: c.scripts(), Log: a.log}); err != nil {
			return nil, err
		}
	}
	if c.AppsDir == "" {
		return out, nil
	}
	a.apps, err = app.New(app.Options{Dir: c.AppsDir, User: c.AppUser, Timeout: c.AppTimeout.Duration, Log: a.log})
	if err != nil { // e.g. a user that is not there: everything else goes on
		a.log.Error("this box takes no applications", slog.Any("err", err))
		return out, nil
	}
	out[trust.ClassApp] = a.apps
	return out, nil
}

// update runs the machine. When the box is to start again, it does so in order.
func (a *Agent) update(ctx context.Context) error {
	err := a.machine.Run(ctx)
	if !errors.Is(err, update.ErrReboot) {
		return err
	}
	poke(a.reboot)
	<-ctx.Done()
	return nil
}

// calm is how long after a connect what it took is given back.
const calm = 10 * time.Second

// look finds out anew what runs, whenever that is asked for, and tells it. A
// while later the memory that connecting took is the till's again: the runtime
// would keep it for itself.
func (a *Agent) look(ctx context.Context) error {
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.looks:
			a.machine.Look(ctx)
			a.touch()
			quiet = time.After(calm)
		case <-quiet:
			debug.FreeOSMemory()
		}
	}
}

// targetOf names the target of an offer that this box would install.
func targetOf(o update.Offer) string {
	dir := strings.TrimSuffix(o.Target, "/")
	switch o.Class {
	case trust.ClassOS:
		return path.Join(dir, "bundle.raucb")
	case trust.ClassApp:
		return path.Join(dir, "tree.tar")
	case trust.ClassConfig:
		return path.Join(dir, "settings.json")
	case trust.ClassScript:
		return path.Join(dir, "script.tar")
	}
	return binary.Path(dir, runtime.GOOS, runtime.GOARCH)
}

// offered takes an offer: the order is verified here, the release by TUF.
func (a *Agent) offered(ctx context.Context, m *membership, payload []byte) bool {
	o, err := wire.Decode[wire.Order](payload)
	if err == nil && o.Kind != wire.OrderOffer {
		err = fmt.Errorf("order of kind %q on the offer topic: %w", o.Kind, errKind)
	}
	if err == nil {
		err = m.keys.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature)
	}
	var offer wire.OfferOrder
	if err == nil {
		offer, err = wire.Decode[wire.OfferOrder](o.Payload)
	}
	if err == nil && (offer.Device != m.Device || offer.Tenant != m.Tenant) {
		err = fmt.Errorf("offer for device %s of tenant %s: %w", offer.Device, offer.Tenant, errOtherDevice)
	}
	if err != nil {
		a.log.Error("offer refused", slog.Any("err", err))
		a.record(ctx, "update.offer-refused", "alarm", "", map[string]string{"reason": reason(err)})
		return true
	}
	if err := a.noteRepair(ctx, offer.Execution); err != nil {
		a.log.Error("offer not taken", slog.Any("err", err))
		return false // it is sent again
	}
	steps := make(map[string]time.Duration, len(offer.Steps))
	for state, s := range offer.Steps {
		steps[state] = time.Duration(s) * time.Second
	}
	return a.machine.Submit(update.Offer{
		Execution: offer.Execution, Attempt: offer.Attempt, Class: offer.Class, Version: offer.Version, Target: offer.Target,
		NotAfter: time.UnixMilli(offer.NotAfter), Download: spans(offer.Download), Install: spans(offer.Install), Steps: steps,
		Peers: offer.Peers, RateKiB: offer.RateKiB, Rollout: offer.Rollout,
	})
}

func spans(in []wire.Span) (out []update.Span) {
	for _, s := range in {
		out = append(out, update.Span{From: time.UnixMilli(s.From), To: time.UnixMilli(s.To)})
	}
	return out
}

// keyRepair holds the execution that came while the box was in quarantine.
const keyRepair = "update.repair"

// trustedAsBefore wants an agent on trial attested, unless it came to a box
// that was in quarantine: there it is enough to be heard.
func (a *Agent) trustedAsBefore(ctx context.Context) error {
	if a.isOnline() {
		return nil
	}
	b, err := a.spool.Load(ctx, keyRepair)
	if err != nil {
		return err
	}
	if len(b) > 0 && a.isHeld() {
		return nil
	}
	return errors.New("not attested yet")
}

// linkAsBefore wants the box that was connected before an update to be so after
// it.
func (a *Agent) linkAsBefore(context.Context) error {
	if a.isOnline() || a.isHeld() || a.machine.Before()[healthLink] != string(hal.OK) {
		return nil
	}
	return errors.New("the fleet service is not reached")
}

// noteRepair remembers whether an offer came to a box in quarantine.
func (a *Agent) noteRepair(ctx context.Context, execution string) error {
	if a.machine.OnTrial() { // what is on trial may be the reason of the quarantine: an offer that comes now repairs nothing
		return nil
	}
	if !a.isHeld() {
		execution = ""
	}
	b, err := a.spool.Load(ctx, keyRepair)
	if err != nil || string(b) == execution {
		return err
	}
	return a.spool.Save(ctx, keyRepair, []byte(execution), "", nil)
}

func (a *Agent) isHeld() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held
}

// reportUpdate queues where an execution stands.
func (a *Agent) reportUpdate(ctx context.Context, p update.Progress) error {
	a.touch()           // what is in work, and in the end what runs
	if p.Medium != "" { // no rollout waits for it; the trail has it
		return nil
	}
	return a.books().Compose(ctx, spool.Result, string(wire.Result), func() ([]byte, error) {
		return wire.Encode(&wire.ResultReport{
			Head: a.heads.Next(), Kind: wire.OrderOffer, ID: p.Execution, State: p.State, Reason: p.Reason, Text: cut(a.o.Guard.text(p.Text), wire.MaxText),
			From: p.From, To: p.To, Done: uint64(max(p.Done, 0)), Total: uint64(max(p.Total, 0)), Attempt: p.Attempt, Step: p.Step,
			Wire: uint64(max(p.Bytes.Wire, 0)), Peer: uint64(max(p.Bytes.Peer, 0)), Medium: uint64(max(p.Bytes.Medium, 0)), Reused: uint64(max(p.Bytes.Reused, 0)),
		})
	}, nil)
}

// releases asks TUF, once the device is a member.
type releases struct{ a *Agent }

// Target implements update.Releases.
func (r releases) Target(ctx context.Context, path string) (trust.Target, error) {
	m := r.a.current()
	if m == nil {
		return trust.Target{}, errNoMember
	}
	return m.tuf.Target(ctx, path)
}

func (r releases) refresh(ctx context.Context) error {
	m := r.a.current()
	if m == nil {
		return errNoMember
	}
	return m.tuf.Refresh(ctx)
}
