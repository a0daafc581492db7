// Command tillward-provision is the factory and release tool: it makes keys,
// keeps the repository of signed releases with their boot reference values, and
// signs a vendor's lists of TPMs.
// It works offline, on the machine that holds the keys, and never talks to a
// service.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"
)

// version is set by the build.
var version = "0.0.0"

type cli struct {
	JSON bool `help:"Print JSON, for machines."`

	Key     keyCmd     `cmd:"" help:"Keys that sign releases and lists."`
	Repo    repoCmd    `cmd:"" help:"The repository of releases."`
	Release releaseCmd `cmd:"" help:"Releases in a repository."`
	Boot    bootCmd    `cmd:"" help:"Boot reference values: how the boxes of a model boot a release."`
	UKI     ukiCmd     `cmd:"" name:"uki" help:"Unified kernel images: what a box boots, as one EFI program."`
	Bundle  bundleCmd  `cmd:"" help:"Keys that sign the image bundles of RAUC."`
	EK      ekCmd      `cmd:"" name:"ek" help:"Lists of TPMs that left the line."`
	Factory factoryCmd `cmd:"" help:"Devices on the line: their TPMs, manifest, claim codes and labels."`
	Voucher voucherCmd `cmd:"" help:"Whose a device is: from the vendor to its next owner."`
	Maker   makerCmd   `cmd:"" help:"Authorities of TPM makers."`
	CA      caCmd      `cmd:"" name:"ca" help:"The authorities of a fleet: roots, which stay offline, and what they sign."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

type versionCmd struct{}

// Run implements the command.
func (versionCmd) Run(o *out) error {
	return o.print(map[string]string{"version": version}, "%s", version)
}

// usage is an error of whoever called: exit code 2.
type usage struct{ error }

// Unwrap returns the cause.
func (u usage) Unwrap() error { return u.error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its edges in hand. Exit codes: 0 done, 1 failed, 2 usage.
func run(args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	p, err := kong.New(&c, kong.Name("tillward-provision"), kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { code = n }), kong.UsageOnError(),
		kong.Description("The factory and release tool. Keys stay on this machine: nothing here talks to a service.\n\n"+
			"A first release:\n  tillward-provision repo init --dir repo --keys keys\n"+
			"  tillward-provision release add --repo repo --keys keys --binary bin/tillward-agent --version 1.2.3\n"+
			"  tillward release publish --repo repo"))
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	ctx, err := p.Parse(args)
	if code >= 0 { // --help, --version
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "tillward-provision: %v\n", err)
		return 2
	}
	err = ctx.Run(&out{w: stdout, json: c.JSON})
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usage)):
		fmt.Fprintf(stderr, "tillward-provision: %v\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "tillward-provision: %v\n", err)
	return 1
}

// out prints a result, as text or as JSON.
type out struct {
	w    io.Writer
	json bool
}

func (o *out) print(v any, text string, args ...any) error {
	if o.json {
		return json.NewEncoder(o.w).Encode(v)
	}
	_, err := fmt.Fprintf(o.w, text+"\n", args...)
	return err
}
