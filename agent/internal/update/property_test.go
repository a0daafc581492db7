package update_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/semver"
	"pgregory.net/rapid"

	"github.com/tillward/tillward/agent/internal/update"
)

// Whatever is offered in whatever order, whatever fails and wherever the power
// is cut: in the end the box runs what it said it runs, nothing is on trial,
// each attempt ended once, and nothing older than what was kept ever runs.
func TestAnySequenceEndsTruthfully(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var failed any // r stops a case by a panic, which must not leave the bubble
		synctest.Test(t, func(t *testing.T) {
			defer func() { failed = recover() }()
			anySequence(t, r)
		})
		switch fmt.Sprintf("%T", failed) { // each at a line of its own: rapid tells failures apart by where they are
		case "<nil>":
		case "rapid.invalidData":
			panic(failed)
		default:
			panic(failed)
		}
	})
}

func anySequence(t *testing.T, r *rapid.T) {
	b := newTill(t, folder(t))
	b.fatal = r.Fatalf
	names := []string{"agent", "os/box/prod", "ops/shop/pos"}
	last := map[string]string{"agent": "1.0.0", "os/box/prod": "1.0.0"}
	fates := []string{"", "", "", "broken", "misfit", "dead", "sick", "stays", "unknown", "forged", "withdrawn", "needy", "other"}
	var offers []update.Offer
	for range rapid.IntRange(1, 6).Draw(r, "rounds") {
		var now []update.Offer
		for range rapid.IntRange(0, 3).Draw(r, "offers") {
			if len(offers) > 0 && rapid.IntRange(0, 3).Draw(r, "again") == 0 {
				now = append(now, rapid.SampledFrom(offers).Draw(r, "redelivered"))
				continue
			}
			name := rapid.SampledFrom(names).Draw(r, "component")
			o := b.offerOf(name, fmt.Sprintf("1.%d.0", rapid.IntRange(0, 4).Draw(r, "version")))
			o.Execution = fmt.Sprintf("x%d", rapid.IntRange(0, 9).Draw(r, "execution")) + o.Execution
			o.Attempt = uint32(rapid.IntRange(1, 2).Draw(r, "attempt"))
			o.NotAfter = time.Now().Add(rapid.SampledFrom([]time.Duration{-time.Minute, time.Minute, time.Hour, 48 * time.Hour}).Draw(r, "life"))
			if _, ok := b.fate[o.Target]; !ok {
				b.fate[o.Target] = rapid.SampledFrom(fates).Draw(r, "fate")
			}
			offers, now = append(offers, o), append(now, o)
		}
		if rapid.Bool().Draw(r, "closed") {
			b.reason, b.opens = "idle-lock", time.Now().Add(time.Duration(rapid.IntRange(1, 200).Draw(r, "minutes"))*time.Minute)
		}
		if rapid.Bool().Draw(r, "offline") {
			b.offline = time.Now().Add(time.Duration(rapid.IntRange(1, 200).Draw(r, "minutes")) * time.Minute)
		}
		b.health["printer"] = rapid.SampledFrom([]string{"OK", "OK", "Fault"}).Draw(r, "printer")
		b.parts["ops/shop/pos"].backFail = rapid.IntRange(0, 2).Draw(r, "stuck")
		b.cutAt = b.steps + rapid.IntRange(1, 60).Draw(r, "cut")
		b.boot(time.Duration(rapid.IntRange(1, 300).Draw(r, "minutes"))*time.Minute, now...)
	}
	b.cutAt, b.health["printer"] = 0, "OK"
	b.rest(offers...) // the service offers again what it has not heard the end of
	b.rest(offers...)

	for _, o := range offers {
		ends := b.ends(o.Execution, o.Attempt)
		if len(ends) > 1 {
			r.Errorf("%s attempt %d ended %d times: %+v", o.Execution, o.Attempt, len(ends), ends)
		}
	}
	told := map[string]update.Progress{}
	seen := map[string]bool{}
	for _, p := range b.reports {
		key := fmt.Sprintf("%s/%d", p.Execution, p.Attempt)
		if was := told[key]; p.Step <= was.Step && !seen[fmt.Sprintf("%+v", p)] {
			r.Errorf("report %+v comes after %+v", p, was)
		}
		if told[key].Step < p.Step {
			told[key] = p
		}
		if p.State == "SUCCEEDED" && !seen[fmt.Sprintf("%+v", p)] {
			if semver.Compare("v"+p.To, "v"+last[p.Component]) <= 0 && last[p.Component] != "" {
				r.Errorf("%s went from %s to %s", p.Component, last[p.Component], p.To)
			}
			last[p.Component] = p.To
		}
		seen[fmt.Sprintf("%+v", p)] = true
	}
	b.truthful(last)
	for name, p := range b.parts {
		for i, e := range p.Kept {
			if slices.Contains(p.Kept[:i], e) {
				r.Errorf("%s was kept twice for %s", name, e)
			}
		}
	}
}
