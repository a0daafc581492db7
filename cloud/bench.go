package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
)

// PlannerStep returns a step of the rollout planner over so many devices, for
// whoever measures what one costs: the first, in which every device is assigned
// its wave, or one in the middle.
func PlannerStep(devices int, first bool) func() {
	step := rollout.Large(devices, first)
	return func() { step() }
}

// Trails is a store with made up trails, for whoever measures a search.
type Trails struct {
	*store.LargeTrails
	s *store.Store
}

// TrailQuery is what is asked of Trails, as the API asks it.
type TrailQuery struct {
	Who, What, Device, Site, Subject, Severity, Outcome string
	From, To                                            time.Time
}

// FillTrails makes a database in dir with so many rows in its trails. It tells
// what it does, and how many rows there are.
func FillTrails(ctx context.Context, dir string, rows int64, told func(what string, done int64)) error {
	return store.FillTrails(ctx, dir, store.NewLargeTrails(rows), told)
}

// FillPostgres is FillTrails in a PostgreSQL database; where is its address for
// an administrator.
func FillPostgres(ctx context.Context, where string, rows int64, told func(what string, done int64)) error {
	return store.FillPostgres(ctx, where, store.NewLargeTrails(rows), told)
}

// OpenTrails opens what FillTrails made, by a folder or an address.
func OpenTrails(ctx context.Context, dir string, rows int64) (*Trails, error) {
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	return &Trails{store.NewLargeTrails(rows), s}, err
}

// Search finds a page of a hundred behind a cursor, and says how many are on
// it and where it goes on.
func (t *Trails) Search(ctx context.Context, q TrailQuery, after string) (found int, next string, err error) {
	f, err := t.s.SearchTrails(ctx, "main", fleet.TrailQuery{
		Who: q.Who, What: q.What, Device: fleet.DeviceID(q.Device), Site: q.Site, Subject: q.Subject, Severity: q.Severity, Outcome: q.Outcome, From: q.From, To: q.To,
	}, fleet.Page{After: after, Limit: 100})
	return len(f.Items), f.Next, err
}

// Row reads one row by its number: the least that an entry of a page costs.
func (t *Trails) Row(ctx context.Context, n int64) error {
	e, err := t.s.Trails(ctx, n-1, 1)
	if err == nil && (len(e) != 1 || e[0].N != n) {
		err = fmt.Errorf("row %d is not there", n)
	}
	return err
}

// Close closes the database.
func (t *Trails) Close() error { return t.s.Close() }
