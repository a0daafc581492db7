package simulator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/simulator/emulator"
)

// Act lets something happen at the till's peripherals, at once.
func (t *Till) Act(ctx context.Context, acts ...emulator.Act) error {
	var day []emulator.Step
	for _, a := range acts {
		day = append(day, emulator.Step{Act: a, Lines: 20})
	}
	return emulator.Play(ctx, day, 1, t.printer, t.reader.Card, nil)
}

// Printed returns the jobs the till's printer has printed.
func (t *Till) Printed() []string { return t.printer.Jobs() }

// RestartService stops the fleet service and starts it again on the same
// addresses, with what it has stored.
func (w *World) RestartService(ctx context.Context) error { return w.service.restart(ctx) }

// Console returns the address of the console and the file with the operator
// token.
func (w *World) Console() (url, tokenFile string) { return w.service.url(), w.service.tokenFile() }

// CLI runs the operator's command line.
func (w *World) CLI(ctx context.Context, args ...string) error { return w.cli(ctx, nil, args...) }

// Ask runs the operator's command line with --json and decodes what it prints.
func (w *World) Ask(ctx context.Context, out any, args ...string) error {
	return w.cli(ctx, out, args...)
}

// Provision runs tillward-provision, as somebody would who has the files.
func (w *World) Provision(ctx context.Context, args ...string) error {
	return w.provision(ctx, args...)
}

// Label lists till t, which is off, in a manifest of its vendor and returns
// what is on its label.
func (w *World) Label(ctx context.Context, t *Till) (owner.Claim, error) {
	dev, err := tpm.Open("unix:" + t.tpm.Socket())
	if err != nil {
		return owner.Claim{}, fmt.Errorf("%s: %w", t.Name, err)
	}
	label, err := w.Ship(ctx, dev, t.Name)
	return label, errors.Join(err, dev.Close())
}

// Account compares what a till has recorded with what the service has stored.
// The till must have stopped, so that its books do not grow meanwhile.
func (w *World) Account(ctx context.Context, t *Till) (TillReport, error) {
	fleet, err := w.devices(ctx)
	if err != nil {
		return TillReport{}, err
	}
	return w.reportTill(ctx, t, fleet[t.Name])
}

// IssueFor puts another issuing certificate of devices into the service's
// folder, one that ends after a while: as somebody signs it who keeps the root
// apart. The service takes it when it rotates.
func (w *World) IssueFor(life time.Duration) error {
	root, err := ca.OpenRoot(w.service.cfg.DataDir, "tenant-ca", ca.Options{})
	if err != nil {
		return err
	}
	request, err := root.Request()
	if err != nil {
		return err
	}
	cert, err := root.Sign(request, life)
	if err != nil {
		return err
	}
	return root.Install(cert)
}

// ReleaseFor signs and publishes binary as agent/version, with reference values
// that know how till t boots now.
func (w *World) ReleaseFor(ctx context.Context, version, binary string, t *Till) error {
	file, err := w.observe(ctx, "agent/"+version, t.bootLog())
	if err != nil {
		return err
	}
	return w.publish(ctx, version, binary, file)
}
