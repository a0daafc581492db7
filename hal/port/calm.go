package port

import (
	"net"
	"time"
)

// What a device may say: so much at once, and so much in a second from then on.
// Printers say some bytes when something changes; what goes on without an end
// is broken or hostile, and is read no faster.
const (
	sayAtOnce = 64 << 10
	sayOn     = 16 << 10
	calmFor   = 100 * time.Millisecond
)

// calm slows down the reading of what has no end. It is used by one reader.
type calm struct {
	spent float64 // bytes beyond what may be said
	last  time.Time
}

// heard notes that so many bytes came, and takes its time when they are too many.
func (c *calm) heard(n int) {
	now := time.Now()
	c.spent = max(0, c.spent-now.Sub(c.last).Seconds()*sayOn) + float64(n)
	c.last = now
	if c.spent > sayAtOnce {
		time.Sleep(calmFor)
	}
}

// wire is a network socket.
type wire struct {
	*net.TCPConn
	calm calm
}

// Read implements Conn.
func (c *wire) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.calm.heard(n)
	return n, err
}
