package agent

import (
	"cmp"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/agent/internal/local"
	"github.com/tillward/tillward/hal"
)

var usbKey = regexp.MustCompile(`^usb:[0-9a-f]{4}:[0-9a-f]{4}([:@][!-~]{1,100})?$`)

// validatePeripherals says everything that is wrong with what the file says of
// peripherals.
func (c Config) validatePeripherals() (wrong []error) {
	refuse := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	for _, k := range c.Peripherals.Ignore {
		if !usbKey.MatchString(k) {
			refuse("peripherals.ignore %q: give usb:VID:PID in lower-case hex, and :SERIAL or @PORT behind it where only one is meant", k)
		}
	}
	if d := c.Telemetry.Poll.Duration; d != 0 && !pacing(d) {
		refuse("telemetry.poll %s: must lie between 100ms and 24h, or be 0s", c.Telemetry.Poll)
	}
	if d := c.Telemetry.Check.Duration; d != 0 && (d < time.Minute || d > 31*24*time.Hour) {
		refuse("telemetry.check %s: must lie between 1m and 744h, or be 0s", c.Telemetry.Check)
	}
	if f := c.Telemetry.Flaps; f < 1 || f > 1000 {
		refuse("telemetry.flaps %d: must lie between 1 and 1000", f)
	}
	seen, held := make(map[string]bool), make(map[string]bool)
	for i, d := range c.Devices {
		if d.ID == "" || d.Driver == "" {
			refuse("device %d: give it an id and a driver", i+1)
		}
		if d.ID != "" && seen[d.ID] {
			refuse("device %q: the id is used twice", d.ID)
		}
		if !d.claimed() {
			refuse("device %q: claim %q: use observe, share or own", d.ID, d.Claim)
		}
		if d.Poll.Duration != 0 && !pacing(d.Poll.Duration) {
			refuse("device %q: poll %s: must lie between 100ms and 24h, or be 0s", d.ID, d.Poll)
		}
		if err := d.validatePrint(seen); err != nil {
			refuse("device %q: %w", d.ID, err)
		}
		seen[d.ID] = true
		if drawer := d.Options["drawer"]; drawer != "" { // which is a device too
			if seen[drawer] {
				refuse("device %q: drawer %q: the id is used twice", d.ID, drawer)
			}
			seen[drawer] = true
		}
		if at := d.held(); at != "" {
			if held[at] {
				refuse("device %q: address %q is held by another device; only one can have it", d.ID, d.Address)
			}
			held[at] = true
		}
	}
	return wrong
}

// held is the address that the device is to own, if the file says so. What else
// could be the same place only drivers know: checkDevices asks them.
func (d DeviceConfig) held() string {
	if d.Claim != string(hal.Own) {
		return ""
	}
	return strings.TrimPrefix(d.Address, "tcp:")
}

// claimed reports whether the claim is one that there is.
func (d DeviceConfig) claimed() bool {
	return slices.Contains([]string{"", "observe", "share", "own"}, d.Claim)
}

// validatePrint checks the print sockets of a device. used are those of others.
func (d DeviceConfig) validatePrint(used map[string]bool) error {
	for _, socket := range [...]struct {
		name, at string
		proof    bool
	}{{"print", d.Print, false}, {"print_proof", d.PrintProof, true}} {
		if socket.at == "" {
			continue
		}
		if d.Claim != string(hal.Own) {
			return fmt.Errorf("%s: the till owns this printer; claim it with own", socket.name)
		}
		if err := local.CheckAddress(socket.at, socket.proof); err != nil {
			return fmt.Errorf("%s %w", socket.name, err)
		}
		if used[socket.at] {
			return fmt.Errorf("%s %q is used twice", socket.name, socket.at)
		}
		used[socket.at] = true
	}
	if _, err := d.printMode(); err != nil {
		return err
	}
	return nil
}

// printMode are the rights of the unix sockets.
func (d DeviceConfig) printMode() (fs.FileMode, error) {
	n, err := strconv.ParseUint(cmp.Or(d.PrintMode, "0660"), 8, 16)
	if err != nil || n&^0o666 != 0 || n&0o600 != 0o600 {
		return 0, fmt.Errorf("print_mode %q: give something like 0660, and no less than 0600", d.PrintMode)
	}
	return fs.FileMode(n), nil
}

func pacing(d time.Duration) bool { return d >= 100*time.Millisecond && d <= 24*time.Hour }
