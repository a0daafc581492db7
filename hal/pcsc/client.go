package pcsc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The message protocol of pcscd 1.8 to 2.x: version 4.4 is what most of them
// accept. Those of 2.3 and 2.4 insist on their own 4.5, which has a command more
// and nothing else; later ones take both, and speak as 4.4 does then. Integers
// have the byte order of the machine, for it is a local socket [pcsc-lite
// winscard_msg.h].
const (
	protocolMajor  = 4
	protocolMinor  = 4
	protocolStrict = 5 // of those who take no other

	cmdEstablish  = 0x01
	cmdConnect    = 0x04
	cmdDisconnect = 0x06
	cmdTransmit   = 0x09
	cmdVersion    = 0x11
	cmdStates     = 0x12
	cmdWait       = 0x13
	cmdStopWait   = 0x14

	slots      = 16 // PCSCLITE_MAX_READERS_CONTEXTS
	slotSize   = 184
	nameSize   = 128
	atrSize    = 33
	pciSize    = 16  // sizeof(SCARD_IO_REQUEST) on 64-bit
	maxReceive = 264 // a short response with its status word

	stateAbsent    = 0x02
	statePresent   = 0x04
	stateSwallowed = 0x08
	statePowered   = 0x10
)

// The results of pcscd that are told apart [pcsc-lite pcsclite.h].
const (
	rvSharing       = 0x8010000B
	rvNoCard        = 0x8010000C
	rvComm          = 0x80100013
	rvNotTransacted = 0x80100016
	rvUnresponsive  = 0x80100066
	rvUnpowered     = 0x80100067
	rvReset         = 0x80100068
	rvRemoved       = 0x80100069
	rvSecurity      = 0x8010006A
)

// failure is a result of pcscd that is not success.
type failure uint32

func (f failure) Error() string {
	names := map[failure]string{
		rvNotTransacted: "SCARD_E_NOT_TRANSACTED", rvSharing: "SCARD_E_SHARING_VIOLATION", rvNoCard: "SCARD_E_NO_SMARTCARD",
		rvComm: "SCARD_F_COMM_ERROR", rvSecurity: "SCARD_W_SECURITY_VIOLATION",
		rvUnresponsive: "SCARD_W_UNRESPONSIVE_CARD", rvUnpowered: "SCARD_W_UNPOWERED_CARD", rvReset: "SCARD_W_RESET_CARD", rvRemoved: "SCARD_W_REMOVED_CARD",
	}
	if n, ok := names[f]; ok {
		return n
	}
	return fmt.Sprintf("pcscd result 0x%08x", uint32(f))
}

var errNotAllowed = errors.New("this command is not on the list of what may be sent to a card")

// selectPPSE and selectPSE are all that is ever sent to a card: select the
// payment directory, which holds no card data [EMV Book 1, 12.2.2]. There is no
// way in this package to send anything else: transmit asks allowed, and nothing
// but transmit speaks to a card.
var (
	selectPPSE = []byte("\x00\xa4\x04\x00\x0e2PAY.SYS.DDF01\x00")
	selectPSE  = []byte("\x00\xa4\x04\x00\x0e1PAY.SYS.DDF01\x00")
)

func allowed(apdu []byte) bool { return bytes.Equal(apdu, selectPPSE) || bytes.Equal(apdu, selectPSE) }

var order = binary.NativeEndian

// slot is one of the readers that pcscd has.
type slot struct {
	name   string
	events uint32 // insertions and removals, modulo 65536
	state  uint32
}

func (s slot) present() bool { return s.state&statePresent != 0 }

// mute is a card that does not answer to reset.
func (s slot) mute() bool {
	return s.present() && s.state&stateSwallowed != 0 && s.state&statePowered == 0
}

// decodeSlots reads the table of readers. The answer to reset is not looked at:
// it tells what kind of card it is, which is nobody's business here.
func decodeSlots(b []byte) ([]slot, error) {
	if len(b) != slots*slotSize {
		return nil, fmt.Errorf("reader table has %d bytes, want %d", len(b), slots*slotSize)
	}
	var out []slot
	for i := range slots {
		s := b[i*slotSize : (i+1)*slotSize]
		name, _, ended := bytes.Cut(s[:nameSize], []byte{0})
		if !ended {
			return nil, fmt.Errorf("reader %d: its name has no end", i)
		}
		if len(name) > 0 {
			out = append(out, slot{name: printable(name), events: order.Uint32(s[nameSize:]), state: order.Uint32(s[nameSize+4:])})
		}
	}
	return out, nil
}

func printable(b []byte) string {
	return string(bytes.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, b))
}

// client is one connection to pcscd. It is used by one goroutine, but for nudge.
type client struct {
	conn    net.Conn
	timeout time.Duration

	mu      sync.Mutex
	waiting bool // for a change; nudge may end that
	nudged  bool
}

// errRefused is a pcscd that hangs up on us before it says a word: that is how
// it says that somebody may not use it [pcsc-lite, doc/README.polkit].
var errRefused = errors.New("pcscd refuses this user")

// dial connects and agrees on the protocol.
func dial(ctx context.Context, socket string, timeout time.Duration) (*client, error) {
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "unix", socket)
	if errors.Is(err, os.ErrPermission) {
		return nil, errRefused
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c := &client{conn: conn, timeout: timeout}
	answer, err := c.call(cmdVersion, words(protocolMajor, protocolMinor, 0), 12)
	if err == nil && order.Uint32(answer[8:]) != 0 && order.Uint32(answer) == protocolMajor && order.Uint32(answer[4:]) == protocolStrict {
		answer, err = c.call(cmdVersion, words(protocolMajor, protocolStrict, 0), 12)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		err = errRefused
	case err != nil:
	case order.Uint32(answer[8:]) != 0:
		err = result(answer[8:])
	case order.Uint32(answer) != protocolMajor:
		err = fmt.Errorf("pcscd speaks protocol %d.%d, want %d.x", order.Uint32(answer), order.Uint32(answer[4:]), protocolMajor)
	}
	if err != nil {
		_ = conn.Close()
		return nil, greeting{err}
	}
	return c, nil
}

// greeting is what went wrong with somebody who listens.
type greeting struct{ error }

func (g greeting) Error() string { return "greet pcscd: " + g.error.Error() }
func (g greeting) Unwrap() error { return g.error }

// socketPath is where pcscd listens.
func socketPath(configured string) string {
	if configured != "" {
		return configured
	}
	if s := os.Getenv("PCSCLITE_CSOCK_NAME"); s != "" {
		return s
	}
	return "/run/pcscd/pcscd.comm"
}

func (c *client) close() { _ = c.conn.Close() }

func words(v ...uint32) []byte {
	var b []byte
	for _, w := range v {
		b = order.AppendUint32(b, w)
	}
	return b
}

func result(b []byte) error {
	if rv := order.Uint32(b); rv != 0 {
		return failure(rv)
	}
	return nil
}

// call sends a command and reads an answer of n bytes.
func (c *client) call(cmd uint32, body []byte, n int) ([]byte, error) {
	if err := c.send(cmd, body, nil); err != nil {
		return nil, err
	}
	return c.receive(n, c.timeout)
}

func (c *client) send(cmd uint32, body, more []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	b := append(words(uint32(len(body)), cmd), body...) // #nosec G115 -- at most some hundred bytes
	_, err := c.conn.Write(append(b, more...))
	return err
}

func (c *client) receive(n int, within time.Duration) ([]byte, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		return nil, err
	}
	return b, nil
}

// states returns the readers as they are.
func (c *client) states() ([]slot, error) {
	b, err := c.call(cmdStates, nil, slots*slotSize)
	if err != nil {
		return nil, err
	}
	return decodeSlots(b)
}

// watch returns the readers as they are and asks to be told of the next
// change, which wait then waits for.
func (c *client) watch() ([]slot, error) {
	b, err := c.call(cmdWait, nil, slots*slotSize)
	if err != nil {
		return nil, err
	}
	return decodeSlots(b)
}

// wait returns when a reader has changed, when the time is over, or when it is
// nudged.
func (c *client) wait(within time.Duration) error {
	c.mu.Lock()
	if c.nudged {
		within = 0
	}
	err := c.conn.SetReadDeadline(time.Now().Add(within))
	c.waiting = true
	c.mu.Unlock()
	if err == nil {
		_, err = io.ReadFull(c.conn, make([]byte, 8))
	}
	c.mu.Lock()
	c.waiting, c.nudged = false, false
	c.mu.Unlock()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	// One message comes in any case: the change, if it was just on its way, or
	// the answer to this. It also shows that pcscd is well.
	_, err = c.call(cmdStopWait, nil, 8)
	return err
}

// nudge ends a wait, the present one or the next.
func (c *client) nudge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nudged = true
	if c.waiting {
		_ = c.conn.SetReadDeadline(time.Now())
	}
}

// selectDirectory connects to the card in a reader, shared with whoever else
// uses it, selects the payment directory - of cards with and, if there is none,
// without antenna - and lets go of the card. Of the answer only the status word
// is kept. The card was reached when an error comes from the transmission itself.
func (c *client) selectDirectory(reader string) (sw uint16, reached bool, err error) {
	b, err := c.call(cmdEstablish, words(2, 0, 0), 12)
	if err == nil {
		err = result(b[8:])
	}
	if err != nil {
		return 0, false, fmt.Errorf("establish context: %w", err)
	}
	context := order.Uint32(b[4:])
	body := append(words(context), make([]byte, nameSize)...)
	copy(body[4:4+nameSize-1], reader)
	const shared, anyProtocol = 2, 3
	if b, err = c.call(cmdConnect, append(body, words(shared, anyProtocol, 0, 0, 0)...), 4+nameSize+20); err == nil {
		err = result(b[4+nameSize+16:])
	}
	if err != nil {
		return 0, false, fmt.Errorf("connect to card: %w", err)
	}
	card, protocol := order.Uint32(b[4+nameSize+8:]), order.Uint32(b[4+nameSize+12:])
	defer func() {
		const leave = 0
		if b, e := c.call(cmdDisconnect, words(card, leave, 0), 12); err == nil {
			if err = e; err == nil {
				err = result(b[8:])
			}
		}
	}()
	if sw, err = c.transmit(card, protocol, selectPPSE); err == nil && sw == notFound {
		sw, err = c.transmit(card, protocol, selectPSE)
	}
	return sw, true, err
}

const notFound = 0x6a82 // [ISO/IEC 7816-4, 5.6]

// transmit sends one of the allowed commands.
func (c *client) transmit(card, protocol uint32, apdu []byte) (uint16, error) {
	if !allowed(apdu) {
		return 0, errNotAllowed
	}
	n := uint32(len(apdu)) // #nosec G115 -- 20
	if err := c.send(cmdTransmit, words(card, protocol, pciSize, n, protocol, pciSize, maxReceive, 0), apdu); err != nil {
		return 0, err
	}
	head, err := c.receive(32, c.timeout)
	if err == nil {
		err = result(head[28:])
	}
	if err != nil {
		return 0, fmt.Errorf("transmit: %w", err)
	}
	got := order.Uint32(head[24:])
	if got < 2 { // some reader drivers call that success
		return 0, failure(rvNotTransacted)
	}
	if got > maxReceive {
		return 0, fmt.Errorf("transmit: card answered %d bytes", got)
	}
	if err := c.skip(int64(got - 2)); err != nil {
		return 0, err
	}
	tail, err := c.receive(2, c.timeout)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint16(tail), nil
}

// skip reads past what nobody may see.
func (c *client) skip(n int64) error {
	if err := c.conn.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c.conn, n)
	return err
}
