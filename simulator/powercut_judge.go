package simulator

import (
	"fmt"
	"slices"
	"strings"
)

// running is what runs of a component: as the till says, or as its disk and its
// processes show.
type running struct {
	Component string `json:"component"`
	Version   string `json:"version"`
	Slot      string `json:"slot"`
	Hash      string `json:"hash"`
	Trial     bool   `json:"trial"`
}

// trailed is an event of an execution in the till's trail.
type trailed struct {
	Seq           uint64
	Kind, Subject string
}

// facts are what a cut is judged by.
type facts struct {
	component string
	old, new  string
	fate      string

	back   bool      // the till was heard after the cut, attested
	said   []running // in its first report after it
	ran    []string  // versions of the component that did run since the cut, by what was on the disk
	beside running   // the other component, which nobody touches

	ended       bool
	state       string // how the execution ended
	reason      string
	trust       string
	told        []running // in the end
	truth       []running // in the end, by disk and processes
	sells       string    // version that the application runs
	answers     bool      // it carried out a command
	chain       bool      // the service has its trail whole
	behind      bool      // the service has not all of it
	trail       []trailed // of the execution, oldest first
	unexplained []error   // what could not be found out
}

// judge says what is wrong; nothing when the till came back working on the old
// or the new version and said so truthfully.
func (f facts) judge() (wrong []string) {
	add := func(bad bool, format string, args ...any) {
		if bad {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	for _, err := range f.unexplained {
		add(true, "%v", err)
	}
	if !f.back {
		return append(wrong, "it did not come back")
	}
	first := of(f.said, f.component)
	add(first.Version != f.old && first.Version != f.new, "it came back on %q, neither %s nor %s", first.Version, f.old, f.new)
	add(!slices.Contains(f.ran, first.Version), "it came back and said that %q runs, and what ran was %q", first.Version, f.ran)
	if b := of(f.said, f.beside.Component); f.beside.Version != "" {
		add(b.Version != f.beside.Version, "of %s it said %q, and nobody had touched %s", f.beside.Component, b.Version, f.beside.Version)
	}
	if !f.ended {
		return append(wrong, "the update did not end")
	}
	want := f.old
	if f.state == "SUCCEEDED" || f.state == "ALREADY_INSTALLED" {
		want = f.new
	}
	add(!slices.Contains([]string{"SUCCEEDED", "ROLLED_BACK", "FAILED"}, f.state), "the update ended %s", f.state)
	for _, real := range f.truth {
		told := of(f.told, real.Component)
		add(told != real, "it says %+v, and what runs is %+v", told, real)
		add(real.Trial, "%s is still on trial", real.Component)
		switch real.Component {
		case f.component:
			add(real.Version != want, "%s runs %q; the update ended %s, so it should be %s", real.Component, real.Version, f.state, want)
		case f.beside.Component:
			add(real.Version != f.beside.Version, "%s runs %q, and nobody had touched %s", real.Component, real.Version, f.beside.Version)
		}
		add(real.Component == posComponent && f.sells != real.Version, "the application that runs is %q, not %q", f.sells, real.Version)
	}
	add(of(f.truth, f.component).Component == "", "nothing of %s runs", f.component)
	add((f.fate == dead || f.fate == sick && f.component == posComponent) && want == f.new, "a release that does not work was kept")
	add(f.trust != "attested", "it is %s, not attested", f.trust)
	add(!f.answers, "it carries out no command")
	add(!f.chain, "its audit trail is not whole")
	add(f.behind, "the service has not got all of its audit trail")
	return append(wrong, f.once()...)
}

// once looks for an update that ran on after its end, or ended in two ways.
func (f facts) once() (wrong []string) {
	end := ""
	for _, e := range f.trail {
		switch e.Kind {
		case "update.succeeded", "update.failed", "update.rolled-back", "update.rejected", "update.already-installed":
			if end != "" && end != e.Kind {
				wrong = append(wrong, fmt.Sprintf("its trail says %s after %s", e.Kind, end))
			}
			end = e.Kind
		case "update.offered", "update.staged", "update.installed", "update.trial", "update.checking":
			if end != "" {
				wrong = append(wrong, fmt.Sprintf("it ran again: its trail says %s after %s", e.Kind, end))
			}
		}
	}
	if want := "update." + strings.ToLower(strings.ReplaceAll(f.state, "_", "-")); end != want {
		wrong = append(wrong, fmt.Sprintf("the service says %s, and the till's trail %q", f.state, end))
	}
	return wrong
}

// of finds a component.
func of(list []running, component string) running {
	for _, r := range list {
		if r.Component == component {
			return r
		}
	}
	return running{}
}
