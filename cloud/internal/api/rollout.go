package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type rollout struct {
	ID        string         `json:"id"`
	Release   string         `json:"release"`
	Group     string         `json:"group" doc:"empty: every device"`
	State     string         `json:"state" enum:"RUNNING,PAUSED,COMPLETED,ABORTED"`
	Reason    string         `json:"reason"`
	CreatedAt *time.Time     `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	EndedAt   *time.Time     `json:"ended_at"`
	DeadlineS int            `json:"deadline_s" doc:"for one device, from its offer"`
	MaxFailed int            `json:"max_failed" doc:"pauses by itself when more end badly"`
	Repair    bool           `json:"repair" doc:"quarantined devices are offered the release, too"`
	Counts    map[string]int `json:"counts" doc:"devices by state of their execution"`
	Total     int            `json:"total"`
}

type execution struct {
	ID        string     `json:"id"`
	Device    string     `json:"device"`
	State     string     `json:"state"`
	Reason    string     `json:"reason"`
	Text      string     `json:"text"`
	From      string     `json:"from"`
	To        string     `json:"to"`
	Done      uint64     `json:"done"`
	Total     uint64     `json:"total" doc:"bytes"`
	OfferedAt *time.Time `json:"offered_at"`
	UpdatedAt *time.Time `json:"updated_at"`
}

func viewExecution(e fleet.Execution) execution {
	return execution{
		string(e.ID), string(e.Device), string(e.State), e.Reason, e.Text, e.From, e.To, e.Done, e.Total, when(e.OfferedAt), when(e.UpdatedAt),
	}
}

// view adds the counts, which change without the rollout's row.
func (s *server) view(ctx context.Context, r fleet.Rollout) (rollout, error) {
	counts, err := s.Store.Counts(ctx, r.ID)
	v := rollout{
		ID: string(r.ID), Release: string(r.Release), Group: r.Group, State: string(r.State), Reason: r.Reason, CreatedAt: when(r.CreatedAt),
		CreatedBy: r.CreatedBy, EndedAt: when(r.EndedAt), DeadlineS: int(r.Deadline / time.Second), MaxFailed: r.MaxFailed, Repair: r.Repair, Counts: map[string]int{},
	}
	for k, n := range counts {
		v.Counts[string(k)] = n
		v.Total += n
	}
	return v, err
}

// RolloutID is the rollout in a path.
type RolloutID struct {
	ID string `path:"id" maxLength:"64"`
}

func (s *server) rollouts() {
	huma.Register(s.api, huma.Operation{
		OperationID: "start-rollout", Method: http.MethodPost, Path: "/v1/rollouts", Summary: "Bring a release to a group", Metadata: needs(fleet.Operator),
	}, s.startRollout)
	huma.Register(s.api, huma.Operation{
		OperationID: "list-rollouts", Method: http.MethodGet, Path: "/v1/rollouts", Summary: "List rollouts, newest first", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct{ Paged }) (*body[list[rollout]], error) {
		items, next, err := s.Store.Rollouts(ctx, who(ctx).Tenant, in.page())
		out := list[rollout]{Items: []rollout{}, Next: next}
		for _, r := range items {
			v, verr := s.view(ctx, r)
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
		v, err := s.view(ctx, r)
		return &body[rollout]{v}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "list-executions", Method: http.MethodGet, Path: "/v1/rollouts/{id}/executions", Summary: "Where each device stands", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		RolloutID
		Paged
	},
	) (*body[list[execution]], error) {
		items, next, err := s.Store.Executions(ctx, who(ctx).Tenant, fleet.RolloutID(in.ID), in.page())
		return pageOf(items, next, viewExecution), s.fault(ctx, err)
	})
	for _, m := range []struct {
		verb string
		from []fleet.RolloutState
		to   fleet.RolloutState
	}{
		{"pause", []fleet.RolloutState{fleet.RolloutRunning}, fleet.RolloutPaused},
		{"resume", []fleet.RolloutState{fleet.RolloutPaused}, fleet.RolloutRunning},
		{"abort", []fleet.RolloutState{fleet.RolloutRunning, fleet.RolloutPaused}, fleet.RolloutAborted},
	} {
		huma.Register(s.api, huma.Operation{
			OperationID: m.verb + "-rollout", Method: http.MethodPost, Path: "/v1/rollouts/{id}/" + m.verb,
			Summary: m.verb + " a rollout", Metadata: needs(fleet.Operator),
		}, func(ctx context.Context, in *struct {
			RolloutID
			Body struct {
				Reason string `json:"reason,omitempty" maxLength:"512"`
			}
		},
		) (*body[rollout], error) {
			p := who(ctx)
			ev := fleet.AuditEvent{
				At: time.Now(), Kind: "rollout." + m.verb, Severity: "info", Actor: p.Name, Subject: in.ID, Detail: map[string]string{"reason": in.Body.Reason},
			}
			r, err := s.Store.SetRollout(ctx, p.Tenant, fleet.RolloutID(in.ID), m.from, m.to, in.Body.Reason, ev)
			if err != nil {
				return nil, s.fault(ctx, err)
			}
			s.rolled(p.Tenant, r.ID)
			v, err := s.view(ctx, r)
			return &body[rollout]{v}, s.fault(ctx, err)
		})
	}
}

func (s *server) rolled(t fleet.TenantID, id fleet.RolloutID) {
	s.Wake()
	s.Changed(fleet.Change{Kind: fleet.ChangedRollout, ID: string(id), Tenant: t})
}

func (s *server) startRollout(ctx context.Context, in *struct {
	Body struct {
		Release   string `json:"release" maxLength:"128" doc:"e.g. agent/1.2.3"`
		Group     string `json:"group,omitempty" maxLength:"64" doc:"empty: every device"`
		DeadlineS int    `json:"deadline_s,omitempty" minimum:"0" maximum:"2592000" doc:"seconds for one device, from its offer; 0: an hour"`
		MaxFailed int    `json:"max_failed,omitempty" minimum:"0" doc:"pauses by itself when more end badly; 0: 1"`
		Repair    bool   `json:"repair,omitempty" doc:"offer it to quarantined devices, too"`
	}
},
) (*body[rollout], error) {
	p := who(ctx)
	if _, err := s.Store.Release(ctx, fleet.ReleaseID(in.Body.Release)); err != nil {
		return nil, s.fault(ctx, err)
	}
	r := fleet.Rollout{
		ID: fleet.RolloutID(newID("ro_")), Tenant: p.Tenant, Release: fleet.ReleaseID(in.Body.Release), Group: in.Body.Group, State: fleet.RolloutRunning,
		CreatedAt: time.Now(), CreatedBy: p.Name, Deadline: time.Duration(in.Body.DeadlineS) * time.Second, MaxFailed: max(in.Body.MaxFailed, 1), Repair: in.Body.Repair,
	}
	if r.Deadline == 0 {
		r.Deadline = time.Hour
	}
	ev := fleet.AuditEvent{
		At: r.CreatedAt, Kind: "rollout.started", Severity: "info", Actor: p.Name, Subject: string(r.ID),
		Detail: map[string]string{"release": in.Body.Release, "group": in.Body.Group, "repair": strconv.FormatBool(r.Repair)},
	}
	if err := s.Store.AddRollout(ctx, r, ev); err != nil {
		return nil, s.fault(ctx, err)
	}
	s.rolled(p.Tenant, r.ID)
	v, err := s.view(ctx, r)
	return &body[rollout]{v}, s.fault(ctx, err)
}
