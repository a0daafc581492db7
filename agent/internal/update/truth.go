package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
)

// Component is a thing that is updated by itself.
type Component struct {
	Name  string // agent, os/{model}/{channel}, ops/{tenant}/{name}
	Class string
}

// Running is what runs of a component.
type Running struct {
	Component
	Truth
}

// floors is floors.json, apart from the journal: the highest version of each
// component that was ever kept. Below it nothing is installed, whatever runs.
type floors map[string]floor

type floor struct {
	Class   string `json:"class"`
	Version string `json:"version"`
}

// raise notes that a version was kept. Nothing lowers a floor.
func (m *Machine) raise(o Offer) error {
	f := m.floors()
	if was := f[o.component()]; was.Version != "" && older(o.Version, was.Version) || was == (floor{o.class(), o.Version}) {
		return nil
	}
	m.o.Step("raise floor")
	f[o.component()] = floor{o.class(), o.Version}
	return save(filepath.Join(m.o.Dir, "floors.json"), f)
}

// floors reads them. A file that cannot be read would stop the till's updates
// for ever: then what runs is the floor.
func (m *Machine) floors() floors {
	f := floors{}
	err := load(filepath.Join(m.o.Dir, "floors.json"), &f)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return f
	}
	m.o.Log.Error("the floors of the components are unreadable and begin anew at what runs", slog.Any("err", err))
	f = floors{}
	for _, r := range m.Truth() {
		if !r.Trial {
			f[r.Name] = floor{r.Class, r.Version}
		}
	}
	return f
}

// Forget removes the floors of components whose names begin with prefix from
// the folder of a machine that does not run: they were another owner's.
func Forget(dir, prefix string) error {
	f := floors{}
	file := filepath.Join(dir, "floors.json")
	err := load(file, &f)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil { // nobody reads it any more
		return os.Remove(file)
	}
	maps.DeleteFunc(f, func(name string, _ floor) bool { return strings.HasPrefix(name, prefix) })
	return save(file, f)
}

// older reports whether version a comes before b.
func older(a, b string) bool { return semver.Compare("v"+a, "v"+b) < 0 }

// running asks the handler of a class what runs of a component.
func (m *Machine) running(ctx context.Context, class, component string) (Truth, error) {
	h := m.o.Handlers[class]
	if h == nil {
		return Truth{}, Fail("no-handler", "this box has nothing that installs the class %q", class)
	}
	t, err := h.Running(ctx, component)
	if err != nil {
		return t, fmt.Errorf("what runs of %s: %w", component, err)
	}
	return t, nil
}

// Look finds out anew what runs, as on every connect.
func (m *Machine) Look(ctx context.Context) { m.look(ctx) }

func (m *Machine) look(ctx context.Context) {
	m.looking.Lock()
	defer m.looking.Unlock()
	all := map[string]string{}
	for name, c := range m.floors() {
		all[name] = c.Class
	}
	for _, c := range m.o.Installed {
		all[c.Name] = c.Class
	}
	var out []Running
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t, err := m.running(ctx, all[name], name)
		if err != nil {
			m.o.Log.Warn("a component does not say what runs", slog.String("component", name), slog.Any("err", err))
			continue
		}
		if t.Version != "" {
			out = append(out, Running{Component{name, all[name]}, t})
		}
	}
	if m.o.Given != nil {
		given := m.o.Given()
		for _, name := range slices.Sorted(maps.Keys(given)) {
			out = append(out, Running{Component{Name: name}, Truth{Version: given[name]}})
		}
	}
	m.mu.Lock()
	m.truths, m.settled = out, true
	m.mu.Unlock()
}

// requires checks what a release needs to be there.
func (m *Machine) requires(needs map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		have := ""
		for _, r := range m.Truth() {
			if r.Name == name || name == r.Class && strings.HasPrefix(r.Name, name+"/") {
				have = r.Version
			}
		}
		switch {
		case have == "":
			return Refuse("requires", "needs %s %s, and nothing of it is here", name, needs[name])
		case older(have, needs[name]):
			return Refuse("requires", "needs %s %s, and %s runs", name, needs[name], have)
		}
	}
	return nil
}
