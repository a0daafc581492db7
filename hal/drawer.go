package hal

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Drawer is the Tracker of a cash drawer. From the one sensor it concludes
// what matters at a counter: whether somebody opened the drawer that nobody
// asked to open, whether it was left open, and whether being kicked opens it.
// It is safe for concurrent use.
type Drawer struct {
	*Tracker
	proves   bool
	patience time.Duration
	leftOpen time.Duration

	mu         sync.Mutex
	opened     Tri       // last that was not Unknown
	sees       bool      // the last look had a sensor
	since      time.Time // of opened being Yes
	asked      time.Time // of the newest that was asked and has not opened it; zero: none
	sending    int       // kicks that are on their way; one may have to wait behind a job
	opens      int       // times that it was seen to open
	unexpected Tri
	stuck      Tri
	changed    chan struct{} // closed when a look finds something else
}

// NewDrawer starts with a drawer of which nothing is known. proves is whether
// everybody who may open it goes through the driver: only then an opening that
// was not asked for is an unexpected one. An opening shows at most patience
// after it was asked for; open for longer than leftOpen it was left open.
func NewDrawer(proves bool, patience, leftOpen time.Duration) *Drawer {
	return &Drawer{
		Tracker: NewTracker(CashDrawer, "DrawerGoodOpenCount", "DrawerFailedOpenCount"), proves: proves,
		patience: patience, leftOpen: leftOpen, changed: make(chan struct{}),
	}
}

// Ask notes that somebody who may has the drawer opened now: this driver, or a
// job that goes through it. Of a drawer that is open it means nothing.
func (d *Drawer) Ask() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened != Yes {
		d.asked = time.Now()
	}
}

// Look takes in what the sensor says, and what follows from it. It wants to be
// called again and again, also when nothing changes: time is what leaves a
// drawer open.
func (d *Drawer) Look(power Power, opened Tri) Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.sees = opened != Unknown
	if d.sees && opened != d.opened {
		d.turn(opened, now)
	}
	if d.late(now) {
		d.asked = time.Time{}
		if d.sees {
			d.stuck = Yes
			d.Count("DrawerFailedOpenCount", 1)
		}
	}
	if !d.sees {
		return d.Update(power, nil)
	}
	return d.Update(power, map[string]Tri{
		"DrawerOpened": opened, "M_UnexpectedOpen": d.unexpected, "M_DrawerStuck": d.stuck,
		"M_LeftOpen": TriOf(opened == Yes && now.Sub(d.since) >= d.leftOpen),
	})
}

// late reports whether what was asked for should have opened it by now.
func (d *Drawer) late(now time.Time) bool {
	return !d.asked.IsZero() && d.sending == 0 && now.Sub(d.asked) > d.patience
}

// turn notes, with d.mu held, that the drawer was opened or closed.
func (d *Drawer) turn(opened Tri, now time.Time) {
	known := d.opened != Unknown // else it may have been open for days
	d.opened = opened
	close(d.changed)
	d.changed = make(chan struct{})
	switch {
	case opened == No:
		if d.proves {
			d.unexpected = No
		}
	case !d.asked.IsZero() && !d.late(now):
		d.stuck = No
		d.Count("DrawerGoodOpenCount", 1)
	case known && d.proves:
		d.unexpected = Yes
	}
	if opened == Yes {
		d.since, d.asked = now, time.Time{}
		d.opens++
	}
}

// Kick opens the drawer by do and waits until it has opened, which the driver
// has to find out meanwhile. do returns when the kick has been carried out, as
// far as can be known; before that the drawer is not late. One that is open
// already is well; of one without a sensor nobody knows.
func (d *Drawer) Kick(ctx context.Context, do func(context.Context) error) error {
	opens, err := d.send(ctx, do)
	if err != nil {
		return err
	}
	late := time.NewTimer(d.patience)
	defer late.Stop()
	for {
		d.mu.Lock()
		done, changed := d.opened == Yes || d.opens != opens || !d.sees, d.changed
		d.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &Error{Code: "E_TIMEOUT", Op: "open drawer", Err: ctx.Err()}
		case <-late.C:
			return &Error{Code: "E_FAILURE", Op: "open drawer", Err: errors.New("it was kicked and did not open")}
		}
	}
}

// send has do kick the drawer, and returns how often that had opened before.
func (d *Drawer) send(ctx context.Context, do func(context.Context) error) (opens int, err error) {
	d.Ask()
	d.mu.Lock()
	d.sending++
	opens = d.opens
	d.mu.Unlock()
	sent := false
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.sending--
		switch {
		case !sent:
			d.asked = time.Time{}
		case !d.asked.IsZero(): // it has not opened meanwhile: from now on it is late
			d.asked = time.Now()
		}
	}()
	err = do(ctx)
	sent = err == nil
	return opens, err
}
