package agent

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/trust"
)

// gate says why an update has to wait; empty: it need not.
func (a *Agent) gate(p update.Phase, need int64) (reason, text string) {
	if l := a.cfg.Update.IdleLock; l != "" && p == update.Touch {
		if _, err := os.Stat(l); err == nil {
			return "idle-lock", "the POS application holds " + l
		}
	}
	if a.spool.Full() {
		return "audit-full", "the audit trail has no room: what is done could not be recorded"
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(a.cfg.StateDir, &fs); err == nil {
		free := fs.Bavail * uint64(fs.Bsize)                               // #nosec G115 -- sizes are positive
		want := uint64(a.cfg.Update.MinFreeMiB)<<20 + uint64(max(need, 0)) // #nosec G115 -- and so are these
		if free < want {
			return "space", fmt.Sprintf("%d MiB are free, %d are needed", free>>20, want>>20)
		}
	}
	return "", ""
}

// permit says why this box must not have a target.
func (a *Agent) permit(ctx context.Context, o update.Offer, _ trust.Target) (reason, text string, err error) {
	if o.Class == trust.ClassAgent || o.Class == "" {
		if text, err = a.sealable(ctx, o.Version); err != nil || text != "" {
			return "unsealable", text, err
		}
	}
	return "", "", nil
}

// health is how the peripherals are.
func (a *Agent) health(context.Context) (map[string]string, error) {
	a.mu.Lock()
	m := a.monitor
	a.mu.Unlock()
	now := map[string]string{}
	if m == nil {
		return now, nil
	}
	for _, p := range m.Snapshot() {
		now[p.ID] = p.Health
	}
	return now, nil
}
