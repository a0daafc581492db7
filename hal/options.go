package hal

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options reads what a device is configured with, and collects everything that
// is wrong with it: a person wants to be told all at once. Each fault says what
// to write instead.
type Options struct {
	cfg   Config
	wrong wrongs
}

// ReadOptions begins to read a configuration. An option that is not among known
// is wrong, and so is a claim that there is not.
func ReadOptions(cfg Config, known ...string) *Options {
	o := &Options{cfg: cfg}
	switch cfg.Claim {
	case "", Observe, Share, Own:
	default:
		o.Refuse("claim %q: observe, share or own", cfg.Claim)
	}
	for _, k := range slices.Sorted(maps.Keys(cfg.Options)) {
		if !slices.Contains(known, k) {
			o.Refuse("unknown option %q; known are: %s", k, strings.Join(known, ", "))
		}
	}
	return o
}

// Refuse notes that something is wrong.
func (o *Options) Refuse(format string, args ...any) {
	o.wrong = append(o.wrong, fmt.Errorf(format, args...))
}

// Check notes err, if it is one.
func (o *Options) Check(err error) {
	if err != nil {
		o.wrong = append(o.wrong, err)
	}
}

// Err is an E_ILLEGAL with everything that is wrong, or nil.
func (o *Options) Err() error {
	if len(o.wrong) == 0 {
		return nil
	}
	return &Error{Code: "E_ILLEGAL", Op: "open " + o.cfg.ID, Err: o.wrong}
}

// Claim is the claim mode: otherwise, where none is given. One that is not
// among allowed is wrong; why says what to write.
func (o *Options) Claim(why string, otherwise Claim, allowed ...Claim) Claim {
	switch c := o.cfg.Claim; {
	case c == "":
		return otherwise
	case c != otherwise && !slices.Contains(allowed, c) && slices.Contains([]Claim{Observe, Share, Own}, c):
		o.Refuse("claim %q: %s", c, why)
	}
	return o.cfg.Claim
}

// Word is one of the words, or otherwise where none is given.
func (o *Options) Word(name, otherwise string, words ...string) string {
	v, ok := o.cfg.Options[name]
	if !ok {
		return otherwise
	}
	if !slices.Contains(words, v) {
		o.Refuse("%s = %q: write %s", name, v, strings.Join(words, " or "))
	}
	return v
}

// Truth is true or false, or otherwise where neither is given.
func (o *Options) Truth(name string, otherwise bool) bool {
	return o.Word(name, strconv.FormatBool(otherwise), "true", "false") == "true"
}

// Duration is a time from least to most, or otherwise where none is given.
func (o *Options) Duration(name string, otherwise, least, most time.Duration) time.Duration {
	v, ok := o.cfg.Options[name]
	if !ok {
		return otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < least || d > most {
		o.Refuse("%s = %q: write a time with its unit, from %v to %v", name, v, least, most)
		return otherwise
	}
	return d
}

// Number is a number from least to most, or otherwise where none is given.
func (o *Options) Number(name string, otherwise, least, most float64) float64 {
	v, ok := o.cfg.Options[name]
	if !ok {
		return otherwise
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil || !(n >= least && n <= most) {
		o.Refuse("%s = %q: write a number from %.0f to %.0f", name, v, least, most)
		return otherwise
	}
	return n
}

// Whole is a whole number from least to most, or otherwise where none is given.
func (o *Options) Whole(name string, otherwise, least, most int) int {
	v, ok := o.cfg.Options[name]
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		o.Refuse("%s = %q: write a whole number from %d to %d", name, v, least, most)
		return otherwise
	}
	return n
}

// RollLines is how many line feeds a full roll of paper has, as the options
// roll_length_m and feed_pitch_um have it; 0: they are not given.
func (o *Options) RollLines() uint32 {
	roll, pitch := o.Number("roll_length_m", 0, 1, 1000), o.Number("feed_pitch_um", 0, 10, 100_000)
	_, long := o.cfg.Options["roll_length_m"]
	_, wide := o.cfg.Options["feed_pitch_um"]
	if long != wide {
		o.Refuse("roll_length_m and feed_pitch_um go together: a roll of 80 m with line feeds of 3750 µm")
	}
	if roll == 0 || pitch == 0 {
		return 0
	}
	return uint32(roll * 1e6 / pitch)
}

// Drawer is the ID of the drawer behind a printer, which the option drawer
// makes a device of its own, and for how long it may be open; empty: it is none.
func (o *Options) Drawer() (id string, leftOpen time.Duration) {
	id, wanted := o.cfg.Options["drawer"]
	switch _, left := o.cfg.Options["left_open"]; {
	case wanted && (id == "" || id == o.cfg.ID):
		o.Refuse("drawer = %q: the drawer needs an id of its own", id)
	case left && !wanted:
		o.Refuse("left_open is of a drawer; give it an id with the option drawer")
	}
	return id, o.Duration("left_open", 5*time.Minute, time.Millisecond, 24*time.Hour)
}

// wrongs are faults that are told as one.
type wrongs []error

// Error implements error.
func (w wrongs) Error() string {
	texts := make([]string, len(w))
	for i, err := range w {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns each.
func (w wrongs) Unwrap() []error { return w }
