package boardtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// libexec is where the overlay's scripts are.
const libexec = "../../buildroot/board/tillward/overlay/usr/libexec/tillward"

// sh runs a script by BusyBox, as the box does, or by the machine's sh.
func sh(t *testing.T, script string, args ...string) (string, error) {
	t.Helper()
	name, before := "sh", []string{}
	if path, err := exec.LookPath("busybox"); err == nil {
		name, before = path, []string{"sh"}
	}
	cmd := exec.CommandContext(t.Context(), name, append(append(before, "-c", script, "sh"), args...)...)
	cmd.Env = append(os.Environ(), "LIB="+libexec)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// network parses a network file and says what came of it.
func network(t *testing.T, text string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "network.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return sh(t, `. "$LIB/network"
network_parse "$1" || { echo "$wrong"; exit 1; }
echo "$interface|$dhcp|$address|$gateway|$dns|$ntp"`, file)
}

// TestNetworkFile takes what the documentation says, however it was typed.
func TestNetworkFile(t *testing.T) {
	for text, want := range map[string]string{
		"dhcp = yes\n":                                       "|yes||||",
		"dhcp=yes\n \ninterface = eth1":                      "eth1|yes||||",
		"# of till 7\r\n\r\naddress=10.0.2.77/24\r\n":        "||10.0.2.77/24|||",
		"address =\t192.0.2.10/24 \ngateway = 192.0.2.1\n":   "||192.0.2.10/24|192.0.2.1||",
		"address = 2001:db8::7/64\ndns = 192.0.2.53 ::1\n":   "||2001:db8::7/64||192.0.2.53 ::1|",
		"dhcp = yes\nntp = pool.example 192.0.2.1 a-b.test ": "|yes||||pool.example 192.0.2.1 a-b.test",
	} {
		got, err := network(t, text)
		if err != nil || strings.TrimSuffix(got, "\n") != want {
			t.Errorf("%q: %v, got %q, want %q", text, err, got, want)
		}
	}
}

// TestHostileNetworkFile refuses everything else, and runs none of it.
func TestHostileNetworkFile(t *testing.T) {
	proof := filepath.Join(t.TempDir(), "ran")
	run := "touch " + proof
	for _, line := range []string{
		"", "dhcp = no", "dhcp = YES", "dhcp", "= yes", "DHCP = yes", "dhcp = yes; " + run, "PATH = /tmp", "IFS = x",
		"interface = eth0\ndhcp = yes\n" + run,
		"dhcp = yes\ninterface = $(" + run + ")", "dhcp = yes\ninterface = `" + run + "`", "dhcp = yes\ninterface = ../etc", "dhcp = yes\ninterface = -x",
		"dhcp = yes\ninterface = 0123456789abcdef", "dhcp = yes\ninterface = eth0 eth1", "dhcp = yes\ninterface = *",
		"address = 10.0.2.77", "address = 10.0.2.77/", "address = 10.0.2.77/33", "address = 10.0.2.77/0", "address = 10.0.2.256/24", "address = 10.0.2/24",
		"address = 10.0.2.077/24", "address = 10.0.2.7.7/24", "address = .10.0.2/24", "address = 10.0.2.7/24/24", "address = 10.0.2.7/2 4", "address = host/24",
		"address = 99999999999999999999.0.2.1/24", "address = 2001:db8:::7/64", "address = 2001:db8::7/129", "address = 2001:db8::g/64", "address = :/64",
		"address = 10.0.2.77/24\ngateway = gw", "address = 10.0.2.77/24\ngateway = 10.0.2.1 10.0.2.2", "address = 10.0.2.77/24\ngateway = 10.0.2.1/24",
		"dhcp = yes\ndns = a.example", "dhcp = yes\ndns = 1.1.1.1 1.1.1.2 1.1.1.3 1.1.1.4", "dhcp = yes\ndns = ",
		"dhcp = yes\nntp = -x", "dhcp = yes\nntp = a..b", "dhcp = yes\nntp = a;b", "dhcp = yes\nntp = a\x00b;", "dhcp = yes\nntp = a\\nb", "dhcp = yes\nntp = ü",
		"dhcp = yes\nntp = a iburst\nserver b", "dhcp = yes\nntp = $HOME", "dhcp = yes\nntp = " + strings.Repeat("a", 254),
		"dhcp = yes\n#" + strings.Repeat("x", 5000), "dhcp = yes\n-n = x",
	} {
		if got, err := network(t, line+"\n"); err == nil {
			t.Errorf("%q was taken: %s", line, got)
		}
	}
	if _, err := os.Stat(proof); err == nil {
		t.Error("a line of the file was run")
	}
}

// TestServiceFile keeps off the box what is no service file.
func TestServiceFile(t *testing.T) {
	take := func(text string) bool {
		file := filepath.Join(t.TempDir(), "tillward-service.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := sh(t, `. "$LIB/service-file"; service_file "$1"`, file)
		return err == nil
	}
	for _, text := range []string{
		"enrol = \"https://fleet.example:8444\"\n",
		"# of the shop\r\n\r\nenrol=\"https://[2001:db8::1]:8444\" # here\r\nclaim = \"ABCD-1234\"\r\nserver_name = \"fleet.example\"\r\n",
	} {
		if !take(text) {
			t.Errorf("%q was refused", text)
		}
	}
	for _, text := range []string{
		"roots = \"x\"\n", "enrol = 7\n", "enrol = \"a\\\"b\"\n", "enrol = \"\"\"\n", "[service]\nenrol = \"x\"\n", "enrol = 'x'\n", "enrol = \"x\" y\n",
		"enrol = \"x\"\n\x00\n", "enrol = \"x\x1b[2J\"\n", "enrol = \"ü\"\n", "\x7fELF\n",
	} {
		if take(text) {
			t.Errorf("%q was taken", text)
		}
	}
}

// TestHostileLease takes of a DHCP server's words only what is an address.
func TestHostileLease(t *testing.T) {
	for _, ip := range []string{"", "10.0.2.15; true", "$(true)", "10.0.2", "10.0.2.15/24", "0x0a.0.2.1", "10.0.2.15 "} {
		if out, err := sh(t, `. "$LIB/network"; is_address "$1" && echo taken`, ip); err == nil || strings.Contains(out, "taken") {
			t.Errorf("%q was taken for an address", ip)
		}
	}
	if _, err := sh(t, `. "$LIB/network"; is_address 10.0.2.15 && is_length 10.0.2.15/24`); err != nil {
		t.Error("an address was refused")
	}
}
