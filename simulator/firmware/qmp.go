package firmware

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Event is what QEMU tells of the machine.
type Event struct {
	Name   string // RESET, SHUTDOWN, WATCHDOG, GUEST_PANICKED...
	Reason string // of a RESET or SHUTDOWN: guest-reset, guest-shutdown, host-qmp-quit...
	Action string // of a WATCHDOG: reset
	Guest  bool   // the guest did it
	Time   time.Time
}

// monitor speaks QMP, QEMU's own protocol: a JSON value a line [QEMU, QMP
// specification].
type monitor struct {
	conn  net.Conn
	event func(Event)
	over  chan struct{} // QEMU says no more

	mu      sync.Mutex
	next    int
	waiting map[int]chan reply
	closed  error
}

type reply struct {
	Return json.RawMessage
	Err    error
}

// message is a line of QMP, of whatever kind.
type message struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		Action string `json:"action"`
	} `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// maxLine is of a line of QMP. The longest that we cause has some hundred bytes.
const maxLine = 1 << 20

// newMonitor takes over a connection to QEMU; event is called for what happens,
// in order, and must not block for long.
func newMonitor(ctx context.Context, conn net.Conn, event func(Event)) (*monitor, error) {
	m := &monitor{conn: conn, event: event, over: make(chan struct{}), waiting: map[int]chan reply{}}
	go m.run()
	if _, err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

func (m *monitor) run() {
	defer close(m.over)
	err := readQMP(m.conn, m.answer, m.event)
	if err == nil {
		err = io.EOF
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = fmt.Errorf("QEMU closed its monitor: %w", err)
	for _, c := range m.waiting {
		c <- reply{Err: m.closed}
	}
	clear(m.waiting)
}

func (m *monitor) answer(id int, r reply) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.waiting[id]; c != nil {
		delete(m.waiting, id)
		c <- r
	}
}

// execute gives QEMU a command and waits for the answer.
func (m *monitor) execute(ctx context.Context, command string, arguments map[string]any) (json.RawMessage, error) {
	m.mu.Lock()
	if m.closed != nil {
		m.mu.Unlock()
		return nil, m.closed
	}
	m.next++
	id, c := m.next, make(chan reply, 1)
	m.waiting[id] = c
	ask := map[string]any{"execute": command, "id": id}
	if arguments != nil {
		ask["arguments"] = arguments
	}
	b, err := json.Marshal(ask)
	if err == nil {
		_, err = m.conn.Write(append(b, '\n'))
	}
	if err != nil {
		delete(m.waiting, id)
		m.mu.Unlock()
		return nil, fmt.Errorf("ask QEMU for %s: %w", command, err)
	}
	m.mu.Unlock()
	select {
	case r := <-c:
		return r.Return, r.Err
	case <-ctx.Done():
		m.answer(id, reply{})
		return nil, ctx.Err()
	}
}

// readQMP reads what QEMU says to the end. Answers without a number, the
// greeting and kinds of messages that are not known are passed over.
func readQMP(r io.Reader, answer func(int, reply), event func(Event)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("a line of QMP: %w", err)
		}
		switch {
		case m.Event != "":
			event(Event{m.Event, m.Data.Reason, m.Data.Action, m.Data.Guest, time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		case m.ID == nil:
		case m.Error != nil:
			answer(*m.ID, reply{Err: fmt.Errorf("QEMU says %s: %s", m.Error.Class, m.Error.Desc)})
		default:
			answer(*m.ID, reply{Return: m.Return})
		}
	}
	return lines.Err()
}
