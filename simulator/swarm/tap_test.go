package swarm_test

import (
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/simulator/swarm"
)

// echo answers on loopback with what it gets, by TLS when conf is there.
func echo(t *testing.T, conf *tls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(c, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func tapped(t *testing.T, target string) (string, func() swarm.Traffic, func()) {
	t.Helper()
	addr, counts, end, err := swarm.Tap(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return addr, counts, end
}

func ask(t *testing.T, c io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("got %q and %v, want %q", got, err, text)
	}
}

func TestTapPlain(t *testing.T) {
	addr, counts, end := tapped(t, echo(t, nil))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask(t, c, "hello")
	if got := counts(); got.Conns != 1 || got.Up != 5 || got.Down != 5 || len(got.Records) != 0 {
		t.Errorf("got %+v, want 5 bytes each way and no record", got)
	}
	end()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("connection lives on after the end")
	}
	if got := counts(); got.Up != 5 {
		t.Errorf("got %+v after the end", got)
	}
}

// Every byte of a TLS connection is in a record, and a message of n bytes is
// one of n+22 [RFC 8446, 5.2: header, content type, tag].
func TestTapTLS(t *testing.T) {
	authority, err := ca.Open(t.TempDir(), "tap", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.IssueServer([]string{"localhost"}, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	addr, counts, end := tapped(t, echo(t, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}))
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) // #nosec G402 -- only bytes are looked at
	if err != nil {
		t.Fatal(err)
	}
	ask(t, conn, strings.Repeat("x", 100))
	got := counts()
	_ = conn.Close()
	end()
	var up, down int64
	for _, r := range got.Records {
		if r.Up {
			up += int64(r.Bytes)
		} else {
			down += int64(r.Bytes)
		}
	}
	if up != got.Up || down != got.Down {
		t.Errorf("records hold %d and %d bytes of %d and %d", up, down, got.Up, got.Down)
	}
	if r := got.Records[0]; !r.Up || r.Type != 22 {
		t.Errorf("first record is %+v, want a ClientHello", r)
	}
	if n := len(got.Records); got.Records[n-1] != (swarm.Record{Type: 23, Bytes: 122}) || !slices.Contains(got.Records, swarm.Record{Up: true, Type: 23, Bytes: 122}) {
		t.Errorf("got %+v, want 122 bytes each way at the end", got.Records)
	}
}

// A target that is away is a connection that closes, not a tap that hangs.
func TestTapDeadTarget(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	addr, counts, _ := tapped(t, ln.Addr().String())
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read from nobody")
	}
	if got := counts(); got.Conns != 0 || got.Down != 0 {
		t.Errorf("got %+v", got)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 2, 'a', 'b', 23, 3, 3, 0, 1, 'c'}, 3)
	f.Add([]byte("GET / HTTP/1.1"), 1)
	f.Add([]byte{23, 3, 3, 0xff, 0xff}, 5)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		got := swarm.Split(b, cut)
		if !slices.Equal(got, swarm.Split(b, 0)) {
			t.Errorf("pieces change the records: %+v", got)
		}
		rest := b
		for _, r := range got {
			if r.Bytes < 6 || r.Bytes > len(rest) || r.Type != rest[0] {
				t.Fatalf("record %+v is not at the start of %x", r, rest)
			}
			rest = rest[r.Bytes:]
		}
	})
}
