package hal_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/hal"
)

func count(d *hal.Drawer, name string) float64 {
	for _, s := range d.Stats() {
		if s.Name == name {
			return s.Value
		}
	}
	return -1
}

// TestDrawer lets a drawer be opened in every way there is.
func TestDrawer(t *testing.T) {
	const opened, unexpected, left, stuck = "DrawerOpened", "M_UnexpectedOpen", "M_LeftOpen", "M_DrawerStuck"
	for _, test := range []struct {
		name   string
		proves bool
		do     func(d *hal.Drawer)
		want   map[string]hal.Tri
		good   float64
		failed float64
	}{
		{"closed", true, func(*hal.Drawer) {}, map[string]hal.Tri{opened: hal.No, unexpected: hal.No, left: hal.No, stuck: hal.Unknown}, 0, 0},
		{"asked and open", true, func(d *hal.Drawer) {
			d.Ask()
			time.Sleep(300 * time.Millisecond)
			d.Look(hal.PowerOnline, hal.Yes)
		}, map[string]hal.Tri{opened: hal.Yes, unexpected: hal.No, left: hal.No, stuck: hal.No}, 1, 0},
		{"nobody asked", true, func(d *hal.Drawer) { d.Look(hal.PowerOnline, hal.Yes) }, map[string]hal.Tri{opened: hal.Yes, unexpected: hal.Yes}, 0, 0},
		{"nobody asked, and somebody may not have told us", false, func(d *hal.Drawer) { d.Look(hal.PowerOnline, hal.Yes) }, map[string]hal.Tri{opened: hal.Yes, unexpected: hal.Unknown}, 0, 0},
		{"asked once, open twice", true, func(d *hal.Drawer) {
			d.Ask()
			d.Look(hal.PowerOnline, hal.Yes)
			d.Look(hal.PowerOnline, hal.No)
			d.Look(hal.PowerOnline, hal.Yes)
		}, map[string]hal.Tri{unexpected: hal.Yes}, 1, 0},
		{"asked long ago", true, func(d *hal.Drawer) {
			d.Ask()
			time.Sleep(2 * time.Second)
			d.Look(hal.PowerOnline, hal.Yes)
		}, map[string]hal.Tri{unexpected: hal.Yes, stuck: hal.Unknown}, 0, 0},
		{"asked and stuck", true, func(d *hal.Drawer) {
			d.Ask()
			time.Sleep(2 * time.Second)
		}, map[string]hal.Tri{opened: hal.No, unexpected: hal.No, stuck: hal.Yes}, 0, 1},
		{"stuck until it is kicked open", true, func(d *hal.Drawer) {
			d.Ask()
			time.Sleep(2 * time.Second)
			d.Look(hal.PowerOnline, hal.No)
			d.Look(hal.PowerOnline, hal.Yes) // by its key
			d.Look(hal.PowerOnline, hal.No)
			d.Ask()
			d.Look(hal.PowerOnline, hal.Yes)
		}, map[string]hal.Tri{stuck: hal.No}, 1, 1},
		{"asked while it is open", true, func(d *hal.Drawer) {
			d.Look(hal.PowerOnline, hal.Yes)
			d.Ask()
			time.Sleep(2 * time.Second)
		}, map[string]hal.Tri{unexpected: hal.Yes, stuck: hal.Unknown}, 0, 0},
		{"left open", true, func(d *hal.Drawer) {
			d.Look(hal.PowerOnline, hal.Yes)
			time.Sleep(time.Minute)
		}, map[string]hal.Tri{left: hal.Yes}, 0, 0},
		{"opened while nobody could look", true, func(d *hal.Drawer) {
			d.Look(hal.PowerOffOffline, hal.Unknown)
			d.Look(hal.PowerOnline, hal.Yes)
		}, map[string]hal.Tri{unexpected: hal.Yes}, 0, 0},
		{"closed again", true, func(d *hal.Drawer) {
			d.Look(hal.PowerOnline, hal.Yes)
			time.Sleep(time.Hour)
			d.Look(hal.PowerOnline, hal.Yes)
			d.Look(hal.PowerOnline, hal.No)
		}, map[string]hal.Tri{opened: hal.No, unexpected: hal.No, left: hal.No}, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := hal.NewDrawer(test.proves, time.Second, time.Minute)
				defer d.Close()
				last := hal.No
				d.Look(hal.PowerOnline, last)
				test.do(d)
				if is := d.Status().Sensors[opened]; is != hal.Unknown {
					last = is
				}
				s := d.Look(hal.PowerOnline, last)
				for name, want := range test.want {
					if s.Sensors[name] != want {
						t.Errorf("%s: got %v, want %v", name, s.Sensors[name], want)
					}
				}
				if g, f := count(d, "DrawerGoodOpenCount"), count(d, "DrawerFailedOpenCount"); g != test.good || f != test.failed {
					t.Errorf("%v good and %v failed, want %v and %v", g, f, test.good, test.failed)
				}
			})
		})
	}
}

// TestDrawerOpenFromTheStart holds that nobody is accused of an opening that
// nobody saw.
func TestDrawerOpenFromTheStart(t *testing.T) {
	d := hal.NewDrawer(true, time.Second, time.Minute)
	defer d.Close()
	if s := d.Look(hal.PowerOnline, hal.Yes); s.Sensors["M_UnexpectedOpen"] != hal.Unknown {
		t.Errorf("got %v, want Unknown", s.Sensors["M_UnexpectedOpen"])
	}
}

func TestKick(t *testing.T) {
	broken := errors.New("no such line")
	for _, test := range []struct {
		name string
		last hal.Tri
		do   func(d *hal.Drawer) error
		want error
	}{
		{"opens", hal.No, func(d *hal.Drawer) error {
			time.AfterFunc(100*time.Millisecond, func() { d.Look(hal.PowerOnline, hal.Yes) })
			return nil
		}, nil},
		{"stuck", hal.No, func(*hal.Drawer) error { return nil }, &hal.Error{Code: "E_FAILURE"}},
		{"open", hal.Yes, func(*hal.Drawer) error { return nil }, nil},
		{"no sensor", hal.Unknown, func(*hal.Drawer) error { return nil }, nil},
		{"cannot be kicked", hal.No, func(*hal.Drawer) error { return broken }, broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := hal.NewDrawer(true, time.Second, time.Minute)
				defer d.Close()
				d.Look(hal.PowerOnline, test.last)
				if err := d.Kick(t.Context(), func(context.Context) error { return test.do(d) }); !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
			})
		})
	}
	t.Run("nobody waits any more", func(t *testing.T) {
		d := hal.NewDrawer(true, time.Hour, time.Hour)
		defer d.Close()
		d.Look(hal.PowerOnline, hal.No)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Kick(ctx, func(context.Context) error { return nil }); !errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
			t.Errorf("got %v, want E_TIMEOUT", err)
		}
	})
}

// A kick that has to wait, behind the job that is being printed, is as good as
// any: the drawer is neither stuck meanwhile, nor has anybody opened it.
func TestKickThatWaits(t *testing.T) {
	for name, early := range map[string]bool{"and opens at last": false, "and opens while it is sent": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := hal.NewDrawer(true, time.Second, time.Minute)
				defer d.Close()
				d.Look(hal.PowerOnline, hal.No)
				err := d.Kick(t.Context(), func(context.Context) error {
					for range 5 {
						time.Sleep(time.Second)
						if s := d.Look(hal.PowerOnline, hal.No); s.Health != hal.OK {
							t.Errorf("while it waits: got %s %s, want OK", s.Health, s.Reason)
						}
					}
					if early {
						d.Look(hal.PowerOnline, hal.Yes)
						time.Sleep(5 * time.Second)
					} else {
						time.AfterFunc(500*time.Millisecond, func() { d.Look(hal.PowerOnline, hal.Yes) })
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				s := d.Look(hal.PowerOnline, hal.Yes)
				if s.Sensors["M_UnexpectedOpen"] != hal.No || s.Sensors["M_DrawerStuck"] != hal.No || count(d, "DrawerGoodOpenCount") != 1 || count(d, "DrawerFailedOpenCount") != 0 {
					t.Errorf("got %+v, %v; want one good opening", s, d.Stats())
				}
				d.Look(hal.PowerOnline, hal.No)
				time.Sleep(2 * time.Second)
				if s := d.Look(hal.PowerOnline, hal.Yes); s.Sensors["M_UnexpectedOpen"] != hal.Yes {
					t.Errorf("opened once more: got %+v; want that nobody asked", s)
				}
			})
		})
	}
}
