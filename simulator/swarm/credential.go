package swarm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// errCredential is what a TPM says by TPM_RC_INTEGRITY or TPM_RC_VALUE.
var errCredential = errors.New("credential is not for this endorsement and attestation key")

// Activate implements enrol.Endorser: TPM2_ActivateCredential in software
// [TCG TPM 2.0 Library, part 1, 24 and annexes B.10, C.6]. credential is a
// TPMS_ID_OBJECT, secret the content of a TPM2B_ENCRYPTED_SECRET.
func (d *Device) Activate(_ context.Context, credential, secret []byte) ([]byte, error) {
	seed, err := d.unwrap(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCredential, err)
	}
	ak, err := d.area(roleAK)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(&ak)
	if err != nil {
		return nil, fmt.Errorf("name of the attestation key: %w", err)
	}
	mac, sealed, ok := prefixed(credential)
	if !ok {
		return nil, fmt.Errorf("%w: it is cut short", errCredential)
	}
	m := hmac.New(sha256.New, tpm2.KDFa(crypto.SHA256, seed, "INTEGRITY", nil, nil, 256))
	m.Write(sealed)
	m.Write(name.Buffer)
	if !hmac.Equal(mac, m.Sum(nil)) {
		return nil, fmt.Errorf("%w: integrity", errCredential)
	}
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", name.Buffer, nil, 128))
	if err != nil {
		return nil, fmt.Errorf("open credential: %w", err)
	}
	plain := make([]byte, len(sealed))
	cipher.NewCFBDecrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(plain, sealed) //nolint:staticcheck // the TPM's mode, with a MAC around it
	value, rest, ok := prefixed(plain)
	if !ok || len(rest) > 0 || len(value) > sha256.Size {
		return nil, fmt.Errorf("%w: content", errCredential)
	}
	return value, nil
}

// prefixed splits a TPM2B from what follows it.
func prefixed(b []byte) (body, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// unwrap recovers the seed of a credential with the EK.
func (d *Device) unwrap(secret []byte) ([]byte, error) {
	if d.ek != nil {
		return rsa.DecryptOAEP(sha256.New(), nil, d.ek, secret, []byte("IDENTITY\x00"))
	}
	x, rest, ok := prefixed(secret)
	y, rest, ok2 := prefixed(rest)
	if !ok || !ok2 || len(rest) > 0 || len(x) != 32 || len(y) != 32 {
		return nil, errors.New("secret is not a point")
	}
	theirs, err := ecdh.P256().NewPublicKey(bytes.Join([][]byte{{4}, x, y}, nil))
	if err != nil {
		return nil, err
	}
	key, err := d.key(roleEK)
	if err != nil {
		return nil, err
	}
	ours, err := key.ECDH()
	if err != nil {
		return nil, err
	}
	z, err := ours.ECDH(theirs)
	if err != nil {
		return nil, err
	}
	return tpm2.KDFe(crypto.SHA256, z, "IDENTITY", x, ours.PublicKey().Bytes()[1:33], 256), nil
}
