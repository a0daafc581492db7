package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// Device is a device as the API shows it.
type device struct {
	ID           string       `json:"id"`
	Tenant       string       `json:"tenant"`
	Tier         string       `json:"tier" doc:"A: TPM with vendor certificate, B: listed TPM, C: virtual TPM, D: software key"`
	Model        string       `json:"model"`
	Serial       string       `json:"serial"`
	Site         string       `json:"site"`
	Group        string       `json:"group"`
	Label        string       `json:"label"`
	Trust        string       `json:"trust" enum:"pending,attested,degraded,quarantined,stale"`
	TrustReasons []string     `json:"trust_reasons"`
	AttestedAt   *time.Time   `json:"attested_at"`
	Online       bool         `json:"online"`
	EnrolledAt   *time.Time   `json:"enrolled_at"`
	LastSeen     *time.Time   `json:"last_seen"`
	AgentVersion string       `json:"agent_version"`
	Slot         string       `json:"slot"`
	Health       string       `json:"health" doc:"worst of the peripherals; Unknown when none can tell"`
	AuditHead    uint64       `json:"audit_head"`
	AuditOK      bool         `json:"audit_ok"`
	Samples      uint64       `json:"samples"`
	CertSerial   string       `json:"cert_serial"`
	CertNotAfter *time.Time   `json:"cert_not_after"`
	EKHash       string       `json:"ek_sha256"`
	Peripherals  []Peripheral `json:"peripherals"`
	State        deviceState  `json:"state"`

	Findings    []fleet.Finding `json:"findings" doc:"the last appraisal, explained"`
	BootRelease string          `json:"boot_release" doc:"whose boot the device has committed to"`
	BootDigest  string          `json:"boot_digest" doc:"hex, over the quoted registers"`
	ResetCount  uint32          `json:"reset_count" doc:"of the TPM"`
	Waiver      *waiver         `json:"waiver"`
	Certificate certificate     `json:"certificate"`
	RevokedAt   *time.Time      `json:"revoked_at"`
	RevokedWhy  string          `json:"revoked_why"`
	FormerOf    string          `json:"former_of" doc:"what a device left with the owner it had before: which device"`
	LeftAt      *time.Time      `json:"left_at"`
	Audit       *auditProof     `json:"audit,omitempty" doc:"how far the trail is proven; only when one device is asked for"`
	Ownership   *ownership      `json:"ownership,omitempty" doc:"by its voucher; only when one device is asked for"`
}

type deviceState struct {
	StartedAt       *time.Time `json:"started_at"`
	SpoolDepth      uint64     `json:"spool_depth"`
	SpoolShed       uint64     `json:"spool_shed"`
	AuditRecorded   uint64     `json:"audit_recorded"`
	SamplesRecorded uint64     `json:"samples_recorded"`
}

// viewDevice shows a device with its peripherals. The rest of what it reported
// is in its newest report only.
func viewDevice(d fleet.Device, peripherals []fleet.Peripheral) device {
	v := device{
		ID: string(d.ID), Tenant: string(d.Tenant), Tier: string(d.Tier), Model: d.Model, Serial: d.Serial, Site: d.Site, Group: d.Group, Label: d.Label,
		Trust: string(d.Trust), TrustReasons: append([]string{}, d.TrustReasons...), AttestedAt: when(d.AttestedAt), Online: d.Online,
		EnrolledAt: when(d.EnrolledAt), LastSeen: when(d.LastSeen), AgentVersion: d.AgentVersion, Slot: d.Slot, Health: fleet.Worst(peripherals),
		AuditHead: d.AuditHead, AuditOK: !d.AuditBroken, Samples: d.Samples, CertSerial: d.CertSerial, CertNotAfter: when(d.CertNotAfter), EKHash: d.EKHash,
		Peripherals: make([]Peripheral, 0, len(peripherals)),
	}
	for _, p := range peripherals {
		v.Peripherals = append(v.Peripherals, viewPeripheral(p))
	}
	v.trusted(d)
	st, err := wire.Decode[wire.StateReport](d.State)
	if err != nil {
		return v // nothing reported yet
	}
	if st.Label != "" && v.Label == "" {
		v.Label = st.Label
	}
	started := time.UnixMilli(st.StartedAt)
	v.State = deviceState{when(started), st.SpoolDepth, st.SpoolShed, st.AuditHead, st.Samples}
	return v
}

// DeviceID is the device in a path.
type DeviceID struct {
	ID string `path:"id" maxLength:"40"`
}

func (s *server) devices() {
	huma.Register(s.api, huma.Operation{
		OperationID: "summary", Method: http.MethodGet, Path: "/v1/summary", Summary: "The fleet in numbers", Metadata: needs(fleet.Viewer),
	}, s.summary)
	huma.Register(s.api, huma.Operation{
		OperationID: "list-devices", Method: http.MethodGet, Path: "/v1/devices", Summary: "List devices", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		Paged
		Site   string `query:"site"`
		Group  string `query:"group"`
		Trust  string `query:"trust" enum:"pending,attested,degraded,quarantined,stale"`
		Online string `query:"online" enum:"true,false"`
		Former bool   `query:"former" doc:"what devices left behind that moved on, instead of devices"`
		Query  string `query:"q" maxLength:"64" doc:"part of id, label, serial, site or model"`
	},
	) (*body[list[device]], error) {
		f := fleet.DeviceFilter{Site: in.Site, Group: in.Group, Trust: fleet.Trust(in.Trust), Query: in.Query, Former: in.Former}
		if in.Online != "" {
			online := in.Online == "true"
			f.Online = &online
		}
		items, next, err := s.Store.Devices(ctx, who(ctx).Tenant, f, in.page())
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		ids := make([]fleet.DeviceID, len(items))
		for n, d := range items {
			ids[n] = d.ID
		}
		of, err := s.Store.PeripheralsOf(ctx, who(ctx).Tenant, ids...)
		return pageOf(items, next, func(d fleet.Device) device { return viewDevice(d, of[d.ID]) }), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-device", Method: http.MethodGet, Path: "/v1/devices/{id}", Summary: "Show a device", Metadata: needs(fleet.Viewer),
	}, s.device)
	huma.Register(s.api, huma.Operation{
		OperationID: "set-device", Method: http.MethodPatch, Path: "/v1/devices/{id}", Summary: "Change site, group or label", Metadata: needs(fleet.Operator),
	}, s.setDevice)
	huma.Register(s.api, huma.Operation{
		OperationID: "list-series", Method: http.MethodGet, Path: "/v1/devices/{id}/series", Summary: "What a device measures", Metadata: needs(fleet.Viewer),
	}, s.series)
	huma.Register(s.api, huma.Operation{
		OperationID: "get-points", Method: http.MethodGet, Path: "/v1/devices/{id}/points", Summary: "Values of one series", Metadata: needs(fleet.Viewer),
	}, s.points)
	huma.Register(s.api, huma.Operation{
		OperationID: "list-events", Method: http.MethodGet, Path: "/v1/devices/{id}/events", Summary: "What happened to peripherals, newest first", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, in *struct {
		DeviceID
		Paged
	},
	) (*body[list[event]], error) {
		items, next, err := s.Store.Events(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID), in.page())
		return pageOf(items, next, func(e fleet.PeripheralEvent) event {
			return event{when(e.At), e.Peripheral, e.Category, e.Code, e.From, e.To, e.Count}
		}), s.fault(ctx, err)
	})
	s.audit("device-", "/v1/devices/{id}/audit", "A device's audit trail")
	s.audit("", "/v1/audit", "The service's own audit trail")
}

func (s *server) device(ctx context.Context, in *DeviceID) (*body[device], error) {
	d, err := s.Store.Device(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID))
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	of, err := s.Store.PeripheralsOf(ctx, d.Tenant, d.ID)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v := viewDevice(d, of[d.ID])
	o, err := s.Store.Ownership(ctx, d.ID)
	switch {
	case err == nil:
		v.Ownership = &ownership{string(o.State), o.Owner, when(o.Deadline), o.Entries}
	case !errors.Is(err, fleet.ErrNotFound):
		return nil, s.fault(ctx, err)
	}
	st, err := s.Store.TrailState(ctx, d.Tenant, d.ID)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v.Audit = viewProof(st)
	return &body[device]{v}, nil
}

type event struct {
	At         *time.Time `json:"at"`
	Peripheral string     `json:"peripheral"`
	Category   string     `json:"category"`
	Code       string     `json:"code"`
	From       string     `json:"from"`
	To         string     `json:"to"`
	Count      uint32     `json:"count" doc:"how often it came in the minute before, where it flapped; 0: once"`
}

type summaryView struct {
	Devices     int            `json:"devices"`
	Online      int            `json:"online"`
	ByTrust     map[string]int `json:"by_trust"`
	ByVersion   map[string]int `json:"by_version"`
	ByHealth    map[string]int `json:"by_health"`
	Samples     uint64         `json:"samples"`
	AuditEvents uint64         `json:"audit_events"`
}

func (s *server) summary(ctx context.Context, _ *struct{}) (*body[summaryView], error) {
	sum, err := s.Store.Summary(ctx, who(ctx).Tenant)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v := summaryView{
		Devices: sum.Devices, Online: sum.Online, ByTrust: map[string]int{}, ByVersion: sum.ByVersion, ByHealth: sum.ByHealth,
		Samples: sum.Samples, AuditEvents: sum.AuditEvents,
	}
	for k, n := range sum.ByTrust {
		v.ByTrust[string(k)] = n
	}
	return &body[summaryView]{v}, nil
}

func (s *server) setDevice(ctx context.Context, in *struct {
	DeviceID
	Body struct {
		Site  *string `json:"site,omitempty" maxLength:"64"`
		Group *string `json:"group,omitempty" maxLength:"64"`
		Label *string `json:"label,omitempty" maxLength:"64"`
	}
},
) (*body[device], error) {
	p := who(ctx)
	detail := map[string]string{}
	for k, v := range map[string]*string{"site": in.Body.Site, "group": in.Body.Group, "label": in.Body.Label} {
		if v != nil {
			detail[k] = *v
		}
	}
	ev := fleet.AuditEvent{At: time.Now(), Kind: "device.changed", Severity: "info", Actor: p.Name, Subject: in.ID, Detail: detail}
	err := s.Store.SetDevice(ctx, p.Tenant, fleet.DeviceID(in.ID), fleet.DevicePatch{Site: in.Body.Site, Group: in.Body.Group, Label: in.Body.Label}, ev)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	s.Changed(fleet.Change{Kind: fleet.ChangedDevice, ID: in.ID, Tenant: p.Tenant})
	return s.device(ctx, &in.DeviceID)
}

type series struct {
	Peripheral string     `json:"peripheral"`
	Name       string     `json:"name"`
	Last       float64    `json:"last"`
	At         *time.Time `json:"at"`
	Count      uint64     `json:"count"`
}

func (s *server) series(ctx context.Context, in *DeviceID) (*body[list[series]], error) {
	items, err := s.Store.Series(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID))
	return pageOf(items, "", func(i fleet.SeriesInfo) series {
		return series{i.Peripheral, i.Name, i.Last, when(i.At), i.Count}
	}), s.fault(ctx, err)
}

type points struct {
	Points [][2]float64 `json:"points" doc:"pairs of Unix milliseconds and value; thinned by mean when there are more than limit"`
}

func (s *server) points(ctx context.Context, in *struct {
	DeviceID
	Peripheral string    `query:"peripheral" maxLength:"64"`
	Name       string    `query:"name" required:"true" maxLength:"64"`
	From       time.Time `query:"from"`
	To         time.Time `query:"to"`
	Limit      int       `query:"limit" minimum:"0" maximum:"5000" default:"500"`
},
) (*body[points], error) {
	to := in.To
	if to.IsZero() {
		to = time.Now()
	}
	from := in.From
	if from.IsZero() {
		from = to.Add(-24 * time.Hour)
	}
	items, err := s.Store.Points(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID), in.Peripheral, in.Name, from, to, in.Limit)
	out := points{Points: make([][2]float64, 0, len(items))}
	for _, p := range items {
		out.Points = append(out.Points, [2]float64{float64(p.At.UnixMilli()), p.Value})
	}
	return &body[points]{out}, s.fault(ctx, err)
}
