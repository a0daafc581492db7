package chaos

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run shows, as JSON.
type Report struct {
	Seed     uint64       `json:"seed"`
	Seconds  float64      `json:"seconds"` // of faults
	Faults   []faultCount `json:"faults"`
	Total    int          `json:"faults_total"`
	Classes  []count      `json:"records"`
	Tills    []tillResult `json:"tills"`
	Commands commandCount `json:"commands"`
	Trail    string       `json:"service_trail"` // the service's own audit trail: ok, or what is wrong
	Slowest  recovery     `json:"slowest_recovery"`
	NotRun   []string     `json:"not_run,omitempty"` // what this machine does not allow, and what a short run did not come to
	Problems []string     `json:"problems,omitempty"`
	OK       bool         `json:"ok"`
}

// long is how long a run must be for each kind of fault to happen in it.
const long = time.Minute

// faultCount is how often a kind of fault happened, and what came with it.
type faultCount struct {
	Kind   string         `json:"kind"`
	Count  int            `json:"count"`
	Detail map[string]int `json:"detail,omitempty"`
}

// recovery is how long it took from the end of a fault until the service
// acknowledged something of the till again, whatever else went on meanwhile.
type recovery struct {
	Till    string  `json:"till"`
	After   string  `json:"after"`
	Seconds float64 `json:"seconds"`
}

// tillResult is one till's part.
type tillResult struct {
	Till     string   `json:"till"`
	Device   string   `json:"device"`
	Starts   int      `json:"starts"` // of its agent
	Counts   []count  `json:"records"`
	Chain    string   `json:"chain"`        // computed anew from the rows
	Verified string   `json:"chain_api"`    // as the service says
	Sealed   string   `json:"chain_sealed"` // of the trail as a sealed file, verified without the service
	Shed     uint64   `json:"shed"`         // messages that the till gave up for want of space, by its own count
	Slowest  recovery `json:"slowest_recovery"`
}

// commandCount counts those of the operator.
type commandCount struct {
	Sent  int `json:"sent"`
	Ended int `json:"ended"`
	Twice int `json:"ran_twice"`
}

// judge asks the service, ends it, and compares.
func (h *harness) judge(ctx context.Context) error {
	said := make(map[string]string)
	var broken error
	verify := func(path string) string {
		var v struct {
			OK    bool   `json:"ok"`
			Error string `json:"error"`
			Fault string `json:"fault"`
		}
		if err := h.w.Operator.Get(ctx, path, &v); err != nil {
			return err.Error()
		}
		if !v.OK {
			return cmp.Or(v.Error, v.Fault, "broken")
		}
		return "ok"
	}
	for _, x := range h.tills {
		said[x.device] = verify("/v1/devices/" + x.device + "/audit/verify")
	}
	sealed := h.seal(ctx)
	h.report.Trail = verify("/v1/audit/verify")
	if h.report.Trail != "ok" {
		h.problem("the service's own trail: %s", h.report.Trail)
	}
	if err := h.w.EndService(); err != nil {
		h.problem("end of the service: %v", err)
	}
	all, err := readStore(ctx, h.store)
	if err != nil {
		return err
	}
	raised, err := alarms(ctx, h.store)
	if err != nil {
		return err
	}
	for _, of := range slices.Sorted(maps.Keys(raised)) {
		h.problem("the service raised a false alarm: %s, %d times", of, raised[of])
	}
	sums := make([]count, len(classes))
	for i, c := range classes {
		sums[i].Class = c
	}
	for _, x := range h.tills {
		s := all[x.device]
		if s == nil {
			s = new(stored)
		}
		v := judge(x.Name, x.book, s, int(x.shed))
		h.report.Problems = append(h.report.Problems, v.problems...)
		if said[x.device] != "ok" {
			h.problem("%s: the service says of its trail: %s", x.Name, said[x.device])
		}
		if is := sealed[x.device]; is != "ok" {
			h.problem("%s: its trail as a sealed file: %s", x.Name, is)
		}
		for i := range sums {
			sums[i].add(v.counts[i])
		}
		h.commands(x, s)
		x.mu.Lock()
		r := tillResult{Till: x.Name, Device: x.device, Starts: x.starts, Counts: v.counts, Chain: v.chain, Verified: said[x.device], Sealed: sealed[x.device], Shed: x.shed, Slowest: x.slowest}
		x.mu.Unlock()
		if r.Slowest.Seconds > h.report.Slowest.Seconds {
			h.report.Slowest = r.Slowest
		}
		h.report.Tills = append(h.report.Tills, r)
	}
	h.report.Classes = sums
	for _, k := range slices.Concat(kinds, h.ofService()) {
		h.report.Faults = append(h.report.Faults, faultCount{k.name, h.counts[k.name], h.detail[k.name]})
		h.report.Total += h.counts[k.name]
		switch { // a cut needs something that can be cut at that moment: few seconds may have none
		case h.counts[k.name] > 0:
		case h.opt.For < long:
			h.report.NotRun = append(h.report.NotRun, k.name+": it never came to it")
		default:
			h.problem("fault %q never happened: the run shows nothing of it; let it last longer", k.name)
		}
	}
	h.report.OK = len(h.report.Problems) == 0
	return broken
}

// seal takes each trail away as a sealed file and has it proven without the
// service; by device, ok or what is wrong.
func (h *harness) seal(ctx context.Context) map[string]string {
	out := make(map[string]string)
	var key struct {
		Key string `json:"key"`
	}
	file := filepath.Join(h.socks, "key.pem")
	err := h.w.Ask(ctx, &key, "audit", "keys")
	if err == nil {
		err = os.WriteFile(file, []byte(key.Key), 0o600)
	}
	for _, x := range h.tills {
		to := filepath.Join(h.socks, x.Name+".trail")
		is := err
		if is == nil {
			is = h.w.Ask(ctx, nil, "audit", "export", "--out", to, x.device)
		}
		if is == nil {
			is = h.w.Ask(ctx, nil, "audit", "verify", "--key", file, to)
		}
		out[x.device] = "ok"
		if is != nil {
			out[x.device] = is.Error()
		}
	}
	return out
}

// commands judges that each command that the service took has ended, and that
// none ran twice.
func (h *harness) commands(x *till, s *stored) {
	have := make(map[string]row)
	for _, r := range s.rows {
		if r.Class == result {
			have[r.Boot] = r
		}
	}
	ends := make(map[string]int) // in the till's trail
	for _, list := range x.book.entries {
		for _, e := range list {
			if kind, id, ok := strings.Cut(e.Name, " "); ok && e.kept && id != "" && kind != "command.start" && kind != "command.refused" {
				ends[id]++
			}
		}
	}
	for id, n := range ends {
		if n > 1 {
			h.report.Commands.Twice++
			h.problem("%s: command %s ended %d times", x.Name, id, n)
		}
	}
	for id := range x.commands {
		h.report.Commands.Sent++
		switch r, there := have[id]; {
		case !there:
			h.problem("%s: command %s was taken and is not stored", x.Name, id)
		case open(r):
			h.problem("%s: command %s has not ended", x.Name, id)
		default:
			h.report.Commands.Ended++
		}
	}
}

// print writes the report as a person reads it.
func (r *Report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "\nfaults\n")
	for _, f := range r.Faults {
		var more []string
		for _, k := range slices.Sorted(maps.Keys(f.Detail)) {
			more = append(more, fmt.Sprintf("%d %s", f.Detail[k], k))
		}
		fmt.Fprintf(out, "%7d  %s", f.Count, f.Kind)
		if len(more) > 0 {
			fmt.Fprintf(out, " (%s)", strings.Join(more, ", "))
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "%7d  in all, in %.0f s, seed %d\n\n", r.Total, r.Seconds, r.Seed)
	fmt.Fprintf(w, "records\trecorded\tstored\tbegun\tshed\tlost\tduplicated\tchanged\tunknown\tout of order\t\n")
	for _, c := range r.Classes {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", c.Class, c.Recorded, c.Stored, c.Begun, c.Shed, c.Lost, c.Duplicated, c.Changed, c.Unknown, c.Disorder)
	}
	fmt.Fprintf(w, "\t\t\t\t\t\t\t\t\t\t\n")
	fmt.Fprintf(w, "till\tstarts\taudit\tchain\tby the API\tsealed\tshed\tslowest recovery\t\t\t\n")
	for _, t := range r.Tills {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%d\t%.1f s\t\t\t\n", t.Till, t.Starts, t.Counts[0].Stored, t.Chain, t.Verified, t.Sealed, t.Shed, t.Slowest.Seconds)
	}
	_ = w.Flush()
	fmt.Fprintf(out, "\n%d commands sent, %d ended, %d ran twice; the service's own trail: %s\n", r.Commands.Sent, r.Commands.Ended, r.Commands.Twice, r.Trail)
	fmt.Fprintf(out, "slowest recovery: %.1f s, %s after %q\n", r.Slowest.Seconds, r.Slowest.Till, r.Slowest.After)
	for _, n := range r.NotRun {
		fmt.Fprintf(out, "not run: %s\n", n)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(out, "problem: %s\n", p)
	}
}

// packetsOnWire has the kernel send every twentieth packet of this network
// twice, if it is a network of our own, and says what cannot be.
func packetsOnWire(ctx context.Context) []string {
	if os.Getenv(aloneMark) == "" {
		return []string{"IP packets sent twice: this needs a network of its own, and so root"}
	}
	out, err := exec.CommandContext(ctx, "tc", "qdisc", "replace", "dev", "lo", "root", "netem", "duplicate", "5%").CombinedOutput() // #nosec G204 -- fixed words
	if err != nil {
		return []string{fmt.Sprintf("IP packets sent twice: the kernel has no netem: %s", strings.TrimSpace(string(out)))}
	}
	return nil
}
