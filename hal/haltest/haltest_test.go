package haltest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/virtual"
)

// liar is a driver with one fault of character each.
type liar struct {
	*virtual.Device
	way string
	end chan struct{} // never closed; a leak waits for it
}

func (l liar) Status(ctx context.Context) (hal.Status, error) {
	s, err := l.Device.Status(ctx)
	switch l.way {
	case "hangs":
		<-time.After(3 * time.Second)
	case "paints green":
		for name, is := range s.Sensors {
			if is == hal.Unknown {
				s.Sensors[name] = hal.No
			}
		}
		s.Health = hal.OK
	case "talks":
		s.Advice = "Card 4111111111111111 is in."
	case "keeps quiet":
		return hal.Judge(hal.SmartCardRW, hal.PowerOnline, map[string]hal.Tri{"SCPresentSensor": hal.No}), nil
	}
	return s, err
}

func (l liar) Info() hal.Info {
	i := l.Device.Info()
	if l.way == "nameless" {
		i.ID = ""
	}
	return i
}

func (l liar) Statistics(ctx context.Context) ([]hal.Stat, error) {
	s, err := l.Device.Statistics(ctx)
	if l.way == "forgets" && l.Device.Do(virtual.Order{Count: "asked", By: 1}) == nil {
		s = append(s, hal.Stat{Name: "counter", Value: -float64(len(s))})
	}
	return s, err
}

func (l liar) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if l.way == "prints" {
		level = hal.External
	}
	return l.Device.CheckHealth(ctx, level)
}

func (l liar) Halt() error {
	if l.way == "leaks" {
		return nil
	}
	return l.Device.Halt()
}

func (l liar) Close() error {
	if l.way == "leaks" {
		go func() { <-l.end }()
	}
	return l.Device.Close()
}

// TestLiar is run by TestSuiteCatches, in a process of its own.
func TestLiar(t *testing.T) {
	way, ok := os.LookupEnv("HALTEST_WAY")
	if !ok {
		return
	}
	haltest.Hurry(2 * time.Second)
	haltest.Run(t, func(t *testing.T) haltest.Bench {
		category := hal.SmartCardRW
		if way == "prints" {
			category = hal.POSPrinter
		}
		var dev *virtual.Device
		open := func(t *testing.T) hal.Device {
			d, err := virtual.Driver{}.Open(t.Context(), hal.Config{ID: "v", Options: map[string]string{"category": string(category)}})
			if err != nil {
				t.Fatal(err)
			}
			dev = d.(*virtual.Device)
			return liar{dev, way, make(chan struct{})}
		}
		b := haltest.Bench{
			Open: open,
			Unplug: func(on bool) {
				power := hal.PowerOnline
				if on {
					power = hal.PowerOffOffline
				}
				_ = dev.Do(virtual.Order{Power: power})
			},
			Blind: func(t *testing.T) hal.Device {
				d := open(t)
				_ = dev.Do(virtual.Order{Set: "SCPresentSensor"})
				_ = dev.Do(virtual.Order{Set: "CoverOpen"})
				return d
			},
			Unseen: []string{"SCPresentSensor", "CoverOpen"},
			Output: func() int {
				list, _ := dev.Statistics(t.Context())
				for _, s := range list {
					if s.Name == "ReceiptLineFeedCount" {
						return int(s.Value)
					}
				}
				return 0
			},
			Feed: func(*testing.T, hal.Device, string) {},
		}
		if category == hal.SmartCardRW {
			b.Faults = []haltest.Fault{{Name: "card", Sensor: "SCPresentSensor", On: "CARD_PRESENT", Off: "NO_CARD", Set: func(on bool) {
				_ = dev.Do(virtual.Order{Set: "SCPresentSensor", To: &on})
				if way == "stutters" {
					_ = dev.Do(virtual.Order{Event: map[bool]string{true: "CARD_PRESENT", false: "NO_CARD"}[on]})
				}
			}}}
		}
		return b
	})
}

// The suite passes an honest driver and catches each lie.
func TestSuiteCatches(t *testing.T) {
	for way, want := range map[string]string{
		"is honest":    "",
		"hangs":        "cancelling_is_prompt",
		"paints green": "an_absent_sensor_is_unknown",
		"talks":        "no_card_number_comes_out",
		"keeps quiet":  "each_fault_tells_its_events_once",
		"stutters":     "each_fault_tells_its_events_once",
		"nameless":     "a_healthy_device_reads_OK",
		"forgets":      "a_lost_device_is_told_once_and_comes_back",
		"prints":       "an_internal_check_moves_nothing",
		"leaks":        "open_and_close_leave_nothing_behind",
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			only := "/" + want
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLiar$"+only)
			cmd.Env = append(os.Environ(), "HALTEST_WAY="+way)
			out, err := cmd.CombinedOutput()
			exit, failed := errors.AsType[*exec.ExitError](err)
			switch {
			case want == "" && err != nil:
				t.Errorf("an honest driver failed: %s", out)
			case want != "" && (!failed || exit.ExitCode() != 1 || !strings.Contains(string(out), "FAIL: TestLiar/"+want)):
				t.Errorf("not caught: %v\n%s", err, out)
			}
		})
	}
}
