package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

const (
	mediumEvery = 5 * time.Second // between two looks for a medium
	mediumOrder = "order.cbor"    // the last file that is written to one
)

// watchMedia takes what update media bring, as long as the device is a member
// of m. Whoever plugs one in again after a failure asks for another try.
func (a *Agent) watchMedia(ctx context.Context, m *membership) error {
	seen, noted := map[string]time.Time{}, map[string]time.Time{} // folder -> its order, as looked at, and as on record
	tick := time.NewTicker(mediumEvery)
	defer tick.Stop()
	for {
		found := map[string]time.Time{}
		for _, dir := range a.media() {
			fi, err := os.Lstat(filepath.Join(dir, mediumOrder))
			if err != nil || !fi.Mode().IsRegular() {
				continue
			}
			found[dir] = fi.ModTime()
			if was, ok := seen[dir]; ok && was.Equal(fi.ModTime()) {
				continue
			}
			if !a.plugged(ctx, m, dir, fi.ModTime(), noted) {
				delete(found, dir) // looked at again
			}
		}
		seen = found
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// media lists the folders that may be update media.
func (a *Agent) media() (dirs []string) {
	for _, pattern := range a.cfg.Update.Media {
		names, _ := filepath.Glob(pattern) // the configuration was checked
		dirs = append(dirs, names...)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// plugged takes up the order of one medium, and notes that it is on record;
// false when it has to be looked at once more, because there was no room for all
// of it.
func (a *Agent) plugged(ctx context.Context, m *membership, dir string, written time.Time, noted map[string]time.Time) bool {
	o, err := readMedium(m, filepath.Join(dir, mediumOrder), a.clock.Now())
	if err != nil {
		a.log.Error("update medium refused", slog.String("folder", dir), slog.Any("err", err))
		a.record(ctx, "update.medium-refused", "alarm", dir, map[string]string{"reason": reason(err)})
		return true
	}
	offers := a.offersOf(o, dir)
	again := noted[dir].Equal(written)
	if again {
		offers = slices.DeleteFunc(offers, func(o update.Offer) bool { _, ended := a.machine.Last(o.Execution); return ended })
	} else if err := a.note(ctx, "update.medium", "info", o.ID, map[string]string{"folder": dir, "by": o.By, "releases": fmt.Sprint(len(o.Releases)), "here": fmt.Sprint(len(offers))}); err != nil {
		a.log.Warn("update medium is not looked at yet", slog.Any("err", err))
		return false
	}
	noted[dir] = written
	for _, offer := range offers {
		if err := a.noteRepair(ctx, offer.Execution); err != nil || !a.machine.Submit(offer) {
			return false // those that were taken are known
		}
	}
	return true
}

// readMedium reads and verifies the order on a medium, which anybody may have
// written.
func readMedium(m *membership, file string, now time.Time) (wire.MediumOrder, error) {
	var none wire.MediumOrder
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) // #nosec G304 -- below a configured folder; a pipe must not hold us up
	if err != nil {
		return none, fmt.Errorf("read the order of the medium: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, wire.MaxMessage+1))
	if err != nil {
		return none, fmt.Errorf("read the order of the medium: %w", err)
	}
	o, err := wire.Decode[wire.Order](b)
	if err != nil {
		return none, fmt.Errorf("the order of the medium: %w", err)
	}
	if o.Kind != wire.OrderMedium {
		return none, fmt.Errorf("the order of the medium is of kind %q: %w", o.Kind, errKind)
	}
	if err := m.keys.VerifyOrder(o.Kind, o.Payload, o.KeyID, o.Signature); err != nil {
		return none, err
	}
	order, err := wire.Decode[wire.MediumOrder](o.Payload)
	switch {
	case err != nil:
		return none, fmt.Errorf("the order of the medium: %w", err)
	case order.Tenant != m.Tenant:
		return none, fmt.Errorf("the medium is for devices of %s, this one belongs to %s: %w", order.Tenant, m.Tenant, errOtherDevice)
	case now.After(time.UnixMilli(order.NotAfter)):
		return none, fmt.Errorf("the medium was good until %s: write another one (tillward release export-medium): %w", time.UnixMilli(order.NotAfter).UTC().Format(time.RFC3339), errOver)
	}
	return order, nil
}

// offersOf picks what a medium has for this box. One medium serves boxes of
// several models: what is for others is no reason for an alarm.
func (a *Agent) offersOf(o wire.MediumOrder, dir string) (out []update.Offer) {
	for _, r := range o.Releases {
		folder := r.Target
		if path.Base(folder) != r.Version {
			folder = path.Dir(folder)
		}
		component := path.Dir(folder)
		offer := update.Offer{
			Execution: o.ID + "-" + strings.ReplaceAll(component, "/", "-"), Attempt: 1, Class: r.Class, Version: r.Version, Target: folder,
			NotAfter: time.UnixMilli(o.NotAfter), Medium: dir,
		}
		if r.Target != folder && targetOf(offer) != r.Target || r.Class == trust.ClassOS && component != a.system() {
			continue
		}
		if last, ok := a.machine.Last(offer.Execution); ok && last.State == "FAILED" {
			offer.Attempt = last.Attempt + 1
		}
		out = append(out, offer)
	}
	return out
}

// fromMedium is what the metadata of a medium vouches for.
func (a *Agent) fromMedium(dir string) (update.Releases, error) {
	m := a.current()
	if m == nil {
		return nil, errNoMember
	}
	if _, err := os.Stat(filepath.Join(dir, mediumOrder)); errors.Is(err, fs.ErrNotExist) {
		return nil, update.Fail("canceled", "the update medium was taken out: plug it in again for another try")
	}
	return m.tuf.Medium(dir), nil
}
