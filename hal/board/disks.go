package board

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tillward/tillward/hal"
)

const (
	systemBus  = "unix:path=/run/dbus/system_bus_socket"
	udisks     = "org.freedesktop.UDisks2"
	disksReply = 10 * time.Second // UDisks2 may have to be started first
)

// disks are what disks say of themselves, the worst of each; negative: none
// says it.
type disks struct {
	failing                         hal.Tri
	temp, powered, badSectors, wear float64
}

var noDisks = disks{temp: math.Inf(-1), powered: -1, badSectors: -1, wear: -1}

// and is the worse of both.
func (d disks) and(o disks) disks {
	return disks{
		failing: max(d.failing, o.failing), temp: max(d.temp, o.temp), powered: max(d.powered, o.powered),
		badSectors: max(d.badSectors, o.badSectors), wear: max(d.wear, o.wear),
	}
}

// tell adds what is known to the measurements.
func (d disks) tell(m map[string]float64) {
	if d.temp > -55_000 && d.temp < 150_000 {
		m["disk_temp_mc"] = d.temp
	}
	for name, v := range map[string]float64{"disk_powered_hours": d.powered, "disk_bad_sectors": d.badSectors, "disk_wear_percent": d.wear} {
		if v >= 0 {
			m[name] = v
		}
	}
}

// watchDisks asks UDisks2 for as long as the device is open.
func (b *board) watchDisks(ctx context.Context) {
	once := sync.OnceFunc(func() { close(b.asked) })
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		d := askUDisks(ctx, b.bus)
		b.mu.Lock()
		b.disks = d
		b.mu.Unlock()
		once()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// askUDisks asks for all drives that stay in the box. It reads properties and
// what was read from the drives before, for which nobody needs a privilege;
// that drives are asked again is up to UDisks2.
func askUDisks(ctx context.Context, address string) disks {
	ctx, cancel := context.WithTimeout(ctx, disksReply)
	defer cancel()
	conn, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		return noDisks
	}
	defer conn.Close()
	var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	const list = "org.freedesktop.DBus.ObjectManager.GetManagedObjects"
	if conn.Object(udisks, "/org/freedesktop/UDisks2").CallWithContext(ctx, list, 0).Store(&objects) != nil {
		return noDisks
	}
	worst := noDisks
	for path, o := range objects {
		if drive := o[udisks+".Drive"]; drive == nil || value[bool](drive, "Removable") || value[string](drive, "ConnectionBus") == "usb" {
			continue
		}
		worst = worst.and(ata(o[udisks+".Drive.Ata"]))
		if p := o[udisks+".NVMe.Controller"]; p != nil {
			var more map[string]dbus.Variant
			call := conn.Object(udisks, path).CallWithContext(ctx, udisks+".NVMe.Controller.SmartGetAttributes", 0, map[string]dbus.Variant{})
			if call.Store(&more) != nil {
				more = nil
			}
			worst = worst.and(nvme(p, more))
		}
	}
	return worst
}

// value of a property; its zero when there is none of that type.
func value[T any](p map[string]dbus.Variant, name string) T {
	v, _ := p[name].Value().(T)
	return v
}

// kelvin makes 1/1000 degree Celsius of it; nothing is 0.
func kelvin(k float64) float64 {
	if k <= 0 {
		return math.Inf(-1)
	}
	return math.Round(k*1000 - 273_150)
}

// ata reads [UDisks2, Drive.Ata]. A drive that was never asked says nothing.
func ata(p map[string]dbus.Variant) disks {
	d := noDisks
	if value[uint64](p, "SmartUpdated") == 0 || !value[bool](p, "SmartEnabled") {
		return d
	}
	d.failing = hal.TriOf(value[bool](p, "SmartFailing"))
	d.temp = kelvin(value[float64](p, "SmartTemperature"))
	if s := value[uint64](p, "SmartPowerOnSeconds"); s > 0 {
		d.powered = float64(s / 3600)
	}
	if n, ok := p["SmartNumBadSectors"].Value().(int64); ok && n >= 0 {
		d.badSectors = float64(n)
	}
	return d
}

// nvme reads [UDisks2, NVMe.Controller]. That a drive is hot is no sign that it
// will fail.
func nvme(p, more map[string]dbus.Variant) disks {
	d := noDisks
	if value[uint64](p, "SmartUpdated") == 0 {
		return d
	}
	warnings := value[[]string](p, "SmartCriticalWarning")
	d.failing = hal.TriOf(slices.ContainsFunc(warnings, func(w string) bool { return w != "temperature" }))
	d.temp = kelvin(float64(value[uint16](p, "SmartTemperature")))
	d.powered = float64(value[uint64](p, "SmartPowerOnHours"))
	if used, ok := more["percent_used"].Value().(byte); ok {
		d.wear = float64(used)
	}
	return d
}

// emmc reads what the kernel knows of the chips that are soldered in: by how
// much they are worn, in steps of ten percent, and whether their spare blocks
// are used up [JEDEC JESD84-B51, EXT_CSD 267 to 269].
func (r root) emmc() disks {
	worst := noDisks
	for _, file := range r.glob("sys/block/mmcblk*/device/life_time") {
		worst = worst.and(emmcOf(string(r.read(file)), string(r.read(filepath.Join(filepath.Dir(file), "pre_eol_info")))))
	}
	return worst
}

const (
	lifeExceeded = 0x0b
	spareUrgent  = 0x03 // more than 90 % of the spare blocks are used
)

func emmcOf(lifeTime, preEOL string) disks {
	d := noDisks
	for f := range strings.FieldsSeq(lifeTime) {
		v, err := strconv.ParseUint(strings.TrimPrefix(f, "0x"), 16, 8)
		if err != nil || v == 0 || v > lifeExceeded { // 0: not told
			continue
		}
		d.wear = max(d.wear, float64(v*10))
		d.failing = max(d.failing, hal.TriOf(v == lifeExceeded))
	}
	v, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(preEOL), "0x"), 16, 8)
	if err == nil && v >= 1 && v <= spareUrgent {
		d.failing = max(d.failing, hal.TriOf(v == spareUrgent))
	}
	return d
}
