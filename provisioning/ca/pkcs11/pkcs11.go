// Package pkcs11 keeps the signing keys of an authority in a PKCS#11 token, be
// it a smart card, an HSM in the network or SoftHSM2. Keys are made in the
// token and cannot be read out of it; each has a label that the authority's
// key file names.
//
// It is a room of its own so that whoever imports provisioning/ca does not
// load foreign libraries into his process: a module is one, with all rights of
// the process.
package pkcs11

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

const (
	maxSessions = 16
	maxWait     = 10 * time.Second // for a session
)

// Config says which token and how to get in.
type Config struct {
	Module string // path of the library that its maker delivers
	Token  string // label of the token
	PIN    []byte
}

// Token is an open token. It may be used by many goroutines at once. A token
// that was away, as one in the network is now and then, is logged in to again
// by the next who uses it.
type Token struct {
	conf Config

	mu     sync.RWMutex // held for reading while the token is used
	ctx    *crypto11.Context
	n      int // how often it was opened
	closed bool
}

var errAway = errors.New("it did not let us in again")

// ErrTwo is returned when a label names more than one key.
var ErrTwo = errors.New("more than one key has this label")

// Open logs in to a token.
func Open(c Config) (*Token, error) {
	t := &Token{conf: c}
	if err := t.open(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Token) open() error {
	if _, err := os.Stat(t.conf.Module); err != nil { // the library itself only says no
		return fmt.Errorf("PKCS#11 module: %w", err)
	}
	ctx, err := crypto11.Configure(&crypto11.Config{
		Path: t.conf.Module, TokenLabel: t.conf.Token, Pin: string(t.conf.PIN), MaxSessions: maxSessions, PoolWaitTimeout: maxWait,
	})
	if err != nil {
		return fmt.Errorf("log in to token %q of %s: %w", t.conf.Token, t.conf.Module, err)
	}
	t.ctx, t.n = ctx, t.n+1
	return nil
}

// Close logs out. Keys found before sign no more.
func (t *Token) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.ctx == nil {
		return nil
	}
	ctx := t.ctx
	t.ctx = nil
	if err := ctx.Close(); err != nil {
		return fmt.Errorf("log out of token %q: %w", t.conf.Token, err)
	}
	return nil
}

// Make returns the P-256 key with this label, and makes it when there is none.
func (t *Token) Make(label string) (crypto.Signer, error) {
	if k, err := t.Find(label); !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	if err := t.use(func(ctx *crypto11.Context) error {
		if _, err := find(ctx, label); !errors.Is(err, fs.ErrNotExist) {
			return err // made, and then the token went away before it said so
		}
		_, err := ctx.GenerateECDSAKeyPairWithLabel(id, []byte(label), elliptic.P256())
		return err
	}); err != nil {
		return nil, fmt.Errorf("make key %s: %w", label, err)
	}
	return t.Find(label)
}

// Find returns the key with this label; fs.ErrNotExist when there is none.
func (t *Token) Find(label string) (crypto.Signer, error) {
	k := &key{t: t, label: label}
	if err := t.use(func(ctx *crypto11.Context) error {
		s, err := find(ctx, label)
		if err != nil {
			return err
		}
		k.signer, k.n, k.pub = s, t.n, s.Public()
		return nil
	}); err != nil {
		return nil, fmt.Errorf("find key %s: %w", label, err)
	}
	return k, nil
}

// Remove destroys the key with this label. That it is gone already is no error.
func (t *Token) Remove(label string) error {
	if err := t.use(func(ctx *crypto11.Context) error {
		s, err := find(ctx, label)
		if err != nil {
			return err
		}
		return s.Delete()
	}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove key %s: %w", label, err)
	}
	return nil
}

func find(ctx *crypto11.Context, label string) (crypto11.Signer, error) {
	keys, err := ctx.FindKeyPairs(nil, []byte(label))
	if err != nil {
		return nil, err
	}
	switch len(keys) {
	case 0:
		return nil, fs.ErrNotExist
	case 1:
		return keys[0], nil
	}
	return nil, ErrTwo
}

// use lets f work with the token, a second time when it turns out that the
// token was away.
func (t *Token) use(f func(*crypto11.Context) error) error {
	n, err := t.try(f)
	if !away(err) {
		return err
	}
	if again := t.reopen(n); again != nil {
		return fmt.Errorf("%w; then: %w", err, again)
	}
	_, err = t.try(f)
	return err
}

func (t *Token) try(f func(*crypto11.Context) error) (n int, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	switch {
	case t.closed:
		return t.n, fmt.Errorf("token %q: %w", t.conf.Token, os.ErrClosed)
	case t.ctx == nil: // since it was away longer than one attempt
		return t.n, fmt.Errorf("token %q: %w", t.conf.Token, errAway)
	}
	return t.n, f(t.ctx)
}

// reopen logs in again, unless somebody has since the nth time.
func (t *Token) reopen(n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.n != n {
		return nil
	}
	if t.ctx != nil {
		_ = t.ctx.Close() // it is broken, that is why we are here
		t.ctx = nil
	}
	return t.open()
}

// away reports whether an error may mean that what we had open is no more, and
// not that the token said no. Without a login a token does not refuse to look
// for a private key, it finds none: believed only after another login, or a
// second key would be made beside the first.
func away(err error) bool {
	var e pkcs11.Error
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errAway) || errors.As(err, &e) && slices.Contains([]pkcs11.Error{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	}, e)
}

// key signs with a key in the token.
type key struct {
	t     *Token
	label string
	pub   crypto.PublicKey

	mu     sync.Mutex
	signer crypto11.Signer
	n      int // the opening of the token that the signer belongs to
}

// Public implements crypto.Signer.
func (k *key) Public() crypto.PublicKey { return k.pub }

// Sign implements crypto.Signer. The token takes its own random numbers.
func (k *key) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	err = k.t.use(func(ctx *crypto11.Context) error {
		s, err := k.in(ctx)
		if err != nil {
			return err
		}
		sig, err = s.Sign(random, digest, opts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sign with key %s: %w", k.label, err)
	}
	return sig, nil
}

// in returns the key as this opening of the token knows it.
func (k *key) in(ctx *crypto11.Context) (crypto11.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n == k.t.n {
		return k.signer, nil
	}
	s, err := find(ctx, k.label)
	if err != nil {
		return nil, err
	}
	if pub, ok := k.pub.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(s.Public()) {
		return nil, errors.New("another key has its label now")
	}
	k.signer, k.n = s, k.t.n
	return s, nil
}
