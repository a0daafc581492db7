package attest

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// boot names what a quote was made in: the TPM's reset count and the digest
// over the quoted registers. The zero boot is none, for no digest is zero.
type boot struct {
	reset  uint32
	digest [32]byte
}

// bootOf reads the quote that our own TPM has just made.
func bootOf(quoted []byte) (boot, error) {
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](quoted)
	if err != nil {
		return boot{}, fmt.Errorf("quote cannot be read: %w", err)
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return boot{}, fmt.Errorf("TPM answered with something else than a quote: %w", err)
	}
	b := boot{reset: a.ClockInfo.ResetCount}
	if n := copy(b.digest[:], q.PCRDigest.Buffer); n != len(b.digest) || len(q.PCRDigest.Buffer) != n {
		return boot{}, fmt.Errorf("quote has a digest of %d bytes, SHA-256 has 32", len(q.PCRDigest.Buffer))
	}
	return b, nil
}

func (b boot) bytes() []byte {
	if b == (boot{}) {
		return nil
	}
	return append(binary.BigEndian.AppendUint32(nil, b.reset), b.digest[:]...)
}

// bootFrom reads what bytes wrote; anything else is no boot.
func bootFrom(v []byte) (b boot) {
	if len(v) != 4+len(b.digest) {
		return boot{}
	}
	b.reset = binary.BigEndian.Uint32(v)
	copy(b.digest[:], v[4:])
	return b
}
