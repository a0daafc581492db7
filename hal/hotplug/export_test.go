package hotplug

import (
	"errors"
	"sync"
)

// Wire is a source of messages for tests.
type Wire struct {
	messages chan any
	once     sync.Once
	gone     chan struct{}
}

// NewWire returns a source that says nothing.
func NewWire() *Wire { return &Wire{messages: make(chan any), gone: make(chan struct{})} }

// On makes the bus listen to the wire.
func (w *Wire) On(b Bus) Bus {
	b.listen = func() (source, error) { return w, nil }
	return b
}

// Say sends what the kernel says, Forge what somebody else does, Lose that the
// socket ran over, Break that it failed.
func (w *Wire) Say(text string)   { w.messages <- message{0, []byte(text)} }
func (w *Wire) Forge(text string) { w.messages <- message{4711, []byte(text)} }
func (w *Wire) Lose()             { w.messages <- errLost }
func (w *Wire) Break(err error)   { w.messages <- err }

func (w *Wire) next() (message, error) {
	select {
	case m := <-w.messages:
		if err, ok := m.(error); ok {
			return message{}, err
		}
		return m.(message), nil
	case <-w.gone:
		return message{}, errors.New("closed")
	}
}

// Close implements source.
func (w *Wire) Close() error {
	w.once.Do(func() { close(w.gone) })
	return nil
}

// Gone says whether the bus has hung up.
func (w *Wire) Gone() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}

// Parse reads a message.
func Parse(text []byte) (action, path, subsystem string, ok bool) {
	u, ok := parseUevent(text)
	return u.action, u.path, u.subsystem, ok
}

// Listen opens the kernel's own source.
func Listen() (interface{ Close() error }, func() (uint32, []byte, error), error) {
	s, err := listen()
	if err != nil {
		return nil, nil, err
	}
	return s, func() (uint32, []byte, error) {
		m, err := s.next()
		return m.sender, m.text, err
	}, nil
}

// Text reads what a device says of itself, Version its bcdDevice.
var (
	Text    = text
	Version = version
)
