// Command tillward-agent is the daemon on the till. Everything it does is in
// package agent; here are the flags, the list of drivers and the exit codes.
//
// Exit codes: 0 stopped, 1 failed, 2 wrong usage, 75 start me again (an update
// switched slots), 76 restart the box. Of -data-key: 0 the key is written, 3 no
// approval fits how this box has booted, 4 it is sealed to another TPM, 1 it
// cannot be told. Of -held: 0 it was held all the time, 3 it is not pressed or was
// let go, 1 nobody can say.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/agent/chip"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/board"
	"github.com/tillward/tillward/hal/display"
	"github.com/tillward/tillward/hal/escpos"
	"github.com/tillward/tillward/hal/hotplug"
	"github.com/tillward/tillward/hal/input"
	"github.com/tillward/tillward/hal/pcsc"
	"github.com/tillward/tillward/hal/slot"
	"github.com/tillward/tillward/hal/star"
	"github.com/tillward/tillward/hal/virtual"
)

// version is set by the build.
var version = "0.0.0"

const (
	exitFailed  = 1
	exitUsage   = 2
	exitClosed  = 3
	exitNotHeld = 3
	exitLost    = 4
	exitRestart = 75
	exitReboot  = 76
)

func main() { os.Exit(run()) }

// carried are the drivers of this program.
func carried() *hal.Registry {
	return hal.NewRegistry(
		escpos.Driver{}, star.Driver{}, star.CloudPRNT{}, display.Driver{}, pcsc.Driver{}, virtual.Driver{}, input.Driver{},
		board.Driver{}, board.I2C{}, board.Switch{},
	)
}

func run() int {
	path := flag.String("config", "/etc/tillward/agent.toml", "configuration `file`")
	check := flag.Bool("check", false, "check the configuration and what it says of devices, print the effective one, and exit")
	selfcheck := flag.Bool("selfcheck", false, "check that this binary works on this box, and exit; changes nothing")
	status := flag.Bool("status", false, "print what a stopped agent has recorded, as JSON, and exit")
	dataKey := flag.Bool("data-key", false, "write the key of the data partition, 32 bytes, to a pipe, and exit; seals one at the first call")
	held := flag.String("held", "", "exit 0 if this `key`, e.g. KEY_RESTART, is held as long as -for says, and 3 as soon as it is not; reads no configuration")
	heldFor := flag.Duration("for", 10*time.Second, "with -held: how long")
	heldOn := flag.String("device", "", "with -held: the input `device`; empty: any of the box that is not on USB")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	drivers := carried()
	switch {
	case *showVersion:
		fmt.Println(version)
		return 0
	case *selfcheck:
		fmt.Printf("tillward-agent %s: drivers %v\n", version, drivers.Names())
		return 0
	}
	if *held != "" {
		return isHeld(*held, *heldOn, *heldFor)
	}
	if *check {
		return checkConfig(*path, drivers)
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tillward-agent: %v\n", err)
		if *dataKey { // whoever asks tells answers apart by their codes
			return exitFailed
		}
		return exitUsage
	}
	var level slog.LevelVar
	tail := newTail(os.Stderr)
	guard := new(agent.Guard)
	log := slog.New(slog.NewTextHandler(guard.Writer(tail), &slog.HandlerOptions{Level: &level}))
	o := agent.Options{
		Version: version, Drivers: drivers, Bus: hotplug.Bus{}, Guard: guard, Log: log, Level: &level, Tail: tail.last,
		OpenTPM: chip.Open, Slots: func(address string) agent.Slots { return slot.RAUC{Address: address} },
	}
	if *status {
		return printStatus(cfg, o)
	}
	if *dataKey {
		return writeDataKey(cfg, o)
	}
	if o.Slot, err = agent.Launch(cfg, version); err != nil {
		log.Error("launch", slog.Any("err", err)) // the golden agent runs on
	}
	debug.SetGCPercent(50) // a till has memory for selling first
	debug.SetMemoryLimit(64 << 20)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	switch err := agent.New(cfg, o).Run(ctx); {
	case err == nil:
		return 0
	case errors.Is(err, agent.ErrRestart):
		return exitRestart
	case errors.Is(err, agent.ErrReboot):
		return exitReboot
	default:
		log.Error("agent ended", slog.Any("err", err))
		return exitFailed
	}
}

// checkConfig prints everything that is wrong with the file, or else what it
// means.
func checkConfig(path string, drivers *hal.Registry) int {
	cfg, wrong := agent.CheckConfig(path, drivers)
	for _, err := range wrong {
		fmt.Fprintf(os.Stderr, "tillward-agent: %v\n", err)
	}
	if len(wrong) > 0 {
		return exitUsage
	}
	fmt.Print(cfg)
	tellService(cfg)
	return 0
}

// tellService adds, as a comment, where the box would enrol now.
func tellService(cfg agent.Config) {
	at, source, err := agent.FindService(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Printf("\n# no service: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n# "))
		return
	}
	fmt.Printf("\n# the service is %s (%s)\n", at, source)
}

// isHeld tells the start of the box whether a button is held.
func isHeld(key, device string, long time.Duration) int {
	err := input.Held(context.Background(), key, device, long)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, input.ErrNotHeld):
		return exitNotHeld
	}
	fmt.Fprintf(os.Stderr, "tillward-agent: -held: %v\n", err)
	return exitFailed
}

func printStatus(cfg agent.Config, o agent.Options) int {
	s, err := agent.ReadStatus(context.Background(), cfg, o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tillward-agent: %v\n", err)
		return exitFailed
	}
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		return exitFailed
	}
	return 0
}
