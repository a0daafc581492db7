package simulator

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"text/template"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// Till is one box on the desk: a software TPM, a printer, a card reader, a
// line to the service, and the agent in a process of its own.
type Till struct {
	Name string // also its serial number

	dir     string
	agent   string // the golden agent of its image
	tpm     *tpmfarm.TPM
	printer *emulator.Printer
	reader  emulator.Reader
	readers readers           // among which it is
	scanner *emulator.Scanner // of a whole counter
	more    string            // [[device]]s beside printer, reader and board
	mqtt    *Line
	https   *Line
	proc    *process
	log     *os.File
	service *service
	rootTUF string
	sealKey string
	pace    Pace
	bare    bool   // its image names no service
	disk    string // where it keeps what outlives a boot
	check   string // how long an update may take to prove itself
	alone   bool   // what it runs ends with its agent, as with the power
	chip    string // socket of what is between it and its TPM; empty: nothing
	day     time.Duration
	under   []string // what starts its agent; none: the simulator itself
	roots   string   // of the service, as the image has them; empty: the service's own file

	artifacts string // https://host:port in place of its line; empty: the line
	rauc      string // D-Bus address; empty: it takes no system images
	onPower   func() error

	mu       sync.Mutex
	firmware tpmfarm.Firmware // what it boots
	counter  sync.Mutex       // held while something happens at its peripherals

	firstVersion string
}

// Pace is how fast a till measures; a run on a desk is faster than a shop.
type Pace struct {
	Poll, Stats, Batch, Heartbeat string // Go durations, as in the agent's file
	Flaps                         int    // 0: the agent's own
}

// status is what `tillward-agent -status` prints.
type status struct {
	AuditRecorded   uint64 `json:"audit_recorded"`
	SamplesRecorded uint64 `json:"samples_recorded"`
	SpoolDepth      uint64 `json:"spool_depth"`
	SpoolShed       uint64 `json:"spool_shed"`
	Version         string `json:"version"`
	Slot            string `json:"slot"`
}

var agentFile = template.Must(template.New("agent.toml").Parse(`# written by the simulator
state_dir = "{{.State}}"
model = "{{.Model}}"
serial = "{{.Name}}"
reboot = []

[service]
enrol = "{{if not .Bare}}https://{{.HTTPS}}{{end}}"
files = ["{{.Stick}}"]
leases = []
roots = "{{.Roots}}"
server_name = "localhost"
broker = "{{.MQTT}}"
artifacts = "{{.Artifacts}}"

[tpm]
device = "unix:{{.TPM}}"
event_log = "{{.BootLog}}"

[update]
root = "{{.RootTUF}}"
seal_key = "{{.SealKey}}"
rauc = "{{.RAUC}}"
check_for = "{{.CheckFor}}"
min_free_mib = 1
apps_dir = "{{.Apps}}"
media = ["{{.Media}}"]

[telemetry]
poll = "{{.Pace.Poll}}"
stats = "{{.Pace.Stats}}"
batch = "{{.Pace.Batch}}"
heartbeat = "{{.Pace.Heartbeat}}"
{{with .Pace.Flaps}}flaps = {{.}}{{end}}

[peripherals]
usb = false

[[device]]
id = "receipt"
driver = "escpos"
address = "{{.Printer}}"
claim = "own"
{{.Printing}}

{{.Reader}}
{{.More}}
[[device]]
id = "box"
driver = "board"
`))

// configure writes the agent's file; the addresses in it are fixed from here on.
func (t *Till) configure() error {
	var b bytes.Buffer
	err := agentFile.Execute(&b, map[string]any{
		"Model": simModel, "State": filepath.Join(t.disk, "state"), "Apps": filepath.Join(t.disk, "apps"), "CheckFor": t.check, "Media": filepath.Join(t.dir, "media", "*", "tillward-update"), "Name": t.Name, "HTTPS": t.https.Addr(), "MQTT": t.mqtt.Addr(),
		"Roots": cmp.Or(t.roots, t.service.roots()), "TPM": cmp.Or(t.chip, t.tpm.Socket()), "RootTUF": t.rootTUF, "SealKey": t.sealKey, "Printer": t.printer.Addr(),
		"Artifacts": cmp.Or(t.artifacts, t.Web()), "RAUC": t.rauc, "Reader": readerFile(t.reader), "Printing": t.printing(), "More": t.more, "Pace": t.pace, "BootLog": t.bootLog(), "Bare": t.bare, "Stick": t.stick(),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	if err := os.WriteFile(t.file(), b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	return nil
}

// bootLog is where the firmware leaves its event log.
func (t *Till) bootLog() string { return filepath.Join(t.dir, "binary_bios_measurements") }

func (t *Till) file() string { return filepath.Join(t.dir, "agent.toml") }

// Boot starts the agent. The TPM, the printer and the reader already run.
func (t *Till) Boot(ctx context.Context) {
	command := append(slices.Clone(t.under), t.agent, "-config", t.file())
	t.proc = &process{path: command[0], args: command[1:], log: t.log, reboot: t.powerCycle, alone: t.alone}
	t.proc.start(ctx)
}

// powerCycle restarts the TPM as a reboot of the box would.
func (t *Till) powerCycle(ctx context.Context) error {
	if err := t.tpm.Restart(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	f := tpmfarm.Firmware{Events: slices.Clone(t.firmware.Events)}
	on := t.onPower
	t.mu.Unlock()
	if on != nil {
		if err := on(); err != nil {
			return err
		}
	}
	return f.Boot(t.tpm, t.bootLog())
}

// Power switches the box off and on again.
func (t *Till) Power(ctx context.Context) error {
	t.Stop()
	if err := t.powerCycle(ctx); err != nil {
		return err
	}
	t.Boot(ctx)
	return nil
}

// Measure lets the firmware find something else in the place of what the event
// of that name measures, from the next time the box is switched on.
func (t *Till) Measure(event, image string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.firmware.Event(event).Image = []byte(image)
}

// MeasureWell makes the firmware what it was at first.
func (t *Till) MeasureWell() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.firmware = tpmfarm.Default(FirstOS)
}

// Measured is an event as the box measures it the next time.
func (t *Till) Measured(event string) tpmfarm.Measured {
	t.mu.Lock()
	defer t.mu.Unlock()
	return *t.firmware.Event(event)
}

// Bare makes the image one that names no service. The till must be off.
func (t *Till) Bare() error {
	t.bare = true
	return t.configure()
}

// Mirror makes the till fetch releases from another server than the service.
// The till must be off.
func (t *Till) Mirror(url string) error {
	t.artifacts = url
	return t.configure()
}

// Slots gives the box boot slots: the bus that RAUC serves on, and what its boot
// loader does whenever it is switched on. The till must be off.
func (t *Till) Slots(rauc string, on func() error) error {
	t.rauc, t.onPower = rauc, on
	return t.configure()
}

// Dir is the folder of all that is the box: its state partition, its
// applications, what is plugged into it.
func (t *Till) Dir() string { return t.dir }

// Spoil makes a fault of the printer come or go.
func (t *Till) Spoil(f emulator.Fault, on bool) { t.printer.Set(f, on) }

// stick is where a file on a stick would name the service.
func (t *Till) stick() string { return filepath.Join(t.dir, "stick", "tillward-service.toml") }

// PlugIn plugs a stick with that file into the box.
func (t *Till) PlugIn(file string) error {
	if err := os.MkdirAll(filepath.Dir(t.stick()), 0o700); err != nil {
		return fmt.Errorf("%s: stick: %w", t.Name, err)
	}
	whole := t.stick() + ".new" // the agent may look at any moment
	if err := errors.Join(os.WriteFile(whole, []byte(file), 0o600), os.Rename(whole, t.stick())); err != nil {
		return fmt.Errorf("%s: stick: %w", t.Name, err)
	}
	return nil
}

// Web is where the till reaches what the service has on HTTPS.
func (t *Till) Web() string { return "https://" + t.https.Addr() }

// Kill is kill -9 at the agent; its supervisor starts it again.
func (t *Till) Kill() error { return t.proc.kill() }

// CutNetwork takes the till off the network.
func (t *Till) CutNetwork() {
	t.mqtt.Cut()
	t.https.Cut()
}

// HealNetwork puts it back.
func (t *Till) HealNetwork() {
	t.mqtt.Heal()
	t.https.Heal()
}

// Stop ends the agent in an orderly way; TPM and peripherals keep running.
func (t *Till) Stop() {
	if t.proc != nil {
		t.proc.end()
	}
}

// status asks the till itself what it has recorded.
func (t *Till) status(ctx context.Context) (status, error) {
	var s status
	out, err := exec.CommandContext(ctx, t.agent, "-config", t.file(), "-status").Output() // #nosec G204 -- the simulator's own binary
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return s, fmt.Errorf("%s: status: %w", t.Name, err)
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("%s: status: %w", t.Name, err)
	}
	return s, nil
}

func (t *Till) close() {
	t.Stop()
	for _, c := range []*Line{t.mqtt, t.https} {
		if c != nil {
			c.Close()
		}
	}
	if t.printer != nil {
		_ = t.printer.Close()
	}
	if t.scanner != nil {
		_ = t.scanner.Close()
	}
	if t.tpm != nil {
		t.tpm.Stop()
	}
	if t.log != nil {
		_ = t.log.Close()
	}
}

// DeskPace is the pace of a run that a person watches: a shop's day in a
// minute.
var DeskPace = Pace{Poll: "1s", Stats: "2s", Batch: "1s", Heartbeat: "5s"}
