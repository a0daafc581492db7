package board

import (
	"strings"
	"time"

	"periph.io/x/conn/v3"

	"github.com/tillward/tillward/hal"
)

// BusNumber finds a bus below dir.
var BusNumber = busNumber

// ReadChip reads a chip of that kind once.
func ReadChip(name string, c conn.Conn) (float64, error) { return chips[name].read(c) }

// ErrAsleep is a chip that does not measure.
var ErrAsleep = errAsleep

// Rigged is a driver of a box below root that has more or less space, another
// clock, and is looked at often.
func Rigged(root, bus string, space func(string) (float64, float64, error), unsynced func() bool) Driver {
	return Driver{
		Root: root, Bus: bus, space: space, every: 20 * time.Millisecond,
		clock: func() (clock, error) { return clock{unsynced: unsynced(), offset: 250, worst: 1000}, nil },
	}
}

// ReadProc reads everything that is a text of the kernel.
func ReadProc(text string) map[string]float64 {
	m := meminfo([]byte(text))
	if v, ok := first([]byte(text)); ok {
		m["first"] = v
	}
	c := cpuOf([]byte(text))
	m["busy"], m["total"] = c.busy, c.total
	life, eol, _ := strings.Cut(text, "\n")
	d := emmcOf(life, eol)
	d.tell(m)
	return m
}

// EMMC is whether a chip that says this fails, and by how much it is worn.
func EMMC(lifeTime, preEOL string) (hal.Tri, float64) {
	d := emmcOf(lifeTime, preEOL)
	return d.failing, d.wear
}

// WaitForDisks waits until UDisks2 was asked once.
func WaitForDisks(d hal.Device) { <-d.(*board).asked }

// Follow is what the driver makes of the edges and levels of a line.
type Follow struct {
	e     edges
	Rises int // told or counted
	Last  bool
}

// Level takes in that the line was read.
func (f *Follow) Level(active bool) {
	first := f.e.began.IsZero()
	f.e.level(active, time.Unix(1, 0))
	if !first && active && !f.Last {
		f.Rises++
	}
	f.Last = active
}

// Edge takes in an edge.
func (f *Follow) Edge(e Edge) (lost uint32) {
	e.At = time.Unix(2, 0)
	levels, lost, more := f.e.next(e)
	f.Rises += more
	for _, active := range levels {
		if active && !f.Last {
			f.Rises++
		}
		f.Last = active
	}
	return lost
}

// DecodeEdge reads what the kernel says of an edge.
var DecodeEdge = decode
