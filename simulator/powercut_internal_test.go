package simulator

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rooted is for what needs loop devices.
func rooted(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("power cuts need root, for loop devices")
	}
}

// put replaces a file as programs do, with or without care.
func put(t *testing.T, dir, name string, sync bool) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name+".new")) // #nosec G304 -- the test's own
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.WriteString(strings.Repeat("till\n", 1000)); err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close(), os.Rename(f.Name(), filepath.Join(dir, name)))
	if err == nil && sync {
		err = tool("sync", dir)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A cut keeps what was synced. Of the rest it takes what it is told to, or the
// disk is kinder than a till's; and it does so while somebody holds our mounts.
func TestDisk(t *testing.T) {
	rooted(t)
	for _, lost := range []loss{everything, content, nothing} {
		t.Run(lost.String(), func(t *testing.T) {
			r, err := newRack(t.TempDir(), 1)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := r.close(); err != nil {
					t.Error(err)
				}
			}()
			d, err := r.add("disk", filepath.Join(t.TempDir(), "disk"), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"careful", "later"} {
				put(t, d.dir, name, true)
			}
			holder := exec.Command("unshare", "-m", "sh", "-c", "echo; read _")
			in, err1 := holder.StdinPipe()
			out, err2 := holder.StdoutPipe()
			if err := errors.Join(err1, err2, holder.Start()); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = errors.Join(in.Close(), holder.Wait()) }()
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			put(t, d.dir, "careless", false)
			if err := errors.Join(d.cut(lost), d.mount()); err != nil {
				t.Fatal(err)
			}
			whole := func(name string) bool {
				b, err := os.ReadFile(filepath.Join(d.dir, name))
				return err == nil && string(b) == strings.Repeat("till\n", 1000)
			}
			if !whole("careful") || !whole("later") {
				t.Error("what was synced is lost")
			}
			if got, want := whole("careless"), lost == nothing; got != want {
				t.Errorf("what was not synced is whole: %v, want %v", got, want)
			}
			if _, err := os.Stat(filepath.Join(d.dir, "careless")); (err == nil) != (lost != everything) {
				t.Errorf("its name: %v", err)
			}
			put(t, d.dir, "after", true)
		})
	}
}

// Whatever a till may do wrong after a cut is noticed.
func TestJudge(t *testing.T) {
	agent := func(version, slot string) running {
		return running{Component: "agent", Version: version, Slot: slot, Hash: "h" + version}
	}
	pos := running{Component: posComponent, Version: "1.0.3", Slot: "1.0.3", Hash: "h"}
	trail := func(kinds ...string) (all []trailed) {
		for _, k := range kinds {
			all = append(all, trailed{Kind: "update." + k})
		}
		return all
	}
	well := func() facts {
		return facts{
			component: "agent", old: "1", new: "2", fate: good, back: true, said: []running{agent("1", "a"), pos}, ran: []string{"golden", "1"}, beside: pos,
			ended: true, state: "SUCCEEDED", trust: "attested", told: []running{agent("2", "b"), pos}, truth: []running{agent("2", "b"), pos}, sells: "1.0.3",
			answers: true, chain: true, trail: trail("offered", "staged", "trial", "trial", "checking", "succeeded", "succeeded"),
		}
	}
	if wrong := well().judge(); len(wrong) != 0 {
		t.Fatalf("nothing is wrong, and it says %q", wrong)
	}
	undone := well()
	undone.fate, undone.state, undone.told, undone.truth, undone.trail = dead, "ROLLED_BACK", []running{agent("1", "a"), pos}, []running{agent("1", "a"), pos}, trail("offered", "trial", "rolled-back")
	if wrong := undone.judge(); len(wrong) != 0 {
		t.Fatalf("nothing is wrong with going back, and it says %q", wrong)
	}
	for want, spoil := range map[string]func(*facts){
		"did not come back":             func(f *facts) { f.back = false },
		"neither 1 nor 2":               func(f *facts) { f.said, f.ran = []running{agent("0", "golden"), pos}, []string{"0"} },
		"said that \"2\" runs":          func(f *facts) { f.said = []running{agent("2", "b"), pos} },
		"nobody had touched 1.0.3":      func(f *facts) { f.said = []running{agent("1", "a")} },
		"did not end":                   func(f *facts) { f.ended = false },
		"the update ended REJECTED":     func(f *facts) { f.state, f.trail = "REJECTED", trail("rejected") },
		"it says {Component:agent":      func(f *facts) { f.told = []running{agent("1", "a"), pos} },
		"Slot:a":                        func(f *facts) { f.told = []running{agent("2", "a"), pos} },
		"still on trial":                func(f *facts) { f.truth[0].Trial, f.told[0].Trial = true, true },
		"so it should be 2":             func(f *facts) { f.told, f.truth = []running{agent("1", "a"), pos}, []running{agent("1", "a"), pos} },
		"so it should be 1":             func(f *facts) { f.state, f.trail = "FAILED", trail("failed") },
		"of agent runs":                 func(f *facts) { f.truth = []running{pos} },
		"agent runs \"\"":               func(f *facts) { f.truth[0].Version, f.told[0].Version = "", "" }, // torn, or a slot written in place
		"application that runs is":      func(f *facts) { f.sells = "1.0.2" },
		"was kept":                      func(f *facts) { f.fate = dead }, // e.g. its trial was not synced
		"quarantined, not attested":     func(f *facts) { f.trust = "quarantined" },
		"carries out no command":        func(f *facts) { f.answers = false },
		"trail is not whole":            func(f *facts) { f.chain = false },
		"not got all":                   func(f *facts) { f.behind = true },
		"ran again":                     func(f *facts) { f.trail = append(f.trail, trail("trial", "succeeded")...) },
		"failed after update.succeeded": func(f *facts) { f.trail = append(f.trail, trail("failed")...) },
		"the till's trail \"\"":         func(f *facts) { f.trail = nil },
	} {
		f := well()
		spoil(&f)
		if wrong := f.judge(); !slices.ContainsFunc(wrong, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("got %q, want %q among it", wrong, want)
		}
	}
}
