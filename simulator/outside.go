package simulator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// What a scenario does that looks at tills from outside.

// Under has the till's agent started by a command, which is given the agent's
// and its arguments. The till must be off.
func (t *Till) Under(command ...string) { t.under = command }

// Behind puts something between the agent and its TPM: another socket. The till
// must be off.
func (t *Till) Behind(chip func(socket string) (string, error)) error {
	socket, err := chip(t.tpm.Socket())
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	t.chip = socket
	return t.configure()
}

// OnDisk moves what outlives a boot to another folder. The till must be off, and
// new.
func (t *Till) OnDisk(dir string) error {
	t.disk = dir
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "state"), 0o700), t.configure()); err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	return nil
}

// Lines are the till's network: to the broker, and to all else of the service.
func (t *Till) Lines() []*Line { return []*Line{t.mqtt, t.https} }

// Signal sends a signal to the agent; an error when none runs.
func (t *Till) Signal(sig syscall.Signal) error { return t.proc.signal(sig) }

// Unplug takes the power from the box and gives it back: what runs there is
// killed, and the TPM starts as it does after that.
func (t *Till) Unplug(ctx context.Context) error {
	t.proc.cut()
	t.proc.end()
	if err := t.powerCycle(ctx); err != nil {
		return err
	}
	t.Boot(ctx)
	return nil
}

// Live lets a shop's day of such a length pass at the till, again and again
// until ctx ends.
func (t *Till) Live(ctx context.Context, seed uint64) {
	t.playDay(ctx, seed, t.day, func(string, ...any) {})
}

// Queue is how many messages a till that is off has not handed over, and how
// many it ever gave up for want of space.
func (t *Till) Queue(ctx context.Context) (waiting, shed uint64, err error) {
	s, err := t.status(ctx)
	return s.SpoolDepth, s.SpoolShed, err
}

// Data is the service's folder.
func (w *World) Data() string { return w.service.cfg.DataDir }
