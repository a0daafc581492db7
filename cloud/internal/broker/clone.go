package broker

import (
	"fmt"
	"slices"
	"time"
)

// Of a device and its copy each takes the connection over from the other, and
// who loses it comes back. A device that lost its link, or was started again,
// takes over what nobody is behind.
const (
	copyTime   = 5 * time.Minute // that takeovers are counted together, and between two alarms
	copyTakes  = 4               // takeovers of live connections that are too many from one address
	copyMemory = 4096            // devices remembered
)

// takeover of a live connection.
type takeover struct {
	at       time.Time
	from, by string // hosts
}

// copies is what is known of one device.
type copies struct {
	seen []takeover
	told time.Time
}

// takenOver counts the takeover of a connection that turned out to be alive,
// and returns what is to be told; empty: nothing. The caller holds the lock.
func (b *Broker) takenOver(device, from, by string, at time.Time) string {
	c := b.copies[device]
	if c == nil {
		if len(b.copies) >= copyMemory {
			clear(b.copies) // an alarm comes later, the memory is bounded
		}
		c = &copies{}
		b.copies[device] = c
	}
	c.seen = slices.DeleteFunc(c.seen, func(t takeover) bool { return at.Sub(t.at) > copyTime })
	turns := slices.ContainsFunc(c.seen, func(t takeover) bool { return from != by && t.from == by && t.by == from })
	c.seen = append(c.seen, takeover{at, from, by})
	var what string
	switch {
	case turns:
		what = fmt.Sprintf("connections from %s and from %s take turns", from, by)
	case len(c.seen) >= copyTakes:
		what = fmt.Sprintf("%d live connections were taken over within %s, the last one from %s by %s", len(c.seen), copyTime, from, by)
	default:
		return ""
	}
	if !c.told.IsZero() && at.Sub(c.told) < copyTime {
		return ""
	}
	c.seen, c.told = nil, at
	return what
}
