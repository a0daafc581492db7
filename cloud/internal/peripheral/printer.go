package peripheral

import (
	"math"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Printer is what is remembered of the paper of one printer. Its zero value is a
// printer of which nothing is known. It is kept as JSON.
type Printer struct {
	RollLines float64 `json:"-"` // of a full roll, as it is configured; 0: not known

	Serial string  `json:"serial,omitempty"`
	Name   string  `json:"name,omitempty"` // of the count that is read
	Count  counter `json:"count"`
	At     int64   `json:"at"`    // of the newest sample
	Total  float64 `json:"total"` // lines, ever

	Used   float64   `json:"used"`             // lines of this roll
	Known  bool      `json:"known,omitempty"`  // it was seen being put in
	Beyond bool      `json:"beyond,omitempty"` // more was used than a roll has
	Empty  bool      `json:"empty,omitempty"`
	Doubt  bool      `json:"doubt,omitempty"` // it seems empty because its cover is open
	Cover  bool      `json:"cover,omitempty"`
	Near   bool      `json:"near,omitempty"`    // its near-end sensor has spoken
	Nears  float64   `json:"near_at,omitempty"` // lines used then
	Taken  bool      `json:"taken,omitempty"`   // its cover was opened since
	Rolls  []float64 `json:"rolls,omitempty"`   // lines of whole rolls, the newest last
	Left   []float64 `json:"left,omitempty"`    // lines that were left when the near-end sensor spoke

	Put   int64     `json:"put,omitempty"`   // when it was put in
	Guess int64     `json:"guess,omitempty"` // when its end was expected, at its half
	Off   []float64 `json:"off,omitempty"`   // by how much of the time of a roll such guesses were wrong

	Held  []happening `json:"held,omitempty"`  // that no sample has reached yet
	Trace []mark      `json:"trace,omitempty"` // when how much had been printed
	Week  week        `json:"week"`
}

// happening is an event that matters to paper.
type happening struct {
	At   int64  `json:"at"`
	Code string `json:"code"`
}

const (
	heldEvents = 2048            // some months of a busy printer, whose counts of that time come after what is live
	forgotten  = 24 * time.Hour  // a count that was told no more for so long is not told any more
	setBack    = 2 * time.Minute // by which a clock must go back to be believed
	// No printer feeds more at once, or less than nothing; a count that does is another one's.
	mostRolls = 2
	burst     = 2000
	fastest   = 100 // lines a second
	// What a line is differs from maker to maker, down to a row of dots. While nobody knows how many a roll has:
	dots = 40 // rows in a line
)

// paperCodes are the events that tell of rolls.
var paperCodes = []string{"REC_EMPTY", "REC_NEAREMPTY", "REC_PAPEROK", "COVER_OPEN", "COVER_OK"}

// Fold takes in what a printer has counted and what happened on it, in any
// order, each once. The week is that of a place.
func (p *Printer) Fold(samples []fleet.Sample, events []fleet.PeripheralEvent, place *time.Location) {
	for _, e := range events {
		if slices.Contains(paperCodes, e.Code) {
			p.Held = append(p.Held, happening{e.At.UnixMilli(), e.Code})
		}
	}
	slices.SortStableFunc(p.Held, func(a, b happening) int { return int(a.At - b.At) })
	for _, s := range byTime(samples, lineFeeds, lines) {
		if s.Name != p.Name {
			if p.Name == lineFeeds && s.At.UnixMilli()-p.At < ms(forgotten) {
				continue // the better one is there
			}
			p.Known = p.Known && p.Name == "" // what was used is in other lines
			p.Name, p.Count = s.Name, counter{}
		}
		p.sample(s, place)
	}
	for len(p.Held) > heldEvents { // no samples come
		p.apply(p.Held[0].Code, max(p.Held[0].At, p.At))
		p.Held = p.Held[1:]
	}
}

// Replaced begins anew with another printer at the same place: the shop and its
// paper are the same.
func (p *Printer) Replaced(serial string) {
	*p = Printer{RollLines: p.RollLines, Serial: serial, Total: p.Total, At: p.At, Rolls: p.Rolls, Held: p.Held, Trace: p.Trace, Week: p.Week}
}

// sample goes from the newest sample to this one, over the events in between.
func (p *Printer) sample(s fleet.Sample, place *time.Location) {
	at := s.At.UnixMilli()
	first := p.At == 0
	if at < p.At-ms(setBack) { // its clock was set back: what was remembered of times is worth nothing
		p.Trace, p.At = nil, at
	}
	by, since := p.Count.grew(s)
	from := p.At
	if first {
		from = at
	}
	if at > from+ms(longest) { // it was set forth, or the printer was away: that is no pace
		p.Trace, from = nil, at
	}
	at = max(at, from)
	most := burst + fastest*float64(at-from)/1000
	if l := p.length(); l > 0 {
		most = max(most, mostRolls*l)
	} else {
		most *= dots
	}
	if by < 0 || by > most {
		by, p.Known = 0, false
	}
	// Lines are printed evenly between two samples, but not before the count began nor while there is no paper.
	var steps []happening
	for len(p.Held) > 0 && p.Held[0].At <= at {
		steps = append(steps, happening{max(p.Held[0].At, from), p.Held[0].Code})
		p.Held = p.Held[1:]
	}
	steps = append(steps, happening{at, ""})
	weights, sum := make([]float64, len(steps)), 0.0
	empty, prev := p.Empty, from
	for i, st := range steps {
		if !empty {
			weights[i] = float64(max(st.At-max(prev, since), 0))
		}
		sum += weights[i]
		prev = st.At
		switch st.Code {
		case "REC_EMPTY":
			empty = true
		case "REC_PAPEROK", "REC_NEAREMPTY":
			empty = false
		}
	}
	prev = from
	for i, st := range steps {
		share := 0.0
		switch {
		case sum > 0:
			share = by * weights[i] / sum
		case i == len(steps)-1:
			share = by
		}
		p.flow(max(prev, min(since, st.At)), st.At, share)
		p.Week.observe(prev, st.At, share, place)
		p.apply(st.Code, st.At)
		prev = st.At
	}
	p.At = at
	if l := p.length(); p.Known && p.Guess == 0 && l > 0 && p.Used > l/2 {
		if g := p.Predict(place); g != nil {
			p.Guess = g.RunOutAt.UnixMilli()
		}
	}
}

// flow is paper that runs out of the printer.
func (p *Printer) flow(from, to int64, by float64) {
	if by <= 0 {
		return
	}
	if n := len(p.Trace); n == 0 || p.Trace[n-1].at() < from {
		p.Trace = append(p.Trace, mark{float64(from), p.Total})
	}
	p.Total += by
	p.Used += by
	l := p.length()
	p.Trace = thin(append(p.Trace, mark{float64(to), p.Total}), 1.5*l)
	if p.Known && l > 0 && p.Used > 1.3*l {
		p.Beyond = true // it was changed and nobody saw it, or it is longer than somebody thought
	}
}

// apply is something that happened to the paper.
func (p *Printer) apply(code string, at int64) {
	switch code {
	case "COVER_OPEN":
		p.Cover, p.Taken = true, p.Taken || p.Near
	case "COVER_OK":
		p.Cover = false
	case "REC_NEAREMPTY":
		switch {
		case p.Empty && !p.Doubt: // a part of a roll was put in
			p.Used, p.Known, p.Near, p.Taken, p.Beyond = 0, false, false, false, false
		case !p.Near:
			p.Near, p.Nears, p.Taken = true, p.Used, p.Cover
		}
		p.Empty, p.Doubt = false, false
	case "REC_EMPTY":
		if p.Empty {
			return
		}
		l := p.length()
		p.Empty = true
		if p.Doubt = p.Cover && !p.Near && l > 0 && p.Used < 0.8*l; !p.Doubt {
			p.ended(at)
		}
	case "REC_PAPEROK":
		if p.Empty && !p.Doubt || p.Near && p.Taken {
			p.Used, p.Known, p.Near, p.Nears, p.Taken = 0, true, false, 0, false
			p.Put, p.Guess, p.Beyond = at, 0, false
		}
		p.Empty, p.Doubt = false, false
	}
}

// ended learns from a roll that is used up, unless it is only a rest beside those
// before. What somebody configured may be wrong by any factor.
func (p *Printer) ended(at int64) {
	if p.Known && p.Used > 0 && (len(p.Rolls) == 0 || p.Used > 0.3*median(p.Rolls)) {
		p.Rolls = keep(p.Rolls, p.Used)
	}
	if left := p.Used - p.Nears; p.Near && left > 0 && left < p.Used {
		p.Left = keep(p.Left, left)
	}
	if p.Known && p.Guess > 0 && at > p.Put {
		p.Off = keep(p.Off, min(math.Abs(float64(p.Guess-at))/float64(at-p.Put), 1))
	}
}

// length is how many lines a whole roll of this printer has; 0: not known.
func (p *Printer) length() float64 {
	l, _, _ := p.roll()
	return l
}
