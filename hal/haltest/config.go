package haltest

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// Config fuzzes what a driver is configured with. Whatever it is given, Open
// returns, does not panic, and opens either a device that it can be closed
// again, or nothing and says so with a code; an option or a claim that there is
// not is never taken; and Check says the same before. valid are configurations that open, with devices that
// need not be there. No other network address and no other file is ever tried.
func Config(f *testing.F, driver hal.Driver, valid ...hal.Config) {
	var known, harmless []string
	for _, cfg := range valid {
		var options []string
		harmless = append(harmless, cfg.Address)
		for k, v := range cfg.Options {
			known, harmless = append(known, k), append(harmless, v)
			options = append(options, k+"="+v)
		}
		f.Add(cfg.Address, string(cfg.Claim), strings.Join(options, "\n"))
		f.Add("", string(cfg.Claim), strings.Join(options, "\n"))
		f.Add(cfg.Address, "grab", strings.Join(options, "\n"))
		f.Add(cfg.Address, string(cfg.Claim), strings.Join(append(options, "colour=red"), "\n"))
		for _, k := range known {
			f.Add(cfg.Address, string(cfg.Claim), k+"=")
			f.Add(cfg.Address, string(cfg.Claim), k+"=-1")
			f.Add(cfg.Address, string(cfg.Claim), k+"=1e999")
		}
		if !opens(f, driver, cfg) {
			f.Errorf("%s does not open with %+v, which is to be valid", driver.Name(), cfg)
		}
	}
	f.Fuzz(func(t *testing.T, address, claim, options string) {
		cfg := hal.Config{ID: "fuzzed", Address: address, Claim: hal.Claim(claim), Options: map[string]string{}}
		for line := range strings.SplitSeq(options, "\n") {
			if k, v, ok := strings.Cut(line, "="); ok {
				cfg.Options[k] = v
			}
		}
		strange := !slices.Contains([]hal.Claim{"", hal.Observe, hal.Share, hal.Own}, cfg.Claim)
		for k, v := range cfg.Options {
			strange = strange || !slices.Contains(known, k)
			if reaches(v) && !slices.Contains(harmless, v) {
				t.Skip("it would reach something outside")
			}
		}
		if reaches(address) && !slices.Contains(harmless, address) {
			t.Skip("it would reach something outside")
		}
		if opens(t, driver, cfg) && strange {
			t.Errorf("%s opens with %+v, in which something is not known", driver.Name(), cfg)
		}
	})
}

// reaches reports whether s could name a file or a place in a network.
func reaches(s string) bool {
	_, _, err := net.SplitHostPort(strings.TrimPrefix(s, "tcp:"))
	return err == nil || strings.ContainsAny(s, "/\x00")
}

// agree compares what was said of a configuration with what became of it. What
// is refused for another reason than the configuration was not to be known.
func agree(t testing.TB, cfg hal.Config, infos []hal.Info, wrong error, d hal.Device, err error) {
	t.Helper()
	switch {
	case wrong != nil:
		if err == nil || err.Error() != wrong.Error() {
			t.Errorf("%+v: checking it says %v, opening it %v", cfg, wrong, err)
		}
	case errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}):
		t.Errorf("%+v: checking it says nothing, opening it %v", cfg, err)
	case err == nil && d != nil:
		open := []hal.Device{d}
		if whole, ok := d.(hal.Parent); ok {
			open = append(open, whole.Parts()...)
		}
		same := len(open) == len(infos)
		for n := 0; same && n < len(open); n++ {
			is := open[n].Info()
			same = is.ID == infos[n].ID && is.Category == infos[n].Category && is.Driver == infos[n].Driver && is.Claim == infos[n].Claim
		}
		if !same {
			t.Errorf("%+v: opens %+v, and is checked as %+v", cfg, d.Info(), infos)
		}
	}
}

// opens reports whether the driver opens the configuration, and closes again
// what it has opened.
func opens(t testing.TB, driver hal.Driver, cfg hal.Config) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan bool, 1)
	go func() {
		open := false
		defer func() { done <- open }()
		var infos []hal.Info
		wrong := errors.New("the driver checks no configuration")
		if c, ok := driver.(hal.Checker); ok {
			infos, wrong = c.Check(cfg)
		}
		d, err := driver.Open(ctx, cfg)
		agree(t, cfg, infos, wrong, d, err)
		if err != nil {
			var e *hal.Error
			if d != nil || !errors.As(err, &e) || !strings.HasPrefix(e.Code, "E_") {
				t.Errorf("%+v: got %v and %v, want no device and an error with a code", cfg, d, err)
			}
			return
		}
		open = true
		if d == nil || d.Info().ID != cfg.ID {
			t.Errorf("%+v: got %+v", cfg, d)
			return
		}
		if err := d.Close(); err != nil {
			t.Errorf("%+v: close: %v", cfg, err)
		}
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case open := <-done:
		return open
	case <-late.C:
		t.Fatalf("%+v: neither open nor refused after %v", cfg, patience)
	}
	return false
}
