package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Exports send the trails to the security team; cloud/internal/export fits.
type Exports interface {
	States(ctx context.Context) ([]fleet.ExportState, error)
	Test(ctx context.Context, sink, by string) error
}

type exportState struct {
	Name      string     `json:"name"`
	Kind      string     `json:"kind" enum:"syslog,file,webhook"`
	Format    string     `json:"format" enum:"rfc5424,cef,ocsf"`
	To        string     `json:"to" doc:"where it sends, without what may be secret"`
	State     string     `json:"state" enum:"idle,sending,failing"`
	Lag       int64      `json:"lag" doc:"entries that its receiver does not have yet"`
	Cursor    int64      `json:"cursor" doc:"number n of the last entry that it has"`
	Sent      uint64     `json:"sent"`
	Lost      uint64     `json:"lost" doc:"entries that were deleted before they were sent"`
	MovedAt   *time.Time `json:"moved_at"`
	LastError string     `json:"last_error"`
	FailedAt  *time.Time `json:"failed_at"`

	FailingSince *time.Time `json:"failing_since"`
	Stalled      bool       `json:"stalled" doc:"something waits for so long that the alarm export.stalled was raised"`
	Skipped      uint64     `json:"skipped" doc:"entries that its filter kept back"`
}

func viewExport(s fleet.ExportState) exportState {
	return exportState{s.Name, s.Kind, s.Format, s.To, s.State, s.Lag, s.N, s.Sent, s.Lost, when(s.At), s.LastError, when(s.FailedAt), when(s.FailingSince), s.Stalled, s.Skipped}
}

func (s *server) exports() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-exports", Method: http.MethodGet, Path: "/v1/exports", Summary: "List where the trails are sent to, and how that goes", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*body[list[exportState]], error) {
		items, err := s.Exports.States(ctx)
		return pageOf(items, "", viewExport), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "test-export", Method: http.MethodPost, Path: "/v1/exports/{name}/test", Summary: "Send a test event, and wait until it has arrived",
		Metadata: needs(fleet.Admin), DefaultStatus: http.StatusNoContent,
	}, func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"32"`
	},
	) (*struct{}, error) {
		return nil, s.fault(ctx, s.Exports.Test(ctx, in.Name, who(ctx).Name))
	})
}
