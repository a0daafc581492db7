package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent"
)

const good = "[service]\nenrol = 'https://fleet.example:8444'\n"

const mine = "[[device]]\nid = 'front'\ndriver = 'escpos'\n"

const held = "claim = 'own'\naddress = 'tcp:192.0.2.7:9100'\n"

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLoadConfig reads a file, and what it prints once more.
func TestLoadConfig(t *testing.T) {
	cfg, err := agent.LoadConfig(write(t, good+`
[telemetry]
poll = "3s"
[[device]]
id = "receipt"
driver = "escpos"
address = "192.0.2.7:9100"
claim = "share"
[device.options]
columns = "42"
[[device]]
id = "reader"
driver = "pcsc"
poll = "7s"
[[device]]
id = "own"
driver = "escpos"
claim = "own"
print = "tcp:127.0.0.1:9100"
print_proof = "unix:/run/tillward/print/own.sock"
print_mode = "0666"
print_group = "pos"
[peripherals]
usb = false
ignore = ["usb:1d6b:0002", "usb:04b8:0e15@1-2"]
`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.StateDir != "/var/lib/tillward" || cfg.Telemetry.Poll.Duration != 3*time.Second || len(cfg.Devices) != 3 || cfg.Devices[1].Poll.Duration != 7*time.Second || cfg.Devices[2].PrintGroup != "pos" || cfg.Peripherals.USB || cfg.Devices[0].Options["columns"] != "42" || cfg.TPM.Device != "/dev/tpmrm0" {
		t.Errorf("got %+v", cfg)
	}
	again, err := agent.LoadConfig(write(t, cfg.String()))
	if err != nil || again.String() != cfg.String() {
		t.Errorf("the printed file read again: got %s, %v, want %s", again, err, cfg)
	}
}

func TestBadConfigs(t *testing.T) {
	for text, want := range map[string]string{
		"[service]\nfiles = []\nleases = []":                 "service.enrol \"\": give the address",
		"[service]\nroots = ''":                              "service.roots",
		good + "files = ['stick.toml']":                      "service.files, service.leases, update.media or update.references \"stick.toml\"",
		"factory_reset = 'reset'\n" + good:                   "factory_reset \"reset\"",
		good + "[update]\nreferences = ['boot.json']":        "update.references \"boot.json\"",
		good + "leases = ['/run/[']":                         "service.files, service.leases, update.media or update.references \"/run/[\"",
		"[service]\nenrol = 'http://x:8444'":                 "service.enrol",
		"[service]\nenrol = 'https://'":                      "service.enrol",
		good + "artifacts = 'http://x'":                      "give https://host",
		good + "artifacts = 'https://x:8444/'":               "give https://host",
		good + "artifacts = 'https://'":                      "give https://host",
		good + "[update]\nshare = ':9100'":                   "update.share \":9100\": use a port from 1024 on",
		good + "[update]\nshare = ':https'":                  "update.share \":https\": give host:port",
		good + "broker = 'broker.example'":                   "service.broker \"broker.example\": give host:port",
		good + "token = 'x'":                                 "unknown key",
		"state_dir = 'state'\n" + good:                       "state_dir \"state\": give an absolute path",
		"log_level = 'loud'\n" + good:                        "log_level \"loud\"",
		"log_level = [\n" + good:                             "1|",
		good + "[tpm]\ndevice = ''":                          "tpm.device",
		good + "[tpm]\nak_rotate = '1s'":                     "tpm.ak_rotate",
		"tenant_data = ['pos']\n" + good:                     "tenant_data or update.apps_dir \"pos\"",
		"tenant_data = ['/srv']\n" + good:                    "tenant_data or update.apps_dir \"/srv\"",
		"tenant_data = ['/a/../']\n" + good:                  "tenant_data or update.apps_dir \"/a/../\"",
		"tenant_data = ['/var/lib']\n" + good:                "tenant_data or update.apps_dir \"/var/lib\"",
		"tenant_data = ['/var/lib/tillward/agent']\n" + good: "apart from state_dir",
		good + "[update]\ncheck_for = '1ms'":                 "update.check_for",
		good + "[update]\nchannel = 'alpha'":                 "update.channel \"alpha\": use prod or beta",
		good + "[update]\nmin_free_mib = 0":                  "update.min_free_mib",
		good + "[update]\nhours = 'at night'":                "write hours like",
		good + "[update]\nidle_lock = 'busy'":                "update.idle_lock",
		good + "[update]\npower_dir = 'sys'":                 "update.power_dir",
		good + "[update]\nhealth = ['check']":                "update.health",
		good + "[update]\nmedia = ['stick']":                 "update.references \"stick\"",
		good + "[[update.script]]\nname = '../x'":            "update.script",
		good + "[update]\nshare = 'till'":                    "update.share",
		good + "[update]\nbudget_mib_day = -1":               "update.budget_mib_day",
		good + "[update]\napp_timeout = '1h'":                "update.app_timeout",
		good + "[update]\napps_dir = '/apps'":                "update.apps_dir \"/apps\"",
		good + "[telemetry]\nflaps = 0":                      "telemetry.flaps 0",
		good + "[telemetry]\npoll = '10ms'":                  "telemetry.poll 10ms",
		good + "[telemetry]\nstats = '25h'":                  "telemetry.stats",
		good + "[telemetry]\nbatch = '0s'":                   "telemetry.batch",
		good + "[telemetry]\nheartbeat = 's'":                "is not a duration such as",
		good + "[telemetry]\ncheck = '1s'":                   "telemetry.check 1s",
		good + "[link]\nbacklog_kib_s = -1":                  "link: backlog_kib_s -1",
		good + "[link]\nbacklog_messages = 9":                "link: backlog_kib_s 64 and backlog_messages 9",
		good + "[spool]\nmax_mib = 0":                        "spool.max_mib 0",
		good + "[spool]\naudit_percent = 4":                  "spool.audit_percent 4",
		good + "[spool]\ntelemetry_percent = 81":             "spool.telemetry_percent 81: must lie between 1 and 80",
		good + "[spool]\nevent_percent = 0":                  "spool.event_percent 0",
		good + "[spool]\nwindow = \"0s\"":                    "spool.window 0s",
		good + "[[device]]\nid = 'x'":                        "device 1: give it an id and a driver",
		good + "[[device]]\ndriver = 'pcsc'":                 "device 1: give it an id and a driver",
		good + "[[device]]\nid = 'x'\ndriver = 'pcsc'\n[[device]]\nid = 'x'\ndriver = 'escpos'":                   "device \"x\": the id is used twice",
		good + mine + "claim = 'own'\n[device.options]\ndrawer = 'y'\n[[device]]\nid = 'y'\ndriver = 'pcsc'":      "device \"y\": the id is used twice",
		good + "[[device]]\nid = 'y'\ndriver = 'pcsc'\n" + mine + "claim = 'own'\n[device.options]\ndrawer = 'y'": "drawer \"y\": the id is used twice",
		good + mine + held + "[[device]]\nid = 'y'\ndriver = 'escpos'\n" + held:                                   "device \"y\": address \"tcp:192.0.2.7:9100\" is held",
		good + "[[device]]\nid = 'x'\ndriver = 'pcsc'\nclaim = 'steal'":                                           "use observe, share or own",
		good + "[[device]]\nid = 'x'\ndriver = 'pcsc'\ncolour = 'red'":                                            "colour",
		good + "[[device]]\nid = 'x'\ndriver = 'pcsc'\npoll = '1ms'":                                              "poll 1ms",
		good + "[peripherals]\nignore = ['04b8:0e15']":                                                            "peripherals.ignore \"04b8:0e15\"",
		good + "[peripherals]\nignore = ['usb:04B8:0E15']":                                                        "peripherals.ignore",
		good + mine + "claim = 'observe'\nprint = 'tcp:127.0.0.1:9100'":                                           "claim it with own",
		good + mine + "print_proof = 'unix:/run/x/y'":                                                             "claim it with own",
		good + mine + "claim = 'own'\nprint = 'tcp:0.0.0.0:9100'":                                                 "this box alone",
		good + mine + "claim = 'own'\nprint = 'tcp:192.0.2.7:9100'":                                               "this box alone",
		good + mine + "claim = 'own'\nprint = 'unix:front'":                                                       "absolute path",
		good + mine + "claim = 'own'\nprint_proof = 'tcp:127.0.0.1:9101'":                                         "give unix:PATH",
		good + mine + "claim = 'own'\nprint = 'unix:/run/x/y'\nprint_proof = 'unix:/run/x/y'":                     "used twice",
		good + mine + "claim = 'own'\nprint_mode = '0777'":                                                        "print_mode",
		good + mine + "claim = 'own'\nprint_mode = 'rw'":                                                          "print_mode",
		good + mine + "claim = 'own'\nprint_mode = '0060'":                                                        "print_mode",
	} {
		path := write(t, text)
		_, err := agent.LoadConfig(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want an error that names the file and %q", text, err, want)
		}
	}
	// A box whose image names no service waits for a stick or a DHCP server.
	if _, err := agent.LoadConfig(write(t, "")); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := agent.LoadConfig(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that is not there was read")
	}
}
