// Package cloud is the fleet service as a library: Config says where things
// are, New opens them and binds the listeners, Run serves until the context
// ends. It wires the rooms below internal/ and knows no rule of its own.
//
// It exports more names than other rooms because Config has a part for each of
// them.
package cloud

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pelletier/go-toml/v2"

	"github.com/tillward/tillward/provisioning/identity"
)

// Config is everything the fleet service is told by its file.
type Config struct {
	DataDir   string `toml:"data_dir" comment:"keys, certificates, artifacts, and the database unless store.url names one"`
	Tenant    string `toml:"tenant" comment:"who owns the devices of this service; part of every topic and certificate"`
	OwnerName string `toml:"owner_name" comment:"what ownership vouchers call this tenant; empty: the tenant"`
	LogLevel  string `toml:"log_level" comment:"debug, info, warn or error"`

	Store     StoreConfig     `toml:"store"`
	Device    DeviceConfig    `toml:"device"`
	Operator  OperatorConfig  `toml:"operator"`
	Metrics   MetricsConfig   `toml:"metrics"`
	Enrol     EnrolConfig     `toml:"enrol"`
	Attest    AttestConfig    `toml:"attest"`
	Authority AuthorityConfig `toml:"authority"`
	Rollout   RolloutConfig   `toml:"rollout"`

	Peripheral PeripheralConfig `toml:"peripheral"`
	AccessLog  AccessLogConfig  `toml:"access_log"`
	Audit      AuditConfig      `toml:"audit"`
	Export     []ExportConfig   `toml:"export,omitempty" comment:"receivers of the audit trails"`
}

// DeviceConfig holds the listeners devices speak to.
type DeviceConfig struct {
	MQTT       string   `toml:"mqtt" comment:"listen address of MQTT over mutual TLS"`
	HTTPS      string   `toml:"https" comment:"listen address of enrolment and artifacts"`
	Names      []string `toml:"names" comment:"DNS names and IP addresses in the service's certificate; the first is what devices verify"`
	Advertise  string   `toml:"advertise" comment:"host devices are told to connect to; empty: the first name"`
	MaxClients int      `toml:"max_clients" comment:"connections accepted at once"`
}

// OperatorConfig holds the listener of console and API.
type OperatorConfig struct {
	Listen string `toml:"listen" comment:"listen address of console and API"`
	Plain  bool   `toml:"plain" comment:"HTTP without TLS; only allowed on a loopback address"`
	Cert   string `toml:"cert" comment:"PEM certificate chain; empty: one from the service's own root"`
	Key    string `toml:"key"`
}

// MetricsConfig holds the listener of metrics and health.
type MetricsConfig struct {
	Listen string `toml:"listen" comment:"loopback address; empty: off"`
}

// AccessLogConfig says where requests of operators and devices are logged.
type AccessLogConfig struct {
	File   string `toml:"file" comment:"a line for each request of operators and devices; in the data folder unless it is an absolute path; empty: off"`
	MaxMiB int    `toml:"max_mib" comment:"its size before another is begun"`
	Keep   int    `toml:"keep" comment:"how many older ones are kept"`
}

// EnrolConfig says whose TPMs may join.
type EnrolConfig struct {
	Makers         []string       `toml:"makers" comment:"TPM makers whose EK certificates are believed (tier A), by their names in the folder; empty: none"`
	MakersDir      string         `toml:"makers_dir" comment:"folder of TPM makers (tillward-provision maker add); empty: the one built in"`
	EKRoots        []string       `toml:"ek_roots" comment:"PEM files with EK certificate authorities that are in no folder (tier A)"`
	VirtualEKRoots []string       `toml:"virtual_ek_roots" comment:"PEM files with authorities of virtual TPMs (tier C); test fleets only"`
	AutoClaim      bool           `toml:"auto_claim" comment:"devices with a trusted EK certificate join this tenant without a list entry"`
	Vendors        []VendorConfig `toml:"vendors" comment:"makers of devices, whose manifests and vouchers count"`
	ClaimWaiting   bool           `toml:"claim_waiting" comment:"an administrator may claim a waiting device of tier A that no manifest lists, without a code"`
	CertDays       int            `toml:"cert_days" comment:"life of a device certificate"`
}

// VendorConfig names a maker of devices. One that changes his key is listed
// twice.
type VendorConfig struct {
	Name string `toml:"name" comment:"as in his manifests"`
	Key  string `toml:"key" comment:"file with his public key: PEM, or a party file"`
}

// AuthorityConfig says where the keys of the authorities lie, and who signs
// the issuing certificates of devices.
type AuthorityConfig struct {
	PassphraseFile  string `toml:"passphrase_file" comment:"file, or name of a systemd credential, with what key files are encrypted by; empty: plain files"`
	Module          string `toml:"module" comment:"PKCS#11 library of the token with the key that signs device certificates; empty: in a file"`
	Token           string `toml:"token" comment:"label of that token"`
	PINFile         string `toml:"pin_file" comment:"file, or name of a systemd credential, with its PIN"`
	StepURL         string `toml:"step_url" comment:"step-ca that signs issuing certificates, https://host:port; empty: the root in the data folder, or offline"`
	StepProvisioner string `toml:"step_provisioner" comment:"name of its JWK provisioner"`
	StepKey         string `toml:"step_key" comment:"file with the provisioner's key"`
}

// AttestConfig sets how often devices prove themselves.
type AttestConfig struct {
	Unjudged string   `toml:"unjudged" comment:"what a good quote is worth while no release has reference values for the model: attested, degraded or quarantined"`
	Every    Duration `toml:"every" comment:"a connected device is challenged this often; silence for twice as long is stale"`
}

// Who has to approve a rollout before it can be started.
const (
	ApprovalNone  = "none"
	ApprovalOther = "other" // somebody else than who composed it
)

// RolloutConfig is the policy of rollouts.
type RolloutConfig struct {
	Approval string `toml:"approval" comment:"who approves a rollout before it starts: none, or other for somebody else than who composed it (four eyes)"`
}

// PeripheralConfig says when what is derived of peripherals turns their light.
type PeripheralConfig struct {
	PaperSoon Duration `toml:"paper_soon" comment:"a printer whose roll is predicted to end within this needs attention (M_PAPER_SOON); 0s: none does"`
}

// Duration is a time.Duration written as "30s" or "15m" in the file.
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"15m\": %w", b, err)
	}
	d.Duration = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// DefaultConfig returns the configuration of a service on one machine.
func DefaultConfig() Config {
	return Config{
		DataDir:  "/var/lib/tillward-service",
		Tenant:   "main",
		LogLevel: "info",
		Device: DeviceConfig{
			MQTT: ":8883", HTTPS: ":8444", Names: []string{"localhost", "127.0.0.1"}, MaxClients: 20000,
		},
		Operator: OperatorConfig{Listen: ":8443"},
		Metrics:  MetricsConfig{Listen: "127.0.0.1:9464"},
		Enrol:    EnrolConfig{CertDays: 30, Makers: []string{"infineon", "nuvoton", "stmicro"}},
		Attest:   AttestConfig{Every: Duration{15 * time.Minute}, Unjudged: "degraded"},
		Rollout:  RolloutConfig{Approval: ApprovalNone},

		Peripheral: PeripheralConfig{PaperSoon: Duration{2 * time.Hour}},
		AccessLog:  AccessLogConfig{File: "access.log", MaxMiB: 64, Keep: 5},
		Audit:      AuditConfig{Online: Keep{Months: 12}},
	}
}

// Load reads the file at path over DefaultConfig and validates it. An unknown
// key is an error that names its line.
func Load(path string) (Config, error) {
	cfg := DefaultConfig()
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&cfg); err != nil {
		var strict *toml.StrictMissingError
		var at *toml.DecodeError
		switch {
		case errors.As(err, &strict):
			return cfg, fmt.Errorf("%s: unknown key:\n%s", path, strict.String())
		case errors.As(err, &at):
			return cfg, fmt.Errorf("%s:\n%s", path, at.String())
		}
		return cfg, fmt.Errorf("%s: %w", path, err)
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}

// Validate returns the first thing that is wrong and what to write instead.
func (c Config) Validate() error {
	switch {
	case c.DataDir == "":
		return errors.New("data_dir: name a folder that only the service may read")
	case !identity.ValidTenant(c.Tenant):
		return fmt.Errorf("tenant %q: use up to 32 lower-case letters, digits and hyphens", c.Tenant)
	case len(c.Device.Names) == 0:
		return errors.New("device.names: give at least one name or address devices reach the service by")
	case slices.Contains(c.Device.Names, ""):
		return errors.New("device.names: a name is empty")
	case c.Device.MaxClients < 1:
		return fmt.Errorf("device.max_clients %d: must be at least 1", c.Device.MaxClients)
	case c.Enrol.CertDays < 1 || c.Enrol.CertDays > 90:
		return fmt.Errorf("enrol.cert_days %d: must lie between 1 and 90", c.Enrol.CertDays)
	case c.Attest.Every.Duration < time.Second:
		return fmt.Errorf("attest.every %s: must be at least 1s", c.Attest.Every)
	case !slices.Contains([]string{"attested", "degraded", "quarantined"}, c.Attest.Unjudged):
		return fmt.Errorf("attest.unjudged %q: use attested, degraded or quarantined", c.Attest.Unjudged)
	case c.Rollout.Approval != ApprovalNone && c.Rollout.Approval != ApprovalOther:
		return fmt.Errorf("rollout.approval %q: use none, or other for four eyes", c.Rollout.Approval)
	case c.Peripheral.PaperSoon.Duration < 0:
		return fmt.Errorf("peripheral.paper_soon %s: give a time, or 0s for never", c.Peripheral.PaperSoon)
	case c.AccessLog.File != "" && (c.AccessLog.MaxMiB < 1 || c.AccessLog.Keep < 0 || c.AccessLog.Keep > 1000):
		return fmt.Errorf("access_log.max_mib %d and access_log.keep %d: give a size of at least 1, and up to 1000 files to keep", c.AccessLog.MaxMiB, c.AccessLog.Keep)
	case slices.ContainsFunc(c.Enrol.Vendors, func(v VendorConfig) bool { return v.Name == "" || v.Key == "" }):
		return errors.New("enrol.vendors: give each vendor's name and the file with his public key")
	case len(c.OwnerName) > 64 || strings.ContainsFunc(c.OwnerName, unicode.IsControl):
		return fmt.Errorf("owner_name %q: use at most 64 bytes of printable text", c.OwnerName)
	case c.Authority.Module != "" && (c.Authority.Token == "" || c.Authority.PINFile == ""):
		return errors.New("authority.module: give the label of the token in authority.token and a file with its PIN in authority.pin_file")
	case c.Authority.Module == "" && (c.Authority.Token != "" || c.Authority.PINFile != ""):
		return errors.New("authority.token and authority.pin_file: name the PKCS#11 library in authority.module")
	case c.Authority.StepURL != "" && (c.Authority.StepProvisioner == "" || c.Authority.StepKey == ""):
		return errors.New("authority.step_url: give authority.step_provisioner and authority.step_key")
	case c.Authority.StepURL == "" && (c.Authority.StepProvisioner != "" || c.Authority.StepKey != ""):
		return errors.New("authority.step_provisioner and authority.step_key: name the step-ca in authority.step_url")
	case (c.Operator.Cert == "") != (c.Operator.Key == ""):
		return errors.New("operator.cert and operator.key: give both or neither")
	}
	for _, l := range [...]struct{ name, addr string }{{"device.mqtt", c.Device.MQTT}, {"device.https", c.Device.HTTPS}, {"operator.listen", c.Operator.Listen}} {
		_, port, err := net.SplitHostPort(l.addr)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return fmt.Errorf("%s %q: give host:port or :port", l.name, l.addr)
		}
	}
	if c.Operator.Plain && !loopback(c.Operator.Listen) {
		return fmt.Errorf("operator.plain: only allowed when operator.listen is a loopback address, not %q", c.Operator.Listen)
	}
	if c.Metrics.Listen != "" && !loopback(c.Metrics.Listen) {
		return fmt.Errorf("metrics.listen %q: must be a loopback address; put an exporter or proxy in front", c.Metrics.Listen)
	}
	if err := errors.Join(c.Store.validate(), checkExports(c.Export), c.Audit.check()); err != nil {
		return err
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
		return nil
	}
	return fmt.Errorf("log_level %q: use debug, info, warn or error", c.LogLevel)
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// String returns the effective file, for -check.
func (c Config) String() string {
	b, err := toml.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
