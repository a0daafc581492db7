// Package ingest takes what devices send, checks it, and has it stored: many
// messages in one transaction, acknowledged only after the commit.
//
// It promises: what is acknowledged is stored or can never be; a failed commit
// acknowledges nothing. A message that does not decode is acknowledged, since
// the device would send it for ever, stored nowhere, and noted in the
// service's audit trail. A device's audit chain is checked link by link; a
// break is an alarm, and what came is stored all the same. A chain that goes on
// in two ways is told apart from one that only broke: somebody else speaks as
// this device, or it forgot what it said. What is noted is
// noted once a minute for each kind and device, so that nobody can fill the
// trail.
//
// What devices that were away have saved up waits in a lane of its own: what is
// live is committed first in every group, and the backlog fills the rest as fast
// as commits stay short. Back-pressure is the acknowledgement that is not
// written yet: nothing is dropped and nobody is hung up on, a device's window
// bounds what it has waiting. Within a device order holds, but for what was sent
// ahead on purpose (wire.Live).
//
// It knows no MQTT and no SQL.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

const (
	groupLen   = 512 // messages of each lane in one transaction
	linger     = 2 * time.Millisecond
	noteEvery  = time.Minute // notes of one kind about one device in the trail
	skewEvery  = 24 * time.Hour
	maxDevices = 200_000 // remembered; then all is forgotten and read again
)

// Message is one up message of one device.
type Message struct {
	Device  fleet.DeviceID
	Tenant  fleet.TenantID
	Channel wire.Channel
	Payload []byte
	At      time.Time
	Ack     func(error) // nil: stored; else the device must send again
	// Dead reports whether the connection it came by acknowledges nothing any
	// more: the device sends it again, and what came before it too. nil: never.
	Dead func() bool

	lane int
	came time.Time // by our clock, which At need not be
}

func (m Message) dead() bool { return m.Dead != nil && m.Dead() }

var (
	errDead    = errors.New("the connection acknowledges nothing any more")
	errStopped = errors.New("the service stops")
)

// Store keeps what came; cloud/internal/store fits.
type Store interface {
	Commit(ctx context.Context, in []fleet.Intake) ([]fleet.Outcome, error)
	AuditHead(ctx context.Context, id fleet.DeviceID) (seq uint64, hash [32]byte, err error)
}

// Options of an Ingest.
type Options struct {
	Store Store
	// Stored is told what a commit changed, after it.
	Stored func(in fleet.Intake, out fleet.Outcome)
	// Forked is told, after the commit and at most once a minute for each device,
	// that its audit chain goes on in two ways; nil: nobody listens.
	Forked func(device fleet.DeviceID, what string)
	Anchor AnchorCheck // nil: anchors are stored and not judged
	Log    *slog.Logger
}

// Ingest is the committer. There is one.
type Ingest struct {
	o     Options
	queue *queue
	pace  pace
	stats statistics
	heads map[fleet.DeviceID]head // audit chain as stored
	noted map[note]time.Time      // last entry in the trail

	pending map[note]bool // entries of the group that is being made
	forks   map[fleet.DeviceID]string
	rung    map[bell]ring // alarms of peripherals that are in the trail
	ringing map[bell]int  // and of the group that is being made

	mu   sync.Mutex
	gone []fleet.DeviceID // whose heads are to be dropped
}

// note is one kind of entry about one device.
type note struct {
	device fleet.DeviceID
	kind   string
}

type head struct {
	seq  uint64
	hash [32]byte
}

// New returns an Ingest that works when Run is called.
func New(o Options) *Ingest {
	return &Ingest{
		o: o, queue: newQueue(), pace: pace{bytes: leastBytes},
		heads: make(map[fleet.DeviceID]head), noted: make(map[note]time.Time), pending: make(map[note]bool), forks: make(map[fleet.DeviceID]string),
		rung: make(map[bell]ring), ringing: make(map[bell]int),
	}
}

// Forget drops what is remembered of a device whose rows changed behind our
// back: it left its tenant, and what it says from now on begins anew.
func (i *Ingest) Forget(device fleet.DeviceID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.gone = append(i.gone, device)
}

// drop carries out what Forget was asked.
func (i *Ingest) drop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, d := range i.gone {
		delete(i.heads, d)
	}
	i.gone = nil
}

// Submit queues m; false when memory is short and nothing more can wait. It may
// hold up who brings backlog for a few seconds.
func (i *Ingest) Submit(m Message) bool { return i.queue.put(m) }

// Run commits until ctx ends, what it has in hand then, and one group more:
// devices wait for it. What else is queued is not acknowledged: they send it again.
func (i *Ingest) Run(ctx context.Context) error {
	for {
		batch, ok := i.gather(ctx)
		if !ok {
			return i.last(context.WithoutCancel(ctx))
		}
		if err := i.commit(context.WithoutCancel(ctx), batch); err != nil {
			i.o.Log.Error("commit what devices sent; they will send it again", slog.Int("messages", len(batch)), slog.Any("err", err))
		}
	}
}

// last commits what fits into one group and ends the wait for all else.
func (i *Ingest) last(ctx context.Context) error {
	group, _ := i.queue.take(groupLen, leastBytes)
	if kept := alive(group); len(kept) > 0 {
		if err := i.commit(ctx, kept); err != nil {
			i.o.Log.Error("commit what devices sent last; they will send it again", slog.Int("messages", len(kept)), slog.Any("err", err))
		}
	}
	for _, m := range i.queue.end() {
		m.Ack(errStopped)
	}
	return nil
}

// alive leaves out what must not be stored: it would leave a hole.
func alive(group []Message) []Message {
	kept := group[:0]
	for _, m := range group {
		if m.dead() {
			m.Ack(errDead)
			continue
		}
		kept = append(kept, m)
	}
	return kept
}

// gather waits for a first message, lingers a little for company unless there is
// enough, and takes what is queued.
func (i *Ingest) gather(ctx context.Context) ([]Message, bool) {
	for {
		select {
		case <-ctx.Done():
			return nil, false
		case <-i.queue.wake:
		}
		if n, _ := i.queue.waits(); n[live]+n[backlog] < groupLen {
			time.Sleep(linger)
		}
		group, withheld := i.queue.take(groupLen, i.pace.bytes)
		i.stats.held(withheld)
		if kept := alive(group); len(kept) > 0 {
			return kept, true
		}
	}
}

// commit decodes, stores and acknowledges a batch. When one message makes the
// whole transaction impossible, each is tried alone.
func (i *Ingest) commit(ctx context.Context, batch []Message) error {
	i.drop()
	clear(i.pending)
	clear(i.forks)
	clear(i.ringing)
	var in []fleet.Intake
	var kept []Message
	for n, m := range batch {
		one, err := i.decode(ctx, m)
		switch {
		case never(err): // not a member any more
			m.Ack(err)
			i.o.Log.Warn("message of an unknown device", slog.String("device", string(m.Device)), slog.Any("err", err))
		case err != nil:
			return i.fail(append(kept, batch[n:]...), err)
		default:
			in, kept = append(in, one), append(kept, m)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	began := time.Now()
	out, err := i.o.Store.Commit(ctx, in)
	switch {
	case err == nil:
		i.measure(kept, out, time.Since(began))
		for n, m := range kept {
			i.told(m, in[n].Service)
			if out[n].AnchorBad {
				i.noted[note{m.Device, kindAnchorBad}] = m.At
			}
			if out[n].NewEvents > 0 {
				i.rang(m, in[n].Alarms)
			}
			m.Ack(nil)
			i.o.Stored(in[n], out[n])
			i.forked(m, out[n])
		}
		return nil
	case never(err) && len(kept) == 1:
		return i.giveUp(ctx, kept[0], err)
	case never(err):
		clear(i.heads)
		var errs []error
		for _, m := range kept {
			if m.dead() { // one before it was not stored: this one would leave a hole
				delete(i.heads, m.Device)
				m.Ack(errDead)
				continue
			}
			errs = append(errs, i.commit(ctx, []Message{m}))
		}
		return errors.Join(errs...)
	}
	return i.fail(kept, err)
}

// never reports whether trying again is in vain.
func never(err error) bool {
	return errors.Is(err, fleet.ErrInvalid) || errors.Is(err, fleet.ErrNotFound)
}

func (i *Ingest) fail(batch []Message, err error) error {
	for _, m := range batch {
		delete(i.heads, m.Device) // what was decided on it is not stored
		m.Ack(err)
	}
	return err
}

// giveUp acknowledges a message that can never be stored, and notes it.
func (i *Ingest) giveUp(ctx context.Context, m Message, why error) error {
	delete(i.heads, m.Device)
	clear(i.pending)
	in := fleet.Intake{Device: m.Device, Tenant: m.Tenant, At: m.At, Service: i.refusal(m, why)}
	if errors.Is(why, fleet.ErrNotFound) {
		m.Ack(why) // not a member (any more): nothing to note it under, the connection ends
		return nil
	}
	if _, err := i.o.Store.Commit(ctx, []fleet.Intake{in}); err != nil {
		m.Ack(err)
		return err
	}
	i.told(m, in.Service)
	m.Ack(nil)
	return nil
}

// refusal is the note of a message that was not understood.
func (i *Ingest) refusal(m Message, why error) *fleet.AuditEvent {
	return i.note(m, noteEvery, fleet.AuditEvent{
		Kind: "ingest.refused", Severity: "warn", Detail: map[string]string{"channel": string(m.Channel), "reason": fmt.Sprintf("%.300v", why)},
	})
}

// note is an entry for the service's trail; nil when one of its kind about this
// device was written a moment ago.
func (i *Ingest) note(m Message, every time.Duration, ev fleet.AuditEvent) *fleet.AuditEvent {
	k := note{m.Device, ev.Kind}
	if last, ok := i.noted[k]; i.pending[k] || ok && m.At.Sub(last) < every {
		return nil
	}
	i.pending[k] = true
	ev.At, ev.Actor, ev.Subject = m.At, "ingest", string(m.Device)
	return &ev
}

// told remembers that ev is in the trail.
func (i *Ingest) told(m Message, ev *fleet.AuditEvent) {
	if ev == nil {
		return
	}
	if len(i.noted) >= maxDevices {
		clear(i.noted)
	}
	i.noted[note{m.Device, ev.Kind}] = m.At
	i.o.Log.Warn("noted in the audit trail", slog.String("kind", ev.Kind), slog.String("device", ev.Subject), slog.Any("detail", ev.Detail))
}

// decode turns a message into what is stored. Only a failing store is an
// error; a bad message becomes an intake that holds its refusal.
func (i *Ingest) decode(ctx context.Context, m Message) (fleet.Intake, error) {
	in := fleet.Intake{Device: m.Device, Tenant: m.Tenant, At: m.At}
	sent, err := i.fill(ctx, &in, m)
	if err != nil && (errors.Is(err, wire.ErrMalformed) || errors.Is(err, wire.ErrLimit)) {
		return fleet.Intake{Device: m.Device, Tenant: m.Tenant, At: m.At, Service: i.refusal(m, err)}, nil
	}
	if ahead := sent.Sub(m.At); err == nil && ahead > wire.ClockSkewNoted && in.Service == nil {
		// A clock that runs ahead; one behind cannot be told from a long time offline.
		in.Service = i.note(m, skewEvery, fleet.AuditEvent{
			Kind: "device.clock_ahead", Severity: "warn", Detail: map[string]string{"by": ahead.Round(time.Minute).String()},
		})
	}
	return in, err
}

// fill decodes by channel and returns when the message was recorded.
func (i *Ingest) fill(ctx context.Context, in *fleet.Intake, m Message) (time.Time, error) {
	switch m.Channel {
	case wire.Telemetry, wire.Live:
		b, err := wire.Decode[wire.TelemetryBatch](m.Payload)
		in.Ahead = m.Channel == wire.Live
		for n, s := range b.Samples {
			in.Samples = append(in.Samples, fleet.Sample{
				Device: m.Device, Boot: b.Head.Boot, Seq: b.Head.Seq, Index: n,
				At: time.UnixMilli(s.At), Peripheral: s.Peripheral, Name: s.Name, Value: s.Value, Epoch: s.Epoch, Kept: s.Kept,
			})
		}
		return time.UnixMilli(b.Head.Sent), err
	case wire.Event:
		b, err := wire.Decode[wire.EventBatch](m.Payload)
		for n, e := range b.Events {
			in.Events = append(in.Events, fleet.PeripheralEvent{
				Device: m.Device, Boot: b.Head.Boot, Seq: b.Head.Seq, Index: n,
				At: time.UnixMilli(e.At), Peripheral: e.Peripheral, Category: e.Category, Code: e.Code, From: e.From, To: e.To, Mono: e.Mono, Count: e.Count,
			})
		}
		in.Checks = checks(m.Device, b)
		in.Alarms = i.alarms(m, b.Events)
		return time.UnixMilli(b.Head.Sent), err
	case wire.State:
		b, err := wire.Decode[wire.StateReport](m.Payload)
		in.Report = &fleet.Report{
			Boot: b.Head.Boot, Seq: b.Head.Seq, Sent: time.UnixMilli(b.Head.Sent), AgentVersion: b.AgentVersion, Slot: b.Slot, Raw: m.Payload,
			FreeMiB: b.FreeMiB, Supply: b.Supply, Share: shares(b.Share), Execution: fleet.ExecutionID(b.Execution), Crashes: b.Crashes,
		}
		for _, c := range b.Installed {
			in.Report.Installed = append(in.Report.Installed, fleet.Installed(c))
		}
		in.Report.Peripherals = peripherals(b)
		return time.UnixMilli(b.Head.Sent), err
	case wire.Result:
		return i.result(in, m)
	case wire.Audit:
		return i.audit(ctx, in, m)
	}
	return time.Time{}, fmt.Errorf("nothing is stored from %s: %w", m.Channel, wire.ErrMalformed)
}

// shares is where a device shares what it has, if that is an address of a
// network at the site: other devices are sent there, and no device shall send
// them elsewhere.
func shares(addr string) string {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || a.Port() == 0 || !a.Addr().IsPrivate() && !a.Addr().IsLoopback() && !a.Addr().IsLinkLocalUnicast() {
		return ""
	}
	return a.String()
}

func (i *Ingest) result(in *fleet.Intake, m Message) (time.Time, error) {
	r, err := wire.Decode[wire.ResultReport](m.Payload)
	if err != nil {
		return time.Time{}, err
	}
	sent := time.UnixMilli(r.Head.Sent)
	if r.Kind == wire.OrderOffer {
		state := fleet.ExecutionState(r.State)
		switch state {
		case fleet.ExecQueued, fleet.ExecRemoved, fleet.ExecTimedOut, fleet.ExecCanceled:
			return sent, fmt.Errorf("execution state %s, which is the service's to say: %w", state, wire.ErrMalformed)
		}
		if !state.Known() {
			return sent, fmt.Errorf("execution state %.30q: %w", r.State, wire.ErrMalformed)
		}
		in.Step = &fleet.ExecutionStep{
			ID: fleet.ExecutionID(r.ID), State: state, Reason: r.Reason, Text: r.Text, From: r.From, To: r.To, Done: r.Done, Total: r.Total,
			Attempt: int(r.Attempt), Number: r.Step, Bytes: fleet.Bytes{Wire: r.Wire, Peer: r.Peer, Medium: r.Medium, Reused: r.Reused},
		}
		return sent, nil
	}
	state := fleet.CommandState(r.State)
	if !state.Ended() {
		return sent, fmt.Errorf("command state %.30q: %w", r.State, wire.ErrMalformed)
	}
	in.CommandEnd = &fleet.CommandEnd{ID: fleet.CommandID(r.ID), State: state, Code: r.Reason, Text: r.Text, Output: r.Output}
	return sent, nil
}
