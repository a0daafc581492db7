package peripheral

import "context"

// Once derives all that waits, without a rest.
func (w *Worker) Once(ctx context.Context) error {
	for some := w.take(); len(some) > 0; some = w.take() {
		if err := w.derive(ctx, some); err != nil {
			return err
		}
	}
	return nil
}
