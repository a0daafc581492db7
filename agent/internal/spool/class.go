package spool

import (
	"cmp"
	"errors"
	"fmt"
)

// The classes of a message: what may happen to it when space runs out, and what
// Put promises when it returns.
const (
	Audit     = "audit"     // never given up, has a reserve of its own; survives a power cut
	Result    = "result"    // of orders: never given up; survives a power cut
	Event     = "event"     // given up oldest first once telemetry is used up
	State     = "state"     // only the newest of its channel is kept
	Telemetry = "telemetry" // thinned, oldest most, then given up oldest first
)

// Shares divide the quota, in percent of it. Audit is a reserve: the others
// together leave it free, while audit may use whatever is free. Of the others
// each stays within its share; together they may have more shares than there is
// room, and then shed as their class says.
type Shares struct{ Audit, Result, Event, State, Telemetry int }

// defaults are the shares of a till.
func (s Shares) defaults() Shares {
	return Shares{
		Audit: cmp.Or(s.Audit, 20), Result: cmp.Or(s.Result, 10), Event: cmp.Or(s.Event, 25),
		State: cmp.Or(s.State, 5), Telemetry: cmp.Or(s.Telemetry, 70),
	}
}

// limit is the most that a class may have.
func (s *Spool) limit(class string) int64 {
	part := map[string]int{Result: s.shares.Result, Event: s.shares.Event, State: s.shares.State, Telemetry: s.shares.Telemetry}[class]
	if class == Audit {
		return s.max
	}
	return s.max / 100 * int64(part)
}

// kept reports whether nothing of a class is ever given up, and what was stored
// of it is there after a power cut.
func kept(class string) bool { return class == Audit || class == Result }

func known(class string) error {
	switch class {
	case Audit, Result, Event, State, Telemetry:
		return nil
	}
	return fmt.Errorf("spool class %q is not known", class)
}

// Files of before had one class for what is kept, and events among telemetry;
// an agent that was put back to before writes them again.
const (
	oldKeep   = "keep"
	oldLatest = "latest"

	auditChannel = "up/audit" // by which they are told apart
	eventChannel = "up/event"

	reclassed = 256 // messages in one step
)

// renamed is the class of today of a message of before.
func renamed(class, channel string) string {
	switch {
	case class == oldLatest:
		return State
	case class == oldKeep && channel == auditChannel:
		return Audit
	case class == oldKeep:
		return Result
	case class == Telemetry && channel == eventChannel:
		return Event
	}
	return class
}

// reclass gives the messages of a file of before their classes, a few at a time
// and where they are: it needs no room, and a power cut costs nothing.
func (s *Spool) reclass() error {
	for n := 1; n > 0; {
		err := s.attempt(loose, func(t *tx) error {
			old, err := t.fetch(`SELECT id, class, channel, size, payload FROM message
				WHERE class IN (?, ?) OR class = ? AND channel = ? ORDER BY id LIMIT ?`, oldKeep, oldLatest, Telemetry, eventChannel, reclassed)
			for _, m := range old {
				to := renamed(m.class, m.channel)
				if m.payload == nil { // changed from outside: it stays what it is, and Next gives it up
					err = errors.Join(err, t.do("UPDATE message SET class = ? WHERE id = ?", to, m.id))
					continue
				}
				blob, e := t.s.safe.pack(ofMessage(to, m.channel), m.payload)
				err = errors.Join(err, e, t.do("UPDATE message SET class = ?, payload = ? WHERE id = ?", to, blob, m.id))
			}
			n = len(old)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
