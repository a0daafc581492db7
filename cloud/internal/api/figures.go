package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Figures tell what the service answers and how fast; cloud/internal/figures
// fits.
type Figures interface {
	Query(ctx context.Context, q fleet.FigureQuery) ([]fleet.PartFigures, fleet.FigureQuery, error)
}

type figure struct {
	At         time.Time `json:"at"`
	SpanS      float64   `json:"span_s" doc:"length in seconds: counts by it are rates"`
	OK         uint64    `json:"ok"`
	Redirected uint64    `json:"redirected"`
	Refused    uint64    `json:"refused" doc:"the fault of who asked; HTTP 4xx"`
	Failed     uint64    `json:"failed" doc:"the service's fault; HTTP 5xx"`
	Bytes      uint64    `json:"bytes"`
	P50        float64   `json:"p50_ms" doc:"response time that half stayed below; 0 when nothing was timed"`
	P95        float64   `json:"p95_ms"`
	P99        float64   `json:"p99_ms"`
}

type partFigures struct {
	Part   string   `json:"part"`
	Op     string   `json:"op,omitempty" doc:"one thing that the part does: a route, a channel, a sink"`
	Total  figure   `json:"total" doc:"of all the time asked for"`
	Points []figure `json:"points,omitempty" doc:"by time; a span without a point: the service did not run"`
}

type figuresAnswer struct {
	From  time.Time     `json:"from"`
	To    time.Time     `json:"to"`
	StepS float64       `json:"step_s" doc:"of points that are not coarser in themselves"`
	Parts []partFigures `json:"parts" doc:"with points"`
	Ops   []partFigures `json:"ops" doc:"what the parts do; with points when one op was asked for"`
}

func viewFigure(f fleet.Figure) figure {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return figure{f.At.UTC(), f.Span.Seconds(), f.OK, f.Redirected, f.Refused, f.Failed, f.Bytes, ms(f.P50), ms(f.P95), ms(f.P99)}
}

type partHealth struct {
	Part  string     `json:"part"`
	State string     `json:"state" enum:"ok,degraded,failing"`
	Since *time.Time `json:"since" doc:"it is in this state since then, as far as this process knows"`
	What  string     `json:"what"`
	Todo  string     `json:"todo" doc:"what to do; empty: nothing"`
}

type healthAnswer struct {
	State string       `json:"state" enum:"ok,degraded,failing" doc:"the worst of all parts"`
	Parts []partHealth `json:"parts"`
}

func (s *server) figures() {
	huma.Register(s.api, huma.Operation{
		OperationID: "show-health", Method: http.MethodGet, Path: "/v1/health", Summary: "Show how every part of the service is, and what to do", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*body[healthAnswer], error) {
		all, err := s.Health(ctx)
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		out := healthAnswer{State: fleet.WorstPart(all), Parts: make([]partHealth, 0, len(all))}
		for _, p := range all {
			out.Parts = append(out.Parts, partHealth{p.Part, p.State, when(p.Since), p.What, p.Todo})
		}
		return &body[healthAnswer]{out}, nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "show-figures", Method: http.MethodGet, Path: "/v1/figures", Summary: "Show what the service answered, and how fast", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		Part string    `query:"part" maxLength:"64" doc:"api, console, device, mqtt-connect, mqtt-up, mqtt-down, store, export, verifier, dispatch or rollout; empty: all"`
		Op   string    `query:"op" maxLength:"256" doc:"one thing that the part does"`
		From time.Time `query:"from" doc:"empty: an hour before to"`
		To   time.Time `query:"to" doc:"empty: now"`
		Step string    `query:"step" maxLength:"16" doc:"length of a point, such as 10s or 5m; empty: what fits"`
	},
	) (*body[figuresAnswer], error) {
		q := fleet.FigureQuery{Part: in.Part, Op: in.Op, From: in.From, To: in.To}
		if in.Step != "" {
			var err error
			if q.Step, err = time.ParseDuration(in.Step); err != nil || q.Step <= 0 {
				return nil, s.fault(ctx, fmt.Errorf("step %.20q: give a duration such as 10s or 5m: %w", in.Step, fleet.ErrInvalid))
			}
		}
		all, q, err := s.Figures.Query(ctx, q)
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		out := figuresAnswer{From: q.From.UTC(), To: q.To.UTC(), StepS: q.Step.Seconds(), Parts: []partFigures{}, Ops: []partFigures{}}
		for _, p := range all {
			v := partFigures{Part: p.Part, Op: p.Op, Total: viewFigure(p.Total)}
			for _, f := range p.Points {
				v.Points = append(v.Points, viewFigure(f))
			}
			if p.Op == "" {
				out.Parts = append(out.Parts, v)
			} else {
				out.Ops = append(out.Ops, v)
			}
		}
		return &body[figuresAnswer]{out}, nil
	})
}
