package star

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

// CloudPRNT is the driver "cloudprnt": one network printer that comes every
// few seconds, tells how it is, and asks whether there is something to print
// [Star CloudPRNT Protocol Guide 2.4.0, version HTTP].
//
// Its address is the IP address and port to listen on, of the network that the
// printers are in and no other; the printer's server URL is http://ADDRESS/.
// One device has one listener. There is no TLS: keep that network to itself.
//
// Options: mac (the printer's own; every other is refused and counted); user
// and password_file, or token_file alone, which any user name goes with - the
// printer then has to log on (HTTP basic); poll = "5s", the printer's polling
// time, after three of which it is off-line; media, what jobs are written in:
// application/vnd.star.line (else application/vnd.star.starprnt, text/plain);
// near_end, roll_length_m and feed_pitch_um as for "star".
//
// A job is offered to the printer until it says what became of it, and is kept
// in memory no longer. What a scanner or a keyboard at the printer reads is
// counted and dropped unread. In claim mode observe nothing is ever offered.
type CloudPRNT struct{}

// Name implements hal.Driver.
func (CloudPRNT) Name() string { return "cloudprnt" }

const (
	lineMedia  = "application/vnd.star.line"
	missed     = 3                // polls, until the printer is gone
	grace      = 2 * time.Second  // for a poll that is on its way
	printing   = 60 * time.Second // that some firmware does not poll while it prints
	maxJob     = 1 << 20
	maxBody    = 64 << 10
	maxClients = 8
	askAtOnce  = 200                    // requests that are answered without a pause,
	askOn      = 100                    // and so many a second from then on
	calmFor    = 100 * time.Millisecond // of each that is too many
	maxOfHost  = 4                      // of those, so that no stranger keeps the printer out
)

// Open implements hal.Driver. It fails when it cannot read what the printer has
// to log on with, or cannot listen; the printer need not be there.
func (CloudPRNT) Open(ctx context.Context, cfg hal.Config) (hal.Device, error) {
	c, err := configureCloud(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.unlock(); err != nil {
		return nil, &hal.Error{Code: "E_FAILURE", Op: "open " + cfg.ID, Err: err}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, &hal.Error{Code: "E_FAILURE", Op: "open " + cfg.ID, Err: err}
	}
	c.begin(l)
	return c, nil
}

// Check implements hal.Checker.
func (CloudPRNT) Check(cfg hal.Config) ([]hal.Info, error) {
	c, err := configureCloud(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{c.info}, nil
}

func configureCloud(cfg hal.Config) (*cloud, error) {
	o := hal.ReadOptions(cfg, "mac", "user", "password_file", "token_file", "poll", "media", "near_end", "roll_length_m", "feed_pitch_um")
	mac, err := net.ParseMAC(cfg.Options["mac"])
	if err != nil || len(mac) != 6 {
		o.Refuse("mac = %q: write the printer's, as its self-test prints it, e.g. 00:11:62:0a:0b:0c", cfg.Options["mac"])
	}
	if at, err := netip.ParseAddrPort(cfg.Address); err != nil || at.Addr().IsUnspecified() {
		o.Refuse("address %q: write the box's own IP address in the printers' network, and a port: 192.0.2.1:8080", cfg.Address)
	}
	c := &cloud{
		at: cfg.Address, mac: mac.String(), media: o.Word("media", lineMedia, lineMedia, "application/vnd.star.starprnt", "text/plain"),
		nearEnd: o.Truth("near_end", true), every: o.Duration("poll", 5*time.Second, 20*time.Millisecond, 10*time.Minute),
		turn: make(chan struct{}, 1), clients: make(chan struct{}, maxClients),
		track: hal.NewTracker(hal.POSPrinter, append(counters, "M_UnknownPrinterCount", "M_RefusedCount", "M_InputDroppedCount")...),
		info: hal.Info{
			ID: cfg.ID, Category: hal.POSPrinter, Driver: "cloudprnt", Maker: "Star", Key: "cloudprnt:" + mac.String(), Interface: "Ethernet",
			Claim: o.Claim("own, or observe to offer it no jobs", hal.Own, hal.Observe), RollLines: o.RollLines(),
			Caps: []string{"CapCoverSensor", "CapPowerReporting", "CapRecEmptySensor", "CapRecNearEndSensor", "CapRecPapercut", "CapStatisticsReporting"},
		},
	}
	_, c.told = cfg.Options["poll"]
	if !c.nearEnd {
		c.info.Caps = append(c.info.Caps[:3], c.info.Caps[4:]...)
	}
	user, named := cfg.Options["user"]
	file, password := cfg.Options["password_file"]
	token, tokened := cfg.Options["token_file"]
	switch c.locked = named || password || tokened; {
	case tokened && (named || password):
		o.Refuse("token_file goes with neither user nor password_file")
	case tokened:
		c.secret, c.anyone = token, true
	case named != password || named && user == "":
		o.Refuse("user and password_file go together")
	default:
		c.secret, c.user = file, sha256.Sum256([]byte(user))
	}
	if password && file == "" || tokened && token == "" {
		o.Refuse("password_file or token_file = \"\": name the file")
	}
	return c, o.Err()
}

// unlock reads what the printer has to log on with. What is configured and
// cannot be read is an error, so that the door is never open by mistake.
func (c *cloud) unlock() error {
	if !c.locked {
		return nil
	}
	b, err := os.ReadFile(c.secret) // #nosec G304 -- the configuration names it
	if err != nil {
		return err
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return fmt.Errorf("%s is empty", c.secret)
	}
	c.password = sha256.Sum256([]byte(secret))
	return nil
}

// cloud is an open device of the driver "cloudprnt".
type cloud struct {
	at, mac, media string
	nearEnd        bool
	told           bool   // the polling time is configured
	locked, anyone bool   // it has to log on; with any user name
	secret         string // file with what it logs on with
	user, password [32]byte

	track   *hal.Tracker
	server  *http.Server
	turn    chan struct{} // who prints
	clients chan struct{}
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu    sync.Mutex
	info  hal.Info
	every time.Duration
	last  time.Time // of its poll, or of opening
	asked int       // how often we asked who it is
	job   *job
	spent float64   // requests beyond what may be asked
	calm  time.Time // when that was counted
}

func (c *cloud) begin(l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.last = time.Now()
	c.at = l.Addr().String()
	c.server = &http.Server{
		Handler: http.HandlerFunc(c.serve), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10, ErrorLog: silent, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	l = &limited{Listener: l, clients: c.clients, track: c.track, hosts: map[string]int{}}
	c.wg.Go(func() { _ = c.server.Serve(l) })
	c.wg.Go(func() { c.track.Supervise(func() { c.watch(ctx) }) })
}

// String implements conn.Resource.
func (c *cloud) String() string { return "cloudprnt(" + c.at + ")" }

// Halt implements conn.Resource.
func (c *cloud) Halt() error { return c.Close() }

// Close implements io.Closer. The printer finds nobody there.
func (c *cloud) Close() error {
	c.stop()
	err := c.server.Close()
	c.wg.Wait()
	c.track.Close()
	return err
}

// Info implements hal.Device.
func (c *cloud) Info() hal.Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// Events implements hal.Notifier.
func (c *cloud) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return c.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (c *cloud) Statistics(context.Context) ([]hal.Stat, error) { return c.track.Stats(), nil }

// Status implements hal.StatusReader. The printer cannot be asked: it is what
// it said last, and gone when it has not come for too long.
func (c *cloud) Status(ctx context.Context) (hal.Status, error) {
	if err := ctx.Err(); err != nil {
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	}
	c.overdue()
	return c.track.Status(), nil
}

// watch notices that the printer does not come any more.
func (c *cloud) watch(ctx context.Context) {
	for {
		wait := time.NewTimer(max(c.overdue(), 10*time.Millisecond))
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
	}
}

// overdue notes when the printer is, and returns how long it may still take.
func (c *cloud) overdue() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	patience := missed*c.every + min(grace, c.every)
	if c.job != nil && !c.job.fetched.IsZero() {
		patience = max(patience, printing)
	}
	left := patience - time.Since(c.last)
	if left > 0 {
		return left
	}
	c.track.Update(hal.PowerOffOffline, nil)
	return c.every
}

// Print implements hal.Passthrough. It returns when the printer has said what
// became of the job, which is good for as long as the printer needs to come,
// fetch and print.
func (c *cloud) Print(ctx context.Context, r io.Reader) (hal.Job, error) {
	const op = "print"
	var made hal.Job
	if c.Info().Claim != hal.Own {
		return made, &hal.Error{Code: "E_ILLEGAL", Op: op, Err: errors.New("this printer is only observed; claim it with own")}
	}
	b, err := io.ReadAll(io.LimitReader(r, maxJob+1))
	if err != nil {
		return made, &hal.Error{Code: "E_FAILURE", Op: op, Err: err}
	}
	if len(b) > maxJob {
		return made, &hal.Error{Code: "E_ILLEGAL", Op: op, Err: fmt.Errorf("a job may have %d bytes", maxJob)}
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return made, &hal.Error{Code: "E_BUSY", Op: op, Err: ctx.Err()}
	}
	st, err := c.Status(ctx)
	if err != nil {
		return made, err
	}
	if st.Power != hal.PowerOnline {
		return made, stopped(op, st)
	}
	j := c.offer(b)
	defer c.withdraw()
	made, err = c.outcome(ctx, j)
	if err == nil && c.media == lineMedia {
		var f filter
		f.pass(b)
		made.Cuts, made.Kicks = f.cuts, f.kicks
		c.track.Count("ReceiptLineFeedCount", float64(f.lines+f.dots/dotsPerLine))
		c.track.Count("PaperCutCount", float64(f.cuts))
	}
	return made, err
}

// outcome waits until the printer has said what became of the job.
func (c *cloud) outcome(ctx context.Context, j *job) (hal.Job, error) {
	var made hal.Job
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case code := <-j.done:
			made.Bytes = int64(len(j.body))
			if made.Confirmed = good(code); made.Confirmed {
				return made, nil
			}
			return made, refused(code)
		case <-ctx.Done():
			return made, &hal.Error{Code: "E_TIMEOUT", Op: "print", Err: ctx.Err()}
		case <-tick.C:
			if st := c.track.Status(); st.Power == hal.PowerOffOffline {
				return made, stopped("print", st)
			}
			c.mu.Lock()
			fetched := j.fetched
			c.mu.Unlock()
			switch {
			case !fetched.IsZero() && time.Since(fetched) > printing:
				return made, &hal.Error{Code: "E_TIMEOUT", Op: "print", Err: errors.New("the printer took the job and does not say that it came out")}
			case fetched.IsZero() && c.track.Status().Power != hal.PowerOnline: // it will not fetch
				return made, stopped("print", c.track.Status())
			}
		}
	}
}

// CheckHealth implements hal.HealthChecker. External prints a test page.
func (c *cloud) CheckHealth(ctx context.Context, level hal.Level) (hal.Report, error) {
	id := c.Info().ID
	page := testPage(id, time.Now())
	if c.media == "text/plain" {
		page = "Tillward test page\n" + id + "\nThe quick brown fox jumps over the lazy dog\n"
	}
	return checkHealth(ctx, level, c, page)
}

// logged reports whether the request may pass.
func (c *cloud) logged(r *http.Request) bool {
	if !c.locked {
		return true
	}
	user, password, ok := r.BasicAuth()
	u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	same := subtle.ConstantTimeCompare(p[:], c.password[:])
	if !c.anyone {
		same &= subtle.ConstantTimeCompare(u[:], c.user[:])
	}
	return ok && same == 1
}
