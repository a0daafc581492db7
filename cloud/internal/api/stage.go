package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// move is what an operator may do to a rollout that is there.
type move struct {
	verb, summary string
	from          []fleet.RolloutState
	do            func(r *fleet.Rollout, p fleet.Principal, reason string) error
}

// to is a move that only sets the state.
func to(state fleet.RolloutState) func(*fleet.Rollout, fleet.Principal, string) error {
	return func(r *fleet.Rollout, _ fleet.Principal, _ string) error {
		r.State = state
		return nil
	}
}

func (s *server) verbs() []move {
	start := func(r *fleet.Rollout, _ fleet.Principal, _ string) error {
		if s.FourEyes && (r.ApprovedBy == "" || r.ApprovedBy == r.CreatedBy) { // it became ready before this was asked for
			return fmt.Errorf("nobody else than %s has approved it; abort it and hand it in again: %w", r.CreatedBy, fleet.ErrForbidden)
		}
		r.State, r.StartedAt = fleet.RolloutRunning, time.Now()
		return nil
	}
	startable := []fleet.RolloutState{fleet.RolloutReady}
	if !s.FourEyes {
		startable = append(startable, fleet.RolloutDraft)
	}
	running := []fleet.RolloutState{fleet.RolloutRunning, fleet.RolloutPaused}
	return []move{
		{"submit", "Hand a draft in", []fleet.RolloutState{fleet.RolloutDraft}, func(r *fleet.Rollout, _ fleet.Principal, _ string) error {
			r.State = fleet.RolloutReady
			if s.FourEyes {
				r.State = fleet.RolloutAwaiting
			}
			return nil
		}},
		{"approve", "Approve what somebody else handed in", []fleet.RolloutState{fleet.RolloutAwaiting}, func(r *fleet.Rollout, p fleet.Principal, _ string) error {
			if s.FourEyes && p.Name == r.CreatedBy {
				return fmt.Errorf("somebody else than %s, who composed it, has to approve it: %w", r.CreatedBy, fleet.ErrForbidden)
			}
			r.State, r.ApprovedBy, r.ApprovedAt = fleet.RolloutReady, p.Name, time.Now()
			return nil
		}},
		{"deny", "Turn down what was handed in", []fleet.RolloutState{fleet.RolloutAwaiting}, to(fleet.RolloutDenied)},
		{"start", "Start what is ready", startable, start},
		{"pause", "Offer nothing more for now", []fleet.RolloutState{fleet.RolloutRunning}, to(fleet.RolloutPaused)},
		{"resume", "Go on with a paused rollout", []fleet.RolloutState{fleet.RolloutPaused}, to(fleet.RolloutRunning)},
		{
			"abort", "End a rollout; what installs finishes", slices.Concat(running, []fleet.RolloutState{fleet.RolloutDraft, fleet.RolloutAwaiting, fleet.RolloutReady}),
			func(r *fleet.Rollout, _ fleet.Principal, _ string) error {
				if slices.Contains(running, r.State) {
					r.State = fleet.RolloutAborting
					return nil
				}
				r.State = fleet.RolloutAborted
				return nil
			},
		},
		{"complete", "End a rollout without those who are left", running, to(fleet.RolloutCompleted)},
	}
}

func (s *server) moves() {
	for _, m := range s.verbs() {
		huma.Register(s.api, huma.Operation{
			OperationID: m.verb + "-rollout", Method: http.MethodPost, Path: "/v1/rollouts/{id}/" + m.verb, Summary: m.summary, Metadata: needs(fleet.Operator),
		}, func(ctx context.Context, in *struct {
			RolloutID
			Body struct {
				Reason  string `json:"reason,omitempty" maxLength:"512" doc:"kept in the audit trail"`
				Version int64  `json:"version,omitempty" minimum:"0" doc:"of the rollout as it was looked at: one that has changed since is left alone"`
			}
		},
		) (*body[rollout], error) {
			return s.moved(ctx, in.ID, in.Body.Version, "rollout."+m.verb, map[string]string{"reason": in.Body.Reason}, func(r *fleet.Rollout, p fleet.Principal) error {
				if !slices.Contains(m.from, r.State) {
					return fmt.Errorf("it is %s: %w", r.State, fleet.ErrConflict)
				}
				r.Reason, r.Auto = in.Body.Reason, false
				if err := m.do(r, p, in.Body.Reason); err != nil {
					return err
				}
				if r.State.Ended() {
					r.EndedAt = time.Now()
				}
				return nil
			})
		})
	}
	huma.Register(s.api, huma.Operation{
		OperationID: "retry-rollout", Method: http.MethodPost, Path: "/v1/rollouts/{id}/retry", Summary: "Try again what ended in a way that may pass", Metadata: needs(fleet.Operator),
	}, s.retryRollout)
	huma.Register(s.api, huma.Operation{
		OperationID: "release-hold", Method: http.MethodPost, Path: "/v1/rollouts/{id}/holds/release", Summary: "Let a model or a site in again", Metadata: needs(fleet.Operator),
	}, s.releaseHold)
}

// moved is change, answered.
func (s *server) moved(ctx context.Context, id string, seen int64, kind string, detail map[string]string, do func(*fleet.Rollout, fleet.Principal) error) (*body[rollout], error) {
	r, err := s.change(ctx, id, seen, kind, detail, do)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v, err := s.view(ctx, r)
	return &body[rollout]{v}, s.fault(ctx, err)
}

// errChanged is for a rollout that changes faster than it can be changed.
var errChanged = fmt.Errorf("it changes all the time; try again: %w", fleet.ErrConflict)

// change reads a rollout, changes it and writes it, again and again while
// somebody else was faster: what may be done is decided on what there is. Who
// says which version he has seen gets that one changed or none.
func (s *server) change(ctx context.Context, id string, seen int64, kind string, detail map[string]string, do func(*fleet.Rollout, fleet.Principal) error) (fleet.Rollout, error) {
	p := who(ctx)
	for range 10 {
		r, err := s.Store.Rollout(ctx, p.Tenant, fleet.RolloutID(id))
		if err != nil {
			return r, err
		}
		if seen != 0 && seen != r.Version {
			return r, fmt.Errorf("rollout %s has changed since you looked: it is version %d now and was %d; look again: %w", id, r.Version, seen, fleet.ErrConflict)
		}
		if err := do(&r, p); err != nil {
			if errors.Is(err, fleet.ErrForbidden) {
				s.note(ctx, fleet.AuditEvent{Kind: "access.refused", Severity: "warn", Actor: p.Name, Subject: id, Detail: map[string]string{"what": kind, "reason": cut(err.Error(), 400)}})
			}
			return r, fmt.Errorf("rollout %s: %w", id, err)
		}
		ev := fleet.AuditEvent{At: time.Now(), Kind: kind, Severity: "info", Actor: p.Name, Subject: id, Detail: detail}
		saved, err := s.Store.SaveRollout(ctx, r, ev)
		if errors.Is(err, fleet.ErrConflict) {
			continue
		}
		if err == nil {
			s.rolled(p.Tenant, r.ID)
		}
		return saved, err
	}
	return fleet.Rollout{}, fmt.Errorf("rollout %s: %w", id, errChanged)
}

func (s *server) retryRollout(ctx context.Context, in *struct {
	RolloutID
	Body struct {
		Reason string `json:"reason,omitempty" maxLength:"512" doc:"kept in the audit trail"`
		Device string `json:"device,omitempty" maxLength:"40" doc:"empty: every device that failed or timed out"`
	}
},
) (*body[rollout], error) {
	p := who(ctx)
	r, err := s.Store.Rollout(ctx, p.Tenant, fleet.RolloutID(in.ID))
	if err == nil && r.State != fleet.RolloutRunning && r.State != fleet.RolloutPaused {
		err = fmt.Errorf("rollout %s is %s; start another one: %w", in.ID, r.State, fleet.ErrConflict)
	}
	if err == nil {
		ev := fleet.AuditEvent{At: time.Now(), Kind: "rollout.retry", Severity: "info", Actor: p.Name, Subject: in.ID, Detail: map[string]string{"reason": in.Body.Reason, "device": in.Body.Device}}
		_, err = s.Store.RetryRollout(ctx, p.Tenant, r.ID, fleet.DeviceID(in.Body.Device), ev)
	}
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.rolled(p.Tenant, r.ID)
	v, err := s.view(ctx, r)
	return &body[rollout]{v}, s.fault(ctx, err)
}

func (s *server) releaseHold(ctx context.Context, in *struct {
	RolloutID
	Body struct {
		Model  string `json:"model,omitempty" maxLength:"64" doc:"one of the two"`
		Site   string `json:"site,omitempty" maxLength:"64"`
		Reason string `json:"reason,omitempty" maxLength:"512" doc:"kept in the audit trail"`
	}
},
) (*body[rollout], error) {
	b := in.Body
	if (b.Model == "") == (b.Site == "") {
		return nil, s.fault(ctx, fmt.Errorf("name the model or the site that is to be let in: %w", fleet.ErrInvalid))
	}
	detail := map[string]string{"reason": b.Reason}
	if b.Model != "" {
		detail["model"] = b.Model
	} else {
		detail["site"] = b.Site
	}
	return s.moved(ctx, in.ID, 0, "rollout.hold_released", detail, func(r *fleet.Rollout, _ fleet.Principal) error {
		if r.State.Ended() {
			return fmt.Errorf("it is %s: %w", r.State, fleet.ErrConflict)
		}
		i := slices.IndexFunc(r.Holds, func(h fleet.Hold) bool { return h.ReleasedAt.IsZero() && h.Model == b.Model && h.Site == b.Site })
		if i < 0 {
			return fmt.Errorf("nothing holds %s%s: %w", b.Model, b.Site, fleet.ErrNotFound)
		}
		r.Holds[i].ReleasedAt = time.Now()
		return nil
	})
}

// costly keeps what took long to find out for ten times as long as it took: a
// board that many look at costs a tenth of a core at most. What is quick is
// found out each time, but for what is said to be good for longer.
type costly[T any] struct {
	mu   sync.Mutex
	kept map[fleet.RolloutID]kept[T]
}

type kept[T any] struct {
	value T
	until time.Time
}

func (c *costly[T]) get(id fleet.RolloutID, least time.Duration, find func() (T, error)) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	began := time.Now()
	if k, ok := c.kept[id]; ok && began.Before(k.until) {
		return k.value, nil
	}
	v, err := find()
	if err != nil {
		return v, err
	}
	if c.kept == nil || len(c.kept) > 1000 {
		c.kept = map[fleet.RolloutID]kept[T]{}
	}
	keep := least
	if took := time.Since(began); took > 50*time.Millisecond {
		keep = max(keep, 10*took)
	}
	if keep > 0 {
		c.kept[id] = kept[T]{v, time.Now().Add(keep)}
	}
	return v, nil
}
