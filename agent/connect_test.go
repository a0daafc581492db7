package agent_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent"
)

// TestServiceFallsSilent: a service that begins an answer and never ends it does
// not hold the device up for ever.
func TestServiceFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := agent.Fetch(t.Context(), func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				if _, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
					_, _ = there.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"))
				}
			}()
			return here, nil
		})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Minute {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

// A service that sends tills on, into the network of their shop, is not followed.
func TestServiceSendsElsewhere(t *testing.T) {
	asked := make(chan string, 8)
	err := agent.Fetch(t.Context(), func(_ context.Context, _, address string) (net.Conn, error) {
		asked <- address
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			if _, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
				_, _ = io.WriteString(there, "HTTP/1.1 302 Found\r\nLocation: http://192.168.1.1/reboot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			}
		}()
		return here, nil
	})
	if err == nil || len(asked) != 1 {
		t.Errorf("got %v, and %d were asked", err, len(asked))
	}
}

// An agent that asked for a restart of the box which never comes goes on.
func TestBoxDoesNotRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := agent.Outlived(t.Context()); err == nil || errors.Is(err, context.Canceled) || time.Since(began) > time.Hour {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := agent.Outlived(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("told to end: got %v", err)
		}
	})
}

// TestReferenceIsNotHammered: a fleet that cannot read a reference does not ask
// for it every minute.
func TestReferenceIsNotHammered(t *testing.T) {
	day, looks := time.Duration(0), 0
	for ; day < 24*time.Hour; looks++ {
		day += agent.LookPause(looks)
	}
	if looks > 15 || agent.LookPause(0) > time.Minute || agent.LookPause(1000) != agent.LookPause(20) {
		t.Errorf("%d looks in a day, the first after %s, a late one after %s", looks, agent.LookPause(0), agent.LookPause(1000))
	}
}
