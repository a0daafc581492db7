package boot_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

const (
	model   = "POS 500"
	running = "os/1.0.0"
	offered = "os/1.1.0"
)

func TestLogTellsTheBoot(t *testing.T) {
	f := tpmfarm.Default(running)
	events, err := boot.ParseLog(f.Log(), f.Registers())
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != len(f.Events) {
		t.Fatalf("got %d events, want %d", len(events), len(f.Events))
	}
	said := make(map[string]string)
	for i, e := range events {
		m := f.Events[i]
		if e.PCR != m.PCR || e.Type != m.Type || e.Digest != m.Digest() {
			t.Errorf("event %d: got %+v, want %+v", i, e, m)
		}
		said[m.Name] = e.What
	}
	for name, want := range map[string]string{
		"crtm":         "EV_S_CRTM_VERSION: Tillward virtual firmware 1",
		"firmware":     "EV_EFI_PLATFORM_FIRMWARE_BLOB", // numbers
		"SecureBoot":   "EV_EFI_VARIABLE_DRIVER_CONFIG: SecureBoot=1",
		"db":           "EV_EFI_VARIABLE_DRIVER_CONFIG: db",
		"separator-4":  "EV_SEPARATOR: 00000000",
		"boot-manager": `EV_EFI_BOOT_SERVICES_APPLICATION says: \EFI\BOOT\BOOTX64.EFI`,
		"kernel":       "EV_IPL says: /boot/bzImage",
		"cmdline":      "EV_IPL: kernel_cmdline: root=PARTLABEL=system ro quiet",
	} {
		if said[name] != want {
			t.Errorf("%s: got %q, want %q", name, said[name], want)
		}
	}
}

// Text that the digest does not cover is marked as what the device says, and
// cannot carry anything into a terminal.
func TestTextOfAnEventIsTheDevicesWord(t *testing.T) {
	f := tpmfarm.Default(running)
	cmdline, crtm, manager, action := f.Event("cmdline"), f.Event("crtm"), f.Event("boot-manager"), f.Event("action")
	cmdline.Data = []byte("approved_cmdline: root=PARTLABEL=system ro quiet")
	crtm.Data = []byte("\x1b[2J\r\nall is well")
	crtm.Image = []byte("something else")
	manager.Data = append(make([]byte, 32), 4, 4, 255, 255, 'x')
	action.Data = []byte(strings.Repeat("long ", 100))
	events, err := boot.ParseLog(f.Log(), f.Registers())
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range events {
		if len(e.What) > 128 || strings.ContainsFunc(e.What, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("got %q", e.What)
		}
		want := map[string]string{
			"cmdline": "EV_IPL says: approved_cmdline:", "crtm": "EV_S_CRTM_VERSION", "action": "EV_EFI_ACTION: long long",
			"boot-manager": "EV_EFI_BOOT_SERVICES_APPLICATION",
		}[f.Events[i].Name]
		if !strings.HasPrefix(e.What, want) {
			t.Errorf("%s: got %q, want %q first", f.Events[i].Name, e.What, want)
		}
	}
}

// Each of these is a device that lies about its boot.
func TestEditedLogDoesNotReplay(t *testing.T) {
	honest := tpmfarm.Default(running)
	for _, c := range []struct {
		name string
		lie  func(f tpmfarm.Firmware) tpmfarm.Firmware // what the log says
		want string
	}{
		{"honest", func(f tpmfarm.Firmware) tpmfarm.Firmware { return f }, ""},
		{"event left out", func(f tpmfarm.Firmware) tpmfarm.Firmware { return f.Without("kernel") }, "PCR 9"},
		{"register left out", func(f tpmfarm.Firmware) tpmfarm.Firmware { return f.Without("kernel", "agent") }, "PCR 9"},
		{"two registers left out", func(f tpmfarm.Firmware) tpmfarm.Firmware { return f.Without("kernel", "agent", "cmdline") }, "PCR 8"},
		{"log cut down to its head", func(tpmfarm.Firmware) tpmfarm.Firmware { return tpmfarm.Firmware{} }, "PCR 0"},
		{"digest edited", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			f.Event("kernel").Image = []byte("kernel of os/0.9.0")
			return f
		}, "PCR 9"},
		{"digest and data edited alike", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			*f.Event("SecureBoot") = *tpmfarm.Default(running).Event("PK")
			return f
		}, "PCR 7"},
		{"event added", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			f.Events = append(f.Events, *f.Event("kernel"))
			return f
		}, "PCR 9"},
		{"event moved to another register", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			f.Event("kernel").PCR = 8
			return f
		}, "PCR 8"},
		{"event moved to a register that nobody quotes", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			f.Event("kernel").PCR = 11
			return f
		}, "PCR 9"},
		{"measurement called a remark", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			f.Event("kernel").Type = 3
			return f
		}, "PCR 9"},
		{"order changed", func(f tpmfarm.Firmware) tpmfarm.Firmware {
			k, a := f.Event("kernel"), f.Event("agent")
			*k, *a = *a, *k
			return f
		}, "PCR 9"},
	} {
		events, err := boot.ParseLog(c.lie(tpmfarm.Default(running)).Log(), honest.Registers())
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: got %v", c.name, err)
		case c.want != "" && (!errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), c.want) || events != nil):
			t.Errorf("%s: got %d events and %v, want ErrLog that names %s", c.name, len(events), err, c.want)
		}
	}
}

// A register that was extended behind the firmware's back.
func TestRegisterOutsideTheLog(t *testing.T) {
	f := tpmfarm.Default(running)
	for _, pcr := range []int{3, 9} {
		g := tpmfarm.Firmware{Events: append(slices.Clone(f.Events), tpmfarm.Measured{PCR: pcr, Data: []byte("behind its back")})}
		if _, err := boot.ParseLog(f.Log(), g.Registers()); !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), "PCR "+string(rune('0'+pcr))) {
			t.Errorf("PCR %d: got %v", pcr, err)
		}
	}
	// A register without an event in the log, and with a value.
	short := f.Without("cmdline")
	if _, err := boot.ParseLog(short.Log(), f.Registers()); !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), "PCR 8") {
		t.Errorf("register that the log does not cover: got %v", err)
	}
	if _, err := boot.ParseLog(short.Log(), short.Registers()); err != nil {
		t.Errorf("register as after a reset: got %v", err)
	}
}

func TestUnreadableLogs(t *testing.T) {
	f := tpmfarm.Default(running)
	good, values := f.Log(), f.Registers()
	many := tpmfarm.Firmware{}
	for range 1025 {
		many.Events = append(many.Events, tpmfarm.Measured{PCR: 0, Data: []byte("x")})
	}
	edit := func(at int, b ...byte) []byte { return slices.Concat(good[:at], b, good[at+len(b):]) }
	for _, c := range []struct {
		name string
		log  []byte
		pcrs [][]byte
		want string
	}{
		{"nothing", nil, values, "crypto-agile"},
		{"SHA-1 log", make([]byte, 400), values, "crypto-agile"},
		{"cut off", good[:len(good)-3], values, "read event log"},
		{"rest of another event", append(bytes.Clone(good), 1, 2, 3), values, "read event log"},
		{"too many kinds of digest", edit(32+24, 17, 0, 0, 0), values, "kinds of digest"},
		{"no SHA-256", edit(32+28, 0x0d)[:32+37], values, "SHA-256"},
		{"too many events", many.Log(), many.Registers(), "events"},
		{"too long", make([]byte, 1<<20+1), values, "bytes"},
		{"no values", good, nil, "no register values"},
		{"short value", good, [][]byte{make([]byte, 20)}, "PCR 0"},
	} {
		if _, err := boot.ParseLog(c.log, c.pcrs); !errors.Is(err, boot.ErrLog) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want ErrLog with %q", c.name, err, c.want)
		}
	}
}

// Logs of real machines lie beside the library that reads them.
func TestLogsOfRealMachines(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-attestation").Output()
	if err != nil || len(bytes.TrimSpace(dir)) == 0 {
		t.Skipf("no module cache: %v", err)
	}
	for name, policy := range map[string][]int{
		"coreos_36_shielded_vm_no_secure_boot_eventlog":   {0, 2, 4, 7, 8, 9}, // GRUB
		"ubuntu_2104_shielded_vm_no_secure_boot_eventlog": {0, 2, 4, 7, 8, 9},
		"crypto_agile_eventlog":                           {0, 2, 4, 7},
		"sb_cert_eventlog":                                {0, 4, 7}, // Secure Boot on
	} {
		raw, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), "attest", "testdata", name))
		if err != nil {
			t.Skip(err)
		}
		values, err := boot.Replay(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		events, err := boot.ParseLog(raw, values)
		if err != nil || len(events) < 10 {
			t.Errorf("%s: got %d events and %v", name, len(events), err)
		}
		if packed, err := boot.Pack(raw); err != nil || len(packed) > boot.MaxLog/2 {
			t.Errorf("%s: packs to %d bytes, %v", name, len(packed), err)
		}
		r, err := boot.ParseReference(boot.Observe(model, running, "grub", policy, events).Bytes())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := boot.Appraise([]boot.Reference{r}, nil, values, raw); got.Trust != boot.Attested {
			t.Errorf("%s: got %+v", name, got)
		}
		values[4][0] ^= 1
		if got := boot.Appraise([]boot.Reference{r}, nil, values, raw); got.Trust != boot.Quarantined || checks(got) != "boot.log-replay 4" {
			t.Errorf("%s, another register 4: got %+v", name, got)
		}
	}
}

func TestReplayComputesTheRegisters(t *testing.T) {
	f := tpmfarm.Default(running)
	got, err := boot.Replay(f.Log())
	if err != nil || !slices.EqualFunc(got, f.Registers(), bytes.Equal) {
		t.Errorf("got %x and %v, want %x", got, err, f.Registers())
	}
	// Firmware that starts the TPM from locality 3 begins PCR 0 with it.
	log := f.Log()
	at := bytes.Index(log, []byte("StartupLocality\x00")) + 16
	log[at] = 3
	if got, err = boot.Replay(log); err != nil || bytes.Equal(got[0], f.Registers()[0]) {
		t.Errorf("locality 3: PCR 0 is %x and %v", got[0], err)
	}
	if _, err := boot.ParseLog(log, got); err != nil {
		t.Errorf("locality 3: got %v", err)
	}
	if _, err := boot.ParseLog(log, f.Registers()); !errors.Is(err, boot.ErrLog) {
		t.Errorf("locality 3 against a start from 0: got %v", err)
	}
}

func TestPackedLog(t *testing.T) {
	raw := tpmfarm.Default(running).Log()
	packed, err := boot.Pack(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := boot.Unpack(packed); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("got %d bytes and %v, want %d", len(got), err, len(raw))
	}
	bomb := func(n int) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		if _, err := w.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if got, err := boot.Unpack(bomb(1 << 20)); err != nil || len(got) != 1<<20 {
		t.Errorf("a mebibyte: got %d bytes and %v", len(got), err)
	}
	wrong := bytes.Clone(packed)
	wrong[len(wrong)-1] ^= 1
	for name, b := range map[string][]byte{
		"nothing": nil, "no gzip": []byte("a log"), "cut off": packed[:len(packed)-9], "wrong sum": wrong,
		"bomb": bomb(20 << 20), "a byte too many": bomb(1<<20 + 1), "two members": slices.Concat(packed, packed),
		"rest": append(bytes.Clone(packed), 0), "too large": make([]byte, boot.MaxLog+1),
	} {
		if got, err := boot.Unpack(b); !errors.Is(err, boot.ErrLog) || got != nil {
			t.Errorf("%s: got %d bytes and %v, want ErrLog", name, len(got), err)
		}
	}
	noise := make([]byte, 100<<10)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"noise": noise, "too long": make([]byte, 1<<20+1)} {
		if _, err := boot.Pack(b); !errors.Is(err, boot.ErrLog) {
			t.Errorf("pack %s: got %v, want ErrLog", name, err)
		}
	}
}
