// Package chaos is a fleet on the worst day of its life: real agents, each in a
// process of its own on a software TPM, and the real fleet service are killed,
// cut off, starved of disk, lied to by clocks and TPMs and sent everything
// twice, for minutes, by a plan that a seed draws. Then all heals, and what the
// tills recorded is compared with what the service stores.
//
// It owns the faults and a book of its own: each agent tells it, from outside
// the agent's books, what goes into them and what lies there. It promises that
// nothing it judges by comes from the service or from an agent's spool, that
// each fault it counts has happened, and that what is wrong is named row by row.
// A message that a kill came upon between its beginning and its acknowledgement
// may be stored or not; everything else is stored once, in order, and as it was
// recorded.
package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/simulator"
	"github.com/tillward/tillward/simulator/postgres"
)

// Options say how long and how bad the day is.
type Options struct {
	simulator.Options
	For      time.Duration // the faults; what begins and ends the run comes beside it
	Faults   int           // of tills; 0: as many as a till takes, 45 in ten minutes
	Postgres bool          // the service keeps what it knows in PostgreSQL, which is killed too
	Report   string        // file for the Report; "-" prints it, empty: none
}

const (
	joinWithin = 5 * time.Minute // all tills, a desk may be busy
	healWithin = 6 * time.Minute // until everything is handed over
)

// harness is a run.
type harness struct {
	opt     Options
	w       *simulator.World
	version string
	tills   []*till
	socks   string // folder of the tills' sockets
	store   string // address of the service's database
	cluster *postgres.Cluster
	began   time.Time
	report  *Report

	mu     sync.Mutex
	counts map[string]int            // of faults, by kind
	detail map[string]map[string]int // by kind
}

// till is one till as the harness sees it.
type till struct {
	*simulator.Till
	h      *harness
	n      int
	device string
	book   *ledger
	disk   *disk
	chip   *bridge
	ln     net.Listener
	shed   uint64 // messages, by the till's own count
	wg     sync.WaitGroup

	box sync.Mutex // held while the power goes and comes

	mu       sync.Mutex
	conn     net.Conn // of the agent that runs
	orders   orders
	starts   int
	cuts     chan struct{} // one was made in the middle of a PUBLISH
	healing  []healing
	slowest  recovery
	commands map[string]bool // that the service took
}

// healing is a fault that has ended, and after which nothing was delivered yet.
type healing struct {
	kind string
	at   time.Time
}

// Run plays the day and reports. It returns an error when anything is not as it
// must be.
func Run(ctx context.Context, opt Options) (err error) {
	if opt.Faults == 0 {
		opt.Faults = max(len(kinds), int(45*float64(opt.Tills)*opt.For.Minutes()/10))
	}
	h := &harness{opt: opt, counts: make(map[string]int), detail: make(map[string]map[string]int), report: &Report{Seed: opt.Seed}}
	if h.socks, err = os.MkdirTemp("", "tillward-chaos-"); err != nil {
		return fmt.Errorf("chaos: %w", err)
	}
	defer os.RemoveAll(h.socks)
	defer h.close()
	if err := h.open(ctx); err != nil {
		return fmt.Errorf("chaos: %w", err)
	}
	if err := h.play(ctx); err != nil {
		return fmt.Errorf("chaos: %w", err)
	}
	if err := h.settle(ctx); err != nil {
		h.problem("%v", err)
	}
	if err := h.judge(ctx); err != nil {
		return fmt.Errorf("chaos: %w", err)
	}
	h.report.print(opt.Out)
	if err := simulator.WriteReport(opt.Out, opt.Report, h.report); err != nil {
		return err
	}
	if !h.report.OK {
		return fmt.Errorf("chaos: %d problems; the agents' logs are below %s", len(h.report.Problems), opt.Dir)
	}
	return nil
}

func (h *harness) say(format string, args ...any) {
	fmt.Fprintf(h.opt.Out, "%6.1fs  %s\n", time.Since(h.began).Seconds(), fmt.Sprintf(format, args...))
}

func (h *harness) problem(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report.Problems = append(h.report.Problems, fmt.Sprintf(format, args...))
}

// open starts the service and the tills, and waits until all are trusted.
func (h *harness) open(ctx context.Context) error {
	h.began = time.Now()
	h.say("starting the fleet service and %d tills in %s", h.opt.Tills, h.opt.Dir)
	out, err := exec.CommandContext(ctx, filepath.Join(h.opt.Bin, "tillward-agent"), "-version").Output() // #nosec G204 -- our own binary
	if err != nil {
		return fmt.Errorf("version of the agent: %w; make build makes it", err)
	}
	h.version = strings.TrimSpace(string(out))
	o := h.opt.Options
	o.Apart, o.UpdateTo, o.PortBase = true, "", 0
	if h.opt.Postgres {
		if o.Store, err = h.openPostgres(ctx); err != nil {
			return err
		}
	}
	if h.w, err = simulator.Open(ctx, o); err != nil {
		return err
	}
	if !h.opt.Postgres {
		h.store = sqlite(filepath.Join(h.w.Data(), "tillward.db"))
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i, t := range h.w.Tills {
		x := &till{Till: t, h: h, n: i, book: newLedger(), cuts: make(chan struct{}, 1), commands: make(map[string]bool)}
		h.tills = append(h.tills, x)
		if err := x.furnish(self); err != nil {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
		t.Boot(ctx)
	}
	join, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	return h.w.Until(join, "all tills are attested", func(ctx context.Context) (bool, error) {
		devices, err := h.devices(ctx)
		ready := 0
		for _, x := range h.tills {
			if d := devices[x.Name]; d.Trust == "attested" && d.Online && d.Samples > 0 {
				x.device = d.ID
				ready++
			}
		}
		return ready == len(h.tills), err
	})
}

// openPostgres starts a server with a database for the service, and returns its
// address.
func (h *harness) openPostgres(ctx context.Context) (string, error) {
	dir := filepath.Join(h.socks, "pg")
	if err := os.Chmod(h.socks, 0o711); err != nil { // #nosec G302 -- the server is another user
		return "", err
	}
	var err error
	if h.cluster, err = postgres.Start(ctx, dir, false); err != nil {
		return "", err
	}
	h.store = h.cluster.URL("postgres", "postgres") + "&search_path=tillward"
	out, err := exec.CommandContext(ctx, filepath.Join(h.opt.Bin, "tillward"), "store", "setup", "--url", h.store).CombinedOutput() // #nosec G204 -- our own binary
	if err != nil {
		return "", fmt.Errorf("set the database up: %w: %s", err, out)
	}
	return h.cluster.URL("tillward_service", "postgres"), nil
}

// device is what the harness needs of the API's.
type device struct {
	ID      string `json:"id"`
	Serial  string `json:"serial"`
	Trust   string `json:"trust"`
	Online  bool   `json:"online"`
	Samples uint64 `json:"samples"`
}

func (h *harness) devices(ctx context.Context) (map[string]device, error) {
	var page struct {
		Items []device `json:"items"`
	}
	err := h.w.Operator.Get(ctx, "/v1/devices?limit=1000", &page)
	out := make(map[string]device)
	for _, d := range page.Items {
		out[d.Serial] = d
	}
	return out, err
}

// furnish gives the till its disk, what stands before its TPM, and an ear.
func (x *till) furnish(self string) (err error) {
	if x.disk, err = newDisk(filepath.Join(x.Dir(), "disk")); err != nil {
		return err
	}
	if err := x.OnDisk(x.disk.dir); err != nil {
		return err
	}
	place := filepath.Join(x.h.socks, fmt.Sprint(x.n+1))
	err = x.Behind(func(socket string) (string, error) {
		if x.chip, err = newBridge(place, socket); err != nil {
			return "", err
		}
		return x.chip.socket(), nil
	})
	if err != nil {
		return err
	}
	socket := filepath.Join(place, "w")
	if x.ln, err = net.Listen("unix", socket); err != nil {
		return err
	}
	x.wg.Go(func() {
		for {
			c, err := x.ln.Accept()
			if err != nil {
				return
			}
			x.wg.Go(func() { x.listen(c) })
		}
	})
	x.Under(self, asTill, socket, x.h.version)
	return nil
}

// listen takes down what an agent tells, until it has ended.
func (x *till) listen(c net.Conn) {
	defer c.Close()
	x.mu.Lock()
	x.conn = c
	x.starts++
	x.mu.Unlock()
	x.order(func(*orders) {})
	s := &sitting{l: x.book}
	defer s.end()
	in := bufio.NewScanner(c)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			continue // a kill came in the middle of it
		}
		switch l.Kind {
		case saidPut, saidKept:
			x.book.tell(l.record, l.Kind == saidKept, time.Now())
			if l.Kind == saidKept {
				s.kept()
			}
		case saidShed:
			x.book.giveUp(l.record)
			x.h.count(diskFull, 0, "messages given up", 1)
		case saidRefused:
			s.refuse(l.record)
			x.h.count(diskFull, 0, "messages had no room", 1)
		case saidTwice:
			x.h.count(duplicates, 0, l.Name, 1)
		case saidCut:
			x.order(func(o *orders) { o.Cut = false })
			select {
			case x.cuts <- struct{}{}:
			default:
			}
		case saidDelivered:
			x.recovered()
		}
	}
}

// order changes what the till is told, now and whenever its agent starts.
func (x *till) order(change func(*orders)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(&x.orders)
	if x.conn == nil {
		return
	}
	b, err := json.Marshal(x.orders)
	if err == nil {
		_, _ = x.conn.Write(append(b, '\n')) // it may be dead; the next one is told
	}
}

// healed notes that a fault has ended; the next delivery says how long it took
// to get over it.
func (x *till) healed(kind string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.healing = append(x.healing, healing{kind, time.Now()})
}

func (x *till) recovered() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.healing {
		if took := time.Since(f.at).Seconds(); took > x.slowest.Seconds {
			x.slowest = recovery{x.Name, f.kind, took}
		}
	}
	x.healing = x.healing[:0]
}

// count notes that a fault has happened, or something that belongs to one.
func (h *harness) count(kind string, n int, detail string, of int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[kind] += n
	if detail != "" {
		if h.detail[kind] == nil {
			h.detail[kind] = make(map[string]int)
		}
		h.detail[kind][detail] += of
	}
}

func (h *harness) total() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.counts {
		n += c
	}
	return n
}

// close ends what the run has started.
func (h *harness) close() {
	if h.w != nil {
		h.w.Close()
	}
	if h.cluster != nil {
		h.cluster.Kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, x := range h.tills {
		if x.ln != nil {
			_ = x.ln.Close()
		}
		if x.chip != nil {
			x.chip.close()
		}
		if x.disk != nil {
			if err := x.disk.close(ctx); err != nil {
				h.say("%s: disk: %v", x.Name, err)
			}
		}
		x.wg.Wait()
	}
}

// settle waits until everything is handed over, and ends the tills.
func (h *harness) settle(ctx context.Context) error {
	h.say("all heals; waiting until everything is handed over")
	ctx, cancel := context.WithTimeout(ctx, healWithin)
	defer cancel()
	healed := time.Now()
	err := h.w.Until(ctx, "what was recorded is stored", func(ctx context.Context) (bool, error) {
		missing, err := h.missing(ctx, healed)
		if err != nil || len(missing) == 0 {
			return err == nil, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			h.say("not stored in time: %s", strings.Join(missing[:min(3, len(missing))], "; "))
		}
		return false, nil
	})
	// Told to end, a till hands over what it can in a moment; one that cannot is
	// switched on once more.
	left := slices.Clone(h.tills)
	for round := 0; len(left) > 0 && round < 5 && ctx.Err() == nil; round++ {
		var still []*till
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, x := range left {
			all.Go(func() {
				if round > 0 {
					off := time.Now()
					x.Boot(ctx)
					_ = h.w.Until(ctx, x.Name+" hands over", func(ctx context.Context) (bool, error) {
						missing, err := h.missing(ctx, off, x)
						return len(missing) == 0, err
					})
				}
				x.Stop()
				n, shed, e := x.Queue(ctx)
				x.shed = shed
				if n > 0 || e != nil {
					mu.Lock()
					defer mu.Unlock()
					still = append(still, x)
					err = errors.Join(err, e)
				}
			})
		}
		all.Wait()
		left = still
	}
	for _, x := range left {
		err = errors.Join(err, fmt.Errorf("%s still has something to hand over", x.Name))
	}
	return err
}

// missing names what tills recorded before a moment and the service does not
// store yet.
func (h *harness) missing(ctx context.Context, before time.Time, of ...*till) (out []string, err error) {
	if len(of) == 0 {
		of = h.tills
	}
	all, err := readStore(ctx, h.store)
	if err != nil {
		return nil, err
	}
	for _, x := range of {
		have := make(map[key]bool)
		if s := all[x.device]; s != nil {
			for _, r := range s.rows {
				have[r.key] = true
				if r.Class == result && open(r) {
					out = append(out, x.Name+": the end of command "+r.Boot)
				}
			}
			for _, l := range s.trail {
				have[key{Class: audit, Seq: l.seq}] = true
			}
		}
		for _, k := range x.book.waits(have, before) {
			out = append(out, x.Name+": "+k.String())
		}
	}
	return out, nil
}
