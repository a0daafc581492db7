package ingest

import (
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// How much backlog goes into one group follows from how long commits take: what
// is live waits for the one that is under way.
const (
	leastBytes = 32 << 10 // the backlog ends also when commits are slow
	mostBytes  = 8 << 20
	shortly    = 100 * time.Millisecond // a commit while somebody is live
	alone      = 400 * time.Millisecond // and while there is backlog only
	liveFor    = 2 * time.Second        // after a live message somebody is
)

// pace adapts the bytes of backlog in a group.
type pace struct {
	bytes int
	live  time.Time // when a live message came last
}

// learn takes in that a commit took so long with so many bytes of backlog.
func (p *pace) learn(bytes int, isLive bool, took time.Duration, now time.Time) {
	if isLive {
		p.live = now
	}
	aim := alone
	if now.Sub(p.live) < liveFor {
		aim = shortly
	}
	switch {
	case took > aim:
		p.bytes = max(leastBytes, p.bytes*5/8)
	case took < aim/2 && bytes >= p.bytes*3/4: // what was not used up shows nothing
		p.bytes = min(mostBytes, p.bytes*5/4)
	}
}

// Stats is how the committer stands, and what it has done since the start.
type Stats struct {
	Live, Backlog int    // messages waiting now
	Withheld      int    // of the backlog: found no place in the last group
	Bytes         int    // waiting
	Share         int    // bytes of backlog that the next group takes
	Rows          uint64 // samples, events and audit entries stored, those that were there before not counted
	Again         uint64 // rows that were there before
	Commits       uint64
	Busy          time.Duration // of all commits
	Last          time.Duration // of the newest

	Messages [lanes]uint64        // stored: live, backlog
	Waited   [lanes]time.Duration // from arrival to the acknowledgement, of all of them
}

// statistics are Stats as they are gathered.
type statistics struct {
	mu sync.Mutex
	s  Stats
}

func (t *statistics) held(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.s.Withheld = n
}

// Stats returns how it stands now.
func (i *Ingest) Stats() Stats {
	n, size := i.queue.waits()
	i.stats.mu.Lock()
	defer i.stats.mu.Unlock()
	s := i.stats.s
	s.Live, s.Backlog, s.Bytes = n[live], n[backlog], size
	return s
}

// measure takes in a commit.
func (i *Ingest) measure(group []Message, out []fleet.Outcome, took time.Duration) {
	now, bytes, alive := time.Now(), 0, false
	t := &i.stats
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, m := range group {
		t.s.Messages[m.lane]++
		t.s.Waited[m.lane] += now.Sub(m.came)
		t.s.Rows += uint64(out[n].NewSamples + out[n].NewEvents + out[n].NewAudit) // #nosec G115 -- counts
		t.s.Again += uint64(out[n].Duplicates)                                     // #nosec G115 -- a count
		if m.lane == backlog {
			bytes += cost(m)
		}
		alive = alive || m.lane == live
	}
	i.pace.learn(bytes, alive, took, now)
	t.s.Commits++
	t.s.Busy += took
	t.s.Last, t.s.Share = took, i.pace.bytes
}

// Oldest is how long what has waited longest waits by now; 0: nothing waits.
func (i *Ingest) Oldest(now time.Time) (waits time.Duration) {
	q := i.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for lane, turn := range q.turn {
		for _, w := range turn {
			if len(w.lane[lane]) > 0 {
				waits = max(waits, now.Sub(w.lane[lane][0].came))
			}
		}
	}
	return waits
}
