package firmware

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

// What a card and QEMU's ccid-card-passthru say to each other [libcacard,
// vscard_common.h]: three words of header, type, reader and length, then the
// content. All numbers are big-endian.
const (
	vscInit       = 1
	vscError      = 2 // 0: the last message was taken
	vscReaderAdd  = 3
	vscATR        = 5
	vscCardRemove = 6
	vscAPDU       = 7

	vscVersion = 2 // 0.0.2
	maxVSC     = 4 << 10
	maxATR     = 33 // [ISO 7816-3, 8.2.1]
)

var errVSC = errors.New("QEMU's card reader")

// Reader is what is in the machine's USB card reader: nothing, or the card. The
// reader itself is QEMU's usb-ccid. It is there again after the power was off.
type Reader struct {
	Card *emulator.Card

	socket string
	slot   chan net.Conn // the card's line, while it is in
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// NewReader looks after the reader whose socket QEMU opens at a path, whenever
// it runs, until it is closed. The card is out.
func NewReader(socket string) *Reader {
	ctx, stop := context.WithCancel(context.Background())
	r := &Reader{socket: socket, slot: make(chan net.Conn), stop: stop}
	r.Card = emulator.NewCard(func(ctx context.Context) (net.Conn, error) {
		card, reader := net.Pipe()
		select {
		case r.slot <- reader:
			return card, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	r.wg.Go(func() { r.Card.Run(ctx) })
	r.wg.Go(func() { redial(ctx, socket, r.serve) })
	return r
}

// Close takes the card's end away and waits.
func (r *Reader) Close() {
	r.stop()
	r.wg.Wait()
}

// redial connects to a socket whenever somebody listens there, until ctx ends.
func redial(ctx context.Context, socket string, serve func(context.Context, net.Conn) error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if conn, err := net.Dial("unix", socket); err == nil {
			gone := context.AfterFunc(ctx, func() { _ = conn.Close() })
			_ = serve(ctx, conn) // the power went, or it is over
			gone()
			_ = conn.Close()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

type vscMessage struct {
	kind uint32
	body []byte
}

// session is one run of the machine.
type session struct {
	qemu    net.Conn
	card    net.Conn      // nil: out
	answers <-chan []byte // of the card
	asked   bool          // for its answer to reset
	shown   bool          // QEMU knows of it
}

// serve plays the card to one QEMU until that goes.
func (r *Reader) serve(ctx context.Context, conn net.Conn) error {
	s := &session{qemu: conn}
	defer s.remove()
	heard := make(chan vscMessage)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(heard)
		for {
			m, err := readVSC(conn)
			if err != nil {
				return
			}
			select {
			case heard <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	// The magic word is text; version and capabilities are numbers.
	if err := s.tell(vscInit, append([]byte("VSCD"), 0, 0, 0, vscVersion, 0, 0, 0, 0)); err != nil {
		return err
	}
	var slot <-chan net.Conn // nil until there is a reader to put a card in
	for {
		if slot != nil && s.card == nil {
			slot = r.slot
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m, ok := <-heard:
			if !ok {
				return io.EOF
			}
			switch m.kind {
			case vscInit:
				if err := s.tell(vscReaderAdd, nil); err != nil {
					return err
				}
			case vscError:
				if len(m.body) >= 4 && binary.BigEndian.Uint32(m.body) != 0 {
					return fmt.Errorf("%w refused: %x", errVSC, m.body)
				}
				slot = r.slot
			case vscAPDU:
				if err := s.ask(m.body); err != nil {
					return err
				}
			}
		case card := <-freeSlot(slot, s.card):
			if err := s.insert(ctx, card); err != nil {
				return err
			}
		case b, ok := <-s.answers:
			if err := s.answered(b, ok); err != nil {
				return err
			}
		}
	}
}

// freeSlot is where the next card comes from; nowhere while one is in.
func freeSlot(slot <-chan net.Conn, card net.Conn) <-chan net.Conn {
	if card != nil {
		return nil
	}
	return slot
}

// insert begins with a card: it is powered and asked for its answer to reset.
func (s *session) insert(ctx context.Context, card net.Conn) error {
	answers := make(chan []byte)
	s.card, s.answers, s.asked, s.shown = card, answers, true, false
	go func() {
		defer close(answers)
		for {
			var n [2]byte
			if _, err := io.ReadFull(card, n[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(n[:]))
			if _, err := io.ReadFull(card, b); err != nil {
				return
			}
			select {
			case answers <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	for _, power := range [][]byte{{1}, {4}} {
		if err := s.send(power); err != nil {
			return nil //nolint:nilerr // it was pulled out again, which its answers tell
		}
	}
	return nil
}

// send says something to the card [vsmartcard vpcd protocol].
func (s *session) send(b []byte) error {
	_, err := s.card.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)) // #nosec G115 -- bounded by maxVSC
	return err
}

// ask hands a command to the card. One that is not there answers nothing: QEMU
// has been told that it is gone.
func (s *session) ask(apdu []byte) error {
	if s.card == nil || len(apdu) < 2 {
		return nil
	}
	_ = s.send(apdu) // it was pulled out, which its answers tell
	return nil
}

// answered passes on what the card says, or that it is gone.
func (s *session) answered(b []byte, ok bool) error {
	switch {
	case !ok:
		shown := s.shown
		s.remove()
		if shown {
			return s.tell(vscCardRemove, nil)
		}
		return nil
	case s.asked:
		s.asked = false
		if len(b) > maxATR { // it does not answer: as if it were not there
			return nil
		}
		s.shown = true
		return s.tell(vscATR, b)
	}
	return s.tell(vscAPDU, b)
}

func (s *session) remove() {
	if s.card != nil {
		_ = s.card.Close()
	}
	s.card, s.answers, s.shown = nil, nil, false
}

func (s *session) tell(kind uint32, body []byte) error {
	b := binary.BigEndian.AppendUint32(nil, kind)
	b = binary.BigEndian.AppendUint32(b, 0) // the only reader
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	_, err := s.qemu.Write(append(b, body...))
	return err
}

func readVSC(r io.Reader) (vscMessage, error) {
	var head [12]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return vscMessage{}, err
	}
	m := vscMessage{kind: binary.BigEndian.Uint32(head[:])}
	n := binary.BigEndian.Uint32(head[8:])
	if n > maxVSC {
		return m, fmt.Errorf("%w says %d bytes", errVSC, n)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		return m, err
	}
	m.body = body.Bytes()
	return m, nil
}
