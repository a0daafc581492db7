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
	switch k.outcome {
	case "", fleet.Success, fleet.Failure, fleet.Refused:
	default: // what devices say, too: nobody can ask for it
		k.outcome = anyKind
	}
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
	ns     []int64 // read and not passed
	lo, hi int64   // what has not been read
	run    int     // how many are read next
	ended  bool
}

// node is what one facet holds of all that is asked for: the numbers that are
// in each of its columns, of which each is one or two streams.
type node struct {
	columns [][]*stream
	bound   int64 // nothing of it comes before
	sure    bool  // bound is in every column
}

// merge is nodes as one, a heap by what comes next.
type merge struct {
	r           *search
	newestFirst bool
	nodes       []*node
	reads       int
}

// Len implements heap.Interface.
func (m *merge) Len() int { return len(m.nodes) }

// Less implements heap.Interface.
func (m *merge) Less(i, j int) bool { return m.before(m.nodes[i].bound, m.nodes[j].bound) }

// Swap implements heap.Interface.
func (m *merge) Swap(i, j int) { m.nodes[i], m.nodes[j] = m.nodes[j], m.nodes[i] }

// Push implements heap.Interface.
func (m *merge) Push(x any) { m.nodes = append(m.nodes, x.(*node)) }

// Pop implements heap.Interface.
func (m *merge) Pop() any {
	last := m.nodes[len(m.nodes)-1]
	m.nodes = m.nodes[:len(m.nodes)-1]
	return last
}

// before reports whether row a is read before row b.
func (m *merge) before(a, b int64) bool { return a != b && a > b == m.newestFirst }

// behind is the first row number that can be read after n.
func (m *merge) behind(n int64) int64 {
	if m.newestFirst {
		return n - 1
	}
	return n + 1
}

// open makes a node of each facet that has something in every column.
func (m *merge) open(ctx context.Context, columns [][]lane) error {
	var nodes map[int64]*node
	for c, lanes := range columns {
		these := map[int64][]*stream{}
		for _, l := range lanes {
			all, err := m.streams(ctx, l)
			if err != nil {
				return err
			}
			for _, s := range all {
				these[s.facet] = append(these[s.facet], s)
			}
		}
		if c == 0 {
			nodes = map[int64]*node{}
			for facet, streams := range these {
				nodes[facet] = &node{columns: [][]*stream{streams}}
			}
			continue
		}
		for facet, n := range nodes {
			if streams := these[facet]; len(streams) > 0 {
				n.columns = append(n.columns, streams)
			} else {
				delete(nodes, facet)
			}
		}
	}
	for _, n := range nodes {
		n.bound = n.columns[0][0].ns[0]
		for _, s := range n.columns[0] {
			if m.before(s.ns[0], n.bound) {
				n.bound = s.ns[0]
			}
		}
		m.nodes = append(m.nodes, n)
	}
	heap.Init(m)
	return nil
}

// streams opens those of a lane that are not empty: one look into the index
// for each facet, in one statement.
func (m *merge) streams(ctx context.Context, l lane) (out []*stream, err error) {
	which, args := m.r.facets(l.own)
	if l.where == "" {
		var others bool
		if err := m.r.tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM facet f WHERE NOT (`+which+`))`, args...).Scan(&others); err != nil {
			return nil, err
		}
		if !others { // every row there is
			s := &stream{lane: l, lo: m.r.lo, hi: m.r.hi, run: longRun}
			if err := m.read(ctx, s); err != nil || len(s.ns) == 0 {
				return nil, err
			}
			return []*stream{s}, nil
		}
	}
	best := `MAX`
	if !m.newestFirst {
		best = `MIN`
	}
	args = append(append(l.args(), m.r.hi, m.r.lo), args...)
	rows, err := m.r.tx.QueryContext(ctx, `SELECT f.id, (SELECT `+best+`(a.n) FROM audit a WHERE `+l.cond()+`a.facet = f.id AND a.n < ? AND a.n >= ?) FROM facet f WHERE `+which, args...) //nolint:gosec // joins constants
	all, err := list(rows, err, func(row scanner) (*stream, error) {
		s := &stream{lane: l, lo: m.r.lo, hi: m.r.hi, run: firstRun}
		var n sql.NullInt64
		err := row.Scan(&s.facet, &n)
		if n.Valid {
			s.took(m.newestFirst, n.Int64)
		}
		return s, err
	})
	return slices.DeleteFunc(all, func(s *stream) bool { return len(s.ns) == 0 }), err
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
	m.reads++
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

// seek passes all that comes before x, and returns what is next.
func (m *merge) seek(ctx context.Context, s *stream, x int64) (n int64, ok bool, err error) {
	for len(s.ns) > 0 && m.before(s.ns[0], x) {
		s.ns = s.ns[1:]
	}
	if len(s.ns) == 0 && !s.ended {
		switch { // who skips does not stay
		case m.newestFirst && x+1 < s.hi:
			s.hi, s.run = x+1, firstRun
		case !m.newestFirst && x > s.lo:
			s.lo, s.run = x, firstRun
		}
		if err := m.read(ctx, s); err != nil {
			return 0, false, err
		}
	}
	if len(s.ns) == 0 {
		return 0, false, nil
	}
	return s.ns[0], true, nil
}

// settle moves a node on to the next number that is in all of its columns, or
// as far as the search may read. It reports whether there may be one.
func (m *merge) settle(ctx context.Context, n *node) (bool, error) {
	for !n.sure && m.reads < maxReads {
		n.sure = true
		for _, column := range n.columns {
			best, any := int64(0), false
			for _, s := range column {
				next, ok, err := m.seek(ctx, s, n.bound)
				if err != nil {
					return false, err
				}
				if ok && (!any || m.before(next, best)) {
					best, any = next, true
				}
			}
			if !any {
				return false, nil
			}
			if best != n.bound {
				n.bound, n.sure = best, len(n.columns) == 1
			}
		}
	}
	return true, nil
}

// first brings what comes next to the top. It reports whether that is sure;
// what is not is as far as the search may read.
func (m *merge) first(ctx context.Context) (sure bool, err error) {
	for len(m.nodes) > 0 && !m.nodes[0].sure && m.reads < maxReads {
		switch may, err := m.settle(ctx, m.nodes[0]); {
		case err != nil:
			return false, err
		case may:
			heap.Fix(m, 0)
		default:
			heap.Pop(m)
		}
	}
	return len(m.nodes) > 0 && m.nodes[0].sure, nil
}

// take takes up to n row numbers, in order.
func (m *merge) take(ctx context.Context, n int) (out []int64, err error) {
	for len(out) < n {
		if sure, err := m.first(ctx); err != nil || !sure {
			return out, err
		}
		top := m.nodes[0]
		out = append(out, top.bound)
		top.bound, top.sure = m.behind(top.bound), false
		heap.Fix(m, 0)
	}
	return out, nil
}
