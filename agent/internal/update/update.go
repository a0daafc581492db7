package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/provisioning/trust"
)

// ErrRestart is returned by Run when another slot is to be started: the agent
// ends and its supervisor starts it again.
var ErrRestart = errors.New("the agent must be started again")

// States of an execution on the device, as they go on the wire.
const (
	offered     = "OFFERED"
	waiting     = "WAITING"
	downloading = "DOWNLOADING"
	staged      = "STAGED"
	installing  = "INSTALLING"
	installed   = "INSTALLED"
	rebooting   = "REBOOTING"
	checking    = "CHECKING"
	succeeded   = "SUCCEEDED"
	already     = "ALREADY_INSTALLED"
	failed      = "FAILED"
	rolledBack  = "ROLLED_BACK"
	rejected    = "REJECTED"
)

// Offer is one execution of a rollout, its order verified.
type Offer struct {
	Execution string    `json:"execution"`
	Version   string    `json:"version"`
	Target    string    `json:"target"` // TUF target folder
	NotAfter  time.Time `json:"not_after"`
}

// Progress is where an execution stands.
type Progress struct {
	Execution string `json:"execution"`
	State     string `json:"state"`
	Reason    string `json:"reason,omitempty"` // a code
	Text      string `json:"text,omitempty"`
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
	Done      int64  `json:"done,omitempty"`
	Total     int64  `json:"total,omitempty"` // bytes
}

// Releases says what is genuine; trust.Client fits.
type Releases interface {
	Target(ctx context.Context, path string) (trust.Target, error)
}

// Check is one thing a new agent must be able to do.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// Options of a Machine.
type Options struct {
	Dir        string // for slots, trial and journal
	Version    string // that runs
	Slot       string // it runs from
	OS, Arch   string
	Releases   Releases
	TargetsURL func() string // base of artifacts; empty while unknown
	Client     func() (*http.Client, error)
	Report     func(ctx context.Context, p Progress) error // durable
	Record     func(ctx context.Context, kind, severity, subject string, detail map[string]string) error
	Gate       func() string // why to wait; empty: go on
	// Ready prepares the box for a release before it is fetched, and says why it
	// must not have it; empty: it may. An error is tried again. May be nil.
	Ready    func(ctx context.Context, version string) (reason string, err error)
	Checks   []Check
	CheckFor time.Duration
	Log      *slog.Logger
	// Step is called with the name of each step before it is taken; tests cut
	// the power there.
	Step func(name string)
}

// Machine carries out one offer at a time.
type Machine struct {
	o      Options
	s      slots
	offers chan Offer
}

// journal is journal.json: the offer in work, and how the last ones ended.
type journal struct {
	Offer *Offer     `json:"offer,omitempty"`
	State string     `json:"state,omitempty"` // of Offer
	From  string     `json:"from,omitempty"`
	Ended []Progress `json:"ended,omitempty"`
}

const remembered = 32 // ended executions in the journal

// New opens the folder and returns a Machine; Run works.
func New(o Options) (*Machine, error) {
	for _, slot := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, slot), 0o700); err != nil {
			return nil, fmt.Errorf("update slots: %w", err)
		}
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	return &Machine{o: o, s: slots{o.Dir}, offers: make(chan Offer, 8)}, nil
}

// Submit hands in an offer; false when there are too many.
func (m *Machine) Submit(o Offer) bool {
	select {
	case m.offers <- o:
		return true
	default:
		return false
	}
}

// OnTrial reports whether the agent that runs has yet to prove itself: nothing
// must be done that the one before could not live with.
func (m *Machine) OnTrial() bool { return m.s.trial() != nil }

// Run finishes what was begun before the last start, then works on offers. It
// returns nil when ctx ends, or ErrRestart.
func (m *Machine) Run(ctx context.Context) error {
	j := m.journal()
	if err := m.resume(ctx, &j); err != nil {
		return quiet(ctx, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-m.offers:
			if err := m.take(ctx, &j, o); err != nil {
				return quiet(ctx, err)
			}
		}
	}
}

// quiet turns the end of ctx into nil.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, ErrRestart) {
		return nil
	}
	return err
}

func (m *Machine) journal() journal {
	var j journal
	if err := load(filepath.Join(m.o.Dir, "journal.json"), &j); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.o.Log.Error("update journal is unreadable and begins anew", slog.Any("err", err))
	}
	return j
}

func (m *Machine) keep(j *journal) error { return save(filepath.Join(m.o.Dir, "journal.json"), j) }

// resume settles what a restart interrupted. Boot truth wins: what runs is
// what counts, whatever the journal hoped for.
func (m *Machine) resume(ctx context.Context, j *journal) error {
	t := m.s.trial()
	switch {
	case t == nil:
	case t.Failed != "" && t.Slot == m.o.Slot: // cut between giving up and switching back
		if err := m.s.giveUp(t, t.Failed); err != nil {
			return err
		}
		return ErrRestart
	case t.Failed != "": // the launcher, or we, went back
		if err := m.s.setTrial(nil); err != nil {
			return err
		}
		if j.Offer != nil && j.Offer.Execution == t.Execution {
			return m.end(ctx, j, Progress{State: rolledBack, Reason: "unproven", Text: t.Failed})
		}
	case t.Slot == m.o.Slot:
		return m.prove(ctx, j, t)
	default: // the trial was written, the link not yet switched
		if err := m.s.setTrial(nil); err != nil {
			return err
		}
	}
	if j.Offer == nil {
		return nil
	}
	if j.Offer.Version == m.o.Version { // proved, and cut before the journal knew
		return m.end(ctx, j, Progress{State: succeeded})
	}
	return m.work(ctx, j)
}

// take begins with an offer, unless it is known.
func (m *Machine) take(ctx context.Context, j *journal, o Offer) error {
	for _, p := range j.Ended {
		if p.Execution == o.Execution {
			return m.o.Report(ctx, p) // redelivered: told again, never run again
		}
	}
	if j.Offer != nil && j.Offer.Execution != o.Execution {
		m.o.Log.Warn("offer replaced by a newer one", slog.String("execution", j.Offer.Execution))
		if err := m.end(ctx, j, Progress{State: failed, Reason: "superseded", Text: "another offer came"}); err != nil {
			return err
		}
	}
	j.Offer, j.State, j.From = &o, offered, m.o.Version
	if err := m.keep(j); err != nil {
		return err
	}
	if err := m.o.Record(ctx, "update.offered", "info", o.Execution, map[string]string{"version": o.Version}); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return m.work(ctx, j)
}

// refusal ends an execution for a reason that trying again does not change.
type refusal struct {
	state, reason string
	err           error
}

// Error implements error.
func (r *refusal) Error() string { return r.err.Error() }

// Unwrap returns the cause.
func (r *refusal) Unwrap() error { return r.err }

// work tries the offer until it is installed, refused, or out of date. What is
// only a matter of time - network, disk - is tried again with a growing pause.
func (m *Machine) work(ctx context.Context, j *journal) error {
	pause := time.Second
	for {
		err := m.install(ctx, j)
		if errors.Is(err, ErrRestart) || ctx.Err() != nil {
			return err
		}
		if r, ok := errors.AsType[*refusal](err); ok {
			return m.end(ctx, j, Progress{State: r.state, Reason: r.reason, Text: err.Error()})
		}
		m.o.Log.Warn("update will be tried again", slog.String("version", j.Offer.Version), slog.Duration("in", pause), slog.Any("err", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case o := <-m.offers:
			if o.Execution != j.Offer.Execution {
				return m.take(ctx, j, o)
			}
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Minute)
	}
}

// install is the way from an offer to the restart.
func (m *Machine) install(ctx context.Context, j *journal) error {
	o := *j.Offer
	if time.Now().After(o.NotAfter) {
		return Refuse("expired", "the offer of %s has expired", o.Version)
	}
	if err := m.advance(ctx, j, Progress{State: offered}); err != nil {
		return err
	}
	switch {
	case o.Version == m.o.Version:
		return &refusal{already, "", fmt.Errorf("%s runs already", o.Version)}
	case !semver.IsValid("v" + o.Version):
		return Refuse("incompatible", "%.40q is not a version", o.Version)
	case semver.Compare("v"+o.Version, "v"+m.o.Version) < 0:
		return Refuse("downgrade", "%s is older than %s, which runs", o.Version, m.o.Version)
	}
	target, err := m.genuine(ctx, o)
	if err != nil {
		return err
	}
	if m.o.Ready != nil {
		reason, err := m.o.Ready(ctx, o.Version)
		if err != nil {
			return err
		}
		if reason != "" {
			return Refuse("unsealable", "%s", reason)
		}
	}
	if err := m.wait(ctx, j); err != nil {
		return err
	}
	file, err := m.download(ctx, j, target)
	if err != nil {
		return err
	}
	if err := m.advance(ctx, j, Progress{State: staged, Done: target.Length, Total: target.Length}); err != nil {
		return err
	}
	return m.switchTo(ctx, j, target, file)
}

// genuine asks the release itself what the offer points at.
func (m *Machine) genuine(ctx context.Context, o Offer) (trust.Target, error) {
	path := strings.TrimSuffix(o.Target, "/") + "/" + binary + "-" + m.o.OS + "-" + m.o.Arch
	t, err := m.o.Releases.Target(ctx, path)
	for _, k := range []struct {
		err    error
		reason string
	}{
		{trust.ErrExpired, "metadata-expired"},
		{trust.ErrSignature, "signature"},
		{trust.ErrRollback, "rollback"},
		{trust.ErrMismatch, "signature"},
		{trust.ErrNoTarget, "incompatible"},
	} {
		if errors.Is(err, k.err) {
			return t, &refusal{rejected, k.reason, err}
		}
	}
	switch {
	case err != nil:
		return t, err
	case t.Custom.Class != "agent" || t.Custom.OS != m.o.OS || t.Custom.Arch != m.o.Arch:
		return t, Refuse("incompatible", "%s is %s for %s/%s, not an agent for %s/%s", path, t.Custom.Class, t.Custom.OS, t.Custom.Arch, m.o.OS, m.o.Arch)
	case t.Custom.Version != o.Version:
		return t, Refuse("signature", "the release calls %s version %s, the offer %s", path, t.Custom.Version, o.Version)
	}
	return t, nil
}

// wait holds until the gate opens, and says what it waits for.
func (m *Machine) wait(ctx context.Context, j *journal) error {
	told := ""
	for {
		why := m.o.Gate()
		if why == "" {
			return nil
		}
		if time.Now().After(j.Offer.NotAfter) {
			return Refuse("expired", "the offer expired while waiting: %s", why)
		}
		if why != told {
			if err := m.advance(ctx, j, Progress{State: waiting, Reason: why}); err != nil {
				return err
			}
			told = why
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// advance journals and reports a state that the execution enters.
func (m *Machine) advance(ctx context.Context, j *journal, p Progress) error {
	m.o.Step("state " + p.State)
	if p.State != j.State && (p.State == staged || p.State == installed || p.State == checking) {
		if err := m.o.Record(ctx, "update."+strings.ToLower(p.State), "info", j.Offer.Execution, map[string]string{"version": j.Offer.Version}); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	j.State = p.State
	if err := m.keep(j); err != nil {
		return err
	}
	p.Execution, p.From, p.To = j.Offer.Execution, j.From, j.Offer.Version
	return m.o.Report(ctx, p)
}

// end closes the execution: audit first, then the journal, then the report,
// so that what the service hears is on record here.
func (m *Machine) end(ctx context.Context, j *journal, p Progress) error {
	p.Execution, p.From, p.To = j.Offer.Execution, j.From, j.Offer.Version
	severity := "info"
	if p.State != succeeded && p.State != already {
		severity = "alarm"
	}
	detail := map[string]string{"state": p.State, "from": p.From, "to": p.To}
	if p.Reason != "" {
		detail["reason"] = p.Reason
	}
	kind := "update." + strings.ToLower(strings.ReplaceAll(p.State, "_", "-"))
	if err := m.o.Record(ctx, kind, severity, p.Execution, detail); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	m.o.Step("journal " + p.State)
	j.Offer, j.State = nil, ""
	j.Ended = append(j.Ended, p)
	if n := len(j.Ended) - remembered; n > 0 {
		j.Ended = j.Ended[n:]
	}
	if err := m.keep(j); err != nil {
		return err
	}
	m.o.Log.Info("update ended", slog.String("state", p.State), slog.String("reason", p.Reason), slog.String("to", p.To))
	return m.o.Report(ctx, p)
}

// selfCheck runs the new binary once, without touching anything.
func selfCheck(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-selfcheck").CombinedOutput() // #nosec G204 -- a verified slot
	if err != nil {
		return fmt.Errorf("self-check of the new agent: %w: %.200s", err, out)
	}
	return nil
}
