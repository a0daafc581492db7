package haltest_test

import (
	"context"
	"errors"
	"iter"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/virtual"
)

// liar is a driver with one fault of character each, over a virtual device.
type liar struct {
	*virtual.Device
	way  string
	own  *hal.Tracker // what the device counts itself
	mute *atomic.Bool
	cord *sync.Mutex // the one that its owner needs
	once *sync.Once
	end  chan struct{} // never closed; a leak waits for it
	sums *[2]int       // guarded by nothing
}

func (l liar) Status(ctx context.Context) (hal.Status, error) {
	s, err := l.Device.Status(ctx)
	switch l.way {
	case "hangs":
		if l.mute.Load() {
			<-l.end
		}
	case "is always well":
		return hal.Judge(s2c(l), hal.PowerOnline, map[string]hal.Tri{"SCPresentSensor": hal.No}), nil
	case "paints green":
		for name, is := range s.Sensors {
			if is == hal.Unknown {
				s.Sensors[name] = hal.No
			}
		}
		s.Health = hal.OK
	case "talks":
		s.Advice = "Card 4111111111111111 is in."
	case "hogs":
		l.cord.Lock()
		defer l.cord.Unlock()
		<-time.After(1500 * time.Millisecond)
	case "lingers":
		<-time.After(1500 * time.Millisecond)
	case "races":
		l.sums[0]++
	}
	if l.way != "is always well" && l.mute.Load() {
		s = hal.Judge(s2c(l), hal.PowerOffline, nil)
	}
	return s, err
}

func s2c(l liar) hal.Category { return l.Device.Info().Category }

func (l liar) Events(ctx context.Context) iter.Seq2[hal.Event, error] {
	return func(yield func(hal.Event, error) bool) {
		for e, err := range l.Device.Events(ctx) {
			if l.way == "whispers" && e.Code == "NO_CARD" {
				continue
			}
			if !yield(e, err) {
				return
			}
			if l.way == "stutters" && err == nil && !yield(e, nil) {
				return
			}
		}
	}
}

func (l liar) Info() hal.Info {
	i := l.Device.Info()
	if l.way == "is nameless" {
		i.ID = ""
	}
	return i
}

func (l liar) Statistics(ctx context.Context) ([]hal.Stat, error) {
	s, err := l.Device.Statistics(ctx)
	s = append(s, l.own.Stats()...)
	for i := range s {
		switch l.way {
		case "has one epoch":
			s[i].Epoch = 1
		case "has no epoch":
			s[i].Epoch = 0
		case "counts down":
			s[i].Value = -s[i].Value
		case "counts no noise":
			if s[i].Name == "CommunicationErrorCount" {
				s[i].Value = 0
			}
		}
	}
	return s, err
}

func (l liar) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	if l.way == "prints" {
		level = hal.External
	}
	return l.Device.CheckHealth(ctx, level)
}

func (l liar) Halt() error { return l.Close() }

func (l liar) Close() error {
	switch l.way {
	case "leaks":
		go func() { <-l.end }()
	case "closes once":
		first := false
		l.once.Do(func() { first = true })
		if !first {
			panic("closed twice")
		}
	case "keeps talking":
		l.once.Do(func() {})
		return nil
	}
	return l.Device.Close()
}

// TestLiar is run by TestSuiteCatches, in a process of its own.
func TestLiar(t *testing.T) {
	way, ok := os.LookupEnv("HALTEST_WAY")
	if !ok {
		t.Skip("it is for TestSuiteCatches")
	}
	if way != "is honest" {
		haltest.Hurry(2 * time.Second)
	}
	haltest.Run(t, func(t *testing.T) haltest.Bench { return bench(t, way) })
}

func bench(t *testing.T, way string) haltest.Bench {
	category := hal.SmartCardRW
	if way == "prints" {
		category = hal.POSPrinter
	}
	var dev liar
	var mute atomic.Bool
	var cord sync.Mutex
	feeds := 100.0
	do := func(o virtual.Order) {
		if err := dev.Do(o); err != nil {
			t.Error(err)
		}
	}
	open := func(t *testing.T) hal.Device {
		d, err := virtual.Driver{}.Open(t.Context(), hal.Config{ID: "v", Options: map[string]string{"category": string(category)}})
		if err != nil {
			t.Fatal(err)
		}
		if dev.Device != nil { // it is still the same thing on the counter
			if s, _ := dev.Device.Status(t.Context()); s.Power != hal.PowerOnline {
				_ = d.(*virtual.Device).Do(virtual.Order{Power: s.Power})
			}
		}
		dev = liar{d.(*virtual.Device), way, hal.NewTracker(category), &mute, &cord, &sync.Once{}, make(chan struct{}), &[2]int{}}
		dev.own.Set("M_FedCount", feeds)
		return dev
	}
	b := haltest.Bench{
		Open: open,
		Unplug: func(on bool) {
			power := hal.PowerOnline
			if on {
				power = hal.PowerOffOffline
			}
			do(virtual.Order{Power: power})
		},
		Mute: func(on bool) { mute.Store(on) },
		Noise: func(on bool) {
			if on {
				do(virtual.Order{Count: "CommunicationErrorCount", By: 1})
			}
		},
		Reset: func() { feeds = 0; dev.own.Set("M_FedCount", feeds) },
		Blind: func(t *testing.T) hal.Device {
			d := open(t)
			do(virtual.Order{Set: "SCPresentSensor"})
			do(virtual.Order{Set: "CoverOpen"})
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
		Feed:    func(*testing.T, hal.Device, string) {},
		Observe: open,
		Compete: func(context.Context) error {
			cord.Lock()
			defer cord.Unlock()
			return nil
		},
	}
	sensors := map[hal.Category]haltest.Fault{
		hal.SmartCardRW: {Name: "card", Sensor: "SCPresentSensor", On: "CARD_PRESENT", Off: "NO_CARD"},
		hal.POSPrinter:  {Name: "cover", Sensor: "CoverOpen", On: "COVER_OPEN", Off: "COVER_OK"},
	}
	f := sensors[category]
	f.Set = func(on bool) { do(virtual.Order{Set: f.Sensor, To: &on}) }
	b.Faults = []haltest.Fault{f}
	switch way {
	case "brings nothing":
		b.Feed = nil
	case "declares too much":
		b.NotApplicable = map[int]string{2: "nobody looks"}
	case "gives no reason":
		b.Mute, b.NotApplicable = nil, map[int]string{2: ""}
	case "wants no leak check":
		b.NotApplicable = map[int]string{1: "it leaks"}
	}
	return b
}

// The suite passes an honest driver and catches each lie, at the law that is
// against it.
func TestSuiteCatches(t *testing.T) {
	for way, want := range map[string]string{
		"is honest":           "",
		"leaks":               "law_01",
		"hangs":               "law_02",
		"is always well":      "law_02",
		"keeps quiet":         "law_03",
		"stutters":            "law_03",
		"talks twice":         "law_04",
		"counts no noise":     "law_05",
		"has one epoch":       "law_06",
		"has no epoch":        "law_06",
		"counts down":         "law_06",
		"hogs":                "law_07",
		"paints green":        "law_08",
		"lingers":             "law_09",
		"keeps talking":       "law_09",
		"talks":               "law_10",
		"brings nothing":      "law_10",
		"prints":              "law_11",
		"closes once":         "law_12",
		"races":               "law_12",
		"whispers":            "law_13",
		"is nameless":         "bench",
		"declares too much":   "bench",
		"gives no reason":     "bench",
		"wants no leak check": "bench",
	} {
		t.Run(way, func(t *testing.T) {
			if way == "races" && !raceDetector {
				t.Skip("only the race detector sees it")
			}
			t.Parallel()
			act := map[string]string{"keeps quiet": "whispers", "talks twice": "stutters"}
			lie := way
			if act[way] != "" {
				lie = act[way]
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^TestLiar$/"+want)
			cmd.Env = append(os.Environ(), "HALTEST_WAY="+lie)
			out, err := cmd.CombinedOutput()
			exit, failed := errors.AsType[*exec.ExitError](err)
			switch {
			case want == "" && (err != nil || strings.Count(string(out), "PASS: TestLiar/law_") != 13):
				t.Errorf("an honest driver failed: %v\n%s", err, out)
			case want != "" && (!failed || (exit.ExitCode() != 1 && way != "races") || !strings.Contains(string(out), "FAIL: TestLiar/"+want)):
				t.Errorf("not caught: %v\n%s", err, out)
			}
		})
	}
}
