package brcheck

import (
	"strings"
	"testing"
)

// What Buildroot and Kconfig answer is judged here without them, in good and in
// broken form. TestAgainst asks real ones.

func TestLost(t *testing.T) {
	want := parseConfig("want", "BR2_A=y\n# BR2_B is not set\nBR2_C=\"x\"\n# BR2_D is not set\n").lines
	for _, c := range []struct{ got, lost string }{
		{"BR2_A=y\n# BR2_B is not set\nBR2_C=\"x\"\n", ""},
		{"# BR2_B is not set\nBR2_C=\"x\"\n", "BR2_A=y"},
		{"BR2_A=y\nBR2_B=y\nBR2_C=\"x\"\n", "# BR2_B is not set"},
		{"BR2_A=y\nBR2_C=\"y\"\n", `BR2_C="x"`},
	} {
		got := strings.Join(lost(want, parseConfig("got", c.got)), "\n")
		if (got == "") != (c.lost == "") || !strings.Contains(got, c.lost) {
			t.Errorf("of %q: got %q, want %q", c.got, got, c.lost)
		}
	}
}

func TestUnresolved(t *testing.T) {
	good := map[string]info{}
	for _, name := range wants {
		good[name] = info{Dependencies: []string{"linux"}}
	}
	if got := unresolved(good); len(got) != 0 {
		t.Errorf("got %q, want nothing", got)
	}
	good["rauc"] = info{Dependencies: []string{"libglib3"}}
	delete(good, "chrony")
	if got := strings.Join(unresolved(good), "\n"); !strings.Contains(got, "rauc depends on libglib3") || !strings.Contains(got, "no package chrony") {
		t.Errorf("got %q, want both", got)
	}
}

func TestMisbuilt(t *testing.T) {
	const good = `TILLWARD_AGENT_BUILD_CMDS=	cd .; GOFLAGS=-mod=vendor GOPROXY=off CGO_ENABLED=1 CGO_CFLAGS="-O2 -Os" go build -gcflags=all=-l ` +
		`-ldflags "-s -w -X main.version=0.1.0 -linkmode external -extldflags '-static'" -tags "sqlite_omit_load_extension netgo osusergo nethttpomithttp2" ` +
		"-trimpath -o bin/tillward-agent github.com/tillward/tillward/agent/cmd/tillward-agent\n" +
		"TILLWARD_COMPATIBLE=c\nTILLWARD_CONSOLE=no\nTILLWARD_MODEL=m\nTILLWARD_VERSION=0.1.0\n"
	c := parseConfig("", "BR2_TILLWARD_MODEL=\"m\"\nBR2_TILLWARD_COMPATIBLE=\"c\"\n")
	if got := misbuilt(good, c); len(got) != 0 {
		t.Errorf("got %q, want nothing", got)
	}
	for _, without := range []string{"-mod=vendor", " netgo", "-X main.version=0.1.0", "-static", "-Os", "TILLWARD_MODEL=m\n", "TILLWARD_CONSOLE=no\n"} {
		if got := misbuilt(strings.Replace(good, without, "", 1), c); len(got) != 1 {
			t.Errorf("without %q: got %q, want one thing wrong", without, got)
		}
	}
}
