package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/hal"
)

// verbs is the table of what a command may do here.
func (a *Agent) verbs(m *membership, dev TPM) map[string]command.Verb {
	return map[string]command.Verb{
		"identify":     {Run: func(ctx context.Context, _ map[string]string) ([]byte, error) { return a.identify(ctx, m) }, Idempotent: true},
		"diagnose":     {Run: func(ctx context.Context, _ map[string]string) ([]byte, error) { return a.diagnose(ctx, m, dev) }, Idempotent: true},
		"print-test":   {Run: a.printTest, Timeout: checkFor},
		"check-health": {Run: a.checkHealth, Timeout: checkFor},
		"collect-logs": {Run: a.collectLogs, Idempotent: true},
		"set-config":   {Run: a.setConfig, Idempotent: true},
		verbRelinquish: {
			Run:     func(ctx context.Context, args map[string]string) ([]byte, error) { return a.relinquish(ctx, m, args) },
			Timeout: handOver, Idempotent: true, Risky: true, Final: true, After: func(context.Context) { a.leave() },
		},
		verbReset: {
			Run:   func(ctx context.Context, args map[string]string) ([]byte, error) { return a.factoryReset(ctx, m, args) },
			Risky: true, After: func(context.Context) { poke(a.resetting) },
		},
		"reboot": {
			Run:   func(context.Context, map[string]string) ([]byte, error) { return []byte("rebooting"), nil },
			Risky: true, After: func(context.Context) {
				select {
				case a.reboot <- struct{}{}:
				default:
				}
			},
		},
	}
}

// identify makes the box known where it stands: a slip on each printer that
// the agent may print on, and who it is to the operator.
func (a *Agent) identify(ctx context.Context, m *membership) ([]byte, error) {
	who := fmt.Sprintf("device %s\nserial %s\nlabel  %s\nagent  %s, slot %s\n", m.Device, a.serial(), a.settings.get("label"), a.o.Version, a.o.Slot)
	for _, d := range a.devices.all() {
		p, ok := d.(hal.Passthrough)
		if !ok || d.Info().Claim != hal.Own {
			continue
		}
		slip := "\n*** This is the till you asked for ***\n" + who + "\n\n"
		if _, err := p.Print(ctx, strings.NewReader(slip)); err != nil {
			who += fmt.Sprintf("not printed on %s: %s\n", d.Info().ID, codeOf(err))
		} else {
			who += "printed on " + d.Info().ID + "\n"
		}
	}
	return []byte(who), nil
}

// codeOf is what may leave the box of a driver's error.
func codeOf(err error) string {
	if e := (*hal.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return "E_FAILURE"
}

// printTest is the external check of a printer; without a name, of the first.
func (a *Agent) printTest(ctx context.Context, args map[string]string) ([]byte, error) {
	for _, d := range a.devices.all() {
		info := d.Info()
		if (args["peripheral"] != "" && info.ID != args["peripheral"]) || info.Category != hal.POSPrinter {
			continue
		}
		return a.checkHealth(ctx, map[string]string{"peripheral": info.ID, "level": "external"})
	}
	if p := args["peripheral"]; p != "" {
		return nil, fmt.Errorf("no printer called %q here", p)
	}
	return nil, errors.New("no printer here")
}

// checkFor is how long a health check may take: a person may have to come.
const checkFor = 3 * time.Minute

// checkHealth has a peripheral test itself. The outcome holds codes and no text
// of a driver; the record of it goes out with the events.
func (a *Agent) checkHealth(ctx context.Context, args map[string]string) ([]byte, error) {
	level, ok := map[string]hal.Level{"": hal.Internal, "internal": hal.Internal, "external": hal.External, "interactive": hal.Interactive}[args["level"]]
	if !ok {
		return nil, fmt.Errorf("level %q: give internal, external or interactive", args["level"])
	}
	c, err := a.monitor.Check(ctx, args["peripheral"], level)
	if err != nil {
		return nil, err
	}
	var out, bad []string
	for _, s := range c.Checks {
		is := "ok"
		if !s.OK {
			is = "failed"
			bad = append(bad, strings.TrimSpace(s.ID+" "+s.Code))
		}
		out = append(out, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %d ms", s.ID, is, s.Code, s.MS)), " "))
	}
	text := []byte(strings.Join(out, "\n") + "\n")
	if !c.OK {
		return text, fmt.Errorf("%s check of %s failed: %s", c.Level, c.Peripheral, strings.Join(bad, ", "))
	}
	return text, nil
}

func (a *Agent) collectLogs(_ context.Context, args map[string]string) ([]byte, error) {
	lines := 200
	if s := args["lines"]; s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("lines %q: give a whole number", s)
		}
		lines = n
	}
	if a.o.Tail == nil {
		return nil, errors.New("this agent keeps no log")
	}
	return a.o.Tail(lines), nil
}

func (a *Agent) setConfig(ctx context.Context, args map[string]string) ([]byte, error) {
	if err := a.change(ctx, args); err != nil {
		return nil, err
	}
	return []byte("settings " + a.settings.hash() + "\n"), nil
}

// rebooted restarts the box, or says that the supervisor has to.
func (a *Agent) rebooted(ctx context.Context) error {
	if len(a.cfg.Reboot) == 0 {
		return ErrReboot
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, a.cfg.Reboot[0], a.cfg.Reboot[1:]...).CombinedOutput() // #nosec G204 -- from the configuration file
	if err != nil {
		return fmt.Errorf("reboot: %w: %.200s", err, out)
	}
	return nil
}

// rebootFor is how long the box may take to end the agent for a restart.
const rebootFor = 10 * time.Minute

// outlived waits to be ended by a restart of the box that was asked for. One
// that never comes must not leave an agent behind that has stopped its work.
func outlived(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Canceled
	case <-time.After(rebootFor):
		return fmt.Errorf("the box was told to restart and has not within %s: what holds it up? The agent starts anew", rebootFor)
	}
}

// Status is what a stopped agent has recorded, for a person or a test.
type Status struct {
	Version         string `json:"version"`
	Slot            string `json:"slot"`
	AuditRecorded   uint64 `json:"audit_recorded"`
	SamplesRecorded uint64 `json:"samples_recorded"`
	SpoolDepth      uint64 `json:"spool_depth"`
	SpoolShed       uint64 `json:"spool_shed"`
}

// unchanged is a spool that is only looked at.
type unchanged struct{ *spool.Spool }

// Append implements audit.Chain.
func (unchanged) Append(context.Context, string, string, func([]byte) (payload, newHead []byte, err error)) error {
	return errors.New("the books are only looked at")
}

// ReadStatus reads the state folder of an agent that does not run.
func ReadStatus(ctx context.Context, cfg Config, o Options) (Status, error) {
	name := lockedBooks
	if _, err := os.Stat(filepath.Join(cfg.StateDir, plainBooks)); err == nil {
		name = plainBooks // the others cannot be opened now
	}
	sp, err := spool.Open(filepath.Join(cfg.StateDir, name), spool.Options{
		MaxBytes: int64(cfg.Spool.MaxMiB) << 20, Log: o.Log, Plain: plainValues, Blind: true,
	})
	if err != nil {
		return Status{}, fmt.Errorf("read status (does the agent still run?): %w", err)
	}
	defer sp.Close()
	s := Status{Version: o.Version, Slot: o.Slot, SpoolDepth: sp.Depth(), SpoolShed: sp.Shed()}
	if s.SamplesRecorded, err = sp.Counter(ctx, "telemetry.samples"); err != nil {
		return s, err
	}
	j, err := audit.Open(ctx, audit.Options{Chain: unchanged{sp}, Next: newNumbering(time.Now).Next, Log: o.Log})
	if err != nil {
		return s, err
	}
	s.AuditRecorded, _ = j.Head()
	return s, nil
}
