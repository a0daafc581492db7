package hal_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
)

// TestOptions reads options that are given, left out and wrong; of what is
// wrong everything is told, and all of it at once.
func TestOptions(t *testing.T) {
	type read struct {
		Claim    hal.Claim
		Word     string
		Truth    bool
		Duration time.Duration
		Number   float64
		Whole    int
		Lines    uint32
		Drawer   string
		Left     time.Duration
	}
	all := func(cfg hal.Config) (r read, err error) {
		o := hal.ReadOptions(cfg, "word", "truth", "duration", "number", "whole", "roll_length_m", "feed_pitch_um", "drawer", "left_open")
		r.Claim = o.Claim("own or observe it", hal.Own, hal.Observe)
		r.Word, r.Truth = o.Word("word", "low", "high", "low"), o.Truth("truth", true)
		r.Duration = o.Duration("duration", time.Second, 10*time.Millisecond, time.Minute)
		r.Number, r.Whole = o.Number("number", 2, 1, 1000), o.Whole("whole", 3, 2, 40)
		r.Lines = o.RollLines()
		r.Drawer, r.Left = o.Drawer()
		return r, o.Err()
	}
	left := read{hal.Own, "low", true, time.Second, 2, 3, 0, "", 5 * time.Minute}
	if got, err := all(hal.Config{ID: "x"}); err != nil || got != left {
		t.Errorf("nothing given: got %+v, %v; want %+v", got, err, left)
	}
	given := map[string]string{
		"word": "high", "truth": "false", "duration": "20ms", "number": "1.5", "whole": "40", "roll_length_m": "80", "feed_pitch_um": "4000", "drawer": "till", "left_open": "1h",
	}
	want := read{hal.Observe, "high", false, 20 * time.Millisecond, 1.5, 40, 20_000, "till", time.Hour}
	if got, err := all(hal.Config{ID: "x", Claim: hal.Observe, Options: given}); err != nil || got != want {
		t.Errorf("all given: got %+v, %v; want %+v", got, err, want)
	}
	for option, says := range map[string]string{
		"word=up": `word = "up": write high or low`, "truth=yes": `truth = "yes": write true or false`, "whole=1.5": "a whole number from 2 to 40", "whole=1": "whole number",
		"duration=20": `duration = "20": write a time with its unit, from 10ms to 1m0s`, "duration=1h": "from 10ms", "number=NaN": "a number from 1 to 1000", "number=": "number",
		"number=1e999": "number", "number=0": "number", "roll_length_m=80": "go together", "feed_pitch_um=-1": "feed_pitch_um = \"-1\"", "drawer=": "an id of its own",
		"drawer=x": "an id of its own", "left_open=5m": "left_open is of a drawer", "colour=red": `unknown option "colour"; known are: word, truth`,
		"claim=share": `claim "share": own or observe it`, "claim=grab": `claim "grab": observe, share or own`,
	} {
		name, v, _ := strings.Cut(option, "=")
		cfg := hal.Config{ID: "x", Options: map[string]string{name: v}}
		if name == "claim" {
			cfg = hal.Config{ID: "x", Claim: hal.Claim(v)}
		}
		if _, err := all(cfg); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want an E_ILLEGAL with %q", option, err, says)
		}
	}
	o := hal.ReadOptions(hal.Config{ID: "x", Claim: "grab", Options: map[string]string{"b": "", "a": ""}}, "c")
	o.Check(nil)
	o.Check(errors.New("no such place"))
	const told = `open x: E_ILLEGAL: claim "grab": observe, share or own; unknown option "a"; known are: c; unknown option "b"; known are: c; no such place`
	if err := o.Err(); err == nil || err.Error() != told {
		t.Errorf("got %v, want %s", err, told)
	}
}

// mute is a driver that cannot say what is wrong with a configuration.
type mute struct{ name string }

func (m mute) Name() string { return m.name }

func (mute) Open(context.Context, hal.Config) (hal.Device, error) { return nil, nil }

type picky struct{ mute }

func (picky) Check(cfg hal.Config) ([]hal.Info, error) {
	return []hal.Info{{ID: cfg.ID}}, hal.ReadOptions(cfg).Err()
}

// TestRegistryCheck asks a driver that can be asked, one that cannot, and none.
func TestRegistryCheck(t *testing.T) {
	r := hal.NewRegistry(mute{"mute"}, picky{mute{"picky"}})
	bad := hal.Config{ID: "x", Options: map[string]string{"colour": "red"}}
	if infos, err := r.Check("picky", hal.Config{ID: "x"}); err != nil || !reflect.DeepEqual(infos, []hal.Info{{ID: "x"}}) {
		t.Errorf("got %v, %v; want x", infos, err)
	}
	if _, err := r.Check("picky", bad); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("got %v, want E_ILLEGAL", err)
	}
	if infos, err := r.Check("mute", bad); err != nil || infos != nil {
		t.Errorf("a driver that cannot say: got %v, %v", infos, err)
	}
	if _, err := r.Check("loud", bad); !errors.Is(err, &hal.Error{Code: "E_NOSERVICE"}) || !strings.Contains(err.Error(), "mute, picky") {
		t.Errorf("got %v, want an E_NOSERVICE that says which there are", err)
	}
}
