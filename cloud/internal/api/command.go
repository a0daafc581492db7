package api

import (
	"context"
	"encoding/base64"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type command struct {
	ID             string            `json:"id"`
	Device         string            `json:"device"`
	Verb           string            `json:"verb"`
	Args           map[string]string `json:"args"`
	By             string            `json:"by"`
	Reason         string            `json:"reason"`
	IssuedAt       *time.Time        `json:"issued_at"`
	NotAfter       *time.Time        `json:"not_after"`
	State          string            `json:"state" enum:"QUEUED,SENT,SUCCEEDED,FAILED,REJECTED,EXPIRED"`
	Code           string            `json:"code"`
	Text           string            `json:"text"`
	Output         string            `json:"output"`
	OutputEncoding string            `json:"output_encoding,omitempty" doc:"base64 when the output is not text"`
	EndedAt        *time.Time        `json:"ended_at"`
	Counter        uint64            `json:"counter"`
}

func viewCommand(c fleet.Command) command {
	v := command{
		ID: string(c.ID), Device: string(c.Device), Verb: c.Verb, Args: c.Args, By: c.By, Reason: c.Reason, IssuedAt: when(c.IssuedAt), NotAfter: when(c.NotAfter),
		State: string(c.State), Code: c.Code, Text: c.Text, Output: string(c.Output), EndedAt: when(c.EndedAt), Counter: c.Counter,
	}
	if !utf8.Valid(c.Output) {
		v.Output, v.OutputEncoding = base64.StdEncoding.EncodeToString(c.Output), "base64"
	}
	return v
}

// sendCommand is the input of POST /v1/commands.
type sendCommand struct {
	Body struct {
		Device    string            `json:"device,omitempty" maxLength:"40" doc:"one device"`
		Group     string            `json:"group,omitempty" maxLength:"64" doc:"or every device of a group"`
		Verb      string            `json:"verb" enum:"identify,reboot,collect-logs,print-test,check-health,set-config,diagnose,factory-reset"`
		Args      map[string]string `json:"args,omitempty"`
		Reason    string            `json:"reason,omitempty" maxLength:"512"`
		ExpiresIn int               `json:"expires_in_s,omitempty" minimum:"0" maximum:"604800" doc:"seconds; 0: an hour"`
	}
}

func (s *server) commands() {
	huma.Register(s.api, huma.Operation{
		OperationID: "send-command", Method: http.MethodPost, Path: "/v1/commands", Summary: "Send a command to a device or a group", Metadata: needs(fleet.Operator),
		Description: "A device that is offline gets it when it returns, unless it has expired by then. factory-reset takes an admin, a reason, and the id of the device as its argument device.",
	}, s.send)
	huma.Register(s.api, huma.Operation{
		OperationID: "list-commands", Method: http.MethodGet, Path: "/v1/commands", Summary: "List commands, newest first", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		Paged
		Device string `query:"device"`
		State  string `query:"state" enum:"QUEUED,SENT,SUCCEEDED,FAILED,REJECTED,EXPIRED"`
	},
	) (*body[list[command]], error) {
		f := fleet.CommandFilter{Device: fleet.DeviceID(in.Device), State: fleet.CommandState(in.State)}
		items, next, err := s.Store.Commands(ctx, who(ctx).Tenant, f, in.page())
		return pageOf(items, next, viewCommand), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-command", Method: http.MethodGet, Path: "/v1/commands/{id}", Summary: "Show a command and its result", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"64"`
	},
	) (*body[command], error) {
		c, err := s.Store.Command(ctx, who(ctx).Tenant, fleet.CommandID(in.ID))
		return &body[command]{viewCommand(c)}, s.fault(ctx, err)
	})
}

func (s *server) send(ctx context.Context, in *sendCommand) (*body[list[command]], error) {
	p := who(ctx)
	if in.Body.Verb == fleet.FactoryReset {
		if !p.Role.Covers(fleet.Admin) {
			return nil, huma.Error403Forbidden("factory-reset needs the role admin; your token has " + string(p.Role))
		}
		if in.Body.Group != "" {
			return nil, huma.Error422UnprocessableEntity("factory-reset is for one device at a time: name it, and once more as the argument device")
		}
	}
	var to []fleet.DeviceID
	switch b := in.Body; {
	case (b.Device == "") == (b.Group == ""):
		return nil, huma.Error422UnprocessableEntity("give either a device or a group")
	case b.Device != "":
		if _, err := s.Store.Device(ctx, p.Tenant, fleet.DeviceID(b.Device)); err != nil {
			return nil, s.fault(ctx, err)
		}
		to = append(to, fleet.DeviceID(b.Device))
	default:
		for page := (fleet.Page{Limit: 1000}); ; {
			items, next, err := s.Store.Devices(ctx, p.Tenant, fleet.DeviceFilter{Group: b.Group}, page)
			if err != nil {
				return nil, s.fault(ctx, err)
			}
			for _, d := range items {
				to = append(to, d.ID)
			}
			if page.After = next; next == "" {
				break
			}
		}
		if len(to) == 0 {
			return nil, huma.Error422UnprocessableEntity("no device is in group " + b.Group)
		}
	}
	var out []fleet.Command
	for _, id := range to {
		c, err := s.Send(ctx, fleet.CommandRequest{
			Device: id, Tenant: p.Tenant, Verb: in.Body.Verb, Args: in.Body.Args, By: p.Name, Reason: in.Body.Reason,
			Life: time.Duration(in.Body.ExpiresIn) * time.Second,
		})
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		out = append(out, c)
	}
	return pageOf(out, "", viewCommand), nil
}
