package simulator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/simulator/postgres"
)

// auditRows is what is measured where nobody asks for more. The promise is
// about a hundred million: tillward-sim bench --only audit-search --rows 100000000
const auditRows = 200_000

// auditLimit is what a page of a hundred may take, in milliseconds.
const auditLimit = 300

// shelf is where the rows lie.
type shelf struct {
	name  string
	fill  func(ctx context.Context, rows int64, told func(string, int64)) error
	open  func(ctx context.Context, rows int64) (*cloud.Trails, error)
	chill func(ctx context.Context) error // nothing of it is in memory any more
}

func benchAudit(ctx context.Context, o BenchOptions) ([]Figure, error) {
	rows := o.Rows
	if rows == 0 {
		rows = auditRows
	}
	dir := o.Data
	if dir == "" {
		dir = filepath.Join(o.Dir, "audit")
	}
	var out []Figure
	if o.Store != "postgres" {
		figures, err := o.measureAudit(ctx, onSQLite(dir), rows)
		if err != nil {
			return nil, err
		}
		out = figures
	}
	if o.Store != "sqlite" {
		figures, err := o.auditOnPostgres(ctx, filepath.Join(dir, "pg"), rows)
		if errors.Is(err, postgres.ErrMissing) && o.Store == "" {
			fmt.Fprintln(o.Say, err)
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, figures...)
	}
	return out, nil
}

// once fills what has no file that says it is full.
func once(dir string, fill func() error) error {
	if _, err := os.Stat(filepath.Join(dir, "filled")); err == nil {
		return nil
	}
	if err := fill(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "filled"), nil, 0o600)
}

func onSQLite(dir string) shelf {
	return shelf{
		"sqlite",
		func(ctx context.Context, rows int64, told func(string, int64)) error {
			return once(dir, func() error { return cloud.FillTrails(ctx, dir, rows, told) })
		},
		func(ctx context.Context, rows int64) (*cloud.Trails, error) { return cloud.OpenTrails(ctx, dir, rows) },
		func(context.Context) error { return chill(filepath.Join(dir, "tillward.db")) },
	}
}

// auditOnPostgres measures on a server of its own. It syncs nothing: nothing is
// written while it is measured.
func (o BenchOptions) auditOnPostgres(ctx context.Context, dir string, rows int64) ([]Figure, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // the server is another user
		return nil, err
	}
	c, err := postgres.Start(ctx, filepath.Join(dir, "c"), false, "shared_buffers=512MB", "wal_level=minimal", "max_wal_senders=0", "max_wal_size=4GB", "autovacuum=off")
	if err != nil {
		return nil, err
	}
	defer c.Stop()
	return o.measureAudit(ctx, shelf{
		"postgres",
		func(ctx context.Context, rows int64, told func(string, int64)) error {
			return once(dir, func() error { return cloud.FillPostgres(ctx, c.URL("postgres", "postgres"), rows, told) })
		},
		func(ctx context.Context, rows int64) (*cloud.Trails, error) {
			return cloud.OpenTrails(ctx, c.URL("tillward_service", "postgres"), rows)
		},
		func(ctx context.Context) error {
			c.Stop()
			err := filepath.WalkDir(filepath.Join(dir, "c", "data", "base"), func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				return chill(path)
			})
			return errors.Join(err, c.Start(ctx))
		},
	}, rows)
}

// chill has the system forget what it has read of a file.
func chill(path string) error {
	f, err := os.Open(path) // #nosec G304 -- ours
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // #nosec G115 -- a descriptor
}

// asked is a kind of search, and an instance of it.
type asked struct {
	name string
	one  func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery
}

var auditSearches = []asked{
	{"anything", func(*cloud.Trails, *rand.Rand) cloud.TrailQuery { return cloud.TrailQuery{} }},
	{"device", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Device: t.Device(r.IntN(150_000))}
	}},
	{"who", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Who: t.Operator(r.IntN(50))}
	}},
	{"kind_frequent", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery { return cloud.TrailQuery{What: t.Kind(r.IntN(5))} }},
	{"kind_rare", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{What: t.Kind(125 + r.IntN(15))}
	}},
	{"class", func(_ *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{What: []string{"update.", "command.", "access.", "attest."}[r.IntN(4)]}
	}},
	{"site", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Site: t.Site(r.IntN(3000))}
	}},
	{"subject_rollout", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Subject: t.Rollout(r.IntN(2000))}
	}},
	{"subject_frequent", func(*cloud.Trails, *rand.Rand) cloud.TrailQuery { return cloud.TrailQuery{Subject: "receipt"} }},
	{"severity_alarm", func(*cloud.Trails, *rand.Rand) cloud.TrailQuery { return cloud.TrailQuery{Severity: "alarm"} }},
	{"severity_info", func(*cloud.Trails, *rand.Rand) cloud.TrailQuery { return cloud.TrailQuery{Severity: "info"} }},
	{"outcome_refused", func(*cloud.Trails, *rand.Rand) cloud.TrailQuery { return cloud.TrailQuery{Outcome: "refused"} }},
	{"an_hour", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery { return hour(t, r, cloud.TrailQuery{}) }},
	{"an_hour_kind_rare", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return hour(t, r, cloud.TrailQuery{What: t.Kind(100 + r.IntN(20))})
	}},
	{"a_day_site", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		q := hour(t, r, cloud.TrailQuery{Site: t.Site(r.IntN(3000))})
		q.To = q.From.Add(24 * time.Hour)
		return q
	}},
	{"site_kind", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Site: t.Site(r.IntN(3000)), What: t.Kind(r.IntN(100))}
	}},
	{"site_alarm", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Site: t.Site(r.IntN(3000)), Severity: "alarm"}
	}},
	{"device_class_refused", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Device: t.Device(r.IntN(150_000)), What: "update.", Outcome: "refused"}
	}},
	{"who_failure", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Who: t.Operator(r.IntN(50)), Outcome: "failure"}
	}},
	{"who_site", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Who: t.Operator(r.IntN(50)), Site: t.Site(r.IntN(3000))}
	}},
	{"who_device", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Who: t.Operator(r.IntN(50)), Device: t.Device(r.IntN(1000))}
	}},
	{"subject_frequent_site", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Subject: "receipt", Site: t.Site(r.IntN(3000))}
	}},
	{"kind_rare_site", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{What: t.Kind(120 + r.IntN(20)), Site: t.Site(r.IntN(3000))}
	}},
	{"everything_at_once", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		d := r.IntN(150_000)
		return cloud.TrailQuery{
			Who: t.Operator(r.IntN(10)), What: t.Kind(3), Device: t.Device(d), Site: t.Site(d), Severity: "info", Outcome: "success",
			From: t.Begin, To: t.Begin.AddDate(0, 12, 0),
		}
	}},
	{"nothing_such", func(t *cloud.Trails, r *rand.Rand) cloud.TrailQuery {
		return cloud.TrailQuery{Site: t.Site(r.IntN(3000)), Who: "nobody"}
	}},
}

// hour is an hour somewhere in the trails.
func hour(t *cloud.Trails, r *rand.Rand, q cloud.TrailQuery) cloud.TrailQuery {
	q.From = t.Begin.Add(time.Duration(r.IntN(389*24)) * time.Hour)
	q.To = q.From.Add(time.Hour)
	return q
}

const (
	auditCold  = 5 // searches of a kind, each with nothing in memory; one where there are few rows
	auditWarm  = 8 // searches of a kind whose pages are read on
	auditPages = 4
)

func (o BenchOptions) measureAudit(ctx context.Context, sh shelf, rows int64) ([]Figure, error) {
	began := time.Now()
	last := time.Time{}
	err := sh.fill(ctx, rows, func(what string, done int64) {
		if now := time.Now(); now.Sub(last) > 10*time.Second || what != "rows" {
			last = now
			fmt.Fprintf(o.Say, "%s: %s, %d of %d, %s\n", sh.name, what, done, rows, time.Since(began).Round(time.Second))
		}
	})
	if err != nil {
		return nil, err
	}
	fill := figure("audit_fill_"+sh.name+"_seconds", "s", []float64{time.Since(began).Seconds()})
	out := []Figure{fill}
	r := rand.New(rand.NewPCG(6, 4)) // #nosec G404 -- a bench
	var cold, warm []float64
	for range colds(rows) {
		ms, err := o.hundred(ctx, sh, rows, r)
		if err != nil {
			return nil, err
		}
		cold, warm = append(cold, ms[0]), append(warm, ms[1])
	}
	limits := [2]Figure{figure(sh.name+"_hundred_rows_by_number_cold_ms", "ms", cold), figure(sh.name+"_hundred_rows_by_number_warm_ms", "ms", warm)}
	for _, a := range auditSearches {
		fmt.Fprintf(o.Say, "%s: %s\n", sh.name, a.name)
		cold, warm, empty, err := a.measure(ctx, sh, rows, r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.name, err)
		}
		for i, runs := range [2][]float64{cold, warm} {
			f := figure("audit_search_"+sh.name+"_"+a.name+[2]string{"_cold", "_warm"}[i]+"_ms", "ms", runs)
			f.Limit, f.Beside, f.Rows, f.Short = auditLimit, &limits[i], rows, empty
			out = append(out, f)
		}
	}
	return out, nil
}

// hundred is what the machine needs at least: a hundred rows anywhere, by
// number, with nothing in memory and again.
func (o BenchOptions) hundred(ctx context.Context, sh shelf, rows int64, r *rand.Rand) (ms [2]float64, err error) {
	if err := sh.chill(ctx); err != nil {
		return ms, err
	}
	t, err := sh.open(ctx, rows)
	if err != nil {
		return ms, err
	}
	defer t.Close()
	ns := make([]int64, 100)
	for i := range ns {
		ns[i] = 1 + r.Int64N(rows)
	}
	for i := range ms {
		began := time.Now()
		for _, n := range ns {
			if err := t.Row(ctx, n); err != nil {
				return ms, err
			}
		}
		ms[i] = since(began)
	}
	return ms, nil
}

func colds(rows int64) int {
	if rows <= auditRows {
		return 1
	}
	return auditCold
}

func since(began time.Time) float64 { return float64(time.Since(began).Microseconds()) / 1000 }

// measure searches with nothing in memory, and then reads on from page to page.
// short counts pages that ended early.
func (a asked) measure(ctx context.Context, sh shelf, rows int64, r *rand.Rand) (cold, warm []float64, short int, err error) {
	for range colds(rows) {
		if err := sh.chill(ctx); err != nil {
			return nil, nil, 0, err
		}
		t, err := sh.open(ctx, rows)
		if err != nil {
			return nil, nil, 0, err
		}
		q := a.one(t, r)
		began := time.Now()
		n, next, err := t.Search(ctx, q, "")
		cold = append(cold, since(began))
		if err != nil {
			_ = t.Close()
			return nil, nil, 0, err
		}
		if n < 100 && next != "" {
			short++
		}
		if err := t.Close(); err != nil {
			return nil, nil, 0, err
		}
	}
	t, err := sh.open(ctx, rows)
	if err != nil {
		return nil, nil, 0, err
	}
	defer t.Close()
	for range auditWarm {
		q, after := a.one(t, r), ""
		if _, _, err := t.Search(ctx, q, ""); err != nil { // into memory
			return nil, nil, 0, err
		}
		for range auditPages {
			began := time.Now()
			n, next, err := t.Search(ctx, q, after)
			if err != nil {
				return nil, nil, 0, err
			}
			warm = append(warm, since(began))
			if n < 100 && next != "" {
				short++
			}
			if after = next; next == "" {
				break
			}
		}
	}
	return cold, warm, short, nil
}
