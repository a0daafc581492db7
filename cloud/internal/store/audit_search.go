package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// A search walks lists of row numbers, one for each facet that it asks for:
// they come out of an index in order and are merged, so a page costs what is
// on it, whatever is in the table. Where several columns are asked for, a
// number has to be in the list of each: one list after the other skips to where
// the others are. After maxReads looks into an index, or maxLooked rows, the
// page ends early and says where to go on.
const (
	maxLooked = 1500
	maxReads  = 500
	firstRun  = 8 // numbers that are read of a list at a time, at first
	longRun   = 128

	// stored_at grows with n but for what waited in a queue.
	untidy = 2 * time.Minute
	// Of a clock that runs ahead by more, entries are found by when they were stored.
	ahead = 24 * time.Hour
)

// SearchTrails finds entries of all trails that tenant t may see, newest first
// (or on from a cursor in the order of storing), in pages whose cursors stay
// good whatever is stored meanwhile. A page can be short and not be the last.
func (s *Store) SearchTrails(ctx context.Context, t fleet.TenantID, q fleet.TrailQuery, p fleet.Page) (fleet.TrailFound, error) {
	f, err := s.searchTrails(ctx, t, q, p)
	if err != nil {
		return fleet.TrailFound{}, fmt.Errorf("search the trails: %w", err)
	}
	return f, nil
}

func (s *Store) searchTrails(ctx context.Context, t fleet.TenantID, q fleet.TrailQuery, p fleet.Page) (out fleet.TrailFound, err error) {
	if q.What = strings.TrimSuffix(q.What, "*"); q.What != "" && !strings.Contains(q.What, ".") {
		q.What += "."
	}
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}) // of one moment
	if err != nil {
		return out, err
	}
	defer func() { _ = tx.Rollback() }()
	r := &search{tx: tx, stmts: map[string]*sql.Stmt{}, t: t, q: q}
	defer r.close()
	var first, last int64
	if err := tx.QueryRowContext(ctx, `SELECT COALESCE((SELECT MIN(n) FROM audit), 0), COALESCE((SELECT MAX(n) FROM audit), 0)`).Scan(&first, &last); err != nil {
		return out, err
	}
	r.hi = last + 1
	out.Newest, out.Items = trailCursor(t, q, last), []fleet.TrailEntry{}
	if err := r.times(ctx, first, last); err != nil {
		return out, err
	}
	if p.After != "" {
		n, err := parseTrailCursor(t, q, p.After)
		if err != nil {
			return out, err
		}
		if q.OldestFirst {
			r.lo = max(r.lo, n+1)
		} else {
			r.hi = min(r.hi, n)
		}
	}
	if r.lo >= r.hi {
		return out, nil
	}
	m := &merge{newestFirst: !q.OldestFirst, r: r}
	if err := m.open(ctx, r.columns()); err != nil {
		return out, err
	}
	return out, r.fill(ctx, m, p.Bounded(), &out)
}

// fill reads what m names, in order, and keeps what was asked for.
func (r *search) fill(ctx context.Context, m *merge, limit int, out *fleet.TrailFound) error {
	for looked := 0; len(out.Items) < limit && looked < maxLooked; {
		ns, err := m.take(ctx, min(limit-len(out.Items), maxLooked-looked))
		if err != nil {
			return err
		}
		if len(ns) == 0 {
			break
		}
		rows, err := r.rows(ctx, ns)
		if err != nil {
			return err
		}
		for _, e := range rows {
			if r.wanted(e) {
				out.Items = append(out.Items, e)
			}
			out.Reached = e.StoredAt
		}
		looked += len(ns)
	}
	if _, err := m.first(ctx); err != nil || len(m.nodes) == 0 {
		return err
	}
	// A cursor is behind a row, and nothing before this one is left.
	at := m.nodes[0].bound
	if r.q.OldestFirst {
		out.Next = trailCursor(r.t, r.q, at-1)
	} else {
		out.Next = trailCursor(r.t, r.q, at+1)
	}
	rows, err := r.rows(ctx, []int64{at})
	if err == nil && len(rows) == 1 {
		out.Reached = rows[0].StoredAt
	}
	return err
}

// search is one search while it runs.
type search struct {
	tx     *sql.Tx
	stmts  map[string]*sql.Stmt
	t      fleet.TenantID
	q      fleet.TrailQuery
	lo, hi int64 // rows that may be it: lo <= n < hi
}

func (r *search) close() {
	for _, st := range r.stmts {
		_ = st.Close()
	}
}

// stmt prepares a query once.
func (r *search) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if st := r.stmts[query]; st != nil {
		return st, nil
	}
	st, err := r.tx.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	r.stmts[query] = st
	return st, nil
}

// times turns the times into row numbers.
func (r *search) times(ctx context.Context, first, last int64) (err error) {
	slack := untidy
	if r.q.Happened {
		slack = ahead
	}
	if !r.q.From.IsZero() {
		if r.lo, err = r.storedSince(ctx, ms(r.q.From.Add(-slack)), first, last+1); err != nil {
			return err
		}
	}
	if !r.q.To.IsZero() && !r.q.Happened { // what happened before can be stored long after
		r.hi, err = r.storedSince(ctx, ms(r.q.To.Add(slack)), first, last+1)
	}
	return err
}

// storedSince finds the first row of [lo, hi) that was stored at t or later.
func (r *search) storedSince(ctx context.Context, t, lo, hi int64) (int64, error) {
	st, err := r.stmt(ctx, `SELECT n, stored_at FROM audit WHERE n >= ? ORDER BY n LIMIT 1`) //nolint:sqlclosecheck // close does
	if err != nil {
		return 0, err
	}
	for lo < hi {
		mid := lo + (hi-lo)/2
		var n, at int64
		err := st.QueryRowContext(ctx, mid).Scan(&n, &at)
		switch {
		case errors.Is(err, sql.ErrNoRows) || err == nil && n >= hi: // deleted
			hi = mid
		case err != nil:
			return 0, err
		case at >= t:
			hi = mid
		default:
			lo = n + 1
		}
	}
	return hi, nil
}

// lane is a column of an index with the value that is asked for. own says
// whose trails: 0 devices', 1 the service's, -1 any.
type lane struct {
	where string
	arg   any
	own   int
}

// columns lists what is asked for of rows; each column is lanes that are merged.
func (r *search) columns() (out [][]lane) {
	if q := r.q; q.Device != "" {
		out = append(out, []lane{{`a.device = ? AND a.device <> ''`, q.Device, 0}, {`a.subject = ? AND a.subject <> ''`, q.Device, 1}})
	}
	if q := r.q; q.Who != "" {
		out = append(out, []lane{{`a.actor = ? AND a.actor <> ''`, q.Who, -1}, {`a.device = ? AND a.device <> ''`, q.Who, 0}})
	}
	if q := r.q; q.Site != "" {
		out = append(out, []lane{{`a.site = ? AND a.site <> ''`, q.Site, -1}})
	}
	if q := r.q; q.Subject != "" {
		out = append(out, []lane{{`a.subject = ? AND a.subject <> ''`, q.Subject, -1}})
	}
	if len(out) == 0 {
		out = append(out, []lane{{own: -1}})
	}
	return out
}

// facets says which facets are asked for.
func (r *search) facets(own int) (where string, args []any) {
	q := r.q
	where, args = `f.tenant IN (?, '')`, []any{r.t}
	and := func(text string, values ...any) { where, args = where+` AND `+text, append(args, values...) }
	switch q.Trail {
	case fleet.TrailService:
		and(`f.own = 1`)
	case fleet.TrailDevices:
		and(`f.own = 0`)
	}
	if own >= 0 {
		and(`f.own = ?`, own)
	}
	if class, ok := strings.CutSuffix(q.What, "."); ok {
		and(`(f.kind >= ? AND f.kind < ? OR f.kind = ?)`, class+".", class+"/", anyKind) // the letter behind a dot
	} else if q.What != "" {
		and(`f.kind IN (?, ?)`, q.What, anyKind)
	}
	if q.Severity != "" {
		and(`f.severity = ?`, q.Severity)
	}
	if q.Outcome != "" {
		and(`f.outcome = ?`, q.Outcome)
	}
	return where, args
}

// rows reads entries by number, in the order of ns.
func (r *search) rows(ctx context.Context, ns []int64) ([]fleet.TrailEntry, error) {
	args := make([]any, len(ns))
	for i, n := range ns {
		args[i] = n
	}
	rows, err := r.tx.QueryContext(ctx, `SELECT n, `+auditColumns+` FROM audit WHERE n IN (?`+strings.Repeat(`, ?`, len(ns)-1)+`)`, args...) //nolint:gosec // question marks
	out, err := list(rows, err, scanTrail)
	slices.SortFunc(out, func(a, b fleet.TrailEntry) int {
		if r.q.OldestFirst {
			return cmp.Compare(a.N, b.N)
		}
		return cmp.Compare(b.N, a.N)
	})
	return out, err
}

// wanted checks a whole entry: what the lists leave open, and once more what
// they promise, whose entry it is above all.
func (r *search) wanted(e fleet.TrailEntry) bool {
	q, when := r.q, e.StoredAt
	if q.Happened {
		when = e.At
	}
	switch class, isClass := strings.CutSuffix(q.What, "."); {
	case e.Tenant != r.t && e.Tenant != "",
		q.Who != "" && e.Actor != q.Who,
		q.Device != "" && e.Device != q.Device && (e.Device != "" || e.Subject != string(q.Device)),
		q.Site != "" && e.Site != q.Site,
		q.Subject != "" && e.Subject != q.Subject,
		q.Severity != "" && e.Severity != q.Severity,
		q.Outcome != "" && e.Outcome != q.Outcome,
		isClass && !strings.HasPrefix(e.Kind, class+"."),
		q.What != "" && !isClass && e.Kind != q.What,
		q.Trail == fleet.TrailService && e.Device != "", q.Trail == fleet.TrailDevices && e.Device == "",
		!q.From.IsZero() && when.Before(q.From), !q.To.IsZero() && !when.Before(q.To):
		return false
	}
	return true
}

// trailCursor is a place in a search: behind row n. It is of this search alone.
func trailCursor(t fleet.TenantID, q fleet.TrailQuery, n int64) string {
	b := binary.BigEndian.AppendUint32([]byte{1}, searchMark(t, q))
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(b, uint64(n))) // #nosec G115 -- row numbers grow from 1
}

func parseTrailCursor(t fleet.TenantID, q fleet.TrailQuery, text string) (int64, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != 13 || b[0] != 1 || b[5] > 127 {
		return 0, fmt.Errorf("after %.40q is no cursor of a search; give the next or the newest of an answer: %w", text, fleet.ErrInvalid)
	}
	if binary.BigEndian.Uint32(b[1:]) != searchMark(t, q) {
		return 0, fmt.Errorf("the cursor %.40q is of another search; ask for the same things as before, or begin without it: %w", text, fleet.ErrInvalid)
	}
	return int64(binary.BigEndian.Uint64(b[5:])), nil // #nosec G115 -- the top bit is checked above
}

// searchMark tells searches apart. What follows a search is read with its
// cursor in the other direction, so the order is no part of it; nor are the
// times, since "the last hour" moves on.
func searchMark(t fleet.TenantID, q fleet.TrailQuery) uint32 {
	h := fnv.New32a()
	for _, s := range []string{string(t), q.Who, q.What, string(q.Device), q.Site, q.Subject, q.Severity, q.Outcome, q.Trail} {
		_, _ = h.Write(append([]byte(s), 0)) // a hash takes everything
	}
	return h.Sum32()
}
