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
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tillward/tillward/simulator/brcheck"
)

func main() { os.Exit(run()) }

func run() int {
	dir := flag.String("dir", "buildroot", "`folder` of the external tree")
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
	results, err := brcheck.Alone(ctx, *dir)
	code := 0
	for _, r := range results {
		if len(r.Wrong) > 0 {
			code = 1
		}
		if *asJSON {
			if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
				return 1
			}
			continue
		}
		word := "ok"
		switch {
		case len(r.Wrong) > 0:
			word = "WRONG"
		case r.Skipped:
			word = "skipped"
		}
		fmt.Printf("%-8s %-44s %6.1f s  %s\n", word, r.Name, r.Seconds, r.Note)
		for _, w := range r.Wrong {
			fmt.Println("         " + w)
		}
	}
	if err != nil {
		return fail(err)
	}
	return code
}
