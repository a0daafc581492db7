// Package agent is the device daemon as a library: Config says where things are,
// New builds the rooms below internal/ and hands each what it needs, Run keeps
// them going until the context ends or the agent must be started again.
//
// It promises that the box is never worse off for running it: whatever fails
// here - TPM, network, disk, service - is recorded and tried again, and the
// point-of-sale application is never touched.
//
// It exports more names than other rooms because Config has a part for each of
// them.
package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/script"
)

// Config is everything the agent is told by its file. It holds no secret and
// no identity: the image is the same on every box.
type Config struct {
	StateDir string   `toml:"state_dir" comment:"folder on the state partition; survives updates"`
	Model    string   `toml:"model" comment:"model of the box as the vendor lists it"`
	Serial   string   `toml:"serial" comment:"serial number; empty: read from DMI or the device tree"`
	LogLevel string   `toml:"log_level" comment:"debug, info, warn or error"`
	Reboot   []string `toml:"reboot" comment:"command that restarts the box; empty: the agent exits with code 76 and its supervisor does it"`

	FactoryReset string `toml:"factory_reset" comment:"file by which the supervisor is asked to give up state and data before it restarts the box, e.g. /run/tillward/factory-reset; empty: no command does that"`

	TenantData []string `toml:"tenant_data" comment:"folders that are the owner's, e.g. of the POS application; emptied when the box changes hands"`

	Service   ServiceConfig   `toml:"service"`
	TPM       TPMConfig       `toml:"tpm"`
	Update    UpdateConfig    `toml:"update"`
	Telemetry TelemetryConfig `toml:"telemetry"`
	Spool     SpoolConfig     `toml:"spool"`
	Link      LinkConfig      `toml:"link"`
	Devices   []DeviceConfig  `toml:"device" comment:"one [[device]] per peripheral"`

	Peripherals PeripheralsConfig `toml:"peripherals"`
}

// ServiceConfig says where the fleet service is and by what it is recognised.
type ServiceConfig struct {
	Enrol      string   `toml:"enrol" comment:"https://host:8444 of the fleet service, when neither a file nor a lease names one"`
	Files      []string `toml:"files" comment:"where a file may name the service: a stick or the boot partition; looked at first"`
	Leases     []string `toml:"leases" comment:"where DHCP clients leave option 143; looked at next"`
	Roots      string   `toml:"roots" comment:"PEM file with the pinned roots of the service"`
	ServerName string   `toml:"server_name" comment:"name in the service's certificate"`
	Broker     string   `toml:"broker" comment:"host:port to use in place of the brokers the service names, e.g. a site proxy"`
	Artifacts  string   `toml:"artifacts" comment:"https://host:port to use in place of the artifact server the service names"`
	ClaimCode  string   `toml:"claim_code" comment:"one-time code of an order, when the box is not on a vendor list"`
	VendorKey  string   `toml:"vendor_key" comment:"PEM file with the Ed25519 key of the box's vendor; empty: who owns the box is not checked here"`
}

// TPMConfig names the TPM.
type TPMConfig struct {
	Device   string   `toml:"device" comment:"/dev/tpmrm0, or unix:PATH for a software TPM"`
	EventLog string   `toml:"event_log" comment:"what the firmware measured; empty: this box keeps no log"`
	AKRotate Duration `toml:"ak_rotate" comment:"how old the attestation key may become; 0s: it is never changed"`
}

// UpdateConfig holds what an update is judged by.
type UpdateConfig struct {
	Root       string   `toml:"root" comment:"TUF root.json of the image; newer roots are kept in state_dir"`
	SealKey    string   `toml:"seal_key" comment:"PEM file with the P-256 key that approves booted states; empty: what lies on the disk is not encrypted"`
	References []string `toml:"references" comment:"files with the boot references that images on this box bring, beside those of releases; none: only those of releases are known"`
	CheckFor   Duration `toml:"check_for" comment:"how long a new agent may take to prove itself before it is undone"`
	RAUC       string   `toml:"rauc" comment:"D-Bus address of RAUC, e.g. unix:path=/run/dbus/system_bus_socket; empty: this box takes no system images"`
	Channel    string   `toml:"channel" comment:"of system images that this box takes: prod or beta"`
	Bootloader string   `toml:"bootloader_version" comment:"file in which the image states the version of its boot loader, e.g. 2025.10.0; empty: releases that require one are refused"`
	MinFreeMiB int      `toml:"min_free_mib" comment:"free space that must be left on the state partition"`

	Hours         update.Hours `toml:"hours" comment:"when the till may be touched, by the box's own clock, beside the windows of an offer, e.g. 'mon-sat 22:00-06:00, sun 00:00-24:00'; empty: at any time"`
	DownloadHours update.Hours `toml:"download_hours" comment:"when it may fetch; empty: at any time"`
	IdleLock      string       `toml:"idle_lock" comment:"file that exists while the POS application must not be disturbed, best below /run; with the number of a process in it, as long as that lives; or locked with flock"`
	PowerDir      string       `toml:"power_dir" comment:"where the kernel tells about power supplies; on battery the till is not touched"`
	Health        []string     `toml:"health" comment:"command that fails while the POS application is not well; what was well before an update must be after it"`

	RateKiB      int    `toml:"rate_kib_s" comment:"fetch at most so many KiB per second from the service; 0: as fast as they come"`
	BudgetMiB    int    `toml:"budget_mib_day" comment:"fetch at most so many MiB in 24 hours from the service; 0: no limit"`
	FullDownload bool   `toml:"full_download" comment:"whether a release may be fetched whole from the service when hardly any part of it is here"`
	Peers        bool   `toml:"peers" comment:"ask tills of the site for what they have before the service"`
	Share        string `toml:"share" comment:"host:port where tills of the site may get what this one has fetched, the port from 1024 on and no printer's; empty: it shares nothing"`
	ShareRateKiB int    `toml:"share_rate_kib_s" comment:"give away at most so many KiB per second; 0: as fast as they go"`
	KeepMiB      int    `toml:"keep_mib" comment:"how much of what was fetched is kept to be shared"`

	Media []string `toml:"media" comment:"folders that an update medium, e.g. a stick, may bring; none: no medium is taken"`

	AppsDir    string   `toml:"apps_dir" comment:"folder of the POS applications: NAME/current is what the image starts; empty: this box takes none"`
	AppUser    string   `toml:"app_user" comment:"who runs the commands of applications; empty: the agent's own user, or nobody where that is root"`
	AppTimeout Duration `toml:"app_timeout" comment:"how long a command of an application may take that says nothing of it"`

	Scripts []ScriptConfig `toml:"script" comment:"one [[update.script]] per vendor's handler that may be installed; none: this box takes none"`
}

// ScriptConfig is one handler of a vendor, and what its sandbox allows.
type ScriptConfig struct {
	Name    string   `toml:"name" comment:"last part of its component, ops/TENANT/NAME"`
	Time    Duration `toml:"time" comment:"for each step; 0s: 5m"`
	WorkMiB int      `toml:"work_mib" comment:"of its work folder; 0: 64"`
	Devices []string `toml:"devices" comment:"below /dev, that it may use"`
}

// scripts are the vendors' handlers as the room knows them.
func (c UpdateConfig) scripts() (out []script.Script) {
	for _, s := range c.Scripts {
		out = append(out, script.Script{
			Name: s.Name, Time: cmp.Or(s.Time.Duration, 5*time.Minute), WorkMiB: cmp.Or(s.WorkMiB, 64), Devices: s.Devices,
		})
	}
	return out
}

// TelemetryConfig sets the pace of measuring. set-config may change it later.
type TelemetryConfig struct {
	Poll      Duration `toml:"poll" comment:"how often a peripheral is asked for its status; 0s: by how it is held: own 5s, observe 30s, else 10s"`
	Check     Duration `toml:"check" comment:"how often each peripheral tests itself, without printing or moving; 0s: only when that is asked for"`
	Stats     Duration `toml:"stats" comment:"how often counters and host metrics are sampled"`
	Batch     Duration `toml:"batch" comment:"how long samples wait for company"`
	Heartbeat Duration `toml:"heartbeat" comment:"how often the whole state is reported even when nothing changed"`
	Flaps     int      `toml:"flaps" comment:"events of one kind of one peripheral that are told one by one in a minute; more are told as a count"`
}

// SpoolConfig bounds the queue on disk.
type SpoolConfig struct {
	MaxMiB    int      `toml:"max_mib" comment:"what may wait for the service; telemetry is thinned, then shed, then events are, so that audit fits"`
	Audit     int      `toml:"audit_percent" comment:"of it: kept free for the audit trail alone, which may use the rest as well"`
	Result    int      `toml:"result_percent" comment:"of it: at most for the results of orders, which are never shed"`
	Event     int      `toml:"event_percent" comment:"of it: at most for events of peripherals"`
	State     int      `toml:"state_percent" comment:"of it: at most for the state of the box"`
	Telemetry int      `toml:"telemetry_percent" comment:"of it: at most for measurements"`
	Window    Duration `toml:"window" comment:"of events, state and measurements a power cut costs at most the last so long; longer spares flash. Audit, results and settings: nothing"`
}

func (c SpoolConfig) shares() spool.Shares {
	return spool.Shares{Audit: c.Audit, Result: c.Result, Event: c.Event, State: c.State, Telemetry: c.Telemetry}
}

// validate says all that is wrong.
func (c SpoolConfig) validate() (wrong []error) {
	if c.MaxMiB < 1 || c.MaxMiB > 64<<10 {
		wrong = append(wrong, fmt.Errorf("spool.max_mib %d: must lie between 1 and 65536", c.MaxMiB))
	}
	if c.Audit < 5 || c.Audit > 90 {
		wrong = append(wrong, fmt.Errorf("spool.audit_percent %d: must lie between 5 and 90: the trail needs a reserve, and the rest needs room", c.Audit))
	}
	rest := 100 - min(max(c.Audit, 5), 90)
	for _, f := range [...]struct {
		name string
		v    int
	}{{"result", c.Result}, {"event", c.Event}, {"state", c.State}, {"telemetry", c.Telemetry}} {
		if f.v < 1 || f.v > rest {
			wrong = append(wrong, fmt.Errorf("spool.%s_percent %d: must lie between 1 and %d, which is what audit_percent leaves", f.name, f.v, rest))
		}
	}
	if w := c.Window.Duration; w < time.Second || w > time.Minute {
		wrong = append(wrong, fmt.Errorf("spool.window %s: must lie between 1s and 1m", c.Window))
	}
	return wrong
}

// LinkConfig bounds what goes to the service beside what is live.
type LinkConfig struct {
	BacklogKiB      int `toml:"backlog_kib_s" comment:"what was saved up without a network goes beside what is recorded now at so many KiB per second; 0: as fast as the service takes it"`
	BacklogMessages int `toml:"backlog_messages" comment:"and with so many messages on their way at most, fewer when the service is slow; 1 to 8"`
}

// PeripheralsConfig says how peripherals are found that no [[device]] names.
type PeripheralsConfig struct {
	USB    bool     `toml:"usb" comment:"watch the USB bus, and list what is plugged in and no device is configured for"`
	Ignore []string `toml:"ignore" comment:"what is not listed: usb:VID:PID, usb:VID:PID:SERIAL or usb:VID:PID@PORT"`
}

// DeviceConfig is one peripheral.
type DeviceConfig struct {
	ID      string   `toml:"id"`
	Driver  string   `toml:"driver" comment:"escpos, star, cloudprnt, display, scanner, switch, i2c, board, pcsc or virtual"`
	Address string   `toml:"address" comment:"host:port, usb:VID:PID, serial:/dev/ttyS0?baud=9600 and so on, as the driver says"`
	Claim   string   `toml:"claim" comment:"observe, share or own"`
	Poll    Duration `toml:"poll" comment:"how often it is asked for its status; 0s: as telemetry.poll says"`

	Print      string `toml:"print" comment:"own printers only: socket at which programs of this box talk to it, unix:PATH or tcp:127.0.0.1:PORT; empty: none"`
	PrintProof string `toml:"print_proof" comment:"own printers only: socket that takes a job up to its end and answers with one line of JSON whether it came out, unix:PATH; empty: none"`
	PrintMode  string `toml:"print_mode" comment:"rights of the unix sockets; empty: 0660"`
	PrintGroup string `toml:"print_group" comment:"group of the unix sockets; empty: the agent's own"`

	Options map[string]string `toml:"options"`
}

// Duration is a time.Duration written as "30s" or "5m" in the file.
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"30s\": %w", b, err)
	}
	d.Duration = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// DefaultConfig returns the configuration of a box whose file says nothing
// but where its service is.
func DefaultConfig() Config {
	return Config{
		StateDir: "/var/lib/tillward",
		LogLevel: "info",
		Reboot:   []string{"systemctl", "reboot"},
		Service: ServiceConfig{
			Files: []string{
				"/media/*/tillward-service.toml", "/media/*/*/tillward-service.toml", "/run/media/*/*/tillward-service.toml", "/mnt/*/tillward-service.toml",
				"/boot/tillward-service.toml",
			},
			Leases: []string{
				"/run/systemd/netif/leases/*", "/run/udhcpc/*", "/var/lib/dhcp/dhclient*.leases", "/var/lib/NetworkManager/dhclient-*.lease",
			},
			Roots: "/etc/tillward/service-roots.pem",
		},
		TPM: TPMConfig{
			Device: "/dev/tpmrm0", EventLog: "/sys/kernel/security/tpm0/binary_bios_measurements", AKRotate: Duration{365 * 24 * time.Hour},
		},
		Update: UpdateConfig{
			Root: "/etc/tillward/root.json", CheckFor: Duration{2 * time.Minute}, Channel: "prod", MinFreeMiB: 32,
			PowerDir: "/sys/class/power_supply", FullDownload: true, Peers: true, KeepMiB: 256,
			AppsDir: "/var/lib/tillward-apps", AppTimeout: Duration{30 * time.Second},
			Media: []string{"/media/*/tillward-update", "/media/*/*/tillward-update", "/run/media/*/*/tillward-update", "/mnt/*/tillward-update"},
		},
		Telemetry: TelemetryConfig{
			Check: Duration{24 * time.Hour}, Stats: Duration{time.Minute}, Batch: Duration{10 * time.Second}, Heartbeat: Duration{5 * time.Minute}, Flaps: 5,
		},
		Spool: SpoolConfig{
			MaxMiB: 256, Audit: 20, Result: 10, Event: 25, State: 5, Telemetry: 70, Window: Duration{10 * time.Second},
		},
		Link:        LinkConfig{BacklogKiB: 64, BacklogMessages: 8},
		Peripherals: PeripheralsConfig{USB: true},
	}
}

// LoadConfig reads the file at path over DefaultConfig and validates it. An
// unknown key is an error that names its line.
func LoadConfig(path string) (Config, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return DefaultConfig(), fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(path, b)
}

func parseConfig(path string, b []byte) (Config, error) {
	cfg := DefaultConfig()
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		var strict *toml.StrictMissingError
		var at *toml.DecodeError
		switch {
		case errors.As(err, &strict):
			return cfg, fmt.Errorf("%s: unknown key:\n%s", path, strict.String())
		case errors.As(err, &at):
			return DefaultConfig(), fmt.Errorf("%s:\n%s", path, at.String())
		}
		return DefaultConfig(), fmt.Errorf("%s: %w", path, err)
	}
	var wrong []error
	for _, err := range each(cfg.validate()) {
		wrong = append(wrong, fmt.Errorf("%s: %w", path, err))
	}
	return cfg, errors.Join(wrong...)
}

func (c Config) validate() error {
	if !filepath.IsAbs(c.StateDir) {
		return fmt.Errorf("state_dir %q: give an absolute path", c.StateDir)
	}
	if c.Service.Roots == "" {
		return errors.New("service.roots: name the PEM file with the roots of the service")
	}
	found := len(c.Service.Files)+len(c.Service.Leases) > 0
	if u, err := url.Parse(c.Service.Enrol); (c.Service.Enrol != "" || !found) && (err != nil || u.Scheme != "https" || u.Host == "") {
		return fmt.Errorf("service.enrol %q: give the address of the fleet service, e.g. https://fleet.example:8444", c.Service.Enrol)
	}
	if a := c.Service.Artifacts; a != "" { // what is asked for is put behind it, and no redirect is followed
		if u, err := url.Parse(a); err != nil || u.Host == "" || a != "https://"+u.Host {
			return fmt.Errorf("service.artifacts %q: give https://host or https://host:port, and nothing behind it", a)
		}
	}
	if b := c.Service.Broker; b != "" {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return fmt.Errorf("service.broker %q: give host:port", b)
		}
	}
	if l := c.Link; l.BacklogKiB < 0 || l.BacklogMessages < 1 || l.BacklogMessages > 8 {
		return fmt.Errorf("link: backlog_kib_s %d and backlog_messages %d: give 0 or more, and 1 to 8", l.BacklogKiB, l.BacklogMessages)
	}
	if f := c.FactoryReset; f != "" && !filepath.IsAbs(f) {
		return fmt.Errorf("factory_reset %q: give an absolute path", f)
	}
	if c.TPM.Device == "" {
		return errors.New("tpm.device: name the TPM, e.g. /dev/tpmrm0")
	}
	if r := c.TPM.AKRotate.Duration; r != 0 && r < time.Minute {
		return fmt.Errorf("tpm.ak_rotate %s: at least 1m, or 0s for never", c.TPM.AKRotate)
	}
	theirs := slices.Clone(c.TenantData)
	if d := c.Update.AppsDir; d != "" {
		theirs = append(theirs, d)
	}
	for _, d := range theirs {
		// A slip here costs data: no relative path, no top folder, nothing of ours.
		if d != filepath.Clean(d) || strings.Count(d, "/") < 2 || !filepath.IsAbs(d) || below(c.StateDir, d) || below(d, c.StateDir) {
			return fmt.Errorf("tenant_data or update.apps_dir %q: give the full path of a folder below another one, apart from state_dir", d)
		}
	}
	if c.Update.CheckFor.Duration < time.Second {
		return fmt.Errorf("update.check_for %s: must be at least 1s", c.Update.CheckFor)
	}
	if c.Update.Channel != "prod" && c.Update.Channel != "beta" {
		return fmt.Errorf("update.channel %q: use prod or beta", c.Update.Channel)
	}
	if c.Update.MinFreeMiB < 1 {
		return fmt.Errorf("update.min_free_mib %d: must be at least 1", c.Update.MinFreeMiB)
	}
	for _, f := range [...]struct{ name, v string }{{"idle_lock", c.Update.IdleLock}, {"power_dir", c.Update.PowerDir}} {
		if f.v != "" && !filepath.IsAbs(f.v) {
			return fmt.Errorf("update.%s %q: give an absolute path", f.name, f.v)
		}
	}
	for _, f := range [...]struct {
		name string
		v    int
	}{{"rate_kib_s", c.Update.RateKiB}, {"budget_mib_day", c.Update.BudgetMiB}, {"share_rate_kib_s", c.Update.ShareRateKiB}, {"keep_mib", c.Update.KeepMiB}} {
		if f.v < 0 {
			return fmt.Errorf("update.%s %d: must be 0 or more", f.name, f.v)
		}
	}
	if s := c.Update.Share; s != "" {
		_, port, err := net.SplitHostPort(s)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil {
			return fmt.Errorf("update.share %q: give host:port, or :port for every address of the box", s)
		}
		if n != 0 && n < 1024 || n >= 9100 && n <= 9109 { // the other tills would not ask there
			return fmt.Errorf("update.share %q: use a port from 1024 on, and none of 9100 to 9109, which are printers'", s)
		}
	}
	if d := c.Update.AppTimeout.Duration; d < time.Second || d > 10*time.Minute {
		return fmt.Errorf("update.app_timeout %s: must lie between 1s and 10m", c.Update.AppTimeout)
	}
	if _, err := script.New(script.Options{Dir: filepath.Join(c.StateDir, "scripts"), Scripts: c.Update.scripts()}); err != nil {
		return fmt.Errorf("update.script: %w", err)
	}
	if h := c.Update.Health; len(h) > 0 && !filepath.IsAbs(h[0]) {
		return fmt.Errorf("update.health %q: give the absolute path of a program, then its arguments", h[0])
	}
	for _, g := range slices.Concat(c.Service.Files, c.Service.Leases, c.Update.Media, c.Update.References) {
		if _, err := filepath.Match(g, ""); err != nil || !filepath.IsAbs(g) {
			return fmt.Errorf("service.files, service.leases, update.media or update.references %q: give an absolute path, * stands for any name", g)
		}
	}
	for _, p := range [...]struct {
		name string
		d    Duration
	}{{"stats", c.Telemetry.Stats}, {"batch", c.Telemetry.Batch}, {"heartbeat", c.Telemetry.Heartbeat}} {
		if p.d.Duration < 100*time.Millisecond || p.d.Duration > 24*time.Hour {
			return fmt.Errorf("telemetry.%s %s: must lie between 100ms and 24h", p.name, p.d)
		}
	}
	if wrong := c.Spool.validate(); wrong != nil {
		return errors.Join(wrong...)
	}
	if wrong := c.validatePeripherals(); wrong != nil {
		return errors.Join(wrong...)
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
		return nil
	}
	return fmt.Errorf("log_level %q: use debug, info, warn or error", c.LogLevel)
}

// below reports whether path is dir or lies in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// String returns the effective file, for -check.
func (c Config) String() string {
	b, err := toml.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
