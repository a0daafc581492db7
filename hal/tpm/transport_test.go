package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
)

// answer serves one connection after another on a socket: each command gets
// the next response, written in pieces of the given size. A nil response hangs up.
func answer(t *testing.T, piece int, responses ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for len(responses) > 0 {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for len(responses) > 0 {
				if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
					break
				}
				rsp := responses[0]
				responses = responses[1:]
				if rsp == nil {
					break
				}
				for len(rsp) > 0 {
					n := min(piece, len(rsp))
					if _, err := c.Write(rsp[:n]); err != nil {
						break
					}
					rsp = rsp[n:]
				}
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return path
}

// command is the code of a command.
func command(cmd []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:10])) }

func response(rc tpm2.TPMRC, body ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(body)))
	return append(binary.BigEndian.AppendUint32(b, uint32(rc)), body...)
}

func TestTransport(t *testing.T) {
	good, cmd := response(tpm2.TPMRCSuccess, 1, 2, 3), make([]byte, 10)
	long := bytes.Clone(good)
	binary.BigEndian.PutUint32(long[2:], 1<<20)
	short := bytes.Clone(good)
	binary.BigEndian.PutUint32(short[2:], 3)
	for name, tt := range map[string]struct {
		piece     int
		responses [][]byte
		fails     bool
	}{
		"whole":                       {100, [][]byte{good}, false},
		"in pieces":                   {1, [][]byte{good}, false},
		"asked for patience":          {100, [][]byte{response(tpm2.TPMRCRetry), response(tpm2.TPMRCYielded), response(tpm2.TPMRCTesting), good}, false},
		"hangs up":                    {100, [][]byte{nil, good}, true},
		"claims more than it may":     {100, [][]byte{long, good}, true},
		"claims less than a header":   {100, [][]byte{short, good}, true},
		"says more than it announced": {100, [][]byte{append(bytes.Clone(good), 9), good}, true},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := tpm.Dial("unix:" + answer(t, tt.piece, tt.responses...))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			got, err := d.Send(cmd)
			if (err != nil) != tt.fails {
				t.Fatalf("got %x and %v", got, err)
			}
			if tt.fails { // the next command gets its own answer
				got, err = d.Send(cmd)
			}
			if err != nil || !bytes.Equal(got, good) {
				t.Errorf("got %x and %v, want %x", got, err, good)
			}
		})
	}
}

// scripted answers each command with the next response, the last one for ever.
type scripted struct {
	responses [][]byte
	commands  int
}

func (s *scripted) Write(b []byte) (int, error) {
	s.commands++
	return len(b), nil
}

func (s *scripted) Read(b []byte) (int, error) {
	n := copy(b, s.responses[0])
	if len(s.responses) > 1 {
		s.responses = s.responses[1:]
	}
	return n, nil
}

func (s *scripted) Close() error { return nil }

// A discrete TPM tests itself for seconds after power-on.
func TestBusyTPMIsAskedAgain(t *testing.T) {
	for _, busy := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate} {
		synctest.Test(t, func(t *testing.T) {
			good := response(tpm2.TPMRCSuccess, 1)
			s := &scripted{responses: slices.Concat(slices.Repeat([][]byte{response(busy)}, 10), [][]byte{good})}
			if got, err := tpm.Over(s).Send(make([]byte, 10)); err != nil || !bytes.Equal(got, good) {
				t.Errorf("%v: got %x and %v, want %x", busy, got, err, good)
			}
		})
	}
}

// The twin: a TPM that is busy for ever does not hold the agent for ever.
func TestTPMThatStaysBusyIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, began := &scripted{responses: [][]byte{response(tpm2.TPMRCRetry)}}, time.Now()
		_, err := tpm.Over(s).Send(make([]byte, 10))
		if !errors.Is(err, tpm2.TPMRCRetry) || !strings.Contains(err.Error(), "stayed busy") {
			t.Errorf("got %v, want that it stayed busy", err)
		}
		if waited := time.Since(began); s.commands > 20 || waited < 2*time.Second || waited > 10*time.Second {
			t.Errorf("gave up after %d tries and %v", s.commands, waited)
		}
		if _, err := tpm.Over(&scripted{responses: [][]byte{response(tpm2.TPMRCFailure)}}).Send(make([]byte, 10)); err != nil {
			t.Errorf("another code is the caller's to read: %v", err)
		}
	})
}

// A pollable device that is opened non-blocking answers reads too early.
func TestDevicesAreOpenedBlocking(t *testing.T) {
	is, err := tpm.Blocking("/dev/ptmx", func(fd uintptr) bool {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		return errno == 0 && flags&syscall.O_NONBLOCK == 0
	})
	if err != nil {
		t.Fatal(err)
	}
	if !is {
		t.Error("a device was opened non-blocking")
	}
}

// The device id is a hash over these bytes, so they have one spelling.
func TestCoordinatesAreWholeAndPadded(t *testing.T) {
	for curve, size := range map[tpm2.TPMECCCurve]int{tpm2.TPMECCNistP256: 32, tpm2.TPMECCNistP384: 48} {
		pub := tpm2.ECCEKTemplate
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{7}, size-1)}, Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{8}, size)},
		})
		if err := tpm.Pad(&pub); err != nil {
			t.Fatal(err)
		}
		p, err := pub.Unique.ECC()
		if err != nil {
			t.Fatal(err)
		}
		if want := append([]byte{0}, bytes.Repeat([]byte{7}, size-1)...); !bytes.Equal(p.X.Buffer, want) || len(p.Y.Buffer) != size {
			t.Errorf("got x %x and y %x", p.X.Buffer, p.Y.Buffer)
		}
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: make([]byte, size+1)}})
		if err := tpm.Pad(&pub); err == nil {
			t.Errorf("a coordinate of %d bytes was taken", size+1)
		}
	}
}
