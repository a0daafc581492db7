// Package pcsc watches smart card readers through the PC/SC daemon pcscd, with
// a client of its own: it needs no C library, and it comes back when the daemon
// does.
//
// It says whether a reader is there, whether a card is in, whether cards answer
// and whether they are pulled out too early, and it tells a reader that is gone
// from a daemon that is gone, mute, or not for this user. It never reads a
// card: the one command it can send selects the payment directory, and of the
// answer it keeps the status word. Answers to reset are not kept either. It
// shares readers and never holds one longer than that command takes; a card
// that somebody else has for himself is in use, and no fault.
//
// Options: reader = "substring of its name", without which the first reader
// counts; socket = "/run/pcscd/pcscd.comm"; timeout = "2s" of each answer of
// pcscd, which is asked five times rarer whether it lives; probe = "insert"
// sends the command to each card that is put in, so that torn cards are counted
// (off by default: the payment application may want the card for itself at that
// moment).
package pcsc

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/hal"
)

const (
	waitTimes  = 5 // the timeout of an answer, until pcscd is asked whether it lives
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
)

// Driver is the driver "pcsc".
type Driver struct {
	Root string // where sys is; empty for the box itself
}

// Name implements hal.Driver.
func (Driver) Name() string { return "pcsc" }

// Open implements hal.Driver. Neither pcscd nor the reader need be there.
func (d Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	r, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	r.wg.Go(func() { r.track.Supervise(func() { r.run(ctx) }) })
	return r, nil
}

// Check implements hal.Checker.
func (d Driver) Check(cfg hal.Config) ([]hal.Info, error) {
	r, err := d.configure(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{r.info}, nil
}

func (d Driver) configure(cfg hal.Config) (*reader, error) {
	o := hal.ReadOptions(cfg, "reader", "socket", "probe", "timeout")
	if cfg.Address != "" {
		o.Refuse("address %q: a reader is found by its name; write it as the option reader", cfg.Address)
	}
	r := &reader{
		root: cmp.Or(d.Root, "/"), socket: socketPath(cfg.Options["socket"]), want: cfg.Options["reader"],
		probes: o.Word("probe", "", "insert") != "", timeout: o.Duration("timeout", 2*time.Second, 10*time.Millisecond, time.Minute),
		first: make(chan struct{}), nudged: make(chan struct{}, 1),
		info: hal.Info{
			ID: cfg.ID, Category: hal.SmartCardRW, Driver: "pcsc", Claim: o.Claim("card readers are shared", hal.Share), Interface: "PCSC",
			Caps: []string{"CapPowerReporting", "CapSCPresentSensor", "CapStatisticsReporting"},
		},
		track: hal.NewTracker(hal.SmartCardRW, "CommunicationErrorCount", "M_CardInsertedCount", "M_CardRemovedCount",
			"M_CardResetFailedCount", "M_TransmitErrorCount", "M_TransmitCount"),
	}
	return r, o.Err()
}

// reader is an open card reader.
type reader struct {
	root    string
	socket  string
	want    string
	probes  bool
	timeout time.Duration
	track   *hal.Tracker
	first   chan struct{} // closed after the first look
	nudged  chan struct{}
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	info    hal.Info
	conn    *client // that waits for changes now
	refused bool    // pcscd is there, and not for us

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

// Info implements hal.Device. The model is the reader's name once it was seen;
// maker, serial number and firmware are those of its USB device, where it can
// be told which that is.
func (r *reader) Info() hal.Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.info
}

// Events implements hal.Notifier.
func (r *reader) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return r.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (r *reader) Statistics(context.Context) ([]hal.Stat, error) { return r.track.Stats(), nil }

// Nudge implements hal.Nudger.
func (r *reader) Nudge() {
	select {
	case r.nudged <- struct{}{}:
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		r.conn.nudge()
	}
}

// Status implements hal.StatusReader. pcscd tells of changes by itself, so what
// is known is what is.
func (r *reader) Status(ctx context.Context) (hal.Status, error) {
	select {
	case <-r.first:
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	r.mu.Lock()
	refused := r.refused
	r.mu.Unlock()
	s := r.track.Status()
	if refused && s.Health == hal.Offline {
		s.Reason, s.Advice = refusal, "Let the agent's user use pcscd: by a polkit rule for org.debian.pcsc-lite.access_pcsc and access_card, or by the rights of its socket."
	}
	return s, nil
}

var errPanicked = errors.New("what pcscd said was too much for this driver")

const refusal = "E_NOSERVICE" // of a pcscd that is there for others

// run watches for as long as the device is open.
func (r *reader) run(ctx context.Context) {
	looked := sync.OnceFunc(func() { close(r.first) })
	defer looked()
	for failures := 0; ctx.Err() == nil && !r.track.Broken(); failures++ {
		c, err := dial(ctx, r.socket, r.timeout)
		if err == nil {
			if !r.track.Contain(func() {
				err = r.follow(ctx, c, func() {
					looked()
					failures = 0
				})
			}) {
				err = errPanicked
			}
			c.close()
		}
		if ctx.Err() != nil {
			return
		}
		if garbled(err) {
			r.track.Count("CommunicationErrorCount", 1)
		}
		r.counted = false // a new daemon counts anew
		r.mu.Lock()
		r.refused = errors.Is(err, errRefused)
		r.mu.Unlock()
		r.track.Update(hal.PowerOffOffline, map[string]hal.Tri{"M_DaemonGone": hal.Yes})
		looked()
		hal.Pause(ctx, hal.Backoff(failures, backoffMin, backoffMax), r.nudged)
	}
}

// garbled reports whether somebody was there and did not speak as pcscd does. A
// daemon that is not there, or ends, or does not let us in, speaks well enough.
func garbled(err error) bool {
	var g greeting
	switch {
	case errors.Is(err, errRefused), errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return false
	case errors.As(err, &g):
		return true
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// follow takes in one change after the other until the connection ends.
func (r *reader) follow(ctx context.Context, c *client, looked func()) error {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	r.hold(c)
	defer r.hold(nil)
	for {
		table, err := c.watch()
		if err != nil {
			return err
		}
		inserted := r.take(table)
		looked()
		if inserted && r.probes {
			_, _ = r.selectDirectory(ctx)
		}
		if err := c.wait(waitTimes * r.timeout); err != nil {
			return err
		}
	}
}

func (r *reader) hold(c *client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn = c
	if c != nil {
		r.refused = false
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
		r.track.Update(hal.PowerOffOffline, map[string]hal.Tri{"M_DaemonGone": hal.No})
		return false
	}
	if !r.counted || r.name != s.name {
		r.identify(s.name, len(table) == 1)
	}
	was := r.track.Status().Sensors["SCPresentSensor"]
	changed := false
	if r.counted && r.name == s.name {
		changed = r.missed(was == hal.Yes, s)
	}
	r.name, r.events, r.counted = s.name, s.events, true
	r.track.Update(hal.PowerOnline, look(s.present(), s.mute()))
	return s.present() && !s.mute() && (was == hal.No || changed)
}

func look(present, mute bool) map[string]hal.Tri {
	return map[string]hal.Tri{"SCPresentSensor": hal.TriOf(present), "M_CardMute": hal.TriOf(mute), "M_DaemonGone": hal.No}
}

// identify notes which reader it is.
func (r *reader) identify(name string, alone bool) {
	u, ok := findUSB(r.root, name, alone)
	model := modelOf(name)
	if hal.MayHoldPAN(model) {
		r.track.Count("M_PanGuardDropCount", 1)
		model = ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.info.Model, r.info.Key = model, keyOf(modelOf(name))
	r.info.Maker, r.info.Serial, r.info.Firmware, r.info.Interface = "", "", "", "PCSC"
	if ok {
		r.info.Key, r.info.Interface = u.key, "USB"
		r.info.Maker, r.info.Serial, r.info.Firmware = u.maker, u.serial, u.firmware
	}
}

// missed tells and counts the cards that came and went between two looks, and
// reports whether there were any. They are told as one.
func (r *reader) missed(present bool, s slot) bool {
	changes := (s.events - r.events) & 0xffff
	if present != s.present() && changes > 0 {
		changes-- // the one that shows
	}
	pairs := changes / 2
	if pairs == 0 {
		return false
	}
	r.track.Update(hal.PowerOnline, look(!present, false))
	r.track.Update(hal.PowerOnline, look(present, false))
	r.track.Count("M_CardInsertedCount", float64(pairs-1))
	r.track.Count("M_CardRemovedCount", float64(pairs-1))
	return true
}
