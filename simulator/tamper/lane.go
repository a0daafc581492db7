package tamper

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator"
)

// lane is a till under attack, and the mirror between it and the artifacts.
type lane struct {
	s      *siege
	till   *simulator.Till
	mirror *mirror
	box    *box // nil: the till has no boot slots
	device string

	wiped     bool    // its state was lost, and its trail with it
	before    truth   // what must be so after the attack
	n         int     // releases so far
	last      release // that was attacked and may be taken
	tries     []Try
	differs   string                                  // what runs, when it is not what ran
	unwilling string                                  // how an honest release ended, when it was not taken
	what      string                                  // was played, where that is not what was meant
	honest    func(ctx context.Context) (bool, error) // in place of takes
}

// release is one of an application of this till.
type release struct{ id, version, path string }

// settled waits until the till is attested.
func (l *lane) settled(ctx context.Context) error {
	return l.s.world.Until(ctx, l.till.Name+" is attested", func(ctx context.Context) (bool, error) {
		var page struct {
			Items []struct {
				ID     string `json:"id"`
				Serial string `json:"serial"`
				Trust  string `json:"trust"`
				Online bool   `json:"online"`
			} `json:"items"`
		}
		if err := l.s.world.Operator.Get(ctx, "/v1/devices?query="+l.till.Name, &page); err != nil {
			return false, err
		}
		for _, d := range page.Items {
			if d.Serial == l.till.Name && d.Online && d.Trust == "attested" {
				l.device = d.ID
				return true, nil
			}
		}
		return false, nil
	})
}

// fresh signs and publishes the next version of the till's application, which
// no till has heard of, in a version of its role that none has.
func (l *lane) fresh(ctx context.Context) (release, error) {
	l.n++
	r := release{version: fmt.Sprintf("1.0.%d", l.n)}
	r.id = fmt.Sprintf("ops/%s/%s/%s", tenant, l.till.Name, r.version)
	r.path = r.id + "/tree.tar"
	tree, err := l.s.tree(r.version)
	if err != nil {
		return r, err
	}
	l.last = r
	return r, l.s.publish(ctx, func() error {
		return l.s.sign(ctx, "--tree", tree, "--tenant", tenant, "--name", l.till.Name, "--version", r.version)
	}, r.id)
}

// execution is where the till stands with an offer.
type execution struct {
	ID     string `json:"id"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	Text   string `json:"text"`
}

// States in which an execution ends.
var (
	refusals = []string{"REJECTED", "FAILED", "ROLLED_BACK"}
	ends     = append([]string{"SUCCEEDED", "ALREADY_INSTALLED", "TIMED_OUT", "REMOVED", "CANCELED"}, refusals...)
)

// steps are the seconds that a state may take; what an attacker stretches ends
// there.
type steps map[string]int

// usual are those of honest releases, and of attacks that end by themselves.
var usual = steps{"OFFERED": 60, "DOWNLOADING": 60}

// offer has the service offer the till a release, and waits for the end.
func (l *lane) offer(ctx context.Context, id string, s steps) (execution, error) {
	var e execution
	var made struct {
		ID string `json:"id"`
	}
	err := l.s.world.Operator.Post(ctx, "/v1/rollouts", map[string]any{"release": id, "spec": map[string]any{
		"filter": map[string]any{"devices": []string{l.device}}, "attempts": 1, "steps_s": s,
		"gate": map[string]any{"success": -1, "bad": -1, "site_bad": -1, "health": -1},
	}}, &made)
	if err != nil {
		return e, err
	}
	err = l.s.world.Until(ctx, id+" has ended on "+l.till.Name, func(ctx context.Context) (bool, error) {
		var page struct {
			Items []execution `json:"items"`
		}
		err := l.s.world.Operator.Get(ctx, "/v1/rollouts/"+made.ID+"/executions", &page)
		if err != nil || len(page.Items) == 0 {
			return false, err
		}
		e = page.Items[0]
		return slices.Contains(ends, e.State), nil
	})
	if err != nil {
		err = fmt.Errorf("%w; it is %s %s: %s", err, e.State, e.Reason, e.Text)
	}
	return e, err
}

// noted is an entry in the trail of a device.
type noted struct {
	Kind     string            `json:"kind"`
	Severity string            `json:"severity"`
	Subject  string            `json:"subject"`
	Detail   map[string]string `json:"detail"`
}

// trail waits for an entry in the till's own audit trail.
func (l *lane) trail(ctx context.Context, what string, is func(noted) bool) (found noted, err error) {
	err = l.s.world.Until(ctx, what+" is in the trail of "+l.till.Name, func(ctx context.Context) (bool, error) {
		var page struct {
			Items []noted `json:"items"`
		}
		if err := l.s.world.Operator.Get(ctx, "/v1/devices/"+l.device+"/audit?limit=500", &page); err != nil {
			return false, err
		}
		i := slices.IndexFunc(page.Items, is)
		if i >= 0 {
			found = page.Items[i]
		}
		return i >= 0, nil
	})
	return found, err
}

// try plays one way of an attack: the till is offered a release, and must
// refuse it by one of the checks, in its report and in its trail.
func (l *lane) try(ctx context.Context, what, id string, s steps, want ...string) error {
	began := time.Now()
	e, err := l.offer(ctx, id, s)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	t := Try{
		What: what, Refused: slices.Contains(refusals, e.State), Check: e.Reason, State: e.State, Answer: e.Text,
		Sent: l.mirror.sent.Load(), Seconds: time.Since(began).Seconds(),
	}
	switch {
	case !t.Refused:
		t.Wrong = "NOT REFUSED"
	case !slices.Contains(want, t.Check):
		t.Wrong = fmt.Sprintf("refused by %q, want %s", t.Check, strings.Join(want, " or "))
	default:
		reason, err := l.noted(ctx, e)
		if err != nil {
			return err
		}
		if reason != t.Check {
			t.Wrong = fmt.Sprintf("reported as %q, and noted as %q", t.Check, reason)
		}
	}
	l.tries = append(l.tries, t)
	return nil
}

// noted is the reason of an end in the till's own trail; that of a till which
// has forgotten its trail is in its journal: the service takes no second one.
func (l *lane) noted(ctx context.Context, e execution) (string, error) {
	if !l.wiped {
		n, err := l.trail(ctx, "the end of "+e.ID, func(n noted) bool { return n.Subject == e.ID && n.Detail["state"] == e.State })
		return n.Detail["reason"], err
	}
	b, err := os.ReadFile(filepath.Join(l.till.Dir(), "state", "agent", "journal.json"))
	if err != nil {
		return "", err
	}
	var j struct {
		Ended []struct{ Execution, Reason string } `json:"ended"`
	}
	if err := json.Unmarshal(b, &j); err != nil {
		return "", err
	}
	for _, p := range j.Ended {
		if p.Execution == e.ID {
			return p.Reason, nil
		}
	}
	return "", nil
}

// refuses adds what was tried in another way than by an offer of the service.
func (l *lane) refuses(what string, n noted, began time.Time, want string) {
	t := Try{What: what, Refused: true, Check: n.Detail["reason"], State: n.Detail["state"], Answer: n.Detail["text"], Seconds: time.Since(began).Seconds()}
	if n.Kind == mediumRefused { // there is no execution yet
		t.Check, t.Answer = strings.TrimPrefix(n.Kind, "update."), n.Detail["reason"]
	}
	t.Refused = t.State == "" || slices.Contains(refusals, t.State)
	switch {
	case !t.Refused:
		t.Wrong = "NOT REFUSED"
	case t.Check != want:
		t.Wrong = fmt.Sprintf("refused by %q, want %s", t.Check, want)
	}
	l.tries = append(l.tries, t)
}

// bounded holds the last try to a time and to bytes.
func (l *lane) bounded(d time.Duration, bytes int64) {
	t := &l.tries[len(l.tries)-1]
	switch {
	case t.Wrong != "":
	case t.Seconds > d.Seconds():
		t.Wrong = fmt.Sprintf("took longer than %s", d)
	case t.Sent > bytes:
		t.Wrong = fmt.Sprintf("%d bytes were sent, more than %d", t.Sent, bytes)
	}
}

// takes shows that the till takes an honest release: the one that was attacked
// last, or the next.
func (l *lane) takes(ctx context.Context) (bool, error) {
	r := l.last
	l.last = release{}
	if r.id == "" {
		var err error
		if r, err = l.fresh(ctx); err != nil {
			return false, err
		}
		l.last = release{}
	}
	e, err := l.offer(ctx, r.id, usual)
	if err != nil {
		return false, err
	}
	if e.State != "SUCCEEDED" {
		l.unwilling = fmt.Sprintf("%s: %s %s: %s", r.id, e.State, e.Reason, e.Text)
		return false, nil
	}
	at, err := os.Readlink(filepath.Join(l.till.Dir(), "apps", l.till.Name, "current"))
	return filepath.Base(at) == r.version, err
}

// truth is what runs on the till: by its disk, and as it says.
type truth struct {
	disk string
	said []installed
}

func (t truth) is(other truth) bool { return t.disk == other.disk && slices.Equal(t.said, other.said) }

func (l *lane) truth(ctx context.Context) (truth, error) {
	var now struct {
		Installed []installed `json:"installed"`
	}
	if err := l.s.world.Operator.Get(ctx, "/v1/devices/"+l.device+"/update", &now); err != nil {
		return truth{}, err
	}
	disk, err := l.disk()
	return truth{disk, now.Installed}, err
}

// installed is a component as the till says it runs.
type installed struct {
	Component, Version, Slot, Hash string
	Trial                          bool
}

// begins takes what runs now for what must run after the attack. What was
// installed last may be told a moment later.
func (l *lane) begins(ctx context.Context) error {
	return l.s.world.Until(ctx, l.till.Name+" tells what runs", func(ctx context.Context) (bool, error) {
		now, err := l.truth(ctx)
		if err != nil {
			return false, err
		}
		l.before = now
		to, err := os.Readlink(filepath.Join(l.till.Dir(), "apps", l.till.Name, "current"))
		if err != nil {
			return false, err
		}
		slot, _, _ := strings.Cut(now.disk[strings.Index(now.disk, "slot "):], "\n")
		told := func(component, version, slot string) bool {
			return slices.ContainsFunc(now.said, func(i installed) bool {
				return i.Component == component && (version == "" || i.Version == version) && (slot == "" || i.Slot == slot) && !i.Trial
			})
		}
		return told("ops/"+tenant+"/"+l.till.Name, filepath.Base(to), "") && told("agent", "", strings.TrimPrefix(slot, "slot ")) &&
			(!l.box.there() || l.box.runs() == "A" || told("os/"+model+"/prod", "", "rootfs.1")), nil
	})
}

// disk tells what the till would start: the slot of its agent and the program in
// it, the application that current leads to with all its files, its settings, and
// its boot slot.
func (l *lane) disk() (string, error) {
	var out strings.Builder
	note := func(what string, b []byte) { fmt.Fprintf(&out, "%s %x\n", what, sha256.Sum256(b)) }
	state := filepath.Join(l.till.Dir(), "state")
	slot, err := os.Readlink(filepath.Join(state, "agent", "current"))
	if err != nil {
		slot = "golden"
	} else if b, err := os.ReadFile(filepath.Join(state, "agent", slot, "tillward-agent")); err == nil {
		note("agent", b)
	}
	fmt.Fprintf(&out, "slot %s\n", slot)
	if l.box.there() {
		fmt.Fprintf(&out, "boot slot %s\n", l.box.runs())
	}
	apps := filepath.Join(l.till.Dir(), "apps")
	links, err := filepath.Glob(filepath.Join(apps, "*", "current"))
	if err != nil {
		return "", err
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%s -> %s\n", link, to)
		root := filepath.Join(filepath.Dir(link), filepath.Base(to))
		err = fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(filepath.Join(root, p)) // #nosec G304,G122 -- the till's own folder
			note(p, b)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	if b, err := os.ReadFile(filepath.Join(state, "settings", "settings.json")); err == nil {
		note("settings", b)
	}
	return out.String(), nil
}

// settles is how long what runs after an attack may take to show.
const settles = 15 * time.Second

// same reports whether the till runs what it ran. A report may take a moment,
// a restart some.
func (l *lane) same(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, settles)
	defer cancel()
	var now truth
	err := l.s.world.Until(ctx, "what ran before runs", func(ctx context.Context) (bool, error) {
		is, err := l.truth(ctx)
		if err != nil {
			return false, err
		}
		now = is
		return now.is(l.before), nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		l.differs = fmt.Sprintf("was %+v, is %+v", l.before, now)
		return false, nil
	}
	return err == nil, err
}

// target is a target as the repository describes it.
func (s *siege) target(path string) (trust.Target, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := (&trust.Repository{Dir: s.folder("repo")}).List()
	if err != nil {
		return trust.Target{}, err
	}
	i := slices.IndexFunc(all, func(t trust.Target) bool { return t.Path == path })
	if i < 0 {
		return trust.Target{}, fmt.Errorf("%s: %w", path, errNoRelease)
	}
	return all[i], nil
}
