// Package virtual is hardware that is not there: a card reader, a printer, a
// drawer or a switch that is whatever it is told to be. It stands in where the real thing cannot
// be had, and its Info says that it is simulated, so that nobody is deceived.
//
// It is told by its methods, or from another process over a unix socket with
// lines of JSON, see Order. It prints and reads nothing.
//
// Options: category = "SmartCardRW" (the usual), "POSPrinter", "CashDrawer",
// "Scanner", "LineDisplay", "M_TamperSwitch", "M_DoorSwitch" or
// "M_Environment"; control = "unix:/path/of/socket" listens there, for its own user only.
package virtual

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/hal"
)

const (
	maxOrder   = 4 << 10          // bytes of a line
	orderEvery = 10 * time.Minute // a controller that is silent for longer is let go
	answerIn   = 5 * time.Second
)

// Driver is the driver "virtual".
type Driver struct{}

// Name implements hal.Driver.
func (Driver) Name() string { return "virtual" }

// Open implements hal.Driver. The device is on-line and healthy. It returns a
// *Device.
func (Driver) Open(ctx context.Context, cfg hal.Config) (hal.Device, error) {
	d, control, err := configure(cfg)
	if err != nil {
		return nil, err
	}
	d.track.Update(d.power, d.sensors)
	if control != "" {
		if err := d.listen(ctx, control); err != nil {
			return nil, &hal.Error{Code: "E_FAILURE", Op: "open " + cfg.ID, Err: fmt.Errorf("control: %w", err)}
		}
	}
	return d, nil
}

// Check implements hal.Checker.
func (Driver) Check(cfg hal.Config) ([]hal.Info, error) {
	d, _, err := configure(cfg)
	if err != nil {
		return nil, err
	}
	return []hal.Info{d.info}, nil
}

func configure(cfg hal.Config) (d *Device, control string, err error) {
	o := hal.ReadOptions(cfg, "category", "control")
	category := hal.Category(cfg.Options["category"])
	if category == "" {
		category = hal.SmartCardRW
	}
	k, ok := kinds[category]
	if !ok {
		o.Refuse("category = %q: write one of %v", category, slices.Sorted(maps.Keys(kinds)))
	}
	if at, ok := cfg.Options["control"]; ok {
		if control, ok = strings.CutPrefix(at, "unix:"); !ok || !filepath.IsAbs(control) {
			o.Refuse("control = %q: write unix:/PATH", at)
		}
	}
	d = &Device{
		info: hal.Info{
			ID: cfg.ID, Category: category, Driver: "virtual", Maker: "Tillward", Model: "virtual " + k.model, Claim: cfg.Claim, Simulated: true, Caps: k.caps,
		},
		power:   hal.PowerOnline,
		sensors: map[string]hal.Tri{},
		conns:   map[net.Conn]bool{},
		track:   hal.NewTracker(category, append(k.counts, "CommunicationErrorCount")...),
	}
	for _, s := range k.sensors {
		d.sensors[s] = hal.No
	}
	return d, control, o.Err()
}

// kinds are what a virtual device can be: its sensors, which read No at first,
// and what it counts.
var kinds = map[hal.Category]struct {
	model           string
	sensors, counts []string
	caps            []string
}{
	hal.SmartCardRW: {
		"card reader",
		[]string{"SCPresentSensor", "M_CardMute", "M_DaemonGone"},
		[]string{"M_CardInsertedCount", "M_CardRemovedCount", "M_CardResetFailedCount", "M_TransmitErrorCount"},
		[]string{"CapPowerReporting", "CapSCPresentSensor", "CapStatisticsReporting"},
	},
	hal.POSPrinter: {
		"printer",
		[]string{"CoverOpen", "RecEmpty", "RecNearEnd", "M_CutterError", "M_HeadTooHot", "M_MechanicalError", "M_UnrecoverableError"},
		[]string{"ReceiptCoverOpenCount", "ReceiptLineFeedCount", "PaperCutCount"},
		[]string{"CapCoverSensor", "CapPowerReporting", "CapRecEmptySensor", "CapRecNearEndSensor", "CapRecPapercut", "CapStatisticsReporting"},
	},
	hal.CashDrawer: {
		"cash drawer",
		[]string{"DrawerOpened", "M_UnexpectedOpen", "M_LeftOpen", "M_DrawerStuck"},
		[]string{"DrawerGoodOpenCount", "DrawerFailedOpenCount"},
		[]string{"CapPowerReporting", "CapStatisticsReporting", "CapStatus"},
	},
	hal.Scanner:     {"scanner", nil, []string{"GoodScanCount"}, []string{"CapPowerReporting", "CapStatisticsReporting"}},
	hal.LineDisplay: {"line display", nil, []string{"OnlineTransitionCount"}, []string{"CapPowerReporting", "CapStatisticsReporting"}},
	hal.Tamper:      {"tamper switch", []string{"M_Tampered"}, []string{"M_TamperedCount", "M_EdgesLostCount"}, []string{"CapStatisticsReporting", "CapStatus"}},
	hal.Door:        {"door switch", []string{"M_DoorOpen"}, []string{"M_DoorOpenedCount"}, []string{"CapStatisticsReporting", "CapStatus"}},
	hal.Environment: {"board sensor", []string{"M_TempHigh", "M_SupplyLow"}, nil, []string{"CapStatisticsReporting", "CapStatus"}},
}

// Device is an open virtual device.
type Device struct {
	info  hal.Info
	track *hal.Tracker
	wg    sync.WaitGroup

	mu       sync.Mutex
	power    hal.Power
	sensors  map[string]hal.Tri
	listener net.Listener
	conns    map[net.Conn]bool
	closed   bool
}

// Order is one line to the control socket; what is left out does not change.
// Each is answered with {} or {"error":"..."}.
//
//	{"set":"SCPresentSensor","to":true}      a sensor; null makes it unknown
//	{"power":"PS_OFF_OFFLINE"}               the power state
//	{"count":"ReceiptLineFeedCount","by":30} a counter
//	{"keep":"PaperCutCount","value":1200}    a counter of the device's own, which may fall
//	{"measure":"temp_mc","value":41500}      a measurement
//	{"event":"M_CARD_TORN"}                  an event that no sensor shows
type Order struct {
	Set   string    `json:"set,omitempty"`
	To    *bool     `json:"to,omitempty"`
	Power hal.Power `json:"power,omitempty"`
	Count string    `json:"count,omitempty"`
	By    float64   `json:"by,omitempty"`
	Event string    `json:"event,omitempty"`

	Keep    string  `json:"keep,omitempty"`
	Measure string  `json:"measure,omitempty"`
	Value   float64 `json:"value,omitempty"`
}

// Do obeys an order. One that makes no sense changes nothing.
func (d *Device) Do(o Order) error {
	switch o.Power {
	case "", hal.PowerUnknown, hal.PowerOnline, hal.PowerOff, hal.PowerOffline, hal.PowerOffOffline:
	default:
		return fmt.Errorf("power %q is none of UnifiedPOS", o.Power)
	}
	if o.Set+o.Count+o.Event+o.Keep+o.Measure == "" && o.Power == "" {
		return errors.New("order says nothing; it needs set, power, count, keep, measure or event")
	}
	for _, name := range []string{o.Set, o.Count, o.Event, o.Keep, o.Measure} {
		if len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) || hal.MayHoldPAN(name) {
			return fmt.Errorf("%.80q is no name of a sensor, counter or event", name)
		}
	}
	if o.By < 0 || o.By > 1e9 {
		return fmt.Errorf("by %v: a counter grows by at most 1e9", o.By)
	}
	if math.Abs(o.Value) > 1e12 || (o.Keep != "" && o.Value < 0) {
		return fmt.Errorf("value %v is none that a device has", o.Value)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o.Set != "" {
		if len(d.sensors) == 32 && d.sensors[o.Set] == hal.Unknown {
			return errors.New("a device has at most 32 sensors")
		}
		d.sensors[o.Set] = hal.Unknown
		if o.To != nil {
			d.sensors[o.Set] = hal.TriOf(*o.To)
		}
	}
	if o.Power != "" {
		if d.info.Category == hal.LineDisplay && o.Power == hal.PowerOnline && d.power != hal.PowerOnline {
			d.track.Count("OnlineTransitionCount", 1)
		}
		d.power = o.Power
	}
	if d.power == hal.PowerOff || d.power == hal.PowerOffOffline {
		d.track.Update(d.power, nil) // a device that is gone has no sensors
	} else {
		d.track.Update(d.power, maps.Clone(d.sensors))
	}
	if o.Count != "" {
		d.track.Count(o.Count, o.By)
	}
	if o.Keep != "" {
		d.track.Set(o.Keep, o.Value)
	}
	if o.Measure != "" {
		d.track.Measure(o.Measure, o.Value)
	}
	if o.Event != "" {
		d.track.Post(o.Event, "", "")
	}
	return nil
}

// String implements conn.Resource.
func (d *Device) String() string { return "virtual(" + d.info.ID + ")" }

// Halt implements conn.Resource.
func (d *Device) Halt() error { return d.Close() }

// Info implements hal.Device.
func (d *Device) Info() hal.Info { return d.info }

// Status implements hal.StatusReader.
func (d *Device) Status(ctx context.Context) (hal.Status, error) {
	if err := ctx.Err(); err != nil {
		return hal.Status{}, &hal.Error{Code: "E_TIMEOUT", Op: "status", Err: err}
	}
	return d.track.Status(), nil
}

// Events implements hal.Notifier.
func (d *Device) Events(ctx context.Context) iter.Seq2[hal.Event, error] { return d.track.Events(ctx) }

// Statistics implements hal.Statistics.
func (d *Device) Statistics(context.Context) ([]hal.Stat, error) { return d.track.Stats(), nil }

// CheckHealth implements hal.HealthChecker. An external check of a printer
// counts a page, and one of a drawer an opening, that nobody sees.
func (d *Device) CheckHealth(_ context.Context, level hal.Level) (hal.Report, error) {
	s := d.track.Status()
	good := s.Health == hal.OK || s.Health == hal.Attention
	r := hal.Report{
		OK: good, Text: strings.TrimSpace(fmt.Sprintf("Simulated: %s %s %s", s.Health, s.Reason, s.Advice)),
		Checks: []hal.Check{{ID: "reachable", OK: s.Power == hal.PowerOnline}, {ID: "status", OK: good, Code: s.Reason}},
	}
	if s.Power != hal.PowerOnline {
		r.Checks[0].Code = s.Reason
	}
	moves := map[hal.Category]string{hal.POSPrinter: "page", hal.CashDrawer: "drawer"}[d.info.Category]
	switch {
	case level == hal.Internal:
		return r, nil
	case level != hal.External || moves == "":
		return hal.Report{}, &hal.Error{Code: "E_ILLEGAL", Op: "check health", Err: errors.New("a virtual " + string(d.info.Category) + " has no such check")}
	}
	r.Checks = append(r.Checks, hal.Check{ID: moves, OK: good, Code: s.Reason})
	switch {
	case !good:
	case moves == "page":
		d.track.Count("ReceiptLineFeedCount", 8)
		d.track.Count("PaperCutCount", 1)
	default:
		d.track.Count("DrawerGoodOpenCount", 1)
	}
	return r, nil
}

// Close implements io.Closer.
func (d *Device) Close() error {
	d.mu.Lock()
	d.closed = true
	if d.listener != nil {
		_ = d.listener.Close() // and with it the socket's file
	}
	for c := range d.conns {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
	d.track.Close()
	return nil
}

// listen opens the control socket. One that a dead process has left is taken
// over; one that somebody answers on is not.
func (d *Device) listen(ctx context.Context, path string) error {
	if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is in use", path)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		_ = os.Remove(path)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return err
	}
	d.listener = l
	d.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			if d.closed || len(d.conns) == 8 {
				_ = c.Close()
			} else {
				d.conns[c] = true
				d.wg.Go(func() { d.track.Contain(func() { d.serve(c) }) })
			}
			d.mu.Unlock()
		}
	})
	return nil
}

func (d *Device) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
	}()
	lines := bufio.NewScanner(c)
	lines.Buffer(make([]byte, 512), maxOrder)
	for {
		_ = c.SetReadDeadline(time.Now().Add(orderEvery))
		if !lines.Scan() {
			return
		}
		var answer struct {
			Error string `json:"error,omitempty"`
		}
		if err := d.obey(lines.Bytes()); err != nil {
			d.track.Count("CommunicationErrorCount", 1)
			answer.Error = err.Error()
		}
		b, err := json.Marshal(answer)
		if err != nil {
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(answerIn))
		if _, err := c.Write(append(b, '\n')); err != nil {
			return
		}
	}
}

func (d *Device) obey(line []byte) error {
	var o Order
	dec := json.NewDecoder(strings.NewReader(string(line)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		return fmt.Errorf("not an order: %w", err)
	}
	return d.Do(o)
}

// Send gives orders to the device that listens on the socket at path, in this
// process or another. It stops at the first that is refused.
func Send(ctx context.Context, path string, orders ...Order) error {
	c, err := (&net.Dialer{Timeout: answerIn}).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("virtual device: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(answerIn))
	enc, dec := json.NewEncoder(c), json.NewDecoder(c)
	for _, o := range orders {
		if err := enc.Encode(o); err != nil {
			return fmt.Errorf("virtual device: %w", err)
		}
		var answer struct{ Error string }
		if err := dec.Decode(&answer); err != nil {
			return fmt.Errorf("virtual device: %w", err)
		}
		if answer.Error != "" {
			return fmt.Errorf("virtual device: %s", answer.Error)
		}
	}
	return nil
}
