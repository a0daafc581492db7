package simulator

import (
	"context"

	"github.com/tillward/tillward/simulator/emulator"
)

// Act lets something happen at the till's peripherals, at once.
func (t *Till) Act(ctx context.Context, acts ...emulator.Act) error {
	var day []emulator.Step
	for _, a := range acts {
		day = append(day, emulator.Step{Act: a, Lines: 20})
	}
	return emulator.Play(ctx, day, t.printer, t.reader.card, nil)
}

// Printed returns the jobs the till's printer has printed.
func (t *Till) Printed() []string { return t.printer.Jobs() }

// RestartService stops the fleet service and starts it again on the same
// addresses, with what it has stored.
func (w *World) RestartService(ctx context.Context) error { return w.service.restart(ctx) }

// Console returns the address of the console and the file with the operator
// token.
func (w *World) Console() (url, tokenFile string) { return w.service.url(), w.service.tokenFile() }

// Account compares what a till has recorded with what the service has stored.
// The till must have stopped, so that its books do not grow meanwhile.
func (w *World) Account(ctx context.Context, t *Till) (TillReport, error) {
	fleet, err := w.devices(ctx)
	if err != nil {
		return TillReport{}, err
	}
	return w.reportTill(ctx, t, fleet[t.Name])
}
