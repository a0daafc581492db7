package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/boot"
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
	ts.Check(os.MkdirAll(dir+"/sysfs", 0o755))
	ts.Check(os.WriteFile(dir+"/log", f.Log(), 0o600))
	text := fmt.Sprintf("  sha1:\n    0 : 0x%064X\n  sha256:\n", 1)
	for i, v := range f.Registers() {
		text += fmt.Sprintf("    %-2d: 0x%X\n", boot.Quoted[i], v)
		ts.Check(os.WriteFile(fmt.Sprintf("%s/sysfs/%d", dir, boot.Quoted[i]), fmt.Appendf(nil, "%X\n", v), 0o600))
	}
	ts.Check(os.WriteFile(dir+"/pcrs", []byte(text), 0o600))
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
