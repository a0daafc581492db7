package cloud

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/identity"
)

// TestRetired: what a retired issuer signed opens nothing, also on a connection that began before, in whatever case its
// serial number is spelt.
func TestRetired(t *testing.T) {
	s := newService(t)
	must(t, s.store.Enrol(t.Context(), fleet.Device{ID: "d1", Tenant: "main", Tier: fleet.TierB, EKHash: "d1", CertSerial: "c1", EnrolledAt: time.Now()}))
	old := s.devices.Issuing()[0]
	shown := identity.Identity{Tenant: "main", Device: "d1", Serial: "c1", Issuer: old.KeyID}
	if err := s.retire(old.Serial); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("the one that signs: got %v", err)
	}
	s.rotated = make(chan struct{}, 1)
	must(t, s.rotate(t.Context()))
	if adm, err := s.admit(t.Context(), shown); err != nil || adm != fleet.AdmitMember {
		t.Errorf("by the old issuer, which counts: got %s, %v", adm, err)
	}
	if err := s.retire("abcd"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("nobody's serial number: got %v", err)
	}
	must(t, s.retire(strings.ToUpper(old.Serial)))
	if _, err := s.admit(t.Context(), shown); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("by the old issuer, which was retired: got %v", err)
	}
	if _, err := (&directory{s}).Standing(t.Context(), shown); err == nil {
		t.Error("the old issuer's certificate is renewed")
	}
	shown.Issuer = s.issuer()
	if _, err := s.admit(t.Context(), shown); err != nil {
		t.Errorf("by the new one: got %v", err)
	}
}

// TestUnknownMember: a certificate of ours for somebody who is no member is an alarm, unless he has left.
func TestUnknownMember(t *testing.T) {
	s := newService(t)
	sold := newBox("sold")
	s.lists(t, sold)
	s.sell(t, sold)
	for device, severity := range map[string]string{"stranger": "alarm", sold.id: "warn"} {
		_, err := s.admit(t.Context(), identity.Identity{Tenant: "main", Device: device, Serial: "c1", Issuer: s.issuer()})
		if !errors.Is(err, fleet.ErrNotFound) {
			t.Fatalf("%s: got %v", device, err)
		}
		s.refused(device, err)
		all, _, err := s.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{Limit: 1})
		if err != nil || len(all) != 1 || all[0].Kind != "identity.unknown" || all[0].Subject != device || all[0].Severity != severity {
			t.Errorf("%s: got %+v, %v", device, all, err)
		}
	}
}
