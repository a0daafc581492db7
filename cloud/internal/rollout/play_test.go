package rollout_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/rollout"
)

// fate is what becomes of a device that is offered the release.
type fate int

const (
	well    fate = iota
	bad          // rolled back
	refuses      // rejected
	flaky        // fails at first, then does well
	fails        // each time
	dies         // silent for good once it restarts
	gone         // never there
	leaves       // silent for good once it was offered something
)

// game plays a rollout with devices that do what their fate wants, and looks at
// every plan.
type game struct {
	t     interface{ Fatalf(string, ...any) }
	rnd   *rand.Rand
	now   time.Time
	ro    fleet.Rollout
	units []fleet.Unit
	fates []fate
	off   []time.Time // away until
	at    map[fleet.ExecutionID]int
	hit   map[string]map[int]bool // by model: who was ever offered it
	tried map[int]int
	last  rollout.Plan
}

func newGame(t interface{ Fatalf(string, ...any) }, seed uint64, spec fleet.Spec) *game {
	return &game{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), now: noon, at: map[fleet.ExecutionID]int{}, hit: map[string]map[int]bool{}, tried: map[int]int{},
		ro: fleet.Rollout{ID: "ro", State: fleet.RolloutRunning, StartedAt: noon, Spec: spec},
	}
}

func (g *game) join(model, site string, f fate) {
	i := len(g.units)
	u := fleet.Unit{Execution: fleet.Execution{ID: fleet.ExecutionID(fmt.Sprintf("x%05d", i)), Device: fleet.DeviceID(fmt.Sprintf("d%05d", i)), Wave: -1, State: fleet.ExecQueued, EnteredAt: g.now, UpdatedAt: g.now}, Model: model, Site: site, LastSeen: g.now}
	g.units, g.fates, g.off, g.at[u.ID] = append(g.units, u), append(g.fates, f), append(g.off, time.Time{}), i
	if f == gone {
		g.lose(i)
	}
}

func (g *game) lose(i int) { g.off[i] = g.now.AddDate(99, 0, 0) }

func (g *game) here(i int) bool { return !g.now.Before(g.off[i]) }

func (g *game) view() rollout.View {
	return rollout.View{
		Release: fleet.Release{ID: "agent/2.0.0", Component: "agent", Version: "2.0.0"},
		Presence: func(d fleet.DeviceID) rollout.Presence {
			if g.here(g.at["x"+fleet.ExecutionID(d[1:])]) {
				return rollout.Here
			}
			return rollout.Away
		},
	}
}

func (g *game) set(i int, s fleet.ExecutionState, reason string) {
	u := &g.units[i]
	u.State, u.Reason, u.EnteredAt, u.UpdatedAt = s, reason, g.now, g.now
}

// round makes one plan, looks at it and carries it out.
func (g *game) round() rollout.Plan {
	for i := range g.units {
		if g.here(i) {
			g.units[i].LastSeen = g.now
		}
	}
	p := rollout.Next(g.now, g.ro, g.units, g.view())
	g.check(p)
	for i, w := range p.Assign {
		g.units[i].Wave = int(w)
	}
	g.ro.State, g.ro.Reason, g.ro.Waves, g.ro.Holds = p.To, p.Reason, p.Waves, p.Holds
	for _, m := range p.Moves {
		g.set(g.at[m.Unit.ID], m.To, m.Reason)
	}
	for _, u := range p.Retry {
		i := g.at[u.ID]
		g.set(i, fleet.ExecQueued, "retry")
		g.units[i].OfferedAt = time.Time{}
	}
	for _, u := range p.Recall {
		if i := g.at[u.ID]; g.rnd.IntN(4) > 0 { // not all obey
			g.set(i, fleet.ExecFailed, "canceled")
		}
	}
	for _, u := range p.Offer {
		i := g.at[u.ID]
		if g.units[i].State == fleet.ExecQueued {
			g.set(i, fleet.ExecOffered, "")
			g.units[i].Attempt, g.units[i].OfferedAt = g.units[i].Attempt+1, g.now
			if g.hit[u.Model] == nil {
				g.hit[u.Model] = map[int]bool{}
			}
			g.hit[u.Model][i] = true
		}
	}
	g.last = p
	return p
}

// live lets a minute pass.
func (g *game) live() {
	g.now = g.now.Add(time.Minute)
	for i := range g.units {
		u := &g.units[i]
		if u.State == fleet.ExecQueued || u.State.Ended() || !g.here(i) || g.rnd.IntN(3) == 0 {
			continue
		}
		switch u.State {
		case fleet.ExecOffered:
			g.set(i, fleet.ExecDownloading, "")
			if g.fates[i] == leaves {
				g.lose(i)
			}
		case fleet.ExecDownloading:
			g.set(i, fleet.ExecInstalling, "")
		case fleet.ExecInstalling:
			g.set(i, fleet.ExecRebooting, "")
			if g.fates[i] == dies {
				g.lose(i)
			}
		default:
			g.tried[i]++
			switch f := g.fates[i]; {
			case f == bad:
				g.set(i, fleet.ExecRolledBack, "unproven")
			case f == refuses:
				g.set(i, fleet.ExecRejected, "signature")
			case f == fails, f == flaky && g.tried[i] == 1:
				g.set(i, fleet.ExecFailed, "storage")
			default:
				g.set(i, fleet.ExecSucceeded, "")
			}
		}
	}
}

// silentFor says whether a device does not count any more.
func (g *game) silentFor(u *fleet.Unit) bool {
	return !g.here(g.at[u.ID]) && g.now.Sub(u.LastSeen) > g.ro.Spec.Unreachable
}

var order = map[fleet.WaveState]int{fleet.WavePending: 0, fleet.WaveRunning: 1, fleet.WaveSoaking: 2, fleet.WavePassed: 3, fleet.WaveFailed: 3}

// check is what every plan must hold.
func (g *game) check(p rollout.Plan) {
	spec := g.ro.Spec
	held := map[string]bool{}
	for _, h := range p.Holds {
		if h.ReleasedAt.IsZero() {
			held["m"+h.Model], held["s"+h.Site] = h.Model != "", h.Site != ""
		}
	}
	// What is decided is said, for the trail: where the rollout stands, who is held, and each wave that moves.
	decided := p.To != g.ro.State || len(p.Holds) != len(g.ro.Holds)
	for i, w := range p.Waves {
		was := fleet.WavePending
		if i < len(g.ro.Waves) {
			was = g.ro.Waves[i].State
		}
		decided = decided || w.State != was
	}
	if decided && len(p.Decisions) == 0 {
		g.t.Fatalf("nobody says that it goes from %s, %+v and %+v to %s, %+v and %+v", g.ro.State, g.ro.Waves, g.ro.Holds, p.To, p.Waves, p.Holds)
	}
	running := 0
	for i, w := range p.Waves {
		if i < len(g.ro.Waves) && order[w.State] < order[g.ro.Waves[i].State] && g.ro.Waves[i].State != fleet.WaveFailed {
			g.t.Fatalf("wave %d goes back from %s to %s", i, g.ro.Waves[i].State, w.State)
		}
		if w.State == fleet.WavePassed {
			running = i + 1
		} else if i > running && w.State != fleet.WavePending {
			g.t.Fatalf("wave %d is %s while wave %d is %s", i, w.State, running, p.Waves[running].State)
		}
	}
	gone := map[fleet.ExecutionID]bool{}
	for _, m := range p.Moves {
		if gone[m.Unit.ID] = true; !m.Unit.State.MayBecome(m.To) {
			g.t.Fatalf("%s becomes %s", m.Unit.State, m.To)
		}
	}
	flying, sites, exposed, good := 0, map[string]int{}, map[string]int{}, map[string]int{}
	for i := range g.units {
		u := &g.units[i]
		switch {
		case u.State.Good():
			good[u.Model]++
		case gone[u.ID] || u.State.Ended() || g.silentFor(u) && u.State != fleet.ExecInstalling && u.State != fleet.ExecRebooting && u.State != fleet.ExecInstalled && u.State != fleet.ExecChecking:
		case u.State != fleet.ExecQueued:
			flying++
			sites[u.Site]++
			exposed[u.Model]++
		case u.Attempt > 0:
			exposed[u.Model]++
		}
	}
	fresh, freshModel := 0, map[string]bool{}
	for _, u := range p.Offer {
		i := g.at[u.ID]
		wave := g.units[i].Wave
		if p.Assign != nil {
			if w := int(p.Assign[i]); wave >= 0 && wave != w && wave < len(p.Waves) {
				g.t.Fatalf("%s changes its wave", u.ID)
			} else {
				wave = w
			}
		}
		switch {
		case !g.here(i) || u.State.Ended() || gone[u.ID]:
			g.t.Fatalf("%+v is offered it", u)
		case held["m"+u.Model] || held["s"+u.Site]:
			g.t.Fatalf("%s of %s at %s is offered it, held: %+v", u.ID, u.Model, u.Site, p.Holds)
		case wave > running:
			g.t.Fatalf("%s of wave %d is offered it in wave %d", u.ID, wave, running)
		case p.To != fleet.RolloutRunning && p.To != fleet.RolloutCompleted:
			g.t.Fatalf("%s is offered it, and it becomes %s", u.ID, p.To)
		}
		if u.State == fleet.ExecQueued {
			fresh++
			flying++
			sites[u.Site]++
			if u.Attempt == 0 {
				exposed[u.Model]++
				freshModel[u.Model] = true
			}
			if spec.PerSite > 0 && u.Site != "" && sites[u.Site] > spec.PerSite {
				g.t.Fatalf("%d lanes of site %s are under way", sites[u.Site], u.Site)
			}
		}
	}
	if fresh > 0 && flying > spec.InFlight {
		g.t.Fatalf("%d are under way, at most %d may", flying, spec.InFlight)
	}
	for m := range freshModel {
		if limit := 2*spec.Gate.MinSample + good[m]; exposed[m] > limit {
			g.t.Fatalf("%d of model %s are exposed, at most %d may", exposed[m], m, limit)
		}
	}
	if r := spec.Rate; r.Base > 0 && fresh > 0 {
		recent := fresh
		for i := range g.units {
			if u := &g.units[i]; !u.OfferedAt.IsZero() && u.OfferedAt.After(g.now.Add(-time.Minute)) {
				recent++
			}
		}
		if float64(recent) > max(r.Base, r.Max) {
			g.t.Fatalf("%d were offered it in a minute, at most %v may", recent, max(r.Base, r.Max))
		}
	}
	if g.ro.State == fleet.RolloutRunning && p.To == fleet.RolloutRunning {
		for w, st := range p.Waves { // nobody is forgotten in a wave that has passed in this plan
			if st.State != fleet.WavePassed || w < len(g.ro.Waves) && g.ro.Waves[w].State == fleet.WavePassed {
				continue
			}
			for i := range g.units {
				u := &g.units[i]
				if since := st.OfferedAt.Add(spec.Unreachable); g.now.After(since) && (u.OfferedAt.IsZero() || u.OfferedAt.After(since)) {
					continue
				}
				if u.Wave == w && !u.State.Ended() && !gone[u.ID] && g.here(i) && !held["m"+u.Model] && !held["s"+u.Site] {
					g.t.Fatalf("wave %d has passed and %s of it is %s", w, u.ID, u.State)
				}
			}
		}
	}
	if p.To == fleet.RolloutPaused && p.Reason == "" {
		g.t.Fatalf("it is paused and nobody says why")
	}
}

// TestPlay plays rollouts of any kind to their end.
func TestPlay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, from, to int) int { return rapid.IntRange(from, to).Draw(t, name) }
		spec := fleet.Spec{
			Unreachable: time.Duration(draw("unreachable", 10, 90)) * time.Minute, Deadline: 5 * time.Hour, Attempts: draw("attempts", 1, 3), InFlight: draw("in flight", 1, 60), PerSite: draw("per site", 0, 3),
			Gate: fleet.Gate{MinSample: draw("min sample", 1, 20), Bad: float64(draw("bad", 1, 60)), Success: float64(draw("success", 1, 99)), SiteBad: draw("site bad", 1, 5), BadCap: draw("cap", 0, 40)},
		}
		for w := range draw("waves", 0, 4) {
			spec.Waves = append(spec.Waves, fleet.Wave{Name: fmt.Sprint(w), Percent: float64(draw("percent", 0, 60)), Soak: time.Duration(draw("soak", 0, 40)) * time.Minute})
		}
		if rapid.Bool().Draw(t, "slow") {
			spec.Rate = fleet.Rate{Base: float64(draw("base", 1, 5)), Factor: 2, Every: draw("every", 1, 20), Max: float64(draw("max", 5, 30))}
		}
		g := newGame(t, rapid.Uint64().Draw(t, "seed"), spec)
		evil := draw("evil", 0, 60)
		for range draw("devices", 1, 120) {
			f := well
			if g.rnd.IntN(100) < evil {
				f = fate(g.rnd.IntN(int(leaves) + 1))
			}
			g.join(fmt.Sprintf("m%d", g.rnd.IntN(3)), fmt.Sprintf("s%d", g.rnd.IntN(12)), f)
		}
		resumes := 0
		for minutes := 0; ; minutes++ {
			if minutes > 6000 {
				t.Fatalf("it does not end: %s, %v, stopped %v", g.ro.State, g.ro.Waves, g.last.Stopped)
			}
			g.round()
			switch {
			case g.ro.State == fleet.RolloutPaused && resumes < 3:
				resumes++ // somebody looks at it and says go on
				g.ro.State = fleet.RolloutRunning
				for i := range g.ro.Holds {
					g.ro.Holds[i].ReleasedAt = g.now
				}
			case g.ro.State != fleet.RolloutRunning:
				if g.ro.State == fleet.RolloutCompleted {
					g.over(t)
				}
				return
			}
			g.live()
			if i := g.rnd.IntN(len(g.units)); g.rnd.IntN(4) == 0 && g.here(i) {
				g.off[i] = g.now.Add(time.Duration(g.rnd.IntN(100)) * time.Minute)
			}
			if g.rnd.IntN(100) == 0 && len(g.units) < 150 && minutes < 200 {
				g.join("m0", "s0", well)
			}
		}
	})
}

// over is what a complete rollout must hold.
func (g *game) over(t *rapid.T) {
	for i := range g.units {
		if u := &g.units[i]; !u.State.Ended() && u.State != fleet.ExecRebooting && u.State != fleet.ExecInstalling {
			t.Fatalf("it is complete and %s is %s", u.ID, u.State)
		} else if g.here(i) && u.State == fleet.ExecQueued {
			t.Fatalf("it is complete and %s was not offered it", u.ID)
		}
	}
}

// TestUnreachableNeverBlocks: with a gate that is content, whoever is there gets the release, however many are not.
func TestUnreachableNeverBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := fleet.Spec{
			Unreachable: 30 * time.Minute, InFlight: rapid.IntRange(1, 10).Draw(t, "in flight"), PerSite: rapid.IntRange(0, 2).Draw(t, "per site"), Gate: fleet.Gate{MinSample: 20},
			Waves: []fleet.Wave{{Name: "tenth", Percent: 10}, {Name: "half", Percent: 50, Soak: 10 * time.Minute}, {Name: "rest"}},
		}
		g := newGame(t, rapid.Uint64().Draw(t, "seed"), spec)
		g.join("m", "s", well)
		there := 1
		for range rapid.IntRange(0, 80).Draw(t, "devices") {
			f := []fate{well, gone, leaves}[g.rnd.IntN(3)]
			if f == well {
				there++
			}
			g.join("m", fmt.Sprintf("s%d", g.rnd.IntN(8)), f)
		}
		for minutes := 0; g.ro.State == fleet.RolloutRunning && minutes < 3000; minutes++ {
			if g.round(); g.ro.State == fleet.RolloutPaused && g.ro.Waves[0].State == fleet.WaveFailed {
				g.ro.State = fleet.RolloutRunning // nobody of the first wave is there: a person decides
			}
			g.live()
		}
		good := 0
		for _, u := range g.units {
			if u.State == fleet.ExecSucceeded {
				good++
			}
		}
		if g.ro.State != fleet.RolloutCompleted || good != there {
			t.Fatalf("it is %s with %d of %d done: %v", g.ro.State, good, there, g.ro.Waves)
		}
	})
}
