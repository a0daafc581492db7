package chaos

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/tillward/tillward/cloud/wire"
)

// count compares one class: rows that tills recorded with rows that the service
// stores.
type count struct {
	Class      string `json:"class"`
	Recorded   int    `json:"recorded"` // and acknowledged to whoever recorded them
	Stored     int    `json:"stored"`
	Begun      int    `json:"begun"`      // stored, though a kill or a cut came before the acknowledgement
	Superseded int    `json:"superseded"` // of states: a newer one took their place
	Shed       int    `json:"shed"`       // given up for want of space, as the till itself counts
	Lost       int    `json:"lost"`
	Duplicated int    `json:"duplicated"`
	Changed    int    `json:"changed"`
	Unknown    int    `json:"unknown"` // stored, and never recorded
	Disorder   int    `json:"out_of_order"`
}

func (c *count) add(o count) {
	c.Recorded += o.Recorded
	c.Stored += o.Stored
	c.Begun += o.Begun
	c.Superseded += o.Superseded
	c.Shed += o.Shed
	c.Lost += o.Lost
	c.Duplicated += o.Duplicated
	c.Changed += o.Changed
	c.Unknown += o.Unknown
	c.Disorder += o.Disorder
}

// ok reports whether the class is as it must be.
func (c count) ok() bool { return c.Lost+c.Duplicated+c.Changed+c.Unknown+c.Disorder == 0 }

// verdict is what is found of one till.
type verdict struct {
	counts   []count // by class, in their order
	chain    string  // ok, or what is wrong
	problems []string
}

const namedOf = 5 // problems of one kind that are named one by one

// finder collects what is wrong of one till, each with its name.
type finder struct {
	till   string
	counts map[string]*count
	seen   map[string]int
	gone   []*entry // samples and events that are not there at all
	out    []string
}

func (f *finder) found(n *int, what, format string, args ...any) {
	*n++
	f.seen[what]++
	if f.seen[what] <= namedOf {
		f.out = append(f.out, f.till+": "+fmt.Sprintf(format, args...))
	}
}

// judge compares what a till recorded, by the harness's own book, with what the
// service stores of it.
// A till that gave up messages of samples and events for want of space has
// counted them: shed.
func judge(till string, l *ledger, s *stored, shed int) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &finder{till: till, counts: make(map[string]*count), seen: make(map[string]int)}
	for _, c := range classes {
		f.counts[c] = &count{Class: c}
	}
	rows := make(map[key][]row)
	for _, r := range s.rows {
		rows[r.key] = append(rows[r.key], r)
	}
	for _, e := range s.trail {
		k := key{Class: audit, Seq: e.seq}
		rows[k] = append(rows[k], row{key: k, text: string(e.body), n: e.n})
	}
	for k, list := range rows {
		f.counts[k.Class].Stored += len(list)
	}
	f.records(l, rows)
	f.shed(l, shed)
	f.results(l, rows)
	f.state(l, rows)
	f.order(l, s)
	v := verdict{chain: chain(s.trail)}
	if v.chain != "ok" {
		f.out = append(f.out, till+": audit chain: "+v.chain)
	}
	for what, n := range f.seen {
		if n > namedOf {
			f.out = append(f.out, fmt.Sprintf("%s: %s: %d more", till, what, n-namedOf))
		}
	}
	slices.Sort(f.out)
	v.problems = f.out
	for _, c := range classes {
		v.counts = append(v.counts, *f.counts[c])
	}
	return v
}

// records judges what is there row by row: entries, samples and events.
func (f *finder) records(l *ledger, rows map[key][]row) {
	for k, list := range l.entries {
		if k.Class == result || k.Class == state {
			continue
		}
		c := f.counts[k.Class]
		kept := slices.DeleteFunc(slices.Clone(list), func(e *entry) bool { return !e.kept })
		if len(kept) > 1 {
			f.found(&c.Changed, k.Class+" recorded twice", "%s was recorded twice, with other content", k)
		}
		for _, e := range kept {
			c.Recorded += e.Rows
		}
		have := rows[k]
		if len(have) == 0 {
			for _, e := range kept {
				if k.Class != audit {
					f.gone = append(f.gone, e)
					continue
				}
				f.found(&c.Lost, k.Class+" lost", "%s is lost (%d rows%s)", k, e.Rows, named(e.Name))
				c.Lost += e.Rows - 1
			}
			continue
		}
		f.record(c, k, list, kept, have)
	}
	for k, have := range rows {
		if k.Class != result && k.Class != state && l.entries[k] == nil {
			c := f.counts[k.Class]
			f.found(&c.Unknown, k.Class+" unknown", "%s is stored and was never recorded", k)
			c.Unknown += len(have) - 1
		}
	}
}

// shed judges what is not there at all: of each the till must have said that it
// gives it up, and its own count must hold no fewer, and no more than it said.
func (f *finder) shed(l *ledger, counted int) {
	slices.SortFunc(f.gone, func(a, b *entry) int { return cmp.Compare(a.order, b.order) })
	least := l.refused
	for _, e := range f.gone {
		c := f.counts[e.Class]
		if e.shed {
			least++
			c.Shed += e.Rows
			continue
		}
		f.found(&c.Lost, e.Class+" lost", "%s is lost (%d rows)", e.key, e.Rows)
		c.Lost += e.Rows - 1
	}
	// What was given up on its way may have arrived all the same.
	if most := l.gaveUp + l.refused + l.perhaps; counted < least || counted > most {
		n := 0
		f.found(&n, "shed", "the till counts %d messages as shed, want %d to %d", counted, least, most)
	}
}

func named(s string) string {
	if s == "" {
		return ""
	}
	return ", " + s
}

// record judges one that is stored in some way.
func (f *finder) record(c *count, k key, list, kept []*entry, have []row) {
	slices.SortStableFunc(have, func(a, b row) int { return cmp.Compare(a.idx, b.idx) })
	var once []string
	for i, r := range have {
		if i > 0 && have[i-1].idx == r.idx {
			f.found(&c.Duplicated, k.Class+" duplicated", "%s: row %d is stored twice", k, r.idx)
			continue
		}
		once = append(once, r.text)
	}
	can := list // what was begun alone may be there as well as not
	if len(kept) > 0 {
		can = kept
	}
	hash := digest(once)
	for _, e := range can {
		if e.Hash == hash {
			if !e.kept {
				c.Begun += len(once)
			}
			return
		}
	}
	if want := can[0].Rows; len(once) < want && can[0].shed { // thinned
		c.Shed += want - len(once)
		return
	} else if len(once) < want {
		f.found(&c.Lost, k.Class+" lost", "%s: %d of %d rows are lost", k, want-len(once), want)
		c.Lost += want - len(once) - 1
		return
	}
	f.found(&c.Changed, k.Class+" changed", "%s is stored with other content than was recorded", k)
}

// stateOf is the state of a command, and open whether it has not ended.
func stateOf(r row) string {
	_, is, _ := strings.Cut(r.text, "|")
	is, _, _ = strings.Cut(is, "|")
	return is
}

func open(r row) bool { return stateOf(r) == "QUEUED" || stateOf(r) == "SENT" }

// results judges how commands ended: each has one end, as its till said.
func (f *finder) results(l *ledger, rows map[key][]row) {
	c := f.counts[result]
	type said struct{ kept, begun map[string]bool }
	ends := make(map[string]*said) // by command
	for k, list := range l.entries {
		if k.Class != result {
			continue
		}
		for _, e := range list {
			if ends[e.Name] == nil {
				ends[e.Name] = &said{map[string]bool{}, map[string]bool{}}
			}
			ends[e.Name].begun[e.Hash] = true
			if e.kept {
				ends[e.Name].kept[e.Hash] = true
			}
		}
	}
	c.Stored = 0
	for k, have := range rows {
		if k.Class != result {
			continue
		}
		if len(have) > 1 {
			f.found(&c.Duplicated, "command duplicated", "command %s is stored twice", k.Boot)
		}
		is, open := stateOf(have[0]), open(have[0])
		if !open {
			c.Stored++
		}
		e := ends[k.Boot]
		switch {
		case e == nil || len(e.kept) == 0 && open:
			if !open {
				f.found(&c.Unknown, "result unknown", "command %s has ended as %s, and its till never said so", k.Boot, is)
			}
		case open:
			f.found(&c.Lost, "result lost", "the result of command %s is lost", k.Boot)
		case !e.begun[digest([]string{have[0].text})]:
			f.found(&c.Changed, "result changed", "command %s has ended as %s, which its till did not say", k.Boot, is)
		}
	}
	for id, e := range ends {
		if len(e.kept) == 0 {
			continue
		}
		c.Recorded++
		if len(rows[key{Class: result, Boot: id}]) == 0 {
			f.found(&c.Lost, "result lost", "the result of command %s is lost: the service does not know it", id)
		}
	}
}

// state judges the newest state: what the till said last is what is stored.
func (f *finder) state(l *ledger, rows map[key][]row) {
	c := f.counts[state]
	var all []*entry
	for k, list := range l.entries {
		if k.Class == state {
			all = append(all, list...)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return cmp.Compare(a.order, b.order) })
	last := -1
	for i, e := range all {
		if e.kept {
			c.Recorded++
			last = i
		}
	}
	if last < 0 {
		return
	}
	c.Superseded = c.Recorded - 1
	for _, e := range all[last:] {
		if is := rows[e.key]; len(is) > 0 {
			if digest([]string{is[0].text}) != e.Hash {
				f.found(&c.Changed, "state changed", "%s is stored with other content than was recorded", e.key)
			}
			return
		}
	}
	f.found(&c.Lost, "state lost", "%s is lost: an older state is stored", all[last].key)
}

// order judges that entries and events were stored in the order in which they
// were recorded; samples have none.
func (f *finder) order(l *ledger, s *stored) {
	last := uint64(0)
	for _, e := range s.trail {
		if e.seq < last {
			f.found(&f.counts[audit].Disorder, "audit out of order", "audit %d is stored after audit %d", e.seq, last)
		}
		last = e.seq
	}
	var was row
	now := 0
	for _, r := range s.rows {
		if r.Class != event || len(l.entries[r.key]) == 0 {
			continue
		}
		is := l.entries[r.key][0].order
		if is < now || is == now && r.idx <= was.idx {
			f.found(&f.counts[event].Disorder, "event out of order", "%s row %d is stored after %s row %d", r.key, r.idx, was.key, was.idx)
		}
		was, now = r, is
	}
}

// chain computes a trail anew from its raw rows, and says what is wrong first.
func chain(trail []link) string {
	if len(trail) == 0 {
		return "there is none"
	}
	sorted := slices.Clone(trail)
	slices.SortStableFunc(sorted, func(a, b link) int { return cmp.Compare(a.seq, b.seq) })
	var prev [32]byte
	for i, l := range sorted {
		want := uint64(i) + 1 // #nosec G115 -- an index
		switch {
		case l.seq < want:
			return fmt.Sprintf("entry %d is there twice", l.seq)
		case l.seq > want:
			return fmt.Sprintf("entry %d is missing", want)
		}
		hash := sha256.Sum256(l.body)
		if !bytes.Equal(hash[:], l.hash) {
			return fmt.Sprintf("entry %d does not match its hash", l.seq)
		}
		r, err := wire.AuditEntry{Body: l.body, Hash: hash}.Open()
		switch {
		case err != nil:
			return fmt.Sprintf("entry %d cannot be read: %v", l.seq, err)
		case r.Seq != l.seq:
			return fmt.Sprintf("entry %d says that it is entry %d", l.seq, r.Seq)
		case r.Prev != prev || !bytes.Equal(l.prev, prev[:]):
			return fmt.Sprintf("entry %d does not follow entry %d", l.seq, l.seq-1)
		}
		prev = hash
	}
	return "ok"
}
