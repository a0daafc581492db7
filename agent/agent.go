package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tillward/tillward/agent/internal/audit"
	"github.com/tillward/tillward/agent/internal/clock"
	"github.com/tillward/tillward/agent/internal/discover"
	"github.com/tillward/tillward/agent/internal/fetch"
	"github.com/tillward/tillward/agent/internal/gate"
	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/agent/internal/telemetry"
	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/app"
	"github.com/tillward/tillward/agent/internal/update/binary"
	"github.com/tillward/tillward/agent/internal/update/image"
	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

// Errors with which Run ends on purpose.
var (
	ErrRestart = update.ErrRestart                  // start the agent again: another slot runs then
	ErrReboot  = errors.New("the box is to reboot") // and nobody was told how in the configuration
)

// lastWords is how long an orderly stop may take to hand over what is queued.
const lastWords = 5 * time.Second

// Options are what main hands in.
type Options struct {
	Version string
	Slot    string // from Launch
	Drivers *hal.Registry
	Bus     hal.Bus // tells what is plugged in; nil: nobody does
	OpenTPM func(path string) (TPM, error)
	Slots   func(address string) Slots // the boot slots that RAUC at a D-Bus address drives
	Guard   *Guard                     // that guards Log; nil: one that guards the rest
	Log     *slog.Logger
	Level   *slog.LevelVar
	Tail    func(lines int) []byte // last lines of the log

	// Of who looks at an agent from outside, as the simulator does; nil: nobody.

	// Now is the box's wall clock: what records are stamped with and certificates,
	// commands and hours are held against; nil: the system's.
	Now func() time.Time
	// Kept is told each message before it is put into the books, and once more
	// when it lies there, when they had no room for it - the payload is nil where
	// that was known before it was made - or when they give it up. It must not
	// block or call the agent.
	Kept func(channel wire.Channel, payload []byte, how Keeping)
	// Inside wraps each connection to the broker, inside TLS.
	Inside func(net.Conn) net.Conn
}

// Keeping is how far a message has come on its way into the books.
type Keeping string

// What Options.Kept is told.
const (
	KeptBegun   Keeping = "begun"
	KeptDone    Keeping = "done"
	KeptRefused Keeping = "refused"
	KeptShed    Keeping = "shed" // or about to be: given up, or thinned, for want of space
)

// Slots are the boot slots of the box; hal/slot fits.
type Slots = image.Slots

// Agent is the daemon.
type Agent struct {
	cfg     Config
	o       Options
	log     *slog.Logger
	started time.Time

	heads    *numbering
	spool    *spool.Spool
	journal  *audit.Journal
	settings *settings
	devices  *peripherals
	monitor  *telemetry.Monitor
	machine  *update.Machine
	fetcher  *fetch.Fetcher
	apps     *app.Handler  // nil: the box takes no applications
	again    chan struct{} // settings changed: watch devices in another pace
	found    discover.Service
	sought   bool // the last try to be a member was about what is found
	clock    clock.Clock
	opened   chan struct{} // the link opened: look at what waited for it

	// Of belonging, and of whoever it starts and waits for.
	rejoin   bool      // enrol, though there is an identity
	unusable bool      // the service turns the certificate away
	joined   time.Time // when enrolment was tried last
	told     appraisal // the verdict on record

	ownership member.Ownership
	left      member.Leaving
	quiet     atomic.Bool   // the trail has ended: nothing is recorded any more
	leaving   atomic.Bool   // the owner has given the box up, and it has said so
	gone      atomic.Bool   // and the service takes nothing more
	parting   chan struct{} // leaving became true
	resetting chan struct{} // a factory reset was ordered
	reset     chan struct{} // and the service has everything

	vault    *vault.Vault // nil: the image has no release key, and nothing is locked
	closed   error        // why the books are locked; the plain ones are in use
	lost     error        // why the books before were given up
	reopened bool         // the books were locked before
	shut     error        // why the key of the data partition does not open

	crashes uint64        // starts that no orderly end came before
	looks   chan struct{} // find out anew what runs

	mu     sync.Mutex
	stale  string      // the lock of the POS application, as told last
	shared net.Addr    // where tills of the site get content; nil: nowhere
	member *membership // nil until enrolled
	dev    TPM         // nil while it is closed
	online bool        // connected and attested
	held   bool        // connected, and kept in quarantine
	reboot chan struct{}
}

// Launch gives way to the agent of the slot that is to run (docs/adr/0002). It
// returns the slot this process, of the given version, runs from. Call it first
// in main.
func Launch(cfg Config, version string) (string, error) {
	return binary.Launch(filepath.Join(cfg.StateDir, "agent"), version)
}

// New returns an agent; Run opens what it needs.
func New(cfg Config, o Options) *Agent {
	if o.Guard == nil {
		o.Guard = new(Guard)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &Agent{
		cfg: cfg, o: o, log: o.Log, started: time.Now(), heads: newNumbering(o.Now), again: make(chan struct{}, 1), reboot: make(chan struct{}, 1),
		opened: make(chan struct{}, 1), parting: make(chan struct{}, 1),
		resetting: make(chan struct{}, 1), reset: make(chan struct{}, 1),
		looks: make(chan struct{}, 1), devices: newPeripherals(cfg, o.Log),
	}
	a.clock.Wall = o.Now
	a.ownership.File = a.file("owner.json")
	a.left = member.Leaving{File: a.file("leaving.json"), Ownership: &a.ownership}
	return a
}

// Run is the agent's life. It returns nil when ctx ends, ErrRestart or
// ErrReboot when that is asked for, and an error when it cannot even keep its
// journal.
func (a *Agent) Run(ctx context.Context) error {
	err := a.live(ctx)
	if f, ok := errors.AsType[*foreign](err); ok {
		return cmp.Or(a.setAside(f), ErrRestart)
	}
	if errors.Is(err, errLeft) {
		return a.wipeAll(ctx)
	}
	return err
}

// live runs the agent on the books that are there, and closes them.
func (a *Agent) live(ctx context.Context) (err error) {
	if err := a.open(ctx); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil // told to end before it had begun
		}
		return err
	}
	defer func() {
		a.close()
		if err == nil || errors.Is(err, ErrRestart) || errors.Is(err, ErrReboot) {
			a.endRun()
		}
	}()
	// Rooms run in a context of their own, so that an orderly stop can hand
	// over the last words after the first have been told to end.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, inner := errgroup.WithContext(inner)
	watching, endWatch := context.WithCancel(inner)
	defer endWatch()
	watched := make(chan struct{})
	g.Go(func() error { defer close(watched); return a.watch(watching) })
	g.Go(func() error { return a.sell(inner) })
	g.Go(func() error { return a.belong(inner) })
	g.Go(func() error { return a.update(inner) })
	g.Go(func() error { return a.look(inner) })
	g.Go(func() error { return a.share(inner) })
	g.Go(func() error { return a.part(inner) })
	g.Go(func() error { return a.wind(inner) })
	g.Go(func() error { return a.tellShed(inner) })
	g.Go(func() error { return a.journal.Run(inner) })
	g.Go(func() error {
		why := "stop"
		var end error
		select {
		case <-inner.Done():
			return nil
		case <-ctx.Done():
			end = context.Canceled
		case <-a.reboot:
			why, end = "reboot", a.rebooted(inner)
		case <-a.reset:
			why, end = "reboot", a.askReset()
		}
		endWatch()
		<-watched // its last batch is queued
		a.record(inner, "agent."+why, "info", a.o.Version, nil)
		a.stopTrail(inner)
		a.drain(inner)
		if why == "reboot" && end == nil {
			end = outlived(ctx)
		}
		return end
	})
	err = g.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// open opens what the agent cannot be without.
func (a *Agent) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	if a.left.Begun() {
		return errLeft
	}
	if a.ownership.Vendor, err = a.vendorKey(); err != nil {
		return err
	}
	if err = a.openBooks(ctx); err != nil {
		return err
	}
	if err = a.openJournal(ctx); err != nil {
		return errors.Join(err, a.spool.Close())
	}
	if a.settings, err = openSettings(ctx, a.spool); err != nil {
		return errors.Join(err, a.spool.Close())
	}
	a.applyLevel()
	a.tellForeign(ctx)
	a.record(ctx, "agent.start", "info", a.o.Version, map[string]string{"slot": a.o.Slot})
	a.tellBooks(ctx)
	if aside := a.spool.Rebuilt(); aside != "" {
		a.record(ctx, "spool.rebuilt", "alarm", filepath.Base(aside), nil)
	}
	if err := a.resumeLeaving(ctx); err != nil {
		return errors.Join(err, a.spool.Close())
	}
	if err := a.resumeReset(ctx); err != nil {
		return errors.Join(err, a.spool.Close())
	}
	a.beginRun()
	a.monitor = a.newMonitor()
	if a.machine, err = a.newMachine(ctx); err != nil {
		a.close()
		return err
	}
	return nil
}

func (a *Agent) close() {
	a.devices.close(a.log)
	if err := a.spool.Close(); err != nil {
		a.log.Error("close spool", slog.Any("err", err))
	}
}

// truthFor is how long a state report waits for what runs to be found out: an
// application that a cut stopped is started first.
const truthFor = 2 * time.Minute

// fill adds what the telemetry does not know to a state report. A till that says
// nothing of what it has would be taken for one that has nothing.
func (a *Agent) fill(r *wire.StateReport) bool {
	if !a.machine.Settled() && time.Since(a.started) < truthFor || !a.devices.settled(len(a.cfg.Devices)) {
		return false
	}
	seq, _ := a.journal.Head()
	r.AgentVersion, r.Slot, r.StartedAt = a.o.Version, a.o.Slot, a.started.UnixMilli()
	r.Model, r.Serial, r.AuditHead = a.cfg.Model, a.serial(), seq
	r.Settings, r.Label = a.settings.hash(), a.settings.get("label")
	r.Installed, r.Execution, r.Crashes = a.installed(), a.machine.Execution(), a.crashes
	r.Supply, r.Share = gate.Supply(a.cfg.Update.PowerDir), a.sharedAt()
	if free, ok := a.free(); ok {
		r.FreeMiB = free >> 20
	}
	return true
}

// touch asks for a state report soon.
func (a *Agent) touch() {
	if a.monitor != nil {
		a.monitor.Touch()
	}
}

// serial is the box's serial number: as configured, or as the firmware says.
func (a *Agent) serial() string {
	if a.cfg.Serial != "" {
		return a.cfg.Serial
	}
	for _, p := range []string{"/sys/class/dmi/id/product_serial", "/proc/device-tree/serial-number"} {
		if b, err := os.ReadFile(p); err == nil { // #nosec G304 -- fixed names
			return printable(string(b))
		}
	}
	return ""
}

func printable(s string) string {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r > ' ' && r <= '~' && len(out) < 64 {
			out = append(out, r)
		}
	}
	return string(out)
}

// record adds to the audit trail; a trail that is full is said so loudly, and
// selling goes on.
func (a *Agent) record(ctx context.Context, kind, severity, subject string, detail map[string]string) {
	if err := a.note(ctx, kind, severity, subject, detail); err != nil {
		a.log.Error("audit", slog.String("kind", kind), slog.Any("err", err))
	}
}

// note is record for who must know whether it worked. When the box has been
// given up, the trail has ended: nobody would get what is added.
func (a *Agent) note(ctx context.Context, kind, severity, subject string, detail map[string]string) error {
	if a.quiet.Load() {
		return nil
	}
	return a.journal.Record(ctx, kind, severity, subject, detail)
}

// drain waits a little until what is queued has been handed over.
func (a *Agent) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for a.isOnline() && a.spool.Depth() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *Agent) isOnline() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.online
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

func (a *Agent) applyLevel() {
	level := a.cfg.LogLevel
	if s := a.settings.get("log_level"); s != "" {
		level = s
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err == nil && a.o.Level != nil {
		a.o.Level.Set(l)
	}
}
