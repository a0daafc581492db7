package enrol

import (
	"errors"
	"math/bits"
	"sync"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

const (
	maxPending = 4096
	maxPerKey  = 8  // open challenges of one EK and one address; the oldest makes room
	maxOfKey   = 64 // of one EK
	maxListed  = 60 // refusals of a kind in a minute that are audited one by one
	maxOfOne   = 8  // those of one member
	maxAsked   = 30 // requests of one member in a minute
	maxKinds   = 4096
)

// errBusy means that there is no room for another challenge.
var errBusy = errors.New("too many devices enrol at once")

// attempt is an enrolment between CHALLENGE and EVIDENCE, or the change of an
// AK between its two requests.
type attempt struct {
	applicant Applicant
	req       request
	raw       []byte
	ak        []byte // TPMT_PUBLIC that the credential names
	by        []byte // AK that vouched for it, when it is to follow another
	secret    []byte
	nonce     [32]byte
	exporter  []byte
	tenant    string
	tier      identity.Tier
	expires   time.Time
}

// pending holds the challenges that are open. Anyone may knock with the
// public half of an EK, so neither one key nor all of them fill the memory.
type pending struct {
	mu   sync.Mutex
	open map[[16]byte]*attempt
}

// add opens a challenge; errBusy when too many are open.
func (p *pending) add(id [16]byte, at *attempt) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = make(map[[16]byte]*attempt)
	}
	now := time.Now()
	var all, here crowd // of the same EK, and from the same address: who knocks from another puts nobody out
	for k, o := range p.open {
		switch {
		case now.After(o.expires):
			delete(p.open, k)
		case o.applicant.Device == at.applicant.Device:
			all.add(k, o)
			if o.applicant.From == at.applicant.From {
				here.add(k, o)
			}
		}
	}
	switch {
	case here.n >= maxPerKey:
		delete(p.open, here.oldest)
	case all.n >= maxOfKey:
		delete(p.open, all.oldest)
	}
	if len(p.open) >= maxPending {
		return errBusy
	}
	p.open[id] = at
	return nil
}

// crowd counts challenges and knows the oldest.
type crowd struct {
	n      int
	oldest [16]byte
	first  time.Time
}

func (c *crowd) add(id [16]byte, at *attempt) {
	if c.n++; c.n == 1 || at.expires.Before(c.first) {
		c.oldest, c.first = id, at.expires
	}
}

// take closes a challenge: it is answered once, rightly or wrongly.
func (p *pending) take(id [16]byte) *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.open[id]
	delete(p.open, id)
	return at
}

// kind is what refusals are counted by: whoever knocks a thousand times must
// not hide what another check, or a member, is refused for meanwhile.
type kind struct{ check, member string }

// tallies counts refusals by their kind.
type tallies struct {
	mu sync.Mutex
	of map[kind]*tally
}

// next counts one refusal.
func (t *tallies) next(k kind, now time.Time) (int, bool) {
	t.mu.Lock()
	c := t.of[k]
	if c == nil {
		if t.of == nil || len(t.of) >= maxKinds { // some are listed again, the memory is bounded
			t.of = make(map[kind]*tally)
		}
		c = &tally{}
		t.of[k] = c
	}
	t.mu.Unlock()
	limit := maxListed
	if k.member != "" {
		limit = maxOfOne
	}
	return c.next(now, limit)
}

// tally counts refusals, so that nobody fills the audit trail by knocking.
type tally struct {
	mu    sync.Mutex
	since time.Time
	n     int
}

// next counts one refusal. It returns how many there were in this minute, and
// whether this one is to be listed: those up to limit, then each power of two.
func (t *tally) next(now time.Time, limit int) (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.since) >= time.Minute {
		t.since, t.n = now, 0
	}
	t.n++
	return t.n, t.n <= limit || bits.OnesCount(uint(t.n)) == 1 // #nosec G115 -- a count
}
