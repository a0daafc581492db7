// Package hotplug is the USB bus: what is plugged in, and what comes and goes.
//
// It listens to the kernel's own messages and takes them as a hint to look, no
// more: what is told is the difference between two looks at sysfs, so lost,
// doubled and forged messages do no harm. Looking waits until the bus has been
// quiet for a second; who is back by then was never away.
//
// A device is known by VID:PID:serial over replugging and restarts, by its port
// path when it has no serial number or shares it with another. What it says of
// itself is bounded, and withheld where it could hold a card number. The bus
// opens no device; a HID keyboard is Other and nothing that is ever read.
package hotplug

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	quiet    = time.Second      // of the bus, before a look
	restless = 10 * time.Second // when it never is quiet
	again    = time.Minute      // without any message, in case none arrives
)

// Bus is the USB bus of the box. The zero value is ready to use.
type Bus struct {
	Root string // where sys is; empty for the box itself

	listen func() (source, error) // nil: the kernel
}

// Watch implements hal.Bus. A device whose description has changed, such as
// that of a printer whose device file is there now, is told again. It returns
// nil when ctx ends.
func (b Bus) Watch(ctx context.Context, tell func(hal.Change)) error {
	if b.listen == nil {
		b.listen = listen
	}
	src, err := b.listen()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer src.Close()
	stirred, ended := make(chan struct{}, 1), make(chan error, 1)
	wg.Go(func() {
		defer func() {
			if recover() != nil {
				ended <- errPanicked
			}
		}()
		ended <- follow(src, stirred)
	})

	root := filepath.Join("/", b.Root)
	told := map[string]hal.Candidate{}
	look := func() {
		now := scan(root)
		for _, k := range slices.Sorted(maps.Keys(told)) {
			if _, ok := now[k]; !ok {
				tell(hal.Change{Candidate: told[k], Gone: true})
			}
		}
		for _, k := range slices.Sorted(maps.Keys(now)) {
			if told[k] != now[k] {
				tell(hal.Change{Candidate: now[k]})
			}
		}
		told = now
	}
	look() // after listening has begun, so that nothing falls in between
	next := time.NewTimer(again)
	defer next.Stop()
	var since time.Time // the bus is restless
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case <-stirred:
			if since.IsZero() {
				since = time.Now()
			}
			next.Reset(max(0, min(quiet, restless-time.Since(since))))
		case <-next.C:
			look()
			since = time.Time{}
			next.Reset(again)
		}
	}
}

var errPanicked = errors.New("what came from the kernel was too much for us")

// follow tells stirred of each message that matters, until the source ends.
func follow(src source, stirred chan<- struct{}) error {
	for {
		m, err := src.next()
		if err != nil && !errors.Is(err, errLost) {
			return err
		}
		if err == nil && !m.matters() {
			continue
		}
		select {
		case stirred <- struct{}{}:
		default:
		}
	}
}
