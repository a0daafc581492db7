package port_test

import (
	"strings"
	"testing"

	"github.com/tillward/tillward/hal/port"
)

func TestParse(t *testing.T) {
	for _, test := range []struct{ in, key, full, kind string }{
		{"192.0.2.10:9100", "tcp:192.0.2.10:9100", "tcp:192.0.2.10:9100", "Ethernet"},
		{"tcp:printer.local:9100", "tcp:printer.local:9100", "tcp:printer.local:9100", "Ethernet"},
		{"[2001:db8::1]:9100", "tcp:[2001:db8::1]:9100", "tcp:[2001:db8::1]:9100", "Ethernet"},
		{"usb:04B8:0E15", "usb:04b8:0e15", "usb:04b8:0e15", "USB"},
		{"usb:04b8:0e15:J5ZK-01", "usb:04b8:0e15:J5ZK-01", "usb:04b8:0e15:J5ZK-01", "USB"},
		{"usb:04b8:0e15@1-1.2", "usb:04b8:0e15@1-1.2", "usb:04b8:0e15@1-1.2", "USB"},
		{"/dev/usb/lp0", "/dev/usb/lp0", "/dev/usb/lp0", "USB"},
		{"serial:/dev/ttyS0", "serial:/dev/ttyS0", "serial:/dev/ttyS0?baud=9600&parity=none&bits=8&stop=1&flow=none", "RS232"},
		{"serial:/dev/serial/by-id/x_1?flow=rtscts&baud=115200", "serial:/dev/serial/by-id/x_1", "serial:/dev/serial/by-id/x_1?baud=115200&parity=none&bits=8&stop=1&flow=rtscts", "RS232"},
	} {
		a, err := port.Parse(test.in)
		if err != nil || a.Key() != test.key || a.String() != test.full || a.Interface() != test.kind {
			t.Errorf("%q: got %q, %q, %q, %v; want %q, %q, %q", test.in, a.Key(), a.String(), a.Interface(), err, test.key, test.full, test.kind)
		}
	}
}

// Whoever wrote it wrong reads what to write.
func TestParseSaysWhatToWrite(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "host:port",
		"nowhere":                          "host:port",
		":9100":                            "host:port",
		"a b:9100":                         "host:port",
		"h:0":                              "1 to 65535",
		"h:raw":                            "9100",
		"usb:4b8:e15":                      "usb:04b8:0e15",
		"usb:04b8:0e15:a b":                "@SOCKET",
		"usb:04b8:0e15@root":               "@SOCKET",
		"/dev/ttyS0":                       "serial:/dev/ttyS0?baud=9600",
		"serial:ttyS0":                     "serial:/dev/ttyS0",
		"serial:/dev/../etc/passwd":        "serial:/dev/ttyS0",
		"serial:/dev/ttyS0?baud=9601":      "115200",
		"serial:/dev/ttyS0?baud=-9600":     "115200",
		"serial:/dev/ttyS0?parity=mark":    "none, even or odd",
		"serial:/dev/ttyS0?bits=9":         "7 or 8",
		"serial:/dev/ttyS0?stop=3":         "1 or 2",
		"serial:/dev/ttyS0?flow=yes":       "rtscts",
		"serial:/dev/ttyS0?speed=9600":     "baud, parity, bits, stop, flow",
		"serial:/dev/ttyS0?baud=9600;even": "115200",
	} {
		if a, err := port.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v; want an error that says %q", in, a, err, want)
		}
	}
}

func TestUSBKey(t *testing.T) {
	for _, test := range []struct{ serial, want string }{
		{"J5ZK012345", "usb:04b8:0e15:J5ZK012345"},
		{"", "usb:04b8:0e15@1-1"},
		{"two words", "usb:04b8:0e15@1-1"},
		{"4111111111111111", "usb:04b8:0e15@1-1"}, // must fail: it could be a card's
	} {
		if got := port.USBKey("04B8", "0E15", test.serial, "1-1"); got != test.want {
			t.Errorf("%q: got %q, want %q", test.serial, got, test.want)
		}
	}
}

// What Parse takes it takes again as it says it, and it means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"h:9100", "tcp:[::1]:1", "usb:04b8:0e15:S@1-1.2", "/dev/usb/lp7", "serial:/dev/ttyS0?baud=1200&parity=even&bits=7&stop=2&flow=xonxoff", "serial:/dev/x?&&="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := port.Parse(s)
		if err != nil {
			return
		}
		again, err := port.Parse(a.String())
		if err != nil || again != a {
			t.Errorf("%q gave %q, and that %q, %v", s, a, again, err)
		}
		if a.Interface() == "" || strings.ContainsAny(a.Key(), " \n\x00") {
			t.Errorf("%q: key %q", s, a.Key())
		}
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add("MFG:EPSON;CMD:ESC/POS;MDL:TM-T88VI;CLS:PRINTER;SN:J5ZK012345;")
	f.Add("MANUFACTURER:a;MFG:b;;:;x:\x00y;" + strings.Repeat("k:v;", 400))
	f.Fuzz(func(t *testing.T, s string) {
		for k, v := range port.ParseIdentity(s) {
			if k == "" || v == "" || len(v) > 64 || strings.ContainsFunc(k+v, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q gave %q: %q", s, k, v)
			}
		}
	})
}

func TestIdentity(t *testing.T) {
	id := port.ParseIdentity("MFG:EPSON; CMD:ESC/POS;MDL: TM-T88VI ;CLS:PRINTER;SN:J5ZK;MFG:other;")
	for k, want := range map[string]string{"MANUFACTURER": "EPSON", "COMMAND SET": "ESC/POS", "MODEL": "TM-T88VI", "SERIALNUMBER": "J5ZK"} {
		if id[k] != want {
			t.Errorf("%s: got %q, want %q", k, id[k], want)
		}
	}
}
