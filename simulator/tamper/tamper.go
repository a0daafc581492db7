// Package tamper plays attacks on updates against tills with the agent, the
// service and the release tool that ship.
//
// An attacker here is one of three: a mirror, or somebody on the line who has
// the key of the service's TLS, and rewrites metadata and content; a thief of
// some of the keys that sign releases, fewer than must sign; or whoever has all
// of the fleet service, its keys and its database, and makes offers at will.
// Nobody has a key out of a TPM, or enough keys of those who sign releases. What
// they try is the list of the TUF specification, 1.5.2, and what is known of
// other fleets.
//
// After each attack the till must run what it ran before, by its disk and by
// its own report, and take an honest release: where there is one, the very
// release that was attacked. What is reported as the check is the code that the
// device gave, in its report or in its audit trail; nothing is filled in here.
package tamper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/simulator"
)

// Line is one attack in the Report.
type Line struct {
	Name    string  `json:"name"`
	Refused bool    `json:"refused"`              // each try of it, by the check that it should be
	Check   string  `json:"check"`                // that refused it, as the device names it; of several tries, each once
	Same    bool    `json:"runs_what_ran_before"` // by the disk and by the device's report
	Honest  bool    `json:"honest_release_taken"` // afterwards, by the same till
	What    string  `json:"what"`                 // is played
	Tries   []Try   `json:"tries"`                // in which it was played
	Till    string  `json:"till"`                 // that suffered it
	Wrong   string  `json:"wrong,omitempty"`      // what runs in place of what ran, or how the honest release ended
	Seconds float64 `json:"seconds"`              // with the honest release
}

// Try is one way in which an attack was played.
type Try struct {
	What    string  `json:"what"`
	Refused bool    `json:"refused"`
	Check   string  `json:"check"`
	State   string  `json:"state"`                // that the execution ended in
	Answer  string  `json:"answer"`               // in the device's words
	Sent    int64   `json:"bytes_sent,omitempty"` // by the attacker's mirror
	Seconds float64 `json:"seconds"`
	Wrong   string  `json:"wrong,omitempty"` // what is not as it should be
}

// Report is what a run proves.
type Report struct {
	Attacks []Line  `json:"attacks"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
}

// attack is one of the list. Its run returns an error only when it could not be
// carried out; that fails the whole.
type attack struct {
	name, what string
	run        func(ctx context.Context, l *lane) error
}

// Options of Run.
type Options struct {
	simulator.Options
	Report string   // file for the Report; "-" prints it, empty: none
	Only   []string // names; empty: all
}

// most is how long one attack may take, with the honest release after it.
const most = 4 * time.Minute

// Run plays the attacks, on several tills side by side, and writes the report.
// It returns an error when one was not refused, was refused by another check
// than it should be, or left a till other than it was.
func Run(ctx context.Context, o Options) error { return run(ctx, o, everything) }

func run(ctx context.Context, o Options, p plan) error {
	began := time.Now()
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(o.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	for _, name := range o.Only {
		if !slices.Contains(p.names(), name) {
			return fmt.Errorf("no attack is called %s; there are: %s", name, strings.Join(p.names(), ", "))
		}
	}
	say("starting the fleet service and %d tills in %s", len(p.lanes), o.Dir)
	s, err := open(ctx, o.Options, len(p.lanes))
	if err != nil {
		return err
	}
	defer s.close()
	say("the tills are attested; %s", s.box.says())

	var r Report
	var failed []error
	play := func(ctx context.Context, l *lane, list []attack) error {
		for _, a := range list {
			if len(o.Only) > 0 && !slices.Contains(o.Only, a.name) {
				continue
			}
			line, err := l.play(ctx, a)
			if err != nil {
				return fmt.Errorf("attack %s on %s: %w", a.name, l.till.Name, err)
			}
			verdict, ok := line.verdict()
			say("%s  %-30s %s", l.till.Name, a.name, verdict)
			mu.Lock()
			r.Attacks = append(r.Attacks, line)
			if !ok {
				failed = append(failed, fmt.Errorf("%s: %s", a.name, verdict))
			}
			mu.Unlock()
		}
		return nil
	}
	errs := make([]error, len(p.lanes))
	all, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i, list := range p.lanes {
		wg.Go(func() {
			if errs[i] = play(all, s.lanes[i], list); errs[i] != nil {
				stop()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := play(ctx, s.lanes[0], p.last); err != nil {
		return err
	}
	slices.SortFunc(r.Attacks, func(a, b Line) int {
		return cmp.Compare(slices.Index(p.names(), a.Name), slices.Index(p.names(), b.Name))
	})
	r.Seconds = time.Since(began).Seconds()
	r.OK = len(failed) == 0
	return errors.Join(append(failed, simulator.WriteReport(o.Out, o.Report, r))...)
}

// verdict says in words how an attack ended, and whether that is as it should
// be.
func (l Line) verdict() (text string, ok bool) {
	for _, t := range l.Tries {
		if t.Wrong != "" {
			return fmt.Sprintf("%s: %s (%s %s: %s)", t.What, t.Wrong, t.State, t.Check, t.Answer), false
		}
	}
	switch {
	case !l.Refused:
		return "NOT REFUSED", false
	case !l.Same:
		return "refused by " + l.Check + "; THE TILL RUNS SOMETHING ELSE: " + l.Wrong, false
	case !l.Honest:
		return "refused by " + l.Check + "; THE TILL TAKES NO HONEST RELEASE ANY MORE: " + l.Wrong, false
	}
	return "refused by " + l.Check, true
}

// play plays one attack and finds out what it left.
func (l *lane) play(ctx context.Context, a attack) (Line, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	began := time.Now()
	line := Line{Name: a.name, What: a.what, Till: l.till.Name}
	if err := l.begins(ctx); err != nil {
		return line, err
	}
	l.tries, l.honest, l.what, l.unwilling, l.differs = nil, nil, "", "", ""
	if err := a.run(ctx, l); err != nil {
		return line, err
	}
	l.mirror.honest()
	line.Tries, line.Refused = l.tries, len(l.tries) > 0
	if l.what != "" {
		line.What = l.what
	}
	var checks []string
	for _, t := range l.tries {
		line.Refused = line.Refused && t.Refused && t.Wrong == ""
		if !slices.Contains(checks, t.Check) {
			checks = append(checks, t.Check)
		}
	}
	line.Check = strings.Join(checks, ", ")
	var err error
	if line.Same, err = l.same(ctx); err != nil {
		return line, err
	}
	honest := l.takes
	if l.honest != nil {
		honest = l.honest
	}
	if line.Honest, err = honest(ctx); err != nil {
		return line, err
	}
	line.Wrong = cmp.Or(l.differs, l.unwilling)
	line.Seconds = time.Since(began).Seconds()
	return line, nil
}
