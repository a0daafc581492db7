package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestWaveFlag(t *testing.T) {
	for in, want := range map[string]string{
		"rest":                                  `{"name":"rest"}`,
		"canary=till1,till2;soak=1h":            `{"filter":{"devices":["till1","till2"]},"name":"canary","soak_s":3600}`,
		" canary = till1 , till2 ":              `{"filter":{"devices":["till1","till2"]},"name":"canary"}`,
		"10%;soak=30m":                          `{"name":"10%","percent":10,"soak_s":1800}`,
		"12.5%":                                 `{"name":"12.5%","percent":12.5}`,
		"north;site=oslo;group=g;model=m":       `{"filter":{"group":"g","model":"m","site":"oslo"},"name":"north"}`,
		"tenth;percent=10%;success=99;bad=1":    `{"gate":{"bad":1,"success":99},"name":"tenth","percent":10}`,
		"a;max-failed=2;min-sample=5;health=-1": `{"gate":{"bad_cap":2,"health":-1,"min_sample":5},"name":"a"}`,
		"a;site-bad=1;":                         `{"gate":{"site_bad":1},"name":"a"}`,
	} {
		got, err := parseWave(in)
		b, jerr := json.Marshal(got)
		if err != nil || jerr != nil || string(b) != want {
			t.Errorf("%q: got %s, %v, want %s", in, b, err, want)
		}
	}
	for _, bad := range []string{"", ";soak=1h", "x%", "nan%", "a;success=inf", "a=;soak=1h", "a;soak=soon", "a;soak=1ms", "a;colour=red", "a;soak", "a;percent=many", "a;max-failed=few"} {
		if got, err := parseWave(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestRateFlag(t *testing.T) {
	got, err := parseRate("50; factor=2 ;every=1000;max=400")
	if err != nil || got["base"] != 50.0 || got["factor"] != 2.0 || got["every"] != 1000 || got["max"] != 400.0 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "fast", "50;factor", "50;colour=red", "50;every=x"} {
		if got, err := parseRate(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

// TestBoard draws a rollout: no bad and no silent device is rounded away, and bars are as wide as they are.
func TestBoard(t *testing.T) {
	soaked := time.Date(2026, 11, 26, 12, 0, 0, 0, time.Local)
	r := rollout{
		ID: "ro_1", Release: "agent/1.2.3", State: "RUNNING", Total: 10_000, Good: 199, Bad: 1, Unreachable: 3000,
		Waves: []wave{{Name: "canary", State: "SOAKING", SoakedAt: &soaked, SoakS: 3600, Total: 2, Good: 2}, {Name: "rest", State: "PENDING", Total: 9998, Good: 197, Bad: 1, Unreachable: 3000}},
		Holds: []hold{{Model: "vend-9", Reason: "3 of 20 ended badly"}, {Site: "oslo", Reason: "over", ReleasedAt: &soaked}}, ETA: &soaked,
	}
	r.Bytes = &struct {
		Wire   uint64 `json:"wire"`
		Peer   uint64 `json:"peer"`
		Medium uint64 `json:"medium"`
		Reused uint64 `json:"reused"`
	}{5 << 20, 2 << 30, 0, 1500}
	got := strings.Join(board(r, 10), "\n")
	want := strings.TrimPrefix(`
ro_1  agent/1.2.3  RUNNING
  canary     [##########]  2 of 2 done, 0 bad, 0 unreachable  SOAKING, until Nov 26 13:00
  rest       [!???......]  197 of 9998 done, 1 bad, 3000 unreachable  PENDING
  all of it  [!???......]  199 of 10000 done, 1 bad, 3000 unreachable
  held: vend-9: 3 of 20 ended badly
  bytes: 5.0 MiB from the service, 2.0 GiB from tills of the site, 0 B from sticks, 1.5 KiB found there
  done by Nov 26 12:00 at this pace`, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, c := range []struct {
		good, bad, silent, total int
		want                     string
	}{
		{0, 0, 0, 0, ".........."}, {1, 1, 1, 3, "###!!!???."}, {0, 10, 0, 10, "!!!!!!!!!!"}, {9999, 1, 0, 10000, "#########!"}, {0, 9999, 1, 10000, "!!!!!!!!!?"}, {5, 0, 0, 10, "#####....."},
	} {
		if got := barOf(c.good, c.bad, c.silent, c.total, 10); len(got) != 10 || got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}

// TestBoardIsOneLineALine: neither what a device said nor a narrow terminal moves the cursor elsewhere.
func TestBoardIsOneLineALine(t *testing.T) {
	r := rollout{ID: "ro_1", Release: "agent/1.2.3", State: "PAUSED", Reason: "a\x1b[2J\nb\tc", Waves: []wave{{Name: "all", State: "FAILED"}}}
	lines := board(r, 30)
	if len(lines) != 2 || lines[0] != "ro_1  agent/1.2.3  PAUSED: a [2J b c" {
		t.Errorf("got %q", lines)
	}
	fit(lines, 20)
	if lines[0] != "ro_1  agent/1.2.3  " || len(lines[1]) != 19 {
		t.Errorf("got %q", lines)
	}
	if got := tab("x", "", "\x1b]0;title\x07y\tz"); got != "x\t-\t ]0;title y z" {
		t.Errorf("got %q", got)
	}
}
