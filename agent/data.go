package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/provisioning/boot"
)

// The data partition is opened before the agent runs, by whoever starts it: the
// agent is asked for the key, once, and never has the partition itself in its
// hands. What it promises of the books it promises of the data: approvals of a
// release are on file before the box boots into it, a release on trial that does
// not open what was open is undone, and the floor does not rise above it.

// ErrUnapproved is what DataKey answers in a boot that no release approves.
var ErrUnapproved = vault.ErrClosed

// DataKey writes the key of the data partition, 32 bytes, to w. At the first
// call in a boot that is approved it draws and seals one. Errors: ErrUnapproved,
// ErrSealedElsewhere; or what keeps it from finding out.
func DataKey(ctx context.Context, cfg Config, o Options, w io.Writer) error {
	a := New(cfg, o)
	if err := a.openVault(); err != nil {
		return err
	}
	if a.vault == nil {
		return errors.New("the image has no release key, and so nothing is sealed: set update.seal_key")
	}
	a.takeReferences()
	dev, done, err := a.openTPM(ctx)
	if err != nil {
		return err
	}
	defer done()
	key, err := a.vault.Open(ctx, dev, vault.Data)
	if errors.Is(err, vault.ErrNone) {
		if err = a.vault.Make(ctx, dev, vault.Data); err == nil {
			key, err = a.vault.Open(ctx, dev, vault.Data) // as it lies on the disk
		}
	}
	switch {
	case errors.Is(err, vault.ErrLost):
		return fmt.Errorf("%w: put the TPM back that it was sealed by, or reset the box to factory state, which gives the data up", err)
	case errors.Is(err, vault.ErrClosed):
		return fmt.Errorf("%w: start an image that is approved, or publish an approval for this one (tillward-provision boot approve); the data is kept", err)
	case err != nil:
		return err
	}
	if _, err := w.Write(key); err != nil {
		return fmt.Errorf("hand over the key: %w", err)
	}
	return nil
}

// takeReferences puts the approvals on file that the images on this box bring:
// the first start has no other, and one without a network needs no other.
func (a *Agent) takeReferences() {
	if a.vault == nil {
		return
	}
	for _, pattern := range a.cfg.Update.References {
		names, _ := filepath.Glob(pattern) // the pattern was checked
		for _, name := range names {
			if err := a.takeReference(name); err != nil {
				a.log.Warn("boot reference of an image on this box is passed over", slog.String("file", name), slog.Any("err", err))
			}
		}
	}
}

func (a *Agent) takeReference(name string) error {
	if fi, err := os.Stat(name); err != nil || !fi.Mode().IsRegular() {
		return errors.Join(errors.New("it is no file that can be read"), err)
	}
	f, err := os.Open(name) // #nosec G304 -- the configuration names it
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, boot.MaxReference+1))
	if err != nil {
		return err
	}
	r, err := boot.ParseReference(b)
	if err != nil {
		return err
	}
	ok, err := a.vault.KeepFrom(name, r)
	if err == nil && !ok {
		err = errors.New("it holds no approval by the release key of this image")
	}
	return err
}

// tryData says why the key of the data partition does not open; nil when it does
// or there is none.
func (a *Agent) tryData(ctx context.Context) error {
	if a.vault == nil {
		if (&vault.Vault{Dir: a.file("vault")}).Begun(vault.Data) {
			return errors.New("the image has no release key, set update.seal_key")
		}
		return nil
	}
	if !a.vault.Begun(vault.Data) {
		return nil
	}
	dev, done, err := a.openTPM(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, err = a.vault.Open(ctx, dev, vault.Data)
	return err
}

// tellData records how the data was found.
func (a *Agent) tellData(ctx context.Context) {
	kind := "vault.data-closed"
	switch {
	case a.shut == nil:
		return
	case errors.Is(a.shut, vault.ErrLost):
		kind = "vault.data-lost"
	}
	a.log.Error("the data partition stays closed", slog.Any("err", a.shut))
	a.record(ctx, kind, "alarm", "", map[string]string{"reason": reason(a.shut)})
}

// nothingOpen reports whether everything that is sealed is closed already.
func (a *Agent) nothingOpen() bool {
	return (a.closed != nil || !a.vault.Begun(vault.Books)) && (a.shut != nil || !a.vault.Begun(vault.Data))
}
