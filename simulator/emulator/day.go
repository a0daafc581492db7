package emulator

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tillward/tillward/hal/virtual"
)

// Act is something that happens at a till.
type Act string

// What happens on a day.
const (
	FreshRoll   Act = "a roll of paper is put in"
	Sale        Act = "a receipt is printed"
	OpenCover   Act = "the printer's cover is opened"
	CloseCover  Act = "the printer's cover is closed"
	OpenDrawer  Act = "the drawer is opened"
	CloseDrawer Act = "the drawer is closed"
	JamCutter   Act = "paper jams at the cutter"
	ClearCutter Act = "the jam is cleared"
	PullPlug    Act = "the printer loses power"
	PutPlug     Act = "the printer has power again"
	InsertCard  Act = "a card is put in"
	RemoveCard  Act = "the card is taken out"
	TearCard    Act = "a card is put in and pulled out while it is read"
	WornCard    Act = "a card is put in that does not answer"
)

// Step is one act of a day.
type Step struct {
	At    time.Duration // since the day began
	Act   Act
	Lines int // of a receipt or a roll
}

const sales = 60

// Day returns what happens on a day of that length. The same seed gives the
// same day: receipts use up the paper until it is low and then out, somebody
// changes the roll, the cover is left open once, the cutter jams, the plug is
// pulled, and of the cards one is torn out and one is worn. In the end all is
// well again.
func Day(seed uint64, length time.Duration) []Step {
	r := rand.New(rand.NewPCG(seed, 0x7111))
	// somewhere returns a time from one part of the day to another, in thousandths.
	somewhere := func(from, to int) time.Duration {
		return length * time.Duration(from*1000+r.IntN((to-from)*1000)) / 1_000_000
	}
	var day []Step
	add := func(at time.Duration, act Act) { day = append(day, Step{At: at, Act: act}) }

	roll := 0
	for i := range sales {
		at := somewhere(20+i*960/sales, 20+(i+1)*960/sales)
		lines := 25 + r.IntN(36)
		day = append(day, Step{At: at, Act: Sale, Lines: lines})
		if at < length/2 {
			roll += lines
		}
		if r.IntN(3) == 0 {
			add(at, OpenDrawer)
			add(at+length*6/1000, CloseDrawer)
		}
	}
	day = append(day, Step{Act: FreshRoll, Lines: roll}) // out at noon

	at := somewhere(120, 160)
	add(at, OpenCover)
	add(at+somewhere(20, 40), CloseCover)

	at = somewhere(520, 550) // somebody comes with a new roll
	add(at, OpenCover)
	add(at+length*10/1000, FreshRoll)
	add(at+length*20/1000, CloseCover)

	at = somewhere(700, 720)
	add(at, JamCutter)
	add(at+somewhere(20, 30), ClearCutter)

	at = somewhere(820, 840)
	add(at, PullPlug)
	add(at+somewhere(20, 30), PutPlug)

	special := map[int]Act{5 + r.IntN(4): TearCard, 11 + r.IntN(4): WornCard}
	for i := range 18 {
		at := somewhere(30+i*50, 40+i*50)
		act := InsertCard
		if a, ok := special[i]; ok {
			act = a
		}
		add(at, act)
		add(at+length*25/1000, RemoveCard)
	}
	slices.SortStableFunc(day, func(a, b Step) int { return int(a.At - b.At) })
	return day
}

// Slot is where cards go: a Card in a virtual reader, or a VirtualCard.
type Slot interface {
	Insert()
	Remove()
	TearNext()
	Mute(on bool)
}

// Play does what a day says, at its pace. around, when it is not nil, is called
// for each step and does it, when it may be done. Play returns when the day is
// over, or with the error of ctx.
func Play(ctx context.Context, day []Step, p *Printer, card Slot, around func(s Step, do func())) error {
	if around == nil {
		around = func(_ Step, do func()) { do() }
	}
	began := time.Now()
	for _, s := range day {
		wait := time.NewTimer(time.Until(began.Add(s.At)))
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
		around(s, func() { do(s, p, card) })
	}
	return nil
}

func do(s Step, p *Printer, card Slot) {
	switch s.Act {
	case FreshRoll:
		p.LoadRoll(s.Lines)
	case Sale:
		p.Receipt(s.Lines)
	case OpenCover, CloseCover:
		p.Set(CoverOpen, s.Act == OpenCover)
	case OpenDrawer, CloseDrawer:
		p.Set(DrawerOpen, s.Act == OpenDrawer)
	case JamCutter, ClearCutter:
		p.Set(CutterJam, s.Act == JamCutter)
	case PullPlug, PutPlug:
		p.Set(Unplugged, s.Act == PullPlug)
	case InsertCard:
		card.Insert()
	case TearCard:
		card.TearNext()
		card.Insert()
	case WornCard:
		card.Mute(true)
		card.Insert()
	case RemoveCard:
		card.Remove()
		card.Mute(false)
	}
}

// VirtualCard is the card for a device of hal/virtual that listens on Socket.
// While nobody listens there, because the agent is down, cards come and go
// unseen.
type VirtualCard struct {
	Socket string

	mute, tear bool
}

const orderWithin = 2 * time.Second

func (c *VirtualCard) send(orders ...virtual.Order) {
	ctx, cancel := context.WithTimeout(context.Background(), orderWithin)
	defer cancel()
	_ = virtual.Send(ctx, c.Socket, orders...)
}

func sensor(name string, on bool) virtual.Order { return virtual.Order{Set: name, To: &on} }

// Insert implements Slot.
func (c *VirtualCard) Insert() {
	orders := []virtual.Order{sensor("SCPresentSensor", true), sensor("M_CardMute", c.mute)}
	if c.tear {
		c.tear = false
		orders = append(orders, virtual.Order{Event: "M_CARD_TORN"}, sensor("SCPresentSensor", false))
	}
	c.send(orders...)
}

// Remove implements Slot.
func (c *VirtualCard) Remove() {
	c.send(sensor("SCPresentSensor", false), sensor("M_CardMute", false))
}

// TearNext implements Slot.
func (c *VirtualCard) TearNext() { c.tear = true }

// Mute implements Slot.
func (c *VirtualCard) Mute(on bool) { c.mute = on }
