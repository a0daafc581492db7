package input

import (
	"encoding/binary"
	"math/bits"
)

// recordSize is that of a struct input_event: two longs of time, type, code
// and value [linux/input.h].
const recordSize = 2*bits.UintSize/8 + 8

// Of the event types and codes of the kernel, the few that count
// [linux/input-event-codes.h].
const (
	evSyn, evKey, evMax              = 0x00, 0x01, 0x1f
	synReport, synDropped            = 0x00, 0x03
	keyTab, keyEnter, keyKeypadEnter = 15, 28, 96
	pressed                          = 1
)

// counter turns key events into counts. All that it remembers of the keys is
// whether there was one since the last code ended.
type counter struct {
	end  func(code uint16) bool
	some bool // a key since the last end
	lost bool // the kernel's buffer ran over; nothing counts until it is in step again
}

// take counts the whole records in b: codes that were read to their end, and
// records that mean nothing or say that others were lost.
func (c *counter) take(b []byte) (scans, errors int) {
	for ; len(b) >= recordSize; b = b[recordSize:] {
		record := b[recordSize-8 : recordSize]
		kind, code := binary.NativeEndian.Uint16(record), binary.NativeEndian.Uint16(record[2:])
		switch {
		case kind > evMax:
			errors++
		case kind == evSyn && code == synDropped:
			errors++
			c.lost, c.some = true, true // what was lost was keys
		case kind == evSyn && code == synReport:
			c.lost = false
		case c.lost || kind != evKey || int32(binary.NativeEndian.Uint32(record[4:])) != pressed:
		case !c.end(code):
			c.some = true
		case c.some:
			c.some = false
			scans++
		}
	}
	return scans, errors
}

func isEnter(code uint16) bool { return code == keyEnter || code == keyKeypadEnter }

func isTab(code uint16) bool { return code == keyTab }
