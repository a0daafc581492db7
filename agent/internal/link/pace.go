package link

import (
	"math/rand/v2"
	"time"
)

// pace is how fast the backlog goes beside what is live. It has a rate, which
// is a little different for each connection, so that the tills of a chain do not
// march in step; and a number of messages in flight, which falls when
// acknowledgements become slow and grows again when they do not.
type pace struct {
	rate   float64 // bytes a second; 0: as fast as they are acknowledged
	tokens float64 // bytes that may go now; below 0: how many went ahead of their time
	at     time.Time

	most    float64 // in flight
	allow   float64
	quick   time.Duration // the quickest acknowledgement
	lowered time.Time
}

const (
	slowest = time.Second // a slower acknowledgement is slow, when others were not as slow
	slower  = 8           // times the quickest
	jitter  = 0.25        // of the rate
	stagger = 2.0         // seconds by which connections that begin at once are apart
)

func newPace(kib, messages int, now time.Time) pace {
	p := pace{most: float64(messages), allow: 2, at: now}
	p.allow = min(p.allow, p.most)
	if kib > 0 {
		p.rate = float64(kib) * 1024 * (1 - jitter + 2*jitter*rand.Float64()) //nolint:gosec // spreads load, guards nothing
		p.tokens = -p.rate * stagger * rand.Float64()                         //nolint:gosec // the same
	}
	return p
}

// allowed is how many messages of the backlog may be in flight: never none, so
// that it ends.
func (p *pace) allowed() int { return max(1, int(p.allow)) }

// wait is how long it takes until the next message may go.
func (p *pace) wait(now time.Time) time.Duration {
	if p.rate == 0 {
		return 0
	}
	if since := now.Sub(p.at).Seconds(); since > 0 {
		p.tokens, p.at = min(p.tokens+since*p.rate, p.rate/4), now
	}
	if p.tokens >= 0 {
		return 0
	}
	return time.Duration(-p.tokens/p.rate*float64(time.Second)) + time.Millisecond
}

func (p *pace) spend(bytes int) { p.tokens -= float64(bytes) }

// acked takes in that a message sent at a moment was acknowledged.
func (p *pace) acked(sent, now time.Time) {
	took := now.Sub(sent)
	if p.quick == 0 || took < p.quick {
		p.quick = took
	}
	switch {
	case took <= max(slowest, slower*p.quick):
		p.allow = min(p.most, p.allow+1/p.allow)
	case sent.After(p.lowered): // once for all that were in flight together
		p.allow, p.lowered = max(1, p.allow/2), now
	}
}
