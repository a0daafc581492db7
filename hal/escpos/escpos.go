// Package escpos drives receipt printers that speak ESC/POS over TCP, and the
// cash drawers behind them.
//
// In claim mode own it holds the printer's one connection: it is told of
// changes at once, asks again every few seconds, and prints what it is handed.
// In claim mode observe it opens no connection at all, unless the option
// ask = "true" allows a short one for each look; while that is open a real
// printer makes the till wait. What a job holds is neither kept nor logged. It
// does not find printers, and no more than one process can own one.
//
// Options: ask = "true" (observe only); drawer_open_level = "high" or "low",
// without which the drawer's state is Unknown; queries = "1234", those of the
// DLE EOT questions that the model answers; timeout = "2s" of each answer.
package escpos

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	pollEvery  = 5 * time.Second
	backoffMin = 200 * time.Millisecond // some interfaces need that long between two connections
	backoffMax = 15 * time.Second
)

// Driver is the driver "escpos".
type Driver struct{}

// Name implements hal.Driver.
func (Driver) Name() string { return "escpos" }

// Open implements hal.Driver. The printer need not be there.
func (Driver) Open(_ context.Context, cfg hal.Config) (hal.Device, error) {
	if err := hal.CheckOptions(cfg, "ask", "drawer_open_level", "queries", "timeout"); err != nil {
		return nil, err
	}
	illegal := func(format string, args ...any) error {
		return &hal.Error{Code: "E_ILLEGAL", Op: "open " + cfg.ID, Err: fmt.Errorf(format, args...)}
	}
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		return nil, illegal("address: %w; it must be host:port, e.g. 192.0.2.10:9100", err)
	}
	p := &printer{
		addr: cfg.Address, timeout: 2 * time.Second, queries: "1234", first: make(chan struct{}),
		info:  hal.Info{ID: cfg.ID, Category: hal.POSPrinter, Driver: "escpos", Claim: cfg.Claim},
		track: hal.NewTracker(hal.POSPrinter, "CommunicationErrorCount", "ReceiptCoverOpenCount", "FailedPaperCutCount", "MaximumTempReachedCount", "PrinterFaultCount", "M_PaperEmptyCount"),
	}
	switch cfg.Claim {
	case "":
		p.info.Claim = hal.Own
	case hal.Own, hal.Observe:
	default:
		return nil, illegal("claim %q: a network printer has one connection; own or observe it", cfg.Claim)
	}
	switch v := cfg.Options["ask"]; v {
	case "", "false":
	case "true":
		p.asks = true
	default:
		return nil, illegal("ask = %q: true or false", v)
	}
	switch v := cfg.Options["drawer_open_level"]; v {
	case "":
	case "high":
		p.drawer = hal.Yes
	case "low":
		p.drawer = hal.No
	default:
		return nil, illegal("drawer_open_level = %q: high or low", v)
	}
	if v, ok := cfg.Options["queries"]; ok {
		if v == "" || strings.Trim(v, "1234") != "" {
			return nil, illegal("queries = %q: some of 1234", v)
		}
		p.queries = v
	}
	if v, ok := cfg.Options["timeout"]; ok {
		d, err := time.ParseDuration(v)
		if err != nil || d < 10*time.Millisecond || d > time.Minute {
			return nil, illegal("timeout = %q: from 10ms to 1m", v)
		}
		p.timeout = d
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	if p.info.Claim == hal.Own {
		p.wg.Go(func() { p.run(ctx) })
	}
	return p, nil
}

// printer is an open printer.
type printer struct {
	addr    string
	timeout time.Duration
	queries string
	drawer  hal.Tri // Yes: a high pin is an open drawer
	asks    bool
	track   *hal.Tracker
	first   chan struct{} // closed after the first attempt to reach it
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu   sync.Mutex
	info hal.Info
	held *session
}

// String implements conn.Resource.
func (p *printer) String() string { return "escpos(" + p.addr + ")" }

// Halt implements conn.Resource: it gives the printer free.
func (p *printer) Halt() error { return p.Close() }

// Close implements io.Closer.
func (p *printer) Close() error {
	p.stop()
	p.wg.Wait()
	p.track.Close()
	return nil
}

// Info implements hal.Device. Maker, model, serial and firmware are known once
// the printer has been reached.
func (p *printer) Info() hal.Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.info
}

// Events implements hal.Notifier. In claim mode observe they are what looks find.
func (p *printer) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return p.track.Events(ctx) }

func (p *printer) session() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

func (p *printer) hold(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = s
}

// run keeps one connection, for as long as the device is open.
func (p *printer) run(ctx context.Context) {
	attempted := sync.OnceFunc(func() { close(p.first) })
	defer attempted()
	for failures := 0; ctx.Err() == nil; failures++ {
		s, err := p.connect(ctx)
		if err == nil {
			p.hold(s)
			attempted()
			p.keep(ctx, s)
			p.hold(nil)
			s.end()
			failures = 0
		}
		if ctx.Err() != nil {
			return
		}
		p.track.Update(hal.PowerOffOffline, nil)
		attempted()
		wait := time.NewTimer(backoff(failures))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

func backoff(failures int) time.Duration {
	d := backoffMax
	if failures < 7 {
		d = min(d, backoffMin<<failures)
	}
	return d/2 + rand.N(d/2) //nolint:gosec // spreads load, guards nothing
}

// connect dials and looks once. Only a printer that answers is connected: one
// that somebody else holds takes the connection and stays mute.
func (p *printer) connect(ctx context.Context) (*session, error) {
	conn, err := (&net.Dialer{Timeout: p.timeout, KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, err
	}
	s := begin(conn, p.timeout, p.drawer, p.track)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := s.poll(ctx, p.queries); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// keep asks again and again until the connection or ctx ends.
func (p *printer) keep(ctx context.Context, s *session) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	known := false
	for {
		if p.track.Status().Power == hal.PowerOnline {
			if s.arm(ctx) != nil {
				return
			}
			if !known {
				known = p.identify(ctx, s)
			}
		}
		select {
		case <-s.lost:
			return
		case <-tick.C:
		}
		if _, err := s.poll(ctx, p.queries); err != nil {
			return
		}
	}
}

// identify asks who the printer is.
func (p *printer) identify(ctx context.Context, s *session) bool {
	var told [4]string
	for i, n := range []byte{66, 67, 68, 65} {
		v, err := s.identity(ctx, n)
		if err != nil {
			return errors.Is(err, errNoBlock) && p.Info().Model != ""
		}
		if v = strings.TrimSpace(v[:min(len(v), 64)]); hal.MayHoldPAN(v) {
			p.track.Count("M_PanGuardDropCount", 1)
			v = ""
		}
		told[i] = v
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info.Maker, p.info.Model, p.info.Serial, p.info.Firmware = told[0], told[1], told[2], told[3]
	return true
}

// Status implements hal.StatusReader with a fresh look.
func (p *printer) Status(ctx context.Context) (hal.Status, error) {
	if p.Info().Claim == hal.Observe {
		return p.glance(ctx)
	}
	select {
	case <-p.first:
	case <-ctx.Done():
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
	}
	if s := p.session(); s != nil {
		within, cancel := context.WithTimeout(ctx, p.timeout)
		defer cancel()
		st, err := s.poll(within, p.queries)
		switch {
		case err == nil:
			return st, nil
		case ctx.Err() != nil:
			return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: ctx.Err()}
		case within.Err() != nil: // somebody prints; frames keep the last look fresh
			return p.track.Status(), nil
		}
		return hal.Judge(hal.POSPrinter, hal.PowerOffOffline, nil), nil // run tells the event
	}
	return p.track.Status(), nil
}

// glance looks at a printer that the till owns.
func (p *printer) glance(ctx context.Context) (hal.Status, error) {
	if !p.asks {
		st := p.track.Status()
		st.Advice = "The till owns this printer; allow asking to see more."
		return st, nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
		}
		return p.track.Update(hal.PowerOffOffline, nil), nil
	}
	s := begin(conn, min(p.timeout, 300*time.Millisecond), p.drawer, p.track)
	defer s.end()
	st, err := s.poll(ctx, p.queries)
	if errors.Is(err, errMute) {
		st = p.track.Update(hal.PowerUnknown, nil)
		st.Reason, st.Advice = "M_IN_USE", "The till is using the printer, or it does not answer."
		return st, nil
	}
	if err != nil {
		return p.track.Update(hal.PowerOffOffline, nil), nil
	}
	return st, nil
}

// Statistics implements hal.Statistics. What the printer counts itself is
// asked while it is on-line, and kept from the last time otherwise.
func (p *printer) Statistics(ctx context.Context) ([]hal.Stat, error) {
	if s := p.session(); s != nil && p.track.Status().Power == hal.PowerOnline {
		for _, c := range []struct {
			n    byte
			name string
		}{{148, "ReceiptLineFeedCount"}, {149, "M_HeadEnergizedCount"}, {178, "PaperCutCount"}, {198, "HoursPoweredCount"}} {
			v, err := s.counter(ctx, c.n)
			if err != nil {
				break
			}
			p.track.Set(c.name, float64(v))
		}
	}
	return p.track.Stats(), nil
}
