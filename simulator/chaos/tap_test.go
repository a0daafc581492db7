package chaos

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// tapped is a tap between an agent and a service, and what it told.
func tapped(t testing.TB, o orders) (agent, service net.Conn, told <-chan line) {
	t.Helper()
	agent, service = net.Pipe()
	here, there := net.Pipe()
	w := &witness{conn: here, is: o}
	lines := make(chan line, 10000)
	go func() {
		defer close(lines)
		in := bufio.NewScanner(there)
		for in.Scan() {
			var l line
			if json.Unmarshal(in.Bytes(), &l) == nil {
				lines <- l
			}
		}
	}()
	t.Cleanup(func() {
		for _, c := range []net.Conn{agent, service, there} {
			_ = c.Close()
		}
	})
	return newTap(agent, w), service, lines
}

func publishing(id uint16, size int) []byte {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = 1, id, "t/demo/d/x/up/audit", bytes.Repeat([]byte{byte(id)}, size)
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// TestTwice: each packet arrives, some more than once in each way there is, in
// any pieces; and the agent hears of no copy's acknowledgement.
func TestTwice(t *testing.T) {
	agent, service, told := tapped(t, orders{Twice: 0.5})
	const n = 400
	ids := make(map[uint16]int)
	own, dups := 0, 0
	done := make(chan error, 1)
	go func() {
		for {
			p, err := packets.ReadPacket(service)
			if err != nil {
				done <- err
				return
			}
			m, ok := p.(*packets.PublishPacket)
			if !ok {
				done <- nil
				return
			}
			if m.MessageID > firstOwn {
				own++
			} else {
				ids[m.MessageID]++
			}
			if m.Dup {
				dups++
			}
		}
	}()
	var all []byte
	for i := range uint16(n) {
		all = append(all, publishing(i+1, int(i%300))...)
	}
	all = append(all, 0xC0, 0) // PINGREQ
	for len(all) > 0 {
		k := min(len(all), 1+rand.IntN(200))
		if _, err := agent.Write(all[:k]); err != nil {
			t.Fatal(err)
		}
		all = all[k:]
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	again := 0
	for id := range uint16(n) {
		if ids[id+1] == 0 {
			t.Errorf("packet %d did not arrive", id+1)
		}
		again += ids[id+1] - 1
	}
	if again == 0 || own == 0 || dups == 0 {
		t.Errorf("%d copies, %d with an id of their own, %d marked; want some of each", again, own, dups)
	}
	seen := make(map[string]int)
	for len(told) > 0 {
		seen[(<-told).Name]++
	}
	if len(seen) < 3 {
		t.Errorf("told of %v", seen)
	}

	go func() {
		ack := func(id uint16) []byte { return []byte{0x40, 2, byte(id >> 8), byte(id)} }
		_, _ = service.Write(slices.Concat(ack(1), ack(firstOwn+1), ack(2), publishing(9, 3), []byte{0xD0, 0}))
	}()
	var got []byte
	for {
		p, err := packets.ReadPacket(agent)
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := p.(*packets.PubackPacket); ok {
			got = append(got, byte(a.MessageID))
		}
		if _, end := p.(*packets.PingrespPacket); end {
			break
		}
	}
	if !bytes.Equal(got, []byte{1, 2}) {
		t.Errorf("acknowledgements of %v, want 1 and 2", got)
	}
}

// TestCut: the connection ends in the middle of a PUBLISH, and of nothing else.
func TestCut(t *testing.T) {
	agent, service, told := tapped(t, orders{Cut: true})
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(service)
		got <- b
	}()
	if _, err := agent.Write([]byte{0xC0, 0}); err != nil {
		t.Fatal(err)
	}
	p := publishing(1, 100)
	if _, err := agent.Write(p); err == nil {
		t.Error("the connection is still there")
	}
	if b := <-got; !bytes.Equal(b, append([]byte{0xC0, 0}, p[:len(p)/2]...)) {
		t.Errorf("%d bytes came through, want the half of %d", len(b)-2, len(p))
	}
	if l := <-told; l.Kind != saidCut {
		t.Errorf("told %+v", l)
	}
}

// FuzzTap: whatever comes, nothing is lost when nothing is to be done, and
// nothing panics when something is.
func FuzzTap(f *testing.F) {
	f.Add(publishing(1, 10))
	f.Add([]byte{0x32, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0})
	f.Add([]byte{0x32, 2, 0, 9})
	f.Add([]byte{0x40, 2, 0xff, 0xff, 0x32, 3, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, o := range []orders{{}, {Twice: 1}} {
			var whole, out bytes.Buffer
			for rest := b; ; {
				p := packet(rest)
				if p == nil {
					break
				}
				whole.Write(p)
				rest = rest[len(p):]
			}
			w := &witness{conn: sink{out: io.Discard}, is: o}
			tp := newTap(sink{out: &out, in: bytes.NewReader(b)}, w)
			if _, err := tp.Write(b); err != nil {
				t.Fatal(err)
			}
			if o.Twice == 0 && !bytes.Equal(out.Bytes(), whole.Bytes()) {
				t.Errorf("%x came out as %x", whole.Bytes(), out.Bytes())
			}
			_, _ = io.ReadAll(tp)
		}
	})
}

// sink is a connection that takes everything and says one thing.
type sink struct {
	net.Conn
	out io.Writer
	in  io.Reader
}

func (s sink) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s sink) Read(b []byte) (int, error)  { return s.in.Read(b) }
