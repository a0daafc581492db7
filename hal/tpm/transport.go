package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	headerSize  = 10               // tag, size, code [TCG TPM 2.0 Library, part 1, 18]
	maxResponse = 4096             // bytes; the largest a PC client TPM sends
	commandTime = 90 * time.Second // RSA key generation on a slow discrete TPM
	maxTries    = 13
)

// device is one open TPM: a character device, or a socket that speaks raw TPM
// commands as swtpm does. After an exchange that broke off, the next one opens
// it anew: a late response must never answer another command.
type device struct {
	path   string
	rw     io.ReadWriteCloser // nil when it must be opened anew
	closed bool
}

// dial opens path: /dev/tpmrm0, or unix:PATH.
func dial(path string) (*device, error) {
	d := &device{path: path}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *device) open() error {
	if sock, ok := strings.CutPrefix(d.path, "unix:"); ok {
		c, err := net.DialTimeout("unix", sock, 5*time.Second)
		if err != nil {
			return fmt.Errorf("open software TPM: %w", err)
		}
		d.rw = c
		return nil
	}
	fi, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("open TPM: %w", err)
	}
	if fi.Mode()&os.ModeCharDevice == 0 {
		return fmt.Errorf("open TPM: %s is not a device; write unix:%s for a software TPM", d.path, d.path)
	}
	// Not os.OpenFile: it makes a pollable device non-blocking, and the kernel
	// then answers a read that comes before the response with nothing at all.
	fd, err := syscall.Open(d.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open TPM: %w", &os.PathError{Op: "open", Path: d.path, Err: err})
	}
	d.rw = os.NewFile(uintptr(fd), d.path)
	return nil
}

// Send implements transport.TPM. A TPM that asks for patience (RETRY, YIELDED,
// TESTING, NV_RATE) gets it with a growing pause, five seconds in all; go-tpm itself
// does not retry.
func (d *device) Send(cmd []byte) ([]byte, error) {
	pause := 5 * time.Millisecond
	for try := 1; ; try++ {
		rsp, err := d.exchange(cmd)
		if err != nil {
			return nil, err
		}
		switch code := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:10])); code {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
			if try == maxTries {
				return nil, fmt.Errorf("TPM stayed busy over %d tries, try again later or power-cycle the box: %w", try, code)
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
		default:
			return rsp, nil
		}
	}
}

func (d *device) exchange(cmd []byte) ([]byte, error) {
	if d.closed {
		return nil, fmt.Errorf("TPM: %w", os.ErrClosed)
	}
	if d.rw == nil {
		if err := d.open(); err != nil {
			return nil, err
		}
	}
	rsp, err := d.roundTrip(cmd)
	if err != nil {
		_ = d.rw.Close()
		d.rw = nil
	}
	return rsp, err
}

func (d *device) roundTrip(cmd []byte) ([]byte, error) {
	if c, ok := d.rw.(net.Conn); ok {
		if err := c.SetDeadline(time.Now().Add(commandTime)); err != nil {
			return nil, fmt.Errorf("TPM deadline: %w", err)
		}
	}
	if _, err := d.rw.Write(cmd); err != nil {
		return nil, fmt.Errorf("write TPM command: %w", err)
	}
	// A device node answers one read with the whole response, a socket in pieces.
	buf := make([]byte, maxResponse)
	for n := 0; ; {
		k, err := d.rw.Read(buf[n:])
		n += k
		if n >= headerSize {
			size := int(binary.BigEndian.Uint32(buf[2:6]))
			if size < headerSize || size > len(buf) {
				return nil, fmt.Errorf("TPM response claims %d bytes", size)
			}
			if n > size {
				return nil, fmt.Errorf("TPM response of %d bytes claims %d", n, size)
			}
			if n == size {
				return buf[:size], nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read TPM response: %w", err)
		}
	}
}

// Close closes the device for good.
func (d *device) Close() error {
	d.closed = true
	if d.rw == nil {
		return nil
	}
	return d.rw.Close()
}

// tidy flushes what an agent that was killed left behind: a socket has no
// resource manager, and three forgotten objects fill a TPM.
func tidy(t transport.TPM) error {
	var errs []error
	for _, first := range []uint32{0x02000000, 0x03000000, 0x80000000} { // loaded and saved sessions, transient objects
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t)
		if err != nil {
			return fmt.Errorf("list left-over handles: %w", err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return fmt.Errorf("list left-over handles: %w", err)
		}
		for _, h := range list.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t); err != nil {
				errs = append(errs, fmt.Errorf("flush left-over handle %#x: %w", uint32(h), err))
			}
		}
	}
	return errors.Join(errs...)
}
