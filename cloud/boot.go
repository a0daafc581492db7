package cloud

import (
	"context"
	"errors"
	"io"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

// publish takes in a release and what it says about booting.
func (s *Service) publish(ctx context.Context, r io.Reader) ([]fleet.Release, error) {
	releases, err := s.catalog.Publish(ctx, r)
	if err != nil {
		return nil, err
	}
	return releases, s.learnBoots(ctx)
}

// learnBoots hands the reference values of the releases in place to those who
// judge by them. It does so at each start, too: a power cut may have come
// between the two.
func (s *Service) learnBoots(ctx context.Context) error {
	refs, err := s.catalog.References(ctx)
	if err != nil || len(refs) == 0 {
		return err
	}
	if err := s.store.PutReferences(ctx, refs); err != nil {
		return err
	}
	models := map[string]bool{}
	for _, r := range refs {
		if !models[r.Model] && s.verifier != nil {
			s.verifier.Reappraise(r.Model)
		}
		models[r.Model] = true
	}
	return nil
}

// booted judges the boot of who asks for a certificate. Who joins gets one
// whatever he booted - the broker keeps him in quarantine, where he can be
// helped; who renews gets one only for a boot that may be trusted now.
func (s *Service) booted(ctx context.Context, joins bool, id identity.Identity, pcrs [][]byte, log []byte) (accept bool, finding error) {
	res, err := s.verifier.AppraiseBoot(ctx, id.Model, id.Tenant, pcrs, log)
	if err != nil {
		return false, err
	}
	if res.Trust != boot.Quarantined && !joins {
		if res, err = s.current(ctx, id, res); err != nil {
			return false, err
		}
	}
	if len(res.Findings) > 0 {
		finding = enrol.Refuse(res.Findings[0].Check, "%s", res.Findings[0].Text)
	}
	return joins || res.Trust != boot.Quarantined, finding
}

// current refuses the boot of a release that the device has left behind.
func (s *Service) current(ctx context.Context, id identity.Identity, res boot.Result) (boot.Result, error) {
	d, err := s.store.DeviceByID(ctx, fleet.DeviceID(id.Device))
	if err != nil {
		return res, err
	}
	if d.BootRelease == "" || res.Release == "" || res.Release == d.BootRelease {
		return res, nil
	}
	offered, err := s.store.OfferedRelease(ctx, d.ID)
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return res, err
	}
	if err == nil && string(offered) == res.Release {
		return res, nil
	}
	return boot.Result{Trust: boot.Quarantined, Release: res.Release, Findings: []boot.Finding{{
		Check: "boot.old-release", Release: res.Release, Text: "the device booted " + res.Release + " after it had committed to " + d.BootRelease + "; bring it forward with a rollout",
	}}}, nil
}
