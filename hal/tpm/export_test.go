package tpm

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Raw returns the transport below t, for what only a test does to a TPM.
func Raw(t *TPM) transport.TPM { return t.dev }

// Break makes the next read on the descriptor fail, as a hung-up TPM does.
func Break(t *TPM) {
	if d, ok := t.dev.(*device); ok {
		_ = d.rw.Close()
	}
}

// Over returns the transport over an open stream.
func Over(rw io.ReadWriteCloser) transport.TPMCloser { return &device{path: "scripted", rw: rw} }

// Wrap puts send between t and its transport.
func Wrap(t *TPM, send func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error)) {
	t.dev = &wrapped{TPMCloser: t.dev, send: send}
}

// Below returns t below what Wrap put there.
func Below(t *TPM) *TPM {
	if w, ok := t.dev.(*wrapped); ok {
		return &TPM{dev: w.TPMCloser}
	}
	return t
}

// Unwrap takes away what Wrap put there.
func Unwrap(t *TPM) {
	if w, ok := t.dev.(*wrapped); ok {
		t.dev = w.TPMCloser
	}
}

// Busy lets the TPM answer every nth command with the codes, one at each try,
// before it runs it. asked says how many there were.
func Busy(t *TPM, every int, codes ...tpm2.TPMRC) (asked func() int) {
	d, ok := t.dev.(*device)
	if !ok {
		return func() int { return 0 }
	}
	b := &busy{ReadWriteCloser: d.rw, every: every, codes: codes}
	d.rw = b
	return func() int { return b.asked }
}

type busy struct {
	io.ReadWriteCloser
	every, count, asked int
	codes               []tpm2.TPMRC
	left                int    // codes of the burst that are still to come
	answer              []byte // to the command just written; nil: the TPM's
}

func (b *busy) Write(cmd []byte) (int, error) {
	if b.left == 0 {
		if b.count++; b.count%b.every != 0 {
			return b.ReadWriteCloser.Write(cmd)
		}
		b.left = len(b.codes) + 1
	}
	if b.left--; b.left == 0 {
		return b.ReadWriteCloser.Write(cmd)
	}
	b.asked++
	b.answer = binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(b.codes[len(b.codes)-b.left]))
	return len(cmd), nil
}

func (b *busy) Read(p []byte) (int, error) {
	if b.answer == nil {
		return b.ReadWriteCloser.Read(p)
	}
	n := copy(p, b.answer)
	b.answer = nil
	return n, nil
}

type wrapped struct {
	transport.TPMCloser
	send func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error)
}

// Send implements transport.TPM.
func (w *wrapped) Send(cmd []byte) ([]byte, error) { return w.send(cmd, w.TPMCloser.Send) }

// Dial opens the transport alone.
func Dial(path string) (transport.TPMCloser, error) { return dial(path) }

// Blocking reports whether path is opened in blocking mode.
func Blocking(path string, flags func(fd uintptr) bool) (bool, error) {
	d, err := dial(path)
	if err != nil {
		return false, err
	}
	defer d.Close()
	f, ok := d.rw.(*os.File)
	if !ok {
		return false, fmt.Errorf("%T is not a file", d.rw)
	}
	c, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var is bool
	err = c.Control(func(fd uintptr) { is = flags(fd) })
	return is, err
}

// Pad is what Endorsement does to a public area.
func Pad(pub *tpm2.TPMTPublic) error { return pad(pub) }

// Litter leaves a transient object and a session behind, as a killed agent does.
func Litter(t *TPM) error {
	if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(t.dev); err != nil {
		return err
	}
	_, _, err := tpm2.PolicySession(t.dev, tpm2.TPMAlgSHA256, 16)
	return err
}

// PoliciesABC are the policies of a high-range EK.
func PoliciesABC() (a, b, c []byte) { return policyA384, policyB384, policyC384 }

// Resplit takes a sealed blob apart and puts it together again.
func Resplit(blob []byte) ([]byte, error) {
	private, public, err := splitBlob(blob)
	if err != nil {
		return nil, err
	}
	return append(tpm2.Marshal(private), tpm2.Marshal(public)...), nil
}
