package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type rollout struct {
	ID          string         `json:"id"`
	Release     string         `json:"release"`
	Group       string         `json:"group" doc:"of spec.filter; empty: every device"`
	State       string         `json:"state" enum:"DRAFT,AWAITING_APPROVAL,DENIED,READY,RUNNING,PAUSED,ABORTING,ABORTED,COMPLETED,SUPERSEDED"`
	Reason      string         `json:"reason"`
	Auto        bool           `json:"auto" doc:"paused by a gate, not by a person"`
	CreatedAt   *time.Time     `json:"created_at"`
	CreatedBy   string         `json:"created_by" doc:"who composed it last"`
	ApprovedAt  *time.Time     `json:"approved_at"`
	ApprovedBy  string         `json:"approved_by"`
	StartedAt   *time.Time     `json:"started_at"`
	EndedAt     *time.Time     `json:"ended_at"`
	DeadlineS   int            `json:"deadline_s" doc:"of spec"`
	MaxFailed   int            `json:"max_failed" doc:"spec.gate.bad_cap"`
	Repair      bool           `json:"repair" doc:"of spec"`
	Spec        spec           `json:"spec"`
	Waves       []waveStatus   `json:"waves"`
	Holds       []hold         `json:"holds" doc:"what is kept out while it goes on elsewhere; one with released_at holds no more"`
	Counts      map[string]int `json:"counts" doc:"devices by state of their execution"`
	Total       int            `json:"total"`
	Good        int            `json:"good" doc:"ended well"`
	Bad         int            `json:"bad" doc:"ended badly"`
	Neutral     int            `json:"neutral" doc:"ended in a way that says nothing of the release: called back, silent, or waited too long, before anything was touched"`
	Unreachable int            `json:"unreachable" doc:"not ended and silent for longer than the spec allows; only when one rollout is asked for, as all that follows"`
	Health      *health        `json:"health,omitempty"`
	Bytes       *bytesBy       `json:"bytes,omitempty"`
	ETA         *time.Time     `json:"eta,omitempty" doc:"when all that can be reached have ended, at the pace so far"`
	Version     int64          `json:"version" doc:"grows with each change"`
}

type waveStatus struct {
	Name        string         `json:"name"`
	State       string         `json:"state" enum:"PENDING,RUNNING,SOAKING,PASSED,FAILED"`
	StartedAt   *time.Time     `json:"started_at"`
	SoakedAt    *time.Time     `json:"soaked_at" doc:"since when it is only watched"`
	SoakS       int            `json:"soak_s"`
	EndedAt     *time.Time     `json:"ended_at"`
	Counts      map[string]int `json:"counts"`
	Total       int            `json:"total"`
	Good        int            `json:"good"`
	Bad         int            `json:"bad"`
	Neutral     int            `json:"neutral"`
	Unreachable int            `json:"unreachable"`
}

type hold struct {
	Model      string     `json:"model"`
	Site       string     `json:"site"`
	Reason     string     `json:"reason"`
	Since      *time.Time `json:"since"`
	ReleasedAt *time.Time `json:"released_at"`
}

type health struct {
	Updated faults            `json:"updated" doc:"devices that run the release, since they do"`
	Control faults            `json:"control" doc:"devices that were not offered it yet, weighted to the same times"`
	Models  map[string]health `json:"models,omitempty"`
}

type faults struct {
	Devices    int     `json:"devices"`
	Hours      float64 `json:"hours" doc:"device-hours watched"`
	Peripheral int     `json:"peripheral" doc:"printers, readers and drawers that went bad"`
	Reconnects int     `json:"reconnects"`
	Crashes    int     `json:"crashes"`
}

type bytesBy struct {
	Wire   uint64 `json:"wire" doc:"from the service"`
	Peer   uint64 `json:"peer" doc:"from tills of the site"`
	Medium uint64 `json:"medium" doc:"from sticks"`
	Reused uint64 `json:"reused" doc:"found on the devices"`
}

type execution struct {
	ID        string     `json:"id"`
	Rollout   string     `json:"rollout"`
	Device    string     `json:"device"`
	Model     string     `json:"model"`
	Site      string     `json:"site"`
	Wave      int        `json:"wave" doc:"index; -1: not assigned yet"`
	State     string     `json:"state"`
	Reason    string     `json:"reason"`
	Text      string     `json:"text"`
	From      string     `json:"from"`
	To        string     `json:"to"`
	Attempt   int        `json:"attempt"`
	Done      uint64     `json:"done"`
	Total     uint64     `json:"total" doc:"bytes"`
	Bytes     bytesBy    `json:"bytes"`
	OfferedAt *time.Time `json:"offered_at"`
	EnteredAt *time.Time `json:"entered_at" doc:"the state"`
	UpdatedAt *time.Time `json:"updated_at"`
}

func viewExecution(e fleet.Unit) execution {
	return execution{
		ID: string(e.ID), Rollout: string(e.Rollout), Device: string(e.Device), Model: e.Model, Site: e.Site, Wave: e.Wave, State: string(e.State), Reason: e.Reason, Text: e.Text,
		From: e.From, To: e.To, Attempt: e.Attempt, Done: e.Done, Total: e.Total, Bytes: bytesBy(e.Bytes), OfferedAt: when(e.OfferedAt), EnteredAt: when(e.EnteredAt), UpdatedAt: when(e.UpdatedAt),
	}
}

// tally is how many executions of a rollout stand where.
type tally struct {
	counts  map[fleet.ExecutionState]int
	neutral int
}

func (s *server) tally(ctx context.Context, id fleet.RolloutID) (t tally, err error) {
	if t.counts, err = s.Store.Counts(ctx, id); err == nil {
		t.neutral, err = s.Store.Neutral(ctx, id)
	}
	return t, err
}

// view is a rollout with its counts, which change without its row.
func (s *server) view(ctx context.Context, r fleet.Rollout) (rollout, error) {
	t, err := s.tally(ctx, r.ID)
	return viewRollout(r, t), err
}

// settled is how long the counts of a rollout that has ended are good for in a
// list: only a device that reports late changes them.
const settled = 30 * time.Second

// listed is view for a list of many rollouts, of which most have ended.
func (s *server) listed(ctx context.Context, r fleet.Rollout) (rollout, error) {
	least := time.Duration(0)
	if r.State.Ended() && time.Since(r.EndedAt) > settled {
		least = settled
	}
	t, err := s.tallies.get(r.ID, least, func() (tally, error) { return s.tally(ctx, r.ID) })
	return viewRollout(r, t), err
}

func viewRollout(r fleet.Rollout, t tally) rollout {
	v := rollout{
		ID: string(r.ID), Release: string(r.Release), Group: r.Spec.Filter.Group, State: string(r.State), Reason: r.Reason, Auto: r.Auto,
		CreatedAt: when(r.CreatedAt), CreatedBy: r.CreatedBy, ApprovedAt: when(r.ApprovedAt), ApprovedBy: r.ApprovedBy, StartedAt: when(r.StartedAt), EndedAt: when(r.EndedAt),
		DeadlineS: wholeSeconds(r.Spec.Deadline), MaxFailed: r.Spec.Gate.BadCap, Repair: r.Spec.Repair, Spec: viewSpec(r.Spec), Waves: []waveStatus{}, Holds: []hold{}, Version: r.Version,
	}
	v.Counts, v.Total, v.Good, v.Bad = counted(t.counts)
	v.Neutral, v.Bad = t.neutral, v.Bad-t.neutral
	for i, w := range waveNames(r.Spec) {
		st := fleet.WaveStatus{State: fleet.WavePending}
		if i < len(r.Waves) {
			st = r.Waves[i]
		}
		v.Waves = append(v.Waves, waveStatus{
			Name: w.Name, State: string(st.State), StartedAt: when(st.StartedAt), SoakedAt: when(st.SoakedAt), SoakS: wholeSeconds(w.Soak), EndedAt: when(st.EndedAt), Counts: map[string]int{},
		})
	}
	for _, h := range r.Holds {
		v.Holds = append(v.Holds, hold{h.Model, h.Site, h.Reason, when(h.Since), when(h.ReleasedAt)})
	}
	return v
}

// board is a rollout with all that is to be watched of it.
func (s *server) board(ctx context.Context, r fleet.Rollout) (rollout, error) {
	v, err := s.view(ctx, r)
	if err != nil {
		return v, err
	}
	silent := r.Spec.Unreachable
	if silent == 0 {
		silent = 24 * time.Hour
	}
	p, err := s.progress.get(r.ID, 0, func() (fleet.Progress, error) { return s.Store.Progress(ctx, r.ID, time.Now().Add(-silent)) })
	if err != nil {
		return v, err
	}
	v.Counts, v.Total, v.Good, v.Bad = counted(p.Counts)
	v.Neutral = 0
	for _, n := range p.Neutral {
		v.Neutral, v.Bad = v.Neutral+n, v.Bad-n
	}
	for i := range v.Waves {
		w := &v.Waves[i]
		w.Counts, w.Total, w.Good, w.Bad = counted(p.Waves[i])
		w.Neutral, w.Unreachable = p.Neutral[i], p.Unreachable[i]
		w.Bad -= w.Neutral
	}
	for _, n := range p.Unreachable {
		v.Unreachable += n
	}
	b := bytesBy(p.Bytes)
	v.Bytes = &b
	if r.State == fleet.RolloutRunning {
		v.ETA = eta(r.StartedAt, p, v.Unreachable)
	}
	models, err := s.health.get(r.ID, 0, func() (map[string]fleet.Health, error) { return s.Store.RolloutHealth(ctx, r.ID) })
	if err != nil {
		return v, err
	}
	v.Health = &health{faults(models[""].Updated), faults(models[""].Control), map[string]health{}}
	for model, h := range models {
		if model != "" {
			v.Health.Models[model] = health{Updated: faults(h.Updated), Control: faults(h.Control)}
		}
	}
	return v, nil
}

// eta is when those that have not ended will have, at the pace so far.
func eta(started time.Time, p fleet.Progress, unreachable int) *time.Time {
	done, open := 0, -unreachable
	for k, n := range p.Counts {
		switch {
		case k == fleet.ExecRemoved || k == fleet.ExecCanceled:
		case k.Ended():
			done += n
		default:
			open += n
		}
	}
	so := time.Since(started)
	if done == 0 || open <= 0 || started.IsZero() || so <= 0 {
		return nil
	}
	left := so.Seconds() / float64(done) * float64(open)
	if left > (365 * 24 * time.Hour).Seconds() {
		return nil
	}
	return when(time.Now().Add(time.Duration(left) * time.Second).Truncate(time.Second))
}

// RolloutID is the rollout in a path.
type RolloutID struct {
	ID string `path:"id" maxLength:"64"`
}

func (s *server) rollouts() {
	huma.Register(s.api, huma.Operation{
		OperationID: "create-rollout", Method: http.MethodPost, Path: "/v1/rollouts", Summary: "Bring a release to devices", Metadata: needs(fleet.Operator),
		Description: "It runs at once; where somebody else has to approve it, it is submitted. As a draft it is only kept.",
	}, s.startRollout)
	huma.Register(s.api, huma.Operation{
		OperationID: "preview-rollout", Method: http.MethodPost, Path: "/v1/rollouts/preview", Summary: "What a rollout would do now", Metadata: needs(fleet.Operator),
	}, s.previewRollout)
	huma.Register(s.api, huma.Operation{
		OperationID: "list-rollouts", Method: http.MethodGet, Path: "/v1/rollouts", Summary: "List rollouts, newest first", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct{ Paged }) (*body[list[rollout]], error) {
		items, next, err := s.Store.Rollouts(ctx, who(ctx).Tenant, in.page())
		out := list[rollout]{Items: []rollout{}, Next: next}
		for _, r := range items {
			v, verr := s.listed(ctx, r)
			if verr != nil {
				return nil, s.fault(ctx, verr)
			}
			out.Items = append(out.Items, v)
		}
		return &body[list[rollout]]{out}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-rollout", Method: http.MethodGet, Path: "/v1/rollouts/{id}", Summary: "Show a rollout", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *RolloutID) (*body[rollout], error) {
		r, err := s.Store.Rollout(ctx, who(ctx).Tenant, fleet.RolloutID(in.ID))
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		v, err := s.board(ctx, r)
		return &body[rollout]{v}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "list-executions", Method: http.MethodGet, Path: "/v1/rollouts/{id}/executions", Summary: "Where each device stands", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		RolloutID
		Paged
		State string `query:"state" maxLength:"32"`
		Wave  string `query:"wave" pattern:"^-?[0-9]{1,4}$" doc:"index; -1: in none yet"`
		Model string `query:"model" maxLength:"64"`
		Site  string `query:"site" maxLength:"64"`
	},
	) (*body[list[execution]], error) {
		f := fleet.ExecutionFilter{State: fleet.ExecutionState(in.State), Model: in.Model, Site: in.Site}
		if n, err := strconv.Atoi(in.Wave); err == nil {
			f.Wave = &n
		}
		items, next, err := s.Store.RolloutUnits(ctx, who(ctx).Tenant, fleet.RolloutID(in.ID), f, in.page())
		return pageOf(items, next, viewExecution), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "change-rollout", Method: http.MethodPut, Path: "/v1/rollouts/{id}", Summary: "Compose a draft anew", Metadata: needs(fleet.Operator),
	}, s.changeRollout)
	s.moves()
}

func (s *server) rolled(t fleet.TenantID, id fleet.RolloutID) {
	s.Wake()
	s.Changed(fleet.Change{Kind: fleet.ChangedRollout, ID: string(id), Tenant: t})
}

// compose looks whether a release may be brought out in this way.
func (s *server) compose(ctx context.Context, id string, d fleet.Spec) (fleet.Spec, error) {
	r, err := s.Store.ReleaseOf(ctx, who(ctx).Tenant, fleet.ReleaseID(id))
	if err != nil {
		return d, err
	}
	if r.Withdrawn {
		return d, fmt.Errorf("release %s was withdrawn; bring out a newer one: %w", id, fleet.ErrConflict)
	}
	if err := s.Check(d); err != nil {
		return d, invalid(err)
	}
	return d, nil
}

// invalid makes an error one of whoever asks.
func invalid(err error) error {
	if errors.Is(err, fleet.ErrInvalid) {
		return err
	}
	return fmt.Errorf("%w: %w", err, fleet.ErrInvalid)
}

func (s *server) previewRollout(ctx context.Context, in *struct {
	Body struct {
		Release string `json:"release" maxLength:"256"`
		Spec    spec   `json:"spec,omitzero"`
	}
},
) (*body[preview], error) {
	d, err := s.compose(ctx, in.Body.Release, in.Body.Spec.domain())
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	p, err := s.Preview(ctx, who(ctx).Tenant, fleet.ReleaseID(in.Body.Release), d)
	v := preview{p.Reaches, p.Sites, []previewWave{}, []blocked{}, p.Text}
	for _, w := range p.Waves {
		v.Waves = append(v.Waves, previewWave(w))
	}
	for _, b := range p.Blocked {
		v.Blocked = append(v.Blocked, blocked(b))
	}
	return &body[preview]{v}, s.fault(ctx, err)
}

type preview struct {
	Reaches int           `json:"reaches" doc:"devices"`
	Sites   int           `json:"sites"`
	Waves   []previewWave `json:"waves"`
	Blocked []blocked     `json:"blocked" doc:"who could not be brought the release now"`
	Text    string        `json:"text"`
}

type previewWave struct {
	Name    string `json:"name"`
	Devices int    `json:"devices"`
}

type blocked struct {
	Reason  string `json:"reason"`
	Text    string `json:"text"`
	Devices int    `json:"devices"`
}

func (s *server) startRollout(ctx context.Context, in *struct {
	Body struct {
		Release   string `json:"release" maxLength:"256" doc:"e.g. agent/1.2.3 or ops/main/pos/4.5.6"`
		Spec      *spec  `json:"spec,omitempty"`
		Draft     bool   `json:"draft,omitempty" doc:"only keep it; submit it later"`
		Group     string `json:"group,omitempty" maxLength:"64" doc:"without a spec: filter.group; empty: every device"`
		DeadlineS int    `json:"deadline_s,omitempty" minimum:"0" maximum:"2592000" doc:"without a spec: seconds for one device, from its offer; 0: an hour"`
		MaxFailed int    `json:"max_failed,omitempty" minimum:"0" doc:"without a spec: pauses by itself when more end badly; 0: 1. Nothing else is judged."`
		Repair    bool   `json:"repair,omitempty" doc:"without a spec: offer it to quarantined devices, too"`
	}
},
) (*body[rollout], error) {
	b := in.Body
	if b.Spec != nil && (b.Group != "" || b.DeadlineS != 0 || b.MaxFailed != 0 || b.Repair) {
		return nil, s.fault(ctx, fmt.Errorf("group, deadline_s, max_failed and repair go into spec when there is one: %w", fleet.ErrInvalid))
	}
	d := flat{b.Group, b.DeadlineS, b.MaxFailed, b.Repair}.domain()
	if b.Spec != nil {
		d = b.Spec.domain()
	}
	d, err := s.compose(ctx, b.Release, d)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	p, now := who(ctx), time.Now()
	r := fleet.Rollout{
		ID: fleet.RolloutID(newID("ro_")), Tenant: p.Tenant, Release: fleet.ReleaseID(b.Release), State: fleet.RolloutRunning, CreatedAt: now, CreatedBy: p.Name, StartedAt: now, Spec: d, Version: 1,
	}
	kind := "rollout.started"
	switch {
	case b.Draft:
		r.State, r.StartedAt, kind = fleet.RolloutDraft, time.Time{}, "rollout.drafted"
	case s.FourEyes:
		r.State, r.StartedAt, kind = fleet.RolloutAwaiting, time.Time{}, "rollout.submitted"
	}
	ev := fleet.AuditEvent{At: now, Kind: kind, Severity: "info", Actor: p.Name, Subject: string(r.ID), Detail: told(d)}
	ev.Detail["release"] = b.Release
	if err := s.Store.AddRollout(ctx, r, ev); err != nil {
		return nil, s.fault(ctx, err)
	}
	s.rolled(p.Tenant, r.ID)
	v, err := s.view(ctx, r)
	return &body[rollout]{v}, s.fault(ctx, err)
}

func (s *server) changeRollout(ctx context.Context, in *struct {
	RolloutID
	Body struct {
		Release string `json:"release" maxLength:"256"`
		Spec    spec   `json:"spec"`
		Version int64  `json:"version,omitempty" minimum:"0" doc:"of the draft that this is made from: one that has changed since is left alone"`
	}
},
) (*body[rollout], error) {
	d, err := s.compose(ctx, in.Body.Release, in.Body.Spec.domain())
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	detail := told(d)
	detail["release"] = in.Body.Release
	r, err := s.change(ctx, in.ID, in.Body.Version, "rollout.changed", detail, func(r *fleet.Rollout, p fleet.Principal) error {
		if r.State != fleet.RolloutDraft {
			return fmt.Errorf("it is %s, and only a draft can be composed anew: %w", r.State, fleet.ErrConflict)
		}
		// Whoever composed it last is the one who cannot approve it.
		maps.Copy(detail, map[string]string{"composed_by": r.CreatedBy})
		r.Release, r.Spec, r.CreatedBy = fleet.ReleaseID(in.Body.Release), d, p.Name
		return nil
	})
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v, err := s.view(ctx, r)
	return &body[rollout]{v}, s.fault(ctx, err)
}
