// Package simulator is a fleet on a desk: the fleet service, and tills that run
// the real agent, each in a process of its own, on a software TPM, an emulated
// printer, a virtual card reader and a line that can be cut.
//
// What it shows is what the product does: nothing of the agent or the service
// is replaced. It is imported by nothing and never ships.
//
// It exports more names than other rooms because scenarios and tests are
// written with them.
package simulator

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/simulator/emulator"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// Options say what a World consists of.
type Options struct {
	Dir      string // everything lies below it
	Bin      string // folder with tillward-agent, tillward and tillward-provision
	Next     string // the agent that updates bring
	UpdateTo string // its version; empty: no update
	Tills    int
	ByClaim  bool // a till joins only when somebody has claimed it
	Seed     uint64
	PortBase int           // first of the service's ports; 0: free ones
	Unjudged string        // what a model without reference values earns; empty: quarantined
	EKRoots  []string      // PEM files of authorities whose TPMs are of tier A
	Signers  []Signer      // who signs releases; none: one key for each role, in one hand
	Devices  string        // more [[device]] of every till, as in the agent's file
	Counter  bool          // a till has a drawer, a scanner and print sockets as well, see Till.Counter
	Day      time.Duration // how long the scripted day lasts
	Receipts string        // folder for a picture of each receipt; empty: none
	Apart    bool          // the service runs in a process of its own
	Images   bool          // its tills are whole machines, made elsewhere: nothing is published of a boot that is played, and there is no pcscd
	Store    string        // URL of the service's database, for its role; empty: SQLite
	Pace     Pace
	Out      io.Writer // what a person reads
	Log      *slog.Logger
}

// World is a fleet on a desk: the service, and tills with all they need.
type World struct {
	Tills    []*Till
	Operator *Operator

	opt     Options
	farm    *tpmfarm.Farm
	readers readers
	service *service
	root    string             // TUF root of the image
	vendor  ed25519.PrivateKey // signs manifests
}

// Open starts the service and makes the tills, without booting them. When it
// returns an error nothing is left running.
func Open(ctx context.Context, opt Options) (_ *World, err error) {
	if opt.Dir, err = filepath.Abs(opt.Dir); err != nil {
		return nil, fmt.Errorf("simulator folder: %w", err)
	}
	// Applications run as nobody, below this folder.
	if err = os.MkdirAll(opt.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("simulator folder: %w", err)
	}
	if err = os.Chmod(opt.Dir, 0o711); err != nil { // #nosec G302 -- a folder to pass through
		return nil, fmt.Errorf("simulator folder: %w", err)
	}
	w := &World{opt: opt}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.farm, err = tpmfarm.Open(ctx, filepath.Join(opt.Dir, "tpm")); err != nil {
		return nil, err
	}
	if err = w.makeRelease(ctx); err != nil {
		return nil, err
	}
	if err = w.foundVendor(); err != nil {
		return nil, err
	}
	if err = w.openService(ctx); err != nil {
		return nil, err
	}
	w.root = filepath.Join(w.repo(), "metadata", "1.root.json")
	if opt.Images {
		return w, nil
	}
	if err = w.publishBoot(ctx); err != nil {
		return nil, err
	}
	if w.readers, err = openReaders(ctx, filepath.Join(opt.Dir, "pcscd"), opt.Tills, opt.Out); err != nil {
		return nil, err
	}
	for i := range opt.Tills {
		t, err := w.makeTill(ctx, i)
		if t != nil {
			w.Tills = append(w.Tills, t)
		}
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *World) openService(ctx context.Context) error {
	cfg := cloud.DefaultConfig()
	cfg.DataDir = filepath.Join(w.opt.Dir, "service")
	cfg.Tenant = "demo"
	cfg.Device.Names = []string{"localhost", "127.0.0.1"}
	cfg.Operator.Plain = true
	cfg.Enrol.VirtualEKRoots, cfg.Enrol.EKRoots = []string{w.farm.CA()}, w.opt.EKRoots
	cfg.Enrol.AutoClaim = !w.opt.ByClaim
	cfg.Attest.Every, cfg.Attest.Unjudged = cloud.Duration{Duration: 30 * time.Second}, cmp.Or(w.opt.Unjudged, "quarantined")
	// What a security team would read, for whoever wants to see it.
	cfg.Export = []cloud.ExportConfig{{Name: "siem", Kind: "file", Format: "cef", Path: filepath.Join(cfg.DataDir, "siem.cef")}}
	cfg.Enrol.Vendors = []cloud.VendorConfig{{Name: simVendor, Key: w.vendorKey()}}
	port := func(i int) string {
		if w.opt.PortBase == 0 {
			return "127.0.0.1:0"
		}
		return "127.0.0.1:" + strconv.Itoa(w.opt.PortBase+i)
	}
	cfg.Operator.Listen, cfg.Device.HTTPS, cfg.Device.MQTT, cfg.Metrics.Listen = port(0), port(1), port(2), port(3)
	cfg.Store.URL = w.opt.Store
	w.service = &service{cfg: cfg, log: w.opt.Log}
	if w.opt.Apart {
		log, err := logFile(filepath.Join(w.opt.Dir, "service.log"))
		if err != nil {
			return err
		}
		w.service.apart = &apart{bin: filepath.Join(w.opt.Bin, "tillward"), log: log}
	}
	if err := w.service.start(ctx); err != nil {
		return err
	}
	var err error
	w.Operator, err = w.service.operator()
	return err
}

// makeTill prepares till i; it is returned even with an error, to be closed.
func (w *World) makeTill(ctx context.Context, i int) (*Till, error) {
	t := &Till{
		Name: fmt.Sprintf("till-%d", i+1), agent: filepath.Join(w.opt.Bin, "tillward-agent"), service: w.service,
		rootTUF: w.root, sealKey: w.sealPublic(), pace: w.opt.Pace, day: w.opt.Day, firmware: tpmfarm.Default(FirstOS),
	}
	t.dir = filepath.Join(w.opt.Dir, t.Name)
	if err := os.Mkdir(t.dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) { // #nosec G301 -- as above
		return t, fmt.Errorf("%s: %w", t.Name, err)
	}
	t.disk, t.check = t.dir, "30s"
	if err := os.MkdirAll(filepath.Join(t.dir, "state"), 0o700); err != nil {
		return t, fmt.Errorf("%s: %w", t.Name, err)
	}
	var err error
	if t.log, err = logFile(filepath.Join(t.dir, "agent.log")); err != nil {
		return t, err
	}
	if t.tpm, err = w.farm.Start(ctx, filepath.Join(t.dir, "tpm")); err != nil {
		return t, fmt.Errorf("%s: %w", t.Name, err)
	}
	if err = t.firmware.Boot(t.tpm, t.bootLog()); err != nil {
		return t, fmt.Errorf("%s: %w", t.Name, err)
	}
	if t.printer, err = emulator.NewPrinter("127.0.0.1:0"); err != nil {
		return t, fmt.Errorf("%s: %w", t.Name, err)
	}
	if w.opt.Receipts != "" {
		if err = t.printer.SaveReceipts(filepath.Join(w.opt.Receipts, t.Name)); err != nil {
			return t, fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	t.reader, t.readers, t.more = w.readers.Reader(i), w.readers, w.opt.Devices
	if w.opt.Counter {
		if err = t.furnish(); err != nil {
			return t, err
		}
	}
	if t.mqtt, err = NewLine(ctx, "127.0.0.1:0", w.service.cfg.Device.MQTT); err != nil {
		return t, err
	}
	if t.https, err = NewLine(ctx, "127.0.0.1:0", w.service.cfg.Device.HTTPS); err != nil {
		return t, err
	}
	return t, t.configure()
}

// provision runs tillward-provision on the release keys and repository of this
// world, as the release team would on its offline machine.
func (w *World) provision(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(w.opt.Bin, "tillward-provision"), args...) // #nosec G204 -- our own tool
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tillward-provision %s: %w: %s", args[0], err, out)
	}
	return nil
}

func (w *World) repo() string { return filepath.Join(w.opt.Dir, "release", "repo") }
func (w *World) keys() string { return filepath.Join(w.opt.Dir, "release", "keys") }

// cli runs the operator's command line and decodes what it prints with --json.
func (w *World) cli(ctx context.Context, out any, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(w.opt.Bin, "tillward"), append(args, "--json")...) // #nosec G204 -- our own tool
	cmd.Env = append(os.Environ(), "TILLWARD_SERVER="+w.service.url(), "TILLWARD_TOKEN_FILE="+w.service.tokenFile())
	b, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("tillward %s: %w", args[0], err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("tillward %s: %w", args[0], err)
	}
	return nil
}

// Close ends agents, peripherals, TPMs and the service. It is safe to call on
// a World that is only half open.
func (w *World) Close() {
	for _, t := range w.Tills {
		t.close()
	}
	if w.readers != nil {
		w.readers.Stop()
	}
	if w.service != nil {
		if err := w.service.end(); err != nil {
			fmt.Fprintf(w.opt.Out, "the fleet service ended with: %v\n", err)
		}
	}
	if w.farm != nil {
		w.farm.Close()
	}
}
