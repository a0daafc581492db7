package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/agent/internal/gate"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/trust"
)

// healthTime is how long the command of update.health may take.
const healthTime = 30 * time.Second

// gate says why an update has to wait; empty: it need not.
func (a *Agent) gate(p update.Phase, need int64) (reason, text string) {
	c := a.cfg.Update
	if p == update.Fetch && !c.DownloadHours.Open(a.o.Now()) {
		return "window-download", "this box fetches at " + c.DownloadHours.String()
	}
	if p == update.Touch {
		if !c.Hours.Open(a.o.Now()) {
			return "window-install", "this box may be touched at " + c.Hours.String()
		}
		if by := a.busy(); by != "" {
			return "idle-lock", by
		}
		if gate.Supply(c.PowerDir) == gate.Battery {
			return "power", "the box runs on its battery"
		}
	}
	if a.spool.Full() {
		return "audit-full", "the audit trail has no room: what is done could not be recorded"
	}
	if free, ok := a.free(); ok {
		want := uint64(c.MinFreeMiB)<<20 + uint64(max(need, 0)) // #nosec G115 -- sizes are positive
		if free < want {
			return "space", fmt.Sprintf("%d MiB are free, %d are needed", free>>20, want>>20)
		}
	}
	return "", ""
}

// busy says why the POS application must not be disturbed. A lock whose process
// is gone is told once, and does not count.
func (a *Agent) busy() string {
	if a.cfg.Update.IdleLock == "" {
		return ""
	}
	by, stale := gate.Lock{File: a.cfg.Update.IdleLock}.Held()
	a.mu.Lock()
	told := a.stale == stale
	a.stale = stale
	a.mu.Unlock()
	if stale != "" && !told {
		a.log.Warn("the lock of the POS application is stale", slog.String("why", stale))
		a.record(context.Background(), "update.stale-lock", "warn", a.cfg.Update.IdleLock, map[string]string{"reason": "process-gone"})
	}
	return by
}

// free is the space on the state partition.
func (a *Agent) free() (bytes uint64, known bool) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(a.cfg.StateDir, &fs); err != nil {
		return 0, false
	}
	return fs.Bavail * uint64(fs.Bsize), true // #nosec G115 -- sizes are positive
}

// roomLeft wants the room that is always to be left on the state partition.
func (a *Agent) roomLeft() error {
	free, ok := a.free()
	if want := uint64(a.cfg.Update.MinFreeMiB) << 20; ok && free < want { // #nosec G115 -- positive
		return fmt.Errorf("%d MiB are free, %d are to be left", free>>20, want>>20)
	}
	return nil
}

// permit says why this box must not have a target.
func (a *Agent) permit(ctx context.Context, o update.Offer, t trust.Target) (reason, text string, err error) {
	if m := t.Custom.Models; len(m) > 0 && !slices.Contains(m, a.cfg.Model) {
		return "incompatible", fmt.Sprintf("%s is for %s, this box is a %s", t.Path, strings.Join(m, ", "), a.cfg.Model), nil
	}
	part := strings.Split(t.Path, "/")
	switch class := t.Custom.Class; class {
	case trust.ClassAgent:
		if part[0] != "agent" {
			return "policy", t.Path + " is not where agents are released", nil
		}
		if text, err = a.sealable(ctx, releaseOf(o.Version)); err != nil || text != "" {
			return "unsealable", text, err
		}
	case trust.ClassOS:
		if want := a.system(); !strings.HasPrefix(t.Path, want+"/") {
			return "policy", fmt.Sprintf("%s is not of %s, the system images of this box", t.Path, want), nil
		}
		if text, err = a.sealable(ctx, path.Dir(t.Path)); err != nil || text != "" {
			return "unsealable", text, err
		}
	default:
		m := a.current()
		if m == nil {
			return "", "", errNoMember
		}
		if part[0] != "ops" || part[1] != m.Tenant {
			return "policy", fmt.Sprintf("%s is not of ops/%s, the releases of the owner of this box", t.Path, m.Tenant), nil
		}
	}
	return "", "", nil
}

// system is the component of system images that this box takes. A model is
// written as in the paths of boot references.
func (a *Agent) system() string {
	model := path.Base(path.Dir(boot.TargetPath(a.cfg.Model, "os")))
	return "os/" + model + "/" + a.cfg.Update.Channel
}

// Names in a baseline beside the peripherals.
const (
	healthLink    = "the fleet service"
	healthApp     = "the POS application"
	healthDrivers = "the drivers"
	healthRoom    = "room on the state partition"
)

var errNotYet = errors.New("not every peripheral has been asked yet how it is")

// health is how everything on the box is, for what an update must not break. A
// peripheral that was last asked before that time is asked again: an update that
// needs no restart would be judged by what was seen before it.
func (a *Agent) health(ctx context.Context, since time.Time) (map[string]string, error) {
	a.mu.Lock()
	online := a.online || a.held
	a.mu.Unlock()
	if !a.devices.settled(len(a.cfg.Devices)) || !since.IsZero() && !a.monitor.Asked(since) {
		return nil, errNotYet
	}
	now := map[string]string{}
	for _, p := range a.monitor.Snapshot() {
		now[p.ID] = wellness(p.Health)
		if p.Health == string(hal.NoSensor) && time.Since(a.started) < 2*cmp.Or(a.cfg.Telemetry.Poll.Duration, 10*time.Second) {
			return nil, errNotYet
		}
	}
	if a.driversLoaded() == nil {
		now[healthDrivers] = string(hal.OK)
	}
	if a.roomLeft() == nil {
		now[healthRoom] = string(hal.OK)
	}
	if online {
		now[healthLink] = string(hal.OK)
	}
	for _, r := range a.machine.Truth() {
		if r.Class != trust.ClassApp || a.apps == nil {
			continue
		}
		now[r.Name] = string(hal.OK)
		if err := a.apps.Health(ctx, r.Name); err != nil {
			now[r.Name] = cut(err.Error(), wire.MaxText)
		}
	}
	if h := a.cfg.Update.Health; len(h) > 0 {
		ctx, cancel := context.WithTimeout(ctx, healthTime)
		defer cancel()
		now[healthApp] = cmp.Or(ask(ctx, h), string(hal.OK))
	}
	return now, nil
}

// wellness is how a peripheral counts for an update. One that wants attention
// works: paper that comes to its end is no fault of an update, and none that
// should hide one.
func wellness(health string) string {
	if health == string(hal.Attention) {
		return string(hal.OK)
	}
	return health
}

// ask runs a command that says whether something is well, and returns what is
// wrong. Who has left it and holds its output is not waited for.
func ask(ctx context.Context, command []string) string {
	var out start
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) // #nosec G204 -- from the configuration file
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return cut(fmt.Sprintf("%v: %s", err, strings.TrimSpace(strings.ToValidUTF8(string(out), "?"))), wire.MaxText)
	}
	return ""
}

// start keeps the beginning of what is written.
type start []byte

// Write implements io.Writer.
func (s *start) Write(b []byte) (int, error) {
	*s = append(*s, b[:min(len(b), wire.MaxText-len(*s))]...)
	return len(b), nil
}

// installed is what runs, for a state report.
func (a *Agent) installed() (out []wire.Installed) {
	for _, r := range a.machine.Truth() {
		out = append(out, wire.Installed{Component: r.Name, Version: r.Version, Slot: r.Slot, Hash: r.Hash, Trial: r.Trial})
	}
	if len(out) > wire.MaxInstalled {
		a.log.Error("more components than a report takes", slog.Int("components", len(out)))
		out = out[:wire.MaxInstalled]
	}
	return out
}
