// Package board has the drivers of what is on the board of the box itself: its
// health (driver "board"), the switches that are wired to its GPIO lines
// (driver "switch"): tamper, door and cash drawer, and the chips on its I2C buses
// (driver "i2c"): temperature and supply voltage. It only reads what is told;
// what is not there is left out and never guessed.
package board

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/tillward/tillward/hal"
)

// Driver is the driver "board". It measures the box: uptime, load, memory, disk
// and, where the kernel shows one, the temperature.
//
// Options: disk = "/" is the file system whose space is told.
type Driver struct {
	Root string // where proc and sys are; empty for the box itself
}

// Name implements hal.Driver.
func (Driver) Name() string { return "board" }

// Open implements hal.Driver.
func (d Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	if err := hal.CheckOptions(cfg, "disk"); err != nil {
		return nil, err
	}
	b := &board{id: cfg.ID, root: d.Root, disk: cfg.Options["disk"]}
	if b.root == "" {
		b.root = "/"
	}
	if b.disk == "" {
		b.disk = "/"
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.disk, &fs); err != nil {
		return nil, &hal.Error{Code: "E_ILLEGAL", Op: "open " + cfg.ID, Err: fmt.Errorf("disk %s: %w", b.disk, err)}
	}
	return b, nil
}

type board struct {
	id, root, disk string
}

// String implements conn.Resource.
func (b *board) String() string { return "board(" + b.id + ")" }

// Halt implements conn.Resource.
func (*board) Halt() error { return nil }

// Close implements io.Closer.
func (*board) Close() error { return nil }

// Info implements hal.Device.
func (b *board) Info() hal.Info {
	dmi := func(name string) string {
		text := strings.TrimSpace(string(b.read("sys/class/dmi/id/" + name)))
		return text[:min(len(text), 64)]
	}
	return hal.Info{ID: b.id, Category: hal.Host, Driver: "board", Claim: hal.Observe, Maker: dmi("sys_vendor"), Model: dmi("product_name"), Firmware: dmi("bios_version")}
}

// Statistics implements hal.Statistics: uptime_s, load1, memory_total_bytes,
// memory_free_bytes (what can be had without swapping), disk_total_bytes,
// disk_free_bytes (for users) and temp_mc, the hottest zone in 1/1000 degree
// Celsius.
func (b *board) Statistics(context.Context) ([]hal.Stat, error) {
	var out []hal.Stat
	add := func(name string, value float64, ok bool) {
		if ok {
			out = append(out, hal.Stat{Name: name, Value: value})
		}
	}
	v, ok := first(b.read("proc/uptime"))
	add("uptime_s", v, ok)
	v, ok = first(b.read("proc/loadavg"))
	add("load1", v, ok)
	memory := meminfo(b.read("proc/meminfo"))
	v, ok = memory["MemTotal"]
	add("memory_total_bytes", v, ok)
	v, ok = memory["MemAvailable"]
	add("memory_free_bytes", v, ok)
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.disk, &fs); err == nil {
		add("disk_total_bytes", float64(fs.Blocks)*float64(fs.Bsize), true)
		add("disk_free_bytes", float64(fs.Bavail)*float64(fs.Bsize), true)
	}
	v, ok = b.hottest()
	add("temp_mc", v, ok)
	return out, nil
}

func (b *board) read(name string) []byte {
	text, err := os.ReadFile(filepath.Join(b.root, name))
	if err != nil {
		return nil
	}
	return text
}

// first returns the first number of a text.
func first(text []byte) (float64, bool) {
	fields := bytes.Fields(text)
	if len(fields) == 0 {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(fields[0]), 64)
	return v, err == nil && v >= 0
}

// meminfo returns the rows of /proc/meminfo in bytes.
func meminfo(text []byte) map[string]float64 {
	rows := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		kb, isNumber := first([]byte(rest))
		if ok && isNumber && strings.HasSuffix(rest, " kB") {
			rows[name] = kb * 1024
		}
	}
	return rows
}

// hottest returns the highest temperature. Zones that are switched off tell
// absurd ones and do not count.
func (b *board) hottest() (hot float64, ok bool) {
	zones, _ := filepath.Glob(filepath.Join(b.root, "sys/class/thermal/thermal_zone*/temp"))
	for _, zone := range zones {
		text, err := os.ReadFile(zone)
		if err != nil {
			continue
		}
		mc, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
		if err == nil && mc > -55_000 && mc < 150_000 && mc != 0 && (!ok || mc > hot) {
			hot, ok = mc, true
		}
	}
	return hot, ok
}
