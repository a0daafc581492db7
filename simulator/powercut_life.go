package simulator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

const (
	backWithin = 4 * time.Minute // of a till that boots; a desk may be busy
	endWithin  = 6 * time.Minute // of an update
	tellWithin = time.Minute     // that what is told is what is
	lookEvery  = 250 * time.Millisecond
)

// life is one till's.
type life struct {
	*lane
	t      *Till
	disk   *disk
	device string

	ways map[string][]opened // from an offer to the end of it, by component

	mu     sync.Mutex
	runs   []string // versions of agents and applications, since it was booted
	exe    string   // and process: the last agent that was seen
	begun  time.Time
	seen   []opened
	trap   *trap
	unplug bool // its printer, when the next trial of an agent begins
}

// opened is a file or folder that the till opened.
type opened struct {
	path string
	at   time.Duration // since the offer, or the boot
}

// trap cuts the power.
type trap struct {
	at    int // opens
	after time.Duration
	proc  *process
	shut  chan struct{} // closed when everything has been killed
}

func (l *lane) newLife(r *rack, t *Till) (*life, error) {
	v := &life{lane: l, t: t, ways: make(map[string][]opened)}
	var err error
	t.disk = filepath.Join(t.dir, "disk")
	if v.disk, err = r.add(t.Name, t.disk, v.sees); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	t.check, t.alone = "1m", true
	runs := filepath.Join(t.disk, "runs")
	if err := errors.Join(os.Mkdir(filepath.Join(t.disk, "state"), 0o700), os.Mkdir(runs, 0o750), os.Chmod(runs, 0o777), tool("sync", "-f", t.disk)); err != nil { // #nosec G302 -- the POS application's user writes there
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return v, t.configure()
}

// sees is told of each open on the disk, before it is done. Reading a whole
// tree again changes nothing, and is passed over.
func (v *life) sees(pid int, path string) {
	v.who(pid)
	if strings.HasPrefix(path, "apps/") && strings.Contains(path, "/data") && !strings.Contains(path, ".part/") {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seen = append(v.seen, opened{path, time.Since(v.begun)})
	if v.unplug && filepath.Base(path) == "trial.json.new" {
		v.unplug = false
		go v.t.printer.Set(emulator.Unplugged, true)
	}
	if c := v.trap; c != nil && len(v.seen) == c.at {
		c.proc = v.t.proc
		if c.after == 0 {
			c.spring()
		} else {
			time.AfterFunc(c.after, c.spring)
		}
	}
}

// who notes which agent is at work, and which application is current.
func (v *life) who(pid int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if at, err := os.Readlink(filepath.Join(v.t.disk, "apps", "pos", "current")); err == nil {
		at, _, _ = strings.Cut(at, "~")
		v.ran(at)
	}
	if v.t.proc == nil || pid != v.t.proc.pid() {
		return
	}
	file := fmt.Sprintf("/proc/%d/exe", pid)
	at, err := os.Readlink(file)
	if at = fmt.Sprint(pid, at); err != nil || at == v.exe {
		return
	}
	v.exe = at
	go func() { // it opens files itself
		version := v.is(fileHash(file))
		v.mu.Lock()
		defer v.mu.Unlock()
		v.ran(version)
	}()
}

// ran notes a version; mu is held.
func (v *life) ran(version string) {
	if version != "" && !slices.Contains(v.runs, version) {
		v.runs = append(v.runs, version)
	}
}

func (c *trap) spring() {
	c.proc.cut()
	close(c.shut)
}

// watch begins to count anew, towards a trap or none.
func (v *life) watch(c *trap) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begun, v.seen, v.trap, v.runs = time.Now(), nil, c, nil
}

// boot does what the image does, and starts the agent.
func (v *life) boot(ctx context.Context) (time.Time, error) {
	sells, err := os.ReadFile(filepath.Join(v.t.disk, "apps", "pos", "current", "version"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return time.Time{}, fmt.Errorf("boot: %w", err)
	}
	file := filepath.Join(v.t.disk, "runs", "pos")
	if err := errors.Join(os.WriteFile(file, sells, 0o600), os.Chmod(file, 0o666)); err != nil { // #nosec G302 -- the POS application's user writes it
		return time.Time{}, fmt.Errorf("boot: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now().Truncate(time.Millisecond)
	v.t.Boot(ctx)
	return now, nil
}

// outage takes the power away - unless the trap has done so - and gives it
// back, up to the moment before the boot.
func (v *life) outage(ctx context.Context, number int, lost loss, execution string) (Moment, error) {
	v.t.proc.cut()
	v.t.proc.end()
	v.mu.Lock()
	m := Moment{Open: len(v.seen), Lost: lost.String()}
	if c := v.trap; c != nil && c.at <= m.Open {
		m.Open, m.After = c.at, float64(c.after.Microseconds())/1000
	}
	if m.Open > 0 {
		m.File = v.seen[m.Open-1].path
	}
	v.trap = nil
	v.mu.Unlock()
	m.State = v.journal(execution)
	if err := errors.Join(v.disk.cut(lost), v.t.powerCycle(ctx), v.disk.mount()); err != nil {
		return m, err
	}
	m.Kept = v.journal(execution)
	if v.opt.Spoil == nil {
		return m, nil
	}
	return m, v.opt.Spoil(number, v.t.disk)
}

// journal is where an execution stands, by the till's journal.
func (v *life) journal(execution string) string {
	type entry struct {
		Execution string `json:"execution"`
		State     string `json:"state"`
	}
	var j struct {
		Offer *entry `json:"offer"`
		State string `json:"state"`
		Part  string `json:"part"`
		Queue []struct {
			Offer entry `json:"offer"`
		} `json:"queue"`
		Ended []entry `json:"ended"`
	}
	b, err := os.ReadFile(filepath.Join(v.t.disk, "state", "agent", "journal.json"))
	if err != nil || json.Unmarshal(b, &j) != nil {
		return "unreadable"
	}
	switch {
	case j.Offer != nil && j.Offer.Execution == execution && j.Part == "back":
		return j.State + " (back)"
	case j.Offer != nil && j.Offer.Execution == execution:
		return j.State
	case len(j.Queue) > 0:
		return "OFFERED"
	case slices.ContainsFunc(j.Ended, func(e entry) bool { return e.Execution == execution }):
		return "ended"
	}
	return "not offered"
}

// now is what the service knows.
type now struct {
	device
	AuditOK bool `json:"audit_ok"`
	State   struct {
		StartedAt     time.Time `json:"started_at"`
		AuditRecorded uint64    `json:"audit_recorded"`
	} `json:"state"`
	update struct {
		Installed  []running `json:"installed"`
		Executions []struct {
			ID, Rollout, State, Reason, Text string
		} `json:"executions"`
	}
}

func (v *life) now(ctx context.Context) (n now, err error) {
	// What is installed first: it is of the start that the device tells of, or an
	// older one.
	path := "/v1/devices/" + url.PathEscape(v.device)
	if err = v.w.Operator.Get(ctx, path, &n); err == nil {
		err = v.w.Operator.Get(ctx, path+"/update", &n.update)
	}
	return n, err
}

func (n now) execution(rollout string) (id, state, reason string) {
	for _, e := range n.update.Executions {
		if e.Rollout == rollout {
			return e.ID, e.State, strings.TrimSpace(e.Reason + " " + e.Text)
		}
	}
	return "", "", ""
}

func ended(state string) bool {
	return slices.Contains([]string{"SUCCEEDED", "ALREADY_INSTALLED", "FAILED", "ROLLED_BACK", "REJECTED"}, state)
}

// within waits until ok, for no longer than d; ok is false when it never was.
func within(ctx context.Context, d time.Duration, f func(ctx context.Context) (bool, error)) (ok bool, err error) {
	end := time.After(d)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if ok, err := f(ctx); ok || err != nil {
			return ok, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-end:
			return false, nil
		case <-tick.C:
		}
	}
}

// truth is what runs of a component now, by the disk and the processes; slow,
// it looks at every byte.
func (v *life) truth(component string) running {
	r := running{Component: component}
	if component == posComponent {
		dir := filepath.Join(v.t.disk, "apps", "pos")
		r.Slot, _ = os.Readlink(filepath.Join(dir, "current"))
		if r.Slot == "" {
			return running{}
		}
		r.Hash, _ = treeHash(filepath.Join(dir, r.Slot))
		r.Version = v.is(r.Hash)
		return r
	}
	exe := fmt.Sprintf("/proc/%d/exe", v.t.proc.pid())
	path, err := os.Readlink(exe)
	if err != nil {
		return r
	}
	slot, inside := strings.CutPrefix(path, filepath.Join(v.t.disk, "state", "agent")+"/")
	r.Slot, r.Hash = "golden", fileHash(exe)
	r.Version = v.is(r.Hash)
	if inside {
		r.Slot = filepath.Dir(slot)
		_, err = os.Stat(filepath.Join(v.t.disk, "state", "agent", "trial.json"))
		r.Trial = err == nil
	} else {
		r.Hash = ""
	}
	return r
}

func fileHash(path string) string {
	f, err := os.Open(path) // #nosec G304 -- of a till
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

// offer starts a rollout of a release to this till alone.
func (v *life) offer(ctx context.Context, s *shipment) (rollout string, err error) {
	if err := s.publish(ctx); err != nil {
		return "", err
	}
	steps := map[string]int{}
	switch { // what does not work is to be found out soon
	case s.fate != good && s.component == "agent":
		steps["CHECKING"] = 4
	case s.fate != good:
		steps["CHECKING"] = 2
	}
	var r struct {
		ID string `json:"id"`
	}
	err = v.w.Operator.Post(ctx, "/v1/rollouts", map[string]any{"release": s.id(), "spec": map[string]any{
		"filter": map[string]any{"devices": []string{v.device}}, "attempts": 1, "steps_s": steps,
		"gate": map[string]any{"success": -1, "bad": -1, "site_bad": -1, "health": -1},
	}}, &r)
	return r.ID, err
}

// live is the whole life of a till: it joins, is updated twice in peace, and
// then in a bad neighbourhood.
func (v *life) live(ctx context.Context, points []point) error {
	if err := v.grow(ctx); err != nil {
		return err
	}
	for _, p := range points {
		c, err := v.play(ctx, p)
		if err != nil {
			return fmt.Errorf("cut %d: %w", p.number, err)
		}
		v.lane.mu.Lock()
		v.cuts = append(v.cuts, c)
		v.lane.mu.Unlock()
		again := ""
		if c.Again != nil {
			again = fmt.Sprintf(", again at %s", c.Again.File)
		}
		v.say("[%3d] %s  %s %s (%s): cut in %s at %s%s; back on %s, %s", c.Number, c.Till, c.Component, c.To, c.Fate, c.At.State, c.At.File, again, c.Back, c.End)
		for _, p := range c.Problems {
			v.say("[%3d] PROBLEM: %s", c.Number, p)
		}
	}
	v.t.Stop()
	return nil
}

// grow enrols the till, and brings it the versions that it goes on from. How it
// opens its files on the way is how the cuts will be placed.
func (v *life) grow(ctx context.Context) error {
	golden, err := exec.CommandContext(ctx, v.t.agent, "-version").Output() // #nosec G204 -- our own binary
	if err != nil {
		return fmt.Errorf("version of %s: %w", v.t.agent, err)
	}
	v.know(fileHash(v.t.agent), strings.TrimSpace(string(golden)))
	if _, err := v.boot(ctx); err != nil {
		return err
	}
	ok, err := within(ctx, backWithin, func(ctx context.Context) (bool, error) {
		fleet, err := v.w.devices(ctx)
		d := fleet[v.t.Name]
		v.device = d.ID
		return d.Online && d.Trust == "attested" && d.AgentVersion != "" && healthy(d), err
	})
	if err == nil && !ok {
		err = errors.New("it does not join the fleet")
	}
	if err != nil {
		return err
	}
	for _, s := range []*shipment{v.apps[0], v.agents[0], v.apps[1]} {
		if err := s.publish(ctx); err != nil {
			return err
		}
		v.watch(nil)
		rollout, err := v.offer(ctx, s)
		if err != nil {
			return err
		}
		state := ""
		ok, err := within(ctx, endWithin, func(ctx context.Context) (bool, error) {
			n, err := v.now(ctx)
			_, state, _ = n.execution(rollout)
			return ended(state), err
		})
		if err != nil {
			return err
		}
		if !ok || state != "SUCCEEDED" {
			return fmt.Errorf("the update to %s in peace is %q", s.id(), state)
		}
		v.mu.Lock()
		v.ways[s.component] = v.seen
		v.mu.Unlock()
	}
	v.say("%s  has grown up: %d opens on the way of an agent, %d on that of an application", v.t.Name, len(v.ways["agent"]), len(v.ways[posComponent]))
	return nil
}

// healthy reports whether the printer does its work.
func healthy(d device) bool {
	return slices.ContainsFunc(d.Peripherals, func(p PeripheralReport) bool { return p.ID == "receipt" && p.Health == "OK" })
}
