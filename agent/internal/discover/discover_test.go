package discover_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tillward/tillward/agent/internal/discover"
)

const roots = "/etc/tillward/service-roots.pem"

var image = discover.Service{Enrol: "https://image.example:8444", ServerName: "fleet.example", Roots: roots, Claim: "IMAGE-1"}

// place is a box: what its stick holds, what its DHCP clients left.
type place struct {
	dir string
	log bytes.Buffer
	o   discover.Options
}

func box(t *testing.T) *place {
	t.Helper()
	p := &place{dir: t.TempDir()}
	p.o = discover.Options{
		Files:  []string{filepath.Join(p.dir, "boot", "*.toml"), filepath.Join(p.dir, "media", "*", "tillward-service.toml")},
		Leases: []string{filepath.Join(p.dir, "leases", "*")}, Default: image,
		Log: slog.New(slog.NewTextHandler(&p.log, nil)),
	}
	return p
}

func (p *place) put(t *testing.T, name, text string) {
	t.Helper()
	name = filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *place) find(t *testing.T) discover.Service {
	t.Helper()
	s, err := discover.Find(t.Context(), p.o)
	if err != nil {
		t.Fatal(err)
	}
	s.Source = strings.Replace(s.Source, p.dir+"/", "", 1)
	return s
}

// sztp is the option with these URIs, in hexadecimal.
func sztp(uris ...string) string {
	var b []byte
	for _, u := range uris {
		b = append(append(b, byte(len(u)>>8), byte(len(u))), u...)
	}
	return hex.EncodeToString(b)
}

// colons is how dhclient prints bytes.
func colons(s string) string {
	var parts []string
	for i := 0; i < len(s); i += 2 {
		parts = append(parts, strings.TrimPrefix(s[i:i+2], "0"))
	}
	return strings.Join(parts, ":")
}

// TestOrder adds sources from the last to the first; each one added wins.
func TestOrder(t *testing.T) {
	p := box(t)
	for _, step := range []struct {
		put, text string
		want      discover.Service
	}{
		{"", "", discover.Service{Enrol: "https://image.example:8444", ServerName: "fleet.example", Roots: roots, Claim: "IMAGE-1", Source: "image"}},
		{"leases/2", "OPTION_143=" + sztp("https://dhcp.example:8444") + "\n", discover.Service{
			Enrol: "https://dhcp.example:8444", ServerName: "fleet.example", Roots: roots, Claim: "IMAGE-1", Source: "dhcp leases/2",
		}},
		{"media/STICK/tillward-service.toml", "enrol = \"https://Stick.example:9000/\"\n", discover.Service{
			Enrol: "https://stick.example:9000", ServerName: "fleet.example", Roots: roots, Claim: "IMAGE-1", Source: "file media/STICK/tillward-service.toml",
		}},
		{"boot/a.toml", "enrol = \"https://[2001:db8::1]:8444\"\nserver_name = \"boot.example\"\nclaim = \"ABCD-EFGH\"\n", discover.Service{
			Enrol: "https://[2001:db8::1]:8444", ServerName: "boot.example", Roots: roots, Claim: "ABCD-EFGH", Source: "file boot/a.toml",
		}},
	} {
		if step.put != "" {
			p.put(t, step.put, step.text)
		}
		if got := p.find(t); got != step.want {
			t.Errorf("with %s: got %+v, want %+v", step.put, got, step.want)
		}
	}
	if p.log.Len() > 0 {
		t.Errorf("logged %s", &p.log)
	}
}

// TestLeases reads what each DHCP client leaves.
func TestLeases(t *testing.T) {
	a, b := sztp("https://a.example:8444"), sztp("https://b.example:8444")
	for name, tc := range map[string]struct{ text, want string }{
		"networkd":         {"# This is private data. Do not parse.\nADDRESS=10.0.2.15\nOPTION_143=" + a + "\n", "https://a.example:8444"},
		"networkd private": {"ADDRESS=10.0.2.15\nOPTION_224=" + a + "\n", "https://a.example:8444"},
		"udhcpc":           {"sztp=" + strings.ToUpper(a) + "\n", "https://a.example:8444"},
		"dhclient":         {"lease {\n  interface \"eth0\";\n  option sztp-redirect " + colons(a) + ";\n}\n", "https://a.example:8444"},
		"dhclient unknown": {"lease {\n  option unknown-143 " + colons(a) + ";\n}\n", "https://a.example:8444"},
		"the newest":       {"lease {\n  option unknown-143 " + colons(a) + ";\n}\nlease {\n  option unknown-143 " + colons(b) + ";\n}\n", "https://b.example:8444"},
		"gone since":       {"lease {\n  option unknown-143 " + colons(a) + ";\n}\nlease {\n  option routers 10.0.0.1;\n}\n", image.Enrol},
		"first usable":     {"sztp=" + sztp("https://a.example/restconf", "http://b.example:1", "https://c.example:8444", "https://d.example:8444"), "https://c.example:8444"},
		"no option":        {"ADDRESS=10.0.2.15\nOPTION_225=" + a + "\n", image.Enrol},
		"empty option":     {"sztp=\n", image.Enrol},
		"nothing":          {"", image.Enrol},
	} {
		t.Run(name, func(t *testing.T) {
			p := box(t)
			p.put(t, "leases/x", tc.text)
			if got := p.find(t); got.Enrol != tc.want || p.log.Len() > 0 {
				t.Errorf("got %+v, want %s; logged %q", got, tc.want, &p.log)
			}
		})
	}
}

// TestPassOver breaks a source in one way; it must be named, and the next one taken.
func TestPassOver(t *testing.T) {
	const good = "enrol = \"https://x.example:8444\"\n"
	enrol := func(u string) string { return fmt.Sprintf("enrol = %q\n", u) }
	for name, tc := range map[string]struct{ file, text, want string }{
		"http":            {"boot/a.toml", enrol("http://x.example:8444"), "begins with"},
		"no scheme":       {"boot/a.toml", enrol("x.example:8444"), "write https://host:port"},
		"no host":         {"boot/a.toml", enrol("https://:8444"), "host"},
		"odd host":        {"boot/a.toml", enrol("https://x_y.example:8444"), "host"},
		"zone":            {"boot/a.toml", enrol("https://[fe80::1%25eth0]:8444"), "host"},
		"no port":         {"boot/a.toml", enrol("https://x.example"), "port"},
		"port 0":          {"boot/a.toml", enrol("https://x.example:0"), "port"},
		"port too high":   {"boot/a.toml", enrol("https://x.example:65536"), "port"},
		"user":            {"boot/a.toml", enrol("https://u:hunter2@x.example:8444"), "user or password"},
		"query":           {"boot/a.toml", enrol("https://x.example:8444?a=b"), "follows the port"},
		"empty query":     {"boot/a.toml", enrol("https://x.example:8444?"), "follows the port"},
		"fragment":        {"boot/a.toml", enrol("https://x.example:8444/#a"), "follows the port"},
		"path":            {"boot/a.toml", enrol("https://x.example:8444/restconf"), "follows the port"},
		"long":            {"boot/a.toml", enrol("https://" + strings.Repeat("x", 300) + ":1"), "at most"},
		"long label":      {"boot/a.toml", enrol("https://" + strings.Repeat("x", 64) + ".example:1"), "host"},
		"control":         {"boot/a.toml", "enrol = \"https://x.example:8444\\u0000\"\n", "not an address"},
		"no enrol":        {"boot/a.toml", "claim = \"ABCD\"\n", "no enrol"},
		"roots":           {"boot/a.toml", good + "claim = \"hunter2\"\nroots = \"/media/own.pem\"\n", `line 3: unknown key \"roots\"`},
		"roots in it":     {"boot/a.toml", good + "[service]\nroots = \"/media/own.pem\"\n", "line 2: unknown key"},
		"insecure":        {"boot/a.toml", good + "insecure = true\n", "line 2: unknown key"},
		"server name":     {"boot/a.toml", good + "server_name = \"*\"\n", "server_name"},
		"claim":           {"boot/a.toml", good + "claim = \"hunter2 hunter2\"\n", "claim: write the code"},
		"short claim":     {"boot/a.toml", good + "claim = \"abc\"\n", "claim: write the code"},
		"long claim":      {"boot/a.toml", good + "claim = \"" + strings.Repeat("a", 65) + "\"\n", "claim: write the code"},
		"not TOML":        {"boot/a.toml", good + "claim = hunter2\n", "line 2"},
		"wrong type":      {"boot/a.toml", "enrol = 1\n", "line 1"},
		"oversize":        {"boot/a.toml", good + strings.Repeat("#", 16<<10), "larger than 16384"},
		"lease: http":     {"leases/2", "sztp=" + sztp("http://x.example:8444"), "begins with"},
		"lease: user":     {"leases/2", "sztp=" + sztp("https://u:hunter2@x.example:8444"), "user or password"},
		"lease: cut":      {"leases/2", "sztp=" + sztp("https://x.example:8444")[:20], "cut off"},
		"lease: cut 2":    {"leases/2", "sztp=" + sztp("https://x.example:8444") + "00", "cut off within a length"},
		"lease: no URI":   {"leases/2", "sztp=0000", "empty URI"},
		"lease: many":     {"leases/2", "sztp=" + strings.Repeat("000161", 17), "more than"},
		"lease: no hex":   {"leases/2", "sztp=https://x.example:8444", "not hexadecimal"},
		"lease: text":     {"leases/2", "lease {\n option unknown-143 \"https\";\n}", "not hexadecimal"},
		"lease: oversize": {"leases/2", "sztp=" + sztp("https://x.example:8444") + strings.Repeat("\n", 256<<10), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			p := box(t)
			p.put(t, tc.file, tc.text)
			if got := p.find(t); got.Source != "image" || got.Roots != roots || got.Enrol != image.Enrol || got.ServerName != image.ServerName || got.Claim != image.Claim {
				t.Errorf("got %+v, want the image's", got)
			}
			log := p.log.String()
			if !strings.Contains(strings.ReplaceAll(log, `\\\"`, `\"`), tc.want) || !strings.Contains(log, tc.file) {
				t.Errorf("logged %q, want %q and the name of the file", log, tc.want)
			}
			if strings.Contains(log, "hunter2") {
				t.Errorf("a secret is logged: %s", log)
			}
		})
	}
}

// TestNotRegular reads neither links nor pipes nor folders from a stick.
func TestNotRegular(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, p *place, path string) error{
		"link": func(t *testing.T, p *place, path string) error {
			p.put(t, "elsewhere", "enrol = \"https://x.example:8444\"\n")
			return os.Symlink(filepath.Join(p.dir, "elsewhere"), path)
		},
		"pipe":   func(_ *testing.T, _ *place, path string) error { return syscall.Mkfifo(path, 0o600) },
		"folder": func(_ *testing.T, _ *place, path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			p := box(t)
			if err := os.Mkdir(filepath.Join(p.dir, "boot"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := make(t, p, filepath.Join(p.dir, "boot", "a.toml")); err != nil {
				t.Fatal(err)
			}
			if got := p.find(t); got.Source != "image" || !strings.Contains(p.log.String(), "boot/a.toml") {
				t.Errorf("got %+v, logged %s", got, &p.log)
			}
		})
	}
}

// TestNextFile takes the second stick when the first is wrong, and DHCP when both are.
func TestNextFile(t *testing.T) {
	p := box(t)
	p.put(t, "media/A/tillward-service.toml", "enrol = \"http://a.example:1\"\n")
	p.put(t, "media/B/tillward-service.toml", "enrol = \"https://b.example:1\"\n")
	p.put(t, "leases/1", "sztp="+sztp("https://c.example:1"))
	if got := p.find(t); got.Enrol != "https://b.example:1" {
		t.Errorf("got %+v, want b", got)
	}
	p.put(t, "media/B/tillward-service.toml", "")
	if got := p.find(t); got.Enrol != "https://c.example:1" {
		t.Errorf("got %+v, want c", got)
	}
}

// TestNone says what was wrong with each source when none is left.
func TestNone(t *testing.T) {
	p := box(t)
	p.o.Default.Enrol = ""
	p.put(t, "boot/a.toml", "enrol = \"http://a.example:1\"\n")
	_, err := discover.Find(t.Context(), p.o)
	if !errors.Is(err, discover.ErrNone) || !strings.Contains(err.Error(), "boot/a.toml") || !strings.Contains(err.Error(), "143") {
		t.Errorf("got %v", err)
	}
	p.o.Default.Enrol = "http://image.example:1"
	if _, err := discover.Find(t.Context(), p.o); !errors.Is(err, discover.ErrNone) || !strings.Contains(err.Error(), "service.enrol") {
		t.Errorf("a wrong image: got %v", err)
	}
	p.o.Default = discover.Service{Enrol: image.Enrol}
	if s, err := discover.Find(t.Context(), p.o); err == nil {
		t.Errorf("without pinned roots: got %+v", s)
	}
	p.o.Default, p.o.Files = image, []string{"["}
	if got := p.find(t); got.Source != "image" || !strings.Contains(p.log.String(), "pattern") {
		t.Errorf("a wrong pattern: got %+v, logged %s", got, &p.log)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p = box(t)
	p.put(t, "boot/a.toml", "")
	if _, err := discover.Find(ctx, p.o); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: got %v", err)
	}
}

// TestManyFiles bounds what a stick can make the box read.
func TestManyFiles(t *testing.T) {
	p := box(t)
	for i := range 20 {
		p.put(t, fmt.Sprintf("boot/%02d.toml", i), "")
	}
	p.put(t, "boot/99.toml", "enrol = \"https://x.example:1\"\n")
	if got := p.find(t); got.Source != "image" || !strings.Contains(p.log.String(), "21 files match") {
		t.Errorf("got %+v, logged %s", got, &p.log)
	}
}

// TestLogValue keeps the claim code out of logs.
func TestLogValue(t *testing.T) {
	var b bytes.Buffer
	s := image
	s.Claim = "hunter2"
	slog.New(slog.NewTextHandler(&b, nil)).Info("found", slog.Any("service", s))
	if strings.Contains(b.String(), "hunter2") || !strings.Contains(b.String(), image.Enrol) {
		t.Errorf("logged %s", &b)
	}
}
