package star

import (
	"context"
	"iter"
	"time"

	"github.com/tillward/tillward/hal"
)

const drawerWithin = time.Second // for the drawer to spring open

// drawer is the cash drawer behind a printer. Its pin is in the printer's
// status; it lives and is closed with the printer.
type drawer struct {
	*hal.Drawer
	printer *printer
	id      string // empty: it is no device of its own
}

// again looks without news: time is what leaves a drawer open.
func (d *drawer) again() {
	st := d.Drawer.Status()
	d.Look(st.Power, st.Sensors["DrawerOpened"])
}

// String implements conn.Resource.
func (d *drawer) String() string { return "drawer(" + d.printer.at.Key() + ")" }

// Halt implements conn.Resource. The cable is the printer's.
func (d *drawer) Halt() error { return nil }

// Close implements io.Closer.
func (d *drawer) Close() error { return nil }

// Info implements hal.Device.
func (d *drawer) Info() hal.Info {
	i := d.printer.Info()
	out := hal.Info{ID: d.id, Category: hal.CashDrawer, Driver: i.Driver, Claim: i.Claim, Key: i.Key, Interface: i.Interface}
	if d.printer.level != hal.Unknown && i.Caps != nil {
		out.Caps = []string{"CapPowerReporting", "CapStatisticsReporting", "CapStatus"}
	}
	return out
}

// Status implements hal.StatusReader.
func (d *drawer) Status(ctx context.Context) (hal.Status, error) {
	st, err := d.printer.Status(ctx)
	if err != nil {
		return hal.Status{}, err
	}
	if st.Power == hal.PowerOffOffline {
		return hal.Judge(hal.CashDrawer, st.Power, nil), nil
	}
	d.again()
	return d.Drawer.Status(), nil
}

// Events implements hal.Notifier.
func (d *drawer) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return d.Drawer.Events(ctx) }

// Statistics implements hal.Statistics.
func (d *drawer) Statistics(context.Context) ([]hal.Stat, error) { return d.Stats(), nil }

// OpenDrawer implements hal.DrawerKicker.
func (d *drawer) OpenDrawer(ctx context.Context) error { return d.printer.OpenDrawer(ctx) }
