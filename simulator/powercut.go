package simulator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// PowercutOptions say what a run of power cuts is.
type PowercutOptions struct {
	Options
	Cuts   int
	Report string // file for the PowercutReport; "-" prints it, empty: none
	// Spoil is called with the number of a cut and the till's disk as the cut left
	// it: for tests, which do to it what the agent must not let happen.
	Spoil func(cut int, disk string) error
}

// PowercutReport is what a run of power cuts proves.
type PowercutReport struct {
	Cuts    int            `json:"cuts"`
	Working int            `json:"working"` // came back on old or new, and said so truthfully
	OK      bool           `json:"ok"`
	Seed    uint64         `json:"seed"`
	Seconds float64        `json:"seconds"`
	States  map[string]int `json:"states"` // what the execution was in when the power went, by class
	Ends    map[string]int `json:"ends"`   // how the executions ended, by class
	Points  []Cut          `json:"points"`
}

// Cut is one of them, and what became of the till.
type Cut struct {
	Number    int      `json:"number"`
	Till      string   `json:"till"`
	Component string   `json:"component"`
	Fate      string   `json:"fate"` // of the release: good, dead (never lives), sick (is not well)
	From      string   `json:"from"`
	To        string   `json:"to"`
	At        Moment   `json:"at"`
	Again     *Moment  `json:"again,omitempty"` // the power went once more before the till was back
	Back      string   `json:"back"`            // what ran when it was back
	End       string   `json:"end"`             // of the execution, and why
	Runs      string   `json:"runs"`            // in the end
	Problems  []string `json:"problems,omitempty"`
	Seconds   float64  `json:"seconds"`
}

// Moment is when the power went.
type Moment struct {
	Open  int     `json:"open"`     // of the files and folders that the till had opened since the offer, or since its boot
	File  string  `json:"file"`     // the last of them
	After float64 `json:"after_ms"` // that
	Lost  string  `json:"lost"`     // of what the disk had not been told to sync
	State string  `json:"state"`    // of the execution, as the till knew it
	Kept  string  `json:"kept"`     // as its disk did
}

// Powercut lets tills live through power cuts in the middle of updates: the
// agent is killed, what was not synced is lost, the TPM starts anew. After each
// cut the till has to come back on the old or the new version, say truthfully
// which, and bring the update to an end that is true as well. It returns an
// error when one did not; the last line that it prints says how many did.
func Powercut(ctx context.Context, opt PowercutOptions) error {
	began := time.Now()
	var line sync.Mutex
	l := &lane{opt: opt, known: make(map[string]string), say: func(format string, args ...any) {
		line.Lock()
		defer line.Unlock()
		fmt.Fprintf(opt.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}}
	if opt.Tills < 1 || opt.Cuts < 1 {
		return fmt.Errorf("%d cuts of %d tills: at least one of one", opt.Cuts, opt.Tills)
	}
	cuts, err := l.run(ctx)
	if err != nil && len(cuts) == 0 {
		return err
	}
	r := PowercutReport{Cuts: opt.Cuts, Seed: opt.Seed, Seconds: time.Since(began).Round(time.Millisecond).Seconds(), States: map[string]int{}, Ends: map[string]int{}, Points: cuts}
	for _, c := range cuts {
		if len(c.Problems) == 0 {
			r.Working++
		}
		class, _, _ := strings.Cut(c.Component, "/")
		r.States[class+" "+c.At.State]++
		if c.Again != nil {
			r.States[class+" recovery"]++
		}
		r.Ends[class+" "+c.Fate+" "+c.End]++
	}
	r.OK = r.Working == r.Cuts
	for _, m := range []map[string]int{r.States, r.Ends} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(opt.Out, "%6d  %s\n", m[k], k)
		}
	}
	err = errors.Join(err, WriteReport(opt.Out, opt.Report, r))
	fmt.Fprintf(opt.Out, "%d of %d come back working on old or new, and say so truthfully\n", r.Working, r.Cuts)
	if n := len(cuts) - r.Working; n > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d power cuts did harm", n, len(cuts)))
	}
	if len(cuts) < r.Cuts {
		err = errors.Join(err, fmt.Errorf("only %d of %d power cuts were made", len(cuts), r.Cuts))
	}
	return err
}

// lane is a run.
type lane struct {
	opt PowercutOptions
	say func(string, ...any)
	w   *World

	agents, apps []*shipment // in the order of their versions

	publishing sync.Mutex // one at a time

	mu    sync.Mutex
	known map[string]string // what a file or a tree is, by its hash
	cuts  []Cut
}

// What a release does once it is installed.
const (
	good = "good"
	dead = "dead"
	sick = "sick"
)

// point is a cut to be.
type point struct {
	number  int
	release *shipment
	at      float64 // share of the way from the offer to the commit
	timed   bool    // of its time, not of what is opened on it
	lost    loss
	again   int // opens after the boot at which the power goes again; 0: it does not
}

// run returns the cuts that were made, also with an error.
func (l *lane) run(ctx context.Context) ([]Cut, error) {
	l.say("starting the fleet service and %d tills on disks of their own in %s", l.opt.Tills, l.opt.Dir)
	points, err := l.plan()
	if err != nil {
		return nil, err
	}
	r, err := newRack(l.opt.Dir, l.opt.Tills)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := r.close(); err != nil {
			l.say("the disks: %v", err)
		}
	}()
	if l.w, err = Open(ctx, l.opt.Options); err != nil {
		return nil, err
	}
	defer l.w.Close()
	lives := make([]*life, len(l.w.Tills))
	for i, t := range l.w.Tills {
		if lives[i], err = l.newLife(r, t); err != nil {
			return nil, err
		}
	}
	if err := r.watchOver(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var all sync.WaitGroup
	all.Go(func() { l.publishAhead(ctx) })
	for i, v := range lives {
		all.Go(func() {
			if err := v.live(ctx, points[i]); err != nil {
				stop(fmt.Errorf("%s: %w", v.t.Name, err))
			}
		})
	}
	all.Wait()
	slices.SortFunc(l.cuts, func(a, b Cut) int { return cmp.Compare(a.Number, b.Number) })
	return l.cuts, context.Cause(ctx)
}

// plan draws the cuts of each till: half of them in updates of the agent, half
// of the application, and in each evenly over the whole way. The same seed
// draws the same.
func (l *lane) plan() ([][]point, error) {
	if err := l.releases(); err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(l.opt.Seed, 4)) // #nosec G404 -- to be drawn again
	points := make([][]point, l.opt.Tills)
	same := make(map[string][]*point) // by kind of the update
	for n := range l.opt.Cuts {
		till, round := n%l.opt.Tills, n/l.opt.Tills
		from, k := l.agents[1:], round/2
		if (round+till)%2 == 1 {
			from, k = l.apps[2:], round/2
		}
		points[till] = append(points[till], point{number: n + 1, release: from[k]})
	}
	for i := range points {
		for j := range points[i] {
			p := &points[i][j]
			kind := p.release.component + p.release.fate
			same[kind] = append(same[kind], p)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(same)) {
		list := same[kind]
		for i, place := range rng.Perm(len(list)) {
			list[i].at = (float64(place) + rng.Float64()) / float64(len(list))
		}
		for i, place := range rng.Perm(len(list)) {
			list[i].timed = place%2 == 1
			list[i].lost = [...]loss{everything, content, everything, nothing}[rng.IntN(4)]
			if place%5 == 2 {
				list[i].again = 1 + rng.IntN(recovery)
			}
		}
	}
	return points, nil
}

// recovery is about how much a till opens from its boot until it is back.
const recovery = 60
