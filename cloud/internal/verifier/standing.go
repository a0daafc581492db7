package verifier

import (
	"bytes"
	"slices"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/enrol"
)

const (
	secretLen  = 32 // bytes of a nonce and of an exporter
	openNonces = 2  // a challenge on request may cross one by the clock

	// Evidence that nobody asked for: one is due at each connect.
	unaskedMax   = 16
	unaskedEvery = time.Minute
)

// challenge is one that waits for its answer, on the connection that it went by:
// a quote that was made before a reboot must not answer for the boot after it.
type challenge struct {
	nonce    []byte
	exporter []byte // of the connection
	log      bool   // asked for register values and event log
}

// standing is what is known of a device while it is connected. The lock of the
// Verifier guards it.
type standing struct {
	asked    []challenge // open, newest last
	due      time.Time   // of the next challenge
	exporter []byte      // of the connection that showed evidence last
	seq      uint64      // of that evidence

	model string
	trust fleet.Trust // as said last
	full  bool        // the next challenge asks for the log
	ends  time.Time   // of the connection, unless evidence says something else; zero: never

	enrolled time.Time
	booted   bool // the next are known
	reset    uint32
	restart  uint32
	firmware uint64

	shown  int       // evidence
	issued int       // challenges
	since  time.Time // when counting began
}

// wantsLog reports whether evidence without a log would only be asked for again.
func (s *standing) wantsLog() bool {
	return s.full || s.trust == fleet.Degraded || s.trust == fleet.Quarantined
}

func (s *standing) open(c challenge) {
	s.issued++
	s.asked = append(s.asked[max(0, len(s.asked)-openNonces+1):], c)
}

// of returns the standing of a device; the caller holds the lock.
func (v *Verifier) of(id fleet.DeviceID) *standing {
	s := v.standing[id]
	if s == nil {
		s = &standing{}
		v.standing[id] = s
	}
	return s
}

// fresh checks that a quote was made for the connection it came by or for a
// challenge that went by it, which it closes, and that it is the first of its
// number.
// log says that the challenge asked for the log.
func (v *Verifier) fresh(e Evidence, extra []byte, seq uint64) (log bool, f *fleet.Finding) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.of(e.Device)
	if bytes.Equal(s.exporter, e.Exporter) && seq <= s.seq {
		return false, fault(checkReplayed, "evidence %d of this connection was shown before: it counts once", seq)
	}
	is := func(secret []byte) bool {
		b := enrol.ConnBinding(string(e.Device), secret, seq)
		return len(secret) == secretLen && bytes.Equal(b[:], extra)
	}
	answered := slices.IndexFunc(s.asked, func(c challenge) bool { return is(c.nonce) && bytes.Equal(c.exporter, e.Exporter) })
	if answered >= 0 {
		log = s.asked[answered].log
		s.asked = slices.Delete(s.asked, answered, answered+1)
	} else if !is(e.Exporter) {
		return false, fault(checkBinding, "the quote is bound to another connection or to a challenge that is not open: it was made for somebody else, or shown again")
	}
	s.exporter, s.seq = e.Exporter, seq
	return log, nil
}

// crowds counts what a device shows and reports whether it is much more than
// it was asked for: each appraisal costs the fleet a little.
func (v *Verifier) crowds(id fleet.DeviceID, at time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.of(id)
	if at.Sub(s.since) > unaskedEvery {
		s.shown, s.issued, s.since = 0, 0, at
	}
	s.shown++
	return s.shown > s.issued+unaskedMax
}

// sameBoot checks what cannot change while a TPM counts one boot: it never
// counts fewer resumes than before, and its firmware stays, for a new one needs
// a reset; and that it counts no boot again that was refused. The reset count of
// what was accepted is on file. A device that enrols again begins anew.
func (v *Verifier) sameBoot(d fleet.Device, q quote) *fleet.Finding {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.of(d.ID)
	if !s.enrolled.Equal(d.EnrolledAt) {
		s.enrolled, s.booted = d.EnrolledAt, false
	}
	switch {
	case !s.booted:
	case q.reset < s.reset:
		return fell(s.reset, q.reset)
	case q.reset > s.reset:
	case q.restart < s.restart:
		return fault(checkReset, "the TPM counts fewer resumes than before in the same boot: its state was copied or set back, enrol the device again")
	case q.firmware != s.firmware:
		return fault(checkFirmware, "the TPM's firmware changed from %#x to %#x without a reset: another TPM answers for this one", s.firmware, q.firmware)
	}
	s.booted, s.reset, s.restart, s.firmware = true, q.reset, q.restart, q.firmware
	return nil
}

func fell(from, to uint32) *fleet.Finding {
	return fault(checkReset, "the TPM's reset count fell from %d to %d: it was cleared, enrol the device again", from, to)
}

// settle notes what was said and when the device is due again. again asks it
// at once: what it was judged by has changed meanwhile.
func (v *Verifier) settle(o outcome, model string, again bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := o.Attestation
	s := v.of(a.Device)
	s.model, s.trust = model, a.Trust
	s.full = again || s.full && !o.judged
	every := v.o.Every
	if !a.Accepted() {
		every /= nextAsked
	}
	s.due, s.ends = a.At.Add(jitter(every)), time.Time{}
	if !a.Until.IsZero() {
		s.ends = a.Until.Add(answering)
	}
	if again {
		s.due, s.ends = a.At, a.At.Add(2*v.o.Every)
	} else if !a.Until.IsZero() && a.Until.Before(s.due) {
		s.due = a.Until // a waiver ends when it says
	}
}

// due returns whom to challenge and whose connection is over, and forgets who
// has gone.
func (v *Verifier) due(now time.Time) (due, over []fleet.DeviceID) {
	connected := v.o.Link.Connected()
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.standing {
		if _, here := connected[id]; !here {
			delete(v.standing, id)
		}
	}
	for id := range connected {
		s := v.of(id)
		if !s.ends.IsZero() && now.After(s.ends) {
			s.ends, over = time.Time{}, append(over, id)
			continue
		}
		if s.due.IsZero() { // has shown nothing yet
			s.due = now.Add(jitter(v.o.Every / nextAsked))
		}
		if now.After(s.due) {
			s.due = now.Add(jitter(v.o.Every))
			due = append(due, id)
		}
	}
	return due, over
}
