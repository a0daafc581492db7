// Command tillward-brcheck checks the tree in buildroot/, alone or against a
// Buildroot checkout; see package brcheck. It never ships.
//
// A line for each check goes to standard output, as JSON with --json. Exit
// codes: 0 nothing is wrong, 1 something is, 2 wrong usage.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tillward/tillward/simulator/brcheck"
)

func main() { os.Exit(run()) }

func run() int {
	dir := flag.String("dir", "buildroot", "`folder` of the external tree")
	tree := flag.String("tree", "", "`folder` of a Buildroot checkout, to check against it")
	kernel := flag.String("kernel", "", "`folder` of the source of Linux, to check its configurations as well")
	out := flag.String("out", ".cache/buildroot/check", "`folder` for what configuring leaves")
	some := flag.String("only", "", "`words`, with commas between them: run the checks that have one of them in their name")
	asJSON := flag.Bool("json", false, "print each result as a line of JSON")
	write := flag.Bool("write", false, "write the configurations that the fragments make, and exit")
	learn := flag.String("learn", "", "write the verified names into this `folder`, from the trees given as release=path")
	linux := flag.String("linux", "", "source of Linux for --learn, as `release=path`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "tillward-brcheck: %v\n", err)
		return 1
	}
	if *write {
		if err := brcheck.Write(*dir); err != nil {
			return fail(err)
		}
		return 0
	}
	if *learn != "" {
		from := brcheck.Sources{Buildroot: map[string]string{}, Linux: map[string]string{}}
		for _, arg := range flag.Args() {
			release, path, _ := strings.Cut(arg, "=")
			from.Buildroot[release] = path
		}
		release, path, _ := strings.Cut(*linux, "=")
		from.Linux[release] = path
		if err := brcheck.Learn(*dir, *learn, from); err != nil {
			return fail(err)
		}
		return 0
	}
	var only []string
	if *some != "" {
		only = strings.Split(*some, ",")
	}
	all := []iter.Seq2[brcheck.Result, error]{brcheck.Alone(ctx, *dir, only...)}
	if *tree != "" {
		all = append(all, brcheck.Tree{Buildroot: *tree, Linux: *kernel, Out: *out}.Check(ctx, *dir, only...))
	}
	code := 0
	for _, results := range all {
		for r, err := range results {
			if err != nil {
				return fail(err)
			}
			if err := show(r, *asJSON); err != nil {
				return fail(err)
			}
			if len(r.Wrong) > 0 {
				code = 1
			}
		}
	}
	return code
}

// show writes a line for one check, and one for each thing that is wrong.
func show(r brcheck.Result, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	word := "ok"
	switch {
	case len(r.Wrong) > 0:
		word = "WRONG"
	case r.Skipped:
		word = "skipped"
	}
	fmt.Printf("%-8s %6.1f s  %s: %s\n", word, r.Seconds, r.Name, r.Note)
	for _, w := range r.Wrong {
		fmt.Println("                  " + w)
	}
	return nil
}
