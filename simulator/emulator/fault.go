package emulator

// Fault is something that can be wrong with a Printer.
type Fault string

// What can be wrong with the mechanism and the drawer.
const (
	CoverOpen     Fault = "cover open"
	NearEnd       Fault = "paper low"
	PaperEnd      Fault = "paper out"
	CutterJam     Fault = "cutter jammed"
	HeadHot       Fault = "head too hot"
	Mechanical    Fault = "mechanical error"
	Unrecoverable Fault = "unrecoverable error"
	Offline       Fault = "switched off-line at its panel"
	FeedButton    Fault = "feed button held down"
	Waiting       Fault = "waits for a key to go on-line again"
	DrawerOpen    Fault = "drawer open"
	DrawerStuck   Fault = "drawer does not open"
)

// What can be wrong with the interface.
const (
	Mute       Fault = "answers nothing"
	Garbage    Fault = "garbage before each answer"
	HalfFrames Fault = "status frames cut in half"
	Slow       Fault = "answers late"
	HangsUp    Fault = "drops the connection when it is asked"
	Unplugged  Fault = "unplugged"
)

// What makes one model different from another.
const (
	NoStatusBack    Fault = "a cheap model without GS a"
	KeepsStatusBack Fault = "a model that ESC @ does not silence"
	NoIdentity      Fault = "firmware that ignores GS I"
	NoCounters      Fault = "firmware that ignores GS g"
	RefusesSecond   Fault = "refuses a second connection at once"
	SpeaksXonXoff   Fault = "stops the till with XOFF and lets it go on with XON"
	ClosesAfterAJob Fault = "closes the connection after each cut"
)
