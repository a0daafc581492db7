package api

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type release struct {
	ID          string     `json:"id"`
	Class       string     `json:"class"`
	Version     string     `json:"version"`
	Targets     []target   `json:"targets"`
	PublishedAt *time.Time `json:"published_at"`
	PublishedBy string     `json:"published_by"`
}

type target struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Length int64  `json:"length" doc:"bytes"`
}

func viewRelease(r fleet.Release) release {
	v := release{string(r.ID), r.Class, r.Version, []target{}, when(r.PublishedAt), r.PublishedBy}
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

func (s *server) releases() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-releases", Method: http.MethodGet, Path: "/v1/releases", Summary: "List releases, newest first", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct{ Paged }) (*body[list[release]], error) {
		items, next, err := s.Store.Releases(ctx, in.page())
		return pageOf(items, next, viewRelease), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-release", Method: http.MethodGet, Path: "/v1/releases/{class}/{version}", Summary: "Show a release", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		Class   string `path:"class" maxLength:"64"`
		Version string `path:"version" maxLength:"64"`
	},
	) (*body[release], error) {
		r, err := s.Store.Release(ctx, fleet.ReleaseID(in.Class+"/"+in.Version))
		return &body[release]{viewRelease(r)}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "publish-releases", Method: http.MethodPost, Path: "/v1/releases", Summary: "Publish a signed repository", Metadata: needs(fleet.Admin),
		Description: "The body is a tar stream of the TUF repository: metadata/ and targets/. It is verified as a whole before a device can see it.",
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/x-tar": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}},
	}, s.publish)
}

func (s *server) publish(ctx context.Context, in *upload) (*body[list[release]], error) {
	p := who(ctx)
	all, err := s.Publish(ctx, in.stream)
	if err != nil {
		s.note(ctx, fleet.AuditEvent{Kind: "release.refused", Severity: "alarm", Actor: p.Name, Subject: "upload", Detail: map[string]string{"reason": cut(err.Error(), 400)}})
		return nil, s.fault(ctx, err)
	}
	var added []fleet.Release
	for _, r := range all {
		if _, err := s.Store.Release(ctx, r.ID); err == nil {
			continue
		}
		r.PublishedBy = p.Name
		ev := fleet.AuditEvent{
			Tenant: p.Tenant, At: r.PublishedAt, Kind: "release.published", Severity: "info", Actor: p.Name, Subject: string(r.ID), Detail: map[string]string{"version": r.Version},
		}
		if err := s.Store.AddRelease(ctx, r, ev); err != nil {
			return nil, s.fault(ctx, err)
		}
		added = append(added, r)
		s.Changed(fleet.Change{Kind: fleet.ChangedRelease, ID: string(r.ID), Tenant: p.Tenant})
	}
	return pageOf(added, "", viewRelease), nil
}
