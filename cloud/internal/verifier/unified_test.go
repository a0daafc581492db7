package verifier_test

import (
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// unified is a till that boots the image of a release, and the reference of
// that; without is the same without PCR 11.
func unified(t *testing.T, release string) (fw tpmfarm.Firmware, with, without func(*boot.Reference)) {
	t.Helper()
	image, err := tpmfarm.Image(release)
	if err != nil {
		t.Fatal(err)
	}
	if fw, err = tpmfarm.Unified(image); err != nil {
		t.Fatal(err)
	}
	r, err := fw.Reference(model, release)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(r.Policy, 11) {
		t.Fatalf("policy %v lacks PCR 11", r.Policy)
	}
	events, err := boot.ParseLog(fw.Log(), fw.Registers())
	if err != nil {
		t.Fatal(err)
	}
	weaker := boot.Observe(model, release, "uefi", []int{0, 2, 4, 7, 9}, events)
	return fw, func(o *boot.Reference) { *o = r }, func(o *boot.Reference) { *o = weaker }
}

// TestUnified: a box that boots a unified kernel image is judged by PCR 11 too.
func TestUnified(t *testing.T) {
	fw, with, _ := unified(t, "os/1")
	x := newSite(t)
	x.publish("os/1", fw, with)
	own := newChip(t, "dev-1", "os/1")
	own.fw = fw
	x.enrol(own)
	x.wantVerdict("honest", x.show("dev-1", own.full(here, 1)), fleet.Attested, "")
	x.wantVerdict("quote alone", x.show("dev-1", own.steady(here, 2)), fleet.Attested, "")
	other, err := tpmfarm.Image("os/1 with a back door")
	if err != nil {
		t.Fatal(err)
	}
	if own.fw, err = tpmfarm.Unified(other); err != nil {
		t.Fatal(err)
	}
	got := x.show("dev-1", own.full(here, 3))
	x.wantVerdict("another image", got, fleet.Quarantined, "boot.unknown-event")
	var pcrs []string
	for _, f := range got.Findings {
		pcrs = append(pcrs, f.PCR)
	}
	for _, want := range []string{"4", "9", "11"} {
		if !slices.Contains(pcrs, want) {
			t.Errorf("findings name PCR %q, want %s among them", pcrs, want)
		}
	}
}

// TestOlderAgentGoesOn: an agent that quotes PCR 0 to 9 is judged as ever by a
// release that does not name 11, and one that was updated in the middle of a
// boot is taken as the same device.
func TestOlderAgentGoesOn(t *testing.T) {
	fw, _, without := unified(t, "os/1")
	x := newSite(t)
	x.publish("os/1", fw, without)
	own := newChip(t, "dev-1", "os/1")
	own.fw, own.before11 = fw, true
	x.enrol(own)
	x.wantVerdict("older agent", x.show("dev-1", own.full(here, 1)), fleet.Attested, "")
	x.wantVerdict("its quote alone", x.show("dev-1", own.steady(here, 2)), fleet.Attested, "")
	own.before11 = false
	if got := x.show("dev-1", own.steady(here, 3)); got.Need != wire.NeedLog {
		t.Fatalf("newer agent in the same boot: got %+v, want to be asked for the log", got)
	}
	x.wantVerdict("newer agent", x.answer(own, 4, true), fleet.Attested, "")
	x.wantVerdict("its quote alone", x.show("dev-1", own.steady(here, 5)), fleet.Attested, "")
}

// TestDowngradedQuote: once a release names PCR 11, quoting 0 to 9 does not get
// around it, whatever the device showed before: with its twin, the same device
// under a release that does not name it.
func TestDowngradedQuote(t *testing.T) {
	for name, tt := range map[string]struct {
		first bool // the device quoted PCR 11 before
		names bool // the release names it
		want  fleet.Trust
		check string
	}{
		"quoted before":                {true, true, fleet.Quarantined, "boot.not-covered"},
		"never quoted":                 {false, true, fleet.Quarantined, "boot.not-covered"},
		"twin: release without PCR 11": {true, false, fleet.Attested, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fw, with, without := unified(t, "os/1")
			x := newSite(t)
			if tt.names {
				x.publish("os/1", fw, with)
			} else {
				x.publish("os/1", fw, without)
			}
			own := newChip(t, "dev-1", "os/1")
			own.fw = fw
			x.enrol(own)
			if tt.first {
				x.wantVerdict("at first", x.show("dev-1", own.full(here, 1)), fleet.Attested, "")
			}
			own.before11 = true
			if got := x.show("dev-1", own.steady(here, 2)); got.Need != wire.NeedLog {
				t.Errorf("quote of fewer registers: got %+v, want to be asked for the log", got)
			}
			got := x.answer(own, 3, true)
			x.wantVerdict("with values and log", got, tt.want, tt.check)
			if tt.check != "" && got.Findings[0].PCR != "11" {
				t.Errorf("got %+v, want PCR 11 named", got.Findings[0])
			}
			if tt.check != "" && len(x.device("dev-1").BootDigest) != 0 {
				t.Error("the boot is on file as accepted")
			}
		})
	}
}

// TestImageRegisterOutsideTheLog: what systems measure into PCR 11 after the
// firmware closed its log counts against a device only where a release names it.
func TestImageRegisterOutsideTheLog(t *testing.T) {
	fw, with, without := unified(t, "os/1")
	late := tpmfarm.Firmware{Events: append(slices.Clone(fw.Events), tpmfarm.Measured{Name: "phase", PCR: 11, Data: []byte("sysinit"), Hidden: true})}
	for name, tt := range map[string]struct {
		publish func(*boot.Reference)
		want    fleet.Trust
		check   string
	}{
		"named": {with, fleet.Quarantined, "boot.log-replay"}, "not named": {without, fleet.Attested, ""},
	} {
		x := newSite(t)
		x.publish("os/1", fw, tt.publish)
		own := newChip(t, "dev-1", "os/1")
		own.fw = late
		x.enrol(own)
		x.wantVerdict(name, x.show("dev-1", own.full(here, 1)), tt.want, tt.check)
	}
}
