package tamper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/tillward/tillward/hal/slot/slottest"
)

// box is the boot slots of a till: the real RAUC on a bus of its own, and a
// boot loader.
type box struct {
	*slottest.Box
	stand *stand
	lacks error // why there is none
}

// newBox sets one up, or says what this machine lacks for it.
func newBox(ctx context.Context, dir string) (*box, error) {
	if os.Geteuid() != 0 {
		return &box{lacks: errors.New("RAUC mounts bundles, which takes root")}, nil
	}
	b := &box{stand: &stand{ctx: ctx, dir: dir}}
	b.lacks = b.stand.run(func() { b.Box = slottest.New(b.stand, slottest.Options{}) })
	return b, nil
}

func (b *box) there() bool { return b != nil && b.lacks == nil }

func (b *box) says() string {
	if b.there() {
		return "the last one boots system images through RAUC"
	}
	return b.lacks.Error()
}

func (b *box) address() string    { return b.Address }
func (b *box) compatible() string { return slottest.Compatible }
func (b *box) runs() string       { return b.Current() }

// power is what happens when the box is switched on.
func (b *box) power() error { return b.stand.run(b.Reboot) }

func (b *box) bundle(version string) (made slottest.Bundle, err error) {
	err = b.stand.run(func() { made = b.Bundle(slottest.Spec{Version: version}) })
	return made, err
}

func (b *box) close() {
	if b.stand != nil {
		b.stand.end()
	}
}

// stand lets props that were made for tests be used outside of one.
type stand struct {
	testing.TB // nil: whatever is not below is not for props

	ctx  context.Context // ends with the scenario: props have none
	dir  string
	ends []func()
}

// fatal is how a prop gives up.
type fatal struct{ error }

// run runs what a prop does, and returns why it gave up.
func (s *stand) run(do func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(fatal)
			if !ok {
				panic(r)
			}
			err = f.error
		}
	}()
	do()
	return nil
}

func (s *stand) end() {
	for _, f := range slices.Backward(s.ends) {
		f()
	}
	s.ends = nil
}

// Helper implements testing.TB.
func (s *stand) Helper() {}

// Failed implements testing.TB.
func (s *stand) Failed() bool { return false }

// Context implements testing.TB.
func (s *stand) Context() context.Context { return s.ctx }

// Cleanup implements testing.TB.
func (s *stand) Cleanup(f func()) { s.ends = append(s.ends, f) }

// Logf implements testing.TB.
func (s *stand) Logf(string, ...any) {}

// Fatal implements testing.TB.
func (s *stand) Fatal(args ...any) { panic(fatal{errors.New(fmt.Sprint(args...))}) }

// Fatalf implements testing.TB.
func (s *stand) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

// TempDir implements testing.TB.
func (s *stand) TempDir() string {
	dir, err := os.MkdirTemp(s.dir, "prop-")
	if err != nil {
		panic(fatal{err})
	}
	return dir
}
