// Package counterday plays a day at one counter, twelve hours in a minute, with
// something going wrong every other second, and judges what the fleet service
// was told of it: each fault once, in the right words, each recovery once,
// nothing that did not happen, and when the paper would run out.
//
// The till is a real one: a POS application prints its receipts through the
// agent's print socket, scans and takes cards; agent, service and pcscd are
// those that ship. Only the hardware is emulated. It is imported by the
// simulator's command and its tests alone.
package counterday

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tillward/tillward/simulator"
)

// Options say what day is played.
type Options struct {
	simulator.Options
	Report string // file for the Report; "-" prints it, empty: none
	// Spoil changes the list of faults before the day begins, for tests that must
	// fail; nil: it is played as it is.
	Spoil func([]*fault)
}

// Report is what a day proves.
type Report struct {
	Faults          []Fault  `json:"faults"`
	PredictionError float64  `json:"prediction_error"` // the worst from half a roll on, as a share of the roll's life
	Predictions     int      `json:"predictions"`      // that were judged
	MedianMS        float64  `json:"median_detect_ms"`
	FalseAlarms     []string `json:"false_alarms"` // what was told and had not happened
	Sales           int      `json:"sales"`        // receipts that came out whole
	Reprints        int      `json:"reprints"`     // of receipts that the agent had said did not come out
	Scans           int      `json:"scans"`
	Seed            uint64   `json:"seed"`
	Seconds         float64  `json:"seconds"`
	OK              bool     `json:"ok"`
	Problems        []string `json:"problems,omitempty"`
}

// Fault is one fault of a day, and what became of it.
type Fault struct {
	Name       string  `json:"name"`
	OK         bool    `json:"ok"`
	Code       string  `json:"code"`      // as the service was told, UnifiedPOS or M_
	DetectMS   float64 `json:"detect_ms"` // at most: events know their time to a millisecond
	Peripheral string  `json:"peripheral"`
	Told       int     `json:"told"`    // how often, which must be once
	Cleared    int     `json:"cleared"` // as above
	Why        string  `json:"why,omitempty"`
}

const (
	maxDetect  = 250 * time.Millisecond
	maxMiss    = 0.10
	heldAtMost = 300 * time.Millisecond // a fault of the printer lasts so long, which is four minutes of the day
	readerHeld = time.Second            // pcscd looks every 400 ms
)

// Run plays the day and writes its report. It returns an error when the day
// shows something that must not be.
func Run(ctx context.Context, o Options) error {
	r, err := Play(ctx, o)
	if err != nil {
		return err
	}
	if err := simulator.WriteReport(o.Out, o.Report, r); err != nil {
		return err
	}
	good := 0
	for _, f := range r.Faults {
		if f.OK {
			good++
		}
	}
	fmt.Fprintf(o.Out, "%d of %d faults told once and cleared once, half of them within %.1f ms; paper prediction off by %.1f %%\n",
		good, len(r.Faults), r.MedianMS, 100*r.PredictionError)
	for _, p := range r.Problems {
		fmt.Fprintln(o.Out, "problem ", p)
	}
	if !r.OK {
		return fmt.Errorf("%d problems in this day; the agent's log is below %s", len(r.Problems), o.Dir)
	}
	return nil
}

// day is a day under way.
type day struct {
	o     Options
	w     *simulator.World
	till  *simulator.Till
	id    string // device id
	began time.Time
	rand  *rand.Rand
	say   func(format string, args ...any)

	counter sync.Mutex // held while something happens at the printer or its drawer
	reader  sync.Mutex // and at the card reader
	natural [2]*fault  // that come from use: paper low, paper out
	left    *fault     // the drawer that is left open

	scanning    sync.Mutex // held while a code is read, or the scanner comes and goes
	unscannable bool

	mu       sync.Mutex
	rolled   time.Time // when the full roll was put in
	ended    time.Time // when it was used up
	sales    int
	reprints int
	scans    int
	looks    []look
}

// look is one prediction, as an operator sees it.
type look struct {
	at, out time.Time
	used    int // lines of the roll
}

// Play plays the day and returns what it proves.
func Play(ctx context.Context, o Options) (Report, error) {
	began := time.Now()
	o.PortBase = 0
	o.Tills, o.UpdateTo = 1, ""
	o.Pace = simulator.Pace{Poll: "250ms", Stats: "500ms", Batch: "250ms", Heartbeat: "2s", Flaps: 1000} // what takes a day here is no flapping
	o.Counter = true
	if o.Day == 0 {
		o.Day = time.Minute
	}
	d := &day{o: o, rand: rand.New(rand.NewPCG(o.Seed, 0xc0017e4))} // #nosec G404 -- a script, no secret
	d.say = func(format string, args ...any) {
		fmt.Fprintf(o.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	d.say("starting the fleet service and one till with printer, drawer, card reader and scanner in %s", o.Dir)
	w, err := simulator.Open(ctx, o.Options)
	if err != nil {
		return Report{}, err
	}
	defer w.Close()
	d.w, d.till = w, w.Tills[0]
	url, token := w.Console()
	d.say("console  %s", url)
	d.say("token    %s", token)
	d.till.Boot(ctx)
	if err := d.settle(ctx); err != nil {
		return Report{}, err
	}
	list := d.faults()
	d.natural = [2]*fault{named(list, "paper runs low"), named(list, "paper runs out")}
	if o.Spoil != nil {
		o.Spoil(list)
	}
	if err := d.play(ctx, list); err != nil {
		return Report{}, err
	}
	d.till.Stop() // what it knows it has told then
	return d.judge(ctx, list, began)
}

// play lets everything happen: each lane has its faults one after the other,
// and the shop sells all day.
func (d *day) play(ctx context.Context, list []*fault) error {
	d.began = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var lanes, shop sync.WaitGroup
	errs := make(chan error, 8)
	run := func(wg *sync.WaitGroup, what string, do func(context.Context) error) {
		wg.Go(func() {
			if err := do(ctx); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("%s: %w", what, err)
				cancel()
			}
		})
	}
	run(&shop, "the roll", d.watchRoll)
	run(&shop, "predictions", d.predictions)
	run(&lanes, "sales", d.sell)
	run(&lanes, "cards", d.cards)
	byLane := map[string][]*fault{}
	for _, f := range list {
		if f.lane != "" {
			byLane[f.lane] = append(byLane[f.lane], f)
		}
	}
	for lane, faults := range byLane {
		run(&lanes, lane, func(ctx context.Context) error { return d.suffer(ctx, faults) })
	}
	lanes.Wait()
	cancel()
	shop.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

// at waits until a moment of the day, in parts of it from 0 to 1.
func (d *day) at(ctx context.Context, part float64) error {
	return wait(ctx, time.Until(d.began.Add(time.Duration(part*float64(d.o.Day)))))
}

func wait(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
