package hal

import "context"

// Candidate is something that a bus has found, whether a driver knows it or not.
type Candidate struct {
	Key       string // usb:04b8:0e15:SERIAL, or usb:04b8:0e15@1-1.2 for one without serial number: stable over replugging
	Interface string // UnifiedPOS Interface, e.g. USB
	Category  Category
	Maker     string
	Model     string
	Serial    string
	Firmware  string
	Node      string // device file, if it has one now, e.g. /dev/usb/lp0
}

// Change is a candidate that came, or went.
type Change struct {
	Candidate
	Gone bool
}

// Bus tells what is plugged in. Watch first tells all that is there and then
// what comes and goes, until ctx ends or the bus fails; replugging within the
// time of its debounce is told as neither. It calls tell from one goroutine.
type Bus interface {
	Watch(ctx context.Context, tell func(Change)) error
}
