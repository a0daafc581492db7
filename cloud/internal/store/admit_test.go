package store_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// admits checks what a certificate opens; want is a fleet.Admission or an error.
func admits(t testing.TB, s *store.Store, d fleet.Device, serial string, want any) {
	t.Helper()
	got, err := s.Admit(t.Context(), d.ID, d.Tenant, serial)
	if werr, ok := want.(error); ok {
		if !errors.Is(err, werr) || got != "" {
			t.Errorf("certificate %q: got %q, %v, want error %v", serial, got, err, werr)
		}
	} else if err != nil || got != want {
		t.Errorf("certificate %q: got %q, %v, want %q", serial, got, err, want)
	}
}

func TestAdmit(t *testing.T) {
	s, _ := enrolled(t, 1)
	ctx, d := t.Context(), device("main", 1)
	d.CertSerial, d.Recovery = "01", "0a"
	must(t, s.Enrol(ctx, d))

	admits(t, s, d, "01", fleet.AdmitMember)
	admits(t, s, d, "0a", fleet.AdmitQuarantine)
	admits(t, s, d, "00", fleet.ErrReplaced)
	admits(t, s, d, "", fleet.ErrReplaced)
	admits(t, s, fleet.Device{ID: d.ID, Tenant: "other"}, "01", fleet.ErrNotFound)
	admits(t, s, fleet.Device{ID: "nobody", Tenant: "main"}, "01", fleet.ErrNotFound)

	// A newer certificate does not lock out before it is shown, and locks out as soon as it is.
	ends := noon.AddDate(0, 2, 0)
	must(t, s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "02", NotAfter: ends}, "0b", nil))
	admits(t, s, d, "01", fleet.AdmitMember)
	admits(t, s, d, "0a", fleet.AdmitQuarantine)
	if got := byID(t, s, d.ID); got.Next.CertSerial != "02" || !got.Next.NotAfter.Equal(ends) || got.CertSerial != "01" || got.Recovery != "0a" {
		t.Errorf("renewed: got next %+v beside %s and %s", got.Next, got.CertSerial, got.Recovery)
	}
	for range 2 {
		admits(t, s, d, "02", fleet.AdmitMember)
	}
	admits(t, s, d, "01", fleet.ErrReplaced)
	admits(t, s, d, "0a", fleet.ErrReplaced)
	admits(t, s, d, "0b", fleet.AdmitQuarantine)
	if got := byID(t, s, d.ID); got.CertSerial != "02" || !got.CertNotAfter.Equal(ends) || got.Next != (fleet.Renewed{}) || got.Recovery != "0b" {
		t.Errorf("shown: got %+v", got)
	}

	// The certificate for recovery, shown first, leaves the other where it was.
	must(t, s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "03", NotAfter: ends}, "0c", nil))
	admits(t, s, d, "0c", fleet.AdmitQuarantine)
	admits(t, s, d, "0b", fleet.ErrReplaced)
	admits(t, s, d, "02", fleet.AdmitMember)
	admits(t, s, d, "03", fleet.AdmitMember)
	admits(t, s, d, "02", fleet.ErrReplaced)
	admits(t, s, d, "0c", fleet.AdmitQuarantine)

	// An answer that was lost: what is issued again takes its place.
	must(t, s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "04", NotAfter: ends}, "", nil))
	must(t, s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "05", NotAfter: ends}, "", nil))
	admits(t, s, d, "04", fleet.ErrReplaced)
	admits(t, s, d, "05", fleet.AdmitMember)
	admits(t, s, d, "0c", fleet.AdmitQuarantine)

	// Enrolling anew ends all of it.
	must(t, s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "06", NotAfter: ends}, "0d", []byte("ak2")))
	d.CertSerial, d.Recovery = "07", "0e"
	must(t, s.Enrol(ctx, d))
	for _, serial := range []string{"05", "06", "0c", "0d"} {
		admits(t, s, d, serial, fleet.ErrReplaced)
	}
	admits(t, s, d, "07", fleet.AdmitMember)
	admits(t, s, d, "0e", fleet.AdmitQuarantine)
	if got := byID(t, s, d.ID); got.NextAK != nil {
		t.Errorf("enrolled anew: got attestation key %q to follow, want none", got.NextAK)
	}
	wantErr(t, "renewal of nobody", s.SetRenewed(ctx, "nobody", fleet.Renewed{CertSerial: "08"}, "", nil), fleet.ErrNotFound)
}

// TestAdmitReleasing lets a device that is being given up hand over what it holds, and nothing else.
func TestAdmitReleasing(t *testing.T) {
	s, ds := enrolled(t, 1)
	for state, want := range map[fleet.OwnershipState]fleet.Admission{
		fleet.Owned: fleet.AdmitMember, fleet.Offered: fleet.AdmitMember, fleet.Releasing: fleet.AdmitQuarantine, fleet.Released: fleet.AdmitQuarantine,
	} {
		must(t, s.PutOwnership(t.Context(), fleet.Ownership{Device: ds[0].ID, Voucher: []byte("v"), Entries: 1, State: state}, event("ownership.set")))
		admits(t, s, ds[0], ds[0].CertSerial, want)
	}
}

func TestRevoke(t *testing.T) {
	s, ds := enrolled(t, 1)
	ctx, d := t.Context(), ds[0]
	must(t, s.Appraised(ctx, good(d.ID, "agent/1.0.0", "boot", noon), false))
	must(t, s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "02"}, "0b", nil))
	wantErr(t, "readmit before", s.Readmit(ctx, "main", d.ID, event("device.readmit")), fleet.ErrConflict)
	must(t, s.Revoke(ctx, "main", d.ID, "stolen", event("device.revoke")))
	wantErr(t, "revoke twice", s.Revoke(ctx, "main", d.ID, "stolen", event("device.revoke")), fleet.ErrConflict)

	got := byID(t, s, d.ID)
	if got.RevokedAt.IsZero() || got.RevokedWhy != "stolen" || got.Trust != fleet.Quarantined || len(got.BootDigest) != 0 ||
		len(got.Findings) != 1 || got.Findings[0].Check != "identity.revoked" || len(got.TrustReasons) != 1 {
		t.Errorf("revoked: got %+v", got)
	}
	for _, serial := range []string{d.CertSerial, "02", "0b", "99"} {
		admits(t, s, d, serial, fleet.ErrRevoked)
	}
	wantErr(t, "enrol", s.Enrol(ctx, device("main", 1)), fleet.ErrRevoked)
	wantErr(t, "renew", s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "03"}, "", nil), fleet.ErrRevoked)
	wantErr(t, "appraise", s.Appraised(ctx, good(d.ID, "agent/1.0.0", "boot", noon), true), fleet.ErrRevoked)
	if got := byID(t, s, d.ID); got.Trust != fleet.Quarantined || got.CertSerial != d.CertSerial {
		t.Errorf("after refusals: got %s with certificate %s", got.Trust, got.CertSerial)
	}

	must(t, s.Readmit(ctx, "main", d.ID, event("device.readmit")))
	if got := byID(t, s, d.ID); !got.RevokedAt.IsZero() || got.RevokedWhy != "" || got.Trust != fleet.Pending || len(got.Findings) != 0 || len(got.TrustReasons) != 0 {
		t.Errorf("readmitted: got %+v", got)
	}
	admits(t, s, d, d.CertSerial, fleet.AdmitMember)
	must(t, s.Enrol(ctx, device("main", 1)))
}

func TestPromoteAK(t *testing.T) {
	s, ds := enrolled(t, 1)
	ctx, id := t.Context(), ds[0].ID
	old := byID(t, s, id).AKPublic
	must(t, s.SetRenewed(ctx, id, fleet.Renewed{}, "", []byte("new")))
	if d := byID(t, s, id); !slices.Equal(d.AKPublic, old) || string(d.NextAK) != "new" || d.Next != (fleet.Renewed{}) || d.CertSerial != ds[0].CertSerial {
		t.Errorf("to follow: got %q after %q, and %+v", d.NextAK, d.AKPublic, d.Next)
	}
	must(t, s.SetRenewed(ctx, id, fleet.Renewed{CertSerial: "02"}, "", nil))
	if d := byID(t, s, id); string(d.NextAK) != "new" {
		t.Errorf("after a renewal without a key: got %q, want it unchanged", d.NextAK)
	}
	wantErr(t, "a key nobody announced", s.PromoteAK(ctx, id, []byte("mine")), fleet.ErrConflict)
	wantErr(t, "no key", s.PromoteAK(ctx, id, nil), fleet.ErrConflict)
	must(t, s.PromoteAK(ctx, id, old)) // evidence by the key in use
	if d := byID(t, s, id); !slices.Equal(d.AKPublic, old) || string(d.NextAK) != "new" {
		t.Errorf("after evidence by the old key: got %q and %q", d.AKPublic, d.NextAK)
	}
	for range 2 {
		must(t, s.PromoteAK(ctx, id, []byte("new")))
	}
	if d := byID(t, s, id); string(d.AKPublic) != "new" || d.NextAK != nil {
		t.Errorf("after evidence by the new key: got %q and %q", d.AKPublic, d.NextAK)
	}
	wantErr(t, "the key that was dropped", s.PromoteAK(ctx, id, old), fleet.ErrConflict)
	wantErr(t, "nobody", s.PromoteAK(ctx, "nobody", old), fleet.ErrNotFound)
}

func TestExpiring(t *testing.T) {
	s := open(t, postgres.Place(t))
	ctx, soon := t.Context(), noon.AddDate(0, 0, 3)
	for n, ends := range []time.Time{soon, noon.AddDate(0, 0, 1), noon.AddDate(0, 1, 0), soon, soon, {}} {
		d := device("main", n+1)
		d.CertNotAfter = ends
		must(t, s.Enrol(ctx, d))
	}
	must(t, s.SetRenewed(ctx, "main-d04", fleet.Renewed{CertSerial: "02", NotAfter: noon.AddDate(0, 1, 0)}, "", nil))
	must(t, s.Revoke(ctx, "main", "main-d05", "stolen", event("device.revoke")))
	l, err := s.Expiring(ctx, noon.AddDate(0, 0, 7))
	must(t, err)
	var ids []fleet.DeviceID
	for _, d := range l {
		ids = append(ids, d.ID)
	}
	if !slices.Equal(ids, []fleet.DeviceID{"main-d02", "main-d01"}) {
		t.Errorf("got %v, want d02 and d01: not what lasts, is renewed, revoked or has no end", ids)
	}
}

func TestWaive(t *testing.T) {
	s, ds := enrolled(t, 1)
	v := fleet.Waiver{Until: noon.Add(time.Hour), By: "anna", Reason: "inventory week"}
	must(t, s.Waive(t.Context(), "main", ds[0].ID, v, event("device.waive")))
	got := byID(t, s, ds[0].ID).Waiver
	if got != v || !got.Covers(noon) || got.Covers(v.Until) {
		t.Errorf("got %+v, want %+v, up to and without its end", got, v)
	}
	must(t, s.Waive(t.Context(), "main", ds[0].ID, fleet.Waiver{}, event("device.waive")))
	if got := byID(t, s, ds[0].ID).Waiver; got != (fleet.Waiver{}) || got.Covers(noon) {
		t.Errorf("taken back: got %+v", got)
	}
}

// TestEnrolRefuses is about boxes that come back as something else.
func TestEnrolRefuses(t *testing.T) {
	s, _ := enrolled(t, 1)
	d := device("main", 1)
	d.Serial = "S99"
	err := s.Enrol(t.Context(), d)
	wantErr(t, "another box", err, fleet.ErrOtherSerial)
	wantErr(t, "another box", err, fleet.ErrConflict)
	d.Serial = ""
	must(t, s.Enrol(t.Context(), d))
	if got := byID(t, s, d.ID); got.Serial != "S01" {
		t.Errorf("box that does not know its serial number: got %q, want the one on file", got.Serial)
	}

	// Before and after: what was said of the boot is for the TPM that was enrolled then.
	must(t, s.Appraised(t.Context(), good(d.ID, "agent/1.0.0", "boot", noon), false))
	must(t, s.Appraised(t.Context(), fleet.Attestation{Device: d.ID, At: noon, Trust: fleet.Degraded, ResetCount: 9, Digest: []byte("boot"), Findings: []fleet.Finding{unknown}}, false))
	must(t, s.Enrol(t.Context(), device("main", 1)))
	got := byID(t, s, d.ID)
	if got.Trust != fleet.Pending || len(got.Findings) != 0 || len(got.BootDigest) != 0 || got.ResetCount != 7 {
		t.Errorf("enrolled anew: got %+v, want nothing accepted and the reset count of the enrolment", got)
	}
	if got.BootRelease != "agent/1.0.0" {
		t.Errorf("enrolled anew: got release %q, want agent/1.0.0: enrolling is no way back to an older one", got.BootRelease)
	}
}
