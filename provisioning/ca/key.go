package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Keys keeps signing keys where they cannot be read: package pkcs11 does, in a
// token. The key file then holds no more than the label.
type Keys interface {
	// Make returns the P-256 key with this label, and makes it when there is none.
	Make(label string) (crypto.Signer, error)
	// Find returns the key with this label; fs.ErrNotExist when there is none.
	Find(label string) (crypto.Signer, error)
	// Remove destroys it. That it is gone already is no error.
	Remove(label string) error
}

// What key files hold.
const (
	plainKey     = "PRIVATE KEY"           // PKCS#8
	encryptedPEM = "ENCRYPTED PRIVATE KEY" // PKCS#8, PBES2
	tokenKey     = "TILLWARD TOKEN KEY"    // no key, the header Label
)

// key reads a private key; nil when there is no such file. A plain one is
// encrypted on the way when there is a passphrase.
func (f folder) key(path string) (crypto.Signer, error) {
	block, err := keyBlock(path)
	if block == nil || err != nil {
		return nil, err
	}
	key, err := f.open(block, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func (f folder) open(block *pem.Block, path string) (crypto.Signer, error) {
	switch block.Type {
	case plainKey:
		key, err := parseKey(block.Bytes)
		if err != nil || len(f.o.Passphrase) == 0 {
			return key, err
		}
		b, err := f.encode(block.Bytes)
		if err != nil {
			return nil, err
		}
		return key, write(path, b, 0o600)
	case encryptedPEM:
		if len(f.o.Passphrase) == 0 {
			return nil, errors.New("the key is encrypted: name the file with its passphrase")
		}
		der, err := decrypt(block.Bytes, f.o.Passphrase)
		if err != nil {
			return nil, err
		}
		key, err := parseKey(der)
		if err != nil {
			return nil, errPassphrase
		}
		return key, nil
	case tokenKey:
		if f.o.Keys == nil {
			return nil, fmt.Errorf("the key is in a token, as %s: name the PKCS#11 module", block.Headers["Label"])
		}
		key, err := f.o.Keys.Find(block.Headers["Label"])
		if err != nil {
			return nil, fmt.Errorf("key %s in the token: %w", block.Headers["Label"], err)
		}
		return key, nil
	}
	return nil, fmt.Errorf("%s is not a private key (PKCS#8)", block.Type)
}

// make returns the key that path is to hold or holds already. In a token the
// label begins with name.
func (f folder) make(path, name string) (crypto.Signer, error) {
	block, err := keyBlock(path)
	switch {
	case err != nil:
		return nil, err
	case block == nil:
		b, err := f.newKey(name)
		if err != nil {
			return nil, err
		}
		if err := write(path, b, 0o600); err != nil {
			return nil, err
		}
		return f.make(path, name)
	case block.Type == tokenKey && f.o.Keys != nil:
		// The label is on the disk before the key is in the token: a power cut
		// between leaves no key that nobody knows of.
		key, err := f.o.Keys.Make(block.Headers["Label"])
		if err != nil {
			return nil, fmt.Errorf("make key %s in the token: %w", block.Headers["Label"], err)
		}
		if !p256(key.Public()) {
			return nil, fmt.Errorf("key %s in the token is not ECDSA P-256", block.Headers["Label"])
		}
		return key, nil
	}
	return f.key(path)
}

// newKey returns what the file of a new key holds: the key, or where Make is
// going to make it.
func (f folder) newKey(name string) ([]byte, error) {
	if f.o.Keys != nil {
		unique := make([]byte, 6) // another service may use the same token
		if _, err := rand.Read(unique); err != nil {
			return nil, err
		}
		label := name + "-" + hex.EncodeToString(unique)
		return pem.EncodeToMemory(&pem.Block{Type: tokenKey, Headers: map[string]string{"Label": label}}), nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return f.encode(der)
}

// encode returns a key's file, encrypted when there is a passphrase.
func (f folder) encode(der []byte) ([]byte, error) {
	if len(f.o.Passphrase) == 0 {
		return pem.EncodeToMemory(&pem.Block{Type: plainKey, Bytes: der}), nil
	}
	der, err := encrypt(der, f.o.Passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypt key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: encryptedPEM, Bytes: der}), nil
}

// drop destroys the key that path holds. One in a token that is not at hand
// stays, and so does its file, which says where it is.
func (f folder) drop(path string) error {
	block, err := keyBlock(path)
	if err != nil {
		return err
	}
	if block != nil && block.Type == tokenKey {
		if f.o.Keys == nil {
			return nil
		}
		if err := f.o.Keys.Remove(block.Headers["Label"]); err != nil {
			return fmt.Errorf("remove key %s from the token: %w", block.Headers["Label"], err)
		}
	}
	return remove(path)
}

// keyBlock reads a key file; nil when there is none.
func keyBlock(path string) (*pem.Block, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- below the service's data folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is damaged, restore it from a backup", path)
	}
	return block, nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("not a private key (PKCS#8): %w", err)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", k)
	}
	return s, nil
}

// belong reports whether a certificate is that of a key.
func belong(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public())
}

func p256(pub crypto.PublicKey) bool {
	k, ok := pub.(*ecdsa.PublicKey)
	return ok && k.Curve == elliptic.P256()
}
