package simulator

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"
)

const (
	crowdWithin = 15 * time.Minute
	crowdLate   = 200 // devices that come back after the end, at most
	crowdLimit  = 50  // of so many devices one may be of the bad model and be hit: 200 of 10,000
)

// staged is what the scenario reads of a rollout.
type staged struct {
	ID     string         `json:"id"`
	State  string         `json:"state"`
	Reason string         `json:"reason"`
	Counts map[string]int `json:"counts"`
	Holds  []struct {
		Model  string `json:"model"`
		Reason string `json:"reason"`
	} `json:"holds"`
	Waves []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"waves"`
}

// held says why the bad model is held; empty: it is not.
func (s staged) held() string {
	for _, h := range s.Holds {
		if h.Model == badModel {
			return h.Reason
		}
	}
	return ""
}

func (s staged) line() string {
	var b strings.Builder
	for _, w := range s.Waves {
		fmt.Fprintf(&b, " %s %s;", w.Name, w.State)
	}
	return fmt.Sprintf("%s%s %v", s.State, b.String(), s.Counts)
}

// roll starts the rollout, waits until it stands, lets some of those that were
// away come back, and counts.
func (c *crowd) roll(ctx context.Context) (CrowdReport, error) {
	r := CrowdReport{Devices: c.o.Devices, Limit: cmp.Or(c.o.Limit, c.o.Devices/crowdLimit)}
	for i := range c.devices {
		if c.online(i) {
			r.Online++
		}
	}
	c.wg.Go(func() { c.ping(ctx) })
	gate := map[string]any{"min_sample": c.o.Sample}
	if c.o.Bad > 0 {
		gate["bad"], gate["success"] = c.o.Bad, 100-c.o.Bad
	}
	plan := map[string]any{"release": "agent/2.0.0", "spec": map[string]any{
		"waves": []map[string]any{{"name": "canary", "percent": 2, "soak_s": 2}, {"name": "tenth", "percent": 10, "soak_s": 2}, {"name": "rest"}},
		"gate":  gate, "per_site": 2, "unreachable_s": cmp.Or(c.o.Away, 30), "joiners": true, "attempts": 1,
	}}
	var dry struct {
		Text string `json:"text"`
	}
	if err := c.op.Post(ctx, "/v1/rollouts/preview", plan, &dry); err != nil {
		return r, err
	}
	r.Preview = dry.Text
	fmt.Fprintf(c.o.Out, "dry run: %s\n", dry.Text)
	began, service := time.Now(), processCPU(c.pid)
	var ro staged
	if err := c.op.Post(ctx, "/v1/rollouts", plan, &ro); err != nil {
		return r, err
	}
	ro, err := c.wait(ctx, ro.ID)
	if err != nil {
		return r, err
	}
	r.State, r.Reason, r.Hold, r.Seconds = ro.State, ro.Reason, ro.held(), time.Since(began).Seconds()
	r.Service, r.Reports = processCPU(c.pid)-service, c.reports.Load()
	if err := c.late(ctx, ro, &r); err != nil {
		return r, err
	}
	if err := c.count(ctx, ro.ID, &r); err != nil {
		return r, err
	}
	r.judge()
	return r, nil
}

// wait returns when the rollout stands: it has ended, or was paused.
func (c *crowd) wait(ctx context.Context, id string) (staged, error) {
	ctx, cancel := context.WithTimeout(ctx, crowdWithin)
	defer cancel()
	told := ""
	for {
		var ro staged
		if err := c.op.Get(ctx, "/v1/rollouts/"+id, &ro); err != nil {
			return ro, err
		}
		if l := ro.line(); l != told {
			fmt.Fprintln(c.o.Out, l)
			told = l
		}
		if ro.State != "RUNNING" {
			return ro, nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return ro, fmt.Errorf("the rollout is still %s: %w", ro.line(), err)
		}
	}
}

// late closes the rollout and lets good devices that were away come back: they
// are to get the release all the same.
func (c *crowd) late(ctx context.Context, ro staged, r *CrowdReport) error {
	if ro.State == "PAUSED" {
		in := map[string]string{"reason": "the other models have it"}
		if err := c.op.Post(ctx, "/v1/rollouts/"+ro.ID+"/complete", in, nil); err != nil {
			return err
		}
	}
	var who []int
	for i := range c.devices {
		if !c.online(i) && c.model(i) != badModel && len(who) < crowdLate {
			who = append(who, i)
		}
	}
	r.Late = len(who)
	fits := make(map[int]bool, len(who))
	for _, i := range who {
		fits[i] = true
	}
	if err := c.all(ctx, "come back", func(i int) bool { return fits[i] }, c.connect); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		r.Joined = 0
		for _, i := range who {
			if c.offered[i].Load() {
				r.Joined++
			}
		}
		if r.Joined == r.Late || pause(ctx, 200*time.Millisecond) != nil {
			return nil // judge says what is missing
		}
	}
}

// count sums up by model: offers as the devices saw them, ends as the service
// has them.
func (c *crowd) count(ctx context.Context, id string, r *CrowdReport) error {
	names := []string{"POS-A", "POS-B", "POS-C", badModel}
	by := make(map[string]*CrowdModel, len(names))
	for _, n := range names {
		by[n] = &CrowdModel{Model: n}
	}
	model := make(map[string]*CrowdModel, len(c.devices))
	for i := range c.devices {
		m := by[c.model(i)]
		model[c.members[i].Device] = m
		m.Devices++
		if c.online(i) {
			m.Online++
		}
		if c.offered[i].Load() {
			m.Offered++
		}
	}
	type part struct {
		Device string `json:"device"`
		State  string `json:"state"`
	}
	parts, err := all[part](ctx, c.op, "/v1/rollouts/"+url.PathEscape(id)+"/executions?")
	if err != nil {
		return err
	}
	for _, p := range parts {
		m := model[p.Device]
		if m == nil {
			return fmt.Errorf("the rollout has %s, which is no device of ours", p.Device)
		}
		switch p.State {
		case "SUCCEEDED", "ALREADY_INSTALLED":
			m.Good++
		case "FAILED", "ROLLED_BACK", "REJECTED", "TIMED_OUT":
			m.Bad++
		default:
			m.Open++
		}
	}
	for _, n := range names {
		r.Models = append(r.Models, *by[n])
	}
	r.Hit = by[badModel].Offered
	return nil
}

// judge says whether the rollout did what it promises.
func (r *CrowdReport) judge() {
	r.Why = []string{}
	miss := func(bad bool, format string, args ...any) {
		if bad {
			r.Why = append(r.Why, fmt.Sprintf(format, args...))
		}
	}
	miss(r.Hold == "", "model %s was never held", badModel)
	miss(r.Hit >= r.Limit, "%d devices of model %s were hit, fewer than %d may be", r.Hit, badModel, r.Limit)
	miss(r.State == "RUNNING" || r.State == "ABORTED", "the rollout is %s", r.State)
	miss(r.Joined < r.Late, "%d of %d devices that came back late got the release", r.Joined, r.Late)
	for _, m := range r.Models {
		if m.Model == badModel {
			miss(m.Bad == 0, "no device of model %s ended badly: the scenario shows nothing", badModel)
			continue
		}
		miss(m.Good < m.Online, "model %s: %d of %d connected devices have the release", m.Model, m.Good, m.Online)
		miss(m.Bad > 0, "model %s: %d ended badly", m.Model, m.Bad)
	}
	r.OK = len(r.Why) == 0
}
