package pcsc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/emulator"
)

// script is a pcscd that plays what a real one does only now and then: a mock
// of its protocol, with one reader.
type script struct {
	socket string

	mu       sync.Mutex
	refuses  bool   // everybody, as by polkit
	minor    uint32 // of the protocol, the only one that it takes; 0: 4
	garbles  bool   // the table of readers
	present  bool
	moves    uint32 // of cards, that nobody saw
	connect  uint32 // result of connecting to the card
	transmit uint32 // result of speaking to it
	after    func() // is done when it was spoken to
	asked    int    // for the table
	waiters  map[net.Conn]bool
}

func play(t *testing.T) *script {
	t.Helper()
	s := &script{socket: filepath.Join(t.TempDir(), "s"), waiters: map[net.Conn]bool{}}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	conns := make(chan net.Conn, 1000)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		for len(conns) > 0 {
			_ = (<-conns).Close()
		}
		wg.Wait()
	})
	return s
}

// change does something, and tells whoever waits for changes.
func (s *script) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	for c := range s.waiters {
		delete(s.waiters, c)
		_, _ = c.Write(make([]byte, 8))
	}
}

func (s *script) serve(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	refuses := s.refuses
	s.mu.Unlock()
	if refuses {
		return
	}
	ne := binary.NativeEndian
	words := func(v ...uint32) (b []byte) {
		for _, w := range v {
			b = ne.AppendUint32(b, w)
		}
		return b
	}
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		body := make([]byte, min(ne.Uint32(head), 1000))
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		s.mu.Lock()
		var answer []byte
		switch ne.Uint32(head[4:]) {
		case 0x11: // version
			answer = words(4, max(s.minor, 4), 0)
			if !bytes.Equal(body[:8], answer[:8]) {
				ne.PutUint32(answer[8:], 0x8010001E) // SCARD_E_SERVICE_STOPPED
			}
		case 0x12, 0x13: // table, and wait for changes
			s.asked++
			answer = make([]byte, 16*184)
			copy(answer, "Mock Reader 00 00")
			ne.PutUint32(answer[128:], s.moves)
			ne.PutUint32(answer[132:], map[bool]uint32{true: 0x34, false: 0x02}[s.present])
			if s.garbles {
				for i := range 128 {
					answer[i] = 'x' // a name without an end
				}
			}
			if ne.Uint32(head[4:]) == 0x13 {
				s.waiters[c] = true
			}
		case 0x14: // wait no more
			if !s.waiters[c] {
				break
			}
			delete(s.waiters, c)
			answer = make([]byte, 8)
		case 0x01: // context
			answer = words(0, 7, 0)
		case 0x04: // connect
			answer = append(body[:132:132], words(0, 0, 9, 1, s.connect)...)
		case 0x06: // disconnect
			answer = words(9, 0, 0)
		case 0x09: // transmit
			apdu := make([]byte, ne.Uint32(body[12:]))
			if _, err := io.ReadFull(c, apdu); err != nil {
				s.mu.Unlock()
				return
			}
			answer = words(0, 0, 0, 0, 0, 0, 0, s.transmit)
			if s.transmit == 0 {
				answer = append(words(0, 0, 0, 0, 0, 0, 4, 0), 0x6f, 0x00, 0x90, 0x00)
			}
			if s.after != nil {
				s.after()
			}
		}
		_, err := c.Write(answer)
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *script) reader() emulator.Reader { return emulator.Reader{Socket: s.socket, Name: "Mock"} }

func interactive(t *testing.T, d hal.Device) (hal.Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return d.(hal.HealthChecker).CheckHealth(ctx, hal.Interactive)
}

// What pcscd says of a card decides what is told of it: in use is no fault, and
// a card that was pulled out is not one that does not answer.
func TestWhatPCSCDSaysOfACard(t *testing.T) {
	for _, test := range []struct {
		what              string
		connect, transmit uint32
		leaves            bool // the card, when it is spoken to
		ok                bool
		step, code, err   string
		torn, errors      float64
	}{
		{what: "all is well", ok: true, step: "select", code: "9000"},
		{what: "somebody else has it", connect: 0x8010000B, step: "select", code: "M_IN_USE", err: "E_BUSY"},
		{what: "polkit denies cards", connect: 0x8010006A, step: "select", code: "E_NOSERVICE"},
		{what: "it does not answer to reset", connect: 0x80100066, step: "select", code: "M_CARD_MUTE"},
		{what: "it was pulled out", transmit: 0x80100069, step: "select", code: "M_CARD_TORN", torn: 1},
		{what: "the reader failed, for it was pulled out", transmit: 0x80100016, leaves: true, step: "select", code: "M_CARD_TORN", torn: 1},
		{what: "the reader failed, and it is still in", transmit: 0x80100016, step: "select", code: "E_FAILURE", errors: 1},
		{what: "somebody else has reset it", transmit: 0x80100068, step: "select", code: "E_FAILURE"},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			s := play(t)
			s.change(func() {
				s.present, s.connect, s.transmit = true, test.connect, test.transmit
				if test.leaves {
					s.after = func() { s.present = false }
				}
			})
			d := open(t, s.reader())
			status(t, d, filled)
			rep, err := interactive(t, d)
			last := rep.Checks[len(rep.Checks)-1]
			if rep.OK != test.ok || last.ID != test.step || last.Code != test.code || last.OK != test.ok {
				t.Errorf("got %+v, want %s %s", rep, test.step, test.code)
			}
			if test.err == "" && err != nil || test.err != "" && !errors.Is(err, &hal.Error{Code: test.err}) {
				t.Errorf("got %v, want %q", err, test.err)
			}
			// M_TransmitErrorCount also counts the torn.
			if n := count(t, d, "M_TransmitErrorCount"); n != test.torn+test.errors {
				t.Errorf("got %v transmit errors, want %v", n, test.torn+test.errors)
			}
			if st := status(t, d, func(hal.Status) bool { return true }); st.Health == hal.Fault {
				t.Errorf("the reader is called broken: %+v", st)
			}
		})
	}
}

// A daemon that does not let us in says so by hanging up; that is told, with
// what to do, and is over when it lets us in.
func TestRefused(t *testing.T) {
	s := play(t)
	s.change(func() { s.refuses = true })
	d := open(t, s.reader())
	st := status(t, d, func(s hal.Status) bool { return s.Reason == "E_NOSERVICE" })
	if st.Health != hal.Offline || st.Advice == "" {
		t.Errorf("got %+v", st)
	}
	rep, err := d.(hal.HealthChecker).CheckHealth(t.Context(), hal.Internal)
	if err != nil || rep.OK || rep.Checks[0].Code != "E_NOSERVICE" {
		t.Errorf("got %+v, %v", rep, err)
	}
	s.change(func() { s.refuses = false })
	d.(hal.Nudger).Nudge()
	status(t, d, empty)
	if n := count(t, d, "CommunicationErrorCount"); n != 0 {
		t.Errorf("a refusal is no error of communication, got %v", n)
	}
}

// A table that means nothing is counted, and survived.
func TestGarbledTable(t *testing.T) {
	s := play(t)
	d := open(t, s.reader())
	status(t, d, empty)
	s.change(func() { s.garbles = true })
	status(t, d, func(s hal.Status) bool { return s.Sensors["M_DaemonGone"] == hal.Yes })
	if n := count(t, d, "CommunicationErrorCount"); n < 1 {
		t.Errorf("got %v errors of communication", n)
	}
	s.change(func() { s.garbles, s.present = false, true })
	status(t, d, filled)
}

// Nudged, it looks at once: also at a pcscd that has said nothing.
func TestNudge(t *testing.T) {
	s := play(t)
	d := open(t, s.reader(), "timeout", "1m")
	status(t, d, empty)
	s.mu.Lock()
	s.present = true // and nobody is told
	s.mu.Unlock()
	d.(hal.Nudger).Nudge()
	status(t, d, filled)
}

// A daemon that lives and has nothing to say is asked now and then whether it
// does, and one that has died in its sleep is found out.
func TestLiveness(t *testing.T) {
	s := play(t)
	d := open(t, s.reader(), "timeout", "20ms")
	status(t, d, func(hal.Status) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.asked > 3
	})
	status(t, d, empty)
}

// A card that was changed for another between two looks is told and counted,
// and the new one is spoken to.
func TestChangedBetweenLooks(t *testing.T) {
	s := play(t)
	s.change(func() { s.present = true })
	d := open(t, s.reader(), "probe", "insert")
	status(t, d, filled)
	s.change(func() { s.moves += 4 }) // out, in, out, in
	waitCount(t, d, "M_TransmitCount", 1)
	_ = d.Close()
	var told []string
	for e, err := range d.(hal.Notifier).Events(t.Context()) {
		if err == nil {
			told = append(told, e.Code)
		}
	}
	if want := []string{"CARD_PRESENT", "NO_CARD", "CARD_PRESENT"}; !slices.Equal(told, want) {
		t.Errorf("got %v, want %v", told, want)
	}
	if in, out := count(t, d, "M_CardInsertedCount"), count(t, d, "M_CardRemovedCount"); in != 3 || out != 2 {
		t.Errorf("got %v cards in and %v out, want 3 and 2", in, out)
	}
}

// Daemons of pcsc-lite 2.3 and 2.4 insist on their own version of the protocol;
// one that is not known is not spoken to.
func TestVersionsOfTheProtocol(t *testing.T) {
	for minor, speaks := range map[uint32]bool{4: true, 5: true, 7: false} {
		s := play(t)
		s.minor = minor
		d := open(t, s.reader())
		st := status(t, d, func(s hal.Status) bool { return s.Power != hal.PowerUnknown })
		if up := st.Power == hal.PowerOnline; up != speaks {
			t.Errorf("pcscd of protocol 4.%d: got %+v", minor, st)
		}
	}
}
