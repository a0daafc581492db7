package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type site struct {
	Name     string `json:"name"`
	Zone     string `json:"zone" doc:"IANA time zone, e.g. Europe/Berlin; empty: UTC"`
	Download string `json:"download" doc:"hours in which updates may be fetched, e.g. mon-fri 22:00-05:00, sun 00:00-24:00; empty: at any time"`
	Install  string `json:"install" doc:"hours in which tills may be touched"`
	Devices  int    `json:"devices"`
}

func viewSite(s fleet.Site) site { return site{s.Name, s.Zone, s.Download, s.Install, s.Devices} }

func (s *server) sites() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-sites", Method: http.MethodGet, Path: "/v1/sites", Summary: "List sites and their hours", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*body[list[site]], error) {
		items, err := s.Store.Sites(ctx, who(ctx).Tenant)
		return pageOf(items, "", viewSite), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-site", Method: http.MethodGet, Path: "/v1/sites/{name}", Summary: "Show a site", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"64"`
	},
	) (*body[site], error) {
		v, err := s.site(ctx, in.Name)
		return &body[site]{viewSite(v)}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "set-site", Method: http.MethodPut, Path: "/v1/sites/{name}", Summary: "Set the hours of a site", Metadata: needs(fleet.Operator),
	}, s.setSite)
	huma.Register(s.api, huma.Operation{
		OperationID: "get-device-update", Method: http.MethodGet, Path: "/v1/devices/{id}/update", Summary: "What a device runs, and why it waits for what it does not", Metadata: needs(fleet.Viewer),
	}, s.deviceUpdate)
}

func (s *server) site(ctx context.Context, name string) (fleet.Site, error) {
	all, err := s.Store.Sites(ctx, who(ctx).Tenant)
	if err != nil {
		return fleet.Site{}, err
	}
	i := slices.IndexFunc(all, func(v fleet.Site) bool { return v.Name == name })
	if i < 0 {
		return fleet.Site{}, fmt.Errorf("site %q: %w", name, fleet.ErrNotFound)
	}
	return all[i], nil
}

func (s *server) setSite(ctx context.Context, in *struct {
	Name string `path:"name" maxLength:"64"`
	Body struct {
		Zone     string `json:"zone" maxLength:"64" doc:"IANA time zone, e.g. Europe/Berlin; empty: UTC"`
		Download string `json:"download" maxLength:"512" doc:"hours in which updates may be fetched; empty: at any time"`
		Install  string `json:"install" maxLength:"512" doc:"hours in which tills may be touched; empty: at any time"`
	}
},
) (*body[site], error) {
	b, p := in.Body, who(ctx)
	if in.Name == "" {
		return nil, s.fault(ctx, fmt.Errorf("a site needs a name: %w", fleet.ErrInvalid))
	}
	if b.Zone == "Local" { // that of the service's machine
		b.Zone += " "
	}
	if _, err := time.LoadLocation(b.Zone); err != nil {
		return nil, s.fault(ctx, fmt.Errorf("zone %q is no time zone; give a name as Europe/Berlin: %w", in.Body.Zone, fleet.ErrInvalid))
	}
	for what, text := range map[string]string{"download": b.Download, "install": b.Install} {
		if err := s.Hours(text); err != nil {
			return nil, s.fault(ctx, invalid(fmt.Errorf("%s: %w", what, err)))
		}
	}
	ev := fleet.AuditEvent{
		At: time.Now(), Kind: "site.changed", Severity: "info", Actor: p.Name, Subject: in.Name, Site: in.Name,
		Detail: map[string]string{"zone": b.Zone, "download": cut(b.Download, 200), "install": cut(b.Install, 200)},
	}
	err := s.Store.PutSite(ctx, fleet.Site{Tenant: p.Tenant, Name: in.Name, Zone: b.Zone, Download: b.Download, Install: b.Install}, ev)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.Wake()
	v, err := s.site(ctx, in.Name)
	return &body[site]{viewSite(v)}, s.fault(ctx, err)
}

type deviceUpdate struct {
	Installed  []installed `json:"installed" doc:"as the device found it"`
	FreeMiB    uint64      `json:"free_mib" doc:"on its state partition; 0: not known"`
	Supply     string      `json:"supply" doc:"mains or battery; empty: not known"`
	Executions []execution `json:"executions" doc:"the newest twenty, newest first"`
	Waiting    []delay     `json:"waiting" doc:"why it has not got what rollouts have for it"`
}

type installed struct {
	Component string `json:"component"`
	Version   string `json:"version"`
	Slot      string `json:"slot"`
	Hash      string `json:"hash"`
	Trial     bool   `json:"trial" doc:"it has not proved itself yet"`
}

type delay struct {
	Rollout string     `json:"rollout"`
	Reason  string     `json:"reason"`
	Text    string     `json:"text"`
	Since   *time.Time `json:"since"`
}

func (s *server) deviceUpdate(ctx context.Context, in *DeviceID) (*body[deviceUpdate], error) {
	t, id := who(ctx).Tenant, fleet.DeviceID(in.ID)
	d, err := s.Store.Device(ctx, t, id)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	units, _, err := s.Store.DeviceUnits(ctx, t, id, fleet.Page{Limit: 20})
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	delays, err := s.Why(ctx, t, id)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v := deviceUpdate{Installed: []installed{}, FreeMiB: d.FreeMiB, Supply: d.Supply, Executions: []execution{}, Waiting: []delay{}}
	for _, i := range d.Installed {
		v.Installed = append(v.Installed, installed(i))
	}
	for _, u := range units {
		v.Executions = append(v.Executions, viewExecution(u))
	}
	for _, w := range delays {
		v.Waiting = append(v.Waiting, delay{string(w.Rollout), w.Reason, w.Text, when(w.Since)})
	}
	return &body[deviceUpdate]{v}, nil
}
