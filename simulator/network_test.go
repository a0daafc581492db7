package simulator_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator"
)

// lined is a line to a service that sends back what it gets, and the ends of its
// connections.
func lined(t *testing.T) (*simulator.Line, <-chan net.Conn) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			ends <- c
		}
	}()
	l, err := simulator.NewLine(t.Context(), "127.0.0.1:0", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); _ = ln.Close() })
	return l, ends
}

func dial(t *testing.T, l *simulator.Line) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// said is what comes from an end, or io.EOF when the end is told that it is over.
func said(t *testing.T, c net.Conn, n int) error {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	_, err := io.ReadFull(c, make([]byte, n))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("nothing came for 30 s")
	}
	return err
}

// quiet checks that nothing comes, and nobody is told of an end.
func quiet(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes and %v came out of a hole", n, err)
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// TestLine: what each weather does to a connection, and to the next one.
func TestLine(t *testing.T) {
	l, ends := lined(t)
	till := dial(t, l)
	service := <-ends
	write(t, till, "hello")
	if err := said(t, service, 5); err != nil {
		t.Fatal(err)
	}

	l.Carry(simulator.Weather{Hole: true})
	write(t, till, "wait")
	quiet(t, service)
	l.Carry(simulator.Weather{Latency: time.Millisecond, Rate: 1 << 20})
	if err := said(t, service, 4); err != nil {
		t.Errorf("what waited in the hole: %v", err)
	}

	for _, of := range []bool{true, false} {
		l.Half(of)
		lost, left := service, till
		if of {
			lost, left = till, service
		}
		if err := said(t, lost, 1); err == nil {
			t.Errorf("half (till %v): the end that is lost goes on", of)
		}
		quiet(t, left)
		next := dial(t, l)
		other := <-ends
		write(t, next, "new")
		if err := said(t, other, 3); err != nil {
			t.Errorf("half (till %v): a new connection: %v", of, err)
		}
		l.Carry(simulator.Weather{})
		if err := said(t, left, 1); err == nil {
			t.Errorf("half (till %v): the other end is not told after it", of)
		}
		till, service = next, other
	}

	l.Cut()
	if err := said(t, till, 1); err == nil {
		t.Error("a cut line goes on")
	}
	if c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr()); err == nil {
		if said(t, c, 1) == nil {
			t.Error("a cut line lets a new connection through")
		}
		_ = c.Close()
	}
	l.Heal()
	till = dial(t, l)
	service = <-ends
	write(t, service, "back")
	if err := said(t, till, 4); err != nil {
		t.Errorf("healed: %v", err)
	}
	if l.Bytes() < 5+4+3+3 { // the last are counted a moment later
		t.Errorf("%d bytes passed, want at least 15", l.Bytes())
	}
}
