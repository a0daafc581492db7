package rollout

import (
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Why says what keeps a device from running the release of a rollout: nothing
// when it does, or is in no part of the rollout. It goes by the same rules as
// Next.
func Why(now time.Time, ro fleet.Rollout, units []fleet.Unit, v View, device fleet.DeviceID) []fleet.Delay {
	at := -1
	for i := range units {
		if units[i].Device == device {
			at = i
		}
	}
	if at < 0 || units[at].State.Good() || units[at].State == fleet.ExecRemoved {
		return nil
	}
	u := &units[at]
	d := fleet.Delay{Rollout: ro.ID, Since: u.EnteredAt}
	if stands := standsStill(ro); stands != "" && (u.State == fleet.ExecQueued || u.State.Ended()) {
		d.Reason, d.Text = "rollout", stands
		return []fleet.Delay{d}
	}
	p := newPlanner(now, ro, units, v)
	p.assign()
	p.survey()
	p.judge()
	p.queue()
	p.advance()
	switch s := p.state(at); {
	case s.Good():
		return nil
	case s.Ended():
		d.Reason, d.Text = p.whyEnded(at)
	case s == fleet.ExecQueued:
		d.Reason, d.Text, d.Since = p.whyQueued(at)
	default:
		d.Reason, d.Text = p.whyUnderWay(at)
	}
	return []fleet.Delay{d}
}

// standsStill says why a rollout offers nothing; empty: it does.
func standsStill(ro fleet.Rollout) string {
	text := map[fleet.RolloutState]string{
		fleet.RolloutDraft: "the rollout is a draft; submit it", fleet.RolloutAwaiting: "the rollout waits for somebody to approve it",
		fleet.RolloutReady: "the rollout is approved and waits to be started", fleet.RolloutDenied: "the rollout was denied",
		fleet.RolloutPaused: "the rollout is paused", fleet.RolloutAborting: "the rollout was aborted", fleet.RolloutAborted: "the rollout was aborted",
		fleet.RolloutSuperseded: "the rollout was superseded by a newer one",
	}[ro.State]
	if text != "" && ro.Reason != "" {
		text += ": " + ro.Reason
	}
	if ro.State == fleet.RolloutCompleted && !ro.Spec.Joiners {
		text = "the rollout is complete and takes nobody any more; start another one"
	}
	return text
}

func (p *planner) whyEnded(i int) (code, text string) {
	s, reason, _ := p.end(i)
	u := &p.units[i]
	text = fmt.Sprintf("attempt %d ended %s", max(u.Attempt, 1), s)
	if reason != "" {
		text += " (" + reason + ")"
	}
	if u.Text != "" {
		text += ": " + u.Text
	}
	switch again, at := p.retryable(i); {
	case !again:
		text += "; it is not tried again by itself"
	case p.presence[i] == Away:
		text += "; it is tried again when it is back"
	case at.After(p.now):
		text += "; it is tried again in " + at.Sub(p.now).Round(time.Second).String()
	default:
		text += "; it is about to be tried again"
	}
	return reason, text
}

func (p *planner) whyQueued(i int) (code, text string, since time.Time) {
	u := &p.units[i]
	since = u.EnteredAt
	code, text = p.unready(i)
	switch code {
	case "held":
		for _, h := range p.Holds {
			if h.ReleasedAt.IsZero() && (h.Model != "" && h.Model == u.Model || h.Site != "" && h.Site == u.Site) {
				since = h.Since
			}
		}
	case "offline", reasonUnreachable:
		since = silent(u)
	}
	cur := p.current()
	if code == "" {
		code = p.full(i, cur)
	}
	quota, short := p.quota()
	if code == "" && quota == 0 {
		code = short
	}
	switch code {
	case "wave":
		text = fmt.Sprintf("its wave, %s, begins when wave %s has passed", p.waves[p.wave(i)].Name, p.waves[cur].Name)
		if p.Waves[cur].State == fleet.WaveSoaking {
			text += ", which is watched until " + p.Waves[cur].SoakedAt.Add(p.waves[cur].Soak).UTC().Format("2006-01-02 15:04") + " UTC"
		}
	case "site":
		text = fmt.Sprintf("%s of its site are under way, at most %s may be at once", count(p.sites[u.Site]), count(p.spec.PerSite))
	case "model-unproved":
		text = fmt.Sprintf("too little is known yet of how model %s takes the release; %s of it are under way", u.Model, count(p.model(u.Model).exposed))
	case "rate":
		text = fmt.Sprintf("%s were offered the release within %v, which is the rate of the rollout", count(p.recent), rateWindow(p.rate()))
	case "busy":
		if text == "" {
			text = fmt.Sprintf("%s devices are under way, at most %s may be at once", count(p.flying), count(p.spec.InFlight))
		}
	case "":
		code, text = "next", "it is about to be offered the release"
	}
	return code, text, since
}

// waits are what a device may say it waits for.
var waits = map[string]string{
	"window-download": "it waits for the hours in which it may fetch",
	"window-install":  "everything is fetched; it waits for the hours in which the till may be touched",
	"idle-lock":       "it waits for the POS application to let go of the till",
	"power":           "it waits for power: its supply is weak, or it runs on battery",
	"space":           "it waits for space on its disk; make room",
	"budget":          "it has used up its bytes of the day and goes on tomorrow",
	"audit-full":      "its audit trail is full and must be sent first; see its connection",
	"site":            "it waits for another till of the site",
	"busy":            "another update is in work on it; it takes one at a time",
}

func (p *planner) whyUnderWay(i int) (code, text string) {
	u := &p.units[i]
	code = u.Reason
	switch u.State {
	case fleet.ExecOffered:
		code, text = "offered", "it was offered the release and has not said anything yet"
	case fleet.ExecWaiting:
		if text = waits[u.Reason]; text == "" {
			text = "it waits"
		}
		if u.Text != "" {
			text += " (" + u.Text + ")"
		}
	case fleet.ExecDownloading:
		code, text = "downloading", "it is fetching the release"
		if u.Total > 0 {
			text += fmt.Sprintf(": %s of %s", share64(u.Done, u.Total), mib(u.Total))
		}
	case fleet.ExecStaged:
		code, text = "staged", "everything is fetched and verified"
	default:
		code, text = "installing", "it is at it: "+string(u.State)
	}
	switch {
	case p.held(u) && !installs(u.State):
		text += "; it is being called back, for it is held: " + p.holdOf(u)
	case p.presence[i] == Away:
		text += "; it is not connected now, last heard of " + ago(p.now, silent(u)) + " before"
	}
	return code, text
}

func share64(part, whole uint64) string { return percent(100 * float64(part) / float64(whole)) }

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
