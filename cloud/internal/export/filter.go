package export

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Filter says which entries a sink gets. An empty one lets all pass.
type Filter struct {
	Tenant   string // only its entries
	Severity string // at least: info, warn or alarm
	// Kinds of events ("device.revoked"), all that begin with a word ("device"),
	// or classes by their id ("1205"). Only what is included, and never what is
	// excluded.
	Include, Exclude []string
}

// order of the severities; one that nobody knows is above all, so that it is
// not kept back.
func order(severity string) int {
	switch severity {
	case "", "info":
		return 0
	case "warn":
		return 1
	}
	return 2
}

// passes reports whether the sink gets e.
func (f Filter) passes(e fleet.TrailEntry) bool {
	switch {
	case f.Tenant != "" && string(e.Tenant) != f.Tenant, order(e.Severity) < order(f.Severity):
		return false
	case len(f.Include) > 0 && !named(f.Include, e.Kind):
		return false
	}
	return !named(f.Exclude, e.Kind)
}

// named reports whether one of the words is for a kind.
func named(words []string, kind string) bool {
	first, _, _ := strings.Cut(kind, ".")
	return slices.ContainsFunc(words, func(w string) bool {
		if id, err := strconv.Atoi(w); err == nil {
			return of(kind).id == id
		}
		return w == kind || w == first
	})
}

// check refuses words that nothing is called by: a filter with a slip in it
// would keep back what somebody waits for.
func (f Filter) check() error {
	if f.Severity != "" && ranks[f.Severity].syslog == 0 {
		return fmt.Errorf("severity %q: use info, warn or alarm", f.Severity)
	}
	for _, w := range slices.Concat(f.Include, f.Exclude) {
		if !slices.ContainsFunc(classes, func(c class) bool { return named([]string{w}, c.kind) }) {
			return fmt.Errorf("include and exclude: no event is called %.40q: use a kind such as device.revoked, its first word, or the id of a class; docs/siem.md lists them", w)
		}
	}
	return nil
}
