package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	freshEvery = time.Hour      // between two looks at the age of the release metadata
	freshAfter = 24 * time.Hour // metadata that is older is asked for: the service signs once a day
)

// freshness keeps the release metadata young on a box that nobody offers
// anything, and raises an alarm when it grows old all the same: who keeps a
// device from what is new is seen by that, before updates stop.
type freshness struct {
	releases interface {
		Freshness() (signed, expires time.Time)
		Refresh(ctx context.Context) error
	}
	now    func() time.Time
	record func(ctx context.Context, kind, severity, subject string, detail map[string]string)
	log    *slog.Logger
}

// watch runs until ctx ends. The first look comes after a while that differs
// from box to box: a fleet that comes back at once must not ask at once.
func (f freshness) watch(ctx context.Context) error {
	wait := time.NewTimer(rand.N(freshEvery)) // #nosec G404 -- spreads load, keeps no secret
	defer wait.Stop()
	var told [2]time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		wait.Reset(freshEvery)
		signed, expires := f.releases.Freshness()
		if f.now().Sub(signed) > freshAfter {
			if err := f.releases.Refresh(ctx); err != nil {
				f.log.Debug("release metadata", slog.Any("err", err))
			}
			signed, expires = f.releases.Freshness()
		}
		stage := aged(f.now(), signed, expires)
		if stage == 0 || told[stage-1].Equal(signed) {
			continue
		}
		told[stage-1] = signed
		kind := [...]string{"update.metadata-old", "update.metadata-expired"}[stage-1]
		f.record(ctx, kind, "alarm", "", map[string]string{"signed": signed.UTC().Format(time.RFC3339), "expires": expires.UTC().Format(time.RFC3339)})
	}
}

// aged is 1 from half of the life of metadata on, 2 once it has expired.
func aged(now, signed, expires time.Time) int {
	switch {
	case signed.IsZero() || expires.IsZero():
		return 0
	case !now.Before(expires):
		return 2
	case !now.Before(signed.Add(expires.Sub(signed) / 2)):
		return 1
	}
	return 0
}
