package chaos

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// What a TPM answers that does not do what it is asked [TPM 2.0 part 2, 6.6.3].
const (
	rcRetry   = 0x922
	rcFailure = 0x101
)

var failing = []uint32{rcFailure, 0x902, 0x903, 0x904, 0x923} // no memory for objects, sessions, contexts; NV not to be had

// bridge stands between an agent and its TPM, and answers in its place.
type bridge struct {
	ln     net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	codes []uint32 // answered in turn in place of the TPM; none: it answers itself
	gone  bool
	said  int // how often
	conns map[net.Conn]bool
}

// newBridge listens in a folder for who wants the TPM at target.
func newBridge(dir, target string) (*bridge, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "c"))
	if err != nil {
		return nil, err
	}
	c := &bridge{ln: ln, target: target, conns: make(map[net.Conn]bool)}
	c.wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.serve(in) })
		}
	})
	return c, nil
}

func (c *bridge) socket() string { return c.ln.Addr().String() }

// set says how the TPM is: gone, or answering codes alone.
func (c *bridge) set(gone bool, codes ...uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone, c.codes = gone, codes
	if gone {
		for conn := range c.conns {
			_ = conn.Close()
		}
	}
}

// refused is how many commands were not done.
func (c *bridge) refused() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said
}

func (c *bridge) close() {
	_ = c.ln.Close()
	c.set(true)
	c.wg.Wait()
}

// hold registers a connection, or refuses it.
func (c *bridge) hold(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		c.said++
		return false
	}
	c.conns[conn] = true
	return true
}

func (c *bridge) serve(in net.Conn) {
	defer in.Close()
	if !c.hold(in) {
		return
	}
	defer func() {
		c.mu.Lock()
		delete(c.conns, in)
		c.mu.Unlock()
	}()
	var out net.Conn
	defer func() {
		if out != nil {
			_ = out.Close()
		}
	}()
	for {
		command, err := message(in)
		if err != nil {
			return
		}
		answer := c.answer()
		if answer == nil {
			if out == nil {
				if out, err = net.Dial("unix", c.target); err != nil {
					return
				}
			}
			if _, err := out.Write(command); err != nil {
				return
			}
			if answer, err = message(out); err != nil {
				return
			}
		}
		if _, err := in.Write(answer); err != nil {
			return
		}
	}
}

// answer is what is said in the TPM's place; nil: nothing.
func (c *bridge) answer() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.codes) == 0 {
		return nil
	}
	code := c.codes[c.said%len(c.codes)]
	c.said++
	b := []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0} // TPM_ST_NO_SESSIONS
	binary.BigEndian.PutUint32(b[6:], code)
	return b
}

// message reads a command or a response.
func message(c net.Conn) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 8192 {
		return nil, errors.New("no TPM message")
	}
	b := append(head, make([]byte, size-10)...)
	_, err := io.ReadFull(c, b[10:])
	return b, err
}
