package firmware_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/firmware"
)

// TestTake copies a program of this machine into a tree.
func TestTake(t *testing.T) {
	const program, linker = "usr/bin/env", "usr/lib64/ld-linux-x86-64.so.2"
	for _, name := range []string{program, linker} {
		if _, err := os.Stat("/" + name); err != nil || runtime.GOARCH != "amd64" {
			t.Skipf("not an amd64 machine whose /usr is merged: no /%s", name)
		}
	}
	to := t.TempDir()
	must(t, firmware.Take("/", to, program))
	for _, name := range []string{program, linker, "usr/lib/x86_64-linux-gnu/libc.so.6"} {
		info, err := os.Stat(filepath.Join(to, name)) // through links
		if err != nil || info.Size() == 0 {
			t.Errorf("%s: got %v, %v", name, info, err)
		}
	}
	if err := firmware.Take("/", to, "usr/bin/not-there"); err == nil {
		t.Error("a program that is not there: got no error")
	}
	from := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(from, "usr/bin"), 0o700))
	b, err := os.ReadFile("/" + program)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(from, program), b, 0o700)) // #nosec G306 -- a program
	if err := firmware.Take(from, t.TempDir(), program); err == nil {
		t.Error("a tree without its libraries: got no error")
	}
}

// TestUsers makes users as Buildroot would of the table.
func TestUsers(t *testing.T) {
	passwd, group, err := firmware.Users("# who\ntillward 900 tillward 900 * - - lp,tss Tillward agent\n- -1 tss 901 - - - - TPM\n\nother -1 other -1 * /data /bin/sh - \n")
	must(t, err)
	for _, want := range []string{
		"root:x:0:0:root:/root:/bin/sh\n", "tillward:x:900:900:Tillward agent:/:/bin/false\n", "nobody:x:65534:65534:", "other:x:1004:1004::/data:/bin/sh\n",
	} {
		if !strings.Contains(passwd, want) {
			t.Errorf("passwd has no %q:\n%s", want, passwd)
		}
	}
	for _, want := range []string{"root:x:0:\n", "lp:x:7:tillward\n", "tss:x:901:tillward\n", "tillward:x:900:\n", "other:x:1004:\n"} {
		if !strings.Contains(group, want) {
			t.Errorf("group has no %q:\n%s", want, group)
		}
	}
	for _, bad := range []string{"a 1 a 1 * -\n", "a x a 1 * - - -\n", "a 1 a y * - - -\n", "a 1 a 1 * - - nobodys\n"} {
		if _, _, err := firmware.Users(bad); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}
