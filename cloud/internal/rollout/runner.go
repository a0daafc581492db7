package rollout

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// Store keeps rollouts; cloud/internal/store fits.
type Store interface {
	RunningRollouts(ctx context.Context) ([]fleet.Rollout, error)
	Enlist(ctx context.Context, id fleet.RolloutID) (int, error)
	Units(ctx context.Context, id fleet.RolloutID, since int64) ([]fleet.Unit, int64, error)
	MoveExecution(ctx context.Context, step fleet.ExecutionStep, at time.Time) (*fleet.Execution, error)
	MoveExecutions(ctx context.Context, steps []fleet.ExecutionStep, at time.Time) (int, error)
	RetryExecution(ctx context.Context, id fleet.ExecutionID, version int64, at time.Time) error
	AssignWaves(ctx context.Context, id fleet.RolloutID, waves map[fleet.ExecutionID]int) error
	SaveRollout(ctx context.Context, r fleet.Rollout, events ...fleet.AuditEvent) (fleet.Rollout, error)
	Grounds
}

// Grounds is what plans rest on beside the devices of a rollout.
type Grounds interface {
	RolloutHealthSince(ctx context.Context, id fleet.RolloutID, since time.Time) (map[string]fleet.Health, error)
	Release(ctx context.Context, id fleet.ReleaseID) (fleet.Release, error)
	ReleaseOf(ctx context.Context, t fleet.TenantID, id fleet.ReleaseID) (fleet.Release, error)
	Sites(ctx context.Context, t fleet.TenantID) ([]fleet.Site, error)
	Peers(ctx context.Context, t fleet.TenantID, site string, release fleet.ReleaseID) ([]string, error)
	Reach(ctx context.Context, t fleet.TenantID, f fleet.Filter) ([]fleet.Unit, error)
}

// Link reaches devices; cloud/internal/broker fits.
type Link interface {
	Send(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	Connected() map[fleet.DeviceID]fleet.Trust
}

// Options of a Runner.
type Options struct {
	Store Store
	Link  Link
	// Open sends what is not for quarantined devices, which one may have become
	// since Connected was asked; nil: Link does.
	Open    func(device fleet.DeviceID, channel wire.Channel, payload []byte) error
	Sign    func(kind string, m wire.Message) ([]byte, error)
	Changed func(t fleet.TenantID, id fleet.RolloutID)
	// Round is told how long each round took and what was wrong; nil: nobody listens.
	Round func(took time.Duration, err error)
	Log   *slog.Logger
}

const (
	tick      = time.Second
	healthFor = time.Minute // health is not asked for more often
	// healthDuty is how much longer than it took it is not asked for again: what
	// went wrong in a large fleet in weeks is long to go through.
	healthDuty = 100
	// duty is how much longer than a plan of each rollout takes nothing is planned
	// after one: what all of them cost stays a small share of one core.
	duty = 10
)

// Runner carries plans out.
type Runner struct {
	o    Options
	wake chan struct{}

	// door guards came: whoever connects does not wait for a plan.
	door sync.Mutex
	came map[fleet.DeviceID]time.Time // since the last round

	// mu guards what follows; Run alone changes it.
	mu    sync.Mutex
	began time.Time // Run
	runs  map[fleet.RolloutID]*run
	back  map[fleet.DeviceID]bool // connected again since the last round
	since map[fleet.DeviceID]time.Time
}

// run is a rollout in memory.
type run struct {
	ro       fleet.Rollout
	release  fleet.Release
	newer    fleet.ReleaseID
	units    []fleet.Unit
	at       map[fleet.ExecutionID]int
	open     map[fleet.DeviceID]lane // under way
	cursor   int64
	offered  bool                      // in the last plan; else offers may have been missed
	recalled map[fleet.ExecutionID]int // the attempt that was called back
	back     map[fleet.DeviceID]bool   // since the last plan
	health   map[string]fleet.Health
	healthAt time.Time // when it is asked for next
	// healthFrom is since when it was counted.
	healthFrom time.Time

	changed bool          // since the last plan
	took    time.Duration // the last plan
	due     time.Time     // when time alone makes another plan
	rest    time.Time     // nothing is planned before
}

// lane is where a device stands that is under way.
type lane struct {
	site       string
	installing bool
}

// New returns a Runner; Run works.
func New(o Options) *Runner {
	return &Runner{
		o: o, wake: make(chan struct{}, 1), came: map[fleet.DeviceID]time.Time{}, runs: map[fleet.RolloutID]*run{},
		back: map[fleet.DeviceID]bool{}, since: map[fleet.DeviceID]time.Time{},
	}
}

// Wake asks for a round soon: something changed.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Deliver notes that a device is ready again: its open offer is sent once
// more, and the device answers it or goes on.
func (r *Runner) Deliver(device fleet.DeviceID) {
	r.door.Lock()
	r.came[device] = time.Now()
	r.door.Unlock()
	r.Wake()
}

// greet takes note of who came since the last round.
func (r *Runner) greet() {
	r.door.Lock()
	came := r.came
	r.came = map[fleet.DeviceID]time.Time{}
	r.door.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, at := range came {
		r.back[d], r.since[d] = true, at
	}
}

// Run makes a round every second, whenever Wake is called, and when a plan asks
// for one.
func (r *Runner) Run(ctx context.Context) error {
	timer := time.NewTimer(tick)
	defer timer.Stop()
	r.mu.Lock()
	r.began = time.Now()
	r.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-r.wake:
		}
		r.greet()
		began := time.Now()
		next, err := r.round(ctx)
		if r.o.Round != nil && ctx.Err() == nil {
			r.o.Round(time.Since(began), err)
		}
		if err != nil && ctx.Err() == nil {
			r.o.Log.Error("rollout round", slog.Any("err", err))
		} else {
			r.mu.Lock()
			clear(r.back)
			r.mu.Unlock()
		}
		timer.Reset(min(next, tick))
	}
}

// round sees to every rollout, and says when to make another one.
func (r *Runner) round(ctx context.Context) (time.Duration, error) {
	next := tick
	rollouts, err := r.o.Store.RunningRollouts(ctx)
	if err != nil {
		return next, err
	}
	if err := r.take(ctx, rollouts); err != nil {
		return next, err
	}
	var errs []error
	var connected map[fleet.DeviceID]fleet.Trust
	places := map[fleet.TenantID]map[string]fleet.Site{}
	asked := false // for health: of one rollout in a round, so that the others do not wait
	for _, ro := range rollouts {
		run := r.runs[ro.ID]
		if err := r.read(ctx, run, &asked); err != nil {
			errs = append(errs, err)
			continue
		}
		now := time.Now()
		if !run.changed && now.Before(run.due) {
			continue
		}
		if wait := run.rest.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		if connected == nil {
			connected = r.o.Link.Connected()
		}
		if places[ro.Tenant] == nil {
			if places[ro.Tenant], err = r.sites(ctx, ro.Tenant); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if err := r.plan(ctx, run, connected, places[ro.Tenant]); err != nil {
			run.changed = true
			errs = append(errs, err)
		}
	}
	return next, errors.Join(errs...)
}

// take brings what is in memory in line with the rollouts that there are.
func (r *Runner) take(ctx context.Context, rollouts []fleet.Rollout) error {
	releases := make([]fleet.Release, len(rollouts))
	for i, ro := range rollouts {
		if run := r.runs[ro.ID]; run != nil && run.ro.Version == ro.Version && time.Now().Before(run.due) {
			releases[i] = run.release // but for withdrawal it never changes; that may wait for the next plan
			continue
		}
		var err error
		if releases[i], err = r.o.Store.Release(ctx, ro.Release); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	runs := make(map[fleet.RolloutID]*run, len(rollouts))
	for i, ro := range rollouts {
		u := r.runs[ro.ID]
		if u == nil {
			u = &run{at: map[fleet.ExecutionID]int{}, open: map[fleet.DeviceID]lane{}, recalled: map[fleet.ExecutionID]int{}, back: map[fleet.DeviceID]bool{}}
		}
		newer := overtaken(rollouts, releases, i)
		u.changed = u.changed || u.ro.Version != ro.Version || u.newer != newer || u.release.Withdrawn != releases[i].Withdrawn
		u.ro, u.release, u.newer = ro, releases[i], newer
		for d := range r.back {
			u.back[d], u.changed = true, true
		}
		runs[ro.ID] = u
	}
	r.runs = runs
	return nil
}

// overtaken names the release that has taken over from that of rollout i: a
// newer one of the same component whose rollout runs, or is complete, and
// reaches all devices of this one.
func overtaken(rollouts []fleet.Rollout, releases []fleet.Release, i int) (newest fleet.ReleaseID) {
	a, version := rollouts[i], releases[i].Version
	for j, b := range rollouts {
		if j == i || b.Tenant != a.Tenant || releases[j].Component != releases[i].Component || !older(version, releases[j].Version) || !covers(b.Spec.Filter, a.Spec.Filter) {
			continue
		}
		if !fitsAll(releases[j].Models, releases[i].Models) || a.Spec.Repair && !b.Spec.Repair {
			continue
		}
		if b.State == fleet.RolloutCompleted || b.State == fleet.RolloutRunning && a.State != fleet.RolloutCompleted {
			newest, version = b.Release, releases[j].Version
		}
	}
	return newest
}

// fitsAll reports whether what is for some models is for all of others; none
// stands for all.
func fitsAll(models, others []string) bool {
	return len(models) == 0 || len(others) > 0 && !slices.ContainsFunc(others, func(m string) bool { return !slices.Contains(models, m) })
}

// covers reports whether a filter picks whatever another one picks.
func covers(f, other fleet.Filter) bool {
	for _, c := range [...][2]string{{f.Group, other.Group}, {f.Model, other.Model}, {f.Site, other.Site}} {
		if c[0] != "" && c[0] != c[1] {
			return false
		}
	}
	if len(f.Devices) == 0 {
		return true
	}
	return len(other.Devices) > 0 && !slices.ContainsFunc(other.Devices, func(d fleet.DeviceID) bool { return !slices.Contains(f.Devices, d) })
}

// judgedFrom is when somebody went on last in spite of what had befallen devices.
func judgedFrom(ro fleet.Rollout) (t time.Time) {
	for _, w := range ro.Waves {
		t = latest(t, w.ForgivenAt)
	}
	for _, h := range ro.Holds {
		if h.Model != "" {
			t = latest(t, h.ReleasedAt)
		}
	}
	return t
}

// read takes in what changed in the store.
func (r *Runner) read(ctx context.Context, run *run, asked *bool) error {
	if _, err := r.o.Store.Enlist(ctx, run.ro.ID); err != nil {
		return err
	}
	units, cursor, err := r.o.Store.Units(ctx, run.ro.ID, run.cursor)
	if err != nil {
		return err
	}
	if began, from := time.Now(), judgedFrom(run.ro); !*asked && (began.After(run.healthAt) || from.After(run.healthFrom)) {
		*asked = true
		health, err := r.o.Store.RolloutHealthSince(ctx, run.ro.ID, from)
		if err != nil {
			return err
		}
		r.mu.Lock()
		run.healthFrom = from
		run.changed = run.changed || !reflect.DeepEqual(health, run.health)
		run.health, run.healthAt = health, began.Add(max(healthFor, healthDuty*time.Since(began)))
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if run.cursor == 0 { // else whoever is new comes last
		slices.SortFunc(units, func(a, b fleet.Unit) int { return strings.Compare(string(a.Device), string(b.Device)) })
	}
	for _, u := range units {
		run.changed = true
		if i, ok := run.at[u.ID]; ok {
			delete(run.open, run.units[i].Device) // it may have another name by now
			run.units[i] = u
		} else {
			run.at[u.ID] = len(run.units)
			run.units = append(run.units, u)
		}
		if k := kindOf(u.State, u.Reason); k == underWay || k == installing {
			run.open[u.Device] = lane{u.Site, k == installing}
		}
	}
	run.cursor = cursor
	return nil
}

// plan makes a plan and carries it out.
func (r *Runner) plan(ctx context.Context, run *run, connected map[fleet.DeviceID]fleet.Trust, sites map[string]fleet.Site) error {
	r.mu.Lock()
	began := time.Now()
	for i := range run.units {
		if _, ok := connected[run.units[i].Device]; ok {
			run.units[i].LastSeen = began // the store does not tell of every sign of life
		}
	}
	p := Next(began, run.ro, run.units, r.view(run, connected, sites))
	run.took = time.Since(began)
	all := time.Duration(0)
	for _, other := range r.runs {
		all += other.took
	}
	run.changed, run.rest = false, began.Add(duty*all)
	// Who comes without a word, or is trusted again, is seen by and by.
	run.due = began.Add(max(tick, 5*duty*all))
	if !p.Next.IsZero() && p.Next.Before(run.due) {
		run.due = p.Next
	}
	r.mu.Unlock()
	return r.carryOut(ctx, run, p, sites)
}

// view is what Next must know.
func (r *Runner) view(run *run, connected map[fleet.DeviceID]fleet.Trust, sites map[string]fleet.Site) View {
	busy, lanes := r.others(run, connected)
	return View{
		Release: run.release, Health: run.health, HealthFrom: run.healthFrom, Sites: sites, Newer: run.newer, Lanes: lanes, Began: r.began,
		Came: func(d fleet.DeviceID) time.Time { return r.since[d] },
		Presence: func(d fleet.DeviceID) Presence {
			switch t, ok := connected[d]; {
			case !ok:
				return Away
			case t != fleet.Attested && t != fleet.Degraded && (!run.ro.Spec.Repair || t != fleet.Quarantined):
				return Barred
			case run.back[d] || !run.offered:
				return Back
			}
			return Here
		},
		Busy: func(d fleet.DeviceID) bool { return busy[d] },
	}
}

// others are the devices that another rollout of the same component is at work
// on, since a second offer would take the place of the first, and how many lanes
// of each site other rollouts of any component are at work on.
func (r *Runner) others(run *run, connected map[fleet.DeviceID]fleet.Trust) (busy map[fleet.DeviceID]bool, lanes map[string]int) {
	busy, lanes = map[fleet.DeviceID]bool{}, map[string]int{}
	counted := map[fleet.DeviceID]bool{}
	for _, other := range r.runs {
		if other == run || other.ro.Tenant != run.ro.Tenant {
			continue
		}
		for d, l := range other.open {
			if other.release.Component == run.release.Component {
				busy[d] = true
			}
			_, there := connected[d]
			if _, ours := run.open[d]; l.site == "" || ours || counted[d] || !there && !l.installing {
				continue
			}
			counted[d] = true
			lanes[l.site]++
		}
	}
	return busy, lanes
}

func (r *Runner) sites(ctx context.Context, t fleet.TenantID) (map[string]fleet.Site, error) {
	all, err := r.o.Store.Sites(ctx, t)
	if err != nil {
		return nil, err
	}
	sites := make(map[string]fleet.Site, len(all))
	for _, s := range all {
		s.Devices = 0
		sites[s.Name] = s
	}
	return sites, nil
}

// Why says what keeps a device of tenant t from what rollouts want to bring it.
func (r *Runner) Why(ctx context.Context, t fleet.TenantID, device fleet.DeviceID) ([]fleet.Delay, error) {
	connected := r.o.Link.Connected()
	sites, err := r.sites(ctx, t)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delays := []fleet.Delay{}
	for _, run := range r.runs {
		if run.ro.Tenant == t {
			delays = append(delays, Why(time.Now(), run.ro, run.units, r.view(run, connected, sites), device)...)
		}
	}
	slices.SortFunc(delays, func(a, b fleet.Delay) int { return strings.Compare(string(a.Rollout), string(b.Rollout)) })
	return delays, nil
}

// Preview says what a rollout of tenant t would do if it began now.
func (r *Runner) Preview(ctx context.Context, t fleet.TenantID, id fleet.ReleaseID, spec fleet.Spec) (fleet.Preview, error) {
	if err := Check(spec); err != nil {
		return fleet.Preview{}, err
	}
	release, err := r.o.Store.ReleaseOf(ctx, t, id)
	if err != nil {
		return fleet.Preview{}, err
	}
	units, err := r.o.Store.Reach(ctx, t, spec.Filter)
	if err != nil {
		return fleet.Preview{}, err
	}
	for i := range units {
		units[i].ID = fleet.ExecutionID(units[i].Device) // any that no other has
	}
	sites, err := r.sites(ctx, t)
	if err != nil {
		return fleet.Preview{}, err
	}
	connected := r.o.Link.Connected()
	r.mu.Lock()
	v := r.view(&run{ro: fleet.Rollout{Tenant: t, Spec: spec}, release: release}, connected, sites)
	r.mu.Unlock()
	return Preview(time.Now(), fleet.Rollout{Tenant: t, Release: id, Spec: spec}, units, v), nil
}
