package cloud

import (
	"context"
	"log/slog"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	expiringEvery = 10 * time.Minute
	expiringShare = 10 // of a certificate's life; with less than this part left it should have been renewed
)

// watchCertificates raises an alarm for each certificate that is about to end
// and was not renewed, once. A device that is not there to renew its own comes
// back with its recovery certificate, or enrols again.
func (s *Service) watchCertificates(ctx context.Context) error {
	life := time.Duration(s.cfg.Enrol.CertDays) * 24 * time.Hour / expiringShare
	tick := time.NewTicker(expiringEvery)
	defer tick.Stop()
	var told map[string]time.Time // by serial number: when the certificate ends
	for {
		var err error
		if told == nil {
			told, err = s.toldExpiring(ctx, time.Now().Add(-life))
		}
		if err == nil {
			err = s.expiring(ctx, time.Now(), life, told)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("look for certificates that end", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// toldExpiring reads from the trail which alarms a service before this one has
// raised since then.
func (s *Service) toldExpiring(ctx context.Context, since time.Time) (map[string]time.Time, error) {
	told := map[string]time.Time{}
	for p := (fleet.Page{Limit: 1000}); ; {
		all, next, err := s.store.AuditTrailOf(ctx, s.tenant, "", "alarm", true, p)
		if err != nil {
			return nil, err
		}
		for _, ev := range all {
			if ev.At.Before(since) {
				return told, nil
			}
			if end, err := time.Parse(time.RFC3339, ev.Detail["not_after"]); err == nil && ev.Kind == "identity.expiring" {
				told[ev.Detail["certificate"]] = end
			}
		}
		if p.After = next; next == "" {
			return told, nil
		}
	}
}

// expiring alarms for what ends within left of now and was not told of.
func (s *Service) expiring(ctx context.Context, now time.Time, left time.Duration, told map[string]time.Time) error {
	for serial, end := range told {
		if end.Before(now.Add(-left)) {
			delete(told, serial) // long over
		}
	}
	ending, err := s.store.Expiring(ctx, now.Add(left))
	if err != nil {
		return err
	}
	for _, d := range ending {
		if _, before := told[d.CertSerial]; before || d.CertNotAfter.Before(now.Add(-left)) {
			continue
		}
		told[d.CertSerial] = d.CertNotAfter
		s.audit(ctx, "identity.expiring", "alarm", string(d.ID), map[string]string{
			"certificate": d.CertSerial, "not_after": d.CertNotAfter.UTC().Format(time.RFC3339), "check": "identity.expiring",
		})
	}
	return nil
}
