//go:build firmware

package firmware_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"text/template"
	"time"

	"github.com/tillward/tillward/simulator"
)

// What the images of this lane are called, and how releases of them are.
const (
	compatible = "tillward-sim"
	system     = "os/tillward-sim-1/prod" // component: os/MODEL/CHANNEL
)

// fleet is the service and what its vendor has: keys, the folder that goes into
// each image, the release repository.
type fleet struct {
	*simulator.World
	vendor string // folder of what is baked into images
	keys   string // that of the vendor, who never gives it away
}

// openFleet starts the service on loopback, which machines reach as 10.0.2.2,
// and makes the vendor's folder with his own tools.
func openFleet(ctx context.Context, dir, bin string) (_ *fleet, err error) {
	f := &fleet{vendor: filepath.Join(dir, "vendor"), keys: filepath.Join(dir, "keys")}
	f.World, err = simulator.Open(ctx, simulator.Options{
		Dir: filepath.Join(dir, "fleet"), Bin: bin, Images: true, ByClaim: true, Out: io.Discard, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	for _, d := range []string{f.vendor, f.keys} {
		if err = os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err = f.Provision(ctx, "key", "create", f.sealKey(), "--sealing", filepath.Join(f.vendor, "seal.pub")); err != nil {
		return nil, err
	}
	if err = f.Provision(ctx, "bundle", "keys", filepath.Join(f.keys, "rauc")); err != nil {
		return nil, err
	}
	at := f.Endpoints()
	for from, to := range map[string]string{
		at.Roots: "service-roots.pem",
		filepath.Join(f.Dir(), "release", "repo", "metadata", "1.root.json"): "root.json",
		filepath.Join(f.keys, "rauc", "keyring.pem"):                         "rauc-keyring.pem",
	} {
		b, rerr := os.ReadFile(from)
		if rerr != nil {
			return nil, rerr
		}
		if err = os.WriteFile(filepath.Join(f.vendor, to), b, 0o644); err != nil {
			return nil, err
		}
	}
	// A boot counts as well sooner than in a shop: the power is cut often here.
	if err = os.WriteFile(filepath.Join(f.vendor, "board.conf"), []byte(boardConf), 0o644); err != nil {
		return nil, err
	}
	file, err := f.agentFile("")
	if err != nil {
		return nil, err
	}
	return f, os.WriteFile(filepath.Join(f.vendor, "agent.toml"), []byte(file), 0o644)
}

const boardConf = "trial_minutes=10\nwell_seconds=5\n"

func (f *fleet) sealKey() string { return filepath.Join(f.keys, "seal.pem") }

// agentFile is the agent's file of an image. A broker that is given is one that
// no till reaches.
func (f *fleet) agentFile(broker string) (string, error) {
	guest := func(host string) string {
		_, port, _ := net.SplitHostPort(host)
		return net.JoinHostPort("10.0.2.2", port)
	}
	at := f.Endpoints()
	if broker == "" {
		broker = guest(at.MQTT)
	}
	var b strings.Builder
	err := agentTOML.Execute(&b, map[string]string{"Model": f.Model(), "HTTPS": guest(at.HTTPS), "Broker": broker})
	return b.String(), err
}

var agentTOML = template.Must(template.New("agent.toml").Parse(`# of the test of the firmware
state_dir = "/state/tillward"
model = "{{.Model}}"
reboot = []
factory_reset = "/run/tillward/factory-reset"

[service]
enrol = "https://{{.HTTPS}}"
files = ["/state/provision/tillward-service.toml", "/run/esp/*/EFI/tillward/tillward-service.toml"]
leases = ["/run/udhcpc/*"]
roots = "/etc/tillward/service-roots.pem"
server_name = "localhost"
broker = "{{.Broker}}"
artifacts = "https://{{.HTTPS}}"

[update]
root = "/etc/tillward/root.json"
seal_key = "/etc/tillward/seal.pub"
references = ["/run/esp/*/EFI/tillward/boot.json"]
rauc = "unix:path=/run/dbus/system_bus_socket"
check_for = "90s"
min_free_mib = 8
apps_dir = "/data/tillward/apps"
media = ["/run/media/tillward/*/tillward-update"]

[spool]
max_mib = 32

[telemetry]
poll = "2s"
stats = "5s"
batch = "2s"
heartbeat = "10s"

[[device]]
id = "receipt"
driver = "escpos"
address = "serial:/dev/ttyUSB0?baud=115200"
claim = "own"

[[device]]
id = "reader"
driver = "pcsc"
options = { probe = "insert" }

[[device]]
id = "box"
driver = "board"
`))

// serveTime is a time server, as simple as they come [RFC 5905, 7.3]: it answers
// until conn is closed, and counts whom.
func serveTime(conn net.PacketConn, asked *atomic.Int64) {
	const since1900 = 2208988800 // seconds, to 1970
	b := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		if n < 48 {
			continue
		}
		asked.Add(1)
		now := time.Now()
		stamp := binary.BigEndian.AppendUint32(nil, uint32(now.Unix()+since1900))
		stamp = binary.BigEndian.AppendUint32(stamp, uint32((uint64(now.Nanosecond())<<32)/1e9))
		// No leap second, version 4, a server; stratum 1, any poll, 2^-20 s.
		answer := append([]byte{4<<3 | 4, 1, b[2], 0xec}, make([]byte, 8)...)
		answer = append(answer, "LOCL"...)
		answer = append(answer, stamp...)    // when it was set
		answer = append(answer, b[40:48]...) // when the client asked, as it says
		answer = append(answer, stamp...)
		answer = append(answer, stamp...)
		_, _ = conn.WriteTo(answer, from)
	}
}

// device is what the service knows of a till.
type device struct {
	ID, Trust, Tier, Serial string
	Online                  bool
	Samples                 uint64
	AgentVersion            string `json:"agent_version"`
	BootRelease             string `json:"boot_release"`
	ResetCount              uint32 `json:"reset_count"`
	AuditOK                 bool   `json:"audit_ok"`
	Findings                []struct {
		Check, PCR, Event, Release, Text string
	}
	Peripherals []struct {
		ID, Category, Driver, Health, Power string
		Sensors                             map[string]any
	}
	Components []struct{ Name, Version, Slot string }
}

// device returns what the service knows of a till; found is false when that is
// nothing.
func (f *fleet) device(ctx context.Context, id string) (d device, found bool, err error) {
	var all struct{ Items []json.RawMessage }
	if err := f.Operator.Get(ctx, "/v1/devices?limit=1000", &all); err != nil {
		return d, false, err
	}
	for _, raw := range all.Items {
		var head struct{ ID string }
		if err := json.Unmarshal(raw, &head); err != nil {
			return d, false, err
		}
		if head.ID == id {
			return d, true, json.Unmarshal(raw, &d)
		}
	}
	return d, false, nil
}

// until waits for something that the service knows of a till. The error says
// what it knew last.
func (f *fleet) until(ctx context.Context, id, what string, within time.Duration, ok func(device) bool) (device, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, within*time.Duration(*slowFlag), fmt.Errorf("not within %v", within))
	defer cancel()
	var last device
	err := f.Until(ctx, what, func(ctx context.Context) (bool, error) {
		d, found, err := f.device(ctx, id)
		if err == nil && found {
			last = d
		}
		return found && ok(d), err
	})
	if err != nil {
		return last, fmt.Errorf("%w (%w); the service knows: %+v", err, context.Cause(ctx), last)
	}
	return last, nil
}

// event is one of a trail.
type event struct {
	Seq                     uint64
	Kind, Severity, Subject string
	Detail                  map[string]any
}

// trail reads the audit trail of a till, oldest first.
func (f *fleet) trail(ctx context.Context, id string) (out []event, err error) {
	for after := ""; ; {
		var page struct {
			Items []event
			Next  string
		}
		if err := f.Operator.Get(ctx, "/v1/devices/"+id+"/audit?order=asc&limit=1000&after="+after, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if after = page.Next; after == "" {
			return out, nil
		}
	}
}

// series says how often something of a peripheral was stored.
func (f *fleet) series(ctx context.Context, id, peripheral, name string) (uint64, error) {
	var all struct {
		Items []struct {
			Peripheral, Name string
			Count            uint64
		}
	}
	err := f.Operator.Get(ctx, "/v1/devices/"+id+"/series", &all)
	for _, s := range all.Items {
		if s.Peripheral == peripheral && s.Name == name {
			return s.Count, err
		}
	}
	return 0, err
}

// execution is a till's part in a rollout.
type execution struct {
	ID, Device, State, Reason, Text string
	Total                           uint64
	Bytes                           struct{ Wire, Reused uint64 }
}

// ended reports whether nothing more comes of it.
func (e execution) ended() bool {
	return slices.Contains([]string{"SUCCEEDED", "ALREADY_INSTALLED", "FAILED", "ROLLED_BACK", "REJECTED", "TIMED_OUT", "CANCELED", "REMOVED"}, e.State)
}

func (f *fleet) execution(ctx context.Context, rollout, id string) (execution, error) {
	var all struct{ Items []execution }
	err := f.Operator.Get(ctx, "/v1/rollouts/"+rollout+"/executions", &all)
	for _, e := range all.Items {
		if e.Device == id {
			return e, err
		}
	}
	return execution{}, err
}

// untilPart waits until a till's part in a rollout is as wanted; one that has
// ended otherwise is an error.
func (f *fleet) untilPart(ctx context.Context, rollout, id, what string, within time.Duration, ok func(execution) bool) (last execution, err error) {
	ctx, cancel := context.WithTimeout(ctx, within*time.Duration(*slowFlag))
	defer cancel()
	err = f.Until(ctx, "the update is "+what, func(ctx context.Context) (bool, error) {
		e, err := f.execution(ctx, rollout, id)
		if err != nil {
			return false, err
		}
		if e.ID != "" {
			last = e
		}
		if !ok(e) && e.ended() {
			return false, errors.New("it has ended")
		}
		return ok(e), nil
	})
	if err != nil {
		return last, fmt.Errorf("%w; it is %+v", err, last)
	}
	return last, nil
}

// command sends one to a till and waits for its output.
func (f *fleet) command(ctx context.Context, id, verb string, within time.Duration, with map[string]string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within*time.Duration(*slowFlag))
	defer cancel()
	if with == nil {
		with = map[string]string{}
	}
	var sent struct{ Items []struct{ ID string } }
	if err := f.Operator.Post(ctx, "/v1/commands", map[string]any{"device": id, "verb": verb, "reason": "test of the firmware", "args": with}, &sent); err != nil {
		return "", err
	}
	var c struct{ State, Code, Text, Output string }
	err := f.Until(ctx, "the command "+verb, func(ctx context.Context) (bool, error) {
		if err := f.Operator.Get(ctx, "/v1/commands/"+sent.Items[0].ID, &c); err != nil {
			return false, err
		}
		switch c.State {
		case "SUCCEEDED":
			return true, nil
		case "FAILED", "REJECTED", "EXPIRED":
			return false, fmt.Errorf("%s %s: %s", c.State, c.Code, c.Text)
		}
		return false, nil
	})
	return c.Output, err
}
