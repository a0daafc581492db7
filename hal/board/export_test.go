package board

import "periph.io/x/conn/v3"

// BusNumber finds a bus below dir.
var BusNumber = busNumber

// ReadChip reads a chip of that kind once.
func ReadChip(name string, c conn.Conn) (float64, error) { return chips[name].read(c) }

// ErrAsleep is a chip that does not measure.
var ErrAsleep = errAsleep
