package cloud_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tillward.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLoad reads a file, and what it prints once more.
func TestLoad(t *testing.T) {
	cfg, err := cloud.Load(write(t, `
data_dir = "/srv/tillward"
tenant = "acme"
[device]
names = ["fleet.example", "192.0.2.1"]
[operator]
listen = "127.0.0.1:8080"
plain = true
[metrics]
listen = ""
[[enrol.vendors]]
name = "Vend"
key = "vend.pem"
[[enrol.vendors]]
name = "Wend"
key = "wend.json"
[attest]
every = "90s"
[rollout]
approval = "other"
[[export]]
name = "siem"
kind = "syslog"
format = "cef"
address = "siem.example:6514"
ca = "siem.pem"
[[export]]
name = "disk"
kind = "file"
path = "/var/log/tillward.log"
`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Tenant != "acme" || cfg.Device.MQTT != ":8883" || cfg.Enrol.CertDays != 30 || cfg.Attest.Every.Duration != 90*time.Second || !cfg.Operator.Plain || cfg.Rollout.Approval != cloud.ApprovalOther || len(cfg.Enrol.Vendors) != 2 || cfg.Enrol.Vendors[1].Key != "wend.json" || len(cfg.Export) != 2 || cfg.Export[1].Path != "/var/log/tillward.log" {
		t.Errorf("got %+v", cfg)
	}
	again, err := cloud.Load(write(t, cfg.String()))
	if err != nil || again.String() != cfg.String() {
		t.Errorf("the printed file read again: got %s, %v, want %s", again, err, cfg)
	}
	if err := cloud.DefaultConfig().Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
}

// badExports are what is wrong with a sink.
var badExports = map[string]string{
	"[[export]]\nname = 'A'":                                                                                 "name: use up to 32",
	"[[export]]\nname = 'a'\nkind = 'smoke'":                                                                 "kind \"smoke\": use syslog, file or webhook",
	"[[export]]\nname = 'a'\ncolour = 'red'":                                                                 "unknown key",
	"[[export]]\nname = 'a'\nkind = 'file'\npath = '/x'\nformat = 'xml'":                                     "use rfc5424, cef or ocsf",
	"[[export]]\nname = 'a'\nkind = 'file'\npath = '/x'\nsince = 'noon'":                                     "use start, or now",
	"[[export]]\nname = 'a'\nkind = 'file'\npath = 'x'":                                                      "an absolute path",
	"[[export]]\nname = 'a'\nkind = 'file'\npath = '/x'\naddress = 'b:1'":                                    "belong to kind syslog",
	"[[export]]\nname = 'a'\nkind = 'syslog'\naddress = 'siem'":                                              "6514 is the port",
	"[[export]]\nname = 'a'\nkind = 'syslog'\naddress = 'siem:6514'":                                         "ca: name the PEM file",
	"[[export]]\nname = 'a'\nkind = 'syslog'\naddress = 'siem:6514'\nca = 'a'\ncert = 'b'":                   "give both or neither",
	"[[export]]\nname = 'a'\nkind = 'webhook'\nurl = 'http://siem'\nsecret_file = 's'":                       "give an https:// address",
	"[[export]]\nname = 'a'\nkind = 'webhook'\nurl = 'https://siem'":                                         "secret: name a file",
	"[[export]]\nname = 'a'\nkind = 'file'\npath = '/x'\n[[export]]\nname = 'a'\nkind = 'file'\npath = '/y'": "another sink has its name",
}

func TestBadConfigs(t *testing.T) {
	texts := map[string]string{
		"colour = 'red'":     "unknown key",
		"[device]\nport = 1": "port",
		"tenant = [":         "1|",
		"tenant = 5":         "tenant",
		"data_dir = ''":      "data_dir: name a folder",
		"tenant = ''":        "tenant \"\"",
		"tenant = 'Acme'":    "lower-case",
		"tenant = 'a/b'":     "tenant \"a/b\"",
		"tenant = '+'":       "tenant",
		"tenant = '" + strings.Repeat("a", 33) + "'":     "up to 32",
		"log_level = 'loud'":                             "use debug, info, warn or error",
		"[device]\nnames = []":                           "device.names",
		"[device]\nnames = ['a', '']":                    "device.names",
		"[device]\nmqtt = '8883'":                        "device.mqtt \"8883\": give host:port",
		"[device]\nhttps = ':https-port'":                "device.https",
		"[device]\nhttps = ':70000'":                     "device.https",
		"[device]\nmax_clients = 0":                      "max_clients 0",
		"[operator]\nlisten = 'localhost'":               "operator.listen",
		"[operator]\nplain = true":                       "operator.plain: only allowed when",
		"[operator]\nplain = true\nlisten = '0.0.0.0:1'": "operator.plain",
		"[operator]\ncert = 'a.pem'":                     "give both or neither",
		"[operator]\nkey = 'a.pem'":                      "give both or neither",
		"[metrics]\nlisten = ':9464'":                    "metrics.listen",
		"[metrics]\nlisten = '192.0.2.1:9464'":           "loopback",
		"[enrol]\ncert_days = 0":                         "between 1 and 90",
		"[enrol]\ncert_days = 91":                        "between 1 and 90",
		"[[enrol.vendors]]\nname = 'Vend'":               "give each vendor's name",
		"[[enrol.vendors]]\nkey = 'vend.pem'":            "give each vendor's name",
		"[[enrol.vendors]]\nname = 'V'\ncolour = 'red'":  "unknown key",
		"owner_name = '" + strings.Repeat("a", 65) + "'": "at most 64",
		"[attest]\nevery = '15'":                         "is not a duration such as",
		"[attest]\nevery = '10ms'":                       "at least 1s",
		"[peripheral]\npaper_soon = '-2h'":               "give a time, or 0s for never",
		"[rollout]\napproval = 'me'":                     "use none, or other",
		"[rollout]\napproval = ''":                       "use none, or other",
	}
	maps.Copy(texts, badExports)
	for text, want := range texts {
		path := write(t, text)
		_, err := cloud.Load(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want an error that names the file and %q", text, err, want)
		}
	}
	if _, err := cloud.Load(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that is not there was read")
	}
}
