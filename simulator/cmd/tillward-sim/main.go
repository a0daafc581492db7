// Command tillward-sim puts a fleet on a desk: the fleet service and tills with
// software TPMs, printers and card readers, each with a real agent. It never
// ships.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/simulator"
	"github.com/tillward/tillward/simulator/attack"
	"github.com/tillward/tillward/simulator/chaos"
	"github.com/tillward/tillward/simulator/counterday"
	"github.com/tillward/tillward/simulator/tamper"
)

// version is set by the build.
var version = "0.0.0"

type cli struct {
	Bench   benchCmd   `cmd:"" help:"Measure, and print JSON lines."`
	Counter counterCmd `cmd:"" help:"Play a receipt printer, a drawer and a card reader to try software on; what is typed goes wrong with them."`
	Run     runCmd     `cmd:"" help:"Boot tills, update them and send each a command; Ctrl-C ends everything."`
}

type runCmd struct {
	Tills     int           `help:"How many." default:"5"`
	ExitAfter time.Duration `help:"End by itself, e.g. 90s; the exit code says whether all went well." placeholder:"DURATION"`
	Report    string        `help:"Write a JSON report; - prints it." placeholder:"FILE"`
	Seed      uint64        `help:"The scripted day is the same for the same seed." default:"1"`
	PortBase  int           `help:"First of the service's four ports: console, devices' HTTPS, MQTT, metrics." default:"8440"`
	Dir       string        `help:"Folder for everything; one that is removed at the end by default." placeholder:"DIR"`
	Bin       string        `help:"Folder with the other binaries; that of this one by default." placeholder:"DIR"`
	Receipts  string        `help:"Draw what the printers print, a PNG for each receipt, into this folder." placeholder:"DIR"`
	Store     string        `help:"Database of the service: postgres for a private PostgreSQL server, or the URL of one that tillward store setup has made; SQLite by default." placeholder:"URL"`
	Verbose   bool          `short:"v" help:"Show the service's log."`
	Scenario  string        `help:"Play this in place of a day: ${enum}." enum:"attest-attacks,update-attacks,rollout-minority,powercut,counter-day,chaos," default:""`
	Devices   int           `help:"Of the scenario rollout-minority: devices on the wire." default:"10000"`
	Of        float64       `help:"Of the same: share of the fleet that the bad model has; 4 % of the fleet are bad." default:"0.04"`
	Cuts      int           `help:"Of the scenario powercut: how often the power goes." default:"200"`
	For       time.Duration `help:"Of the scenario chaos: how long things go wrong." default:"10m"`
	Faults    int           `help:"Of the same: how often, beside the service; 0: 45 times a till in ten minutes." default:"0"`
	Postgres  bool          `help:"Of the same: the service keeps what it knows in PostgreSQL, which is killed too."`
	Only      []string      `help:"Of a scenario, these parts alone." placeholder:"NAME"`
}

// Run implements the command.
func (c *runCmd) Run(ctx context.Context) error {
	if c.Scenario == "chaos" {
		if ran, err := chaos.Alone(ctx); ran || err != nil {
			return err
		}
	}
	if c.Tills < 1 || c.Tills > 64 {
		return usage{fmt.Errorf("--tills %d: from 1 to 64", c.Tills)}
	}
	bin, err := binaries(c.Bin)
	if err != nil {
		return err
	}
	dir := c.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "tillward-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	next := filepath.Join(bin, "next", "tillward-agent")
	if c.Scenario == "powercut" {
		next = filepath.Join(bin, "powercut", "tillward-agent") // whose version can be counted up
	}
	out, err := exec.CommandContext(ctx, next, "-version").Output() // #nosec G204 -- our own binary
	if err != nil {
		return fmt.Errorf("the agent to update to, %s: %w; make build makes it", next, err)
	}
	level := slog.LevelWarn
	if c.Verbose {
		level = slog.LevelInfo
	}
	cloud.Version = version
	o := simulator.Options{
		Dir: dir, Bin: bin, Next: next, UpdateTo: strings.TrimSpace(string(out)), Tills: c.Tills, Seed: c.Seed, PortBase: c.PortBase,
		Receipts: c.Receipts, Day: 45 * time.Second, Pace: simulator.DeskPace, Out: os.Stdout,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	if o.Store = c.Store; c.Store == "postgres" {
		own, err := os.MkdirTemp("", "tillward-pg-") // a socket's path is short
		if err != nil {
			return err
		}
		defer os.RemoveAll(own)
		url, stop, err := simulator.PrivateStore(ctx, own, o.Log)
		if err != nil {
			return err
		}
		defer stop()
		o.Store = url
	}
	if c.Scenario == "attest-attacks" {
		return attack.Run(ctx, attack.Options{Options: o, Report: c.Report, Only: c.Only})
	}
	if c.Scenario == "rollout-minority" {
		_, err := simulator.Crowd(ctx, simulator.CrowdOptions{
			Bin: bin, Dir: dir, Devices: c.Devices, Offline: 0.3, Minority: 0.04, Of: c.Of, Report: c.Report, Out: os.Stdout, Say: os.Stderr,
		})
		return err
	}
	if c.Scenario == "update-attacks" {
		return tamper.Run(ctx, tamper.Options{Options: o, Report: c.Report, Only: c.Only})
	}
	if c.Scenario == "counter-day" {
		o.Day = time.Minute
		return counterday.Run(ctx, counterday.Options{Options: o, Report: c.Report})
	}
	if c.Scenario == "chaos" {
		o.Day, o.Pace = time.Minute, simulator.Pace{Poll: "1s", Stats: "2s", Batch: "2s", Heartbeat: "5s"}
		return chaos.Run(ctx, chaos.Options{Options: o, For: c.For, Faults: c.Faults, Postgres: c.Postgres, Report: c.Report})
	}
	if c.Scenario == "powercut" {
		o.PortBase, o.Pace = 0, simulator.Pace{Poll: "1s", Stats: "30s", Batch: "5s", Heartbeat: "5s"}
		return simulator.Powercut(ctx, simulator.PowercutOptions{Options: o, Cuts: c.Cuts, Report: c.Report})
	}
	return simulator.Run(ctx, simulator.RunOptions{Options: o, ExitAfter: c.ExitAfter, Report: c.Report})
}

// binaries is the folder with the other programs.
func binaries(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own binary: %w", err)
	}
	return filepath.Dir(self), nil
}

type usage struct{ error }

// Unwrap returns the cause.
func (u usage) Unwrap() error { return u.error }

func main() {
	if code, is := chaos.Till(os.Args); is {
		os.Exit(code)
	}
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once; children die with it
	var c cli
	code := -1
	p, err := kong.New(&c, kong.Name("tillward-sim"), kong.Exit(func(n int) { code = n }), kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Description("A fleet on a desk: real agents on software TPMs, printers and card readers."))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	k, err := p.Parse(os.Args[1:])
	if code >= 0 {
		return code
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "tillward-sim: %v; see tillward-sim --help\n", err)
		return 2
	}
	if err := k.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "tillward-sim: %v\n", err)
		if errors.As(err, new(usage)) {
			return 2
		}
		return 1
	}
	return 0
}
