package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/agent"
)

// dataKeyFor is how long the TPM may take; the box waits to start.
const dataKeyFor = time.Minute

// writeDataKey hands the key of the data partition to whoever opens it. It is
// for no eyes: a terminal gets none.
func writeDataKey(cfg agent.Config, o agent.Options) int {
	if _, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS); err == nil {
		fmt.Fprintln(os.Stderr, "tillward-agent: data key: it is not written to a terminal; pipe it into what opens the partition, e.g. cryptsetup open --key-file -")
		return exitFailed
	}
	ctx, cancel := context.WithTimeout(context.Background(), dataKeyFor)
	defer cancel()
	err := agent.DataKey(ctx, cfg, o, os.Stdout)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "tillward-agent: data key: %v\n", err)
	switch {
	case errors.Is(err, agent.ErrSealedElsewhere):
		return exitLost
	case errors.Is(err, agent.ErrUnapproved):
		return exitClosed
	}
	return exitFailed
}
