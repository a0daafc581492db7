package boot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Decision is what somebody said about an event that no release knows.
type Decision string

// An event waits until somebody decides, once for the whole model.
const (
	Open     Decision = "open"
	Approved Decision = "approved"
	Rejected Decision = "rejected"
)

// Outcomes of an appraisal; they are the words of the fleet.
const (
	Attested    = "attested"
	Degraded    = "degraded"
	Quarantined = "quarantined"
)

// Finding is one sentence of an appraisal. Check is a stable name; Text is for
// people and says what to do, in at most 400 bytes.
type Finding struct {
	Check   string
	PCR     string // number of the register
	Event   string // hex digest
	Release string // that was measured against
	Text    string
}

// Result is what an appraisal says.
type Result struct {
	Trust    string    // attested, degraded or quarantined
	Release  string    // whose reference values the boot has; empty when quarantined
	Chain    string    // by which of its ways
	Findings []Finding // the worst first
	Unknown  []Event   // what nobody has decided about yet, each once, the first 32
}

// The checks of this room.
const (
	checkUnjudged = "boot.unjudged"
	checkNoLog    = "boot.no-log"
	checkReplay   = "boot.log-replay"
	checkCovered  = "boot.not-covered"
	checkUnknown  = "boot.unknown-event"
	checkRejected = "boot.rejected-event"
	checkMissing  = "boot.missing-event"
)

// A device that measures rubbish drowns neither the wire nor the queue.
const (
	maxFindings = 12
	maxUnknown  = 32
	maxText     = 400 // bytes
)

// Appraise measures a boot against the references that are good for a device:
// of the release it runs and of the one it was offered. pcrs are the quoted
// values as ParseLog takes them, log is the raw log, decide tells what was decided about an event by
// register and hex digest; nil: nothing. The boot has to have one chain of one
// release in all its registers; findings explain against the chain that fits
// best.
//
// Of each register of the policy the events must be those of the chain in their
// order. An approved event may come beside them or, one for one, stand in the
// place of one that is missing: new firmware brings a new digest, not one more.
// A missing event without another in its place is never forgiven.
//
// PCR 11 counts where a policy names it: systems that measure into it after the
// firmware has closed its log are judged by the rest, as they were before it was
// quoted.
//
// References without a policy, for models without a log, count only when none
// has one: stripping a log must not choose the weaker.
func Appraise(refs []Reference, decide func(pcr int, digest string) Decision, pcrs [][]byte, log []byte) Result {
	if len(refs) == 0 {
		return refuse(Finding{Check: checkUnjudged, Text: "no release says how this model boots: publish boot reference values with a release"})
	}
	judging := slices.DeleteFunc(slices.Clone(refs), func(r Reference) bool { return len(r.Policy) == 0 })
	if len(log) == 0 && len(judging) > 0 {
		return refuse(Finding{Check: checkNoLog, Release: judging[0].Release, Text: fmt.Sprintf(
			"the device sent no event log, by which %s is judged: it was stripped, or the firmware's TPM measurements are off", judging[0].Release)})
	}
	var events []Event
	var apart error // the log does not add up to PCR 11 alone
	if len(log) > 0 {
		var err error
		if events, err = ParseLog(log, pcrs); only(err, imageParts) {
			apart, pcrs = err, pcrs[:slices.Index(Quoted[:], imageParts)]
			events, err = ParseLog(log, pcrs)
		}
		if err != nil {
			f := Finding{Check: checkReplay, Text: clip(fmt.Sprintf("%v: the log was edited, or a register was extended outside it", err))}
			if bad, ok := errors.AsType[*replayError](err); ok {
				f.PCR = strconv.Itoa(bad.pcrs[0])
			}
			return refuse(f)
		}
	}
	if len(judging) == 0 {
		return Result{Trust: Attested, Release: refs[0].Release}
	}
	seen := make(map[int][]Event)
	for _, e := range events {
		seen[e.PCR] = append(seen[e.PCR], e)
	}
	j := judge{decide: decide, quoted: Quoted[:len(pcrs)], apart: apart, seen: seen, decided: make(map[string]Decision)}
	var best *fit
	for _, r := range judging {
		for _, c := range r.Chains {
			if f := j.fit(r, c); best == nil || f.better(best) {
				best = f
			}
		}
	}
	return best.result()
}

func refuse(f Finding) Result { return Result{Trust: Quarantined, Findings: []Finding{f}} }

// judge holds one boot.
type judge struct {
	decide  func(pcr int, digest string) Decision
	quoted  []int
	apart   error           // what is wrong with PCR 11, when it was quoted and must not be gone by
	seen    map[int][]Event // by register
	decided map[string]Decision
}

func (j *judge) decision(e Event) Decision {
	digest := hex.EncodeToString(e.Digest[:])
	key := strconv.Itoa(e.PCR) + ":" + digest
	d, ok := j.decided[key]
	if !ok {
		if d = Open; j.decide != nil {
			d = j.decide(e.PCR, digest)
		}
		j.decided[key] = d
	}
	return d
}

// fit is how a boot compares with one chain of one release.
type fit struct {
	release, chain string
	hard, soft     []Finding
	passed         int // events that only an approval lets through
	unknown        []Event
}

// better prefers what is wrong in fewer places.
func (f *fit) better(o *fit) bool {
	for _, c := range [][2]int{{len(f.hard), len(o.hard)}, {len(f.soft), len(o.soft)}, {f.passed, o.passed}} {
		if c[0] != c[1] {
			return c[0] < c[1]
		}
	}
	return false
}

func (f *fit) result() Result {
	r := Result{Trust: Quarantined, Findings: slices.Concat(f.hard, f.soft), Unknown: f.unknown}
	if len(f.hard) == 0 {
		r.Trust, r.Release, r.Chain = Attested, f.release, f.chain
		if len(f.soft) > 0 {
			r.Trust = Degraded
		}
	}
	if n := len(r.Findings) - maxFindings + 1; n > 1 {
		r.Findings = r.Findings[:maxFindings-1]
		last := r.Findings[len(r.Findings)-1]
		r.Findings = append(r.Findings, Finding{Check: last.Check, Release: f.release, Text: fmt.Sprintf("%d findings more against chain %s of %s", n, f.chain, f.release)})
	}
	return r
}

func (j *judge) fit(r Reference, c Chain) *fit {
	f := &fit{release: r.Release, chain: c.Name}
	for _, p := range r.Policy {
		soft := slices.Contains(r.Soft, p)
		switch {
		case p == imageParts && j.apart != nil:
			f.add(checkReplay, p, "", fmt.Sprintf("%v: the log was edited, or the register was extended outside it", j.apart))
		case !slices.Contains(j.quoted, p):
			f.add(checkCovered, p, "", fmt.Sprintf("%s counts PCR %d, which was not quoted: update the agent", r.Release, p))
		case len(j.seen[p]) == 0:
			f.add(checkCovered, p, "", fmt.Sprintf("%s counts PCR %d, of which the log holds no event", r.Release, p))
		default:
			for _, s := range j.align(c.Registers[strconv.Itoa(p)], j.seen[p], soft) {
				f.judge(j, s, p, soft)
			}
		}
	}
	return f
}

// judge adds what one difference is worth.
func (f *fit) judge(j *judge, s step, pcr int, soft bool) {
	if s.seen == nil {
		f.add(checkMissing, pcr, s.known.Digest, fmt.Sprintf("PCR %d lacks what chain %s of %s expects (%s): a part of the boot was left out or not measured",
			pcr, f.chain, f.release, s.known.What))
		return
	}
	digest, instead := hex.EncodeToString(s.seen.Digest[:]), ""
	if s.known != nil {
		instead = fmt.Sprintf(" where chain %s of %s expects (%s)", f.chain, f.release, s.known.What)
	}
	switch j.decision(*s.seen) {
	case Approved:
		f.passed++
		return
	case Rejected:
		f.add(checkRejected, pcr, digest, fmt.Sprintf("PCR %d holds an event that was rejected for this model (%s)%s: repair the device, or take the rejection back", pcr, s.seen.What, instead))
		return
	}
	if e := *s.seen; len(f.unknown) < maxUnknown && !slices.ContainsFunc(f.unknown, func(u Event) bool { return u.PCR == e.PCR && u.Digest == e.Digest }) {
		f.unknown = append(f.unknown, e)
	}
	text := fmt.Sprintf("PCR %d holds an event that no release knows (%s)%s: approve it once for the model if you know where it comes from, or reject it", pcr, s.seen.What, instead)
	if soft {
		f.soft = append(f.soft, Finding{Check: checkUnknown, PCR: strconv.Itoa(pcr), Event: digest, Release: f.release, Text: clip(text)})
		return
	}
	f.add(checkUnknown, pcr, digest, text)
}

func (f *fit) add(check string, pcr int, event, text string) {
	f.hard = append(f.hard, Finding{Check: check, PCR: strconv.Itoa(pcr), Event: event, Release: f.release, Text: clip(text)})
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "") }

// step is one difference between a register and a chain: an event that is
// missing (seen nil), one too many (known nil), or one in the place of another.
type step struct {
	known *Known
	seen  *Event
}

// What a difference costs: one that quarantines outweighs any number of those
// that do not.
const (
	costPassed = 1
	costSoft   = 1 << 6
	costHard   = 1 << 18
)

func (j *judge) cost(e Event, soft bool) int {
	switch d := j.decision(e); {
	case d == Approved:
		return costPassed
	case d == Open && soft:
		return costSoft
	default:
		return costHard
	}
}

// align finds the differences that cost the least.
func (j *judge) align(known []Known, seen []Event, soft bool) []step {
	digests := make([]string, len(seen))
	for i, e := range seen {
		digests[i] = hex.EncodeToString(e.Digest[:])
	}
	if slices.EqualFunc(known, digests, func(k Known, d string) bool { return k.Digest == d }) {
		return nil
	}
	// Numbers for digests: the table below compares them up to a quarter of a
	// million times.
	number := make(map[string]int)
	want, have := make([]int, len(known)), make([]int, len(seen))
	gone, spare := make([]int, len(known)), make([]int, len(seen)) // costs of an event that is missing, and of one too many
	for a, k := range known {
		if number[k.Digest] == 0 {
			number[k.Digest] = len(number) + 1
		}
		if want[a] = number[k.Digest]; !k.Optional {
			gone[a] = costHard
		}
	}
	for b, e := range seen {
		have[b], spare[b] = number[digests[b]], j.cost(e, soft)
	}
	// rest[a][b] is what known[a:] and seen[b:] differ by.
	rest := make([][]int, len(known)+1)
	cells := make([]int, (len(known)+1)*(len(seen)+1))
	for a := range rest {
		rest[a], cells = cells[:len(seen)+1], cells[len(seen)+1:]
	}
	for a := len(known); a >= 0; a-- {
		for b := len(seen); b >= 0; b-- {
			switch {
			case a == len(known) && b == len(seen):
			case a == len(known):
				rest[a][b] = spare[b] + rest[a][b+1]
			case b == len(seen):
				rest[a][b] = gone[a] + rest[a+1][b]
			default:
				best := min(gone[a]+rest[a+1][b], spare[b]+rest[a][b+1])
				if want[a] == have[b] {
					best = min(best, rest[a+1][b+1])
				} else if gone[a] > 0 {
					best = min(best, spare[b]+rest[a+1][b+1])
				}
				rest[a][b] = best
			}
		}
	}
	var steps []step
	for a, b := 0, 0; a < len(known) || b < len(seen); {
		at, both := rest[a][b], a < len(known) && b < len(seen)
		switch {
		case both && want[a] == have[b] && at == rest[a+1][b+1]:
			a, b = a+1, b+1
		case b < len(seen) && at == spare[b]+rest[a][b+1]:
			steps = append(steps, step{nil, &seen[b]})
			b++
		case both && want[a] != have[b] && gone[a] > 0 && at == spare[b]+rest[a+1][b+1]:
			steps = append(steps, step{&known[a], &seen[b]})
			a, b = a+1, b+1
		default:
			if gone[a] > 0 {
				steps = append(steps, step{&known[a], nil})
			}
			a++
		}
	}
	return steps
}
