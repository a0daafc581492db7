package emulator_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// starLine connects to a Star printer within the process.
func starLine(t *testing.T, model emulator.StarModel) (*emulator.Star, net.Conn) {
	t.Helper()
	p, err := emulator.NewStar("", model)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = p.Serve(far)
	}()
	t.Cleanup(func() {
		_ = near.Close()
		<-served
	})
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	return p, near
}

const (
	fine    = "\x23\x06\x00\x00\x00\x00\x00\x00\x00"
	fineNet = "\x23\x86\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

// What the frame says of each fault, by itself and asked.
func TestStarTellsEachFault(t *testing.T) {
	for fault, frame := range map[emulator.Fault]string{
		emulator.DrawerOpen:    "\x23\x06\x04\x00\x00\x00\x00\x00\x00",
		emulator.Offline:       "\x23\x06\x08\x00\x00\x00\x00\x00\x00",
		emulator.CoverOpen:     "\x23\x06\x28\x00\x00\x00\x00\x00\x00",
		emulator.Mechanical:    "\x23\x06\x08\x04\x00\x00\x00\x00\x00",
		emulator.CutterJam:     "\x23\x06\x08\x08\x00\x00\x00\x00\x00",
		emulator.Unrecoverable: "\x23\x06\x08\x20\x00\x00\x00\x00\x00",
		emulator.HeadHot:       "\x23\x06\x08\x40\x00\x00\x00\x00\x00",
		emulator.NearEnd:       "\x23\x06\x00\x00\x00\x04\x00\x00\x00",
		emulator.PaperEnd:      "\x23\x06\x08\x00\x00\x08\x00\x00\x00",
	} {
		p, c := starLine(t, emulator.StarModel{})
		ask(t, c, "\x1b\x06\x01", fine)
		p.Set(fault, true)
		ask(t, c, "\x1b\x06\x01", frame)
		p.Set(fault, false)
		ask(t, c, "\x1b\x1ea\x01", fine)
		p.Set(fault, true)
		ask(t, c, "", frame)
		p.Set(fault, false)
		ask(t, c, "", fine)
		if p.Mixed() != 0 {
			t.Errorf("%s: it has counted questions that were allowed", fault)
		}
	}
}

// A network card tells at once, and puts two bytes of length behind each frame.
func TestStarOverANetwork(t *testing.T) {
	_, c := starLine(t, emulator.StarModel{Ethernet: true})
	ask(t, c, "", fineNet)
	ask(t, c, "\x1b\x1ea\x00\x17", "\x23\x86\x02\x00\x00\x00\x00\x02\x00\x00\x00") // ESC RS a is ignored; ETB is counted and marked once
	ask(t, c, "\x05", "\x23\x86\x00\x00\x00\x00\x00\x02\x00\x00\x08"+"01:B\x00\x01\x20;")
	ask(t, c, "\x04", "\x23\x86\x00\x00\x00\x00\x00\x02\x00\x00\x08"+"02:B\x00\x01\x10;")
}

// The counter of ETB counts what is printed, and no more than to 31.
func TestStarCountsETB(t *testing.T) {
	p, c := starLine(t, emulator.StarModel{})
	ask(t, c, "\x1b\x1ea\x01", fine)
	ask(t, c, "\x17", "\x23\x06\x02\x00\x00\x00\x00\x02\x00")
	p.Set(emulator.CoverOpen, true)
	ask(t, c, "x\n\x17", "\x23\x06\x28\x00\x00\x00\x00\x02\x00") // the open cover, and nothing more
	p.Set(emulator.CoverOpen, false)
	ask(t, c, "", "\x23\x06\x00\x00\x00\x00\x00\x02\x00\x23\x06\x02\x00\x00\x00\x00\x04\x00")
	for want := 3; want <= 33; want++ {
		n := byte(want & 31)
		ask(t, c, "\x17", "\x23\x06\x02\x00\x00\x00\x00"+string([]byte{n&7<<1 | n&0x18<<2})+"\x00")
	}
	ask(t, c, "\x1b\x1eE\x00\x17", "\x23\x06\x02\x00\x00\x00\x00\x02\x00")
	if p.ETB() != 1 {
		t.Errorf("the counter is %d, want 1", p.ETB())
	}
}

// Must fail: a question while it tells by itself, and commands that nobody has.
func TestStarTellsOnDrivers(t *testing.T) {
	p, c := starLine(t, emulator.StarModel{Status: true})
	ask(t, c, "", fine)
	waitUntil(t, "the question to be counted", func() bool {
		ask(t, c, "\x1b\x06\x01", fine) // those that cross the first frame are no fault
		return p.Mixed() > 0
	})
	ask(t, c, "\x1b~\x02\x17", "\x23\x06\x02\x00\x00\x00\x00\x02\x00")
	if got, want := p.Unknown(), []string{"1b7e", "02"}; !slices.Equal(got, want) {
		t.Errorf("unknown: got %v, want %v", got, want)
	}
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// What looks like a command inside an image is none.
func TestStarPrintsImages(t *testing.T) {
	p, c := starLine(t, emulator.StarModel{Status: true})
	ask(t, c, "", fine)
	ask(t, c, "\x1b\x1dS\x01\x01\x00\x03\x00\x00\x1b\x06\x01\x1bk\x01\x00"+strings.Repeat("\x07", 24)+
		"\x1b*rA\x1b*rP0\x00b\x03\x00\x1bd3\x1b*rB\x1bb413\x501234\x1eok\n\x1bd3\x17", "\x23\x06\x02\x00\x00\x00\x00\x02\x00")
	if got := p.Jobs(); !slices.Equal(got, []string{"ok\n"}) || p.Has(emulator.DrawerOpen) || len(p.Unknown()) > 0 {
		t.Errorf("printed %q, drawer open %v, unknown %v", got, p.Has(emulator.DrawerOpen), p.Unknown())
	}
}

// cloud is a server that a printer polls: it keeps what it was told and has
// one job.
type cloud struct {
	mu    sync.Mutex
	polls []map[string]any
	codes []string
	ready bool
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.Method {
	case http.MethodPost:
		b, _ := io.ReadAll(r.Body)
		var m map[string]any
		if json.Unmarshal(b, &m) != nil {
			http.Error(w, "no JSON", http.StatusBadRequest)
			return
		}
		c.polls = append(c.polls, m)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"jobReady": c.ready, "mediaTypes": []string{"application/vnd.star.line"}, "jobToken": "t1",
			"clientAction": []map[string]string{{"request": "ClientType"}},
		})
	case http.MethodGet:
		_, _ = io.WriteString(w, "hello\n\x1bd3")
	case http.MethodDelete:
		c.ready = false
		c.codes = append(c.codes, r.URL.Query().Get("code")+" "+r.URL.Query().Get("token"))
	}
}

func (c *cloud) seen(ok func(c *cloud) bool) func() bool {
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return ok(c)
	}
}

func TestCloudStar(t *testing.T) {
	server := &cloud{}
	s := httptest.NewServer(server)
	defer s.Close()
	p, err := emulator.NewCloudStar(emulator.CloudConfig{URL: s.URL, MAC: "00:11:62:00:00:07", Every: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	last := func(name string, want any) func(c *cloud) bool {
		return func(c *cloud) bool { return len(c.polls) > 0 && c.polls[len(c.polls)-1][name] == want }
	}
	waitUntil(t, "a healthy poll", server.seen(last("status", "23 06 00 00 00 00 00 00 00")))
	waitUntil(t, "who it is", server.seen(func(c *cloud) bool {
		return slices.ContainsFunc(c.polls, func(m map[string]any) bool { return m["clientAction"] != nil })
	}))
	p.Set(emulator.PaperEnd, true)
	waitUntil(t, "the missing paper", server.seen(last("statusCode", "410+Out+of+Paper")))
	server.mu.Lock()
	server.ready = true
	server.mu.Unlock()
	p.Set(emulator.PaperEnd, false)
	waitUntil(t, "the confirmation", server.seen(func(c *cloud) bool { return slices.Equal(c.codes, []string{"200 OK t1"}) }))
	if got := p.Jobs(); !slices.Equal(got, []string{"hello\n"}) {
		t.Errorf("printed %q", got)
	}
	p.Set(emulator.Garbage, true)
	waitUntil(t, "the refusal", func() bool { return slices.Contains(p.Refused(), http.StatusBadRequest) })
}

func TestDisplay(t *testing.T) {
	d := emulator.NewDisplay()
	t.Cleanup(func() { _ = d.Close() })
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = d.Serve(far)
	}()
	t.Cleanup(func() {
		_ = near.Close()
		<-served
	})
	_ = near.SetDeadline(time.Now().Add(10 * time.Second))
	ask(t, near, "\x0cTOTAL\x1f$\x10\x0114.10\x1f$\x01\x02Thank you\x1fX\x02\x10\x04\x01", "\x12")
	if got, want := d.Shown(), []string{"TOTAL          14.10", "Thank you"}; !slices.Equal(got, want) {
		t.Errorf("shows %q, want %q", got, want)
	}
	ask(t, near, "\x0c\x1f~\x1f$\x15\x01\x10\x04\x01", "\x12")
	if got, want := d.Unknown(), []string{"1f7e", "1f241501"}; !slices.Equal(got, want) {
		t.Errorf("unknown: got %v, want %v", got, want)
	}
	if got := d.Seen(); len(got) != 1 || d.Brightness() != 2 || d.Output() != 19 {
		t.Errorf("has shown %q at brightness %d, %d characters", got, d.Brightness(), d.Output())
	}
}
