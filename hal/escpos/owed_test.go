package escpos_test

import (
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/emulator"
)

// A kick that came to nothing does not cover for whoever opens the drawer later.
func TestKickThatCameToNothing(t *testing.T) {
	t.Parallel()
	sale := strings.Repeat("line\n", 150) + "\x1dV\x00\x1bp\x00\x19\xfa"
	for _, c := range []struct {
		name        string
		spoil, mend func(p *emulator.Printer)
	}{
		{
			name:  "stuck",
			spoil: func(p *emulator.Printer) { p.Set(emulator.DrawerStuck, true) },
			mend:  func(p *emulator.Printer) { p.Set(emulator.DrawerStuck, false) },
		},
		{
			name:  "out of paper before it",
			spoil: func(p *emulator.Printer) { p.LoadRoll(100) },
			mend:  func(p *emulator.Printer) { p.LoadRoll(0) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := printer(t)
			d := open(t, p, hal.Own, "drawer_open_level", "high", "drawer", "till")
			drawer := d.(hal.Parent).Parts()[0]
			print := func() error {
				_, err := d.(hal.Passthrough).Print(t.Context(), strings.NewReader(sale))
				return err
			}
			unexpected := func(s hal.Status) bool { return s.Sensors["M_UnexpectedOpen"] == hal.Yes }
			status(t, d, healthy)
			status(t, drawer, healthy)
			c.spoil(p)
			_ = print()
			if c.name == "stuck" {
				status(t, drawer, func(s hal.Status) bool { return s.Sensors["M_DrawerStuck"] == hal.Yes })
			}
			c.mend(p)
			status(t, d, healthy)
			if err := print(); err != nil {
				t.Fatal(err)
			}
			if s := status(t, drawer, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.Yes }); unexpected(s) {
				t.Errorf("the sale's own opening: %+v", s)
			}
			p.Set(emulator.DrawerOpen, false)
			status(t, drawer, func(s hal.Status) bool { return s.Sensors["DrawerOpened"] == hal.No })
			p.Set(emulator.DrawerOpen, true) // by hand
			status(t, drawer, unexpected)
		})
	}
}
