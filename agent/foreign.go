package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/provisioning/identity"
)

// The disk of another box: its identity, and with it its books, belong to a
// TPM that is not here. What it has not sent yet is not this device's to send,
// and its audit chain is not this device's to go on with. The books are closed
// and set aside, unread, for whoever comes looking; this box begins its own.

// foreign ends a life of the agent on another device's books.
type foreign struct{ device string }

// Error implements error.
func (f *foreign) Error() string { return "this disk belongs to device " + f.device }

const aside = ".of-" // then the device whose books they are, then when

// whose decides what a key that is not in this TPM means: nil when the TPM is
// the same one with new keys, as after a clear.
func (a *Agent) whose(ctx context.Context, dev TPM, device string) error {
	public, _, _, err := dev.Endorsement(ctx)
	if err != nil {
		return fmt.Errorf("find out whose identity is kept here: %w", err)
	}
	if identity.DeviceID(public) != device {
		return &foreign{device}
	}
	a.log.Warn("the TPM was cleared, its keys are new: enrolling again", slog.String("device", device))
	a.record(ctx, "identity.lost", "warn", device, map[string]string{"reason": "tpm-cleared"})
	return nil
}

// setAside moves the books of another device out of the way. They are closed.
func (a *Agent) setAside(f *foreign) error {
	a.log.Error("the books on this disk belong to another device; beginning new ones", slog.String("device", f.device))
	// Its updates are not ours to report either. First, because the books say
	// whose they are.
	journal := filepath.Join(a.cfg.StateDir, "agent", "journal.json")
	if err := os.Rename(journal, journal+aside+f.device); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the update journal of device %s aside: %w", f.device, err)
	}
	// What was sealed on that box this TPM never opens.
	if a.vault != nil {
		if err := a.vault.Forget(vault.Books); err != nil {
			return fmt.Errorf("forget the key of device %s: %w", f.device, err)
		}
	}
	if err := os.Rename(a.file(trailMark), a.file(trailMark)+aside+f.device); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set the mark of the trail of device %s aside: %w", f.device, err)
	}
	when := time.Now().Unix()
	for _, name := range []string{plainBooks, lockedBooks} {
		books := a.file(name)
		to := fmt.Sprintf("%s%s%s-%d", books, aside, f.device, when)
		for _, part := range []string{"-wal", ""} { // empty after an orderly end, and then without it
			if err := os.Rename(books+part, to+part); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("set the books of device %s aside: %w", f.device, err)
			}
		}
	}
	return nil
}

// tellForeign begins new books with why they are new.
func (a *Agent) tellForeign(ctx context.Context) {
	if seq, _ := a.journal.Head(); seq > 0 {
		return
	}
	names, _ := filepath.Glob(a.file(lockedBooks) + aside + "*") // the pattern is well formed
	for _, n := range names {
		if strings.HasSuffix(n, "-wal") {
			continue
		}
		_, rest, _ := strings.Cut(filepath.Base(n), aside)
		device, _, _ := strings.Cut(rest, "-")
		a.record(ctx, "identity.foreign", "alarm", device, map[string]string{
			"reason": "other-device", "kept": filepath.Base(n),
		})
	}
}
