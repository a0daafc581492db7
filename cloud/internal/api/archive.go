package api

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Trails seals audit trails and reads what was put away; the service fits.
type Trails interface {
	// Export prepares the entries of a trail, with an empty id of the service's
	// own, from one number to another (0: all) to be written as a sealed file.
	Export(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, from, to uint64, by string) (entries uint64, write func(context.Context, io.Writer) error, err error)
	// Verify reads the file of a segment.
	Verify(ctx context.Context, t fleet.TenantID, n int64) (fleet.SegmentReport, error)
	// Key is what trails are sealed and countersigned with.
	Key() (id string, key ed25519.PublicKey)
}

type archiveStore interface {
	TrailState(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (fleet.TrailState, error)
	Segments(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) ([]fleet.Segment, string, error)
}

type segment struct {
	N        int64      `json:"n"`
	Trail    string     `json:"trail" doc:"a device, or service"`
	First    uint64     `json:"first"`
	Last     uint64     `json:"last"`
	Hash     string     `json:"hash" doc:"of the last entry"`
	Entries  uint64     `json:"entries"`
	File     string     `json:"file" doc:"in the archive folder"`
	SHA256   string     `json:"sha256" doc:"of the file"`
	Bytes    int64      `json:"bytes"`
	At       *time.Time `json:"at"`
	Verdict  string     `json:"verdict,omitempty" doc:"whole, gap, or what is wrong; only when it was verified"`
	FirstBad uint64     `json:"first_bad,omitempty"`
	Text     string     `json:"text,omitempty"`
}

func viewSegment(g fleet.Segment) segment {
	trail := string(g.Trail)
	if trail == "" {
		trail = "service"
	}
	return segment{
		N: g.N, Trail: trail, First: g.First, Last: g.Last, Hash: hex.EncodeToString(g.Hash[:]), Entries: g.Entries, File: g.File,
		SHA256: hex.EncodeToString(g.SHA256[:]), Bytes: g.Bytes, At: when(g.At),
	}
}

type auditKey struct {
	ID  string `json:"id"`
	Key string `json:"key" doc:"PEM"`
}

// auditProof says how far a device's trail is proven.
type auditProof struct {
	Head            uint64     `json:"head"`
	Broken          bool       `json:"broken" doc:"it did not hold, or entries are missing"`
	Missing         uint64     `json:"missing" doc:"entries that are missing and may come yet"`
	Lost            uint64     `json:"lost" doc:"entries that the device lost with a damaged file, as its TPM signed"`
	AnchoredTo      uint64     `json:"anchored_to" doc:"entries up to here are covered by the word of the device's TPM; 0: none"`
	AnchoredAt      *time.Time `json:"anchored_at"`
	CountersignedTo uint64     `json:"countersigned_to" doc:"entries up to here the service has told the device, signed, that it holds; 0: none"`
	ArchivedTo      uint64     `json:"archived_to" doc:"entries up to here lie in sealed files"`
}

func viewProof(s fleet.TrailState) *auditProof {
	return &auditProof{s.Head, s.Broken, s.Missing, s.Lost, s.Anchored, when(s.AnchoredAt), s.Countersigned, s.Base}
}

func (s *server) archive() {
	huma.Register(s.api, huma.Operation{
		OperationID: "get-seal-key", Method: http.MethodGet, Path: "/v1/audit/key", Summary: "Show the key that audit trails are sealed and countersigned with", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*body[auditKey], error) {
		id, key := s.Trails.Key()
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		return &body[auditKey]{auditKey{id, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}}, nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "list-segments", Method: http.MethodGet, Path: "/v1/audit/segments", Summary: "List the sealed files that older parts of audit trails lie in", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		Paged
		Device string `query:"device" maxLength:"40" doc:"only of this device's trail"`
	},
	) (*body[list[segment]], error) {
		items, next, err := s.Store.Segments(ctx, who(ctx).Tenant, fleet.DeviceID(in.Device), in.page())
		return pageOf(items, next, viewSegment), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "verify-segment", Method: http.MethodGet, Path: "/v1/audit/segments/{n}/verify", Summary: "Read a sealed file again: is it whole, and the one that was put there?",
		Metadata: needs(fleet.Operator),
	}, func(ctx context.Context, in *struct {
		N int64 `path:"n"`
	},
	) (*body[segment], error) {
		r, err := s.Trails.Verify(ctx, who(ctx).Tenant, in.N)
		v := viewSegment(r.Segment)
		v.Verdict, v.FirstBad, v.Text = r.Verdict, r.FirstBad, r.Text
		return &body[segment]{v}, s.fault(ctx, err)
	})
	type Range struct {
		From uint64 `query:"from" doc:"number of the first entry; 0: the first that is there"`
		To   uint64 `query:"to" doc:"number of the last entry; 0: the newest"`
	}
	sealed := map[string]*huma.Response{"200": {Description: "the sealed file", Content: map[string]*huma.MediaType{"application/x-ndjson": {
		Schema: &huma.Schema{Type: "string", Format: "binary"},
	}}}}
	huma.Register(s.api, huma.Operation{
		OperationID: "export-trail", Method: http.MethodGet, Path: "/v1/audit/export", Summary: "Get the service's own audit trail as a sealed file", Metadata: needs(fleet.Admin), Responses: sealed,
	}, func(ctx context.Context, in *Range) (*huma.StreamResponse, error) {
		return s.sealed(ctx, "", in.From, in.To)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "export-device-trail", Method: http.MethodGet, Path: "/v1/devices/{id}/audit/export", Summary: "Get a device's audit trail as a sealed file", Metadata: needs(fleet.Admin), Responses: sealed,
	}, func(ctx context.Context, in *struct {
		DeviceID
		Range
	},
	) (*huma.StreamResponse, error) {
		return s.sealed(ctx, fleet.DeviceID(in.ID), in.From, in.To)
	})
}

func (s *server) sealed(ctx context.Context, id fleet.DeviceID, from, to uint64) (*huma.StreamResponse, error) {
	p := who(ctx)
	entries, write, err := s.Trails.Export(ctx, p.Tenant, id, from, to, p.Name)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	name := string(id)
	if id == "" {
		name = "service"
	}
	// Before the first byte: nobody takes a trail away and leaves none.
	ev := fleet.AuditEvent{
		Tenant: p.Tenant, At: time.Now(), Kind: "audit.exported", Severity: "info", Actor: p.Name, Subject: name,
		Detail: map[string]string{"from": strconv.FormatUint(from, 10), "to": strconv.FormatUint(to, 10), "entries": strconv.FormatUint(entries, 10)},
	}
	if err := s.Store.Audit(ctx, ev); err != nil {
		return nil, s.fault(ctx, err)
	}
	s.Changed(fleet.Change{Kind: fleet.ChangedAudit, ID: name, Tenant: p.Tenant})
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/x-ndjson")
		hc.SetHeader("Content-Disposition", fmt.Sprintf(`attachment; filename="%s.trail"`, name))
		hc.SetHeader("Tillward-Entries", strconv.FormatUint(entries, 10))
		if err := write(hc.Context(), hc.BodyWriter()); err != nil {
			if hc.Context().Err() == nil {
				s.Log.Error("export an audit trail", slog.String("trail", name), slog.Any("err", err))
			}
			panic(http.ErrAbortHandler) // half a trail must not look like a whole one
		}
	}}, nil
}
