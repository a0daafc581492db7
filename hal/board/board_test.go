package board_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/haltest"
)

const noBus = "unix:path=/nonexistent/bus"

func openBox(t *testing.T, d board.Driver, o map[string]string) hal.Device {
	t.Helper()
	box, err := d.Open(t.Context(), hal.Config{ID: "box", Options: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })
	return box
}

func stats(t *testing.T, d hal.Device) map[string]float64 {
	t.Helper()
	list, err := d.(hal.Statistics).Statistics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]float64{}
	for _, s := range list {
		if _, twice := m[s.Name]; twice {
			t.Errorf("%s is told twice", s.Name)
		}
		m[s.Name] = s.Value
	}
	return m
}

// write makes files below root, each as a whole: a driver may look at any
// moment.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sound is a box in order.
var sound = map[string]string{
	"proc/uptime":                              "1234.56 99.00\n",
	"proc/loadavg":                             "0.42 0.30 0.20 1/100 999\n",
	"proc/meminfo":                             "MemTotal:        2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\nSwapTotal: 100 kB\nSwapFree: 50 kB\nHugePages_Total:       7\n",
	"proc/stat":                                "cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 1 2 3 4\n",
	"proc/device-tree/model":                   "Till 3000\x00",
	"sys/class/thermal/thermal_zone0/temp":     "41500\n",
	"sys/class/thermal/thermal_zone1/temp":     "45250\n",
	"sys/class/thermal/thermal_zone2/temp":     "-274000\n",
	"sys/block/mmcblk0/device/life_time":       "0x01 0x02\n",
	"sys/block/mmcblk0/device/pre_eol_info":    "0x01\n",
	"sys/class/hwmon/hwmon0/name":              "coretemp\n",
	"sys/class/hwmon/hwmon0/temp1_input":       "99000\n",
	"sys/block/mmcblk1/device/something_other": "0x0b\n",
}

// rig is a box that a test can break.
type rig struct {
	t    *testing.T
	root string

	mu       sync.Mutex
	free     float64
	unsynced bool
	hang     chan struct{}
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, root: t.TempDir(), free: 500}
	write(t, r.root, sound)
	return r
}

func (r *rig) set(do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
}

func (r *rig) driver() board.Driver {
	return board.Rigged(r.root, noBus, func(string) (float64, float64, error) {
		r.mu.Lock()
		hang := r.hang
		r.mu.Unlock()
		if hang != nil {
			<-hang
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return 1000, r.free, nil
	}, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.unsynced
	})
}

// file changes a file while on.
func (r *rig) file(name, broken string) func(bool) {
	return func(on bool) {
		text := sound[name]
		if on {
			text = broken
		}
		write(r.t, r.root, map[string]string{name: text})
	}
}

func TestBoardConformance(t *testing.T) {
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		r := newRig(t)
		return haltest.Bench{
			Open: func(t *testing.T) hal.Device { return openBox(t, r.driver(), nil) },
			Faults: []haltest.Fault{
				{Name: "disk full", Sensor: "M_DiskLow", On: "M_DISK_LOW", Off: "M_DISK_OK", Set: func(on bool) {
					r.set(func() {
						if r.free = 500; on {
							r.free = 10
						}
					})
				}},
				{Name: "memory full", Sensor: "M_MemoryLow", On: "M_MEMORY_LOW", Off: "M_MEMORY_OK", Set: r.file("proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 20 kB\n")},
				{Name: "hot", Sensor: "M_HostHot", On: "M_HOST_HOT", Off: "M_HOST_COOL", Set: r.file("sys/class/thermal/thermal_zone1/temp", "97000")},
				{Name: "disk fails", Sensor: "M_DiskFailing", On: "M_DISK_FAILING", Off: "M_DISK_HEALTHY", Set: r.file("sys/block/mmcblk0/device/pre_eol_info", "0x03")},
				{Name: "clock", Sensor: "M_ClockUnsynced", On: "M_CLOCK_UNSYNCED", Off: "M_CLOCK_SYNCED", Set: func(on bool) { r.set(func() { r.unsynced = on }) }},
			},
			Mute: func(on bool) { // a file system of the network that went
				r.set(func() {
					switch {
					case on && r.hang == nil:
						r.hang = make(chan struct{})
					case !on && r.hang != nil:
						close(r.hang)
						r.hang = nil
					}
				})
			},
			Blind: func(t *testing.T) hal.Device {
				if err := os.RemoveAll(filepath.Join(r.root, "proc")); err != nil {
					t.Fatal(err)
				}
				return openBox(t, r.driver(), nil)
			},
			Unseen: []string{"M_MemoryLow"},
			Output: func() int { return 0 }, // there is nothing that moves
			Feed: func(t *testing.T, d hal.Device, number string) {
				for _, name := range []string{"sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name", "sys/class/dmi/id/bios_version", "proc/device-tree/model"} {
					write(t, r.root, map[string]string{name: number + "\n"})
				}
				look(t, d)
			},
			Observe: func(t *testing.T) hal.Device { return openBox(t, r.driver(), nil) },
			Compete: func(context.Context) error {
				_, err := os.ReadFile(filepath.Join(r.root, "proc/meminfo"))
				return err
			},
			NotApplicable: map[int]string{
				4: "the agent runs on the box: when it is gone, so is the driver",
				5: "the kernel makes no noise; what is not understood is left out, see FuzzProc",
			},
		}
	})
}

func TestThisBox(t *testing.T) {
	d := openBox(t, board.Driver{Bus: noBus}, nil)
	m := stats(t, d)
	for _, name := range []string{"uptime_s", "memory_total_bytes", "memory_free_bytes", "disk_total_bytes", "disk_free_bytes"} {
		if m[name] <= 0 {
			t.Errorf("%s: got %v", name, m[name])
		}
	}
	if m["memory_free_bytes"] > m["memory_total_bytes"] || m["disk_free_bytes"] > m["disk_total_bytes"] {
		t.Errorf("more is free than there is: %v", m)
	}
	s := look(t, d)
	if s.Power != hal.PowerOnline || s.Sensors["M_DiskLow"] == hal.Unknown || s.Sensors["M_MemoryLow"] == hal.Unknown {
		t.Errorf("this box: %+v", s)
	}
	// Nobody sets the clock of a machine that runs tests: that is no fault.
	if s.Sensors["M_ClockUnsynced"] == hal.Yes && s.Reason == "M_CLOCK_UNSYNCED" && s.Health != hal.Attention {
		t.Errorf("an unsynced clock alone: %+v", s)
	}
}

func TestKnownBox(t *testing.T) {
	r := newRig(t)
	d := openBox(t, r.driver(), nil)
	m := stats(t, d)
	for name, want := range map[string]float64{
		"uptime_s": 1234.56, "load1": 0.42, "memory_total_bytes": 2 << 20, "memory_free_bytes": 1 << 20, "swap_total_bytes": 100 << 10, "swap_free_bytes": 50 << 10,
		"temp_mc": 45250, "disk_total_bytes": 1000, "disk_free_bytes": 500, "clock_offset_us": 250, "clock_error_us": 1000, "disk_wear_percent": 20,
	} {
		if m[name] != want {
			t.Errorf("%s: got %v, want %v", name, m[name], want)
		}
	}
	for _, name := range []string{"cpu_percent", "disk_temp_mc", "disk_powered_hours", "disk_bad_sectors"} {
		if v, ok := m[name]; ok {
			t.Errorf("%s: got %v from nothing", name, v)
		}
	}
	write(t, r.root, map[string]string{"proc/stat": "cpu  150 10 110 820 10 0 0 0 99 0\n"}) // 70 of 100 ticks
	if v := stats(t, d)["cpu_percent"]; v != 70 {
		t.Errorf("cpu_percent: got %v, want 70", v)
	}
	if v := stats(t, d)["cpu_percent"]; v != 70 {
		t.Errorf("no tick later cpu_percent is %v", v)
	}
	if i := d.Info(); i.Model != "Till 3000" || i.Maker != "" {
		t.Errorf("identity %+v", i)
	}
	if s := look(t, d); s.Health != hal.OK || s.Sensors["M_DiskFailing"] != hal.No || s.Sensors["M_ClockUnsynced"] != hal.No {
		t.Errorf("a sound box: %+v", s)
	}
}

// TestBareBox holds that what a box does not tell is left out.
func TestBareBox(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"proc/uptime": "garbage", "proc/loadavg": "", "proc/meminfo": "MemTotal: many kB\n", "proc/stat": "cpu 1 2 x 4 5",
		"sys/class/thermal/thermal_zone0/temp": "hot", "sys/block/mmcblk0/device/life_time": "0x00 0x00\n",
	})
	d := openBox(t, board.Driver{Root: root, Bus: noBus}, nil)
	m := stats(t, d)
	for _, name := range []string{"uptime_s", "load1", "cpu_percent", "memory_total_bytes", "memory_free_bytes", "temp_mc", "disk_wear_percent"} {
		if v, ok := m[name]; ok {
			t.Errorf("%s: got %v from nothing", name, v)
		}
	}
	s := look(t, d)
	for _, name := range []string{"M_MemoryLow", "M_HostHot", "M_DiskFailing"} {
		if s.Sensors[name] != hal.Unknown {
			t.Errorf("%s reads %v from nothing", name, s.Sensors[name])
		}
	}
	if s.Health == hal.OK {
		t.Errorf("a box that tells nothing is %s", s.Health)
	}
}

// TestClockIsNoFault holds that a clock which nobody sets is worth a look and
// no more, and does not hide what is worse.
func TestClockIsNoFault(t *testing.T) {
	r := newRig(t)
	r.unsynced = true
	d := openBox(t, r.driver(), nil)
	if s := look(t, d); s.Health != hal.Attention || s.Reason != "M_CLOCK_UNSYNCED" {
		t.Errorf("an unsynced clock: %+v", s)
	}
	c, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Internal)
	if err != nil || c.OK || len(c.Checks) != 5 || c.Checks[4].OK || c.Checks[4].Code != "M_CLOCK_UNSYNCED" || !c.Checks[0].OK {
		t.Errorf("checked: %+v, %v", c, err)
	}
	r.set(func() { r.free = 1 })
	if s := look(t, d); s.Reason != "M_DISK_LOW" {
		t.Errorf("and a full disk: %+v", s)
	}
	if _, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.External); !errors.Is(err, &hal.Error{Code: "E_ILLEGAL"}) {
		t.Errorf("external: %v", err)
	}
}

// TestThresholds holds that they are as configured, and do not flap.
func TestThresholds(t *testing.T) {
	r := newRig(t)
	d := openBox(t, r.driver(), map[string]string{"disk_low_percent": "30", "hysteresis_percent": "10"})
	for _, step := range []struct {
		free float64
		want hal.Tri
	}{{310, hal.No}, {300, hal.Yes}, {390, hal.Yes}, {400, hal.No}, {310, hal.No}} {
		r.set(func() { r.free = step.free })
		if s := look(t, d); s.Sensors["M_DiskLow"] != step.want {
			t.Errorf("with %v of 1000 free: got %v, want %v", step.free, s.Sensors["M_DiskLow"], step.want)
		}
	}
}

// TestHwmon holds that a box without thermal zones tells its processor's
// temperature, and not that of something else.
func TestHwmon(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"sys/class/hwmon/hwmon0/name": "coretemp\n", "sys/class/hwmon/hwmon0/temp1_input": "51000\n",
		"sys/class/hwmon/hwmon1/name": "nvme\n", "sys/class/hwmon/hwmon1/temp1_input": "66000\n",
	})
	if v := stats(t, openBox(t, board.Driver{Root: root, Bus: noBus}, nil))["temp_mc"]; v != 51000 {
		t.Errorf("got %v, want 51000", v)
	}
}

func TestEMMC(t *testing.T) {
	for _, test := range []struct {
		life, eol string
		failing   hal.Tri
		wear      float64
	}{
		{"0x01 0x02\n", "0x01\n", hal.No, 20},
		{"0x0b 0x01\n", "0x01\n", hal.Yes, 110},
		{"0x01 0x01\n", "0x02\n", hal.No, 10}, // a warning, which the wear tells too
		{"0x01 0x01\n", "0x03\n", hal.Yes, 10},
		{"0x00 0x00\n", "0x00\n", hal.Unknown, -1},
		{"0x0c 0xff\n", "0x07\n", hal.Unknown, -1},
		{"", "", hal.Unknown, -1},
		{"worn", "out", hal.Unknown, -1},
	} {
		if f, w := board.EMMC(test.life, test.eol); f != test.failing || w != test.wear {
			t.Errorf("%q %q: got %v, %v; want %v, %v", test.life, test.eol, f, w, test.failing, test.wear)
		}
	}
}

// FuzzProc holds that whatever the kernel or a disk writes, no number comes out
// that is none.
func FuzzProc(f *testing.F) {
	for _, text := range sound {
		f.Add(text)
	}
	f.Add("cpu  1 2 3 nan 5\n")
	f.Add("MemTotal: Inf kB\n")
	f.Add("MemTotal: 1e400 kB\nMemAvailable: -1 kB\n")
	f.Add("0x0b 0x0b\n0x03")
	f.Fuzz(func(t *testing.T, text string) {
		for name, v := range board.ReadProc(text) {
			if !(v >= 0 && v < 1e308) {
				t.Errorf("%s: %s", name, fmt.Sprint(v))
			}
		}
	})
}
