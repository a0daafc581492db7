package boot_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// realBoots are two logs of OVMF 2022.11 with systemd-stub 257.13 and Linux
// 6.12.118, of images that differ in os-release, command line and initrd, and
// what provisioning/uki said of these images.
func realBoots(t testing.TB) (one, two []byte, swaps []boot.Swap) {
	t.Helper()
	file := func(name string) []byte {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var list []struct {
		PCR      int
		What     string
		Always   bool
		One, Two []string
	}
	if err := json.Unmarshal(file("ovmf-images.json"), &list); err != nil {
		t.Fatal(err)
	}
	digests := func(texts []string) (out [][32]byte) {
		for _, s := range texts {
			b, err := hex.DecodeString(s)
			if err != nil || len(b) != 32 {
				t.Fatalf("%q: %v", s, err)
			}
			out = append(out, [32]byte(b))
		}
		return out
	}
	for _, m := range list {
		swaps = append(swaps, boot.Swap{PCR: m.PCR, What: m.What, Always: m.Always, Was: digests(m.One), Is: digests(m.Two)})
	}
	return file("ovmf-one.log"), file("ovmf-two.log"), swaps
}

func replay(t testing.TB, log []byte) ([][]byte, []boot.Event) {
	t.Helper()
	values, err := boot.Replay(log)
	if err != nil {
		t.Fatal(err)
	}
	events, err := boot.ParseLog(log, values)
	if err != nil {
		t.Fatal(err)
	}
	return values, events
}

// What is foretold of the second image is what firmware, stub and kernel did
// measure when it was booted: the same events in the same order, so the same
// registers and the same reference.
func TestTranslateForetellsARealBoot(t *testing.T) {
	one, two, swaps := realBoots(t)
	foretold, err := boot.Translate(one, swaps, 0)
	if err != nil {
		t.Fatal(err)
	}
	values, events := replay(t, foretold)
	real, seen := replay(t, two)
	before, _ := replay(t, one)
	for i, pcr := range boot.Quoted {
		if pcr == 1 || pcr == 5 { // the order of boot and the disk
			continue
		}
		changed := pcr == 4 || pcr == 9 || pcr == 11
		if !bytes.Equal(values[i], real[i]) || bytes.Equal(before[i], values[i]) == changed {
			t.Errorf("PCR %d: foretold %x, was %x, before %x", pcr, values[i], real[i], before[i])
		}
	}
	policy := []int{0, 2, 4, 7, 9, 11}
	want, got := boot.Observe(model, running, "uefi", policy, seen), boot.Observe(model, running, "uefi", policy, events)
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("got %s\nwant %s", got.Bytes(), want.Bytes())
	}
	if res := boot.Appraise([]boot.Reference{got}, nil, real, two); res.Trust != boot.Attested {
		t.Errorf("the real boot: %+v", res)
	}
	if res := boot.Appraise([]boot.Reference{got}, nil, before, one); res.Trust != boot.Quarantined {
		t.Errorf("twin, the image before: %+v", res)
	}
}

// The same image by the first entry of the boot menu, and behind one that
// failed: what is foretold of the latter is what firmware measured there.
func TestTranslateEntryThatFails(t *testing.T) {
	failed, _, swaps := realBoots(t)
	straight, err := os.ReadFile("testdata/ovmf-straight.log") // of OVMF 2025.02
	if err != nil {
		t.Fatal(err)
	}
	for i := range swaps {
		swaps[i].Is = swaps[i].Was
	}
	want, _ := replay(t, failed)
	for n, same := range []bool{false, true, false} {
		foretold, err := boot.Translate(straight, swaps, n)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := replay(t, foretold); bytes.Equal(got[4], want[4]) != same || !bytes.Equal(got[9], want[9]) {
			t.Errorf("%d entries that fail: PCR 4 is %x, of one %x", n, got[4], want[4])
		}
	}
	for name, c := range map[string]struct {
		log  []byte
		n    int
		want string
	}{
		"failed already": {failed, 1, "failed already"}, "too many": {straight, 9, "at most 8"},
	} {
		if _, err := boot.Translate(c.log, swaps, c.n); !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	quiet := unified(t, running).Without("action")
	if _, err := boot.Translate(quiet.Log(), swapsOf(t, running, offered), 1); !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), "does not tell of the entries") {
		t.Errorf("firmware that says nothing of entries: got %v", err)
	}
}

// swapsOf pairs two images of the farm.
func swapsOf(t testing.TB, was, is string) (list []boot.Swap) {
	t.Helper()
	var m [2][]uki.Measurement
	for i, release := range []string{was, is} {
		b, err := tpmfarm.Image(release)
		if err != nil {
			t.Fatal(err)
		}
		image, err := uki.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		m[i] = image.Measurements()
	}
	for i, a := range m[0] {
		list = append(list, boot.Swap{PCR: a.PCR, What: a.What, Was: a.Digests, Is: m[1][i].Digests, Always: a.Always})
	}
	return list
}

// Each of these would be foretold by guessing.
func TestTranslateGuessesNothing(t *testing.T) {
	extra := func(pcr int, text string) func(*tpmfarm.Firmware) {
		return func(f *tpmfarm.Firmware) {
			f.Events = append(f.Events, tpmfarm.Measured{PCR: pcr, Type: 0xd, Data: []byte(text)})
		}
	}
	without := func(names ...string) func(*tpmfarm.Firmware) {
		return func(f *tpmfarm.Firmware) { *f = f.Without(names...) }
	}
	twice := func(name string) func(*tpmfarm.Firmware) {
		return func(f *tpmfarm.Firmware) { f.Events = append(f.Events, *f.Event(name)) }
	}
	for _, c := range []struct {
		name   string
		change func(*tpmfarm.Firmware)
		edit   func([]boot.Swap)
		want   string
	}{
		{name: "as it is"},
		{name: "a stub that loads the kernel itself", change: without("kernel")},
		{name: "firmware's own", change: extra(4, "Returning from EFI Application from Boot Option")},
		{name: "another image", change: func(f *tpmfarm.Firmware) { f.Event("image").Sum = make([]byte, 32) }, want: "PCR 4 lacks the image"},
		{name: "no image", change: without("image"), want: "PCR 4 lacks the image"},
		{name: "no initrd", change: without("initrd"), want: "PCR 9 lacks the initrd"},
		{name: "no command line", change: without("command line"), want: "PCR 9 lacks the command line"},
		{name: "no section", change: without("section .initrd"), want: "PCR 11 lacks the section .initrd"},
		{name: "another command line", change: func(f *tpmfarm.Firmware) { f.Event("command line").Sum = make([]byte, 32) }, want: "PCR 9 holds an event that the image does not explain (EV_EVENT_TAG"},
		{name: "a second initrd", change: extra(9, "credentials"), want: "PCR 9 holds an event that the image does not explain (EV_IPL: credentials, digest "},
		{name: "a phase", change: extra(11, "enter-initrd"), want: "PCR 11 holds an event that the image does not explain"},
		{name: "an image twice", change: twice("image"), want: "PCR 4 holds the image of the image twice"},
		{name: "a section twice", change: twice("section .osrel"), want: "PCR 11 holds the section .osrel of the image twice"},
		{name: "added to the command line", change: extra(12, "init=/bin/sh"), want: "PCR 12 holds an event (EV_IPL: init=/bin/sh): the boot had more"},
		{name: "an extension", change: extra(13, "sysext"), want: "PCR 13 holds an event"},
		{name: "two forms", edit: func(s []boot.Swap) {
			for i := range s {
				if s[i].What == "initrd" {
					s[i].Was = slices.Repeat(s[i].Was[len(s[i].Was)-1:], len(s[i].Was))
				}
			}
		}, want: "PCR 9: the initrd of the other image can be measured in more than one form"},
		{name: "a form too few", edit: func(s []boot.Swap) { s[0].Is = nil }, want: "in more than one form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, swaps := unified(t, running), swapsOf(t, running, offered)
			if c.change != nil {
				c.change(&f)
			}
			if c.edit != nil {
				c.edit(swaps)
			}
			got, err := boot.Translate(f.Log(), swaps, 0)
			if c.want != "" {
				if !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), c.want) || got != nil {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			other := unified(t, offered)
			if c.change != nil {
				c.change(&other)
			}
			if values, _ := replay(t, got); !slices.EqualFunc(values, other.Registers(), bytes.Equal) {
				t.Errorf("got %x, want %x", values, other.Registers())
			}
		})
	}
	if _, err := boot.Translate(tpmfarm.Default(running).Log(), swapsOf(t, running, offered), 0); !errors.Is(err, boot.ErrLog) {
		t.Errorf("a GRUB box: got %v", err)
	}
}

// FuzzTranslate takes logs that nobody wrote: no panic, and what is made of one
// can be read.
func FuzzTranslate(f *testing.F) {
	one, two, swaps := realBoots(f)
	f.Add(one)
	f.Add(two)
	f.Add(unified(f, running).Log())
	for i := range swaps {
		swaps[i].Always = false
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := boot.Translate(raw, swaps, len(raw)%3)
		if err != nil {
			if !errors.Is(err, boot.ErrLog) {
				t.Errorf("not ErrLog: %v", err)
			}
			return
		}
		if _, err := boot.Replay(got); err != nil {
			t.Errorf("what was made of it: %v", err)
		}
	})
}
