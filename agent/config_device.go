package agent

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

var usbKey = regexp.MustCompile(`^usb:[0-9a-f]{4}:[0-9a-f]{4}([:@][!-~]{1,100})?$`)

// validatePeripherals checks what the file says of peripherals.
func (c Config) validatePeripherals() error {
	for _, k := range c.Peripherals.Ignore {
		if !usbKey.MatchString(k) {
			return fmt.Errorf("peripherals.ignore %q: give usb:VID:PID in lower-case hex, and :SERIAL or @PORT behind it where only one is meant", k)
		}
	}
	if d := c.Telemetry.Poll.Duration; d != 0 && !pacing(d) {
		return fmt.Errorf("telemetry.poll %s: must lie between 100ms and 24h, or be 0s", c.Telemetry.Poll)
	}
	if d := c.Telemetry.Check.Duration; d != 0 && (d < time.Minute || d > 31*24*time.Hour) {
		return fmt.Errorf("telemetry.check %s: must lie between 1m and 744h, or be 0s", c.Telemetry.Check)
	}
	seen := make(map[string]bool)
	for i, d := range c.Devices {
		switch {
		case d.ID == "" || d.Driver == "":
			return fmt.Errorf("device %d: give it an id and a driver", i+1)
		case seen[d.ID]:
			return fmt.Errorf("device %q: the id is used twice", d.ID)
		case !slices.Contains([]string{"", "observe", "share", "own"}, d.Claim):
			return fmt.Errorf("device %q: claim %q: use observe, share or own", d.ID, d.Claim)
		case d.Poll.Duration != 0 && !pacing(d.Poll.Duration):
			return fmt.Errorf("device %q: poll %s: must lie between 100ms and 24h, or be 0s", d.ID, d.Poll)
		}
		seen[d.ID] = true
	}
	return nil
}

func pacing(d time.Duration) bool { return d >= 100*time.Millisecond && d <= 24*time.Hour }
