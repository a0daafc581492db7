package figures

import (
	"context"
	"log/slog"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	fineStep = 10 * time.Second
	longStep = 5 * time.Minute
	hourStep = time.Hour

	writeEvery = time.Minute
	rollEvery  = time.Hour
	keptLong   = 35 * 24 * time.Hour
	keptHours  = 396 * 24 * time.Hour // 13 months
	maxUnkept  = 288                  // spans of five minutes that wait for a store that does not write: a day
	lastWrite  = 3 * time.Second
)

// frame is one span with what was counted in it. While it is open it is sums;
// then it is packed.
type frame struct {
	at     time.Time
	sums   map[*Op]*sum
	packed []packed
}

type packed struct {
	op *Op
	b  []byte
}

func newFrame(now time.Time, step time.Duration) frame {
	return frame{at: now.Truncate(step), sums: map[*Op]*sum{}}
}

func (f *frame) add(o *Op, d *sum) {
	s := f.sums[o]
	if s == nil {
		s = &sum{}
		f.sums[o] = s
	}
	s.add(d)
}

func (f *frame) pack() frame {
	p := frame{at: f.at, packed: make([]packed, 0, len(f.sums))}
	for o, s := range f.sums {
		p.packed = append(p.packed, packed{o, s.append(nil)})
	}
	return p
}

// each hands out the sums of f.
func (f *frame) each(do func(*Op, *sum)) {
	for o, s := range f.sums {
		do(o, s)
	}
	for _, p := range f.packed {
		var s sum
		if _, err := s.take(p.b); err == nil { // we packed it
			do(p.op, &s)
		}
	}
}

// rows are the rows of f, one for each part.
func (f *frame) rows(step time.Duration) []fleet.FigureRow {
	parts := map[string]map[string]*sum{}
	f.each(func(o *Op, s *sum) {
		if parts[o.part] == nil {
			parts[o.part] = map[string]*sum{}
		}
		parts[o.part][o.name] = s
	})
	out := make([]fleet.FigureRow, 0, len(parts))
	for part, ops := range parts {
		out = append(out, fleet.FigureRow{Part: part, Step: step, At: f.at, Body: body(ops)})
	}
	return out
}

// series is the present span and the last ones before it.
type series struct {
	step   time.Duration
	keep   int
	open   frame
	frames []frame // by the time they were closed
}

// turn closes the present span when it is over.
func (s *series) turn(now time.Time) (closed frame, over bool) {
	if now.Truncate(s.step).Equal(s.open.at) {
		return frame{}, false
	}
	closed = s.open.pack()
	s.open = newFrame(now, s.step)
	if s.keep > 0 {
		if len(s.frames) >= s.keep {
			copy(s.frames, s.frames[1:])
			s.frames = s.frames[:len(s.frames)-1]
		}
		s.frames = append(s.frames, closed)
	}
	return closed, true
}

// gather moves what was counted since the last time into the spans that are
// open, and closes those that are over. b.mu is held.
func (b *Book) gather(now time.Time) {
	for _, o := range b.all() {
		s := o.sum()
		d := s.since(&o.last)
		if d.empty() {
			continue
		}
		o.last = s
		b.fine.open.add(o, &d)
		b.minutes.open.add(o, &d)
		b.long.open.add(o, &d)
	}
	b.fine.turn(now)
	b.minutes.turn(now)
	if closed, over := b.long.turn(now); over {
		b.before.each(func(o *Op, s *sum) { closed.packed = append(closed.packed, packed{o, s.append(nil)}) })
		b.unkept = append(b.unkept, merged(closed))
		if len(b.unkept) > maxUnkept {
			b.unkept = b.unkept[1:]
		}
		b.before = newFrame(now, longStep)
	}
}

// merged is f with one sum for each Op.
func merged(f frame) frame {
	m := frame{at: f.at, sums: map[*Op]*sum{}}
	f.each(m.add)
	return m.pack()
}

// Run gathers, writes and rolls up until ctx ends, and then writes what there
// is.
func (b *Book) Run(ctx context.Context) error {
	b.load(ctx)
	tick := time.NewTimer(untilNext())
	defer tick.Stop()
	wrote, rolled := time.Now(), time.Time{}
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
			defer cancel()
			b.write(end, time.Now())
			return nil
		case now := <-tick.C:
			tick.Reset(untilNext())
			b.mu.Lock()
			b.gather(now)
			b.mu.Unlock()
			if now.Sub(wrote) >= writeEvery {
				wrote = now
				b.write(ctx, now)
			}
			if now.Sub(rolled) >= rollEvery {
				rolled = now
				b.roll(ctx, now)
			}
		}
	}
}

// untilNext is how long the finest span goes on.
func untilNext() time.Duration {
	now := time.Now()
	return now.Truncate(fineStep).Add(fineStep).Sub(now)
}

// load reads what the process before counted in the present span.
func (b *Book) load(ctx context.Context) {
	if b.o.Store == nil {
		return
	}
	b.mu.Lock()
	at := b.before.at
	b.mu.Unlock()
	rows, err := b.o.Store.Figures(ctx, "", longStep, at, at.Add(longStep))
	if err != nil {
		b.o.Log.Error("read figures", slog.Any("err", err))
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.before.at.Equal(at) { // it is over
		return
	}
	var names words
	for _, r := range rows {
		if err := names.parse(r.Body, func(name string, s *sum) { b.before.add(b.Op(r.Part, name), s) }); err != nil {
			b.o.Log.Warn("read figures", slog.String("part", r.Part), slog.Any("err", err))
		}
	}
	b.prior = b.before.pack()
}

// write keeps what is not kept yet, in one commit with whatever else is to be
// written.
func (b *Book) write(ctx context.Context, now time.Time) {
	if b.o.Store == nil {
		return
	}
	b.mu.Lock()
	b.gather(now)
	over := len(b.unkept)
	var rows []fleet.FigureRow
	for i := range b.unkept {
		rows = append(rows, b.unkept[i].rows(longStep)...)
	}
	open := b.present()
	rows = append(rows, open.rows(longStep)...)
	b.mu.Unlock()
	if len(rows) == 0 {
		return
	}
	if err := b.o.Store.PutFigures(ctx, rows); err != nil {
		b.o.Log.Error("keep figures; they are tried again in a minute", slog.Any("err", err))
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unkept = b.unkept[min(over, len(b.unkept)):]
}

// present is the span of five minutes that is not over, of this process and the
// one before. b.mu is held.
func (b *Book) present() frame {
	m := frame{at: b.long.open.at, sums: map[*Op]*sum{}}
	b.before.each(m.add)
	b.long.open.each(m.add)
	return m
}

// roll turns old rows of five minutes into hours.
func (b *Book) roll(ctx context.Context, now time.Time) {
	if b.o.Store == nil {
		return
	}
	before := now.Add(-keptLong).Truncate(hourStep)
	rows, err := b.o.Store.Figures(ctx, "", longStep, time.Time{}, before)
	if err != nil {
		b.o.Log.Error("read figures", slog.Any("err", err))
		return
	}
	type hour struct {
		part string
		at   int64
	}
	hours := map[hour]map[string]*sum{}
	var names words
	for _, r := range rows {
		k := hour{r.Part, r.At.Truncate(hourStep).Unix()}
		if hours[k] == nil {
			hours[k] = map[string]*sum{}
		}
		if err := names.parse(r.Body, func(name string, s *sum) {
			if hours[k][name] == nil {
				hours[k][name] = &sum{}
			}
			hours[k][name].add(s)
		}); err != nil {
			b.o.Log.Warn("read figures", slog.String("part", r.Part), slog.Any("err", err))
		}
	}
	out := make([]fleet.FigureRow, 0, len(hours))
	for k, ops := range hours {
		out = append(out, fleet.FigureRow{Part: k.part, Step: hourStep, At: time.Unix(k.at, 0).UTC(), Body: body(ops)})
	}
	if err := b.o.Store.RollFigures(ctx, out, longStep, before, now.Add(-keptHours)); err != nil {
		b.o.Log.Error("roll figures up", slog.Any("err", err))
	}
}
