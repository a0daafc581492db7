package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

type figuresCmd struct {
	Part  string        `help:"One part, as the list shows it, with what it does: api, mqtt-up, store and the like." placeholder:"PART"`
	Op    string        `help:"One thing that the part does, such as a route or a channel." placeholder:"OP"`
	Since string        `default:"1h" help:"Since when: a span as 90m or 7d, a day as 2026-11-01, or a time." placeholder:"WHEN"`
	Step  time.Duration `help:"Length of a point; what fits when it is not given."`
	Watch bool          `help:"Draw anew every few seconds, until interrupted."`
}

// Help teaches the command.
func (figuresCmd) Help() string {
	return `Shows how often each part of the service answered, how that went, and how long half, 95 % and 99 % of all took at most.
The chart is of answers a second; the highest point is named beside it.

  tillward figures                              all parts, the last hour
  tillward figures --part api --since 24h       the routes of the API, the slowest first
  tillward figures --part mqtt-up --watch       what tills send, as it comes
  tillward figures --json --since 30d --step 24h`
}

const figuresEvery = 5 * time.Second

type figure struct {
	At         time.Time `json:"at"`
	SpanS      float64   `json:"span_s"`
	OK         uint64    `json:"ok"`
	Redirected uint64    `json:"redirected"`
	Refused    uint64    `json:"refused"`
	Failed     uint64    `json:"failed"`
	Bytes      uint64    `json:"bytes"`
	P50        float64   `json:"p50_ms"`
	P95        float64   `json:"p95_ms"`
	P99        float64   `json:"p99_ms"`
}

func (f figure) answers() uint64 { return f.OK + f.Redirected + f.Refused + f.Failed }

func (f figure) rate() float64 {
	if f.SpanS <= 0 {
		return 0
	}
	return float64(f.answers()) / f.SpanS
}

type partFigures struct {
	Part   string   `json:"part"`
	Op     string   `json:"op"`
	Total  figure   `json:"total"`
	Points []figure `json:"points"`
}

type figuresAnswer struct {
	Parts []partFigures `json:"parts"`
	Ops   []partFigures `json:"ops"`
}

// since reads when figures begin: as moment does, or as Go writes a span.
func since(text string, now time.Time) (time.Time, error) {
	at, err := moment(text, now)
	if d, err2 := time.ParseDuration(text); err != nil && err2 == nil {
		at, err = now.Add(-d), nil
	}
	switch {
	case err != nil:
		return at, usage{fmt.Errorf("--since %q: give a span as 90m or 7d, a day as 2026-11-01, or a time as 2026-11-01T18:30 or 2026-11-01T18:30:00Z", text)}
	case now.Sub(at) < time.Minute:
		return at, usage{fmt.Errorf("--since %s: give at least 1m", text)}
	}
	return at, nil
}

// Run implements the command.
func (c *figuresCmd) Run(ctx context.Context, o *out, api *client) error {
	for {
		now := time.Now()
		from, err := since(c.Since, now)
		if err != nil {
			return err
		}
		q := url.Values{"from": {from.UTC().Format(time.RFC3339)}}
		for k, v := range map[string]string{"part": c.Part, "op": c.Op} {
			if v != "" {
				q.Set(k, v)
			}
		}
		if c.Step > 0 {
			q.Set("step", c.Step.String())
		}
		var raw json.RawMessage
		if err := api.get(ctx, "/v1/figures?"+q.Encode(), &raw); err != nil {
			return unwatched(ctx, c.Watch, err)
		}
		if o.json {
			fmt.Fprintln(o.w, string(raw))
		} else {
			var a figuresAnswer
			if err := json.Unmarshal(raw, &a); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			if err := c.show(o, a); err != nil {
				return err
			}
		}
		if !c.Watch {
			return nil
		}
		if err := rest(ctx, figuresEvery); err != nil {
			return unwatched(ctx, c.Watch, err)
		}
	}
}

// unwatched ends watching in peace when somebody ended it.
func unwatched(ctx context.Context, watching bool, err error) error {
	if watching && ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *figuresCmd) show(o *out, a figuresAnswer) error {
	if c.Watch {
		if f, ok := o.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) { // #nosec G115 -- a descriptor
			fmt.Fprint(o.w, "\x1b[H\x1b[2J")
		}
	}
	if len(a.Parts)+len(a.Ops) == 0 {
		what := "nothing was answered in this time"
		if c.Part != "" {
			what += " by " + strconv.Quote(c.Part) + "; tillward figures lists the parts there are"
		}
		_, err := fmt.Fprintln(o.w, what)
		return err
	}
	rows := func(head string, all []partFigures, name func(partFigures) string) error {
		items := make([]json.RawMessage, 0, len(all))
		for _, p := range all {
			b, err := json.Marshal(p)
			if err != nil {
				return err
			}
			items = append(items, b)
		}
		return list(o, items, head+"\tANSWERS\tA SECOND\tREFUSED\tFAILED\tHALF\t95 %\t99 %\tBYTES\tANSWERS A SECOND", func(p partFigures) string {
			t := p.Total
			return tab(name(p), strconv.FormatUint(t.answers(), 10), rate(t.rate()), strconv.FormatUint(t.Refused, 10), strconv.FormatUint(t.Failed, 10),
				took(t.P50), took(t.P95), took(t.P99), sized(t.Bytes), spark(p.Points, 30))
		})
	}
	if len(a.Parts) > 0 {
		if err := rows("PART", a.Parts, func(p partFigures) string { return p.Part }); err != nil {
			return err
		}
	}
	if c.Part == "" && c.Op == "" || len(a.Ops) == 0 {
		return nil
	}
	slices.SortFunc(a.Ops, func(x, y partFigures) int {
		switch {
		case x.Total.P95 > y.Total.P95:
			return -1
		case x.Total.P95 < y.Total.P95:
			return 1
		}
		return strings.Compare(x.Op, y.Op)
	})
	fmt.Fprintln(o.w)
	return rows("WHAT", a.Ops, func(p partFigures) string { return p.Op })
}

// spark is a chart of one line: answers a second in columns, and the highest.
func spark(points []figure, width int) string {
	if len(points) == 0 {
		return ""
	}
	const bars = "▁▂▃▄▅▆▇█"
	columns, most := make([]float64, min(width, len(points))), 0.0
	for i := range columns {
		part := points[i*len(points)/len(columns) : (i+1)*len(points)/len(columns)]
		n, span := 0.0, 0.0
		for _, p := range part {
			n, span = n+float64(p.answers()), span+p.SpanS
		}
		if span > 0 {
			columns[i] = n / span
		}
		most = max(most, columns[i])
	}
	var b strings.Builder
	for _, v := range columns {
		if v == 0 {
			b.WriteByte(' ')
		} else {
			b.WriteRune([]rune(bars)[min(int(v/most*8), 7)])
		}
	}
	return b.String() + "| " + rate(most)
}

func rate(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return "<0.01"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

func took(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 2, 64) + " ms"
	case ms < 1000:
		return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
	}
	return strconv.FormatFloat(ms/1000, 'f', 1, 64) + " s"
}

func sized(n uint64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

type healthCmd struct {
	Watch bool `help:"Tell again whenever something changes, until interrupted."`
}

// Help teaches the command.
func (healthCmd) Help() string {
	return `Shows how every part of the service is, since when, and what to do. Exit code 1 when a part fails, so that a script can ask.`
}

type partHealth struct {
	Part  string     `json:"part"`
	State string     `json:"state"`
	Since *time.Time `json:"since"`
	What  string     `json:"what"`
	Todo  string     `json:"todo"`
}

var errFails = errors.New("a part of the service fails")

// Run implements the command.
func (c *healthCmd) Run(ctx context.Context, o *out, api *client) error {
	for last := ""; ; {
		var raw json.RawMessage
		if err := api.get(ctx, "/v1/health", &raw); err != nil {
			return unwatched(ctx, c.Watch, err)
		}
		var a struct {
			State string       `json:"state"`
			Parts []partHealth `json:"parts"`
		}
		if err := json.Unmarshal(raw, &a); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		var states strings.Builder
		for _, p := range a.Parts {
			states.WriteString(p.Part + p.State)
		}
		if states.String() != last || !c.Watch {
			last = states.String()
			if err := showHealth(o, raw, a.Parts); err != nil {
				return err
			}
		}
		if !c.Watch {
			if a.State == "failing" {
				return errFails
			}
			return nil
		}
		if err := rest(ctx, figuresEvery); err != nil {
			return unwatched(ctx, c.Watch, err)
		}
	}
}

func showHealth(o *out, raw json.RawMessage, parts []partHealth) error {
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	items := make([]json.RawMessage, 0, len(parts))
	for _, p := range parts {
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		items = append(items, b)
	}
	return list(o, items, "PART\tSTATE\tSINCE\tWHAT\tWHAT TO DO", func(p partHealth) string { return tab(p.Part, p.State, ago(p.Since), p.What, p.Todo) })
}
