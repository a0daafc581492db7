package emulator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// LostKeys is of a Scanner: the kernel says that keys were lost just before
// each code. Garbage, HalfFrames and Unplugged are for scanners too.
const LostKeys Fault = "the kernel's buffer ran over"

// What the kernel calls a US keyboard's keys [linux/input-event-codes.h].
const (
	evSyn, evKey, evMisc = 0, 1, 4
	synDropped, mscScan  = 3, 4
	keyEnter, keyShift   = 28, 42
	firstKeys            = "\x00\x001234567890-=\x00\x00qwertyuiop[]\x00\x00asdfghjkl;'`\x00\\zxcvbnm,./"
)

// Scanner is a barcode scanner that types what it reads, as USB ones do. It is
// there as the files that Linux would show of it: a FIFO for the device file,
// and beside it what sysfs tells.
type Scanner struct {
	root string
	make func() (io.WriteCloser, error) // plugs it in
	end  func() error                   // takes it apart; may be nil

	mu     sync.Mutex
	faults map[Fault]bool
	out    io.WriteCloser // nil: unplugged
}

// NewScanner plugs a scanner in. The folder root then holds its dev and sys;
// event numbers it among others there, and each has a USB port of its own.
func NewScanner(root string, event int) (*Scanner, error) {
	dev := filepath.Join(root, "dev", "input", fmt.Sprintf("event%d", event))
	entry := filepath.Join(root, "sys", "class", "input", filepath.Base(dev))
	s := &Scanner{root: root, faults: map[Fault]bool{}}
	s.make = func() (io.WriteCloser, error) {
		if err := tellScanner(root, event, entry); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Dir(dev), 0o700); err != nil {
			return nil, err
		}
		if err := syscall.Mkfifo(dev, 0o600); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(dev, os.O_RDWR|syscall.O_NONBLOCK, 0) // #nosec G304 -- just made
		if err != nil {
			return nil, err
		}
		return pulled{f, []string{entry, dev}}, nil
	}
	return s, s.plug()
}

// tellScanner writes what sysfs says of it.
func tellScanner(root string, event int, entry string) error {
	usb := filepath.Join(root, "sys", "devices", "pci0000:00", "usb1", fmt.Sprintf("1-%d", event+1))
	input := filepath.Join(usb, fmt.Sprintf("1-%d:1.0", event+1), "input", fmt.Sprintf("input%d", event))
	for name, text := range map[string]string{
		filepath.Join(usb, "idVendor"): "05e0", filepath.Join(usb, "idProduct"): "1200", filepath.Join(usb, "bcdDevice"): "0110",
		filepath.Join(usb, "manufacturer"): "Emulated", filepath.Join(usb, "product"): "Bar Code Scanner", filepath.Join(usb, "serial"): fmt.Sprintf("EMUSCAN%02d", event),
		filepath.Join(input, "name"): "Emulated Bar Code Scanner", filepath.Join(input, "uniq"): "",
		filepath.Join(input, "capabilities", "key"): keyMap(),
		filepath.Join(input, "event", "dev"):        fmt.Sprintf("13:%d", 64+event),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text+"\n"), 0o600); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{entry: filepath.Join(input, "event"), filepath.Join(input, "event", "device"): input} {
		if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
			return err
		}
		if err := os.Symlink(to, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// keyMap is a bitmap of the first 64 keys, all there.
func keyMap() string {
	if strconv.IntSize == 32 {
		return "ffffffff fffffffe"
	}
	return "fffffffffffffffe"
}

// pulled is a device file that takes others with it when it is closed.
type pulled struct {
	*os.File
	others []string
}

// Close implements io.Closer.
func (p pulled) Close() error {
	for _, name := range p.others {
		_ = os.Remove(name)
	}
	return p.File.Close()
}

// Root is the folder with its dev and sys.
func (s *Scanner) Root() string { return s.root }

func (s *Scanner) plug() (err error) {
	s.out, err = s.make()
	return err
}

// Set makes a fault come or go.
func (s *Scanner) Set(f Fault, on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[f] = on
	switch {
	case f != Unplugged || on == (s.out == nil):
		return nil
	case on:
		err := s.out.Close()
		s.out = nil
		return err
	}
	return s.plug()
}

// Close unplugs it, a gadget for good.
func (s *Scanner) Close() error {
	err := s.Set(Unplugged, true)
	if s.end != nil {
		err = errors.Join(err, s.end())
	}
	return err
}

// Scan reads one code and types it, Enter at the end. An unplugged scanner
// types nothing.
func (s *Scanner) Scan(code string) error { return s.Type(code + "\n") }

// Type presses keys: of letters, digits and signs those of a US keyboard, of
// what has none the space bar; a line feed is Enter, a tabulator is Tab.
func (s *Scanner) Type(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out == nil {
		return nil
	}
	var b []byte
	if s.faults[LostKeys] {
		b = append(append(b, inputEvent(evSyn, synDropped, 0)...), inputEvent(evSyn, 0, 0)...)
	}
	for _, r := range text {
		key, shift := keyOf(r)
		if s.faults[Garbage] {
			b = append(b, inputEvent(0xffff, 0xffff, -1)...)
		}
		if shift {
			b = append(append(b, inputEvent(evKey, keyShift, 1)...), inputEvent(evSyn, 0, 0)...)
		}
		for _, value := range []int32{1, 0} {
			b = append(b, inputEvent(evMisc, mscScan, int32(key))...)
			b = append(b, inputEvent(evKey, key, value)...)
			b = append(b, inputEvent(evSyn, 0, 0)...)
		}
		if shift {
			b = append(append(b, inputEvent(evKey, keyShift, 0)...), inputEvent(evSyn, 0, 0)...)
		}
	}
	if f, ok := s.out.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = f.SetWriteDeadline(time.Now().Add(5 * time.Second)) // nobody reads it
	}
	step := len(b)
	if s.faults[HalfFrames] {
		step = 7
	}
	for ; len(b) > 0; b = b[min(step, len(b)):] {
		if _, err := s.out.Write(b[:min(step, len(b))]); err != nil {
			return fmt.Errorf("scanner emulator: %w", err)
		}
	}
	return nil
}

// inputEvent is a struct input_event of now.
func inputEvent(kind, code uint16, value int32) []byte {
	now := time.Now()
	var b []byte
	if strconv.IntSize == 32 {
		b = binary.NativeEndian.AppendUint32(b, uint32(now.Unix()))
		b = binary.NativeEndian.AppendUint32(b, uint32(now.Nanosecond()/1000))
	} else {
		b = binary.NativeEndian.AppendUint64(b, uint64(now.Unix()))
		b = binary.NativeEndian.AppendUint64(b, uint64(now.Nanosecond()/1000))
	}
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, code)
	return binary.NativeEndian.AppendUint32(b, uint32(value))
}

func keyOf(r rune) (key uint16, shift bool) {
	const space = 57
	switch {
	case r == '\n':
		return keyEnter, false
	case r == '\t':
		return 15, false
	case r >= 'A' && r <= 'Z':
		r, shift = r-'A'+'a', true
	}
	if i := strings.IndexRune(firstKeys, r); i > 1 && r != 0 {
		return uint16(i), shift
	}
	return space, shift
}
