package emulator

import (
	"context"
	"time"
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

// Play does what a day says, so many times faster than it says. around, when it
// is not nil, is called for each step and does it, when it may be done. Without
// a card, what happens to cards is left out. Play returns when the day is over,
// or with the error of ctx.
func Play(ctx context.Context, day []Step, pace float64, p *Printer, card *Card, around func(s Step, do func())) error {
	if around == nil {
		around = func(_ Step, do func()) { do() }
	}
	began := time.Now()
	for _, s := range day {
		wait := time.NewTimer(time.Until(began.Add(time.Duration(float64(s.At) / pace))))
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

func do(s Step, p *Printer, card *Card) {
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
	}
	if card == nil {
		return
	}
	switch s.Act {
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
