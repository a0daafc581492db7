// Package attack plays the attacks on attested identity against the fleet
// service that ships, and says of each how it was refused.
//
// An attacker here has what a thief, a crooked owner or a man in the middle
// has: disks, certificates, event logs, other TPMs, the wire - never a private
// key out of a TPM. After each attack an honest till beside it, with a real
// agent, is asked for fresh evidence and must still be attested. What is
// reported as the check is what the service said, or what ended the
// connection; nothing is filled in here.
package attack

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/simulator"
	"github.com/tillward/tillward/simulator/swarm"
)

// Line is one attack in the Report.
type Line struct {
	Name    string  `json:"name"`
	Refused bool    `json:"refused"`
	Check   string  `json:"check"`                 // that refused it, as the service names it
	Honest  bool    `json:"honest_still_attested"` // by evidence made after the attack
	What    string  `json:"what"`
	Answer  string  `json:"answer"` // in the service's words
	Seconds float64 `json:"seconds"`
}

// Report is what a run proves.
type Report struct {
	Attacks []Line `json:"attacks"`
	OK      bool   `json:"ok"`
}

// outcome is what became of one attack.
type outcome struct {
	refused bool
	check   string
	answer  string
}

// attack is one of the list. It returns an error only when it could not be
// carried out; that fails the run.
type attack struct {
	name, what string
	want       []string // checks that may refuse it
	run        func(ctx context.Context, d *desk) (outcome, error)
}

// Options of Run.
type Options struct {
	simulator.Options
	Report string   // file for the Report; "-" prints it, empty: none
	Only   []string // names; empty: all
}

// Names lists the attacks.
func Names() (names []string) {
	for _, a := range attacks {
		names = append(names, a.name)
	}
	return names
}

// Run plays the attacks one after the other and writes the report. It returns
// an error when one was not refused, was refused by another check than it
// should be, or harmed the honest till.
func Run(ctx context.Context, o Options) error {
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(o.Out, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	todo := attacks
	if len(o.Only) > 0 {
		todo = nil
		for _, a := range attacks {
			if slices.Contains(o.Only, a.name) {
				todo = append(todo, a)
			}
		}
		if len(todo) != len(o.Only) {
			return fmt.Errorf("no such attack among %s; there are: %s", strings.Join(o.Only, ", "), strings.Join(Names(), ", "))
		}
	}
	say("starting the fleet service and an honest till in %s", o.Dir)
	d, err := open(ctx, o.Options)
	if err != nil {
		return err
	}
	defer d.close()
	if _, err := d.honest(ctx, time.Time{}); err != nil {
		return fmt.Errorf("the honest till: %w", err)
	}
	say("the honest till is attested; %d attacks", len(todo))
	var r Report
	var failed []error
	for i, a := range todo {
		line, err := d.play(ctx, a)
		if err != nil {
			return fmt.Errorf("attack %s: %w", a.name, err)
		}
		r.Attacks = append(r.Attacks, line)
		verdict := "refused by " + line.Check
		switch {
		case !line.Refused:
			verdict = "NOT REFUSED: " + line.Answer
		case !slices.Contains(a.want, line.Check):
			verdict = fmt.Sprintf("refused by %q, want one of %s", line.Check, strings.Join(a.want, ", "))
		case !line.Honest:
			verdict += "; THE HONEST TILL SUFFERED"
		}
		if !line.Refused || !line.Honest || !slices.Contains(a.want, line.Check) {
			failed = append(failed, fmt.Errorf("%s: %s", a.name, verdict))
		}
		say("[%2d/%d] %-28s %s", i+1, len(todo), a.name, verdict)
	}
	r.OK = len(failed) == 0
	return errors.Join(append(failed, simulator.WriteReport(o.Out, o.Report, r))...)
}

func (d *desk) play(ctx context.Context, a attack) (Line, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := time.Now()
	out, err := a.run(ctx, d)
	if err != nil {
		return Line{}, err
	}
	after := time.Now()
	line := Line{Name: a.name, What: a.what, Refused: out.refused, Check: out.check, Answer: out.answer, Seconds: after.Sub(began).Seconds()}
	line.Honest, err = d.honest(ctx, after)
	return line, err
}

// desk is what an attacker and his victims need.
type desk struct {
	world *simulator.World
	at    simulator.Endpoints
	roots *x509.CertPool
	maker *swarm.Authority // of TPMs that the service takes for tier A
	boxes []*box
	n     int
}
