package api

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// publisher is what there is to releases beside the store.
type publisher interface {
	// Publish takes in a repository and returns every release in it.
	Publish(ctx context.Context, r io.Reader) ([]fleet.Release, error)
	// Export prepares an update medium; it ends at the time returned.
	Export(ctx context.Context, m fleet.Medium) (ends time.Time, write func(io.Writer) error, err error)
	// Freshness says how fresh their metadata is.
	Freshness() (fleet.Freshness, error)
}

type freshness struct {
	Key      string               `json:"key" doc:"the service's online key: PEM, as a root names it"`
	Online   bool                 `json:"online" doc:"the root lets it sign snapshot and timestamp"`
	SignedAt *time.Time           `json:"signed_at" doc:"the timestamp; null: nothing is published"`
	Ends     map[string]time.Time `json:"ends" doc:"when the metadata of each role ends"`
}

func (s *server) media() {
	huma.Register(s.api, huma.Operation{
		OperationID: "get-online-key", Method: http.MethodGet, Path: "/v1/online-key", Summary: "Show the key that keeps releases fresh", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*body[freshness], error) {
		f, err := s.Releases.Freshness()
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		der, err := x509.MarshalPKIXPublicKey(f.Key)
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		v := freshness{Key: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), Online: f.Online, SignedAt: when(f.Signed), Ends: f.Ends}
		if v.Ends == nil {
			v.Ends = map[string]time.Time{}
		}
		return &body[freshness]{v}, nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "export-medium", Method: http.MethodPost, Path: "/v1/media", Summary: "Write an update medium", Metadata: needs(fleet.Admin),
		Description: "The answer is a tar stream of the folder tillward-update, to be unpacked at the top of a USB stick. Devices check it as they check what comes over the network.",
		Responses: map[string]*huma.Response{"200": {Description: "the medium", Content: map[string]*huma.MediaType{"application/x-tar": {
			Schema: &huma.Schema{Type: "string", Format: "binary"},
		}}}},
	}, s.export)
}

func (s *server) export(ctx context.Context, in *struct {
	Body struct {
		Releases []string `json:"releases" minItems:"1" maxItems:"32" doc:"ids, in the order to install them"`
		LifeDays int      `json:"life_days,omitempty" minimum:"0" maximum:"90" doc:"days until devices take it no more; 0: 30"`
	}
},
) (*huma.StreamResponse, error) {
	p := who(ctx)
	m := fleet.Medium{ID: newID("md_"), Tenant: p.Tenant, By: p.Name, Life: time.Duration(in.Body.LifeDays) * 24 * time.Hour}
	if m.Life == 0 {
		m.Life = 30 * 24 * time.Hour
	}
	for _, id := range in.Body.Releases {
		if _, err := s.Store.ReleaseOf(ctx, p.Tenant, fleet.ReleaseID(id)); err != nil {
			return nil, s.fault(ctx, err)
		}
		m.Releases = append(m.Releases, fleet.ReleaseID(id))
	}
	ends, write, err := s.Releases.Export(ctx, m)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	// Before the first byte: a medium that is in no trail must not exist.
	ev := fleet.AuditEvent{
		Tenant: p.Tenant, At: time.Now(), Kind: "release.exported", Severity: "info", Actor: p.Name, Subject: m.ID,
		Detail: map[string]string{"releases": cut(strings.Join(in.Body.Releases, " "), 400), "days": strconv.Itoa(int(m.Life / (24 * time.Hour))), "ends": ends.UTC().Format(time.RFC3339)},
	}
	if err := s.Store.Audit(ctx, ev); err != nil {
		return nil, s.fault(ctx, err)
	}
	s.Changed(fleet.Change{Kind: fleet.ChangedAudit, ID: m.ID, Tenant: p.Tenant})
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/x-tar")
		hc.SetHeader("Content-Disposition", fmt.Sprintf(`attachment; filename="%s.tar"`, m.ID))
		hc.SetHeader("Tillward-Medium", m.ID)
		hc.SetHeader("Tillward-Ends", ends.UTC().Format(time.RFC3339))
		if err := write(hc.BodyWriter()); err != nil {
			s.Log.Error("export a medium", slog.String("medium", m.ID), slog.Any("err", err))
			panic(http.ErrAbortHandler) // half a medium must not look like a whole one
		}
	}}, nil
}
