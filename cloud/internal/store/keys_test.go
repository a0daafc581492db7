package store_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

func TestAttestationKeysStayOnFile(t *testing.T) {
	s, ds := enrolled(t, 1)
	d, keys := ds[0], func() (out [][]byte) {
		all, err := s.AttestationKeys(t.Context(), ds[0].ID)
		must(t, err)
		for _, k := range all {
			if k.Since.IsZero() {
				t.Errorf("%x: since never", k.Public)
			}
			out = append(out, k.Public)
		}
		return out
	}
	must(t, s.SetRenewed(t.Context(), d.ID, fleet.Renewed{CertSerial: "c2", NotAfter: noon}, "", []byte{4}))
	must(t, s.PromoteAK(t.Context(), d.ID, []byte{4}))
	d.AKPublic = []byte{5}
	must(t, s.Enrol(t.Context(), d))
	must(t, s.Enrol(t.Context(), d))
	got := keys()
	if len(got) != 3 || !contains(got, 4) || !contains(got, 5) || !contains(got, 1) {
		t.Errorf("got %x", got)
	}
}

func contains(keys [][]byte, first byte) bool {
	for _, k := range keys {
		if bytes.HasPrefix(k, []byte{first}) {
			return true
		}
	}
	return false
}

// aks are the attestation keys on file, by their bytes.
func (d *trailOf) aks() map[string]fleet.AttestationKey {
	d.t.Helper()
	all, err := d.s.AttestationKeys(d.t.Context(), d.id)
	must(d.t, err)
	out := map[string]fleet.AttestationKey{}
	for _, k := range all {
		out[string(k.Public)] = k
	}
	return out
}

func (d *trailOf) renews(ak string) error {
	return d.s.SetRenewed(d.t.Context(), d.id, fleet.Renewed{}, "", []byte(ak))
}

// TestKeysThatSignedNothing: a device that makes keys without end does not fill the table; what has signed an
// anchor that is at hand stays on file, and goes when that is in a sealed file.
func TestKeysThatSignedNothing(t *testing.T) {
	d := newTrail(t)
	must(t, d.renews("signs"))
	must(t, d.s.PromoteAK(t.Context(), d.id, []byte("signs")))
	for n := range uint64(3) {
		d.sends("audit.anchor", 0, &fleet.AnchorSeen{Counter: n + 1, Key: d.aks()["signs"]})
		d.sends("link.up", 0, nil)
	}
	for n := range 5 * fleet.AnchorKeys {
		must(t, d.renews(fmt.Sprintf("%03d", n)))
	}
	have := d.aks()
	if k := have["signs"]; k.First != 1 || k.Last != 5 || k.Since.IsZero() {
		t.Errorf("the key in use: got %+v", k)
	}
	newest := fmt.Sprintf("%03d", 5*fleet.AnchorKeys-1)
	if _, ok := have[newest]; !ok || len(have) > fleet.AnchorKeys+3 {
		t.Errorf("got %d keys, the newest among them: %v", len(have), ok)
	}
	must(t, d.s.PromoteAK(t.Context(), d.id, []byte(newest)))
	must(t, d.putsAway(4, 4))
	must(t, d.renews("next"))
	if _, ok := d.aks()["signs"]; !ok {
		t.Error("entry 5 is at hand, and the key that signed it is not on file")
	}
	must(t, d.putsAway(6, 2))
	for n := range fleet.AnchorKeys + 1 {
		must(t, d.renews(fmt.Sprint("later", n)))
	}
	if k, ok := d.aks()["signs"]; ok {
		t.Errorf("all that it signed is in sealed files: %+v", k)
	}
	if _, ok := d.aks()[newest]; !ok {
		t.Error("the key in use is not on file")
	}
}

// TestKeysThatSigned: keys that are needed are not forgotten, so a device that has used very many gets no other, and
// goes on with the one that it has; until what they signed is in a sealed file.
func TestKeysThatSigned(t *testing.T) {
	const most = 256
	d := newTrail(t)
	all := chain(t, 1, [32]byte{}, most-1, "audit.anchor")
	in := store.Intake{Device: d.id, Tenant: "main", At: noon, Audit: all}
	for n, ev := range all {
		in.Anchors = append(in.Anchors, fleet.AnchorSeen{Seq: ev.Seq, Counter: ev.Seq, Key: fleet.AttestationKey{Public: fmt.Appendf(nil, "%03d", n), Since: noon}})
	}
	_, err := d.s.Commit(t.Context(), []store.Intake{in})
	must(t, err)
	if n := len(d.aks()); n != most { // and the one that it enrolled with
		t.Fatalf("got %d keys, want %d", n, most)
	}
	wantErr(t, "one more", d.renews("more"), fleet.ErrManyKeys)
	again := device("main", 1)
	again.AKPublic = []byte("enrols")
	wantErr(t, "enrolment with one more", d.s.Enrol(t.Context(), again), fleet.ErrManyKeys)
	if got, err := d.s.DeviceByID(t.Context(), d.id); err != nil || len(got.NextAK) != 0 || string(got.AKPublic) == "enrols" || len(d.aks()) != most {
		t.Errorf("and yet: %+v, %v", got, err)
	}
	must(t, d.renews("000")) // is on file
	must(t, d.putsAway(20, 20))
	must(t, d.renews("more"))
	if have := d.aks(); len(have) > most-10 || have["020"].First != 21 {
		t.Errorf("got %d keys, %+v", len(have), have["020"])
	}
}

// TestLateAnchor: a key is needed from the first to the last entry that it signed, in whatever order they come, and
// one that was forgotten while its anchor was on the way is on file again.
func TestLateAnchor(t *testing.T) {
	d := newTrail(t)
	all := chain(t, 1, [32]byte{}, 6, "audit.anchor")
	for _, i := range []int{3, 1, 4} {
		k := fleet.AttestationKey{Public: []byte("gone"), Since: noon}
		_, err := d.s.Commit(t.Context(), []store.Intake{{
			Device: d.id, Tenant: "main", At: noon, Audit: all[i : i+1], Anchors: []fleet.AnchorSeen{{Seq: all[i].Seq, Counter: all[i].Seq, Key: k}},
		}})
		must(t, err)
	}
	if k := d.aks()["gone"]; k.First != 2 || k.Last != 5 || !k.Since.Equal(noon) {
		t.Errorf("got %+v", k)
	}
	bad := fleet.AnchorSeen{Seq: 6, Counter: 9, Fault: "another key"}
	_, err := d.s.Commit(t.Context(), []store.Intake{{Device: d.id, Tenant: "main", At: noon, Audit: all[5:], Anchors: []fleet.AnchorSeen{bad}}})
	must(t, err)
	if have := d.aks(); len(have) != 2 {
		t.Errorf("an anchor of no key: got %+v", have)
	}
}
