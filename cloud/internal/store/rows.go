package store

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Of samples there are many, and each statement costs: they are collected over
// the intakes of a group and written many rows at a time.

// pending is a sample that is not written yet, with whose it is.
type pending struct {
	args  [8]any // boot, seq, idx, series, at, value, epoch, kept
	out   *Outcome
	tally *tally
}

const (
	insertSamples = `INSERT INTO sample (boot, seq, idx, series, at, value, epoch, kept) VALUES `
	updateSeries  = `UPDATE series SET count = count + v.column2, last = CASE WHEN v.column3 >= last_at THEN v.column4 ELSE last END,
		last_at = CASE WHEN v.column3 >= last_at THEN v.column3 ELSE last_at END FROM (VALUES `
)

// sizes are how many rows one statement takes: a few texts, that stay prepared.
var sizes = [...]int{128, 32, 8, 1}

// tuples is the text of so many rows of so many arguments.
func tuples(rows, columns int) string {
	one := "(?" + strings.Repeat(", ?", columns-1) + ")"
	return one + strings.Repeat(", "+one, rows-1)
}

var (
	insertRows = texts(func(n int) string { return insertSamples + tuples(n, 8) + ` ON CONFLICT DO NOTHING` })
	updateRows = texts(func(n int) string { return updateSeries + tuples(n, 4) + `) AS v WHERE series.id = v.column1` })
)

func texts(of func(rows int) string) (out [len(sizes)]string) {
	for i, n := range sizes {
		out[i] = of(n)
	}
	return out
}

// write writes the samples that are pending, as many statements as it takes.
func (g *group) write(ctx context.Context) error {
	if g.w.bulk {
		return g.copySamples(ctx)
	}
	args := make([]any, 0, sizes[0]*8)
	for i, size := range sizes {
		for len(g.pending) >= size {
			args = args[:0]
			for _, p := range g.pending[:size] {
				args = append(args, p.args[:]...)
			}
			if err := g.insert(ctx, g.pending[:size], insertRows[i], args); err != nil {
				return fmt.Errorf("sample: %w", err)
			}
			g.pending = g.pending[size:]
		}
	}
	g.pending = nil
	return nil
}

// insert writes some samples. When not all of them are new it takes them back
// and writes them one by one, to learn which are.
func (g *group) insert(ctx context.Context, some []pending, query string, args []any) error {
	if len(some) > 1 {
		if err := g.w.exec(ctx, `SAVEPOINT samples`); err != nil {
			return err
		}
	}
	n, err := g.w.changed(ctx, query, args...)
	if err != nil {
		return err
	}
	if int(n) == len(some) {
		for _, p := range some {
			g.stored(p)
		}
	} else if len(some) == 1 {
		some[0].out.Duplicates++
	}
	if len(some) == 1 {
		return nil
	}
	if int(n) < len(some) {
		if err := g.w.exec(ctx, `ROLLBACK TO samples`); err != nil {
			return err
		}
		for i := range some {
			if err := g.insert(ctx, some[i:i+1], insertRows[len(sizes)-1], some[i].args[:]); err != nil {
				return err
			}
		}
	}
	return g.w.exec(ctx, `RELEASE samples`)
}

// stored counts a sample that was not there before.
func (g *group) stored(p pending) {
	p.out.NewSamples++
	p.tally.samples++
	series, when, value := p.args[3].(int64), p.args[4].(int64), p.args[5].(float64)
	r := g.series[series]
	if r == nil {
		r = &recent{at: math.MinInt64}
		g.series[series] = r
	}
	r.count++
	if when >= r.at {
		r.at, r.value = when, value
	}
}

// recents writes what changed in the rows of series.
func (g *group) recents(ctx context.Context) error {
	ids := make([]int64, 0, len(g.series))
	for id := range g.series {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for i, size := range sizes {
		for len(ids) >= size {
			args := make([]any, 0, size*4)
			for _, id := range ids[:size] {
				r := g.series[id]
				args = append(args, id, int64(r.count), r.at, r.value)
			}
			if err := g.w.exec(ctx, updateRows[i], args...); err != nil {
				return fmt.Errorf("series: %w", err)
			}
			ids = ids[size:]
		}
	}
	return nil
}
