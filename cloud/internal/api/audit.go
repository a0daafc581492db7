package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type auditEvent struct {
	Seq      uint64            `json:"seq"`
	At       *time.Time        `json:"at"`
	StoredAt *time.Time        `json:"stored_at"`
	Kind     string            `json:"kind"`
	Severity string            `json:"severity" enum:"info,warn,alarm"`
	Actor    string            `json:"actor"`
	Subject  string            `json:"subject"`
	Outcome  string            `json:"outcome" enum:"success,failure,refused," doc:"empty: nothing was tried"`
	Site     string            `json:"site"`
	Detail   map[string]string `json:"detail"`
	Hash     string            `json:"hash"`
	Prev     string            `json:"prev"`
}

type chain struct {
	OK       bool   `json:"ok"`
	Entries  uint64 `json:"entries"`
	First    uint64 `json:"first"`
	Last     uint64 `json:"last"`
	BrokenAt uint64 `json:"broken_at"`
	Text     string `json:"text"`
}

// audit registers a trail and its verification; the service's own trail has no
// id in its path.
func (s *server) audit(prefix, path, summary string) {
	type Trail struct {
		Paged
		Order    string `query:"order" enum:"asc,desc" default:"desc"`
		Severity string `query:"severity" enum:"info,warn,alarm" doc:"only entries of this severity"`
	}
	read := func(ctx context.Context, id string, in Trail) (*body[list[auditEvent]], error) {
		items, next, err := s.Store.AuditTrailOf(ctx, who(ctx).Tenant, fleet.DeviceID(id), in.Severity, in.Order != "asc", in.page())
		return pageOf(items, next, func(e fleet.AuditEvent) auditEvent {
			return auditEvent{
				e.Seq, when(e.At), when(e.StoredAt), e.Kind, e.Severity, e.Actor, e.Subject, e.Outcome, e.Site, e.Detail, hex.EncodeToString(e.Hash[:]), hex.EncodeToString(e.Prev[:]),
			}
		}), s.fault(ctx, err)
	}
	verify := func(ctx context.Context, id string) (*body[chain], error) {
		r, err := s.Store.VerifyAudit(ctx, who(ctx).Tenant, fleet.DeviceID(id))
		return &body[chain]{chain{r.OK, r.Entries, r.First, r.Last, r.BrokenAt, r.Text}}, s.fault(ctx, err)
	}
	listOp := huma.Operation{OperationID: "list-" + prefix + "audit", Method: http.MethodGet, Path: path, Summary: summary, Metadata: needs(fleet.Viewer)}
	verifyOp := huma.Operation{
		OperationID: "verify-" + prefix + "audit", Method: http.MethodGet, Path: path + "/verify",
		Summary: summary + ": is the chain whole?", Metadata: needs(fleet.Viewer),
	}
	if prefix == "" {
		huma.Register(s.api, listOp, func(ctx context.Context, in *Trail) (*body[list[auditEvent]], error) { return read(ctx, "", *in) })
		huma.Register(s.api, verifyOp, func(ctx context.Context, _ *struct{}) (*body[chain], error) { return verify(ctx, "") })
		return
	}
	huma.Register(s.api, listOp, func(ctx context.Context, in *struct {
		DeviceID
		Trail
	},
	) (*body[list[auditEvent]], error) {
		return read(ctx, in.ID, in.Trail)
	})
	huma.Register(s.api, verifyOp, func(ctx context.Context, in *DeviceID) (*body[chain], error) { return verify(ctx, in.ID) })
}
