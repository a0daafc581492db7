package cloud

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

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

// fits refuses reference values that say of a release something else than the
// fleet has been judged by.
func (s *Service) fits(ctx context.Context, refs []fleet.BootReference) error {
	_, err := s.fresh(ctx, refs)
	return err
}

// fresh finds those that are not known yet.
func (s *Service) fresh(ctx context.Context, refs []fleet.BootReference) (out []fleet.BootReference, err error) {
	known := map[string][]fleet.BootReference{}
	for _, r := range refs {
		if _, ok := known[r.Model]; !ok {
			if known[r.Model], err = s.store.References(ctx, r.Model); err != nil {
				return nil, err
			}
		}
		i := slices.IndexFunc(known[r.Model], func(k fleet.BootReference) bool { return k.Release == r.Release })
		switch {
		case i < 0:
			out = append(out, r)
		case !bytes.Equal(known[r.Model][i].Body, r.Body):
			return nil, fmt.Errorf("release %s was published with other boot reference values for model %s; put the new ones into another release: %w", r.Release, r.Model, fleet.ErrConflict)
		}
	}
	return out, nil
}

// learnBoots hands the reference values of the releases in place to those who
// judge by them. It does so at each start, too: a power cut may have come
// between the two.
func (s *Service) learnBoots(ctx context.Context) error {
	refs, err := s.catalog.References(ctx)
	if err != nil {
		return err
	}
	if refs, err = s.fresh(ctx, refs); err != nil {
		return err
	}
	if err := s.store.PutReferences(ctx, refs); err != nil {
		return err
	}
	models := map[string]bool{}
	for _, r := range refs {
		if !models[r.Model] {
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
	appraise := func() (boot.Result, error) { return s.verifier.AppraiseBoot(ctx, id.Model, id.Tenant, pcrs, log) }
	if !joins {
		appraise = func() (boot.Result, error) {
			return s.verifier.AppraiseMember(ctx, fleet.DeviceID(id.Device), pcrs, log)
		}
	}
	res, err := appraise()
	if err != nil {
		return false, fmt.Errorf("%w: %w", enrol.ErrUnavailable, err)
	}
	if len(res.Findings) > 0 {
		finding = enrol.Refuse(res.Findings[0].Check, "%s", res.Findings[0].Text)
	}
	return joins || res.Trust != boot.Quarantined, finding
}
