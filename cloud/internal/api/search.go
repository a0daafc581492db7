package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// trailEntry is an entry that a search found, of whatever trail.
type trailEntry struct {
	N        int64             `json:"n" doc:"grows in the order of storing, over all trails"`
	Device   string            `json:"device" doc:"whose trail it is in; empty: in the service's own"`
	Seq      uint64            `json:"seq" doc:"its number in that trail"`
	At       *time.Time        `json:"at" doc:"when it happened, by the clock of whoever recorded it"`
	StoredAt *time.Time        `json:"stored_at"`
	Kind     string            `json:"kind"`
	Severity string            `json:"severity" enum:"info,warn,alarm"`
	Actor    string            `json:"actor" doc:"who acted"`
	Subject  string            `json:"subject" doc:"what it was done to"`
	Outcome  string            `json:"outcome" enum:"success,failure,refused," doc:"empty: nothing was tried"`
	Site     string            `json:"site" doc:"of the device at that time"`
	Detail   map[string]string `json:"detail"`
	Hash     string            `json:"hash"`
	Prev     string            `json:"prev"`
}

func viewTrailEntry(e fleet.TrailEntry) trailEntry {
	return trailEntry{
		e.N, string(e.Device), e.Seq, when(e.At), when(e.StoredAt), e.Kind, e.Severity, e.Actor, e.Subject, e.Outcome, e.Site, e.Detail,
		hex.EncodeToString(e.Hash[:]), hex.EncodeToString(e.Prev[:]),
	}
}

type trailFound struct {
	Items   []trailEntry `json:"items"`
	Next    string       `json:"next" doc:"give it as after to read on; empty at the end. A page can be short, or empty, and not be the last"`
	Newest  string       `json:"newest" doc:"give it as after with order=asc to read what is stored later"`
	Reached *time.Time   `json:"reached" doc:"how far back this page has looked: when the last entry it saw was stored"`
}

type searchTrails struct {
	Paged
	Who      string    `query:"who" maxLength:"256" doc:"actor: an operator, a device, a room of the service"`
	What     string    `query:"what" maxLength:"64" doc:"kind, e.g. update.failed, or a class of kinds: update."`
	Device   string    `query:"device" maxLength:"64" doc:"its own entries, and those of the service about it"`
	Site     string    `query:"site" maxLength:"64" doc:"where the device was then"`
	Subject  string    `query:"subject" maxLength:"256" doc:"what it was done to: a device, a rollout, a peripheral, a token"`
	Severity string    `query:"severity" enum:"info,warn,alarm"`
	Outcome  string    `query:"outcome" enum:"success,failure,refused"`
	Trail    string    `query:"trail" enum:"service,devices" doc:"only the service's own trail, or only those of devices"`
	From     time.Time `query:"from" doc:"stored at this time or later"`
	To       time.Time `query:"to" doc:"stored before this time"`
	Clock    string    `query:"clock" enum:"stored,event" default:"stored" doc:"event: from and to are about when it happened. A till that was offline tells late, so this is quick with a device or a site only"`
	Order    string    `query:"order" enum:"asc,desc" default:"desc" doc:"of storing"`
}

func (s *server) search() {
	huma.Register(s.api, huma.Operation{
		OperationID: "search-audit", Method: http.MethodGet, Path: "/v1/audit/search", Summary: "Search all audit trails, newest first", Metadata: needs(fleet.Viewer),
		Description: "Any filters together. A cursor is good for the same filters only, and whatever is stored meanwhile.",
	}, func(ctx context.Context, in *searchTrails) (*body[trailFound], error) {
		f, err := s.Store.SearchTrails(ctx, who(ctx).Tenant, fleet.TrailQuery{
			Who: in.Who, What: in.What, Device: fleet.DeviceID(in.Device), Site: in.Site, Subject: in.Subject, Severity: in.Severity, Outcome: in.Outcome, Trail: in.Trail,
			From: in.From, To: in.To, Happened: in.Clock == "event", OldestFirst: in.Order == "asc",
		}, in.page())
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		out := trailFound{Items: make([]trailEntry, 0, len(f.Items)), Next: f.Next, Newest: f.Newest, Reached: when(f.Reached)}
		for _, e := range f.Items {
			out.Items = append(out.Items, viewTrailEntry(e))
		}
		return &body[trailFound]{out}, nil
	})
}
