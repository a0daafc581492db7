package store

import (
	"container/heap"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// anyKind is the kind of the facets of those entries whose kind came when there
// were maxFacets already: kinds of devices are what devices say.
const (
	anyKind   = "*"
	maxFacets = 4096
)

// facetKey names a facet.
type facetKey struct {
	tenant                  fleet.TenantID
	own                     bool
	kind, severity, outcome string
}

// facet returns the id of what ev has in common with many others.
func (w *writer) facet(ctx context.Context, ev fleet.AuditEvent) (int64, error) {
	k := facetKey{ev.Tenant, ev.Device == "", ev.Kind, ev.Severity, ev.Outcome}
	if id, ok := w.facets[k]; ok {
		return id, nil
	}
	id, err := w.facetID(ctx, k)
	if errors.Is(err, fleet.ErrNotFound) {
		var have int
		if err := w.row(ctx, `SELECT COUNT(*) FROM facet`).Scan(&have); err != nil {
			return 0, fmt.Errorf("facets: %w", err)
		}
		if have >= maxFacets {
			k.kind = anyKind
			id, err = w.facetID(ctx, k)
		}
	}
	if errors.Is(err, fleet.ErrNotFound) {
		err = w.row(ctx, `INSERT INTO facet (tenant, own, kind, severity, outcome) VALUES (?, ?, ?, ?, ?) RETURNING id`,
			k.tenant, k.own, k.kind, k.severity, k.outcome).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("facet: %w", err)
	}
	if k.kind != anyKind { // those are looked up each time: there can be no end of them
		w.facets[k] = id
	}
	return id, nil
}

func (w *writer) facetID(ctx context.Context, k facetKey) (id int64, err error) {
	err = found(w.row(ctx, `SELECT id FROM facet WHERE tenant = ? AND own = ? AND kind = ? AND severity = ? AND outcome = ?`,
		k.tenant, k.own, k.kind, k.severity, k.outcome).Scan(&id))
	return id, err
}

// stream is the row numbers of one facet in one lane, in order.
type stream struct {
	lane
	facet  int64
	ns     []int64 // read and not taken
	lo, hi int64   // what has not been read
	run    int     // how many are read next
	ended  bool
}

// merge is streams as one, a heap by what comes next.
type merge struct {
	r           *search
	newestFirst bool
	streams     []*stream
	ahead       []int64 // taken to see how thin it is
}

// Len implements heap.Interface.
func (m *merge) Len() int { return len(m.streams) }

// Less implements heap.Interface.
func (m *merge) Less(i, j int) bool {
	a, b := m.streams[i].ns[0], m.streams[j].ns[0]
	return a > b == m.newestFirst
}

// Swap implements heap.Interface.
func (m *merge) Swap(i, j int) { m.streams[i], m.streams[j] = m.streams[j], m.streams[i] }

// Push implements heap.Interface.
func (m *merge) Push(x any) { m.streams = append(m.streams, x.(*stream)) }

// Pop implements heap.Interface.
func (m *merge) Pop() any {
	last := m.streams[len(m.streams)-1]
	m.streams = m.streams[:len(m.streams)-1]
	return last
}

// open adds the streams of a lane that are not empty: one look into the index
// for each facet, in one statement.
func (m *merge) open(ctx context.Context, l lane) error {
	which, args := m.r.facets(l.own)
	if l.where == "" {
		var others bool
		if err := m.r.tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM facet f WHERE NOT (`+which+`))`, args...).Scan(&others); err != nil {
			return err
		}
		if !others { // every row there is
			s := &stream{lane: l, lo: m.r.lo, hi: m.r.hi, run: longRun}
			if err := m.read(ctx, s); err != nil || len(s.ns) == 0 {
				return err
			}
			m.streams = append(m.streams, s)
			return nil
		}
	}
	best := `MAX`
	if !m.newestFirst {
		best = `MIN`
	}
	args = append(append(l.args(), m.r.hi, m.r.lo), args...)
	rows, err := m.r.tx.QueryContext(ctx, `SELECT f.id, (SELECT `+best+`(a.n) FROM audit a WHERE `+l.cond()+`a.facet = f.id AND a.n < ? AND a.n >= ?) FROM facet f WHERE `+which, args...)
	all, err := list(rows, err, func(row scanner) (*stream, error) {
		s := &stream{lane: l, lo: m.r.lo, hi: m.r.hi, run: firstRun}
		var n sql.NullInt64
		err := row.Scan(&s.facet, &n)
		if n.Valid {
			s.took(m.newestFirst, n.Int64)
		}
		return s, err
	})
	for _, s := range all {
		if len(s.ns) > 0 {
			m.streams = append(m.streams, s)
		}
	}
	return err
}

func (l lane) cond() string {
	if l.where == "" {
		return ""
	}
	return l.where + ` AND `
}

func (l lane) args() []any {
	if l.where == "" {
		return nil
	}
	return []any{l.arg}
}

// took notes that n was read.
func (s *stream) took(newestFirst bool, n int64) {
	s.ns = append(s.ns, n)
	if newestFirst {
		s.hi = n
	} else {
		s.lo = n + 1
	}
}

// read reads on in a stream.
func (m *merge) read(ctx context.Context, s *stream) error {
	query, args := `SELECT a.n FROM audit a WHERE `+s.cond(), s.args()
	if s.facet != 0 {
		query, args = query+`a.facet = ? AND `, append(args, s.facet)
	}
	query += `a.n < ? AND a.n >= ? ORDER BY a.n`
	if m.newestFirst {
		query += ` DESC`
	}
	st, err := m.r.stmt(ctx, query+` LIMIT ?`) //nolint:sqlclosecheck // close does
	if err != nil {
		return err
	}
	rows, err := st.QueryContext(ctx, append(args, s.hi, s.lo, s.run)...)
	ns, err := list(rows, err, func(row scanner) (n int64, err error) { return n, row.Scan(&n) })
	for _, n := range ns {
		s.took(m.newestFirst, n)
	}
	s.ended, s.run = len(ns) < s.run, min(2*s.run, longRun)
	return err
}

// take takes up to n row numbers, in order.
func (m *merge) take(ctx context.Context, n int) ([]int64, error) {
	out := m.ahead[:min(n, len(m.ahead))]
	m.ahead = m.ahead[len(out):]
	out = slices.Clip(out)
	for len(out) < n && len(m.streams) > 0 {
		s := m.streams[0]
		out = append(out, s.ns[0])
		s.ns = s.ns[1:]
		if len(s.ns) == 0 && !s.ended {
			if err := m.read(ctx, s); err != nil {
				return nil, err
			}
		}
		if len(s.ns) == 0 {
			heap.Pop(m)
		} else {
			heap.Fix(m, 0)
		}
	}
	return out, nil
}

// more reports whether there is anything left. What is in the heap has been
// seen to be there.
func (m *merge) more() bool { return len(m.ahead) > 0 || len(m.streams) > 0 }

// thinner reports whether m, of which the first were taken, has fewer rows
// than o: it ends, or goes further for as many.
func (m *merge) thinner(o *merge) bool {
	if a, b := len(m.ahead), len(o.ahead); a < sounding || b < sounding {
		return a < b
	}
	a, b := m.ahead[sounding-1], o.ahead[sounding-1]
	return a < b == m.newestFirst && a != b
}
