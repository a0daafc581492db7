package tpm

import (
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
