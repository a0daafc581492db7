// Package slot drives the A/B boot slots of a box through RAUC's D-Bus service
// [RAUC 1.15, "D-Bus API"]: which slot runs, install a bundle into the other
// one, tell the boot loader what to start.
//
// It asks RAUC each time and keeps nothing, holds no connection while idle, and
// reads back from the disk what RAUC says it has written. Whether a bundle may
// be installed, whether what runs is well and when the box restarts is not
// decided here. It knows RAUC from 1.3 on by what its service offers.
package slot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/tillward/tillward/hal"
)

const (
	name  = "de.pengutronix.rauc"
	iface = "de.pengutronix.rauc.Installer"
	props = "org.freedesktop.DBus.Properties"
	bus   = "org.freedesktop.DBus"

	defaultAddress = "unix:path=/run/dbus/system_bus_socket"
)

// RAUC is the RAUC service of a box. The zero value is the one on the system
// bus.
type RAUC struct {
	Address string // D-Bus address of the bus; empty: the system bus
	Root    string // where sys and dev are; empty for the box itself
}

// Status says what the box can start from. While RAUC installs that is told and
// little else: no slots.
func (r RAUC) Status(ctx context.Context) (hal.Boot, error) {
	s, err := r.dial(ctx)
	if err != nil {
		return hal.Boot{}, err
	}
	defer s.close()
	b, err := s.status(ctx)
	if err != nil {
		return b, fmt.Errorf("status of the boot slots: %w", err)
	}
	return b, nil
}

// Mark tells the boot loader about a slot: "good" keeps it, "bad" bars it,
// "active" makes it the one to start next.
func (r RAUC) Mark(ctx context.Context, slot, state string) error {
	s, err := r.dial(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	var marked, text string
	if err := s.call(ctx, "Mark", []any{state, slot}, &marked, &text); err != nil {
		return fmt.Errorf("mark slot %s %s: %w", slot, state, err)
	}
	return nil
}

// nbd reports whether the kernel has the network block device.
func (r RAUC) nbd() bool {
	for _, path := range []string{"sys/module/nbd", "sys/block/nbd0"} {
		if _, err := os.Stat(filepath.Join("/", r.Root, path)); err == nil {
			return true
		}
	}
	return false
}

// session is a connection for one job.
type session struct {
	conn *dbus.Conn
	obj  dbus.BusObject
	nbd  bool          // the kernel has the block device that RAUC streams through
	seen dbus.Sequence // of the state that was read last
}

// dial connects; the connection ends with ctx.
func (r RAUC) dial(ctx context.Context) (*session, error) {
	address := r.Address
	if address == "" {
		address = defaultAddress
	}
	// One at a time: a Completed must not overtake the Progress before it.
	conn, err := dbus.Connect(address, dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, fmt.Errorf("reach RAUC by D-Bus at %s: %w (is dbus-daemon running?)", address, cause(ctx, err))
	}
	return &session{conn: conn, obj: conn.Object(name, "/"), nbd: r.nbd()}, nil
}

func (s *session) close() { _ = s.conn.Close() }

// call calls a method of RAUC.
func (s *session) call(ctx context.Context, method string, args []any, out ...any) error {
	c := s.obj.CallWithContext(ctx, iface+"."+method, 0, args...)
	if c.Err != nil {
		return explain(ctx, c.Err)
	}
	if len(out) == 0 {
		return nil
	}
	return c.Store(out...)
}

// properties reads all properties of RAUC.
func (s *session) properties(ctx context.Context) (map[string]dbus.Variant, error) {
	var p map[string]dbus.Variant
	c := s.obj.CallWithContext(ctx, props+".GetAll", 0, iface)
	if c.Err != nil {
		return nil, explain(ctx, c.Err)
	}
	s.seen = c.ResponseSequence
	return p, c.Store(&p)
}

// row is one slot as GetSlotStatus tells it.
type row struct {
	Name   string
	Values map[string]dbus.Variant
}

// status asks everything that there is to know.
func (s *session) status(ctx context.Context) (hal.Boot, error) {
	p, err := s.properties(ctx)
	if err != nil {
		return hal.Boot{}, err
	}
	b := hal.Boot{Compatible: text(p["Compatible"]), Version: text(p["SystemVersion"]), Installing: text(p["Operation"]) == "installing"}
	c := s.obj.CallWithContext(ctx, "org.freedesktop.DBus.Introspectable.Introspect", 0)
	var offers string
	if c.Err != nil {
		return b, explain(ctx, c.Err)
	}
	if err := c.Store(&offers); err != nil {
		return b, err
	}
	b.Since, b.Before = age(offers)
	b.Streams = s.nbd && (b.Since == "1.13" || b.Since == "1.16") // may be 1.14; Install finds out
	if b.Installing {
		return b, nil // RAUC answers nothing else while it installs
	}
	var rows []row
	if err := s.call(ctx, "GetSlotStatus", nil, &rows); err != nil {
		return b, err
	}
	if err := s.call(ctx, "GetPrimary", nil, &b.Primary); err != nil && ctx.Err() != nil {
		return b, err // otherwise there is none: no slot is good, or the boot loader cannot tell
	}
	for _, r := range rows {
		slot, booted := decode(r)
		b.Slots = append(b.Slots, slot)
		// The parts of a group are all booted; the one that is started stands for it.
		if booted && (b.Booted == "" || slot.BootName != "") {
			b.Booted = slot.Name
		}
	}
	sort.Slice(b.Slots, func(x, y int) bool { return b.Slots[x].Name < b.Slots[y].Name })
	return b, nil
}

// decode turns a row into a slot, and says whether it is the booted one.
func decode(r row) (slot hal.Slot, booted bool) {
	v := r.Values
	slot = hal.Slot{
		Name: r.Name, Class: text(v["class"]), Parent: text(v["parent"]), BootName: text(v["bootname"]),
		Type: text(v["type"]), Device: text(v["device"]), Version: text(v["bundle.version"]), Hash: text(v["bundle.hash"]),
		Transaction: text(v["installed.transaction"]), SHA256: text(v["sha256"]),
	}
	slot.Installs, _ = v["installed.count"].Value().(uint32)
	slot.Activations, _ = v["activated.count"].Value().(uint32)
	if size, ok := v["size"].Value().(uint64); ok && size < 1<<62 {
		slot.Size = int64(size)
	}
	switch text(v["boot-status"]) {
	case "good":
		slot.Good = hal.Yes
	case "bad":
		slot.Good = hal.No
	}
	return slot, text(v["state"]) == "booted"
}

func text(v dbus.Variant) string {
	s, _ := v.Value().(string)
	return s
}

// age says which version of RAUC a service has at least, and which it has not
// reached, going by what it offers: it does not tell its version [RAUC,
// CHANGES]. The names are looked for as they stand, which spares the agent an
// XML decoder.
func age(offers string) (since, before string) {
	for _, v := range []struct{ name, since, before string }{
		{"SystemVersion", "1.16", ""},
		{"GetArtifactStatus", "1.13", "1.16"},
		{"InspectBundle", "1.9", "1.13"},
		{"InstallBundle", "1.3", "1.9"},
	} {
		if strings.Contains(offers, ` name="`+v.name+`"`) {
			return v.since, v.before
		}
	}
	return "", "1.3"
}

// explain says what to do about an answer that tells little.
func explain(ctx context.Context, err error) error {
	err = cause(ctx, err)
	var d dbus.Error
	if !errors.As(err, &d) {
		return err
	}
	text := strings.TrimSpace(d.Error())
	switch d.Name {
	case bus + ".Error.ServiceUnknown", bus + ".Error.NameHasNoOwner", bus + ".Error.NoReply":
		return fmt.Errorf("the RAUC service does not answer: %s (look at its log: journalctl -u rauc)", text)
	case bus + ".Error.AccessDenied":
		return fmt.Errorf("the bus does not let us talk to RAUC: %s (see de.pengutronix.rauc.conf)", text)
	}
	return errors.New(text)
}

// cause prefers the reason why ctx ended over what came of it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
