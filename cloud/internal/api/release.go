package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type release struct {
	ID          string            `json:"id"`
	Component   string            `json:"component" doc:"agent, os/MODEL/CHANNEL or ops/TENANT/NAME"`
	Class       string            `json:"class" doc:"agent, os, app, config or script"`
	Version     string            `json:"version"`
	Tenant      string            `json:"tenant" doc:"whose it is; empty: of the vendor, for everybody"`
	Models      []string          `json:"models" doc:"boxes it fits; none: all"`
	Requires    map[string]string `json:"requires" doc:"component -> version at least"`
	Withdrawn   bool              `json:"withdrawn" doc:"nobody gets it any more"`
	Targets     []target          `json:"targets"`
	PublishedAt *time.Time        `json:"published_at"`
	PublishedBy string            `json:"published_by"`
}

type target struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Length int64  `json:"length" doc:"bytes"`
}

func viewRelease(r fleet.Release) release {
	v := release{
		ID: string(r.ID), Component: r.Component, Class: r.Class, Version: r.Version, Tenant: string(r.Tenant), Models: r.Models, Requires: r.Requires, Withdrawn: r.Withdrawn,
		Targets: []target{}, PublishedAt: when(r.PublishedAt), PublishedBy: r.PublishedBy,
	}
	if v.Models == nil {
		v.Models = []string{}
	}
	if v.Requires == nil {
		v.Requires = map[string]string{}
	}
	for _, t := range r.Targets {
		v.Targets = append(v.Targets, target(t))
	}
	return v
}

// upload is a tar stream that is read as it comes, never held in memory.
type upload struct {
	ContentType string `header:"Content-Type" doc:"application/x-tar"`
	stream      io.Reader
}

// Resolve implements huma.Resolver.
func (u *upload) Resolve(ctx huma.Context) []error {
	u.stream = ctx.BodyReader()
	return nil
}

// releaseStore is the store's part for releases.
type releaseStore interface {
	AddRelease(ctx context.Context, r fleet.Release, ev fleet.AuditEvent) error
	UpdateRelease(ctx context.Context, r fleet.Release, ev fleet.AuditEvent) (news bool, err error)
	// ReleaseOf and ReleasesOf know those that the tenant may use: its own and vendors'.
	ReleaseOf(ctx context.Context, t fleet.TenantID, id fleet.ReleaseID) (fleet.Release, error)
	ReleasesOf(ctx context.Context, t fleet.TenantID, p fleet.Page) ([]fleet.Release, string, error)
}

func (s *server) releases() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-releases", Method: http.MethodGet, Path: "/v1/releases", Summary: "List releases, newest first", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct{ Paged }) (*body[list[release]], error) {
		items, next, err := s.Store.ReleasesOf(ctx, who(ctx).Tenant, in.page())
		return pageOf(items, next, viewRelease), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-release", Method: http.MethodGet, Path: "/v1/release", Summary: "Show a release", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		ID string `query:"id" required:"true" maxLength:"256" doc:"e.g. agent/1.2.3 or os/pos-500/prod/1.2.3"`
	},
	) (*body[release], error) {
		r, err := s.Store.ReleaseOf(ctx, who(ctx).Tenant, fleet.ReleaseID(in.ID))
		return &body[release]{viewRelease(r)}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-release-by-path", Method: http.MethodGet, Path: "/v1/releases/{class}/{version}", Summary: "Show a release of a component of one word", Metadata: needs(fleet.Viewer),
		Description: "Others have more slashes in their id: see /v1/release.",
	}, func(ctx context.Context, in *struct {
		Class   string `path:"class" maxLength:"64"`
		Version string `path:"version" maxLength:"64"`
	},
	) (*body[release], error) {
		r, err := s.Store.ReleaseOf(ctx, who(ctx).Tenant, fleet.ReleaseID(in.Class+"/"+in.Version))
		return &body[release]{viewRelease(r)}, s.fault(ctx, err)
	})
	s.media()
	huma.Register(s.api, huma.Operation{
		OperationID: "publish-releases", Method: http.MethodPost, Path: "/v1/releases", Summary: "Publish a signed repository", Metadata: needs(fleet.Admin),
		Description: "The body is a tar stream of the TUF repository: metadata/ and targets/. It is verified as a whole before a device can see it. " +
			"Targets that are published already may be left out; where the root names the service's key, so may snapshot, timestamp and the metadata that did not change.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/x-tar": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}},
	}, s.publish)
}

func (s *server) publish(ctx context.Context, in *upload) (*body[list[release]], error) {
	p := who(ctx)
	all, err := s.Releases.Publish(ctx, in.stream)
	if err != nil {
		s.note(ctx, fleet.AuditEvent{Kind: "release.refused", Severity: "alarm", Actor: p.Name, Subject: "upload", Detail: map[string]string{"reason": cut(err.Error(), 400)}})
		return nil, s.fault(ctx, err)
	}
	var changed []fleet.Release
	for _, r := range all {
		ev := fleet.AuditEvent{
			Tenant: p.Tenant, At: r.PublishedAt, Kind: "release.changed", Severity: "info", Actor: p.Name, Subject: string(r.ID), Detail: map[string]string{"version": r.Version},
		}
		if r.Withdrawn {
			ev.Kind, ev.Severity = "release.withdrawn", "warn"
		}
		news, err := s.Store.UpdateRelease(ctx, r, ev)
		if errors.Is(err, fleet.ErrNotFound) {
			ev.Kind, ev.Severity = "release.published", "info"
			r.PublishedBy, news = p.Name, true
			err = s.Store.AddRelease(ctx, r, ev)
		}
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		if !news {
			continue
		}
		changed = append(changed, r)
		s.Changed(fleet.Change{Kind: fleet.ChangedRelease, ID: string(r.ID), Tenant: p.Tenant})
	}
	if len(changed) == 0 { // roots and delegations come this way, too
		s.note(ctx, fleet.AuditEvent{Kind: "release.metadata", Severity: "info", Actor: p.Name, Subject: "upload", Detail: map[string]string{"releases": strconv.Itoa(len(all))}})
	} else {
		s.Wake() // nobody gets any more what was withdrawn
	}
	return pageOf(changed, "", viewRelease), nil
}
