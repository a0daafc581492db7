package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/trust"
)

// A release brings, for each model, what its boot measures and which states may
// open sealed secrets: the boot reference, a target of its own. The agent keeps
// the approvals for a start without a network, and raises the rollback floor
// once a release is committed.

const (
	lookAgain = 6 * time.Hour
	lookRetry = time.Minute
	// lookSpread is over how long the first look of a start is spread when it
	// can wait.
	lookSpread = 10 * time.Minute
)

func releaseOf(version string) string { return "agent/" + version }

// running lists the releases that the booted state is measured by: the agent's
// and, where the box knows it, the system image's.
func (a *Agent) running() []string {
	out := []string{releaseOf(a.o.Version)}
	for _, r := range a.machine.Truth() {
		if r.Class == trust.ClassOS {
			out = append(out, r.Name+"/"+r.Version)
		}
	}
	return out
}

// besideImage reports whether a release changes nothing that is measured: an agent
// on a box that boots a system image. It lies on the data partition, and is
// checked by what the image holds.
func (a *Agent) besideImage(release string) bool {
	return strings.HasPrefix(release, releaseOf("")) && slices.ContainsFunc(a.machine.Truth(), func(r update.Running) bool { return r.Class == trust.ClassOS })
}

// reference fetches the boot reference of a release as TUF vouches for it.
// trust.ErrNoTarget: the release has none for this model.
func (a *Agent) reference(ctx context.Context, m *membership, release string) (boot.Reference, error) {
	t, err := m.tuf.Target(ctx, boot.TargetPath(a.cfg.Model, release))
	if err != nil {
		return boot.Reference{}, err
	}
	if t.Length > boot.MaxReference {
		return boot.Reference{}, fmt.Errorf("boot reference of %s has %d bytes: %w", release, t.Length, trust.ErrMismatch)
	}
	b, err := m.fetch(ctx, m.Artifacts+"/targets/"+t.File(), t.Length)
	if err != nil {
		return boot.Reference{}, err
	}
	if sum := sha256.Sum256(b); int64(len(b)) != t.Length || hex.EncodeToString(sum[:]) != t.SHA256 {
		return boot.Reference{}, fmt.Errorf("boot reference of %s: %w", release, trust.ErrMismatch)
	}
	r, err := boot.ParseReference(b)
	if err != nil {
		return r, err
	}
	if r.Model != a.cfg.Model || r.Release != release {
		return r, fmt.Errorf("boot reference of %s for %s speaks of %s for %s: %w", release, a.cfg.Model, r.Release, r.Model, trust.ErrMismatch)
	}
	return r, nil
}

// follow keeps what the running release says of this boot in force: approvals
// on file, books locked, floor raised. ErrRestart: the books can be opened now.
func (a *Agent) follow(ctx context.Context, m *membership, dev TPM) error {
	due, failures := time.Now(), 0
	if !a.urgent() {
		due = due.Add(rand.N(lookSpread)) //nolint:gosec // spreads load, guards nothing
	}
	for {
		if time.Now().Before(due) {
			var opened <-chan struct{}
			if failures > 0 { // perhaps for want of the link
				opened = a.opened
			}
			select {
			case <-ctx.Done():
				return nil
			case <-opened:
			case <-time.After(time.Until(due)):
			}
		}
		due = time.Now().Add(lookPause(failures))
		if a.isOnline() || a.closed != nil || a.shut != nil {
			err := a.settle(ctx, m, dev)
			switch {
			case errors.Is(err, update.ErrRestart):
				return err
			case err == nil, errors.Is(err, trust.ErrNoTarget):
				due, failures = time.Now().Add(lookAgain), 0
			case ctx.Err() == nil:
				failures++
				a.log.Warn("boot reference of the running release", slog.Any("err", err))
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.opened: // what waited for the link need not wait longer
			due, failures = time.Now(), 0
		case <-time.After(time.Until(due)):
		}
	}
}

// lookPause is how long after so many failures the next look is: what a fleet
// cannot read today it must not fetch every minute.
func lookPause(failures int) time.Duration {
	return min(lookRetry<<min(failures, 16), lookAgain)
}

// urgent reports whether the reference decides something now; a fleet that
// comes back at one moment must not ask for the same file at one moment.
func (a *Agent) urgent() bool {
	return a.vault != nil && (!a.vault.Begun(vault.Books) || a.closed != nil || a.shut != nil)
}

// settle does one round of follow. A release without a reference is passed over
// as long as another has one; where none has, what is on file already counts.
func (a *Agent) settle(ctx context.Context, m *membership, dev TPM) error {
	var none, again error
	found := false
	for _, release := range a.running() {
		err := a.settleBy(ctx, m, dev, release)
		switch {
		case errors.Is(err, trust.ErrNoTarget):
			none = err
			continue
		case errors.Is(err, update.ErrRestart):
			again = err
		case err != nil:
			return err
		}
		found = true
	}
	if again == nil && !found {
		if a.vault != nil {
			again = a.lock(ctx, dev)
		}
		return cmp.Or(again, none)
	}
	return again
}

// settleBy puts in force what one release says of this boot.
func (a *Agent) settleBy(ctx context.Context, m *membership, dev TPM, release string) error {
	r, err := a.reference(ctx, m, release)
	if err != nil {
		return err
	}
	var again error // ErrRestart, once everything is done
	if a.vault != nil {
		if _, err := a.vault.Keep(r); err != nil {
			return err
		}
		if again = a.lock(ctx, dev); again != nil && !errors.Is(again, update.ErrRestart) {
			return again
		}
	}
	// Once the release is committed there is no way back, unless the box booted
	// before it came: then after the next boot.
	if r.Floor > 0 && !a.machine.OnTrial() && a.outlives(ctx, dev, r) {
		if err := dev.RaiseFloor(ctx, r.Floor); err != nil {
			return err
		}
	}
	return again
}

// outlives reports whether what is sealed would open above the floor of r.
func (a *Agent) outlives(ctx context.Context, dev TPM, r boot.Reference) bool {
	if a.vault == nil {
		return a.closed == nil && a.shut == nil // else something is sealed, for an image that knows the release key
	}
	return a.vault.Outlives(ctx, dev, r)
}

// lock seals a key of the books when there is none, and opens what stayed closed
// at the start. Either takes effect with the next start, which is now.
func (a *Agent) lock(ctx context.Context, dev TPM) error {
	if !a.vault.Begun(vault.Books) {
		err := a.vault.Make(ctx, dev, vault.Books)
		if err == nil {
			a.record(ctx, "vault.sealed", "info", "", map[string]string{"release": releaseOf(a.o.Version)})
			return update.ErrRestart
		}
		if !errors.Is(err, vault.ErrClosed) {
			return err
		}
		a.log.Warn("books stay plain: no approval fits how this box has booted", slog.Any("err", err))
	}
	if a.opensNow(ctx, dev) {
		return update.ErrRestart
	}
	return nil // still not approved; that is on record
}

// opensAsBefore fails a release on trial that does not open what the one before
// it did. What was closed before is no reason: it may have come to repair that.
func (a *Agent) opensAsBefore() error {
	as := func(k vault.Key, closed error) error {
		if closed == nil || a.vault == nil || !slices.ContainsFunc(a.running(), func(r string) bool { return !a.vault.OpenBefore(r, k) }) {
			return closed
		}
		return nil
	}
	return cmp.Or(as(vault.Books, a.closed), as(vault.Data, a.shut))
}

// sealable says why a release would leave books or data locked; no error and no
// reason: it would not. The approvals are on file afterwards, so that it opens
// both without a network.
func (a *Agent) sealable(ctx context.Context, release string) (reason string, err error) {
	if a.vault == nil || !a.vault.Any() {
		return "", nil
	}
	m := a.current()
	if m == nil {
		return "", errNoMember
	}
	var closed []vault.Key
	if a.closed != nil {
		closed = append(closed, vault.Books)
	}
	if a.shut != nil {
		closed = append(closed, vault.Data)
	}
	if err := a.vault.Baseline(release, closed...); err != nil {
		return "", err
	}
	r, err := a.reference(ctx, m, release)
	if a.nothingOpen() { // it cannot get worse
		if err == nil {
			_, err = a.vault.Keep(r)
		}
		if err != nil {
			a.log.Warn("boot reference of the offered release", slog.Any("err", err))
		}
		return "", nil
	}
	if errors.Is(err, trust.ErrNoTarget) && a.besideImage(release) {
		return "", nil
	}
	if errors.Is(err, trust.ErrNoTarget) {
		return fmt.Sprintf("release %s has no boot reference for model %s: what is sealed on this box would stay closed; "+
			"publish one with approvals (tillward-provision boot)", release, a.cfg.Model), nil
	}
	if errors.Is(err, trust.ErrMismatch) || errors.Is(err, boot.ErrReference) {
		return cut(err.Error(), wire.MaxText), nil
	}
	if err != nil {
		return "", err
	}
	ok, err := a.vault.Keep(r)
	if err != nil {
		return "", err
	}
	if !ok || !a.vault.Covers(r) {
		return fmt.Sprintf("the boot reference of release %s for model %s holds no approval by the release key of this image for what is sealed on this box: "+
			"it would stay closed; approve the release for every --ref that the one before it has", release, a.cfg.Model), nil
	}
	return "", nil
}
