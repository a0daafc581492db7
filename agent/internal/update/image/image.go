// Package image installs system images (class os): RAUC bundles, into the boot
// slots that do not run.
//
// A bundle comes as a verified file, or it is streamed: RAUC then reads ranges
// from a proxy on the loopback interface, which fetches them as they are asked
// for. Three locks hold independently: TUF says which bytes and which manifest,
// RAUC checks the CMS signature of its own authority and that the bundle is made
// for the box, dm-verity checks each block of a stream.
//
// The new system is started only by Try, on trial: what ran before stays whole
// and the boot loader's to fall back to until Keep. What runs is told as the
// boot loader shows it; that it fell back without us is found by a note that
// outlives the restart. Health checks, windows and restarts are not its own.
package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/trust"
)

// Slots are the boot slots of the box; hal/slot fits.
type Slots interface {
	// Status says what can be started and what is.
	Status(ctx context.Context) (hal.Boot, error)
	// Install writes a bundle into the slots that do not run and returns the one to start.
	Install(ctx context.Context, b hal.Bundle, progress func(percent int, text string)) (string, error)
	// Mark tells the boot loader about a slot: good, bad or active.
	Mark(ctx context.Context, slot, state string) error
}

// Options of a Handler.
type Options struct {
	Dir      string // for its note, on the state partition
	Slots    Slots
	Whole    bool                                             // no streams: one that breaks off begins anew, and here bytes are dear
	Progress func(execution string, percent int, text string) // of writing; may be nil
	Log      *slog.Logger
	BootID   func() string // differs after each start of the box; nil: the kernel's
	Release  string        // os-release file of the running system; empty: /etc/os-release
}

// Handler is the update.Handler of class os.
type Handler struct {
	o        Options
	noStream atomic.Bool // RAUC said so

	mu   sync.Mutex // over the note and what follows
	runs *hal.Boot  // as found; what runs does not change while we do
}

// New returns a Handler; what it writes lies in o.Dir, which must be there.
func New(o Options) *Handler {
	if o.BootID == nil {
		o.BootID = func() string {
			id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
			return strings.TrimSpace(string(id))
		}
	}
	if o.Release == "" {
		o.Release = "/etc/os-release"
	}
	if o.Progress == nil {
		o.Progress = func(string, int, string) {}
	}
	return &Handler{o: o}
}

// Streams reports whether a bundle may be handed in as Job.Content instead of
// Job.File. Ask before each try: a box that turns out not to be able to says so
// from then on.
func (h *Handler) Streams(t trust.Target) bool {
	want := t.Custom.RAUC
	if want == nil || want.Format == "plain" || want.ManifestHash == "" || h.o.Whole || h.noStream.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := h.o.Slots.Status(ctx)
	return err == nil && b.Streams
}

// Stage implements update.Handler.
func (h *Handler) Stage(ctx context.Context, j update.Job) error {
	want := j.Target.Custom.RAUC
	b, err := h.settled(ctx)
	if err != nil {
		return err
	}
	if err := fits(j, b); err != nil {
		return err
	}
	n := h.note()
	if n.Execution == j.Execution && n.To == b.Booted && n.To != "" {
		return nil // it runs, on trial
	}
	if n.onTrial(b) {
		return fmt.Errorf("what runs, %s in slot %s, has not proved itself: nothing is written over what ran before it", n.Version, n.To)
	}
	bundle := hal.Bundle{Source: j.File, Format: want.Format, ManifestHash: want.ManifestHash, Transaction: j.Execution}
	var p *proxy
	switch {
	case j.File != "":
		if err := verify(ctx, j.File, j.Target); err != nil {
			return err
		}
	case j.Content == nil:
		return errors.New("stage system image: neither a file nor a stream")
	case want.Format == "plain":
		return fmt.Errorf("%w: the bundle has the format plain; fetch it first", hal.ErrNoStream)
	case want.ManifestHash == "":
		return update.Refuse("signature", "the release does not say which manifest the bundle has, and without that a stream cannot be checked: publish it with its manifest hash")
	default:
		if p, err = serve(j.Content, j.Target.Length); err != nil {
			return err
		}
		defer p.close()
		bundle.Source, bundle.Headers, bundle.Inspecting = p.url(), []string{p.header()}, []string{p.look()}
	}
	// What is written over is not started any more. What runs must be what is
	// then, also where the boot loader came to it because the other one failed.
	if s, _ := b.Slot(b.Booted); s.Good == hal.No {
		if err := h.o.Slots.Mark(ctx, b.Booted, "good"); err != nil {
			return err
		}
	}
	if err := h.keep(note{Execution: j.Execution, Version: j.Version, From: b.Booted, Phase: staging}); err != nil {
		return err
	}
	to, err := h.o.Slots.Install(ctx, bundle, func(percent int, text string) { h.o.Progress(j.Execution, percent, text) })
	if err != nil {
		if _, serr := h.settled(ctx); serr != nil {
			h.o.Log.Warn("boot slots are settled later", slog.Any("err", serr))
		}
		return h.meaning(ctx, err, p)
	}
	return h.staged(ctx, j, to)
}

// staged checks what was written and notes it.
func (h *Handler) staged(ctx context.Context, j update.Job, to string) error {
	b, err := h.settled(ctx) // so that nothing is started before Try
	if err != nil {
		return err
	}
	s, _ := b.Slot(to)
	if err := holds(s, j); err != nil {
		if merr := errors.Join(h.o.Slots.Mark(ctx, to, "bad"), h.forget()); merr != nil {
			h.o.Log.Warn("boot slot with a wrong bundle is left as it is", slog.String("slot", to), slog.Any("err", merr))
		}
		return err
	}
	return h.keep(note{Execution: j.Execution, Version: j.Version, From: b.Booted, To: to, Phase: ready})
}

// meaning turns the error of an installation into one that says whether to try
// again.
func (h *Handler) meaning(ctx context.Context, err error, p *proxy) error {
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, hal.ErrUntrusted):
		return update.Refuse("signature", "%w", err)
	case errors.Is(err, hal.ErrIncompatible):
		return update.Refuse("incompatible", "%w", err)
	case errors.Is(err, hal.ErrTooOld):
		return update.Refuse("downgrade", "%w", err)
	case errors.Is(err, hal.ErrNoStream):
		h.noStream.Store(true)
		return err // tried again, from a file
	}
	if errors.Is(p.failed(), errPinned) {
		h.noStream.Store(true)
	}
	if cut := p.failed(); cut != nil {
		return fmt.Errorf("stream the bundle: %w (%w)", cut, err) // tried again
	}
	return update.Fail("install", "%w", err)
}

// fits refuses what cannot run here before anything is written.
func fits(j update.Job, b hal.Boot) error {
	want := j.Target.Custom.RAUC
	switch {
	case j.Target.Custom.Class != trust.ClassOS:
		return update.Refuse("incompatible", "release %s is of class %s, not %s", j.Version, j.Target.Custom.Class, trust.ClassOS)
	case want == nil:
		return update.Refuse("incompatible", "release %s is a system image without a word on its RAUC bundle: publish it with the bundle's compatible, version and manifest hash", j.Version)
	case want.Version != j.Version:
		return update.Refuse("incompatible", "the bundle calls itself version %s, the release %s: build the bundle with the version of the release", want.Version, j.Version)
	case want.Compatible != b.Compatible:
		return update.Refuse("incompatible", "the bundle is made for %q, this box is %q", want.Compatible, b.Compatible)
	case want.MinRAUC != "" && b.Before != "" && semver.Compare("v"+want.MinRAUC, "v"+b.Before) >= 0:
		// What is between the ages that can be told apart RAUC checks itself, by the manifest.
		return update.Refuse("incompatible", "the bundle needs RAUC %s, this box has one before %s: install an image with a newer RAUC first", want.MinRAUC, b.Before)
	case b.Booted == "":
		return update.Fail("install", "RAUC does not know which slot runs: check bootname and device of the slots in system.conf, and rauc.slot= on the kernel's command line")
	}
	return nil
}

// holds compares what RAUC says is in a slot with what was to be installed.
func holds(s hal.Slot, j update.Job) error {
	want := j.Target.Custom.RAUC
	if want == nil {
		return nil // a trial that was found, of which nobody knows what was to be
	}
	if s.Version != want.Version {
		return update.Fail("install", "slot %s holds version %q, not %s (does system.conf name a place for slot states, data-directory?)", s.Name, s.Version, want.Version)
	}
	if s.Hash != "" && want.ManifestHash != "" && s.Hash != want.ManifestHash {
		return update.Fail("install", "slot %s holds a bundle with the manifest hash %s, not %s", s.Name, s.Hash, want.ManifestHash)
	}
	return nil
}

// verify reads the file once more: it may have lain there for days.
func verify(ctx context.Context, path string, want trust.Target) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("staged bundle: %w", err)
	}
	defer func() { _ = f.Close() }() // before RAUC comes: it insists on being the only one that has it open
	sum, buf := sha256.New(), make([]byte, 256<<10)
	var length int64
	for {
		n, err := f.Read(buf)
		sum.Write(buf[:n])
		if length += int64(n); errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("staged bundle: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.SHA256 || length != want.Length {
		return update.Fail("storage", "the staged bundle has changed on the disk: %d bytes, sha256 %s; want %d, %s", length, got, want.Length, want.SHA256)
	}
	return nil
}

// imageVersion is what the running system says of itself, for a slot that was
// filled in the factory and not by RAUC.
func (h *Handler) imageVersion() string {
	f, err := os.Open(h.o.Release)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(io.LimitReader(f, 64<<10)); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "IMAGE_VERSION="); ok { // [os-release(5)]
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}
