package rollout

import (
	"cmp"
	"fmt"
	"strings"
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
	switch k := p.kinds[at]; {
	case k == already:
		return nil
	case k.ended():
		d.Reason, d.Text = p.whyEnded(at)
	case k == queued:
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
	u := &p.units[i]
	state, code, said := u.State, u.Reason, u.Text
	if m := p.moving(i); m != nil {
		state, code, said = m.To, m.Reason, m.Text
	}
	text = fmt.Sprintf("attempt %d ended %s", max(u.Attempt, 1), state)
	if code != "" {
		text += " (" + code + ")"
	}
	if said != "" {
		text += ": " + said
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
	return code, text
}

func (p *planner) whyQueued(i int) (code, text string, since time.Time) {
	u := &p.units[i]
	since = u.EnteredAt
	cur := p.current()
	code = cmp.Or(p.unready(i), p.full(i, cur))
	if quota, short := p.quota(); code == "" && quota == 0 {
		code = short
	}
	switch code {
	case "held":
		h := p.holdOf(i)
		text, since = "held: "+h.Reason, h.Since
	case "model":
		text = fmt.Sprintf("the release is for %s, and this is %s", strings.Join(p.v.Release.Models, ", "), cmp.Or(u.Model, "of no known model"))
	case "requires":
		text = fmt.Sprintf("the release requires %s; bring it that first", p.lacks(u))
	case "space":
		text = fmt.Sprintf("%d MiB are free and the release alone takes %d; make room", u.FreeMiB, p.needMiB())
	case "offline":
		text, since = "not connected; it is offered the release when it is back", silent(u)
	case reasonUnreachable:
		text, since = "not heard of "+ago(p.now, silent(u))+"; nobody waits for it, and it is offered the release when it is back", silent(u)
	case "quarantined":
		text = "it has not shown that it can be trusted; see its attestation"
	case "busy":
		text = "another rollout is at work on it"
	case "window":
		text = fmt.Sprintf("none of the site's hours lie within the next %v", life(p.spec))
		if err := p.timetable(i).err; err != nil {
			text = err.Error()
		}
	case "wave":
		text = fmt.Sprintf("its wave, %s, begins when wave %s has passed", p.waves[p.wave[i]].Name, p.waves[cur].Name)
		if p.Waves[cur].State == fleet.WaveSoaking {
			text += ", which is watched until " + p.Waves[cur].SoakedAt.Add(p.waves[cur].Soak).UTC().Format("2006-01-02 15:04") + " UTC"
		}
	case "site":
		text = fmt.Sprintf("%s of its site are under way, at most %s may be at once", count(p.sites[p.site[i]].flying), count(p.spec.PerSite))
	case "model-unproved":
		text = fmt.Sprintf("too little is known yet of how model %s takes the release; %s of it are under way", u.Model, count(p.models[p.model[i]].exposed))
	case "rate":
		text = fmt.Sprintf("%s were offered the release within %v, which is the rate of the rollout", count(p.recent), rateWindow(p.rate()))
	case "in-flight":
		text = fmt.Sprintf("%s devices are under way, at most %s may be at once", count(p.flying), count(p.spec.InFlight))
	case "":
		code, text = "next", "it is about to be offered the release"
	}
	return code, text, since
}

// holdOf is the hold that keeps unit i out.
func (p *planner) holdOf(i int) fleet.Hold {
	u := &p.units[i]
	for _, h := range p.Holds {
		if h.ReleasedAt.IsZero() && (h.Model != "" && h.Model == u.Model || h.Site != "" && h.Site == u.Site) {
			return h
		}
	}
	return fleet.Hold{}
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
	case p.held(i) && p.kinds[i] == underWay:
		text += "; it is being called back, for it is held: " + p.holdOf(i).Reason
	case p.presence[i] == Away:
		text += "; it is not connected now, and was not heard of " + ago(p.now, silent(u))
	}
	return code, text
}

func share64(part, whole uint64) string { return percent(100 * float64(part) / float64(whole)) }

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// ago is a time in the past, for people.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "ever"
	}
	d := now.Sub(t)
	if d >= 48*time.Hour {
		return fmt.Sprintf("for %d days", int(d.Hours()/24))
	}
	return "for " + d.Round(time.Minute).String()
}
