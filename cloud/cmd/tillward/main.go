// Command tillward is the fleet service (`tillward serve`) and the operator's
// command line, which speaks the public HTTP API and nothing else.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the build.
var version = "0.0.0"

type cli struct {
	JSON      bool   `help:"Print JSON, for machines."`
	Server    string `env:"TILLWARD_SERVER" default:"https://localhost:8443" help:"Address of the fleet service." placeholder:"URL"`
	TokenFile string `env:"TILLWARD_TOKEN_FILE" help:"File with your operator token. The first one is admin.token in the service's data folder." placeholder:"FILE"`
	Roots     string `name:"ca" env:"TILLWARD_CA" help:"PEM file with the authority of the service's certificate; service-roots.pem of its data folder." placeholder:"FILE"`

	Serve      serveCmd      `cmd:"" help:"Run the fleet service."`
	Device     deviceCmd     `cmd:"" help:"Devices: list, show, attest, attestations, waive, revoke, readmit, voucher, transfer, object."`
	Peripheral peripheralCmd `cmd:"" help:"Printers, readers, drawers and the rest of the counter: list, show, statistics."`
	Command    commandCmd    `cmd:"" help:"Commands: send, list."`
	Release    releaseCmd    `cmd:"" help:"Releases: publish, list, show, export-medium, online-key."`
	Rollout    rolloutCmd    `cmd:"" help:"Rollouts: start, create, preview, show, list, why, submit, approve, deny, pause, resume, abort, complete, retry, release-hold."`
	Site       siteCmd       `cmd:"" help:"Sites and their hours: list, set."`
	Firmware   firmwareCmd   `cmd:"" help:"Firmware events that no reference values know: list, approve, reject, reopen."`
	Reference  referenceCmd  `cmd:"" help:"Reference values of releases: list."`
	Waiting    waitingCmd    `cmd:"" help:"Devices that nobody owns yet: list."`
	Claim      claimCmd      `cmd:"" help:"Claim devices: code, waiting, order."`
	Manifest   manifestCmd   `cmd:"" help:"Batches that left a vendor's line: import."`
	Order      orderCmd      `cmd:"" help:"Order files of vendors: import."`
	Voucher    voucherCmd    `cmd:"" help:"Ownership vouchers: import."`
	Tenant     tenantCmd     `cmd:"" help:"Who you are to other owners: show."`
	CA         caCmd         `cmd:"" name:"ca" help:"The authority of device certificates: status, rotate, retire."`
	Audit      auditCmd      `cmd:"" help:"Audit trails: search, list, verify, export, keys, segments."`
	Export     exportCmd     `cmd:"" help:"Where the audit trails are sent to: list, test."`
	Store      storeCmd      `cmd:"" help:"The service's database on PostgreSQL: setup, grants."`
	Figures    figuresCmd    `cmd:"" help:"What the service answers and how fast, part by part."`
	Health     healthCmd     `cmd:"" help:"How every part of the service is, and what to do."`
	Token      tokenCmd      `cmd:"" help:"Operator tokens: create, list, revoke."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

const description = `Tillward guards tills: the fleet service and its command line.

Begin with:
  tillward serve --data ./data            the service, with everything in one folder
  export TILLWARD_TOKEN_FILE=./data/admin.token TILLWARD_CA=./data/service-roots.pem
  tillward device list
  tillward peripheral list --health Fault
  tillward command send DEVICE print-test --reason "paper changed"
  tillward release publish --repo REPO && tillward rollout start agent/1.2.3 --watch`

type versionCmd struct{}

// Run implements the command.
func (versionCmd) Run(o *out) error { return o.print(map[string]string{"version": version}, version) }

// usage is an error of whoever called: exit code 2.
type usage struct{ error }

// Unwrap returns the cause.
func (u usage) Unwrap() error { return u.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its edges in hand.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	p, err := kong.New(&c, kong.Name("tillward"), kong.Writers(stdout, stderr), kong.Exit(func(n int) { code = n }),
		kong.Description(description), kong.BindTo(ctx, (*context.Context)(nil)))
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	k, err := p.Parse(args)
	if code >= 0 { // --help
		return code
	}
	if err != nil {
		fmt.Fprintf(stderr, "tillward: %v; see tillward --help\n", err)
		return 2
	}
	verb := k.Selected().Name // verbs of the API that are no more share their code
	err = k.Run(&out{w: stdout, err: stderr, json: c.JSON}, &client{server: c.Server, tokenFile: c.TokenFile, ca: c.Roots}, verb)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "tillward: %v\n", err)
	if errors.As(err, new(usage)) {
		return 2
	}
	return 1
}
