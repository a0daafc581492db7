package board_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
)

// bus starts a D-Bus daemon of its own and returns its address.
func bus(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus") // t.TempDir is too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "bus.conf")
	err = os.WriteFile(config, fmt.Appendf(nil, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path=%s/socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`, dir), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "dbus-daemon", "--config-file="+config, "--nofork", "--print-address") // #nosec G204 -- a test
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install dbus-daemon", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon: %v", err)
	}
	return strings.TrimSpace(line)
}

type objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant

// mockUDisks answers as UDisks2 2.10 does. It is a mock: no disk with SMART can
// be had here.
type mockUDisks struct{ objects objects }

func (m mockUDisks) GetManagedObjects() (objects, *dbus.Error) { return m.objects, nil }

type mockNVMe struct{ used byte }

func (m mockNVMe) SmartGetAttributes(map[string]dbus.Variant) (map[string]dbus.Variant, *dbus.Error) {
	return map[string]dbus.Variant{"percent_used": dbus.MakeVariant(m.used), "avail_spare": dbus.MakeVariant(byte(100))}, nil
}

func startMock(t *testing.T, o objects) string {
	t.Helper()
	address := bus(t)
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.Export(mockUDisks{o}, "/org/freedesktop/UDisks2", "org.freedesktop.DBus.ObjectManager"); err != nil {
		t.Fatal(err)
	}
	for path, i := range o {
		if i["org.freedesktop.UDisks2.NVMe.Controller"] != nil {
			if err := conn.Export(mockNVMe{7}, path, "org.freedesktop.UDisks2.NVMe.Controller"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := conn.RequestName("org.freedesktop.UDisks2", 0); err != nil {
		t.Fatal(err)
	}
	return address
}

func properties(list ...any) map[string]dbus.Variant {
	p := map[string]dbus.Variant{}
	for i := 0; i < len(list); i += 2 {
		p[list[i].(string)] = dbus.MakeVariant(list[i+1])
	}
	return p
}

// TestMockUDisks reads SMART from a mock of UDisks2.
func TestMockUDisks(t *testing.T) {
	inside := properties("Removable", false, "ConnectionBus", "", "Serial", "4111111111111111")
	sata := func(failing bool) map[string]dbus.Variant {
		return properties("SmartSupported", true, "SmartEnabled", true, "SmartUpdated", uint64(1700000000), "SmartFailing", failing,
			"SmartTemperature", 313.15, "SmartPowerOnSeconds", uint64(7200*3600), "SmartNumBadSectors", int64(3))
	}
	nvme := func(warnings ...string) map[string]dbus.Variant {
		return properties("SmartUpdated", uint64(1700000000), "SmartCriticalWarning", warnings, "SmartTemperature", uint16(320), "SmartPowerOnHours", uint64(100))
	}
	const drive, ata, controller = "org.freedesktop.UDisks2.Drive", "org.freedesktop.UDisks2.Drive.Ata", "org.freedesktop.UDisks2.NVMe.Controller"
	for _, test := range []struct {
		name    string
		objects objects
		failing hal.Tri
		want    map[string]float64
	}{
		{"healthy disk", objects{"/d/a": {drive: inside, ata: sata(false)}}, hal.No, map[string]float64{"disk_temp_mc": 40_000, "disk_powered_hours": 7200, "disk_bad_sectors": 3}},
		{"failing disk", objects{"/d/a": {drive: inside, ata: sata(true)}}, hal.Yes, map[string]float64{"disk_temp_mc": 40_000}},
		{"healthy NVMe", objects{"/d/a": {drive: inside, controller: nvme()}}, hal.No, map[string]float64{"disk_temp_mc": 46_850, "disk_powered_hours": 100, "disk_wear_percent": 7}},
		{"hot NVMe", objects{"/d/a": {drive: inside, controller: nvme("temperature")}}, hal.No, nil},
		{"failing NVMe", objects{"/d/a": {drive: inside, controller: nvme("temperature", "spare")}}, hal.Yes, nil},
		{"one of two fails", objects{"/d/a": {drive: inside, ata: sata(false)}, "/d/b": {drive: inside, controller: nvme("readonly")}}, hal.Yes, map[string]float64{"disk_temp_mc": 46_850, "disk_powered_hours": 7200}},
		{"a stick fails", objects{"/d/a": {drive: properties("Removable", true), ata: sata(true)}, "/d/b": {drive: properties("Removable", false, "ConnectionBus", "usb"), ata: sata(true)}}, hal.Unknown, nil},
		{"never asked", objects{"/d/a": {drive: inside, ata: properties("SmartEnabled", true, "SmartUpdated", uint64(0), "SmartFailing", false)}}, hal.Unknown, nil},
		{"switched off", objects{"/d/a": {drive: inside, ata: properties("SmartEnabled", false, "SmartUpdated", uint64(5), "SmartFailing", false)}}, hal.Unknown, nil},
		{"other types", objects{"/d/a": {drive: properties("Removable", "no"), ata: properties("SmartEnabled", "yes", "SmartUpdated", int32(5), "SmartFailing", "no")}}, hal.Unknown, nil},
		{"no disks", objects{}, hal.Unknown, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			d := openBox(t, board.Driver{Root: root, Bus: startMock(t, test.objects)}, nil)
			board.WaitForDisks(d)
			if s := look(t, d); s.Sensors["M_DiskFailing"] != test.failing {
				t.Errorf("failing: got %v, want %v", s.Sensors["M_DiskFailing"], test.failing)
			}
			m := stats(t, d)
			for name, want := range test.want {
				if m[name] != want {
					t.Errorf("%s: got %v, want %v", name, m[name], want)
				}
			}
			if test.failing == hal.Unknown && (m["disk_temp_mc"] != 0 || m["disk_powered_hours"] != 0) {
				t.Errorf("from nothing: %v", m)
			}
		})
	}
}

// TestMuteBus holds that a bus which does not answer keeps nobody from closing.
func TestMuteBus(t *testing.T) {
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	met := make(chan struct{})
	go func() {
		c, err := l.Accept()
		close(met)
		if err == nil {
			defer c.Close()
			_, _ = c.Read(make([]byte, 1<<16))
			_, _ = c.Read(make([]byte, 1<<16))
			<-t.Context().Done()
		}
	}()
	d := openBox(t, board.Driver{Root: t.TempDir(), Bus: "unix:path=" + l.Addr().String()}, nil)
	<-met
	if s := look(t, d); s.Sensors["M_DiskFailing"] != hal.Unknown {
		t.Errorf("got %v from a bus that says nothing", s.Sensors["M_DiskFailing"])
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
