package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Keys are private keys of a repository by the role that they were made for. A
// role may have several. Whether a key may sign is for the metadata to say.
type Keys map[string][]ed25519.PrivateKey

// NewKey makes a key and writes it to path, readable by its owner only. An
// existing file is never replaced.
func NewKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return key, nil
}

// ReadKey reads a private key that NewKey wrote.
func ReadKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read key %s: not a PEM file", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key %s: is %T, only Ed25519 keys sign releases", path, k)
	}
	return key, nil
}

// nth is the name of the second and later key of a role.
var nth = regexp.MustCompile(`^(.+)-[0-9]{1,3}$`)

// ReadKeys reads the keys in a folder: {role}.pem, {role}-2.pem and so on, as
// root.pem, agent/prod.pem, agent/prod-2.pem. Roles without a file are left
// out: an offline machine holds only its own. Files of other names are not
// looked at.
func ReadKeys(dir string) (Keys, error) {
	keys := make(Keys)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		role, ok := strings.CutSuffix(filepath.ToSlash(rel), ".pem")
		if m := nth.FindStringSubmatch(role); ok && m != nil {
			if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(m[1])+".pem")); err == nil || topRole(m[1]) {
				role = m[1]
			}
		}
		if !ok || !topRole(role) && !Delegated(role) {
			return nil
		}
		k, err := ReadKey(p)
		if err != nil {
			return err
		}
		keys[role] = append(keys[role], k)
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return keys, nil
}

// all returns every key once, as what signs.
func (k Keys) all() (list []crypto.Signer) {
	for _, keys := range k {
		for _, key := range keys {
			if !slices.ContainsFunc(list, func(s crypto.Signer) bool { return key.Equal(s) }) {
				list = append(list, key)
			}
		}
	}
	return list
}

func public(keys []ed25519.PrivateKey) (list []crypto.PublicKey) {
	for _, k := range keys {
		list = append(list, k.Public())
	}
	return list
}

// TUFKeyID returns the id that TUF metadata names a public key by.
func TUFKeyID(pub crypto.PublicKey) (string, error) {
	id, _, err := tufKey(pub)
	return id, err
}

// tufKey describes a public key as TUF does. go-tuf calls every ECDSA key one
// of P-256 and then verifies nothing that a key of another curve signed, so
// only Ed25519 and P-256 get in.
func tufKey(pub crypto.PublicKey) (id string, key *metadata.Key, err error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "", nil, errors.New("not an Ed25519 key")
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", nil, fmt.Errorf("an ECDSA key of %s: only Ed25519 and ECDSA P-256 keys sign releases", k.Params().Name)
		}
	default:
		return "", nil, fmt.Errorf("a key of type %T: only Ed25519 and ECDSA P-256 keys sign releases", pub)
	}
	if key, err = metadata.KeyFromPublicKey(pub); err != nil {
		return "", nil, err
	}
	id, err = key.ID()
	return id, key, err
}

// signer fits a key of any place, be it a file or a token, to go-tuf.
type signer struct{ crypto.Signer }

// PublicKey implements signature.Signer.
func (s signer) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return s.Public(), nil
}

// SignMessage implements signature.Signer.
func (s signer) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	b, err := io.ReadAll(message)
	if err != nil {
		return nil, err
	}
	if _, ok := s.Public().(ed25519.PublicKey); ok {
		return s.Sign(rand.Reader, b, crypto.Hash(0))
	}
	sum := sha256.Sum256(b)
	return s.Sign(rand.Reader, sum[:], crypto.SHA256)
}
