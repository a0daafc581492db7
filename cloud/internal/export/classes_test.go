package export_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
)

// made are kinds that are put together from a part in the source and a state.
var made = map[string][]string{
	"agent.":   {"agent.stop", "agent.reboot", "agent.factory-reset"},
	"attest.":  {"attest.attested", "attest.degraded", "attest.quarantined", "attest.pending", "attest.stale"},
	"command.": {"command.failed", "command.rejected"},
	"rollout.": {"rollout.submit", "rollout.approve", "rollout.deny", "rollout.start", "rollout.pause", "rollout.resume", "rollout.abort", "rollout.complete"},
	"update.": {
		"update.staged", "update.installed", "update.checking", "update.succeeded", "update.already-installed", "update.failed", "update.rejected", "update.rolled-back",
	},
}

// noKinds are words of the source that look like kinds of events: names of
// checks, files, keys of the spool and of configurations.
var noKinds = regexp.MustCompile(`^((quote|boot|est|tpm|previous|current|operator|bundle|fleet|www)\..*|` +
	`.*\.(json|db|db-wal|key|pub|new|cbor|tar|raucb|html|token|pem|toml|sock|txt|log|part|xml|ico|js|com|example|org|sql)|` +
	`enrol\.(malformed|tls|ek-certificate|key-attributes|tier|challenge|binding|activation|certify|owner|claim|model|ek-duplicate|ek-listed)|` +
	`identity\.(certificate|evidence|copy|keys)|audit\.head|spool\.(lock|beside|db)|command\.floor|telemetry\.samples|release\.(freshness|expiry)|` +
	`device\.(mqtt|https)|update\.(repair|min-rauc-version)|rotate\.ek|a\.b)$`)

var (
	word   = regexp.MustCompile(`"([a-z]+\.[a-z_-]*[a-z])"`)
	prefix = regexp.MustCompile(`"([a-z]+\.)" ?\+`)
)

// TestEveryKindHasAClass reads the source of agent and service: whatever looks
// like a kind of event has a row in the table, and each row has its word.
func TestEveryKindHasAClass(t *testing.T) {
	rows, words := map[string]bool{}, map[string]string{}
	for _, c := range export.Classes() {
		rows[c.Kind] = true
	}
	for _, top := range []string{"agent", "cloud", "provisioning"} {
		err := filepath.WalkDir("../../../"+top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() && slices.Contains([]string{"node_modules", "testdata", "cmd"}, d.Name()) {
				if err == nil {
					err = fs.SkipDir
				}
				return err
			}
			if d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "internal/export/class") {
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range word.FindAllStringSubmatch(string(text), -1) {
				if !noKinds.MatchString(m[1]) {
					words[m[1]] = path
				}
			}
			for _, m := range prefix.FindAllStringSubmatch(string(text), -1) {
				if m[1] != "ad." && m[1] != "detail." && len(made[m[1]]) == 0 {
					t.Errorf("%s: nobody says here which kinds %q makes", path, m[1])
				}
				for _, k := range made[m[1]] {
					words[k] = path
				}
			}
			return nil
		})
		must(t, err)
	}
	if len(words) < 100 {
		t.Fatalf("only %d kinds found: the test looks in the wrong place", len(words))
	}
	for k, path := range words {
		if !rows[k] {
			t.Errorf("%s: the kind %q has no row in class.go", path, k)
		}
	}
	for k := range rows {
		if words[k] == "" {
			t.Errorf("class.go: nobody records the kind %q", k)
		}
	}
}

// TestClasses: ids are there once and go up, kinds fit into a syslog header,
// names into a CEF header.
func TestClasses(t *testing.T) {
	last, kinds := 0, map[string]bool{}
	for _, c := range export.Classes() {
		if c.ID <= last || kinds[c.Kind] || len(c.Kind) > 32 || c.Name == "" || len(c.Name) > 64 || export.EscapeHeader(c.Name) != c.Name {
			t.Errorf("row %+v", c)
		}
		last, kinds[c.Kind] = c.ID, true
	}
}
