package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A person at the counter: what is typed happens to the devices, and what
// happens to them is told.
func TestCounter(t *testing.T) {
	dir := t.TempDir()
	in, keys := io.Pipe()
	said, out := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := &counterCmd{Listen: "127.0.0.1:0", Serial: true, Receipts: filepath.Join(dir, "receipts"), Width: 58, Counters: filepath.Join(dir, "counters")}
	done := make(chan error, 1)
	go func() {
		done <- c.run(ctx, in, out)
		_ = out.Close()
	}()
	lines := make(chan string, 1000)
	go func() {
		for s := bufio.NewScanner(said); s.Scan(); {
			lines <- s.Text()
		}
		close(lines)
	}()
	await := func(what string) string {
		t.Helper()
		for {
			select {
			case line, more := <-lines:
				if strings.Contains(line, what) {
					return line
				}
				if !more {
					t.Fatalf("it ended before it said %q", what)
				}
			case <-ctx.Done():
				t.Fatalf("it did not say %q", what)
			}
		}
	}
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(keys, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	addr := strings.TrimSuffix(strings.Fields(await("printer "))[1], ",")
	await("/dev/pts/")
	await("PCSCLITE_CSOCK_NAME=")
	say("list")
	await("daemon restarted")
	say("set printer cover")
	say("insert")
	say("status")
	await("printer: cover open")
	await("a card is in: true")
	say("sale")
	await("off-line")
	say("clear printer cover")
	say("remove")
	say("roll 500")
	say("sale 20")
	await("480 lines of paper left")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\x1b~hello\n\x1bp\x00\x19\xfa\x1dV\x00")); err != nil {
		t.Fatal(err)
	}
	await("does not know: 1b7e")
	await("the drawer is open")
	say("status")
	await("printer: drawer open")
	for line, want := range map[string]string{"set the house on fire": "nothing that can be wrong", "roll away": "a number of lines", "what?": "let it come"} {
		say(line)
		await(want)
	}
	say("quit")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "receipts", "*.png")); len(list) != 2 {
		t.Errorf("%d pictures, want two", len(list))
	}
}
