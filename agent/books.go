package agent

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/vault"
)

// The books are the spool: queue, audit trail and identity. With a release key
// in the image they are locked, and the key opens only in a boot that a release
// approved. While it does not open, the agent keeps a second set, plain, beside
// them: quarantine and repair need a trail and an identity, and the till sells
// on. When it opens again the locked books take over what the second set has.

const (
	lockedBooks = "spool.db"
	plainBooks  = "spool.beside.db"
	lostBooks   = ".lost-" // then when

	// keyIdentity is believed; its copy is for the time when it cannot be read.
	keyIdentity     = "identity"
	keyIdentityCopy = "identity.copy"
	keyAuditHead    = "audit.head"
	keyCommand      = "command"
	keyCommandFloor = "command.floor"
)

// plainValues hold no secret and are needed while the books are locked.
var plainValues = []string{keyAuditHead, keyIdentityCopy, keySettings}

// errAbsorb means that the locked books are fit, and have no room for what the
// plain ones hold.
var errAbsorb = errors.New("the plain books could not be taken over")

func (a *Agent) bookOptions() spool.Options {
	c := a.cfg.Spool
	return spool.Options{
		MaxBytes: int64(c.MaxMiB) << 20, Shares: c.shares(), Window: c.Window.Duration, Log: a.log,
		Plain: plainValues, Copied: []string{keyAuditHead}, Thin: thin, Tally: a.tally,
	}
}

func (a *Agent) file(name string) string { return filepath.Join(a.cfg.StateDir, name) }

// openVault reads the release key of the image; without one nothing is locked.
func (a *Agent) openVault() error {
	if a.cfg.Update.SealKey == "" {
		return nil
	}
	b, err := os.ReadFile(a.cfg.Update.SealKey)
	if err != nil {
		return fmt.Errorf("update.seal_key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return fmt.Errorf("update.seal_key: %s holds no PEM block", a.cfg.Update.SealKey)
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("update.seal_key: %w", err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return fmt.Errorf("update.seal_key: %s holds no ECDSA P-256 key", a.cfg.Update.SealKey)
	}
	a.vault = &vault.Vault{Dir: a.file("vault"), Release: key}
	return nil
}

// openBooks opens the books that can be opened. What was found is recorded by
// tellBooks, once there is a trail.
func (a *Agent) openBooks(ctx context.Context) error {
	o := a.bookOptions()
	if err := a.openVault(); err != nil {
		return err
	}
	a.takeReferences()
	a.shut = a.tryData(ctx)
	if a.vault == nil || !a.vault.Begun(vault.Books) {
		var err error
		a.spool, err = spool.Open(a.file(lockedBooks), o)
		if errors.Is(err, spool.ErrKey) {
			return a.openKeyless(ctx, o, err)
		}
		return err
	}
	key, err := a.unseal(ctx)
	if errors.Is(err, vault.ErrLost) {
		return a.loseBooks(err)
	}
	if err != nil {
		a.closed = err
		return a.openBeside(ctx, o)
	}
	o.Key = key
	a.spool, err = spool.Open(a.file(lockedBooks), o)
	if errors.Is(err, spool.ErrKey) {
		return a.loseBooks(err)
	}
	if err != nil { // perhaps no space to lock plain ones: they serve as they are
		plain, e := spool.Open(a.file(lockedBooks), a.bookOptions())
		if e != nil {
			return err
		}
		a.log.Error("the books stay plain", slog.Any("err", err))
		a.spool = plain
		return nil
	}
	beside := a.file(plainBooks)
	if _, err := os.Stat(beside); err == nil {
		a.reopened = true
	}
	// Only what must go on: who wrote on the disk meanwhile is not known. The copy
	// of the identity was never believed.
	take := func(key string) bool {
		return key == keyAuditHead || key == keyIdentityCopy || strings.HasPrefix(key, keyCommand)
	}
	if err := a.spool.Absorb(ctx, beside, take); err != nil {
		a.closed, a.reopened = fmt.Errorf("%w: %w", errAbsorb, err), false // the plain ones serve until they can be taken over
		return cmp.Or(a.spool.Close(), a.openBeside(ctx, a.bookOptions()))
	}
	return nil
}

// openKeyless goes on where the books are locked and there is no key to ask the
// TPM for. With an image that knows no release key, e.g. an older one, they wait
// for one that does; without the sealed key nobody opens them any more.
func (a *Agent) openKeyless(ctx context.Context, o spool.Options, why error) error {
	if a.vault != nil {
		return a.loseBooks(fmt.Errorf("the sealed key is gone: %w", why))
	}
	a.closed = fmt.Errorf("the image has no release key, set update.seal_key: %w", why)
	return a.openBeside(ctx, o)
}

// unseal asks the TPM for the key of the books.
func (a *Agent) unseal(ctx context.Context) ([]byte, error) {
	dev, done, err := a.openTPM(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return a.vault.Open(ctx, dev, vault.Books)
}

// opensNow reports whether the books can be opened that stayed locked at the
// start, or the data; then it is for whoever starts the agent to open that.
func (a *Agent) opensNow(ctx context.Context, dev TPM) bool {
	opens := func(k vault.Key, closed error) bool {
		if closed == nil || a.vault == nil || errors.Is(closed, errAbsorb) {
			return false
		}
		_, err := a.vault.Open(ctx, dev, k)
		return err == nil
	}
	return opens(vault.Books, a.closed) || opens(vault.Data, a.shut)
}

// reopenAfter is how long the agent runs at least before it is started again to
// open what stayed closed: a TPM that fails whenever it is asked first is no reason to
// spin.
const reopenAfter = 5 * time.Second

// reopen has the agent started again, where the TPM did not answer at the start
// and does now. What waits in the locked books is older than what the plain ones
// have: it must go to the service first.
func (a *Agent) reopen(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(a.started.Add(reopenAfter))):
		return ErrRestart
	}
}

// openBeside goes on in plain books.
func (a *Agent) openBeside(ctx context.Context, o spool.Options) error {
	blind := o
	blind.Blind = true
	locked, err := spool.Open(a.file(lockedBooks), blind)
	if err != nil {
		return err
	}
	more, err := carry(ctx, locked)
	if err == nil {
		a.spool, err = spool.Beside(ctx, a.file(plainBooks), locked, more, o)
	}
	return errors.Join(err, locked.Close())
}

// carry is what the plain books begin with beside the plain values: who the
// device is, and which commands it has seen.
func carry(ctx context.Context, locked *spool.Spool) (map[string][]byte, error) {
	id, err := locked.Load(ctx, keyIdentityCopy)
	if err != nil {
		return nil, err
	}
	more := map[string][]byte{}
	if id != nil {
		more[keyIdentity] = id
	}
	seen, err := locked.Keys(ctx, keyCommand+"/")
	if err != nil || len(seen) == 0 {
		return more, err
	}
	newest := strings.TrimPrefix(slices.Max(seen), keyCommand+"/")
	n, err := strconv.ParseUint(newest, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("journal of commands: %w", err)
	}
	more[keyCommandFloor] = strconv.AppendUint(nil, n, 10)
	return more, nil
}

// loseBooks gives up books whose key nobody has any more - the disk of another
// box, or a TPM that was cleared - and begins new ones. They are kept, once,
// for whoever comes looking.
func (a *Agent) loseBooks(why error) error {
	a.lost = why
	when := time.Now().Unix()
	for _, books := range []string{plainBooks, lockedBooks} {
		if _, err := os.Lstat(a.file(books)); errors.Is(err, fs.ErrNotExist) {
			continue // set aside before the power was cut, perhaps
		}
		if err := member.Remove(a.cfg.StateDir, books+lostBooks); err != nil {
			return fmt.Errorf("remove lost books: %w", err)
		}
		for _, part := range []string{"-wal", ""} {
			to := fmt.Sprintf("%s%s%d%s", a.file(books), lostBooks, when, part)
			if err := os.Rename(a.file(books)+part, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("set lost books aside: %w", err)
			}
		}
	}
	if err := a.vault.Forget(vault.Books); err != nil {
		return fmt.Errorf("set lost books aside: %w", err)
	}
	var err error
	a.spool, err = spool.Open(a.file(lockedBooks), a.bookOptions())
	return err
}

// tellBooks records how the books were found.
func (a *Agent) tellBooks(ctx context.Context) {
	switch {
	case a.lost != nil:
		a.log.Error("the books cannot be opened any more; beginning new ones", slog.Any("err", a.lost))
		a.record(ctx, "vault.lost", "alarm", "", map[string]string{"reason": reason(a.lost)})
	case a.closed != nil:
		a.log.Error("the books stay locked; going on in plain ones", slog.Any("err", a.closed))
		a.record(ctx, "vault.closed", "alarm", "", map[string]string{"reason": reason(a.closed)})
	case a.reopened:
		a.record(ctx, "vault.opened", "info", "", nil)
	}
	a.tellData(ctx)
}

// keepIdentity stores who the device is, and a copy for the time when the
// books stay locked. The copy first: it may be newer, never without.
func (a *Agent) keepIdentity(ctx context.Context, b []byte) error {
	return errors.Join(a.spool.Save(ctx, keyIdentityCopy, b, "", nil), a.spool.Save(ctx, keyIdentity, b, "", nil))
}
