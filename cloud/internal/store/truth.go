package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// doubtAfter is how long a device may go on showing what ran before an update
// that it said to have finished: a report may have been under way.
const doubtAfter = 5 * time.Minute

// truth takes in what a device really runs, and sets right what was said of its
// executions: one whose release runs, for good and with nothing in work, has
// ended well, whatever was lost on the way; one that was said to have ended well
// while something older runs is an alarm.
func (g *group) truth(ctx context.Context, t *tally, in *Intake, out *Outcome) error {
	r := in.Report
	runs := r.Installed
	if len(runs) == 0 { // an agent that does not say so: it runs, that much is known
		runs = []fleet.Installed{{Component: "agent", Version: r.AgentVersion, Slot: r.Slot}}
	}
	if err := number("free space", r.FreeMiB); err != nil {
		return err
	}
	if err := number("crashes", r.Crashes); err != nil {
		return err
	}
	now := toJSON(runs)
	var was, supply, share string
	var free, crashes uint64
	if err := g.w.row(ctx, `SELECT installed, free_mib, supply, share, crashes FROM device WHERE id = ?`, in.Device).Scan(&was, &free, &supply, &share, &crashes); err != nil {
		return fmt.Errorf("what it runs: %w", found(err))
	}
	if r.Crashes > crashes && was != "[]" { // the first report tells of a whole life
		t.crashes += min(r.Crashes-crashes, 1000)
	}
	if was != now || free != r.FreeMiB || supply != r.Supply || share != r.Share || crashes != r.Crashes {
		if err := g.w.exec(ctx, `UPDATE device SET installed = ?, free_mib = ?, supply = ?, share = ?, crashes = ? WHERE id = ?`, now, r.FreeMiB, r.Supply, r.Share, r.Crashes, in.Device); err != nil {
			return err
		}
	}
	if was != now || coarse(free) != coarse(r.FreeMiB) {
		if err := g.w.touch(ctx, in.Device); err != nil {
			return err
		}
	}
	if len(r.Installed) == 0 {
		return nil
	}
	return g.reconcile(ctx, in, out)
}

// coarse is free space as it matters to a plan: a till that fills up slowly is
// no news each minute.
func coarse(mib uint64) uint64 { return mib / 64 }

// said is an execution with what it would make run.
type said struct {
	fleet.Execution
	n                  int64
	component, version string
	doubted            bool
	rollout            fleet.RolloutState
	joiners            bool
}

func (g *group) reconcile(ctx context.Context, in *Intake, out *Outcome) error {
	rows, err := g.w.rows(ctx, `SELECT `+executionColumns+`, l.component, l.version, e.doubted, r.state, r.joiners FROM execution e JOIN rollout r ON r.id = e.rollout JOIN "release" l ON l.id = r."release"
		WHERE e.device = ? AND e.state NOT IN ('ALREADY_INSTALLED', 'FAILED', 'ROLLED_BACK', 'REJECTED', 'REMOVED')
		AND (e.state NOT IN ('TIMED_OUT', 'CANCELED') OR e.attempt > 0 AND r.state IN ('RUNNING', 'PAUSED', 'ABORTING')) ORDER BY e.n DESC`, in.Device)
	all, err := list(rows, err, func(row scanner) (said, error) {
		var s said
		e, err := scanExecution(behindLast{row, []any{&s.component, &s.version, &s.doubted, &s.rollout, &s.joiners}})
		s.Execution, s.n = e.v, e.n
		return s, err
	})
	if err != nil {
		return fmt.Errorf("executions of the device: %w", err)
	}
	judged := map[string]bool{} // components whose newest good end was looked at
	for _, s := range all {
		i := slices.IndexFunc(in.Report.Installed, func(i fleet.Installed) bool { return i.Component == s.component })
		switch {
		case i < 0 || in.Report.Installed[i].Trial || in.Report.Execution == s.ID:
		case s.State == fleet.ExecSucceeded:
			if !judged[s.component] {
				err = g.doubt(ctx, in, out, s, in.Report.Installed[i])
			}
			judged[s.component] = true
		case in.Report.Installed[i].Version == s.version:
			err = g.settle(ctx, in, out, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settle ends an execution whose release runs.
func (g *group) settle(ctx context.Context, in *Intake, out *Outcome, s said) error {
	step := ExecutionStep{ID: s.ID, State: fleet.ExecSucceeded, Reason: "reconciled", Text: "found running, with its end not reported (it was " + string(s.State) + ")", To: s.version}
	if s.State == fleet.ExecQueued || s.State == fleet.ExecOffered {
		step.State, step.Text = fleet.ExecAlready, "found running before it was fetched"
	}
	e, err := g.w.moveExecution(ctx, in.Device, step, in.At)
	if err != nil || e == nil {
		return err
	}
	out.Reconciled = append(out.Reconciled, *e)
	return g.w.audit(ctx, in.Tenant, fleet.AuditEvent{
		At: in.At, Kind: "update.reconciled", Severity: "info", Actor: "ingest", Subject: string(in.Device),
		Detail: map[string]string{"execution": string(e.ID), "rollout": string(e.Rollout), "was": string(s.State), "component": s.component, "runs": s.version},
	})
}

// doubt raises the alarm, once, of an execution that ended well by what was
// said and whose device runs something older.
func (g *group) doubt(ctx context.Context, in *Intake, out *Outcome, s said, runs fleet.Installed) error {
	if s.doubted || in.At.Sub(s.EnteredAt) < doubtAfter || semver.Compare("v"+runs.Version, "v"+s.version) >= 0 {
		return nil
	}
	if err := g.w.exec(ctx, `UPDATE execution SET doubted = 1 WHERE id = ?`, s.ID); err != nil {
		return err
	}
	if err := g.revoke(ctx, in, out, s, runs); err != nil {
		return err
	}
	return g.w.audit(ctx, in.Tenant, fleet.AuditEvent{
		At: in.At, Kind: "update.truth", Severity: "alarm", Actor: "ingest", Subject: string(in.Device),
		Detail: map[string]string{
			"execution": string(s.ID), "rollout": string(s.Rollout), "component": s.component, "said": s.version, "runs": runs.Version, "slot": runs.Slot,
			"what": "it was said to run the release and runs an older one: look whether the box fell back, or was flashed anew",
		},
	})
}

// revoke takes a good end back while somebody still goes by it: a rollout that
// is judged by its ends gets a bad one, and one that is complete and takes
// joiners brings the release once more. What is history stays as it was.
func (g *group) revoke(ctx context.Context, in *Intake, out *Outcome, s said, runs fleet.Installed) error {
	e := s.Execution
	switch {
	case s.rollout == fleet.RolloutRunning || s.rollout == fleet.RolloutPaused || s.rollout == fleet.RolloutAborting:
		e.State, e.Reason = fleet.ExecRolledBack, "truth"
		e.Text = "it was said to run " + s.version + " and was found to run " + runs.Version
	case s.rollout == fleet.RolloutCompleted && s.joiners:
		e.State, e.Reason, e.OfferedAt = fleet.ExecQueued, "retry", time.Time{}
		e.Text = fmt.Sprintf("attempt %d ended %s, and then it was found to run %s", e.Attempt, s.State, runs.Version)
	default:
		return nil
	}
	change, err := g.w.count(ctx, "execution")
	if err != nil {
		return err
	}
	if err := g.w.exec(ctx, `UPDATE execution SET state = ?, reason = ?, text = ?, offered_at = ?, entered_at = ?, updated_at = ?, version = version + 1, changed = ? WHERE id = ?`,
		e.State, e.Reason, text(e.Text), ms(e.OfferedAt), ms(in.At), ms(in.At), change, e.ID); err != nil {
		return err
	}
	out.Reconciled = append(out.Reconciled, e)
	return nil
}
