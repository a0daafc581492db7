package simulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/simulator/swarm"
)

// OpeningOptions say how many tills of a chain come back at one moment, what
// each has saved up, and how many others are at work meanwhile.
type OpeningOptions struct {
	Bin, Dir string
	Late     int // tills that were away
	Batches  int // telemetry messages that each of them has
	Samples  int // in a message
	Working  int // tills that were not away
	Say      io.Writer
}

// OpeningReport is what that did to what is live.
type OpeningReport struct {
	Backlog   int     // messages of those that were away
	Live      int     // messages of the others
	Flight    int     // backlog that was on its way at once, at most
	Overtaken int     // by how many of the backlog a live message was overtaken, in the middle
	Worst     int     // and at most
	Beside    int     // by how many of the others' a message of the backlog was overtaken, in the middle
	Rows      int     // stored
	Seconds   float64 // until all was acknowledged
	CPU       float64 // of the service
	OwnCPU    float64 // of the devices
}

const flightOfOne = 32 // a window

// Opening lets a chain open with a backlog each, all windows full, while others
// say what they measure now, one message after the other. It measures in
// messages, not in time: how many of the backlog are acknowledged between a
// message and its acknowledgement.
func Opening(ctx context.Context, o OpeningOptions) (r OpeningReport, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, done, err := chain(ctx, BenchOptions{Bin: o.Bin, Dir: o.Dir, Say: o.Say}, "", o.Late+o.Working)
	if err != nil {
		return r, err
	}
	defer func() {
		cancel()
		err = errors.Join(err, <-done)
	}()
	return s.opening(ctx, o)
}

// chain starts a service, on SQLite or on the database of a URL, and enrols
// devices in it.
func chain(ctx context.Context, o BenchOptions, store string, devices int) (*storm, <-chan error, error) {
	s := &storm{say: o.Say, store: store}
	maker, err := swarm.NewAuthority(nil)
	if err != nil {
		return nil, nil, err
	}
	o.Storm = devices
	done, err := s.serve(ctx, o, maker)
	if err != nil {
		return nil, nil, err
	}
	for i := range devices {
		s.devices = append(s.devices, swarm.New("chain", uint64(i), maker, nil)) // #nosec G115 -- counts up from 0
	}
	s.grow()
	if refused, _, first := s.each(ctx, "enrolled", s.join); refused > 0 {
		return nil, nil, fmt.Errorf("%d devices were refused; one of them: %w", refused, first)
	}
	return s, done, nil
}

// count is what happened so far, over all devices.
type count struct{ backlog, all, flight, most atomic.Int64 }

func (s *storm) opening(ctx context.Context, o OpeningOptions) (r OpeningReport, err error) {
	var (
		n       count
		mu      sync.Mutex
		live    []int
		beside  []int
		wg      sync.WaitGroup
		failed  atomic.Pointer[error]
		working = make(chan struct{}) // closed when the backlog is gone
		open    = make([]*swarm.Session, len(s.devices))
	)
	fail := func(err error) { failed.CompareAndSwap(nil, &err) }
	for i := range open {
		if open[i], err = s.session(ctx, i); err != nil {
			return r, err
		}
		defer open[i].Close()
	}
	began, service, own := time.Now(), processCPU(s.pid), cpu(syscall.RUSAGE_SELF)
	var late sync.WaitGroup
	for i := range o.Late {
		late.Go(func() {
			waits, err := s.bring(ctx, open[i], i, o, &n)
			if err != nil {
				fail(err)
			}
			mu.Lock()
			defer mu.Unlock()
			beside = append(beside, waits...)
		})
	}
	for i := range o.Working {
		wg.Go(func() {
			waits, err := s.work(ctx, open[o.Late+i], o.Late+i, &n, working)
			if err != nil {
				fail(err)
			}
			mu.Lock()
			defer mu.Unlock()
			live = append(live, waits...)
		})
	}
	late.Wait()
	r.Seconds, r.CPU, r.OwnCPU = time.Since(began).Seconds(), processCPU(s.pid)-service, cpu(syscall.RUSAGE_SELF)-own
	close(working)
	wg.Wait()
	if e := failed.Load(); e != nil {
		return r, *e
	}
	r.Backlog, r.Live, r.Rows, r.Flight = len(beside), len(live), len(beside)*o.Samples, int(n.most.Load())
	r.Overtaken, r.Worst = middle(live)
	r.Beside, _ = middle(beside)
	return r, nil
}

func middle(all []int) (median, most int) {
	if len(all) == 0 {
		return 0, 0
	}
	s := slices.Sorted(slices.Values(all))
	return s[len(s)/2], s[len(s)-1]
}

// session connects a device and proves it.
func (s *storm) session(ctx context.Context, i int) (*swarm.Session, error) {
	c, err := s.devices[i].Connect(ctx, s.broker, s.conf, s.members[i])
	if err != nil {
		return nil, err
	}
	e, err := s.devices[i].Evidence(c.Exporter, 1, time.Now().UnixMilli())
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	v, err := c.Prove(ctx, e)
	if err == nil && v.Verdict != "attested" {
		err = fmt.Errorf("%w: verdict %q: %v", errJudged, v.Verdict, v.Reasons)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// measured is a telemetry message as a till with a printer and a reader makes
// one.
func measured(boot byte, device int, seq uint64, at time.Time, samples int) ([]byte, error) {
	m := wire.TelemetryBatch{Head: wire.Head{V: wire.Version, Boot: wire.Boot{boot, byte(device), byte(device >> 8)}, Seq: seq, Sent: at.UnixMilli()}} // #nosec G115 -- names
	for k := range samples {
		m.Samples = append(m.Samples, wire.Sample{
			At: at.UnixMilli(), Peripheral: []string{"receipt", "reader", ""}[k%3], Name: benchNames[k%len(benchNames)], Value: float64(seq) + float64(k)/8, Epoch: 1_790_000_000, Kept: k%2 == 0,
		})
	}
	return wire.Encode(&m)
}

var benchNames = []string{"ReceiptLineFeedCount", "M_CardInsertedCount", "temp_mc", "mem_free_kib", "load_milli", "ReceiptCutCount", "M_CardResetFailedCount", "disk_free_mib"}

// bring sends the backlog of one device with a full window, and returns by how
// many messages of all devices each of it was overtaken.
func (s *storm) bring(ctx context.Context, c *swarm.Session, i int, o OpeningOptions, n *count) (waits []int, err error) {
	began := time.Now().Add(-30 * 24 * time.Hour)
	sent := make([]int64, 0, o.Batches) // what had been acknowledged when a message went
	for len(waits) < o.Batches {
		if len(sent) < o.Batches && len(sent)-len(waits) < flightOfOne {
			b, err := measured(1, i, uint64(len(sent)+1), began.Add(time.Duration(len(sent))*time.Minute), o.Samples)
			if err != nil {
				return waits, err
			}
			sent = append(sent, n.all.Load())
			if now := n.flight.Add(1); now > n.most.Load() {
				n.most.Store(now)
			}
			if _, err := c.Send(ctx, wire.Telemetry, b); err != nil {
				return waits, err
			}
			continue
		}
		if _, err := c.Acked(ctx); err != nil {
			return waits, err
		}
		n.flight.Add(-1)
		n.backlog.Add(1)
		waits = append(waits, int(n.all.Add(1)-sent[len(waits)]))
	}
	return waits, nil
}

// work sends what is measured now until the backlog of the others is gone, and
// returns by how many of it each message was overtaken.
func (s *storm) work(ctx context.Context, c *swarm.Session, i int, n *count, gone <-chan struct{}) (waits []int, err error) {
	for seq := s.first + 1; ; seq++ {
		select {
		case <-gone:
			return waits, nil
		case <-ctx.Done():
			return waits, ctx.Err()
		case <-time.After(20 * time.Millisecond): // a till at work is no flood
		}
		b, err := measured(2, i, seq, time.Now(), 4)
		if err != nil {
			return waits, err
		}
		before, flight := n.backlog.Load(), n.flight.Load()
		if _, err := c.Send(ctx, wire.Telemetry, b); err != nil {
			return waits, err
		}
		if _, err := c.Acked(ctx); err != nil {
			return waits, err
		}
		n.all.Add(1)
		if flight > 0 { // else there was nothing that could overtake
			waits = append(waits, int(n.backlog.Load()-before))
		}
	}
}
