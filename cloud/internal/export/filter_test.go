package export_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

var before = regexp.MustCompile(` n="([0-9]+)" prev="([0-9]+)"`)

// links walks what a sink got, as a SIEM would: it drops doubles and returns the
// numbers behind which something is missing.
func links(t *testing.T, last int, lines []string) (got, missing []int) {
	t.Helper()
	for _, l := range lines {
		m := before.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("a line without its numbers: %.200q", l)
		}
		n, err := strconv.Atoi(m[1])
		must(t, err)
		prev, err := strconv.Atoi(m[2])
		must(t, err)
		if n <= last { // a double
			continue
		}
		if prev != last {
			missing = append(missing, last)
		}
		got, last = append(got, n), n
	}
	return got, missing
}

func fileSink(t *testing.T, f export.Filter) export.Sink {
	t.Helper()
	return export.Sink{Name: "file", Kind: export.KindFile, Format: export.FormatSyslog, Since: "start", Path: filepath.Join(t.TempDir(), "trail"), Filter: f}
}

func linesOf(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// mixed adds one entry of each of four kinds, n times.
func (b *books) mixed(t *testing.T, n int) {
	t.Helper()
	for range n {
		for _, ev := range []fleet.AuditEvent{
			{Tenant: "main", Kind: "device.changed", Severity: "info"},
			{Tenant: "main", Kind: "device.revoked", Severity: "alarm"},
			{Tenant: "other", Kind: "access.refused", Severity: "warn"},
			{Tenant: "main", Kind: "quantum.flux", Severity: "dire"},
		} {
			must(t, b.Audit(t.Context(), ev))
		}
	}
}

// TestFilters: each sink gets what its filter lets pass and nothing else, its
// numbers link, and the cursor moves over the rest.
func TestFilters(t *testing.T) {
	const rounds = 60
	tests := []struct {
		name   string
		filter export.Filter
		want   []int // of each four
	}{
		{"all", export.Filter{}, []int{1, 2, 3, 4}},
		{"tenant", export.Filter{Tenant: "other"}, []int{3}},
		{"severity", export.Filter{Severity: "warn"}, []int{2, 3, 4}},
		{"alarms", export.Filter{Severity: "alarm"}, []int{2, 4}}, // what nobody knows is not kept back
		{"kind", export.Filter{Include: []string{"device.revoked"}}, []int{2}},
		{"word", export.Filter{Include: []string{"device"}}, []int{1, 2}},
		{"class", export.Filter{Include: []string{"1003", "1205"}}, []int{2, 3}},
		{"excluded", export.Filter{Exclude: []string{"device.changed"}}, []int{2, 3, 4}},
		{"both", export.Filter{Include: []string{"device"}, Exclude: []string{"1205"}}, []int{1}},
		{"nothing", export.Filter{Tenant: "nobody"}, nil},
	}
	b := newBooks(t)
	b.mixed(t, rounds)
	var sinks []export.Sink
	for _, tt := range tests {
		sink := fileSink(t, tt.filter)
		sink.Name = tt.name
		must(t, sink.Check())
		sinks = append(sinks, sink)
	}
	x, stop := exporting(t, b, sinks...)
	until(t, "all have what is theirs", func() bool {
		all, err := x.States(t.Context())
		must(t, err)
		for i, s := range all {
			if s.Sent < uint64(rounds*len(tests[i].want)) {
				return false
			}
		}
		return true
	})
	stop()
	all, err := x.States(t.Context())
	must(t, err)
	for i, tt := range tests {
		s := all[i]
		// Where nothing passes the cursor is written now and then.
		if s.Sent != uint64(rounds*len(tt.want)) || s.Sent+s.Skipped+uint64(s.Lag) != 4*rounds || s.Lost != 0 || s.Lag > 3 && len(tt.want) > 0 {
			t.Errorf("%s: got %+v, want %d sent and the rest kept back", tt.name, s, rounds*len(tt.want))
		}
		if len(tt.want) == 0 {
			continue
		}
		got, missing := links(t, 0, linesOf(t, sinks[i].Path))
		if len(missing) != 0 {
			t.Errorf("%s: something is missing behind %v", tt.name, missing)
		}
		for i, n := range got {
			if want := i/len(tt.want)*4 + tt.want[i%len(tt.want)]; n != want {
				t.Fatalf("%s: line %d has number %d, want %d", tt.name, i+1, n, want)
			}
		}
	}
}

// TestFilteredLoss is the twin: what a receiver of a filtered sink lost, or what
// was deleted before it was looked at, is seen.
func TestFilteredLoss(t *testing.T) {
	b, sink := newBooks(t), fileSink(t, export.Filter{Include: []string{"device.revoked"}})
	b.mixed(t, 10)
	_, stop := exporting(t, b, sink)
	until(t, "it has them", func() bool { return len(tryLines(sink.Path)) == 10 })
	stop()
	lines := linesOf(t, sink.Path)
	if _, missing := links(t, 0, append(append([]string{}, lines[:4]...), lines[5:]...)); len(missing) != 1 || missing[0] != 14 {
		t.Errorf("without the fifth line something is missing behind %v, want 14", missing)
	}
	b.mixed(t, 10)        // 41 to 80
	b.forget(t, 53, 54)   // one of them would have passed
	b.forget(t, 100, 200) // nothing
	x, stop := exporting(t, b, sink)
	until(t, "it has the rest", func() bool { return len(tryLines(sink.Path)) >= 19 && state(t, x).Lost == 2 })
	stop()
	if _, missing := links(t, 0, linesOf(t, sink.Path)); len(missing) != 1 || missing[0] != 50 {
		t.Errorf("something is missing behind %v, want 50: entries 53 and 54 were deleted", missing)
	}
}

func tryLines(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestFiltersAreChecked refuses a filter with a slip in it.
func TestFiltersAreChecked(t *testing.T) {
	for name, f := range map[string]export.Filter{
		"severity": {Severity: "high"}, "kind": {Include: []string{"device.revokd"}}, "word": {Exclude: []string{"devices"}}, "class": {Include: []string{"9999"}}, "empty": {Exclude: []string{""}},
	} {
		if err := fileSink(t, f).Check(); err == nil {
			t.Errorf("%s: %+v is taken", name, f)
		}
	}
}
