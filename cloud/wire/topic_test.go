package wire_test

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud/wire"
)

func hashOf(b []byte) [32]byte { return sha256.Sum256(b) }

var channels = []wire.Channel{
	wire.Telemetry, wire.Live, wire.Event, wire.Audit, wire.State, wire.Result, wire.Evidence,
	wire.DownCommand, wire.DownOffer, wire.DownConfig, wire.DownChallenge,
}

// TestTopics walks every channel through both doors; behind the q door only
// what DESIGN.md opens to a device that is pending or quarantined exists.
func TestTopics(t *testing.T) {
	open := map[wire.Channel]bool{
		wire.Evidence: true, wire.State: true, wire.Audit: true, wire.Result: true,
		wire.DownChallenge: true, wire.DownCommand: true, wire.DownOffer: true,
	}
	for _, c := range channels {
		if got, want := c.Up(), strings.HasPrefix(string(c), "up/"); got != want {
			t.Errorf("%s: up is %v, want %v", c, got, want)
		}
		for _, q := range []bool{false, true} {
			want := wire.Topic{Tenant: "acme", Device: "mfrggzdfmztwq2lknnwg23tp", Quarantine: q, Channel: c}
			got, err := wire.ParseTopic(want.String())
			switch {
			case q && !open[c]:
				if !errors.Is(err, wire.ErrTopic) {
					t.Errorf("%s: got %v, want %v", want, err, wire.ErrTopic)
				}
			case err != nil || got != want:
				t.Errorf("%s: got %+v (%v)", want, got, err)
			}
		}
	}
	if got, want := wire.Down("acme", "dev-1", false), "t/acme/d/dev-1/down/+"; got != want {
		t.Errorf("filter: got %s, want %s", got, want)
	}
	if got, want := wire.Down("acme", "dev-1", true), "t/acme/q/dev-1/down/+"; got != want {
		t.Errorf("quarantine filter: got %s, want %s", got, want)
	}
}

func TestRefusedTopics(t *testing.T) {
	for _, s := range []string{
		"", "t", "/", "t/acme/d/dev", "t/acme/d/dev/up", "t/acme/d/dev/up/", "t/acme/d/dev/up/telemetry/x",
		"x/acme/d/dev/up/telemetry", "t/acme/x/dev/up/telemetry", "t//d/dev/up/telemetry", "t/acme/d//up/telemetry",
		"t/acme/d/dev/up/+", "t/acme/d/dev/#", "t/+/d/dev/up/telemetry", "t/acme/d/+/up/telemetry", "#", "+/+/+/+/+/+",
		"$SYS/broker", "/t/acme/d/dev/up/telemetry", "t/acme/d/dev/up/telemetry ", "T/acme/d/dev/up/telemetry",
		"t/Acme/d/dev/up/telemetry", "t/-acme/d/dev/up/telemetry", "t/acme-/d/dev/up/telemetry", "t/ac me/d/dev/up/telemetry",
		"t/acme/d/dev/up/telemetry\x00", "t/acme/d/dév/up/telemetry", "t/acme/d/dev/down/telemetry", "t/acme/d/dev/up/command",
		"t/acme/q/dev/up/telemetry", "t/acme/q/dev/up/live", "t/acme/q/dev/up/event", "t/acme/q/dev/down/config", "t/acme/d/../up/telemetry",
		"t/" + strings.Repeat("a", 41) + "/d/dev/up/telemetry",
		"t/" + strings.Repeat("a", 40) + "/d/" + strings.Repeat("b", 70) + "/up/telemetry",
	} {
		if got, err := wire.ParseTopic(s); !errors.Is(err, wire.ErrTopic) {
			t.Errorf("%q: got %+v (%v), want %v", s, got, err, wire.ErrTopic)
		}
	}
	longest := wire.Topic{Tenant: strings.Repeat("a", 40), Device: strings.Repeat("b", 40), Channel: wire.DownChallenge}
	if _, err := wire.ParseTopic(longest.String()); err != nil {
		t.Errorf("longest topic of %d bytes: %v", len(longest.String()), err)
	}
}

func FuzzParseTopic(f *testing.F) {
	for _, c := range channels {
		f.Add(wire.Topic{Tenant: "acme", Device: "dev-1", Channel: c}.String())
		f.Add(wire.Topic{Tenant: "acme", Device: "dev-1", Quarantine: true, Channel: c}.String())
	}
	f.Add("t/+/d/#/up/telemetry")
	f.Fuzz(func(t *testing.T, s string) {
		topic, err := wire.ParseTopic(s)
		if err != nil {
			if !errors.Is(err, wire.ErrTopic) {
				t.Fatalf("error that nobody can decide on: %v", err)
			}
			return
		}
		if topic.String() != s {
			t.Fatalf("got %q, want %q", topic, s)
		}
		if len(s) > wire.MaxTopic || strings.ContainsAny(s, "+#$\x00 ") {
			t.Fatalf("%q is a topic", s)
		}
	})
}
