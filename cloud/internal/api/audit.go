package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"strconv"
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
		items, next, err := s.trail(ctx, fleet.DeviceID(id), in.Order != "asc", in.Severity, in.page())
		return pageOf(items, next, func(e fleet.AuditEvent) auditEvent {
			return auditEvent{
				e.Seq, when(e.At), when(e.StoredAt), e.Kind, e.Severity, e.Actor, e.Subject, e.Detail, hex.EncodeToString(e.Hash[:]), hex.EncodeToString(e.Prev[:]),
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

// looked is how many pages of a trail one request reads for entries of the
// severity that it asks for.
const looked = 20

// trail reads a page of a trail. Of one severity it may be short, or empty, and
// still have a next: what was looked at is not looked at again.
func (s *server) trail(ctx context.Context, id fleet.DeviceID, newestFirst bool, severity string, p fleet.Page) ([]fleet.AuditEvent, string, error) {
	t := who(ctx).Tenant
	if severity == "" {
		return s.Store.AuditTrail(ctx, t, id, newestFirst, p)
	}
	var out []fleet.AuditEvent
	limit, next := p.Bounded(), p.After
	for range looked {
		items, more, err := s.Store.AuditTrail(ctx, t, id, newestFirst, fleet.Page{After: next, Limit: 1000})
		if err != nil {
			return nil, "", err
		}
		for i, ev := range items {
			if ev.Severity != severity {
				continue
			}
			if out = append(out, ev); len(out) == limit && (i < len(items)-1 || more != "") {
				return out, strconv.FormatUint(ev.Seq, 10), nil
			}
		}
		if next = more; next == "" {
			break
		}
	}
	return out, next, nil
}
