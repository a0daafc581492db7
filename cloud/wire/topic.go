package wire

import (
	"fmt"
	"strings"
)

// Channel is the last part of a topic: what kind of message travels there.
type Channel string

// The channels of the contract.
const (
	Telemetry Channel = "up/telemetry" // TelemetryBatch
	Event     Channel = "up/event"     // EventBatch
	Audit     Channel = "up/audit"     // AuditBatch
	State     Channel = "up/state"     // StateReport
	Result    Channel = "up/result"    // ResultReport
	Evidence  Channel = "up/evidence"  // EvidenceReport
	Live      Channel = "up/live"      // TelemetryBatch that goes ahead of older ones which still wait; since version 5

	DownCommand   Channel = "down/command"   // Order holding a CommandOrder
	DownOffer     Channel = "down/offer"     // Order holding an OfferOrder
	DownConfig    Channel = "down/config"    // Order holding a CommandOrder with verb set-config
	DownChallenge Channel = "down/challenge" // Challenge
)

// Up reports whether the channel leads from the device to the service.
func (c Channel) Up() bool { return strings.HasPrefix(string(c), "up/") }

func (c Channel) known() bool {
	switch c {
	case Telemetry, Live, Event, Audit, State, Result, Evidence, DownCommand, DownOffer, DownConfig, DownChallenge:
		return true
	}
	return false
}

// quarantined lists what a device may use while it is pending or quarantined:
// prove itself, say how it is, keep its audit trail, and be helped.
func (c Channel) quarantined() bool {
	switch c {
	case Evidence, State, Audit, Result, DownChallenge, DownCommand, DownOffer:
		return true
	}
	return false
}

// Topic is a parsed topic name:
// t/{tenant}/d/{device}/{channel}, or t/{tenant}/q/{device}/{channel} for a
// device that is pending or quarantined.
type Topic struct {
	Tenant     string
	Device     string
	Quarantine bool
	Channel    Channel
}

// String returns the topic name.
func (t Topic) String() string {
	door := "d"
	if t.Quarantine {
		door = "q"
	}
	return "t/" + t.Tenant + "/" + door + "/" + t.Device + "/" + string(t.Channel)
}

// Down returns the topic filter a device subscribes to for all its down
// messages: t/{tenant}/{d|q}/{device}/down/+.
func Down(tenant, device string, quarantine bool) string {
	t := Topic{Tenant: tenant, Device: device, Quarantine: quarantine, Channel: "down/+"}
	return t.String()
}

// ParseTopic parses a topic name. Anything that is not exactly a topic of the
// contract, wildcards included, is ErrTopic.
func ParseTopic(s string) (Topic, error) {
	if len(s) > MaxTopic {
		return Topic{}, fmt.Errorf("topic of %d bytes: %w", len(s), ErrTopic)
	}
	p := strings.SplitN(s, "/", 5)
	if len(p) != 5 || p[0] != "t" || (p[2] != "d" && p[2] != "q") || !level(p[1]) || !level(p[3]) {
		return Topic{}, fmt.Errorf("%.40q: %w", s, ErrTopic)
	}
	t := Topic{Tenant: p[1], Device: p[3], Quarantine: p[2] == "q", Channel: Channel(p[4])}
	if !t.Channel.known() || (t.Quarantine && !t.Channel.quarantined()) {
		return Topic{}, fmt.Errorf("%.80q: %w", s, ErrTopic)
	}
	return t, nil
}

// level reports whether s can be one level of a topic: lower-case letters,
// digits and inner hyphens.
func level(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
		case r == '-' && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return true
}
