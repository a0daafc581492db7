package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/tillward/tillward/provisioning/enrol"
)

// ErrEnded is returned by Run when the certificate has ended and could not be
// renewed: the device has to enrol.
var ErrEnded = errors.New("the certificate has ended")

const (
	retryMin = time.Minute
	retryMax = 6 * time.Hour
	hurry    = time.Second // the least between two renewals
	// clockLook is how long a sleep may take the clock at its word. A till that
	// starts in 1970 for want of a battery gets the time later, and a sleep until
	// 2026 would outlast the certificate.
	clockLook = time.Hour
)

// Renewer changes the keys of an identity; enrol.Client does. What it returns
// beside an error counts: a part may have been renewed.
type Renewer interface {
	Renew(ctx context.Context, have enrol.Result) (enrol.Result, error)
	RotateAK(ctx context.Context, have enrol.Result) (enrol.Result, error)
}

// Keeper renews the certificate when a third of its life is over, and changes
// the attestation key when that is old.
type Keeper struct {
	Renewer Renewer
	Rotate  time.Duration // age of an AK; 0: never
	// Changed is called with each new identity, which is saved by then: the next
	// connection shows its certificate.
	Changed func(id Identity)
	Record  func(ctx context.Context, kind, severity, subject string, detail map[string]string)
	Wall    func() time.Time // the box's clock; nil: the system's
	Log     *slog.Logger

	id  Identity
	now chan struct{}
}

// Keep returns k with an identity; Run does the work.
func (k *Keeper) Keep(id Identity) *Keeper {
	if k.Wall == nil {
		k.Wall = time.Now
	}
	k.id, k.now = id, make(chan struct{}, 1)
	return k
}

// Renew asks for another certificate now, e.g. because the authority changes.
func (k *Keeper) Renew() {
	select {
	case k.now <- struct{}{}:
	default:
	}
}

// due is when the certificate is to be renewed: after a third of its life, or
// up to a thirtieth later, so that a fleet which enrolled in one night does not
// come in one night.
func (id Identity) due() time.Time {
	from := id.leaf.NotBefore // as an older agent kept it
	if id.Since.After(from) {
		from = id.Since
	}
	life := id.leaf.NotAfter.Sub(from)
	return from.Add(life/3 + rand.N(max(life/30, 1))) //nolint:gosec // spreads load, guards nothing
}

// task is one of the two things that are done from time to time.
type task struct {
	at       time.Time
	failures int
	told     string // the refusal on record
}

// failed plans the next try.
func (t *task) failed(now time.Time) {
	pause := retryMax
	if t.failures < 16 {
		pause = min(retryMax, retryMin<<t.failures)
	}
	t.failures++
	t.at = now.Add(pause/2 + rand.N(pause/2)) //nolint:gosec // spreads load, guards nothing
}

// Run renews until ctx ends, and returns nil then. ErrEnded, or enrol.ErrKeys:
// the device has to enrol.
func (k *Keeper) Run(ctx context.Context) error {
	renew, rotate := task{at: k.id.due()}, task{at: k.rotateAt()}
	for {
		next := renew.at
		if !rotate.at.IsZero() && rotate.at.Before(next) {
			next = rotate.at
		}
		if k.id.leaf.NotAfter.Before(next) {
			next = k.id.leaf.NotAfter
		}
		timer := time.NewTimer(k.sleep(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-k.now:
			timer.Stop()
			renew = task{at: k.Wall()}
		case <-timer.C:
		}
		now := k.Wall()
		var err error
		switch {
		case !renew.at.After(now):
			err = k.do(ctx, &renew, "identity.renewed", k.Renewer.Renew)
			if err == nil && renew.failures == 0 {
				// A clock that runs ahead makes every certificate an old one.
				if renew.at = k.id.due(); renew.at.Before(now.Add(hurry)) {
					renew.at = now.Add(hurry)
				}
			}
		case !rotate.at.IsZero() && !rotate.at.After(now):
			err = k.do(ctx, &rotate, "identity.rotated", k.Renewer.RotateAK)
			if err == nil && rotate.failures == 0 {
				rotate.at = k.rotateAt()
			}
		case k.id.Ended(now):
			err = ErrEnded
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sleep is for how long, before next is looked at again.
func (k *Keeper) sleep(next time.Time) time.Duration { return min(next.Sub(k.Wall()), clockLook) }

func (k *Keeper) rotateAt() time.Time {
	if k.Rotate <= 0 || k.id.AKSince.IsZero() {
		return time.Time{}
	}
	return k.id.AKSince.Add(k.Rotate)
}

// do carries out a task. Its error ends Run; what can be tried again is planned.
func (k *Keeper) do(ctx context.Context, t *task, kind string, act func(context.Context, enrol.Result) (enrol.Result, error)) error {
	was := k.id
	res, err := act(ctx, was.Result)
	id, bad := Of(k.next(res))
	if bad == nil && changed(was.Result, res) {
		k.id = id
		k.Changed(id)
	}
	switch {
	case err == nil && bad == nil:
		k.Record(ctx, kind, "info", id.Device, map[string]string{
			"certificate": id.leaf.SerialNumber.Text(16), "until": id.leaf.NotAfter.UTC().Format(time.RFC3339),
		})
		*t = task{at: t.at}
		return nil
	case err == nil:
		err = fmt.Errorf("the service's answer: %w", bad)
	case errors.Is(err, enrol.ErrKeys):
		return err
	case ctx.Err() != nil:
		return nil
	}
	t.failed(k.Wall())
	k.Log.Warn("identity could not be renewed; trying again", slog.String("what", kind), slog.Time("at", t.at), slog.Any("err", err))
	if errors.Is(err, enrol.ErrRefused) && err.Error() != t.told {
		t.told = err.Error()
		k.Record(ctx, "identity.refused", "warn", was.Device, map[string]string{"what": kind, "check": enrol.Check(err), "reason": "refused-by-service"})
	}
	return nil
}

// next is the identity with what was renewed.
func (k *Keeper) next(res enrol.Result) Identity { return k.id.With(res) }

// With returns the identity with a new result; the ages of certificate and AK
// follow it.
func (id Identity) With(res enrol.Result) Identity {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if string(res.AK) != string(id.AK) || id.AKSince.IsZero() {
		id.AKSince = now
	}
	if first(res.Chain) != first(id.Chain) {
		id.Since = now
	}
	id.Result = res
	return id
}

func changed(was, is enrol.Result) bool {
	return first(was.Chain) != first(is.Chain) || first(was.Recovery) != first(is.Recovery) || string(was.AK) != string(is.AK)
}

func first(chain [][]byte) string {
	if len(chain) == 0 {
		return ""
	}
	return string(chain[0])
}
