// Command tillward-halvm runs the drivers' conformance suite in a machine with
// a real kernel; see package halvm and docs/hal-vm.md. It never ships.
//
// What the tests say goes to standard error, a line of JSON for each suite to
// standard output. Exit codes: 0 every suite passed, 1 one did not, 2 wrong
// usage.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/simulator/halvm"
)

func main() { os.Exit(run()) }

func run() int {
	l := halvm.Lane{Out: os.Stderr}
	flag.StringVar(&l.Source, "source", ".", "`folder` of the module")
	flag.StringVar(&l.Cache, "cache", ".cache/hal-vm", "`folder` for what is downloaded and built")
	flag.DurationVar(&l.Timeout, "timeout", 30*time.Minute, "until the machine must have ended")
	flag.BoolVar(&l.Shell, "shell", false, "give a shell in the machine instead of running the tests")
	suites := flag.String("suites", "", "`names` of those to run, with commas between them: "+strings.Join(halvm.Suites, ","))
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		return 2
	}
	if *suites != "" {
		l.Suites = strings.Split(*suites, ",")
	}
	cache, err := filepath.Abs(l.Cache)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tillward-halvm: %v\n", err)
		return 2
	}
	if l.Cache = cache; l.Shell {
		l.Out = os.Stdout
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results, err := l.Run(ctx)
	code := 0
	for _, r := range results {
		if !r.OK {
			code = 1
		}
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return 1
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "tillward-halvm: %v\n", err)
		return 1
	}
	return code
}
