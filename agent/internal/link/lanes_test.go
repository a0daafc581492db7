package link_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/link"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

func topicOf(a arrival) wire.Channel {
	t, _ := wire.ParseTopic(a.topic)
	return t.Channel
}

// away is a till that was away: telemetry, with events and audit records between.
func (d *till) away(n int) (telemetry, audit, events int) {
	d.t.Helper()
	for i := range n {
		switch {
		case i%9 == 0:
			d.put(spool.Audit, wire.Audit, fmt.Sprint("audit ", i))
			audit++
		case i%13 == 0:
			d.put(spool.Event, wire.Event, fmt.Sprint("event ", i))
			events++
		default:
			d.put(spool.Telemetry, wire.Telemetry, fmt.Sprint("telemetry ", i))
			telemetry++
		}
	}
	return telemetry, audit, events
}

func laned(t *testing.T, s *service) link.Options {
	s.version = wire.Version
	o := s.options(t)
	o.BacklogRate = -1
	return o
}

// TestLiveGoesAhead: while the service withholds the acknowledgement of a backlog, for longer than it may take for
// anything else, what is recorded now is sent and acknowledged. In the end all is there once, each channel in order.
func TestLiveGoesAhead(t *testing.T) {
	s := newService(t, "attested")
	o := laned(t, s)
	o.Timeout, o.Patience = time.Second, time.Hour
	s.hold = func(c wire.Channel) bool { return c == wire.Telemetry }
	d := newTill(t, o)
	telemetry, audit, events := d.away(600)
	d.start()
	d.until("attested", func(s link.Status) bool { return s.Open() })
	s.wait(func(a []arrival) bool {
		n := map[wire.Channel]int{}
		for _, one := range a {
			n[topicOf(one)]++
		}
		return n[wire.Audit] == audit && n[wire.Event] == events && n[wire.Telemetry] > 0
	})
	held := time.Now()
	for n := range 20 {
		d.put(spool.Telemetry, wire.Telemetry, fmt.Sprint("live ", n))
		d.put(spool.Audit, wire.Audit, fmt.Sprint("new ", 1000+n))
		before := s.wait(func(a []arrival) bool {
			return strings.Contains(fmt.Sprint(a), fmt.Sprintf("live %d}", n)) && strings.Contains(fmt.Sprint(a), fmt.Sprintf("new %d}", 1000+n))
		})
		for _, a := range before {
			if strings.HasPrefix(a.payload, "live") && topicOf(a) != wire.Live {
				t.Fatalf("%s came on %s, want it marked as sent ahead", a.payload, a.topic)
			}
		}
	}
	for time.Since(held) < 2*o.Timeout { // the rule under test is that nothing happens for longer than Timeout
		time.Sleep(o.Timeout / 10)
	}
	if st := d.link.Status(); !st.Open() {
		t.Fatalf("the device has hung up on a service that withholds: %+v", st)
	}
	if n := d.spool.Depth(); n != uint64(telemetry) {
		t.Errorf("%d messages wait, want the %d of the backlog", n, telemetry)
	}
	s.release()
	d.empty()
	d.put(spool.Telemetry, wire.Telemetry, "after 2000")
	stored := s.wait(func(a []arrival) bool { return len(a) > 0 && a[len(a)-1].payload == "after 2000" })
	if last := topicOf(stored[len(stored)-1]); last != wire.Telemetry {
		t.Errorf("with the backlog gone telemetry comes on %s", last)
	}
	once(t, stored)
	if want := 600 + 2*20 + 1; len(stored) != want {
		t.Errorf("%d messages came, want %d: none twice", len(stored), want)
	}
}

// once checks that each channel came in the order of its recording; what came again was sent again.
func once(t *testing.T, stored []arrival) (again int) {
	t.Helper()
	last, seen := map[string]int{}, map[string]bool{}
	for _, a := range stored {
		_, number, _ := strings.Cut(a.payload, " ")
		if seen[a.topic+a.payload] {
			again++
			continue
		}
		seen[a.topic+a.payload] = true
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := last[a.topic]; ok && n < at {
			t.Fatalf("%s came behind %d on %s", a.payload, at, a.topic)
		}
		last[a.topic] = n
	}
	return again
}

// TestServiceWithoutLanes gets everything in the order of the spool.
func TestServiceWithoutLanes(t *testing.T) {
	s := newService(t, "attested")
	o := laned(t, s)
	s.version = 4
	d := newTill(t, o)
	d.away(200)
	d.start()
	d.until("attested", func(s link.Status) bool { return s.Open() })
	d.put(spool.Telemetry, wire.Telemetry, "telemetry 999")
	stored := s.wait(func(a []arrival) bool { return len(a) == 201 })
	for i, a := range stored[:200] {
		if !strings.HasSuffix(a.payload, fmt.Sprint(" ", i)) || topicOf(a) == wire.Live {
			t.Fatalf("message %d is %s on %s", i, a.payload, a.topic)
		}
	}
	d.empty()
}

// TestLanesOverCuts: connections end again and again in the middle of a backlog. It goes on where what was acknowledged
// ends, each channel in order, and nothing is lost.
func TestLanesOverCuts(t *testing.T) {
	s := newService(t, "attested")
	o := laned(t, s)
	s.cut = func(n int) bool { return n%97 == 0 }
	d := newTill(t, o)
	d.away(900)
	d.start()
	for n := range 60 {
		d.put(spool.Telemetry, wire.Telemetry, fmt.Sprint("live ", 1000+n))
	}
	d.empty()
	s.mu.Lock()
	stored := bytesClone(s.stored)
	s.mu.Unlock()
	different := map[string]bool{}
	for _, a := range stored {
		different[a.payload] = true
	}
	again := once(t, stored)
	if len(different) != 960 || again == 0 || again > 32*len(stored)/97 {
		t.Errorf("%d different messages came and %d again, want 960 and no more than was in flight", len(different), again)
	}
}

// TestBacklogClosedDoor: of a backlog only what the q door takes leaves a device that is not attested, and the rest
// follows when it is.
func TestBacklogClosedDoor(t *testing.T) {
	s := newService(t, "quarantined")
	d := newTill(t, laned(t, s))
	_, audit, _ := d.away(300)
	d.start()
	stored := s.wait(func(a []arrival) bool { return len(a) >= audit })
	if dd, q := doors(stored); dd != 0 || q != audit {
		t.Fatalf("%d by the open door and %d by the other, want the %d audit messages", dd, q, audit)
	}
	d.put(spool.Telemetry, wire.Telemetry, "telemetry 1000")
	d.put(spool.Result, wire.Result, "result 0")
	s.wait(func(a []arrival) bool { return len(a) == audit+1 })
	s.say(wire.Challenge{V: wire.Version, Verdict: "attested"})
	stored = s.wait(func(a []arrival) bool { return len(a) == 302 })
	d.empty()
	if again := once(t, stored); again != 0 {
		t.Errorf("%d came again", again)
	}
}
