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

// shownSpans is how many states of the past are shown.
const shownSpans = 50

// Peripheral is a peripheral as the API shows it with its device. It is exported
// for the reason that Paged is.
type Peripheral struct {
	ID        string            `json:"id"`
	Category  string            `json:"category" doc:"UnifiedPOS control, e.g. POSPrinter; M_... where it has none"`
	Driver    string            `json:"driver"`
	Maker     string            `json:"maker"`
	Model     string            `json:"model"`
	Serial    string            `json:"serial"`
	Firmware  string            `json:"firmware"`
	Simulated bool              `json:"simulated" doc:"no hardware behind it"`
	Power     string            `json:"power" doc:"UnifiedPOS PowerState; with last, as it was then"`
	Health    string            `json:"health" enum:"OK,Attention,Fault,Offline,Unknown" doc:"Unknown is no kind of OK"`
	Reason    string            `json:"reason" doc:"code; empty when OK"`
	Advice    string            `json:"advice" doc:"what a person does about it"`
	Since     *time.Time        `json:"since" doc:"it has this health for this reason"`
	Sensors   map[string]string `json:"sensors" doc:"Yes, No or Unknown; with last, as they were then"`
	Claim     string            `json:"claim" doc:"observe: the till owns it; share; own: the agent holds it"`
	Key       string            `json:"key" doc:"where it is, e.g. usb:04b8:0e15:SERIAL"`
	Interface string            `json:"interface"`
	Caps      []string          `json:"caps" doc:"UnifiedPOS capabilities that it has"`
	RollLines uint32            `json:"roll_lines" doc:"line feeds of a full roll; 0: not known"`
	Last      *light            `json:"last" doc:"while its till is offline, and of what is gone: how it was then"`
	FirstAt   *time.Time        `json:"first_at"`
	SeenAt    *time.Time        `json:"seen_at"`
	GoneAt    *time.Time        `json:"gone_at" doc:"its till does not have it any more"`
	Paper     *paper            `json:"paper" doc:"when the roll will be at its end; null: not known"`
	Reads     *reads            `json:"reads" doc:"how well a reader reads; null: it is none, or has not read"`
}

type light struct {
	Health string     `json:"health"`
	Reason string     `json:"reason"`
	Since  *time.Time `json:"since"`
}

type paper struct {
	RunOutAt     *time.Time `json:"run_out_at"`
	Earliest     *time.Time `json:"earliest"`
	Latest       *time.Time `json:"latest"`
	Confidence   float64    `json:"confidence" doc:"0 to 1"`
	LinesLeft    float64    `json:"lines_left"`
	LinesPerHour float64    `json:"lines_per_hour" doc:"mean until then, hours in which nothing is printed included"`
	Basis        string     `json:"basis" enum:"configured,learned,near_end" doc:"where the length of the roll is from"`
}

type reads struct {
	Rate      float64 `json:"rate" doc:"failed of all, 0 to 1"`
	FleetRate float64 `json:"fleet_rate" doc:"of all others of the same model"`
	Reads     uint64  `json:"reads"`
	Worse     bool    `json:"worse" doc:"than the others, and not by chance"`
}

// ListedPeripheral is one among those of many devices.
type ListedPeripheral struct {
	Peripheral
	Device      string `json:"device"`
	DeviceLabel string `json:"device_label" doc:"of the device, or its serial number while nobody has named it"`
	Site        string `json:"site"`
}

type duration struct {
	Health  string  `json:"health"`
	Reason  string  `json:"reason"`
	Seconds float64 `json:"seconds"`
	Times   int     `json:"times"`
}

type held struct {
	Health string     `json:"health"`
	Reason string     `json:"reason"`
	From   *time.Time `json:"from"`
	To     *time.Time `json:"to" doc:"null: until now"`
}

type healthCheck struct {
	At    *time.Time        `json:"at"`
	Level string            `json:"level" enum:"internal,external,interactive"`
	OK    bool              `json:"ok"`
	Steps []fleet.CheckStep `json:"steps"`
}

type peripheralView struct {
	ListedPeripheral
	Window    string        `json:"window"`
	Durations []duration    `json:"durations" doc:"in the window, longest first"`
	Spans     []held        `json:"spans" doc:"the newest states, newest first"`
	Lost      []held        `json:"lost" doc:"times in the window in which the till was offline, newest first"`
	Checks    []healthCheck `json:"checks" doc:"the newest health checks, newest first"`
}

func viewPeripheral(p fleet.Peripheral) Peripheral {
	v := Peripheral{
		ID: p.ID, Category: p.Category, Driver: p.Driver, Maker: p.Maker, Model: p.Model, Serial: p.Serial, Firmware: p.Firmware, Simulated: p.Simulated,
		Power: p.Power, Health: p.Health, Reason: p.Reason, Advice: fleet.Advice(p.Light), Since: when(p.Since), Sensors: p.Sensors,
		Claim: p.Claim, Key: p.Key, Interface: p.Interface, Caps: p.Caps, RollLines: p.RollLines,
		FirstAt: when(p.FirstAt), SeenAt: when(p.SeenAt), GoneAt: when(p.GoneAt),
	}
	if p.Last.Health != "" {
		v.Last = &light{p.Last.Health, p.Last.Reason, when(p.Last.Since)}
	}
	if p.Paper != nil {
		v.Paper = &paper{
			when(p.Paper.RunOutAt), when(p.Paper.Earliest), when(p.Paper.Latest), p.Paper.Confidence, p.Paper.LinesLeft, p.Paper.LinesPerHour, p.Paper.Basis,
		}
	}
	if p.Reads != nil {
		v.Reads = &reads{p.Reads.Rate, p.Reads.FleetRate, p.Reads.Reads, p.Reads.Worse}
	}
	return v
}

func viewListed(p fleet.Peripheral) ListedPeripheral {
	return ListedPeripheral{viewPeripheral(p), string(p.Device), p.Label, p.Site}
}

// windows are the times over which durations are summed up.
var windows = map[string]time.Duration{"24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour, "30d": 30 * 24 * time.Hour}

// PeripheralID is the peripheral in a path.
type PeripheralID struct {
	DeviceID
	Peripheral string `path:"peripheral" maxLength:"64"`
}

func (s *server) peripherals() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-peripherals", Method: http.MethodGet, Path: "/v1/peripherals", Summary: "List peripherals of all devices", Metadata: needs(fleet.Viewer),
		Description: "By device and id. Those of a device that is offline are Unknown, with how they were beside.",
	}, func(ctx context.Context, in *struct {
		Paged
		Health       string    `query:"health" enum:"OK,Attention,Fault,Offline,Unknown"`
		Category     string    `query:"category" maxLength:"64" doc:"e.g. POSPrinter"`
		Reason       string    `query:"reason" maxLength:"64" doc:"e.g. REC_EMPTY"`
		Site         string    `query:"site" maxLength:"64"`
		Query        string    `query:"q" maxLength:"64" doc:"part of id, model, maker or serial, or of the device's id, label or serial"`
		RunOutBefore time.Time `query:"run_out_before" doc:"printers whose roll is predicted to end before"`
	},
	) (*body[list[ListedPeripheral]], error) {
		f := fleet.PeripheralFilter{Health: in.Health, Category: in.Category, Reason: in.Reason, Site: in.Site, Query: in.Query, RunOutBefore: in.RunOutBefore}
		items, next, err := s.Store.Peripherals(ctx, who(ctx).Tenant, f, in.page())
		return pageOf(items, next, viewListed), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-peripheral", Method: http.MethodGet, Path: "/v1/devices/{id}/peripherals/{peripheral}", Summary: "Show a peripheral and its past", Metadata: needs(fleet.Viewer),
	}, s.peripheral)
	huma.Register(s.api, huma.Operation{
		OperationID: "get-peripheral-statistics", Method: http.MethodGet, Path: "/v1/devices/{id}/peripherals/{peripheral}/statistics.xml",
		Summary: "What a peripheral counts, as UnifiedPOS statistics", Metadata: needs(fleet.Viewer),
		Description: "XML as of retrieveStatistics [UnifiedPOS 1.14.1]. A statistic that the peripheral does not have is an empty value.",
		Responses: map[string]*huma.Response{"200": {
			Description: "UPOSStat", Content: map[string]*huma.MediaType{"application/xml": {Schema: &huma.Schema{Type: huma.TypeString}}},
		}},
	}, s.statistics)
}

func (s *server) peripheral(ctx context.Context, in *struct {
	PeripheralID
	Window string `query:"window" enum:"24h,7d,30d" default:"24h"`
},
) (*body[peripheralView], error) {
	now := time.Now()
	from := now.Add(-windows[in.Window])
	h, err := s.Store.History(ctx, who(ctx).Tenant, fleet.DeviceID(in.ID), in.Peripheral, time.Time{})
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	v := peripheralView{
		ListedPeripheral: viewListed(h.Peripheral), Window: in.Window,
		Durations: []duration{}, Spans: []held{}, Lost: []held{}, Checks: []healthCheck{},
	}
	for _, d := range fleet.Durations(h.Spans, h.Lost, from, now) {
		v.Durations = append(v.Durations, duration{d.Health, d.Reason, d.Time.Seconds(), d.Times})
	}
	shown := func(sp fleet.Span) held { return held{sp.Health, sp.Reason, when(sp.From), when(sp.To)} }
	for _, sp := range h.Spans[:min(len(h.Spans), shownSpans)] {
		v.Spans = append(v.Spans, shown(sp))
	}
	for _, sp := range h.Lost {
		if sp.To.IsZero() || sp.To.After(from) {
			v.Lost = append(v.Lost, shown(sp))
		}
	}
	for _, c := range h.Checks {
		v.Checks = append(v.Checks, healthCheck{when(c.At), c.Level, c.OK, slices.Clip(append([]fleet.CheckStep{}, c.Steps...))})
	}
	return &body[peripheralView]{v}, nil
}

// document is an answer that is no JSON.
type document struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (s *server) statistics(ctx context.Context, in *PeripheralID) (*document, error) {
	t, device := who(ctx).Tenant, fleet.DeviceID(in.ID)
	h, err := s.Store.History(ctx, t, device, in.Peripheral, time.Now())
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	series, err := s.Store.PeripheralSeries(ctx, t, device, in.Peripheral)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	text, err := statisticsXML(h.Peripheral, series)
	if err != nil {
		return nil, s.fault(ctx, fmt.Errorf("statistics of %s: %w", in.Peripheral, err))
	}
	return &document{"application/xml; charset=utf-8", text}, nil
}
