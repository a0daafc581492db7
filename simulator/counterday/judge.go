package counterday

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// event is what the service was told of a peripheral.
type event struct {
	At         time.Time `json:"at"`
	Peripheral string    `json:"peripheral"`
	Code       string    `json:"code"`
	Count      int       `json:"count"` // how often, where it flapped
}

// peripheral is what the scenario needs of the API's peripheral.
type peripheral struct {
	ID     string `json:"id"`
	Health string `json:"health"`
	Reason string `json:"reason"`
	Paper  *struct {
		RunOutAt *time.Time `json:"run_out_at"`
	} `json:"paper"`
}

// settle waits until the till is attested and all four peripherals are known
// and well, and then lets the day begin.
func (d *day) settle(ctx context.Context) error {
	return d.w.Until(ctx, "four healthy peripherals", func(ctx context.Context) (bool, error) {
		id, known, err := d.w.Find(ctx, d.till)
		if err != nil || !known {
			return false, err
		}
		d.id = id
		for _, name := range []string{printer, drawer, reader, scanner} {
			p, err := d.peripheral(ctx, name)
			if err != nil || p.Health != "OK" {
				return false, nil //nolint:nilerr // not known yet
			}
		}
		return true, nil
	})
}

func (d *day) peripheral(ctx context.Context, name string) (p peripheral, err error) {
	return p, d.w.Operator.Get(ctx, "/v1/devices/"+d.id+"/peripherals/"+name, &p)
}

func (d *day) count(n *int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*n++
}

// judge compares what happened with what the service was told.
func (d *day) judge(ctx context.Context, list []*fault, began time.Time) (Report, error) {
	events, err := d.told(ctx)
	if err != nil {
		return Report{}, err
	}
	r := Report{
		Sales: d.sales, Reprints: d.reprints, Scans: d.scans, Seed: d.o.Seed,
		FalseAlarms: falseAlarms(list, events), Seconds: time.Since(began).Round(time.Millisecond).Seconds(),
	}
	var took []float64
	for _, f := range list {
		one := f.judge(list, events)
		r.Faults = append(r.Faults, one)
		if !one.OK {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %s", one.Name, one.Why))
			continue
		}
		took = append(took, one.DetectMS)
	}
	slices.Sort(took)
	if n := len(took); n > 0 {
		r.MedianMS = (took[(n-1)/2] + took[n/2]) / 2
	}
	for _, a := range r.FalseAlarms {
		r.Problems = append(r.Problems, "told and had not happened: "+a)
	}
	if r.MedianMS > float64(maxDetect.Milliseconds()) {
		r.Problems = append(r.Problems, fmt.Sprintf("half of the faults took more than %v to be seen: %.0f ms", maxDetect, r.MedianMS))
	}
	r.PredictionError, r.Predictions = d.prediction()
	if r.Predictions == 0 || r.PredictionError > maxMiss {
		r.Problems = append(r.Problems, fmt.Sprintf("of %d predictions the worst is off by %.1f %% of the roll's life", r.Predictions, 100*r.PredictionError))
	}
	if err := d.counted(ctx, &r); err != nil {
		return r, err
	}
	r.OK = len(r.Problems) == 0
	return r, nil
}

// told is every event of the till, oldest first.
func (d *day) told(ctx context.Context) ([]event, error) {
	var out []event
	for after := ""; ; {
		var page struct {
			Items []event `json:"items"`
			Next  string  `json:"next"`
		}
		if err := d.w.Operator.Get(ctx, "/v1/devices/"+d.id+"/events?limit=1000&after="+after, &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if after = page.Next; after == "" {
			slices.Reverse(out) // newest first
			return out, nil
		}
	}
}

// exact is what is cut off the time of an event: it may have been that much later.
const exact = time.Millisecond

// tick is how exactly events know their time.
const tick = 2 * time.Millisecond

// window is when a fault's beginning and its end may be told: until the next
// fault of that peripheral.
func (f *fault) window(list []*fault) (from, to time.Time) {
	from, to = f.begun.Add(-tick), time.Now()
	for _, g := range list {
		if g != f && g.peripheral == f.peripheral && g.begun.After(f.begun) && g.begun.Before(to) {
			to = g.begun.Add(-tick)
		}
	}
	return from, to
}

func (f *fault) judge(list []*fault, events []event) Fault {
	out := Fault{Name: f.name, Peripheral: f.peripheral, Code: f.on}
	if f.begun.IsZero() || f.ended.IsZero() && !f.sudden {
		out.Why = "it never happened"
		return out
	}
	from, to := f.window(list)
	switch {
	case f.lane == "": // other faults may come between its beginning and its end
		to = f.ended.Add(heldAtMost)
	case f.sudden: // what ends it happens at every sale, too
		to = f.ended.Add(f.settling())
	}
	over := f.ended.Add(-tick)
	if f.sudden {
		over = from
	}
	for _, e := range events {
		if e.Peripheral != f.peripheral || e.At.Before(from) || e.At.After(to) {
			continue
		}
		n := max(1, e.Count)
		switch {
		case e.Code == f.on && e.At.Before(over) || e.Code == f.on && f.sudden:
			if out.Told += n; out.Told == n {
				out.DetectMS = max(0, float64(e.At.Add(exact).Sub(f.begun).Microseconds())/1000)
			}
		case e.Code == f.on:
			out.Told += n // after its end
		case e.Code == f.off && !e.At.Before(over):
			out.Cleared += n
		}
	}
	out.OK = out.Told == 1 && out.Cleared == 1
	if !out.OK {
		out.Why = fmt.Sprintf("%s was told %d times and %s %d times, want once each", f.on, out.Told, f.off, out.Cleared)
	}
	return out
}

// falseAlarms are faults that were told while there was none at all at that
// peripheral.
func falseAlarms(list []*fault, events []event) (out []string) {
	out = []string{}
	for _, e := range events {
		alarm, there := false, false
		for _, f := range list {
			if f.peripheral != e.Peripheral {
				continue
			}
			alarm = alarm || f.on == e.Code
			end := f.ended
			there = there || !f.begun.IsZero() && !e.At.Before(f.begun.Add(-tick)) && !e.At.After(end.Add(f.settling()))
		}
		if alarm && !there {
			out = append(out, fmt.Sprintf("%s of %s at %s", e.Code, e.Peripheral, e.At.Format("15:04:05.000")))
		}
	}
	return out
}

// prediction is how far the worst prediction from half a roll on was off, as a
// share of how long the roll lasted.
func (d *day) prediction() (worst float64, judged int) {
	life := d.ended.Sub(d.rolled)
	if d.ended.IsZero() || life <= 0 {
		return 1, 0
	}
	for _, l := range d.looks {
		if 2*l.used < d.till.Counter().Roll || l.at.After(d.ended) {
			continue
		}
		judged++
		worst = max(worst, math.Abs(l.out.Sub(d.ended).Seconds())/life.Seconds())
	}
	return worst, judged
}

// counted compares the service's counts with what was done.
func (d *day) counted(ctx context.Context, r *Report) error {
	var series struct {
		Items []struct {
			Peripheral string  `json:"peripheral"`
			Name       string  `json:"name"`
			Last       float64 `json:"last"`
		} `json:"items"`
	}
	if err := d.w.Operator.Get(ctx, "/v1/devices/"+d.id+"/series", &series); err != nil {
		return err
	}
	for _, want := range []struct {
		peripheral, name string
		n                int
	}{{scanner, "GoodScanCount", r.Scans}, {printer, "PaperCutCount", r.Sales}} {
		got := -1.0
		for _, s := range series.Items {
			if s.Peripheral == want.peripheral && s.Name == want.name {
				got = s.Last
			}
		}
		if got < float64(want.n) && want.n > 0 { // the last counts may not have been told
			d.say("%s of %s: %v told, %d done", want.name, want.peripheral, got, want.n)
		}
		if got > float64(want.n) {
			r.Problems = append(r.Problems, fmt.Sprintf("%s of %s is %v, and %d is the truth", want.name, want.peripheral, got, want.n))
		}
	}
	return nil
}
