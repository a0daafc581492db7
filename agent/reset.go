package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tillward/tillward/agent/internal/command"
	"github.com/tillward/tillward/provisioning/durable"
)

// A factory reset gives up what lies on the box: the books, the settings, the
// keys of books and data, and with them the data. The agent may not touch what it
// runs on, and so it asks whoever started it, by a file, and has the box
// restarted. First the service has the trail and the result: the box remembers
// neither.
//
// The file lies where a power cut clears it. The order in the books outlives
// that, until the reset has taken the books.

const (
	verbReset    = "factory-reset"
	keyResetAsks = "factory-reset-asks" // how often the supervisor was asked
	maxResetAsks = 3                    // one that does nothing must not restart the box for ever
)

// factoryReset refuses what could not be done.
func (a *Agent) factoryReset(ctx context.Context, m *membership, args map[string]string) ([]byte, error) {
	switch {
	case a.cfg.FactoryReset == "":
		return nil, errors.New("the image has no factory reset by command: set factory_reset where the supervisor knows it")
	case args["device"] != m.Device:
		return nil, fmt.Errorf("it is confirmed for device %.64q, this is %s", args["device"], m.Device)
	case a.machine.OnTrial():
		return nil, a.notYet()
	}
	if _, err := os.Stat(filepath.Dir(a.cfg.FactoryReset)); err != nil {
		return nil, fmt.Errorf("ask the supervisor: %w", err)
	}
	if err := a.note(ctx, "agent.factory-reset", "alarm", m.Device, nil); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return []byte("everything on this box goes as soon as the trail is stored\n"), nil
}

// notYet says why there may be something on trial.
func (a *Agent) notYet() error {
	if !a.machine.Settled() {
		return errors.New("the box has just started and does not know yet what it runs: ask again in a minute")
	}
	return errors.New("an update has yet to prove itself: ask again when it has")
}

// resumeReset goes on with what a power cut interrupted: with the books in which
// it is written, the reset has not been.
func (a *Agent) resumeReset(ctx context.Context) error {
	o, err := command.Succeeded(ctx, a.spool, verbReset)
	if err != nil || o == nil {
		return err
	}
	b, err := a.spool.Load(ctx, keyResetAsks)
	if err != nil {
		return err
	}
	n, _ := strconv.Atoi(string(b)) // nothing counts as nought
	if n >= maxResetAsks || a.cfg.FactoryReset == "" {
		a.log.Error("a factory reset was ordered and the supervisor has not done it", slog.String("command", o.ID), slog.Int("asked", n))
		return nil
	}
	if err := a.spool.Save(ctx, keyResetAsks, strconv.AppendInt(nil, int64(n+1), 10), "", nil); err != nil {
		return err
	}
	poke(a.resetting)
	return nil
}

// wind waits for an order to reset, and until the service has what it is to have.
func (a *Agent) wind(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.resetting:
	}
	a.log.Warn("factory reset: handing over the trail")
	tick := time.NewTicker(lookLeaving)
	defer tick.Stop()
	for {
		done, err := a.handedOver(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Error("hand over the trail", slog.Any("err", err))
		}
		if done {
			poke(a.reset)
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// askReset leaves the file, and has the supervisor restart the box: the command
// of the configuration would restart it without a look at the file.
func (a *Agent) askReset() error {
	if err := durable.Replace(a.cfg.FactoryReset, []byte("factory-reset\n")); err != nil {
		return fmt.Errorf("ask the supervisor for a factory reset: %w", err)
	}
	return ErrReboot
}
