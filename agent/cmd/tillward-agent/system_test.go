package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// unit is a unit of systemd: its directives in order, without their section.
type unit []directive

type directive struct{ name, value string }

func parseUnit(text string) (u unit, err error) {
	section := ""
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = line
		case !ok || section == "" || strings.ContainsAny(name, " \t"):
			return nil, fmt.Errorf("line %d is none of a unit: %q", n+1, line)
		default:
			u = append(u, directive{name, value})
		}
	}
	return u, nil
}

func (u unit) all(name string) (values []string) {
	for _, d := range u {
		if d.name == name {
			values = append(values, d.value)
		}
	}
	return values
}

// confines names what a unit leaves to the agent that it must not have.
func confines(u unit) (leaves []string) {
	for _, want := range []directive{
		{"User", "tillward"},
		{"CapabilityBoundingSet", ""},
		{"AmbientCapabilities", ""},
		{"NoNewPrivileges", "yes"},
		{"ProtectSystem", "strict"},
		{"ProtectHome", "yes"},
		{"PrivateTmp", "yes"},
		{"DevicePolicy", "closed"},
		{"RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"},
		{"SystemCallArchitectures", "native"},
		{"StateDirectoryMode", "0700"},
		{"UMask", "0077"},
	} {
		if got := u.all(want.name); !slices.Equal(got, []string{want.value}) {
			leaves = append(leaves, fmt.Sprintf("%s is %q, want %q once", want.name, got, want.value))
		}
	}
	for _, d := range u.all("DeviceAllow") {
		for _, disk := range []string{"block-", "/dev/sd", "/dev/mem", "/dev/nvme", "char-mem", "char-*", "/dev/tpm0", "char-hidraw"} {
			if strings.HasPrefix(d, disk) {
				leaves = append(leaves, "DeviceAllow "+d)
			}
		}
	}
	for _, d := range u {
		if strings.HasPrefix(d.name, "Exec") && strings.ContainsAny(d.value[:min(len(d.value), 2)], "+!") && d.name != "ExecStopPost" {
			leaves = append(leaves, d.name+" runs as root")
		}
	}
	for _, g := range u.all("SupplementaryGroups") {
		for group := range strings.FieldsSeq(g) {
			if slices.Contains([]string{"root", "input", "disk", "adm", "sudo", "wheel", "shadow", "docker", "kvm", "video"}, group) {
				leaves = append(leaves, "group "+group)
			}
		}
	}
	return leaves
}

func system(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("system", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestUnit holds that the agent's unit gives it a user of its own and no
// capability, and that systemd takes it.
func TestUnit(t *testing.T) {
	text := system(t, "tillward-agent.service")
	u, err := parseUnit(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, leaves := range confines(u) {
		t.Error(leaves)
	}
	for _, codes := range []string{"75", "76"} { // of the agent, see its package comment
		if codes == "76" && !strings.Contains(strings.Join(u.all("ExecStopPost"), "\n"), `"$EXIT_STATUS" = 76`) {
			t.Error("nobody restarts the box when the agent ends with 76")
		}
	}
	if !slices.Equal(u.all("Restart"), []string{"always"}) {
		t.Error("an agent that ends with 75 is not started again")
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if errors.Is(err, exec.ErrNotFound) {
		t.Log("no systemd-analyze here: the unit was read by this test alone")
		return
	}
	file := filepath.Join(t.TempDir(), "tillward-agent.service")
	runnable := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(text, "ExecStart=/bin/true") // it must be there
	if err := os.WriteFile(file, []byte(runnable), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestLooseUnitIsSeen is the must-fail twin.
func TestLooseUnitIsSeen(t *testing.T) {
	text := system(t, "tillward-agent.service")
	for _, change := range [][2]string{
		{"User=tillward", "User=root"},
		{"User=tillward\n", ""},
		{"CapabilityBoundingSet=\n", ""},
		{"CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_SYS_ADMIN"},
		{"AmbientCapabilities=", "AmbientCapabilities=CAP_NET_RAW"},
		{"NoNewPrivileges=yes", "NoNewPrivileges=no"},
		{"ProtectSystem=strict", "ProtectSystem=full"},
		{"DevicePolicy=closed", "DevicePolicy=auto"},
		{"DeviceAllow=char-tpm rw", "DeviceAllow=block-* rw"},
		{"SupplementaryGroups=lp", "SupplementaryGroups=lp input"},
		{"SupplementaryGroups=lp", "SupplementaryGroups=disk"},
		{"ExecStart=", "ExecStart=+"},
		{"RestrictAddressFamilies=AF_UNIX", "RestrictAddressFamilies=AF_PACKET AF_UNIX"},
	} {
		loose := strings.Replace(text, change[0], change[1], 1)
		u, err := parseUnit(loose)
		if err != nil || loose == text {
			t.Fatalf("%q: %v", change, err)
		}
		if len(confines(u)) == 0 {
			t.Errorf("%s -> %s was not seen", change[0], change[1])
		}
	}
	if _, err := parseUnit("[Service]\nnonsense\n"); err == nil {
		t.Error("a line that is none was taken")
	}
}

// TestGroups holds that every group that is used is made, and that nobody gets
// the keyboards.
func TestGroups(t *testing.T) {
	made := map[string]bool{}
	for line := range strings.Lines(system(t, "tillward.sysusers.conf")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] != "#" {
			made[f[1]] = true
		}
	}
	u, err := parseUnit(system(t, "tillward-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	used := strings.Fields(strings.Join(append(u.all("SupplementaryGroups"), u.all("User")...), " "))
	rules := system(t, "70-tillward.rules")
	for _, m := range regexp.MustCompile(`GROUP="([^"]*)"`).FindAllStringSubmatch(rules, -1) {
		used = append(used, m[1])
	}
	for line := range strings.Lines(system(t, "tillward.tmpfiles.conf")) {
		if f := strings.Fields(line); len(f) > 4 && f[0] != "#" {
			used = append(used, f[4])
		}
	}
	for _, g := range used {
		if !made[g] {
			t.Errorf("nobody makes the group %s", g)
		}
	}
	for _, m := range regexp.MustCompile(`MODE="([^"]*)"`).FindAllStringSubmatch(rules, -1) {
		if !strings.HasSuffix(m[1], "0") {
			t.Errorf("a device that everybody may open: mode %s", m[1])
		}
	}
	for n, line := range strings.Split(rules, "\n") {
		rule := regexp.MustCompile(`^((ACTION|SUBSYSTEM|KERNEL|GROUP|MODE|GOTO|LABEL|ATTRS\{idVendor\})(==|!=|=)"[^"]*"(, |$))+$`)
		if line != "" && !strings.HasPrefix(line, "#") && !rule.MatchString(line) {
			t.Errorf("line %d is no rule: %s", n+1, line)
		}
	}
	if strings.Contains(rules, `SUBSYSTEM=="input"`) || strings.Count(rules, "idVendor") == 0 {
		t.Error("an input device goes to the agent whoever made it")
	}
	if err := xml.Unmarshal([]byte(system(t, "tillward.dbus.conf")), new(struct{})); err != nil {
		t.Errorf("tillward.dbus.conf: %v", err)
	}
}
