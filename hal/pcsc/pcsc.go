// Package pcsc watches smart card readers through the PC/SC daemon pcscd, with
// a client of its own: it needs no C library, and it comes back when the daemon
// does.
//
// It says whether a reader is there, whether a card is in, whether cards answer
// and whether they are pulled out too early. It never reads a card: the one
// command it can send selects the payment directory, and of the answer it keeps
// the status word. Answers to reset are not kept either. It shares readers and
// never holds one longer than that command takes.
//
// Options: reader = "substring of its name", without which the first reader
// counts; socket = "/run/pcscd/pcscd.comm"; probe = "insert" sends the command
// to each card that is put in, so that torn cards are counted (off by default:
// the payment application may want the card for itself at that moment).
package pcsc

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	callTimeout = 5 * time.Second
	waitAtMost  = 30 * time.Second
	backoffMin  = 100 * time.Millisecond
	backoffMax  = 10 * time.Second
)

// Driver is the driver "pcsc".
type Driver struct{}

// Name implements hal.Driver.
func (Driver) Name() string { return "pcsc" }

// Open implements hal.Driver. Neither pcscd nor the reader need be there.
func (Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	if err := hal.CheckOptions(cfg, "reader", "socket", "probe"); err != nil {
		return nil, err
	}
	illegal := func(format string, args ...any) error {
		return &hal.Error{Code: "E_ILLEGAL", Op: "open " + cfg.ID, Err: fmt.Errorf(format, args...)}
	}
	if cfg.Claim != "" && cfg.Claim != hal.Share {
		return nil, illegal("claim %q: card readers are shared", cfg.Claim)
	}
	probe := cfg.Options["probe"]
	if probe != "" && probe != "insert" {
		return nil, illegal("probe = %q: insert, or leave it out", probe)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &reader{
		socket: socketPath(cfg.Options["socket"]), want: cfg.Options["reader"], probes: probe != "", first: make(chan struct{}), stop: cancel,
		info: hal.Info{ID: cfg.ID, Category: hal.SmartCardRW, Driver: "pcsc", Claim: hal.Share},
		track: hal.NewTracker(hal.SmartCardRW, "CommunicationErrorCount", "M_CardInsertedCount", "M_CardRemovedCount",
			"M_CardResetFailedCount", "M_TransmitErrorCount", "M_TransmitCount"),
	}
	r.wg.Go(func() { r.run(ctx) })
	return r, nil
}

// reader is an open card reader.
type reader struct {
	socket string
	want   string
	probes bool
	track  *hal.Tracker
	first  chan struct{} // closed after the first look
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	info hal.Info

	// Of run alone.
	name    string
	events  uint32
	counted bool // events is of this reader
}

// String implements conn.Resource.
func (r *reader) String() string { return "pcsc(" + r.Info().ID + ")" }

// Halt implements conn.Resource.
func (r *reader) Halt() error { return r.Close() }

// Close implements io.Closer.
func (r *reader) Close() error {
	r.stop()
	r.wg.Wait()
	r.track.Close()
	return nil
}

// Info implements hal.Device. The model is the reader's name once it was seen.
func (r *reader) Info() hal.Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.info
}

// Events implements hal.Notifier.
func (r *reader) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return r.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (r *reader) Statistics(context.Context) ([]hal.Stat, error) { return r.track.Stats(), nil }

// Status implements hal.StatusReader. pcscd tells of changes by itself, so what
// is known is what is.
func (r *reader) Status(ctx context.Context) (hal.Status, error) {
	select {
	case <-r.first:
		return r.track.Status(), nil
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
}

// run watches for as long as the device is open.
func (r *reader) run(ctx context.Context) {
	looked := sync.OnceFunc(func() { close(r.first) })
	defer looked()
	for failures := 0; ctx.Err() == nil; failures++ {
		if c, err := dial(ctx, r.socket, callTimeout); err == nil {
			err = r.follow(ctx, c, func() {
				looked()
				failures = 0
			})
			c.close()
			if err != nil && ctx.Err() == nil {
				r.track.Count("CommunicationErrorCount", 1)
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.counted = false // a new daemon counts anew
		r.track.Update(hal.PowerOffOffline, nil)
		looked()
		wait := time.NewTimer(backoff(failures))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

func backoff(failures int) time.Duration {
	d := backoffMax
	if failures < 7 {
		d = min(d, backoffMin<<failures)
	}
	return d/2 + rand.N(d/2) //nolint:gosec // spreads load, guards nothing
}

// follow takes in one change after the other until the connection ends.
func (r *reader) follow(ctx context.Context, c *client, looked func()) error {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	for {
		table, err := c.watch()
		if err != nil {
			return err
		}
		inserted := r.take(table)
		looked()
		if inserted && r.probes {
			r.probe(ctx)
		}
		if err := c.wait(waitAtMost); err != nil {
			return err
		}
	}
}

// pick finds the reader that is watched.
func (r *reader) pick(table []slot) (slot, bool) {
	for _, s := range table {
		if strings.Contains(s.name, r.want) {
			return s, true
		}
	}
	return slot{}, false
}

// take looks at the table and reports whether a card was put in that answers.
func (r *reader) take(table []slot) bool {
	s, ok := r.pick(table)
	if !ok {
		r.counted = false
		r.track.Update(hal.PowerOffOffline, nil)
		return false
	}
	if model := s.name[:min(len(s.name), 64)]; !hal.MayHoldPAN(model) {
		r.mu.Lock()
		r.info.Model = model
		r.mu.Unlock()
	}
	was := r.track.Status().Sensors["SCPresentSensor"]
	if r.counted && r.name == s.name {
		r.missed(was == hal.Yes, s)
	}
	r.name, r.events, r.counted = s.name, s.events, true
	r.track.Update(hal.PowerOnline, map[string]hal.Tri{"SCPresentSensor": hal.TriOf(s.present()), "M_CardMute": hal.TriOf(s.mute())})
	return s.present() && !s.mute() && was == hal.No
}

// missed counts the cards that came and went between two looks.
func (r *reader) missed(present bool, s slot) {
	changes := (s.events - r.events) & 0xffff
	if present != s.present() && changes > 0 {
		changes-- // the one that shows
	}
	if pairs := float64(changes / 2); pairs > 0 {
		r.track.Count("M_CardInsertedCount", pairs)
		r.track.Count("M_CardRemovedCount", pairs)
	}
}

// probe sends the one command to the card and counts how it went.
func (r *reader) probe(ctx context.Context) {
	_, _ = r.selectDirectory(ctx)
}

func (r *reader) selectDirectory(ctx context.Context) (uint16, error) {
	c, err := dial(ctx, r.socket, callTimeout)
	if err != nil {
		return 0, err
	}
	defer c.close()
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	table, err := c.states()
	if err != nil {
		return 0, err
	}
	s, ok := r.pick(table)
	if !ok {
		return 0, failure(rvNoCard)
	}
	sw, reached, err := c.selectDirectory(s.name)
	var f failure
	switch {
	case err == nil:
		r.track.Count("M_TransmitCount", 1)
	case reached && errors.As(err, &f):
		r.track.Post("M_CARD_TORN", "", f.Error())
	}
	return sw, err
}

// CheckHealth implements hal.HealthChecker. Interactive needs a test card in
// the reader, or waits for one until ctx ends.
func (r *reader) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	switch level {
	case hal.Internal:
		began := time.Now()
		st, err := r.Status(ctx)
		if err != nil {
			return hal.Report{}, err
		}
		there := st.Power == hal.PowerOnline
		rep := hal.Report{OK: there, Text: "pcscd is there and has the reader.", Checks: []hal.Check{{ID: "reachable", OK: there, Took: time.Since(began)}}}
		if !there {
			rep.Text, rep.Checks[0].Code = "The reader is not there. "+st.Advice, st.Reason
		}
		return rep, nil
	case hal.Interactive:
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for r.track.Status().Sensors["SCPresentSensor"] != hal.Yes {
			select {
			case <-ctx.Done():
				return hal.Report{}, &hal.Error{Code: "E_TIMEOUT", Op: "check health", Err: errors.New("no card was put in")}
			case <-tick.C:
			}
		}
		sw, err := r.selectDirectory(ctx)
		if err != nil {
			return hal.Report{Text: err.Error()}, &hal.Error{Code: "E_FAILURE", Op: "check health", Err: err}
		}
		return hal.Report{OK: true, Text: fmt.Sprintf("The card answered with status word %04X.", sw)}, nil
	}
	return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a card reader has no external check; use interactive")}
}
