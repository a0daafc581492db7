package board

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/hal"
)

// options reads the options of a configuration and keeps the first error.
type options struct {
	cfg hal.Config
	err error
}

func (o *options) refuse(format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf(format, args...)
	}
}

func (o *options) oneOf(name, otherwise string, known ...string) string {
	v, ok := o.cfg.Options[name]
	if !ok && otherwise != "" {
		return otherwise
	}
	if !slices.Contains(known, v) {
		o.refuse("%s = %q: one of %s", name, v, strings.Join(known, ", "))
	}
	return v
}

func (o *options) duration(name, otherwise string, from, to time.Duration) time.Duration {
	v, ok := o.cfg.Options[name]
	if !ok {
		v = otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < from || d > to {
		o.refuse("%s = %q: a duration from %s to %s", name, v, from, to)
	}
	return d
}

// number reads a whole number.
func (o *options) number(name string, otherwise, from, to float64) float64 {
	v, ok := o.cfg.Options[name]
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || float64(n) < from || float64(n) > to {
		o.refuse("%s = %q: a whole number from %.0f to %.0f", name, v, from, to)
	}
	return float64(n)
}
