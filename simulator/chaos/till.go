package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/agent/chip"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/hal/virtual"
)

// asTill is the first argument of a process that is a till's agent.
const asTill = "chaos-till"

// What a till tells the harness.
const (
	saidPut       = "put"       // a record goes into the books
	saidKept      = "kept"      // it lies there
	saidRefused   = "refused"   // the books had no room for it
	saidShed      = "shed"      // it is given up, if that can be written
	saidCut       = "cut"       // the connection was cut in the middle of a PUBLISH
	saidTwice     = "twice"     // a packet was duplicated
	saidDelivered = "delivered" // the service has acknowledged something
)

// line is one thing that a till tells.
type line struct {
	Kind string `json:"k"`
	Name string `json:"m,omitempty"`
	record
}

// orders are what the harness tells a till; each holds all of them.
type orders struct {
	Clock clock   `json:"clock"`
	Twice float64 `json:"twice"` // share of packets that are sent twice
	Cut   bool    `json:"cut"`   // the connection, in the middle of the next PUBLISH
}

// clock is a wall clock: where it stood at a moment, and how fast it goes.
type clock struct {
	At   int64   `json:"at"`   // Unix nanoseconds by the machine's clock
	Says int64   `json:"says"` // what it said then
	Rate float64 `json:"rate"` // 0 as 1
}

// now is what the clock says.
func (c clock) now() time.Time {
	now := time.Now().Round(0)
	if c.At == 0 {
		return now
	}
	gone := now.UnixNano() - c.At
	if c.Rate != 0 {
		gone = int64(float64(gone) * c.Rate)
	}
	return time.Unix(0, c.Says+gone)
}

// witness is the till's side of the harness: it tells what the agent keeps, and
// does what it is told. Its socket is closed when the harness ends.
type witness struct {
	conn net.Conn

	mu   sync.Mutex
	is   orders
	told time.Time // of the last delivered
}

// say tells one thing; what was told is with the harness even when this process
// is killed the moment after.
func (w *witness) say(l line) {
	b, err := json.Marshal(l)
	if err == nil {
		_, err = w.conn.Write(append(b, '\n'))
	}
	if err != nil {
		os.Exit(1) // nobody listens: what goes on is nobody's
	}
}

// kept tells the records of a message.
func (w *witness) kept(channel wire.Channel, payload []byte, how agent.Keeping) {
	if how == agent.KeptRefused && len(payload) == 0 {
		class := map[wire.Channel]string{wire.Telemetry: telemetry, wire.Event: event}[channel]
		w.say(line{Kind: saidRefused, record: record{key: key{Class: class}}})
		return
	}
	records, err := recordsOf(channel, payload)
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %s: %v\n", channel, err)
	}
	kind := map[agent.Keeping]string{agent.KeptBegun: saidPut, agent.KeptDone: saidKept, agent.KeptRefused: saidRefused, agent.KeptShed: saidShed}[how]
	for _, r := range records {
		w.say(line{Kind: kind, record: r})
	}
}

func (w *witness) delivered() {
	w.mu.Lock()
	tell := time.Since(w.told) > 100*time.Millisecond
	if tell {
		w.told = time.Now()
	}
	w.mu.Unlock()
	if tell {
		w.say(line{Kind: saidDelivered})
	}
}

func (w *witness) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.is.Clock.now()
}

func (w *witness) twice() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.is.Twice
}

// cutNow reports, once, that the connection is to be cut.
func (w *witness) cutNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.is.Cut
	w.is.Cut = false
	return was
}

// obey takes orders in; the first have come when it returns.
func (w *witness) obey() error {
	in := bufio.NewReader(w.conn)
	take := func() error {
		b, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		return json.Unmarshal(b, &w.is)
	}
	if err := take(); err != nil {
		return err
	}
	go func() {
		for take() == nil {
		}
		os.Exit(1)
	}()
	return nil
}

// Till is the process of a till's agent when the arguments say so: the agent as
// it ships, started so that the harness knows what it keeps. It returns the
// exit code.
func Till(args []string) (code int, is bool) {
	if len(args) < 2 || args[1] != asTill {
		return 0, false
	}
	// SOCKET VERSION AGENT -config FILE
	if len(args) != 7 {
		fmt.Fprintln(os.Stderr, "chaos: this is started by the scenario chaos")
		return 2, true
	}
	return runTill(args[2], args[3], args[6]), true
}

func runTill(socket, version, config string) int {
	signal.Ignore(syscall.SIGXFSZ) // a disk that is full, where there is no disk to fill
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "chaos: till: %v\n", err)
		return 1
	}
	cfg, err := agent.LoadConfig(config)
	if err != nil {
		return fail(err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fail(err)
	}
	w := &witness{conn: conn}
	if err := w.obey(); err != nil {
		return fail(err)
	}
	var level slog.LevelVar
	guard := new(agent.Guard)
	log := slog.New(slog.NewTextHandler(guard.Writer(os.Stderr), &slog.HandlerOptions{Level: &level}))
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(64 << 20)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err = agent.New(cfg, agent.Options{
		Version: version, Slot: "golden", Guard: guard, Log: log, Level: &level, Tail: func(int) []byte { return nil },
		Drivers: hal.NewRegistry(escpos.Driver{}, pcsc.Driver{}, virtual.Driver{}, board.Driver{}, board.I2C{}, board.Switch{}),
		OpenTPM: chip.Open, Now: w.now, Kept: w.kept, Inside: func(c net.Conn) net.Conn { return newTap(c, w) },
	}).Run(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, agent.ErrRestart):
		return 75
	case errors.Is(err, agent.ErrReboot):
		return 76
	}
	log.Error("agent ended", slog.Any("err", err))
	return 1
}
