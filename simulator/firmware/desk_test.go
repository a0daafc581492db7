//go:build firmware

package firmware_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// needsQEMU skips a test on a desk without QEMU, and fails it in CI: what no
// till has shown is not shown.
func needsQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err == nil {
		return
	}
	const how = "no qemu-system-x86_64 here, so no till was booted and nothing is shown by this: sudo apt-get install qemu-system-x86 (7.2 or newer), then make test-firmware"
	if os.Getenv("CI") != "" {
		t.Fatal(how)
	}
	t.Skip(how)
}

// TestFirmwareWithoutQEMU runs this test where there is no QEMU: on a desk, and
// in CI.
func TestFirmwareWithoutQEMU(t *testing.T) {
	for _, c := range []struct {
		name, ci, says string
		ok             bool
	}{{"on a desk", "CI=", "--- SKIP: TestFirmware ", true}, {"in CI", "CI=true", "--- FAIL: TestFirmware ", false}} {
		t.Run(c.name, func(t *testing.T) {
			self := exec.Command(os.Args[0], "-test.run=^TestFirmware$", "-test.v")
			self.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "PATH=") }), "PATH="+t.TempDir(), c.ci)
			out, err := self.CombinedOutput()
			if (err == nil) != c.ok {
				t.Errorf("it ended with %v, want ok %v", err, c.ok)
			}
			for _, want := range []string{c.says, "no till was booted", "apt-get install qemu-system-x86"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("it says %s, want %q", out, want)
				}
			}
		})
	}
}
