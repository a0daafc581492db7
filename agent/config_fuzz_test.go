package agent

import (
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/virtual"
)

// FuzzConfig holds that no file makes the agent panic, that what is refused says
// which file it is, and that what is taken reads the same when it is printed.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"", "[service]\nenrol = 'https://fleet.example:8444'\n", "[peripherals]\nusb = false\nignore = ['usb:04b8:0e15@1-2']\n",
		"[[device]]\nid = 'front'\ndriver = 'escpos'\naddress = 'usb:04b8:0e15'\nclaim = 'own'\npoll = '2s'\nprint = 'tcp:127.0.0.1:9100'\n" +
			"print_proof = 'unix:/run/tillward/print/front'\nprint_mode = '0660'\nprint_group = 'pos'\n[device.options]\nroll_length_m = '80'\n",
		"[telemetry]\npoll = '0s'\ncheck = '1h'\n", "[[device]]\nprint = 'tcp:[::1]:0'\nclaim='own'\nid='\\u0000'\ndriver='x'", "device = 1", "[update]\nhours = 'mon-sat 22:00-06:00'",
		DefaultConfig().String(),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cfg, err := parseConfig("/etc/agent.toml", []byte(s))
		if err != nil {
			if !strings.Contains(err.Error(), "/etc/agent.toml") {
				t.Errorf("%v names no file", err)
			}
			return
		}
		again, err := parseConfig("/etc/agent.toml", []byte(cfg.String()))
		if err != nil || again.String() != cfg.String() {
			t.Errorf("%q was taken; printed it reads %v, %s", s, err, again)
		}
		for _, d := range cfg.Devices {
			for _, at := range []string{d.Print, d.PrintProof} {
				if strings.HasPrefix(at, "tcp:") && !strings.HasPrefix(at, "tcp:127.") && !strings.HasPrefix(at, "tcp:[") {
					t.Errorf("a print socket at %q", at)
				}
			}
			newPeripherals(cfg, nil)
		}
		for _, err := range cfg.checkDevices(hal.NewRegistry(virtual.Driver{})) {
			if !strings.HasPrefix(err.Error(), "device ") {
				t.Errorf("%q: %v names no device", s, err)
			}
		}
	})
}
