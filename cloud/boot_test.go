package cloud

import (
	"errors"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/verifier"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

// TestBootUnknown: what cannot be looked up is no finding against the device, and no certificate for it.
func TestBootUnknown(t *testing.T) {
	s := newService(t)
	s.verifier = verifier.New(verifier.Options{Devices: s.store, Firmware: s.store, Link: s.broker, Every: 1, Changed: func(fleet.Device) {}, Log: s.log})
	must(t, s.store.Close())
	for _, joins := range []bool{true, false} {
		accept, finding := s.booted(t.Context(), joins, identity.Identity{Tenant: "main", Device: "d1", Model: "vend-1"}, nil, nil)
		if accept || !errors.Is(finding, enrol.ErrUnavailable) || errors.Is(finding, enrol.ErrRefused) || enrol.Check(finding) != "" {
			t.Errorf("joins %v: got %v, %v", joins, accept, finding)
		}
	}
}

// TestFits: a release that was published says the same of a boot for ever; what is published again is no news.
func TestFits(t *testing.T) {
	s := newService(t)
	old := []fleet.BootReference{{Model: "vend-1", Release: "os/1", Body: []byte("one")}, {Model: "vend-2", Release: "os/1", Body: []byte("other")}}
	must(t, s.store.PutReferences(t.Context(), old))
	next := fleet.BootReference{Model: "vend-1", Release: "os/2", Body: []byte("two")}
	got, err := s.fresh(t.Context(), append(old, next))
	if err != nil || len(got) != 1 || got[0].Release != "os/2" {
		t.Errorf("got %+v, %v", got, err)
	}
	must(t, s.fits(t.Context(), append(old, next)))
	old[1].Body = []byte("changed")
	if err := s.fits(t.Context(), append(old, next)); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("changed: got %v", err)
	}
}
