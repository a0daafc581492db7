package main

import (
	"context"
	"os"

	"github.com/tillward/tillward/simulator"
)

type benchCmd struct {
	Bin   string `help:"Folder with the other binaries; that of this one by default." placeholder:"DIR"`
	Storm int    `help:"Devices of the reconnect storm; 100000 takes about half an hour on two cores." default:"500"`
	Only  string `help:"One step alone: ${enum}." enum:"size,devices,storm,backlog,planner,delta,journal,counter,audit-search,agent," default:""`
	Rows  int64  `help:"Rows of the audit trails that are searched; 100000000 take about half an hour to make, and 40 GB." default:"200000"`
	Store string `help:"Which database they are searched in: ${enum}; both by default." enum:"sqlite,postgres," default:""`
	Data  string `help:"Folder in which those rows are, or are made and stay; a folder that is removed at the end by default." placeholder:"DIR"`
}

// Run implements the command.
func (c *benchCmd) Run(ctx context.Context) error {
	bin, err := binaries(c.Bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tillward-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return simulator.Bench(ctx, simulator.BenchOptions{Bin: bin, Dir: dir, Out: os.Stdout, Say: os.Stderr, Storm: c.Storm, Only: c.Only, Rows: c.Rows, Store: c.Store, Data: c.Data})
}
