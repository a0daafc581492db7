package firmware

import (
	"context"
	"net"
	"sync"

	"github.com/tillward/tillward/simulator/emulator"
)

// Counter is what stands around the machine: a receipt printer at its USB
// serial adapter and a card for its USB card reader. They keep their power when
// the machine loses its own.
type Counter struct {
	Printer *emulator.Printer
	Reader  *Reader

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// NewCounter furnishes a machine that opens these sockets for its printer and
// its reader whenever it runs.
func NewCounter(printer, reader string) (*Counter, error) {
	p, err := emulator.NewPrinter("")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Counter{Printer: p, Reader: NewReader(reader), stop: stop}
	c.wg.Go(func() {
		redial(ctx, printer, func(_ context.Context, line net.Conn) error { return p.Serve(line) })
	})
	return c, nil
}

// Close clears the counter.
func (c *Counter) Close() error {
	c.stop()
	c.wg.Wait()
	c.Reader.Close()
	return c.Printer.Close()
}
