package firmware_test

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
	"github.com/tillward/tillward/simulator/firmware"
)

// machine is the part of QEMU that speaks to the counter.
type machine struct {
	t       *testing.T
	reader  net.Conn
	printer net.Conn
}

// on accepts the counter, as QEMU does when it is started.
func on(t *testing.T, printer, reader net.Listener) machine {
	t.Helper()
	m := machine{t: t}
	for _, side := range []struct {
		l net.Listener
		c *net.Conn
	}{{printer, &m.printer}, {reader, &m.reader}} {
		c, err := side.l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		*side.c = c
	}
	m.says(1, "VSCD\x00\x00\x00\x02\x00\x00\x00\x00")
	m.tells(1, "VSCD\x00\x00\x00\x02\x00\x00\x00\x00")
	m.says(3, "")
	m.tells(2, "\x00\x00\x00\x00")
	return m
}

func (m machine) off() {
	_ = m.reader.Close()
	_ = m.printer.Close()
}

// says expects a message of the card's.
func (m machine) says(kind uint32, body string) {
	m.t.Helper()
	var head [12]byte
	if _, err := io.ReadFull(m.reader, head[:]); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[8:]))
	if _, err := io.ReadFull(m.reader, b); err != nil {
		m.t.Fatal(err)
	}
	if got := binary.BigEndian.Uint32(head[:]); got != kind || string(b) != body {
		m.t.Fatalf("message %d %x, want %d %x", got, b, kind, body)
	}
}

func (m machine) tells(kind uint32, body string) {
	m.t.Helper()
	head := slices.Concat(binary.BigEndian.AppendUint32(nil, kind), make([]byte, 4), binary.BigEndian.AppendUint32(nil, uint32(len(body))))
	if _, err := m.reader.Write(append(head, body...)); err != nil {
		m.t.Fatal(err)
	}
}

// TestCounter plays the machine: a card is put in, asked and pulled out, a
// receipt is printed, and both are there again when the power comes back.
func TestCounter(t *testing.T) {
	dir := t.TempDir()
	var at [2]string
	var listen [2]net.Listener
	for i, name := range []string{"p", "r"} {
		at[i] = filepath.Join(dir, name)
		l, err := net.Listen("unix", at[i])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		listen[i] = l
	}
	c, err := firmware.NewCounter(at[0], at[1])
	if err != nil {
		t.Fatal(err)
	}
	m := on(t, listen[0], listen[1])
	c.Reader.Card.Insert()
	m.says(5, "\x3b\x02\x14\x50")
	m.tells(2, "\x00\x00\x00\x00")
	m.tells(7, "\x00\xa4\x04\x00\x00")
	m.says(7, "\x6a\x82")
	c.Reader.Card.Remove()
	m.says(6, "")
	m.tells(2, "\x00\x00\x00\x00")
	c.Reader.Card.Insert()
	m.says(5, "\x3b\x02\x14\x50")
	m.tells(2, "\x00\x00\x00\x00")
	m.off()

	m = on(t, listen[0], listen[1])
	m.says(5, "\x3b\x02\x14\x50") // it is still in
	m.tells(2, "\x00\x00\x00\x00")
	c.Reader.Card.TearNext()
	m.tells(7, "\x00\xa4\x04\x00\x00")
	m.says(6, "")
	if _, err := m.printer.Write([]byte("\x1b@total 3.20\n\x1dV\x00\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	var status [1]byte
	if _, err := io.ReadFull(m.printer, status[:]); err != nil || status[0]&0x08 != 0 {
		t.Errorf("the printer says %x and %v, want that it is on line", status, err)
	}
	c.Printer.Set(emulator.CoverOpen, true)
	if _, err := m.printer.Write([]byte("\x10\x04\x01")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(m.printer, status[:]); err != nil || status[0]&0x08 == 0 {
		t.Errorf("the printer says %x and %v with its cover open", status, err)
	}
	if got := c.Printer.Jobs(); len(got) != 1 || !strings.Contains(got[0], "total 3.20") {
		t.Errorf("printed %q", got)
	}
	m.off()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if got := c.Reader.Card.Commands(); len(got) != 2 {
		t.Errorf("the card was told %x, want two commands", got)
	}
}
