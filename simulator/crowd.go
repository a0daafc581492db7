package simulator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/simulator/swarm"
)

// CrowdOptions say what fleet a staged rollout is tried on.
type CrowdOptions struct {
	Bin, Dir string
	Devices  int
	Offline  float64 // share that is not connected
	Minority float64 // share of the fleet that cannot run the release; all of one model
	Of       float64 // share of the fleet that this model has; the same as Minority: every box of it is bad
	Sample   int     // ends before a share is judged; 0: the product's own default
	Bad      float64 // percent that may end badly; 0: as above
	Away     int     // seconds of silence after which no wave waits for a device; 0: 30
	Limit    int     // devices of the bad model that may be hit; 0: 2 % of the fleet
	Report   string  // file for the CrowdReport; "-" prints it, empty: none
	Out      io.Writer
	Say      io.Writer // the service's own words
}

// CrowdReport is what a staged rollout did to a fleet of which a minority
// cannot run the release.
type CrowdReport struct {
	Devices int          `json:"devices"`
	Online  int          `json:"online"`
	Models  []CrowdModel `json:"models"`
	Hold    string       `json:"hold"` // why the bad model was held, in the service's words
	State   string       `json:"state"`
	Reason  string       `json:"reason"`
	Late    int          `json:"late"`       // came back after the end
	Joined  int          `json:"joined"`     // and got the release then
	Limit   int          `json:"limit"`      // devices of the bad model that may be hit
	Hit     int          `json:"hit"`        // that were offered the release
	Seconds float64      `json:"seconds"`    // of the rollout
	Service float64      `json:"service_s"`  // CPU seconds of the service meanwhile
	Reports int64        `json:"reports"`    // of devices
	Preview string       `json:"preview"`    // the dry run's sentence
	OK      bool         `json:"ok"`         // held in time, and complete elsewhere
	Why     []string     `json:"why_not_ok"` // empty when ok
}

// CrowdModel is what happened to the devices of one model.
type CrowdModel struct {
	Model   string `json:"model"`
	Devices int    `json:"devices"`
	Online  int    `json:"online"`
	Offered int    `json:"offered"` // as the devices count
	Good    int    `json:"good"`    // as the service counts, as what follows
	Bad     int    `json:"bad"`
	Open    int    `json:"open"` // silent or held
}

// badModel is the model that a minority is of.
const badModel = "POS-X"

// crowd is a fleet on the wire that takes a rollout.
type crowd struct {
	storm
	o        CrowdOptions
	op       *Operator
	token    string // file
	offered  []atomic.Bool
	sessions []atomic.Pointer[swarm.Session]
	heads    []wire.Head
	reports  atomic.Int64
	wg       sync.WaitGroup
}

// every says whether the i-th of many is in a share, spread evenly.
func every(i int, share float64) bool {
	return int(float64(i+1)*share) > int(float64(i)*share)
}

func (c *crowd) model(i int) string {
	if every(i, c.o.Of) {
		return badModel
	}
	return [...]string{"POS-A", "POS-B", "POS-C"}[i%3]
}

// bad says whether device i cannot run the release: an even share of its model.
func (c *crowd) bad(i int) bool {
	if c.model(i) != badModel {
		return false
	}
	return every(int(float64(i+1)*c.o.Of)-1, c.o.Minority/c.o.Of)
}

// online is drawn apart from the model: 2654435761 is Knuth's multiplier.
func (c *crowd) online(i int) bool {
	return float64(uint32(i)*2654435761)/(1<<32) >= c.o.Offline // #nosec G115 -- a hash of a small number
}

// Crowd brings a release to a fleet on the wire, in waves, and reports what
// became of it. It returns an error when that is not what the product promises.
func Crowd(ctx context.Context, o CrowdOptions) (CrowdReport, error) {
	r, err := playCrowd(ctx, o)
	if err != nil {
		return r, err
	}
	if err := WriteReport(o.Out, o.Report, r); err != nil {
		return r, err
	}
	if !r.OK {
		return r, errors.New(strings.Join(r.Why, "; "))
	}
	return r, nil
}

func playCrowd(ctx context.Context, o CrowdOptions) (r CrowdReport, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &crowd{storm: storm{say: o.Say}, o: o}
	maker, err := swarm.NewAuthority(nil)
	if err != nil {
		return r, err
	}
	done, err := c.serve(ctx, BenchOptions{Bin: o.Bin, Dir: o.Dir, Say: o.Say, Storm: o.Devices}, maker)
	if err != nil {
		return r, err
	}
	defer func() {
		cancel()
		c.wg.Wait()
		err = errors.Join(err, <-done)
	}()
	for i := range o.Devices {
		c.devices = append(c.devices, swarm.New("crowd", uint64(i), maker, nil)) // #nosec G115 -- counts up from 0
	}
	c.members = make([]enrol.Result, o.Devices)
	c.offered, c.sessions, c.heads = make([]atomic.Bool, o.Devices), make([]atomic.Pointer[swarm.Session], o.Devices), make([]wire.Head, o.Devices)
	if err := c.prepare(ctx); err != nil {
		return r, err
	}
	return c.roll(ctx)
}

// all does something for every device that fits, and fails when one cannot.
func (c *crowd) all(ctx context.Context, what string, fits func(int) bool, do func(context.Context, int) error) error {
	refused, _, first := c.each(ctx, what, func(ctx context.Context, i int) error {
		if !fits(i) {
			return nil
		}
		return do(ctx, i)
	})
	if refused > 0 {
		return fmt.Errorf("%s: %d devices could not; one of them: %w", what, refused, first)
	}
	return ctx.Err()
}

// prepare enrols the fleet, puts it into sites of five and publishes a release.
func (c *crowd) prepare(ctx context.Context) error {
	everybody := func(int) bool { return true }
	err := c.all(ctx, "enrol", everybody, func(ctx context.Context, i int) (err error) {
		e := &enrol.Client{URL: c.enrolAt, Roots: c.conf.RootCAs, ServerName: "localhost", Model: c.model(i), Serial: fmt.Sprint("C-", i), TPM: c.devices[i]}
		c.members[i], err = e.Enrol(ctx)
		return err
	})
	if err != nil {
		return err
	}
	dir := filepath.Join(c.o.Dir, "storm", "service")
	c.token = filepath.Join(dir, "admin.token")
	b, err := os.ReadFile(c.token)
	if err != nil {
		return fmt.Errorf("read the operator token: %w", err)
	}
	c.op = &Operator{base: c.api, token: strings.TrimSpace(string(b)), client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: stormAtOnce}}}
	err = c.all(ctx, "put into sites", everybody, func(ctx context.Context, i int) error {
		return c.op.Patch(ctx, "/v1/devices/"+c.members[i].Device, map[string]string{"site": fmt.Sprintf("store-%04d", i/5)})
	})
	if err != nil {
		return err
	}
	if err := c.release(ctx, "2.0.0"); err != nil {
		return err
	}
	return c.all(ctx, "connect", c.online, c.connect)
}

// release makes and publishes an agent that nobody downloads: devices on the
// wire have nothing to run it on.
func (c *crowd) release(ctx context.Context, version string) error {
	repo, keys := filepath.Join(c.o.Dir, "repo"), filepath.Join(c.o.Dir, "keys")
	for _, args := range [][]string{
		{"tillward-provision", "repo", "init", "--dir", repo, "--keys", keys},
		{"tillward-provision", "release", "add", "--repo", repo, "--keys", keys, "--binary", filepath.Join(c.o.Bin, "tillward-agent"), "--version", version},
		{"tillward", "release", "publish", "--repo", repo},
	} {
		cmd := exec.CommandContext(ctx, filepath.Join(c.o.Bin, args[0]), args[1:]...) // #nosec G204 -- our own binaries
		cmd.Env = append(os.Environ(), "TILLWARD_SERVER="+c.api, "TILLWARD_TOKEN_FILE="+c.token)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args[:3], " "), err, out)
		}
	}
	return nil
}

// connect brings device i to where offers reach it, and lets it answer them.
func (c *crowd) connect(ctx context.Context, i int) error {
	open, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s, err := c.devices[i].Connect(open, c.broker, c.conf, c.members[i])
	if err != nil {
		return err
	}
	if err := c.begin(open, i, s); err != nil {
		return errors.Join(err, s.Close())
	}
	c.sessions[i].Store(s)
	c.wg.Go(func() { c.live(ctx, i, s) })
	return nil
}

// begin proves the device and says what it runs.
func (c *crowd) begin(ctx context.Context, i int, s *swarm.Session) error {
	e, err := c.devices[i].Evidence(s.Exporter, 1, time.Now().UnixMilli())
	if err != nil {
		return err
	}
	v, err := s.Prove(ctx, e)
	if err == nil && v.Verdict != "attested" {
		err = fmt.Errorf("%w: verdict %q: %v", errJudged, v.Verdict, v.Reasons)
	}
	if err != nil {
		return err
	}
	if err := s.Listen(ctx); err != nil {
		return err
	}
	c.heads[i] = wire.Head{V: wire.Version}
	if _, err := rand.Read(c.heads[i].Boot[:]); err != nil {
		return err
	}
	return c.state(ctx, i, s, "1.0.0")
}

func (c *crowd) head(i int) wire.Head {
	h := &c.heads[i]
	h.Seq++
	h.Sent = time.Now().UnixMilli()
	return *h
}

// state reports boot truth.
func (c *crowd) state(ctx context.Context, i int, s *swarm.Session, version string) error {
	b, err := wire.Encode(&wire.StateReport{
		Head: c.head(i), AgentVersion: version, Slot: "a", StartedAt: time.Now().UnixMilli(), Model: c.model(i), FreeMiB: 4096, Supply: "mains",
		Installed: []wire.Installed{{Component: "agent", Version: version, Slot: "a"}},
	})
	if err != nil {
		return err
	}
	return s.Publish(ctx, wire.State, b)
}

// live answers offers until the connection ends.
func (c *crowd) live(ctx context.Context, i int, s *swarm.Session) {
	defer s.Close()
	ended := map[string]bool{}
	for {
		channel, payload, err := s.Next(ctx)
		if err != nil {
			return
		}
		if channel != wire.DownOffer {
			continue
		}
		order, err := wire.Decode[wire.Order](payload)
		if err != nil {
			return
		}
		offer, err := wire.Decode[wire.OfferOrder](order.Payload)
		if err != nil {
			return
		}
		c.offered[i].Store(true)
		if key := fmt.Sprint(offer.Execution, offer.Attempt); !ended[key] {
			ended[key] = true
			if c.take(ctx, i, s, offer) != nil {
				return
			}
		}
	}
}

// take plays an update: four reports and the truth.
func (c *crowd) take(ctx context.Context, i int, s *swarm.Session, offer wire.OfferOrder) error {
	end, reason, runs := "SUCCEEDED", "", offer.Version
	if c.bad(i) {
		end, reason, runs = "ROLLED_BACK", "unhealthy", "1.0.0"
	}
	for n, state := range []string{"DOWNLOADING", "INSTALLING", "REBOOTING", end} {
		r := wire.ResultReport{
			Head: c.head(i), Kind: wire.OrderOffer, ID: offer.Execution, State: state, From: "1.0.0", To: offer.Version, Attempt: offer.Attempt, Step: uint32(n + 1), // #nosec G115 -- four
		}
		if state == end {
			r.Reason = reason
			if err := c.state(ctx, i, s, runs); err != nil {
				return err
			}
			r.Head = c.head(i)
		}
		b, err := wire.Encode(&r)
		if err != nil {
			return err
		}
		if err := s.Publish(ctx, wire.Result, b); err != nil {
			return err
		}
		c.reports.Add(1)
	}
	return nil
}

// ping keeps every connection open until ctx ends.
func (c *crowd) ping(ctx context.Context) {
	for pause(ctx, 20*time.Second) == nil {
		for i := range c.sessions {
			if s := c.sessions[i].Load(); s != nil {
				_ = s.Ping() // who is gone is seen elsewhere
			}
		}
	}
}
