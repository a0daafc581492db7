package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

type rolloutCmd struct {
	Start       rolloutStart   `cmd:"" help:"Bring a release to devices, or start a rollout that is ready."`
	Create      rolloutCreate  `cmd:"" help:"Compose a rollout and keep it as a draft."`
	Preview     rolloutPreview `cmd:"" help:"Say what a rollout would do now; nothing happens."`
	Show        rolloutShow    `cmd:"" help:"Show a rollout and where each device stands."`
	List        rolloutList    `cmd:"" help:"List rollouts, newest first."`
	Why         rolloutWhy     `cmd:"" help:"Say what a device runs, and why it waits for what it does not."`
	Submit      rolloutMove    `cmd:"" help:"Hand a draft in for approval."`
	Approve     rolloutMove    `cmd:"" help:"Approve what somebody else handed in."`
	Deny        rolloutMove    `cmd:"" help:"Turn down what was handed in."`
	Pause       rolloutMove    `cmd:"" help:"Offer nothing more for now."`
	Resume      rolloutMove    `cmd:"" help:"Go on with a paused rollout."`
	Abort       rolloutMove    `cmd:"" help:"End a rollout; what installs on devices finishes."`
	Complete    rolloutMove    `cmd:"" help:"End a rollout without those who are left."`
	Retry       rolloutRetry   `cmd:"" help:"Try again what ended in a way that may pass."`
	ReleaseHold rolloutRelease `cmd:"" help:"Let a model or a site in again that was held."`
}

// rollout is a rollout as the API shows it; the numbers behind the waves come
// only when one is asked for.
type rollout struct {
	ID          string         `json:"id"`
	Release     string         `json:"release"`
	Group       string         `json:"group"`
	State       string         `json:"state"`
	Reason      string         `json:"reason"`
	CreatedAt   *time.Time     `json:"created_at"`
	CreatedBy   string         `json:"created_by"`
	ApprovedBy  string         `json:"approved_by"`
	Counts      map[string]int `json:"counts"`
	Total       int            `json:"total"`
	Good        int            `json:"good"`
	Bad         int            `json:"bad"`
	Unreachable int            `json:"unreachable"`
	Waves       []wave         `json:"waves"`
	Holds       []hold         `json:"holds"`
	ETA         *time.Time     `json:"eta"`
	Version     int64          `json:"version"`
	Bytes       *struct {
		Wire   uint64 `json:"wire"`
		Peer   uint64 `json:"peer"`
		Medium uint64 `json:"medium"`
		Reused uint64 `json:"reused"`
	} `json:"bytes"`
}

type wave struct {
	Name        string         `json:"name"`
	State       string         `json:"state"`
	SoakedAt    *time.Time     `json:"soaked_at"`
	SoakS       int            `json:"soak_s"`
	Counts      map[string]int `json:"counts"`
	Total       int            `json:"total"`
	Good        int            `json:"good"`
	Bad         int            `json:"bad"`
	Unreachable int            `json:"unreachable"`
}

type hold struct {
	Model      string     `json:"model"`
	Site       string     `json:"site"`
	Reason     string     `json:"reason"`
	Since      *time.Time `json:"since"`
	ReleasedAt *time.Time `json:"released_at"`
}

func (r rollout) counts() string { return counts(r.Counts) }

func counts(by map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, by[k]))
	}
	return strings.Join(parts, ", ")
}

func rolloutRow(r rollout) string {
	return tab(r.ID, r.Release, r.Group, strings.TrimSpace(r.State+" "+r.Reason), r.counts(), r.CreatedBy, ago(r.CreatedAt), strconv.FormatInt(r.Version, 10))
}

const rolloutHead = "ROLLOUT\tRELEASE\tGROUP\tSTATE\tDEVICES\tBY\tCREATED\tVERSION"

// path of a rollout, and what lies below it.
func rolloutPath(id string, below ...string) string {
	return strings.Join(append([]string{"/v1/rollouts", url.PathEscape(id)}, below...), "/")
}

// shown prints a rollout as it came, or watches it.
func shown(ctx context.Context, o *out, api *client, raw json.RawMessage, watching bool) error {
	var r rollout
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if watching {
		return watch(ctx, o, api, r.ID)
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow)
}

type rolloutStart struct {
	Release string `arg:"" help:"Release id, e.g. agent/1.2.3; or the id of a rollout that is ready."`
	Plan    plan   `embed:""`
	Watch   bool   `help:"Stay and show the progress."`
	Reason  string `help:"Why a rollout is started that is ready; kept in the audit trail."`
	Seen    int64  `help:"Start what is ready only if it is still this version, as it was shown." placeholder:"VERSION"`
}

// Run implements the command.
func (c *rolloutStart) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	ready := !strings.Contains(c.Release, "/")
	switch {
	case ready && !reflect.DeepEqual(c.Plan, plan{}):
		return usage{fmt.Errorf("%s is composed already; give flags of a plan with a release, or with rollout create --replace %s", c.Release, c.Release)}
	case !ready && (c.Reason != "" || c.Seen != 0):
		return usage{errors.New("--reason and --seen are for a rollout that is ready; a release is brought out by its plan")}
	}
	if ready {
		if err := api.post(ctx, rolloutPath(c.Release, "start"), map[string]any{"reason": c.Reason, "version": c.Seen}, &raw); err != nil {
			return err
		}
		return shown(ctx, o, api, raw, c.Watch)
	}
	spec, err := c.Plan.named(ctx, api)
	if err != nil {
		return err
	}
	if err := api.post(ctx, "/v1/rollouts", map[string]any{"release": c.Release, "spec": spec}, &raw); err != nil {
		return err
	}
	return shown(ctx, o, api, raw, c.Watch)
}

type rolloutCreate struct {
	Release string `arg:"" help:"Release id, e.g. agent/1.2.3 or ops/main/pos/4.5.6."`
	Plan    plan   `embed:""`
	Replace string `help:"Compose this draft anew instead of making another." placeholder:"ROLLOUT"`
	Seen    int64  `help:"With --replace: only if it is still this version, as it was shown." placeholder:"VERSION"`
}

// Run implements the command.
func (c *rolloutCreate) Run(ctx context.Context, o *out, api *client) error {
	spec, err := c.Plan.named(ctx, api)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if c.Replace != "" {
		err = api.send(ctx, "PUT", rolloutPath(c.Replace), map[string]any{"release": c.Release, "spec": spec, "version": c.Seen}, &raw)
	} else {
		err = api.post(ctx, "/v1/rollouts", map[string]any{"release": c.Release, "spec": spec, "draft": true}, &raw)
	}
	if err != nil {
		return err
	}
	return shown(ctx, o, api, raw, false)
}

type rolloutPreview struct {
	Release string `arg:"" help:"Release id."`
	Plan    plan   `embed:""`
}

// Run implements the command.
func (c *rolloutPreview) Run(ctx context.Context, o *out, api *client) error {
	spec, err := c.Plan.named(ctx, api)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := api.post(ctx, "/v1/rollouts/preview", map[string]any{"release": c.Release, "spec": spec}, &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	type devices struct {
		Name    string `json:"name"`
		Reason  string `json:"reason"`
		Text    string `json:"text"`
		Devices int    `json:"devices"`
	}
	var p struct {
		Text    string            `json:"text"`
		Waves   []json.RawMessage `json:"waves"`
		Blocked []json.RawMessage `json:"blocked"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	fmt.Fprintf(o.w, "%s\n\n", p.Text)
	if err := list(o, p.Waves, "WAVE\tDEVICES", func(w devices) string { return tab(w.Name, strconv.Itoa(w.Devices)) }); err != nil || len(p.Blocked) == 0 {
		return err
	}
	fmt.Fprintln(o.w)
	return list(o, p.Blocked, "BLOCKED BY\tDEVICES\tWHY", func(b devices) string { return tab(b.Reason, strconv.Itoa(b.Devices), b.Text) })
}

type rolloutShow struct {
	Rollout string `arg:"" help:"Rollout id."`
	Watch   bool   `help:"Stay and show the progress."`
	State   string `help:"Only devices in this state." placeholder:"STATE"`
	Wave    *int   `help:"Only devices of this wave, counted from 1." placeholder:"N"`
	Model   string `help:"Only devices of this model."`
	Site    string `help:"Only devices of this site."`
}

// Run implements the command.
func (c *rolloutShow) Run(ctx context.Context, o *out, api *client) error {
	if c.Watch {
		return watch(ctx, o, api, c.Rollout)
	}
	q := url.Values{}
	for k, v := range map[string]string{"state": c.State, "model": c.Model, "site": c.Site} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if c.Wave != nil {
		if *c.Wave < 1 {
			return usage{fmt.Errorf("--wave %d: waves are counted from 1", *c.Wave)}
		}
		q.Set("wave", strconv.Itoa(*c.Wave-1))
	}
	var raw json.RawMessage
	if err := api.get(ctx, rolloutPath(c.Rollout), &raw); err != nil {
		return err
	}
	execs, err := api.all(ctx, rolloutPath(c.Rollout, "executions"), q, 0)
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(map[string]any{"rollout": raw, "executions": execs})
	}
	if err := list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow); err != nil {
		return err
	}
	var r rollout
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	fmt.Fprintln(o.w)
	for _, line := range board(r, 30)[1:] {
		fmt.Fprintln(o.w, line)
	}
	fmt.Fprintln(o.w)
	return list(o, execs, executionHead, executionRow)
}

const executionHead = "DEVICE\tSTATE\tFROM\tTO\tREASON"

type execution struct {
	Rollout   string     `json:"rollout"`
	Device    string     `json:"device"`
	State     string     `json:"state"`
	Reason    string     `json:"reason"`
	Text      string     `json:"text"`
	From      string     `json:"from"`
	To        string     `json:"to"`
	UpdatedAt *time.Time `json:"updated_at"`
}

func executionRow(e execution) string {
	return tab(e.Device, e.State, e.From, e.To, strings.TrimSpace(e.Reason+" "+e.Text))
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

type rolloutWhy struct {
	Device string `arg:"" help:"Its id, label or serial number."`
}

// Run implements the command.
func (c *rolloutWhy) Run(ctx context.Context, o *out, api *client) error {
	id, err := deviceID(ctx, api, c.Device)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := api.get(ctx, "/v1/devices/"+url.PathEscape(id)+"/update", &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	var u struct{ Installed, Executions, Waiting []json.RawMessage }
	if err := json.Unmarshal(raw, &u); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if len(u.Waiting) == 0 {
		fmt.Fprintln(o.w, "it waits for nothing")
	} else if err := list(o, u.Waiting, "ROLLOUT\tWAITS FOR\tSINCE\tWHY", func(d struct {
		Rollout, Reason, Text string
		Since                 *time.Time
	},
	) string {
		return tab(d.Rollout, d.Reason, ago(d.Since), d.Text)
	}); err != nil {
		return err
	}
	fmt.Fprintln(o.w)
	err = list(o, u.Installed, "RUNS\tVERSION\tSLOT\tTRIAL", func(i struct {
		Component, Version, Slot string
		Trial                    bool
	},
	) string {
		return tab(i.Component, i.Version, i.Slot, map[bool]string{true: "on trial"}[i.Trial])
	})
	if err != nil || len(u.Executions) == 0 {
		return err
	}
	fmt.Fprintln(o.w)
	return list(o, u.Executions, "ROLLOUT\tSTATE\tFROM\tTO\tLAST HEARD\tREASON", func(e execution) string {
		return tab(e.Rollout, e.State, e.From, e.To, ago(e.UpdatedAt), strings.TrimSpace(e.Reason+" "+e.Text))
	})
}

type rolloutMove struct {
	Rollout string `arg:"" help:"Rollout id."`
	Reason  string `help:"Why; kept in the audit trail."`
	Seen    int64  `help:"Only if it is still this version, as it was shown." placeholder:"VERSION"`
}

// Run implements the commands that are a verb of the API and no more.
func (c *rolloutMove) Run(ctx context.Context, o *out, api *client, verb string) error {
	var raw json.RawMessage
	if err := api.post(ctx, rolloutPath(c.Rollout, verb), map[string]any{"reason": c.Reason, "version": c.Seen}, &raw); err != nil {
		return err
	}
	return shown(ctx, o, api, raw, false)
}

type rolloutRetry struct {
	Rollout string `arg:"" help:"Rollout id."`
	Device  string `help:"Only this device; all that failed or timed out by default."`
	Reason  string `help:"Why; kept in the audit trail."`
}

// Run implements the command.
func (c *rolloutRetry) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	if err := api.post(ctx, rolloutPath(c.Rollout, "retry"), map[string]string{"reason": c.Reason, "device": c.Device}, &raw); err != nil {
		return err
	}
	return shown(ctx, o, api, raw, false)
}

type rolloutRelease struct {
	Rollout string `arg:"" help:"Rollout id."`
	Model   string `help:"The model that is held." xor:"what" required:""`
	Site    string `help:"The site that is held." xor:"what" required:""`
	Reason  string `help:"Why; kept in the audit trail."`
}

// Run implements the command.
func (c *rolloutRelease) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	in := map[string]string{"reason": c.Reason}
	if c.Model != "" {
		in["model"] = c.Model
	} else {
		in["site"] = c.Site
	}
	if err := api.post(ctx, rolloutPath(c.Rollout, "holds", "release"), in, &raw); err != nil {
		return err
	}
	return shown(ctx, o, api, raw, false)
}
