package emulator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// VirtualPCSCD stands in for pcscd where there is none: it speaks the protocol
// of pcscd's clients, version 4.4, on a socket of its own and has virtual
// readers for the same Cards. What it does not have of pcscd is drivers, and
// the time that those take to see a card.
type VirtualPCSCD struct {
	daemons []*virtualDaemon
	readers []Reader
}

// StartVirtualPCSCD serves so many readers, sixteen on each socket as pcscd
// does, with the sockets below dir.
func StartVirtualPCSCD(dir string, readers int) (_ *VirtualPCSCD, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("virtual pcscd: %w", err)
	}
	p := &VirtualPCSCD{}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	for i := 0; len(p.readers) < readers; i++ {
		run := socketFolder(filepath.Join(dir, fmt.Sprint(i)))
		if err := os.MkdirAll(run, 0o750); err != nil {
			return nil, fmt.Errorf("virtual pcscd: %w", err)
		}
		d := &virtualDaemon{socket: filepath.Join(run, "pcscd.comm"), owned: !strings.HasPrefix(run, dir), end: make(chan struct{}), faults: map[Fault]bool{}}
		p.daemons = append(p.daemons, d)
		for j := range min(slotsPerDaemon, readers-len(p.readers)) {
			s := &virtualSlot{name: fmt.Sprintf("Tillward virtual reader %d 00 %02d", j/2, j%2), card: &Card{changed: make(chan struct{}, 1)}}
			d.slots = append(d.slots, s)
			p.readers = append(p.readers, Reader{Socket: d.socket, Name: s.name, Card: s.card})
			d.wg.Go(func() { d.watch(s) })
		}
		if err := d.start(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Reader returns reader i, from 0.
func (p *VirtualPCSCD) Reader(i int) Reader { return p.readers[i] }

// Unplug pulls reader i out of its socket, with the card that is in it, or puts
// it back.
func (p *VirtualPCSCD) Unplug(i int, on bool) {
	p.daemons[i/slotsPerDaemon].unplug(i%slotsPerDaemon, on)
}

// Set makes a fault of the daemons come or go: Mute, Garbage or Slow.
func (p *VirtualPCSCD) Set(f Fault, on bool) {
	for _, d := range p.daemons {
		d.mu.Lock()
		d.faults[f] = on
		d.mu.Unlock()
	}
}

// Halt stops the daemons; Restart brings them back. The cards stay.
func (p *VirtualPCSCD) Halt() {
	for _, d := range p.daemons {
		d.stop()
	}
}

// Restart stops and starts every daemon, as a package update does.
func (p *VirtualPCSCD) Restart(context.Context) error {
	p.Halt()
	return p.start()
}

func (p *VirtualPCSCD) start() error {
	for _, d := range p.daemons {
		if err := d.start(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all of it, and waits.
func (p *VirtualPCSCD) Stop() {
	p.Halt()
	for _, d := range p.daemons {
		d.once.Do(func() { close(d.end) })
		d.wg.Wait()
		if d.owned {
			_ = os.RemoveAll(filepath.Dir(d.socket))
		}
	}
}

// virtualDaemon is one of it, with the readers that it has.
type virtualDaemon struct {
	socket string
	owned  bool // its folder is elsewhere, and goes with it
	end    chan struct{}
	once   sync.Once
	wg     sync.WaitGroup

	mu       sync.Mutex
	slots    []*virtualSlot
	faults   map[Fault]bool
	listener net.Listener
	clients  map[*pcscClient]bool
	serving  *sync.WaitGroup
	handles  uint32
}

// virtualSlot is a reader. Its state is what the daemon has seen last.
type virtualSlot struct {
	name  string
	card  *Card
	gone  bool
	state uint32
	seen  uint32 // moves of the card
	base  uint32 // of them, when this daemon first saw the reader
	spoke uint32 // the protocol, once somebody has connected
}

func (d *virtualDaemon) start() error {
	if err := os.Remove(d.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("virtual pcscd: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", d.socket)
	if err != nil {
		return fmt.Errorf("virtual pcscd: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listener, d.clients, d.serving = l, map[*pcscClient]bool{}, &sync.WaitGroup{}
	for _, s := range d.slots {
		s.reset()
	}
	serving := d.serving
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c := &pcscClient{d: d, conn: conn, out: make(chan []byte, 64), gone: make(chan struct{}), cards: map[uint32]*grip{}}
			d.mu.Lock()
			open := d.listener == l
			if open {
				d.clients[c] = true
				serving.Go(c.serve)
				serving.Go(c.write)
			}
			d.mu.Unlock()
			if !open {
				_ = conn.Close()
			}
		}
	})
	return nil
}

func (d *virtualDaemon) stop() {
	d.mu.Lock()
	if d.listener == nil {
		d.mu.Unlock()
		return
	}
	_ = d.listener.Close() // which removes the socket
	d.listener = nil
	for c := range d.clients {
		c.end()
	}
	serving := d.serving
	d.mu.Unlock()
	serving.Wait()
}

// watch takes in what happens to a card for as long as there are readers.
func (d *virtualDaemon) watch(s *virtualSlot) {
	for {
		select {
		case <-d.end:
			return
		case <-s.card.changed:
		}
		d.mu.Lock()
		if d.listener != nil {
			d.lookLocked(s)
		}
		d.mu.Unlock()
	}
}

func (d *virtualDaemon) unplug(i int, on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.slots[i]
	if on {
		s.card.Remove()
	}
	if s.gone != on {
		s.gone = on
		s.reset()
		d.changedLocked()
	}
}

// lookLocked looks at a card, whoever made that necessary, and tells those who
// wait if it is not what it was.
func (d *virtualDaemon) lookLocked(s *virtualSlot) {
	if s.look() {
		d.changedLocked()
	}
}

// changedLocked tells those who wait.
func (d *virtualDaemon) changedLocked() {
	for c := range d.clients {
		if c.waits {
			c.waits = false
			c.putLocked(make([]byte, 8))
		}
	}
}

// reset is what a daemon knows of a reader that it sees for the first time.
func (s *virtualSlot) reset() {
	s.state = 0
	s.look()
	s.base = s.seen
}

// look takes over the state of the card and reports whether it is new. Whether
// a card answers shows when it is put in.
func (s *virtualSlot) look() bool {
	inserted, moves, mute := s.card.state()
	if moves == s.seen && s.state != 0 {
		return false
	}
	s.seen, s.spoke = moves, 0
	switch {
	case !inserted:
		s.state = pcscAbsent
	case mute:
		s.state = pcscPresent | pcscSwallowed
	default:
		s.state = pcscPresent | pcscPowered | pcscNegotiable
	}
	return true
}

// entryLocked is the reader in the table of readers: 184 bytes.
func (d *virtualDaemon) entryLocked(s *virtualSlot) []byte {
	b := make([]byte, 184)
	if s.gone {
		return b
	}
	copy(b, s.name)
	binary.NativeEndian.PutUint32(b[128:], (s.seen-s.base)&0xffff)
	binary.NativeEndian.PutUint32(b[132:], s.state)
	holders := uint32(0)
	for c := range d.clients {
		for _, g := range c.cards {
			switch {
			case g.slot == s && g.alone:
				holders = math.MaxUint32
			case g.slot == s:
				holders++
			}
		}
	}
	binary.NativeEndian.PutUint32(b[136:], holders)
	if s.state&pcscPowered != 0 {
		copy(b[140:], atr)
		binary.NativeEndian.PutUint32(b[176:], uint32(len(atr))) // #nosec G115 -- 4
		binary.NativeEndian.PutUint32(b[180:], s.spoke)
	}
	return b
}

func (d *virtualDaemon) tableLocked() []byte {
	b := make([]byte, 0, slotsPerDaemon*184)
	for i := range slotsPerDaemon {
		if i < len(d.slots) {
			b = append(b, d.entryLocked(d.slots[i])...)
		} else {
			b = append(b, make([]byte, 184)...)
		}
	}
	return b
}

// slotLocked finds a reader by its name.
func (d *virtualDaemon) slotLocked(name string) *virtualSlot {
	i := slices.IndexFunc(d.slots, func(s *virtualSlot) bool { return s.name == name && !s.gone })
	if i < 0 {
		return nil
	}
	return d.slots[i]
}

// lateBy is how slow a Slow daemon is.
const lateBy = 250 * time.Millisecond
