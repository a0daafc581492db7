package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

type rolloutCmd struct {
	Start  rolloutStart `cmd:"" help:"Bring a release to a group."`
	Show   rolloutShow  `cmd:"" help:"Show a rollout and where each device stands."`
	List   rolloutList  `cmd:"" help:"List rollouts, newest first."`
	Pause  rolloutMove  `cmd:"" help:"Offer nothing more for now."`
	Resume rolloutMove  `cmd:"" help:"Go on with a paused rollout."`
	Abort  rolloutMove  `cmd:"" help:"End a rollout; what is under way on devices finishes."`
}

type rollout struct {
	ID        string         `json:"id"`
	Release   string         `json:"release"`
	Group     string         `json:"group"`
	State     string         `json:"state"`
	Reason    string         `json:"reason"`
	CreatedAt *time.Time     `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	Counts    map[string]int `json:"counts"`
	Total     int            `json:"total"`
}

func (r rollout) counts() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(r.Counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, r.Counts[k]))
	}
	return strings.Join(parts, ", ")
}

func rolloutRow(r rollout) string {
	return tab(r.ID, r.Release, r.Group, strings.TrimSpace(r.State+" "+r.Reason), r.counts(), r.CreatedBy, ago(r.CreatedAt))
}

const rolloutHead = "ROLLOUT\tRELEASE\tGROUP\tSTATE\tDEVICES\tBY\tSTARTED"

type rolloutStart struct {
	Release   string        `arg:"" help:"Release id, e.g. agent/1.2.3."`
	Group     string        `help:"Group of devices; all by default."`
	Deadline  time.Duration `help:"For one device, from its offer." default:"1h"`
	MaxFailed int           `help:"Pause when more devices than this end badly." default:"1"`
	Repair    bool          `help:"Offer it to quarantined devices, too."`
	Watch     bool          `help:"Stay and show the progress."`
}

// Run implements the command.
func (c *rolloutStart) Run(ctx context.Context, o *out, api *client) error {
	deadline, err := seconds("--deadline", c.Deadline)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	in := map[string]any{"release": c.Release, "group": c.Group, "deadline_s": deadline, "max_failed": c.MaxFailed, "repair": c.Repair}
	if err := api.post(ctx, "/v1/rollouts", in, &raw); err != nil {
		return err
	}
	var r rollout
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if c.Watch {
		return watch(ctx, o, api, r.ID)
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow)
}

// watch prints a line whenever the rollout stands otherwise, until it ends.
func watch(ctx context.Context, o *out, api *client, id string) error {
	last := ""
	for {
		var raw json.RawMessage
		if err := api.get(ctx, "/v1/rollouts/"+url.PathEscape(id), &raw); err != nil {
			return err
		}
		var r rollout
		if err := json.Unmarshal(raw, &r); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		line := fmt.Sprintf("%s  %-9s  %s", r.ID, r.State, r.counts())
		if o.json {
			line = string(raw)
		}
		if line != last {
			fmt.Fprintln(o.w, line)
			last = line
		}
		switch r.State {
		case "COMPLETED":
			return nil
		case "PAUSED", "ABORTED", "DENIED", "SUPERSEDED":
			return fmt.Errorf("rollout is %s: %s", r.State, r.Reason)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

type rolloutShow struct {
	Rollout string `arg:"" help:"Rollout id."`
	Watch   bool   `help:"Stay and show the progress."`
}

// Run implements the command.
func (c *rolloutShow) Run(ctx context.Context, o *out, api *client) error {
	if c.Watch {
		return watch(ctx, o, api, c.Rollout)
	}
	var raw json.RawMessage
	if err := api.get(ctx, "/v1/rollouts/"+url.PathEscape(c.Rollout), &raw); err != nil {
		return err
	}
	execs, err := api.all(ctx, "/v1/rollouts/"+url.PathEscape(c.Rollout)+"/executions", url.Values{}, 0)
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(map[string]any{"rollout": raw, "executions": execs})
	}
	if err := list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow); err != nil {
		return err
	}
	fmt.Fprintln(o.w)
	type execution struct {
		Device string `json:"device"`
		State  string `json:"state"`
		Reason string `json:"reason"`
		Text   string `json:"text"`
		From   string `json:"from"`
		To     string `json:"to"`
	}
	return list(o, execs, "DEVICE\tSTATE\tFROM\tTO\tREASON", func(e execution) string {
		return tab(e.Device, e.State, e.From, e.To, strings.TrimSpace(e.Reason+" "+e.Text))
	})
}

type rolloutList struct{}

// Run implements the command.
func (rolloutList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/rollouts", url.Values{}, 0)
	if err != nil {
		return err
	}
	return list(o, items, rolloutHead, rolloutRow)
}

type rolloutMove struct {
	Rollout string `arg:"" help:"Rollout id."`
	Reason  string `help:"Why; kept in the audit trail."`
}

// Run implements the commands pause, resume and abort.
func (c *rolloutMove) Run(ctx context.Context, o *out, api *client, verb string) error {
	var raw json.RawMessage
	if err := api.post(ctx, "/v1/rollouts/"+url.PathEscape(c.Rollout)+"/"+verb, map[string]string{"reason": c.Reason}, &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow)
}
