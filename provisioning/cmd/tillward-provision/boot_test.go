package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// firmware DIR RELEASE [EVENT=IMAGE | EVENT=]... boots a till: it writes DIR/log,
// DIR/pcrs as tpm2_pcrread does, and DIR/sysfs as the kernel does. The events
// named measure another image, or nothing.
func firmware(ts *testscript.TestScript, _ bool, args []string) {
	dir, f := ts.MkAbs(args[0]), tpmfarm.Default(args[1])
	for _, a := range args[2:] {
		if name, image, _ := strings.Cut(a, "="); image == "" {
			f = f.Without(name)
		} else {
			f.Event(name).Image = []byte(image)
		}
	}
	write(ts, dir, f)
}

// write leaves what a boot leaves behind.
func write(ts *testscript.TestScript, dir string, f tpmfarm.Firmware) {
	ts.Check(os.MkdirAll(dir+"/sysfs", 0o755))
	ts.Check(os.WriteFile(dir+"/log", f.Log(), 0o600))
	text := fmt.Sprintf("  sha1:\n    0 : 0x%064X\n  sha256:\n", 1)
	for i, v := range f.Registers() {
		text += fmt.Sprintf("    %-2d: 0x%X\n", boot.Quoted[i], v)
		ts.Check(os.WriteFile(fmt.Sprintf("%s/sysfs/%d", dir, boot.Quoted[i]), fmt.Appendf(nil, "%X\n", v), 0o600))
	}
	ts.Check(os.WriteFile(dir+"/pcrs", []byte(text), 0o600))
}

// unified DIR RELEASE [ACTION] boots the image of a release, which it leaves in
// DIR/image.efi. Before that the firmware does something else.
func unified(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	image, err := tpmfarm.Image(args[1])
	ts.Check(err)
	f, err := tpmfarm.Unified(image)
	ts.Check(err)
	for _, text := range args[2:] {
		f.Events = append([]tpmfarm.Measured{{PCR: 4, Type: 0x80000007, Data: []byte(text)}}, f.Events...)
	}
	write(ts, dir, f)
	ts.Check(os.WriteFile(dir+"/image.efi", image, 0o600))
}

// program FILE SECTION=TEXT... makes an EFI program that cannot run.
func program(ts *testscript.TestScript, _ bool, args []string) {
	var sections []uki.Section
	for _, a := range args[1:] {
		name, text, _ := strings.Cut(a, "=")
		sections = append(sections, uki.Section{Name: name, Data: []byte(text)})
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), tpmfarm.Program(sections...), 0o600))
}

// tenvalues FILE takes the value of PCR 11 away, as older guides had it read.
func tenValues(ts *testscript.TestScript, _ bool, args []string) {
	before, _, ok := strings.Cut(ts.ReadFile(args[0]), "    11:")
	if !ok {
		ts.Fatalf("%s holds no value of PCR 11", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(before), 0o600))
}

// extended FILE changes the value of PCR 11.
func extended(ts *testscript.TestScript, _ bool, args []string) {
	before, after, ok := strings.Cut(ts.ReadFile(args[0]), "    11: 0x")
	if !ok {
		ts.Fatalf("%s holds no value of PCR 11", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(before+"    11: 0x"+strings.Repeat("5", 64)+after[64:]), 0o600))
}

// samepolicy FILE wants the policy in a file to be the one just printed.
func samePolicy(ts *testscript.TestScript, _ bool, args []string) {
	_, want, _ := strings.Cut(ts.ReadFile(args[0]), "policy ")
	if _, got, ok := strings.Cut(ts.ReadFile("stdout"), "policy "); !ok || got != want {
		ts.Fatalf("got policy %s, want %s", got, want)
	}
}

// soften FILE edits reference values as a person would: PCR 0 is soft, and the
// kernel may be missing.
func soften(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	edited := strings.Replace(text, `"soft": []`, `"soft": [0]`, 1)
	edited = strings.Replace(edited, `"what": "EV_IPL says: /boot/bzImage"`, `"what": "EV_IPL says: /boot/bzImage", "optional": true`, 1)
	if edited == text {
		ts.Fatalf("%s holds nothing to edit", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(edited), 0o600))
}

func TestPCRsThatAreNoneSayWhy(t *testing.T) {
	var all strings.Builder
	for i := range 10 {
		fmt.Fprintf(&all, "%d: %064x\n", i, i)
	}
	file := t.TempDir() + "/pcrs"
	for _, c := range []struct{ text, want string }{
		{all.String(), ""},
		{"sha256:\n" + all.String(), ""},
		{"sha1:\n" + all.String(), "no SHA-256 value of PCR 0"},
		{strings.Replace(all.String(), "9: ", "10: ", 1), "no SHA-256 value of PCR 9"},
		{all.String() + all.String(), "PCR 0 twice"},
		{"", "no SHA-256 value"},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readPCRs(file)
		if c.want == "" && (err != nil || len(got) != 10 || got[9][31] != 9) {
			t.Errorf("got %x and %v", got, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}
