package cloud

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// When a part needs a look, and when it fails.
const (
	slowCommit  = time.Second // that 95 of a hundred commits stay below
	longWait    = 10 * time.Second
	stuckWait   = time.Minute
	roundsStop  = 2 * time.Minute // without a round of rollouts
	startWithin = time.Minute     // from the start on it may take to listen
	soonDays    = 30              // until a certificate ends that nothing renews by itself
	lastDays    = 7
	lowShare    = 0.10 // of a disk
	lowBytes    = 2 << 30
	emptyShare  = 0.02
	emptyBytes  = 200 << 20
	clockJump   = 30 * time.Second
	clockAfter  = time.Hour // a jump is told of
	writeSilent = 5 * time.Minute
)

// pulse is when something went well last, and how it fails since.
type pulse struct {
	mu     sync.Mutex
	well   time.Time
	failed time.Time // the first failure since; zero: none
	err    error
}

func (p *pulse) beat(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.well, p.failed, p.err = time.Now(), time.Time{}, nil
		return
	}
	if p.err == nil {
		p.failed = time.Now()
	}
	p.err = err
}

func (p *pulse) last() (well, failed time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.well, p.failed, p.err
}

// wireHealth says how each part is looked at.
func (s *Service) wireHealth() {
	one := func(part string, look func(ctx context.Context) (state, what, todo string)) figures.Check {
		return figures.Check{Part: part, Look: func(ctx context.Context) []fleet.PartHealth {
			state, what, todo := look(ctx)
			return []fleet.PartHealth{{Part: part, State: state, What: what, Todo: todo}}
		}}
	}
	clock := &clockWatch{synched: clockSynched}
	s.health = figures.NewWatch(s.log,
		one("store", s.storeHealth), one("broker", s.brokerHealth), one("ingest", s.ingestHealth), one("verifier", s.verifierHealth), one("rollout", s.rolloutHealth),
		figures.Check{Part: "export", Look: s.exportHealth}, one("certificates", s.certificateHealth),
		figures.Check{Part: "disk", Look: func(context.Context) []fleet.PartHealth { return s.diskHealth() }},
		one("clock", func(context.Context) (string, string, string) {
			return clock.look(time.Now().Round(0), time.Since(s.began))
		}), one("access-log", s.accessHealth), one("archive", s.archiveHealth),
	)
}

func (s *Service) storeHealth(ctx context.Context) (state, what, todo string) {
	if err := s.store.Ping(ctx); err != nil {
		return fleet.PartFailing, "the database does not answer: " + err.Error(), "see whether its disk is there and has room"
	}
	well, failed, err := s.commits.last()
	if err != nil {
		return fleet.PartFailing, fmt.Sprintf("commits fail since %s: %v", ago(failed), err), "see whether the disk is full, and the service's log; nothing is acknowledged to tills until it can be stored"
	}
	waiting := s.store.Queued()
	if silent := time.Since(well); silent > writeSilent && time.Since(s.began) > writeSilent {
		return fleet.PartDegraded, fmt.Sprintf("nothing was written for %s, %d wait", silent.Round(time.Second), waiting), "see the service's log: something holds the writer"
	}
	now := time.Now()
	recent, _, err := s.figures.Query(ctx, fleet.FigureQuery{Part: "store", From: now.Add(-2 * time.Minute)})
	if err == nil && len(recent) > 0 {
		p95 := recent[0].Total.P95.Round(time.Millisecond)
		what = fmt.Sprintf("last commit %s, 95 of a hundred within %s, %d wait", ago(well), p95, waiting)
		if p95 > slowCommit {
			return fleet.PartDegraded, what, "the disk is slow: see what else writes to it"
		}
		return fleet.PartOK, what, ""
	}
	return fleet.PartOK, fmt.Sprintf("last commit %s, %d wait", ago(well), waiting), ""
}

func (s *Service) brokerHealth(context.Context) (state, what, todo string) {
	n, most := len(s.broker.Connected()), s.cfg.Device.MaxClients
	what = fmt.Sprintf("%d of at most %d devices are connected", n, most)
	const more = "raise device.max_clients, or find out why so many connect"
	switch {
	case !s.broker.Accepting() && time.Since(s.began) < startWithin: // the first look at it comes beside its start
		return fleet.PartOK, what + "; it begins", ""
	case !s.broker.Accepting():
		return fleet.PartFailing, what + "; no more are let in", "the listener was closed: restart the service"
	case n >= most:
		return fleet.PartFailing, what + "; no more are let in", more
	case n >= most*9/10:
		return fleet.PartDegraded, what, more
	}
	return fleet.PartOK, what, ""
}

func (s *Service) ingestHealth(context.Context) (state, what, todo string) {
	st, oldest := s.ingest.Stats(), s.ingest.Oldest(time.Now())
	what = fmt.Sprintf("%d messages wait, and %d of backlog", st.Live, st.Backlog)
	if oldest > 0 {
		what += fmt.Sprintf("; the oldest for %s", oldest.Round(10*time.Millisecond))
	}
	switch {
	case oldest > stuckWait && st.Live > 0:
		return fleet.PartFailing, what, "commits do not come: see the store"
	case oldest > longWait && st.Live > 0, oldest > 10*stuckWait:
		return fleet.PartDegraded, what, "more comes than can be stored: see the store, and which tills send so much"
	}
	return fleet.PartOK, what, ""
}

func (s *Service) verifierHealth(context.Context) (state, what, todo string) {
	n := s.verifier.Waiting()
	well, failed, err := s.appraisals.last()
	what = fmt.Sprintf("%d wait for their appraisal", n)
	switch {
	case err != nil:
		return fleet.PartFailing, fmt.Sprintf("%s; appraisals fail since %s: %v", what, ago(failed), err), "see the store and the service's log"
	case n > 1000 && time.Since(well) > stuckWait:
		return fleet.PartFailing, what, "restart the service: appraisals do not come"
	case n > 1000:
		return fleet.PartDegraded, what, "a fleet has come back at one moment; it passes"
	}
	return fleet.PartOK, what, ""
}

func (s *Service) rolloutHealth(context.Context) (state, what, todo string) {
	well, failed, err := s.rounds.last()
	switch {
	case err != nil:
		return fleet.PartFailing, fmt.Sprintf("rounds fail since %s: %v", ago(failed), err), "see the store and the service's log; no new offers are made meanwhile"
	case well.IsZero() && time.Since(s.began) <= roundsStop:
		return fleet.PartOK, "no round yet", ""
	case time.Since(well) > roundsStop:
		return fleet.PartFailing, "the last round was " + ago(well), "restart the service: rollouts stand still"
	}
	return fleet.PartOK, "last round " + ago(well), ""
}

func (s *Service) exportHealth(ctx context.Context) []fleet.PartHealth {
	all, err := s.export.States(ctx)
	if err != nil {
		return []fleet.PartHealth{{Part: "export", State: fleet.PartFailing, What: "how far sinks are cannot be read: " + err.Error(), Todo: "see the store"}}
	}
	if len(all) == 0 {
		return []fleet.PartHealth{{Part: "export", State: fleet.PartOK, What: "the trails are sent nowhere"}}
	}
	out := make([]fleet.PartHealth, 0, len(all))
	for _, e := range all {
		p := fleet.PartHealth{Part: "export/" + e.Name, State: fleet.PartOK, What: fmt.Sprintf("%d entries wait", e.Lag)}
		switch {
		case e.Stalled:
			p.State, p.Since = fleet.PartFailing, e.FailingSince
			p.What += fmt.Sprintf("; it fails since %s: %s", ago(e.FailingSince), e.LastError)
		case e.State == fleet.SinkFailing:
			p.State, p.Since = fleet.PartDegraded, e.FailingSince
			p.What += fmt.Sprintf("; it fails since %s and is tried again: %s", ago(e.FailingSince), e.LastError)
		}
		if p.State != fleet.PartOK {
			p.Todo = "see whether " + e.To + " is there and takes our certificate; tillward export test " + e.Name + " tries it"
		}
		if e.Lost > 0 {
			p.What += fmt.Sprintf("; %d were deleted before they were sent", e.Lost)
		}
		out = append(out, p)
	}
	return out
}

// certificateHealth looks at what ends and is renewed by hand.
func (s *Service) certificateHealth(context.Context) (state, what, todo string) {
	state = fleet.PartOK
	worst := time.Duration(1<<63 - 1)
	look := func(name string, end time.Time, then string) {
		left := time.Until(end)
		if left < worst {
			worst = left
			what, todo = fmt.Sprintf("%s holds for %d more days", name, int(left.Hours()/24)), then
			if left <= 0 {
				what = name + " has ended"
			}
		}
	}
	for _, a := range s.authorities() {
		if a.Current {
			look("the issuing certificate of devices", a.NotAfter, "tillward ca rotate makes a new one")
		}
	}
	look("the root of devices", s.devices.Root().NotAfter, "plan a new root: see docs/ca.md")
	look("the root of the service", s.root.Root().NotAfter, "plan a new root: see docs/ca.md")
	if s.cfg.Operator.Cert != "" {
		end, err := fileEnds(s.cfg.Operator.Cert)
		if err != nil {
			return fleet.PartFailing, err.Error(), "put a PEM certificate chain where operator.cert says"
		}
		look("the certificate of the console", end, "put a new one where operator.cert says, and restart the service")
	}
	switch days := worst.Hours() / 24; {
	case days < lastDays:
		return fleet.PartFailing, what, todo
	case days < soonDays:
		return fleet.PartDegraded, what, todo
	}
	return state, what, ""
}

func fileEnds(path string) (time.Time, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return time.Time{}, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return time.Time{}, errors.New(path + " holds no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", path, err)
	}
	return c.NotAfter, nil
}

// diskHealth looks at the disks that the service writes to.
func (s *Service) diskHealth() []fleet.PartHealth {
	dirs := []string{s.cfg.DataDir}
	if s.cfg.Audit.ArchiveDir != "" {
		dirs = append(dirs, s.cfg.Audit.ArchiveDir)
	}
	if f := s.cfg.AccessLog.File; filepath.IsAbs(f) {
		dirs = append(dirs, filepath.Dir(f))
	}
	for _, e := range s.cfg.Export {
		if e.Path != "" {
			dirs = append(dirs, filepath.Dir(e.Path))
		}
	}
	var out []fleet.PartHealth
	var seen []uint64
	for i, dir := range dirs {
		d, err := diskOf(dir)
		if err != nil {
			if i == 0 {
				out = append(out, fleet.PartHealth{Part: "disk", State: fleet.PartFailing, What: err.Error(), Todo: "see whether the disk is there"})
			}
			continue
		}
		if slices.Contains(seen, d.id) {
			continue
		}
		seen = append(seen, d.id)
		out = append(out, judgeDisk("disk", dir, d, i == 0))
	}
	return out
}

type disk struct{ id, free, size uint64 }

func judgeDisk(part, dir string, d disk, first bool) fleet.PartHealth {
	if !first {
		part += " " + dir
	}
	p := fleet.PartHealth{Part: part, State: fleet.PartOK, What: fmt.Sprintf("%.1f of %.1f GiB are free in %s", float64(d.free)/(1<<30), float64(d.size)/(1<<30), dir)}
	share := float64(d.free) / max(float64(d.size), 1)
	switch {
	case share < emptyShare || d.free < emptyBytes:
		p.State, p.Todo = fleet.PartFailing, "make room, or give it a larger disk: when it is full, nothing is acknowledged to tills any more"
	case share < lowShare || d.free < lowBytes:
		p.State, p.Todo = fleet.PartDegraded, "make room, or give it a larger disk"
	}
	return p
}

func (s *Service) accessHealth(context.Context) (state, what, todo string) {
	n := s.access.Dropped()
	was := s.droppedLines.Swap(n)
	switch {
	case s.cfg.AccessLog.File == "":
		return fleet.PartOK, "it is off", ""
	case n > was:
		return fleet.PartDegraded, fmt.Sprintf("%d lines found no room, %d of them just now", n, n-was), "the disk is too slow for what is asked, or full"
	case n > 0:
		return fleet.PartOK, fmt.Sprintf("%d lines found no room since the start", n), ""
	}
	return fleet.PartOK, "every request has its line", ""
}

// clockWatch tells whether the clock of the machine jumped, and whether
// something keeps it right.
type clockWatch struct {
	synched func() (bool, error)

	mu     sync.Mutex
	shown  time.Time     // by the clock, at the last look
	passed time.Duration // since the service began, by a clock that nobody sets
	jumped time.Duration // the same, when it jumped; 0: it did not
	by     time.Duration
}

func (c *clockWatch) look(shown time.Time, passed time.Duration) (state, what, todo string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.shown.IsZero() {
		if by := shown.Sub(c.shown) - (passed - c.passed); by.Abs() > clockJump {
			c.jumped, c.by = passed, by
		}
	}
	c.shown, c.passed = shown, passed
	const keep = "run chrony or systemd-timesyncd: entries of trails and the ends of certificates go by this clock"
	ok, err := c.synched()
	switch {
	case c.jumped > 0 && passed-c.jumped < clockAfter:
		return fleet.PartDegraded, fmt.Sprintf("it jumped by %s, %s ago", c.by.Round(time.Second), (passed - c.jumped).Round(time.Second)), keep
	case err != nil:
		return fleet.PartOK, "whether it is kept right cannot be told here", ""
	case !ok:
		return fleet.PartDegraded, "nothing keeps it right", keep
	}
	return fleet.PartOK, "it is kept right", ""
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if d := time.Since(t); d >= time.Minute {
		return d.Round(time.Second).String() + " ago"
	}
	return "just now"
}

// healthz answers monitors: 503 when no till could be served, and how all parts
// are.
func (s *Service) healthz(w http.ResponseWriter, r *http.Request) {
	type part struct {
		Part  string    `json:"part"`
		State string    `json:"state"`
		Since time.Time `json:"since"`
		What  string    `json:"what"`
		Todo  string    `json:"todo,omitempty"`
	}
	status, answer := http.StatusOK, struct {
		State string `json:"state"`
		Parts []part `json:"parts"`
	}{State: fleet.PartOK, Parts: []part{}}
	all, err := s.health.Parts(r.Context())
	if err != nil {
		http.Error(w, "the service has not looked at itself yet", http.StatusServiceUnavailable)
		return
	}
	for _, p := range all {
		answer.Parts = append(answer.Parts, part{p.Part, p.State, p.Since.UTC(), p.What, p.Todo})
		if p.State == fleet.PartFailing && slices.Contains([]string{"store", "broker"}, p.Part) {
			status = http.StatusServiceUnavailable
		}
	}
	answer.State = fleet.WorstPart(all)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}
