package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

const number = "4111111111111111" // nobody's

// talker is a driver that puts a card number wherever there is room for words.
type talker struct{ id string }

func (talker) Name() string { return "talker" }
func (talker) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	return talker{cfg.ID}, nil
}
func (d talker) String() string { return d.id }
func (talker) Halt() error      { return nil }
func (talker) Close() error     { return nil }
func (d talker) Info() hal.Info {
	return hal.Info{ID: d.id, Category: hal.LineDisplay, Driver: "talker", Maker: "card " + number, Model: "4111-1111-1111-1111", Serial: number, Key: "tcp:" + number + ":1", Caps: []string{number}}
}

func (talker) Status(context.Context) (hal.Status, error) {
	return hal.Status{Power: hal.PowerOnline, Health: hal.Fault, Reason: number, Advice: number, Sensors: map[string]hal.Tri{number: hal.Yes}}, nil
}

func (talker) Statistics(context.Context) ([]hal.Stat, error) {
	return []hal.Stat{{Name: number, Value: 1}}, nil
}

func (d talker) CheckHealth(_ context.Context, level hal.Level) (hal.Report, error) {
	r := hal.Report{Text: number, Checks: []hal.Check{{ID: "card-" + number, Code: number}, {ID: "status", Code: "E_" + number}}}
	if level == hal.External {
		return r, &hal.Error{Code: "E_FAILURE", Op: "read " + number, Err: errors.New(";" + number + "=2512")}
	}
	return r, nil
}

// What commands say, and what is told of the device that they are about, holds
// no card number: not from a driver, nor from a log, nor from the order itself.
func TestResultsHoldNoCardNumber(t *testing.T) {
	f := newFleet(t)
	b := f.box()
	b.drivers = []hal.Driver{talker{}}
	b.cfg.Devices = []agent.DeviceConfig{{ID: "till", Driver: "talker"}}
	b.tail = func(int) []byte { return []byte("first\npaid with " + number + "\nlast\n") }
	b.boot(tpmfarm.Default("agent/1.0.0"))
	f.until("not connected", func() bool { return f.has("link.up", 1) })
	f.until("the device is not told", func() bool { return len(f.state.Peripherals) > 0 && f.state.Peripherals[0].Health == "Fault" })
	for _, c := range []struct {
		verb string
		args map[string]string
		want string // is still said
	}{
		{"check-health", map[string]string{"peripheral": "till"}, ""},
		{"check-health", map[string]string{"peripheral": "till", "level": "external"}, "E_FAILURE"},
		{"check-health", map[string]string{"peripheral": number}, ""},
		{"check-health", map[string]string{"peripheral": "till", "level": number}, ""},
		{"collect-logs", nil, "last"},
		{"collect-logs", map[string]string{"lines": "%B" + number + "^DOE/J"}, ""},
		{"set-config", map[string]string{"label": "till " + number}, "nothing that could be a card number"},
	} {
		r := f.command(f.device(), c.verb, c.args)
		said := fmt.Sprintf("%s %s %s %s %s %s", r.State, r.Reason, r.Text, r.Output, r.From, r.To)
		if hal.MayHoldPAN(said) || strings.Contains(said, "1111") || !strings.Contains(said, c.want) {
			t.Errorf("%s %v: %s", c.verb, c.args, said)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, err := wire.Encode(&f.state); err != nil || strings.Contains(string(e), number) || strings.Contains(string(e), "4111-1111") {
		t.Errorf("state: %q, %v", e, err)
	}
	for _, r := range f.audit {
		if said := fmt.Sprintf("%s %s %v", r.Kind, r.Subject, r.Detail); strings.Contains(said, number) {
			t.Errorf("the trail says %s", said)
		}
	}
}
