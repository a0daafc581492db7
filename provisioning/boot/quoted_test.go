package boot_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

func unified(t testing.TB, release string) tpmfarm.Firmware {
	t.Helper()
	image, err := tpmfarm.Image(release)
	if err != nil {
		t.Fatal(err)
	}
	f, err := tpmfarm.Unified(image)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// PCR 11 is the eleventh value, and counts where a policy names it and nowhere
// else.
func TestImageRegister(t *testing.T) {
	f := unified(t, running)
	with, err := f.Reference(model, running)
	if err != nil {
		t.Fatal(err)
	}
	events, err := boot.ParseLog(f.Log(), f.Registers())
	if err != nil {
		t.Fatal(err)
	}
	without := boot.Observe(model, running, "uefi", []int{0, 2, 4, 7, 9}, events)
	late := tpmfarm.Firmware{Events: append(slices.Clone(f.Events), tpmfarm.Measured{PCR: 11, Data: []byte("later"), Hidden: true})}
	imaWrites := tpmfarm.Firmware{Events: append(slices.Clone(f.Events), tpmfarm.Measured{PCR: 10, Data: []byte("file"), Hidden: true})}
	other := unified(t, offered)
	for _, c := range []struct {
		name string
		r    boot.Reference
		pcrs [][]byte
		log  []byte
		want string // checks, or nothing
	}{
		{"whole", with, f.Registers(), f.Log(), ""},
		{"ten values, named", with, f.Registers()[:10], f.Log(), "boot.not-covered 11"},
		{"ten values, not named", without, f.Registers()[:10], f.Log(), ""},
		{"not named", without, f.Registers(), f.Log(), ""},
		{"extended later, named", with, late.Registers(), late.Log(), "boot.log-replay 11"},
		{"extended later, not named", without, late.Registers(), late.Log(), ""},
		{"PCR 10 is nobody's", with, imaWrites.Registers(), imaWrites.Log(), ""},
		{"events of it left out of the log", with, f.Registers(), f.Without("section .cmdline").Log(), "boot.log-replay 11"},
		{"another image, not named", without, other.Registers(), other.Log(), "boot.unknown-event 4, boot.unknown-event 4, boot.unknown-event 9, boot.unknown-event 9"},
		{"another register beside", with, late.Without("kernel").Registers(), late.Log(), "boot.log-replay 4"},
		{
			"a GRUB box under a policy of an image", with, tpmfarm.Default(running).Registers(), tpmfarm.Default(running).Log(),
			"boot.unknown-event 4, boot.missing-event 4, boot.unknown-event 9, boot.unknown-event 9, boot.not-covered 11",
		},
	} {
		got := boot.Appraise([]boot.Reference{c.r}, nil, c.pcrs, c.log)
		if checks(got) != c.want || (got.Trust == boot.Attested) != (c.want == "") {
			t.Errorf("%s: got %s by %q, want %q", c.name, got.Trust, checks(got), c.want)
		}
	}
	if _, err := boot.ParseLog(f.Log(), append(f.Registers(), make([]byte, 32))); !errors.Is(err, boot.ErrLog) {
		t.Errorf("twelve values: got %v", err)
	}
	if _, err := boot.ParseLog(late.Log(), late.Registers()); !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), "PCR 11") {
		t.Errorf("PCR 11 outside the log: got %v", err)
	}
	if values, err := boot.Replay(f.Log()); err != nil || !slices.EqualFunc(values, f.Registers(), slices.Equal) {
		t.Errorf("replay: got %x and %v", values, err)
	}
	for _, policy := range [][]int{{0, 10}, {11, 12}, {11, 9}, {23}} {
		r := with
		r.Policy = policy
		if _, err := boot.ParseReference(r.Bytes()); !errors.Is(err, boot.ErrReference) || !strings.Contains(err.Error(), "0 to 9 and 11") {
			t.Errorf("policy %v: got %v", policy, err)
		}
	}
}
