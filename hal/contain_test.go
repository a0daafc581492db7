package hal_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/hal"
)

// A panic costs a connection; three in ten minutes cost the device, which is
// told once and is Offline from then on, whatever is looked at.
func TestContain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := hal.NewTracker(hal.LineDisplay)
		tr.Update(hal.PowerOnline, nil)
		bad := func() bool { return tr.Contain(func() { panic("card 4111111111111111") }) }
		if !tr.Contain(func() {}) {
			t.Error("work that came to its end is said to have panicked")
		}
		for range 5 { // never three in ten minutes
			if bad() || tr.Broken() {
				t.Error("a panic was not noticed, or weighs too much")
			}
			time.Sleep(6 * time.Minute)
		}
		bad()
		bad()
		if !tr.Broken() {
			t.Error("three panics in ten minutes, and it goes on")
		}
		if s := tr.Update(hal.PowerOnline, nil); s.Health != hal.Offline || s.Reason != "M_DRIVER_PANIC" || s.Power != hal.PowerUnknown || s.Advice == "" {
			t.Errorf("got %+v", s)
		}
		bad()
		if got := events(t, tr); !slices.Equal(got, []string{"M_DRIVER_PANIC"}) {
			t.Errorf("got events %v, want one M_DRIVER_PANIC", got)
		}
		if i := slices.IndexFunc(tr.Stats(), func(s hal.Stat) bool { return s.Name == "M_DriverPanicCount" }); i < 0 || tr.Stats()[i].Value != 8 {
			t.Errorf("got %v, want 8 panics counted", tr.Stats())
		}
	})
}

func TestSupervise(t *testing.T) {
	tr := hal.NewTracker(hal.LineDisplay)
	tr.Supervise(func() {})
	if tr.Broken() {
		t.Error("a life that ended in order is called broken")
	}
	tr.Supervise(func() { panic(1) })
	if !tr.Broken() {
		t.Error("a device whose life has panicked goes on")
	}
}

// Every goroutine that a driver starts is contained: a panic in one that is not
// would be the end of the agent. Those that are listed hold nothing that comes
// from a device.
func TestGoroutinesAreContained(t *testing.T) {
	harmless := map[string]string{
		"escpos/tunnel.go":   "watch.Go(func() {",                         // waits for channels
		"star/tunnel.go":     "watch.Go(func() {",                         // the same
		"star/cloudprnt.go":  "c.wg.Go(func() { _ = c.server.Serve(l) })", // net/http contains its handlers
		"virtual/virtual.go": "d.wg.Go(func() {",                          // accepts connections
		"hotplug/hotplug.go": "wg.Go(func() {",                            // has its own recover
		"board/patience.go":  "go func() {",                               // the same
	}
	starts := regexp.MustCompile(`^\s*(go func|[a-z.]+\.Go\()`)
	files, err := filepath.Glob("*/*.go")
	if err != nil || len(files) < 20 {
		t.Fatal(files, err)
	}
	seen := 0
	for _, file := range files {
		dir := filepath.Dir(file)
		if strings.HasSuffix(file, "_test.go") || slices.Contains([]string{"haltest", "slot", "tpm"}, dir) {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(b), "\n") {
			if !starts.MatchString(line) {
				continue
			}
			seen++
			if h := harmless[file]; !strings.Contains(strings.ToLower(line), "contain(") && !strings.Contains(line, ".Supervise(") && (h == "" || !strings.Contains(line, h)) {
				t.Errorf("%s:%d: a panic here would end the agent: %s", file, i+1, strings.TrimSpace(line))
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d goroutines were found", seen)
	}
}
