package board

import (
	"bufio"
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// space of a file system; free is what users may have.
func space(path string) (total, free float64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(path, &fs); err != nil {
		return 0, 0, err
	}
	return float64(fs.Blocks) * float64(fs.Bsize), float64(fs.Bavail) * float64(fs.Bsize), nil
}

// clock is what the kernel thinks of its clock, in microseconds.
type clock struct {
	unsynced      bool
	offset, worst float64
}

// kernelClock asks and sets nothing, for which it needs no privilege.
func kernelClock() (clock, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return clock{}, err
	}
	c := clock{unsynced: state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0, offset: float64(t.Offset), worst: float64(t.Maxerror)}
	if t.Status&unix.STA_NANO != 0 {
		c.offset /= 1000
	}
	return c, nil
}

// first returns the first number of a text.
func first(text []byte) (float64, bool) {
	fields := bytes.Fields(text)
	if len(fields) == 0 {
		return 0, false
	}
	return number(string(fields[0]))
}

// number is one that the kernel could mean.
func number(text string) (float64, bool) {
	v, err := strconv.ParseFloat(text, 64)
	return v, err == nil && v >= 0 && v < 1<<63
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

// cpuTimes are those of all processors together, in ticks since boot.
type cpuTimes struct {
	busy, total float64

	percent float64 // from one look to the next
	told    bool
}

// cpuOf reads the first line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq, steal, and two that user and nice hold already.
func cpuOf(text []byte) (t cpuTimes) {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 5 || fields[0] != "cpu" {
		return t
	}
	for i, f := range fields[1:min(len(fields), 9)] {
		v, ok := number(f)
		if !ok {
			return cpuTimes{}
		}
		t.total += v
		if i != 3 && i != 4 { // idle, and waiting for a disk
			t.busy += v
		}
	}
	return t
}

// hottest returns the highest temperature: of the thermal zones, or where there
// are none of the processor's own sensors. Those that are switched off tell
// absurd ones and do not count.
func (r root) hottest() (hot float64, ok bool) {
	files := r.glob("sys/class/thermal/thermal_zone*/temp")
	if len(files) == 0 {
		for _, name := range r.glob("sys/class/hwmon/hwmon*/name") {
			switch strings.TrimSpace(string(r.read(name))) {
			case "coretemp", "k10temp", "cpu_thermal":
				files = append(files, r.glob(filepath.Join(filepath.Dir(name), "temp*_input"))...)
			}
		}
	}
	for _, file := range files {
		mc, err := strconv.ParseFloat(strings.TrimSpace(string(r.read(file))), 64)
		if err == nil && mc > -55_000 && mc < 150_000 && mc != 0 && (!ok || mc > hot) {
			hot, ok = mc, true
		}
	}
	return hot, ok
}
