// Package board has the drivers of what is on the board of the box itself: its
// health (driver "board"), the switches that are wired to its GPIO lines
// (driver "switch"): tamper, door and cash drawer, and the chips on its I2C buses
// (driver "i2c"): temperature and supply voltage. It only reads what is told;
// what is not there is left out and never guessed.
package board

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	lookEvery = 10 * time.Second
	diskEvery = 10 * time.Minute // disks say little that is new
)

// Driver is the driver "board". It watches the box: disk, memory, temperature,
// clock, and what the disks say of themselves.
//
// Statistics are uptime_s, load1, cpu_percent since the look before,
// memory_total_bytes, memory_free_bytes (what can be had without swapping),
// swap_total_bytes, swap_free_bytes, disk_total_bytes, disk_free_bytes (for
// users), temp_mc (the hottest, in 1/1000 degree Celsius), clock_offset_us,
// clock_error_us (at most), and of the disks: disk_temp_mc, disk_powered_hours,
// disk_bad_sectors, disk_wear_percent (of what they are made for). Of disks
// that tell is the worst told.
//
// SMART comes from UDisks2 and is unknown without it; eMMC tells the kernel.
//
// Options: disk = "/" is the file system whose space is told; disk_low_percent
// = "5" and memory_low_percent = "5" are little, until there is more by
// hysteresis_percent = "2"; hot_mc = "85000" is hot, until it is cooler by
// hysteresis_mc = "5000"; smart = "off" asks nobody for SMART.
type Driver struct {
	Root string // where proc and sys are; empty: the box itself
	Bus  string // D-Bus address of UDisks2; empty: the system's bus

	// For tests.
	space func(path string) (total, free float64, err error)
	clock func() (clock, error)
	every time.Duration
}

// Name implements hal.Driver.
func (Driver) Name() string { return "board" }

// Open implements hal.Driver.
func (d Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	b, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	if _, _, err := b.space(b.disk); err != nil {
		return nil, &hal.Error{Code: "E_NOEXIST", Op: "open " + cfg.ID, Err: fmt.Errorf("disk %s: %w", b.disk, err)}
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop, b.done = cancel, ctx.Done()
	b.wg.Go(func() { b.track.Supervise(func() { b.run(ctx, cmp.Or(d.every, lookEvery)) }) })
	if b.smart {
		b.wg.Go(func() { b.track.Supervise(func() { b.watchDisks(ctx) }) })
	}
	return b, nil
}

// Check implements hal.Checker.
func (d Driver) Check(cfg hal.Config) ([]hal.Info, error) {
	b, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{b.known()}, nil
}

func (d Driver) configure(cfg hal.Config) (*board, error) {
	o := hal.ReadOptions(cfg, "disk", "disk_low_percent", "memory_low_percent", "hysteresis_percent", "hot_mc", "hysteresis_mc", "smart")
	percent, mc := o.Whole("hysteresis_percent", 2, 0, 50), o.Whole("hysteresis_mc", 5_000, 0, 50_000)
	b := &board{
		root: root(cmp.Or(d.Root, "/")), disk: cmp.Or(cfg.Options["disk"], "/"), bus: cmp.Or(d.Bus, systemBus), id: cfg.ID,
		space: d.space, clock: d.clock, disks: noDisks, asked: make(chan struct{}), ask: make(chan chan<- struct{}),
		limits: map[string]limit{
			"M_DiskLow":   below(o.Whole("disk_low_percent", 5, 1, 90), percent),
			"M_MemoryLow": below(o.Whole("memory_low_percent", 5, 1, 90), percent),
			"M_HostHot":   above(o.Whole("hot_mc", 85_000, 0, 150_000), mc),
		},
		track: hal.NewTracker(hal.Host), smart: o.Word("smart", "", "off") == "",
	}
	if !filepath.IsAbs(b.disk) {
		o.Refuse("disk = %q: write the absolute path of a folder", b.disk)
	}
	if b.space == nil {
		b.space = space
	}
	if b.clock == nil {
		b.clock = kernelClock
	}
	return b, o.Err()
}

// board is the box.
type board struct {
	root   root
	disk   string
	bus    string
	id     string
	space  func(string) (float64, float64, error)
	clock  func() (clock, error)
	limits map[string]limit
	smart  bool // the disks are asked
	track  *hal.Tracker
	ask    chan chan<- struct{} // for a look now; closed after it
	asked  chan struct{}        // closed when the disks were asked once
	stop   context.CancelFunc
	done   <-chan struct{} // closed by stop
	wg     sync.WaitGroup

	mu       sync.Mutex
	measured map[string]float64
	disks    disks // what UDisks2 says

	// Of run alone.
	stuck stuck
	cpu   cpuTimes
}

// String implements conn.Resource.
func (b *board) String() string { return "board(" + b.id + ")" }

// Halt implements conn.Resource.
func (b *board) Halt() error { return b.Close() }

// Close implements io.Closer.
func (b *board) Close() error {
	b.stop()
	b.wg.Wait()
	b.track.Close()
	return nil
}

// Info implements hal.Device.
func (b *board) Info() hal.Info {
	text := func(names ...string) string {
		for _, name := range names {
			if s := strings.Trim(string(b.root.read(name)), " \n\x00"); s != "" && !hal.MayHoldPAN(s) {
				return s[:min(len(s), 64)]
			}
		}
		return ""
	}
	i := b.known()
	i.Maker, i.Model = text("sys/class/dmi/id/sys_vendor"), text("sys/class/dmi/id/product_name", "proc/device-tree/model")
	i.Firmware = text("sys/class/dmi/id/bios_version")
	return i
}

// known is what is known without looking.
func (b *board) known() hal.Info {
	return hal.Info{ID: b.id, Category: hal.Host, Driver: "board", Claim: hal.Observe}
}

// Events implements hal.Notifier.
func (b *board) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return b.track.Events(ctx) }

// Status implements hal.StatusReader. It looks now.
func (b *board) Status(ctx context.Context) (hal.Status, error) {
	if err := b.look(ctx); err != nil {
		return hal.Status{}, err
	}
	return b.track.Status(), nil
}

// Statistics implements hal.Statistics. It looks now.
func (b *board) Statistics(ctx context.Context) ([]hal.Stat, error) {
	if err := b.look(ctx); err != nil {
		return nil, err
	}
	out := b.track.Stats()
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, v := range b.measured {
		out = append(out, hal.Stat{Name: name, Value: v})
	}
	slices.SortFunc(out, func(a, b hal.Stat) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// look has run look now.
func (b *board) look(ctx context.Context) error {
	looked := make(chan struct{})
	ask := b.ask
	for {
		select {
		case ask <- looked:
			ask = nil
		case <-looked:
			return nil
		case <-b.done: // what was seen last
			return nil
		case <-ctx.Done():
			return &hal.Error{Code: "E_TIMEOUT", Op: "look at the box", Err: ctx.Err()}
		}
	}
}

// run looks for as long as the device is open.
func (b *board) run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		b.take(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case asked := <-b.ask:
			b.take(ctx)
			close(asked)
		}
	}
}

// take looks once. A file system may hold who asks for its space.
func (b *board) take(ctx context.Context) {
	m, err := patiently(ctx, &b.stuck, b.measure, func(map[string]float64) {})
	if ctx.Err() != nil {
		return
	}
	sensors := map[string]hal.Tri{}
	if err == nil {
		was := b.track.Status().Sensors
		check := func(sensor string, v float64, told bool) {
			if told {
				sensors[sensor] = b.limits[sensor].over(v, was[sensor])
			}
		}
		share := func(free, total string) (float64, bool) {
			all, told := m[total]
			left, both := m[free]
			return 100 * left / max(all, 1), told && both && all > 0
		}
		v, told := share("disk_free_bytes", "disk_total_bytes")
		check("M_DiskLow", v, told)
		v, told = share("memory_free_bytes", "memory_total_bytes")
		check("M_MemoryLow", v, told)
		v, told = m["temp_mc"]
		check("M_HostHot", v, told)
	}
	if c, err := b.clock(); err == nil {
		sensors["M_ClockUnsynced"] = hal.TriOf(c.unsynced)
		if m != nil {
			m["clock_offset_us"], m["clock_error_us"] = c.offset, c.worst
		}
	}
	b.mu.Lock()
	d := b.disks.and(b.root.emmc())
	if m != nil {
		d.tell(m)
	}
	b.measured = m
	b.mu.Unlock()
	sensors["M_DiskFailing"] = d.failing
	b.track.Update(hal.PowerOnline, sensors)
}

// measure reads what the kernel tells.
func (b *board) measure() (map[string]float64, error) {
	m := map[string]float64{}
	add := func(name string, v float64, ok bool) {
		if ok {
			m[name] = v
		}
	}
	v, ok := first(b.root.read("proc/uptime"))
	add("uptime_s", v, ok)
	v, ok = first(b.root.read("proc/loadavg"))
	add("load1", v, ok)
	now := cpuOf(b.root.read("proc/stat"))
	if now.total-b.cpu.total >= 1 || b.cpu.total > now.total {
		if b.cpu.total > 0 && now.total > b.cpu.total {
			b.cpu.percent = 100 * min(1, max(0, (now.busy-b.cpu.busy)/(now.total-b.cpu.total)))
			b.cpu.told = true
		}
		b.cpu.busy, b.cpu.total = now.busy, now.total
	}
	add("cpu_percent", b.cpu.percent, b.cpu.told)
	rows := meminfo(b.root.read("proc/meminfo"))
	for row, name := range map[string]string{
		"MemTotal": "memory_total_bytes", "MemAvailable": "memory_free_bytes", "SwapTotal": "swap_total_bytes", "SwapFree": "swap_free_bytes",
	} {
		v, ok = rows[row]
		add(name, v, ok)
	}
	v, ok = b.root.hottest()
	add("temp_mc", v, ok)
	total, free, err := b.space(b.disk)
	add("disk_total_bytes", total, err == nil)
	add("disk_free_bytes", free, err == nil)
	return m, nil
}

// CheckHealth implements hal.HealthChecker.
func (b *board) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if level != hal.Internal {
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: fmt.Errorf("the box has an internal check only")}
	}
	began := time.Now()
	st, err := b.Status(ctx)
	if err != nil {
		return hal.Report{}, err
	}
	r := hal.Report{OK: st.Health == hal.OK, Text: "The box is well."}
	if !r.OK {
		r.Text = "The box is not well. " + st.Advice
	}
	for _, c := range []struct{ id, sensor, code string }{
		{"disk", "M_DiskLow", "M_DISK_LOW"},
		{"memory", "M_MemoryLow", "M_MEMORY_LOW"},
		{"temperature", "M_HostHot", "M_HOST_HOT"},
		{"smart", "M_DiskFailing", "M_DISK_FAILING"},
		{"clock", "M_ClockUnsynced", "M_CLOCK_UNSYNCED"},
	} {
		step := hal.Check{ID: c.id, OK: st.Sensors[c.sensor] == hal.No, Took: time.Since(began)}
		switch st.Sensors[c.sensor] {
		case hal.Unknown:
			continue // nothing was looked at
		case hal.Yes:
			step.Code = c.code
		}
		r.Checks = append(r.Checks, step)
	}
	return r, nil
}

// root is where proc and sys are.
type root string

func (r root) read(name string) []byte {
	text, err := os.ReadFile(filepath.Join(string(r), name))
	if err != nil {
		return nil
	}
	return text
}

func (r root) glob(pattern string) []string {
	files, err := filepath.Glob(filepath.Join(string(r), pattern))
	if err != nil {
		return nil
	}
	for i := range files {
		files[i] = strings.TrimPrefix(files[i], string(r))
	}
	return files
}
