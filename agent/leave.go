package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/cloud/wire"
)

// Giving up an owner. The service orders it when the next owner has accepted
// the device: first the whole trail is stored there, then the success is told,
// then everything that is the owner's goes, and the box is as the vendor shipped
// it, but for what it has seen of the voucher. Each of the three outlives a
// power cut: the trail and the success are in the books, the wipe has a journal
// of its own.

const (
	verbRelinquish = "relinquish"
	handOver       = 10 * time.Minute // for the trail, before the service has to ask again
	lookLeaving    = 200 * time.Millisecond
	wipeMin        = time.Second // between two tries to wipe
	wipeMax        = 5 * time.Minute
)

// errLeft ends a life of the agent: the owner's things go next.
var errLeft = errors.New("the box is given up by its owner")

var trail = []string{string(wire.Audit), string(wire.Result)}

// relinquish waits until the service has the trail. From there on nothing is
// recorded any more: a service that has the success may cut the device off
// before anything else gets through.
func (a *Agent) relinquish(ctx context.Context, m *membership, args map[string]string) ([]byte, error) {
	if _, err := a.ownership.Fits(args["mark"]); err != nil {
		return nil, err
	}
	if a.machine.OnTrial() {
		return nil, a.notYet()
	}
	if err := a.lockedTrail(ctx); err != nil {
		return nil, err
	}
	if err := a.note(ctx, "owner.relinquish", "alarm", m.Device, map[string]string{"mark": args["mark"], "tenant": m.Tenant}); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	tick := time.NewTicker(lookLeaving)
	defer tick.Stop()
	for {
		n, err := a.spool.Waiting(ctx, string(wire.Audit))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			a.quiet.Store(true)
			if n, err = a.spool.Waiting(ctx, string(wire.Audit)); n > 0 || err != nil { // it came a moment before
				a.quiet.Store(false)
			}
		}
		if n == 0 && err == nil {
			seq, _ := a.journal.Head()
			return fmt.Appendf(nil, "%d audit entries are stored; everything of tenant %s goes now\n", seq, m.Tenant), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%d audit entries are not stored yet, nothing was wiped: ask again", n)
		case <-tick.C:
		}
	}
}

// lockedTrail refuses while a part of the trail cannot be handed over.
func (a *Agent) lockedTrail(ctx context.Context) error {
	if a.closed == nil {
		return nil
	}
	o := a.bookOptions()
	o.Blind = true
	locked, err := spool.Open(a.file(lockedBooks), o)
	if err != nil {
		return err
	}
	defer locked.Close()
	n, err := locked.Waiting(ctx, string(wire.Audit))
	if err == nil && n > 0 {
		err = fmt.Errorf("%d audit entries lie in books that cannot be opened: repair the device first", n)
	}
	return err
}

// leave runs when the result is queued.
func (a *Agent) leave() {
	a.quiet.Store(true)
	a.leaving.Store(true)
	poke(a.parting)
}

// letGo notes that the service does not take the device any more: what it has
// is all it will have.
func (a *Agent) letGo() { a.gone.Store(true) }

// resumeLeaving goes on with what a restart interrupted.
func (a *Agent) resumeLeaving(ctx context.Context) error {
	o, err := command.Succeeded(ctx, a.spool, verbRelinquish)
	if err != nil {
		return err
	}
	if o != nil {
		a.leave()
	}
	return nil
}

// part waits until the trail and the result are stored, and begins the wipe.
func (a *Agent) part(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.parting:
	}
	a.log.Warn("the box is given up by its owner; handing over the trail")
	tick := time.NewTicker(lookLeaving)
	defer tick.Stop()
	told := ""
	for {
		done, err := a.handedOver(ctx)
		if err == nil && done {
			err = a.beginWipe(ctx)
			if err == nil {
				return errLeft
			}
		}
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			a.log.Error("hand over the trail", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// handedOver reports whether the service has what it is to have. Messages are
// stored in their order: with the result, everything before it is. A service
// that has let the device go may have the result, and no way left to say so.
func (a *Agent) handedOver(ctx context.Context) (bool, error) {
	n, err := a.spool.Waiting(ctx, trail...)
	if err != nil || n == 0 {
		return err == nil, err
	}
	if !a.gone.Load() {
		return false, nil
	}
	if n, err = a.spool.Waiting(ctx, string(wire.Result)); err != nil || n == 0 {
		return err == nil, err
	}
	first := ""
	err = a.spool.Next(ctx, 0, 1, trail, func(_ uint64, channel string, _ []byte) { first = channel })
	return first == string(wire.Result), err
}

func (a *Agent) beginWipe(ctx context.Context) error {
	o, err := command.Succeeded(ctx, a.spool, verbRelinquish)
	if err != nil {
		return err
	}
	if o == nil {
		return errors.New("the order to give up the owner is not in the journal")
	}
	entries, err := a.ownership.Fits(o.Args["mark"])
	if err != nil {
		return err
	}
	return a.left.Begin(entries)
}

// wipeAll wipes until all is gone: a folder that is in use, or a disk that is
// full, may not be so for ever.
func (a *Agent) wipeAll(ctx context.Context) error {
	a.log.Warn("wiping what is the owner's")
	keys := sync.OnceFunc(func() { a.renewKeys(ctx) }) // each time costs the TPM flash writes
	for pause := wipeMin; ; pause = min(2*pause, wipeMax) {
		err := a.wipe(keys)
		if err == nil {
			return ErrRestart
		}
		a.log.Error("not everything of the owner's could be wiped; trying again", slog.Duration("in", pause), slog.Any("err", err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// wipe removes what is the owner's. The books are closed. It does what is left
// to do when it is called again.
func (a *Agent) wipe(keys func()) error {
	if err := a.openVault(); err != nil {
		a.log.Error("wipe", slog.Any("err", err)) // then nothing was locked either
	}
	var steps []member.Step
	theirs := slices.Clone(a.cfg.TenantData)
	if d := a.cfg.Update.AppsDir; d != "" {
		theirs = append(theirs, d)
	}
	for _, dir := range theirs {
		steps = append(steps, member.Step{Name: dir, Run: func() error { return member.Empty(dir) }})
	}
	steps = append(steps,
		member.Step{Name: "keys", Run: func() error { keys(); return nil }},
		member.Step{Name: "release metadata", Run: func() error { return os.RemoveAll(a.file("tuf")) }},
		member.Step{Name: "update journal", Run: func() error {
			return cmp.Or(member.Remove(a.file("agent"), "journal.json"), update.Forget(a.file("agent"), "ops/"))
		}},
		// An image may mount another file system on these: the folders stay.
		member.Step{Name: "configuration", Run: func() error { return member.Empty(a.file("settings")) }},
		member.Step{Name: "vendors' handlers", Run: func() error { return member.Empty(a.file("scripts")) }},
		member.Step{Name: "fetched content", Run: func() error { return member.Empty(a.file("fetch")) }},
		member.Step{Name: "sealed key", Run: func() error {
			if a.vault == nil {
				return nil
			}
			return a.vault.Forget(vault.Books)
		}},
		member.Step{Name: "books", Run: func() error {
			return cmp.Or(member.Remove(a.cfg.StateDir, trailMark), member.Remove(a.cfg.StateDir, plainBooks), member.Remove(a.cfg.StateDir, lockedBooks))
		}},
	)
	if err := a.left.Wipe(steps); err != nil {
		return err
	}
	a.log.Warn("the box is nobody's now")
	return nil
}

// renewKeys makes another device key, so that the next owner's certificate does
// not show whose the box was. Without it the old certificate is revoked all the
// same, so that a TPM which fails does not hold the wipe up.
func (a *Agent) renewKeys(ctx context.Context) {
	dev, done, err := a.openTPM(ctx)
	if err != nil {
		a.log.Warn("make another device key", slog.Any("err", err))
		return
	}
	defer done()
	_, current, err := dev.Keys(ctx)
	if err == nil {
		err = dev.UseLDevID(ctx, current)
	}
	var next []byte
	if err == nil {
		next, err = dev.NextLDevID(ctx)
	}
	if err == nil {
		err = dev.KeepLDevID(ctx, next)
	}
	if err != nil {
		a.log.Warn("make another device key", slog.Any("err", err))
	}
}
