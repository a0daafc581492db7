package emulator

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Duty is how a till is used: how much in which hour, on how much paper, and
// what goes wrong. A mean of 1.0 happens once a day for certain, one of 1.3
// sometimes twice.
type Duty struct {
	PerHour  []float64 // receipts in each hour that the shop is open, on average
	MinLines int       // of a receipt, in line feeds
	MaxLines int

	Roll    int           // line feeds of a fresh roll
	Left    int           // of the roll that is in when the shop opens
	Restock time.Duration // how long an empty roll stays in; 0: for good

	ByCard  float64       // share of the receipts that are paid by card
	CardFor time.Duration // how long a card is in
	Worn    float64       // mean number of cards that do not answer
	Torn    float64       // mean number of cards that are pulled out too early

	ByCash    float64       // share that opens the drawer
	DrawerFor time.Duration // how long it is open

	Covers     float64 // mean number of times that the cover is left open
	Jams       float64 // that the cutter jams
	Pulls      float64 // that the printer's plug is pulled
	TroubleFor time.Duration
}

// Cafe is open from seven to seven, with a rush in the morning and at noon.
var Cafe = Duty{
	PerHour:  []float64{38, 62, 55, 30, 34, 70, 66, 36, 28, 25, 18, 12},
	MinLines: 14, MaxLines: 34, Roll: 21000, Left: 9000, Restock: 4 * time.Minute,
	ByCard: 0.7, CardFor: 7 * time.Second, Worn: 2.2, Torn: 1.4,
	ByCash: 0.25, DrawerFor: 9 * time.Second,
	Covers: 0.2, Jams: 0.15, Pulls: 0.05, TroubleFor: 3 * time.Minute,
}

// Grocer has long receipts all day, and a rush after work.
var Grocer = Duty{
	PerHour:  []float64{12, 18, 22, 24, 30, 26, 22, 24, 34, 48, 52, 40, 20},
	MinLines: 20, MaxLines: 110, Roll: 21000, Left: 21000, Restock: 3 * time.Minute,
	ByCard: 0.8, CardFor: 9 * time.Second, Worn: 3, Torn: 1,
	ByCash: 0.2, DrawerFor: 12 * time.Second,
	Covers: 0.3, Jams: 0.3, Pulls: 0.05, TroubleFor: 5 * time.Minute,
}

// Desk is a day to look at: not much happens, but everything does, and slowly.
// The roll is empty at noon.
var Desk = Duty{
	PerHour:  []float64{5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5},
	MinLines: 25, MaxLines: 60, Roll: rollLines, Left: 1300, Restock: 15 * time.Minute,
	ByCard: 0.4, CardFor: 18 * time.Minute, Worn: 1, Torn: 1,
	ByCash: 0.3, DrawerFor: 4 * time.Minute,
	Covers: 1, Jams: 1, Pulls: 1, TroubleFor: 18 * time.Minute,
}

// Truth is what a day does, to judge by what was made of it. Times are since
// the shop opened.
type Truth struct {
	Length   time.Duration
	Receipts int // that came out
	Refused  int // that found the printer stopped
	Lines    int // line feeds
	Cards    int // put in, the worn and torn ones among them
	Worn     int
	Torn     int
	Drawer   int // openings
	Covers   int // openings of the cover, those to change the roll among them
	Jams     int
	Pulls    int
	NearEnd  []time.Duration // when the paper got low
	RunOut   []time.Duration // and ended
	Rolls    []time.Duration // when a fresh roll was put in, the first at 0

	paper []mark
}

// mark is how much paper is left from a moment on.
type mark struct {
	at   time.Duration
	left int
}

// Left returns the line feeds on the roll at a moment.
func (t Truth) Left(at time.Duration) int {
	i, found := slices.BinarySearchFunc(t.paper, at, func(m mark, at time.Duration) int { return int(m.at - at) })
	for ; found && i+1 < len(t.paper) && t.paper[i+1].at == at; i++ {
	}
	if !found {
		i--
	}
	if i < 0 {
		return 0
	}
	return max(0, t.paper[i].left)
}

// Day returns what happens from opening to closing, in order, and the truth of
// it. The same seed gives the same day. In the end all is well again, but an
// empty roll that nobody replaces.
func (d Duty) Day(seed uint64) ([]Step, Truth) {
	r := rand.New(rand.NewPCG(seed, 0x7111))
	day := day{duty: d, r: r, length: time.Duration(len(d.PerHour)) * time.Hour}
	day.add(0, FreshRoll, d.Left)
	day.sales()
	day.troubles(d.Covers, OpenCover, CloseCover)
	day.troubles(d.Jams, JamCutter, ClearCutter)
	day.troubles(d.Pulls, PullPlug, PutPlug)
	truth := day.walk()
	return day.steps, truth
}

// day is one that is being made.
type day struct {
	duty   Duty
	r      *rand.Rand
	length time.Duration
	steps  []Step
	busy   [][2]time.Duration // when something is wrong with the printer already
}

func (d *day) add(at time.Duration, act Act, lines int) {
	d.steps = append(d.steps, Step{At: at, Act: act, Lines: lines})
}

// times is a number of that mean.
func (d *day) times(mean float64) int {
	n := int(mean)
	if d.r.Float64() < mean-float64(n) {
		n++
	}
	return n
}

// sales adds the receipts, and the cards and the drawer with them.
func (d *day) sales() {
	var at []time.Duration
	for hour, mean := range d.duty.PerHour {
		for range d.times(mean) {
			at = append(at, time.Duration(hour)*time.Hour+time.Duration(d.r.Int64N(int64(time.Hour))))
		}
	}
	slices.Sort(at)
	var cards []int // steps that put one in
	var freeCard, freeDrawer time.Duration
	for _, t := range at {
		d.add(t, Sale, d.duty.MinLines+d.r.IntN(d.duty.MaxLines-d.duty.MinLines+1))
		how := d.r.Float64()
		if in, out := t, t+d.duty.CardFor; how < d.duty.ByCard && in > freeCard && out < d.length {
			cards = append(cards, len(d.steps))
			d.add(in, InsertCard, 0)
			d.add(out, RemoveCard, 0)
			freeCard = out + d.duty.CardFor/4
		}
		if shut := t + d.duty.DrawerFor; how >= 1-d.duty.ByCash && t > freeDrawer && shut < d.length {
			d.add(t, OpenDrawer, 0)
			d.add(shut, CloseDrawer, 0)
			freeDrawer = shut + d.duty.DrawerFor/4
		}
	}
	d.r.Shuffle(len(cards), func(i, j int) { cards[i], cards[j] = cards[j], cards[i] })
	worn := min(d.times(d.duty.Worn), len(cards))
	torn := min(d.times(d.duty.Torn), len(cards)-worn)
	for i, step := range cards[:worn+torn] {
		d.steps[step].Act = map[bool]Act{true: WornCard, false: TearCard}[i < worn]
	}
}

// troubles adds what goes wrong with the printer, one thing at a time, and
// never so late that the day would end with it.
func (d *day) troubles(mean float64, begin, end Act) {
	long := d.duty.TroubleFor
	for range d.times(mean) {
		for range 100 { // a day full of trouble takes no more
			at := time.Duration(float64(d.length) * (0.02 + 0.9*d.r.Float64()))
			until := at + long/2 + time.Duration(d.r.Int64N(int64(long/2)+1))
			clash := slices.ContainsFunc(d.busy, func(b [2]time.Duration) bool { return at < b[1]+long && until > b[0]-long })
			if clash || until >= d.length {
				continue
			}
			d.busy = append(d.busy, [2]time.Duration{at, until})
			d.add(at, begin, 0)
			d.add(until, end, 0)
			break
		}
	}
}

// walk goes through the day as the printer will, has the roll changed, and
// counts.
func (d *day) walk() Truth {
	order := func(a, b Step) int { return int(a.At - b.At) }
	slices.SortStableFunc(d.steps, order)
	t := Truth{Length: d.length}
	var cover, jam, plug, low, out bool
	left := 0
	for i := 0; i < len(d.steps); i++ {
		s := d.steps[i]
		switch s.Act {
		case Sale:
			if cover || jam || plug || out {
				t.Refused++
				break
			}
			t.Receipts++
			t.Lines += s.Lines
			left -= s.Lines
			t.paper = append(t.paper, mark{s.At, left})
		case FreshRoll:
			left = s.Lines
			t.Rolls = append(t.Rolls, s.At)
			t.paper = append(t.paper, mark{s.At, left})
		case OpenCover, CloseCover:
			if s.Act == OpenCover && !cover {
				t.Covers++
			}
			cover = s.Act == OpenCover
		case JamCutter, ClearCutter:
			if s.Act == JamCutter {
				t.Jams++
			}
			jam = s.Act == JamCutter
		case PullPlug, PutPlug:
			if s.Act == PullPlug {
				t.Pulls++
			}
			plug = s.Act == PullPlug
		case InsertCard, WornCard, TearCard:
			t.Cards++
			switch s.Act {
			case WornCard:
				t.Worn++
			case TearCard:
				t.Torn++
			}
		case OpenDrawer:
			t.Drawer++
		}
		if now := left <= nearEndLines; now != low {
			if low = now; low {
				t.NearEnd = append(t.NearEnd, s.At)
			}
		}
		if now := left <= 0; now != out {
			if out = now; out {
				t.RunOut = append(t.RunOut, s.At)
				d.restock(s.At)
				slices.SortStableFunc(d.steps[i+1:], order)
			}
		}
	}
	return t
}

// restock has somebody change the roll, when nothing else is wrong.
func (d *day) restock(at time.Duration) {
	if d.duty.Restock == 0 {
		return
	}
	at += d.duty.Restock
	minute := d.duty.Restock / 4
	for _, b := range d.busy {
		if at < b[1]+minute && at+3*minute > b[0] {
			at = b[1] + minute
		}
	}
	if at+2*minute >= d.length {
		return
	}
	d.add(at, OpenCover, 0)
	d.add(at+minute, FreshRoll, d.duty.Roll)
	d.add(at+2*minute, CloseCover, 0)
}
