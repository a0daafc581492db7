//go:build firmware

package firmware_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// row is how a stage went.
type row struct {
	Stage  string             `json:"stage"`
	Till   string             `json:"till,omitempty"`
	OK     bool               `json:"ok"`
	Wall   float64            `json:"wall_s"`
	CPU    float64            `json:"cpu_s"` // of the machine; of all children and this process where there is none
	Notes  map[string]any     `json:"notes,omitempty"`
	Why    string             `json:"why,omitempty"`
	Detail map[string]float64 `json:"detail,omitempty"`
}

// report gathers what the stages cost.
type report struct {
	mu   sync.Mutex
	rows []row
	json io.Writer
}

func (r *report) add(x row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, x)
	if b, err := json.Marshal(x); err == nil {
		fmt.Fprintf(r.json, "%s\n", b)
	}
}

// table is what a person reads.
func (r *report) table() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "till\tstage\twall s\tCPU s\t\t\n")
	for _, x := range r.rows {
		state := "ok"
		if !x.OK {
			state = "FAILED"
		}
		var notes []string
		for k, v := range x.Notes {
			notes = append(notes, fmt.Sprintf("%s %v", k, v))
		}
		slices.Sort(notes)
		if x.Why != "" {
			notes = append(notes, "because "+head(printable(strings.ReplaceAll(x.Why, "\n", " "))))
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%s\t%s\n", x.Till, x.Stage, x.Wall, x.CPU, state, strings.Join(notes, ", "))
	}
	_ = w.Flush()
	return b.String()
}

// stage is something that has to be shown on a till.
type stage struct {
	name  string
	needs []string // stages of the same till that have to be done before
	limit time.Duration
	do    func(ctx context.Context, b *till, note func(string, any)) error
}

// outcome is a stage that was played, or is.
type outcome struct {
	once sync.Once
	err  error
}

// play runs a stage of a till after those that it needs, each once. What it
// costs is reported.
func (b *till) play(ctx context.Context, all []stage, name string) error {
	i := slices.IndexFunc(all, func(s stage) bool { return s.name == name })
	if i < 0 {
		return fmt.Errorf("no stage %s", name)
	}
	s, o := all[i], b.stages[name]
	if o == nil {
		o = &outcome{}
		b.stages[name] = o
	}
	o.once.Do(func() {
		for _, n := range s.needs {
			if err := b.play(ctx, all, n); err != nil {
				o.err = fmt.Errorf("%s: %w", n, err)
				return
			}
		}
		ctx, cancel := context.WithTimeoutCause(ctx, s.limit*time.Duration(*slowFlag), fmt.Errorf("the stage took longer than %v", s.limit))
		defer cancel()
		x := row{Stage: name, Till: b.name, Notes: map[string]any{}}
		began, cpu := time.Now(), b.machine.CPU()
		o.err = s.do(ctx, b, func(k string, v any) { x.Notes[k] = v })
		x.Wall, x.CPU, x.OK = seconds(time.Since(began)), seconds(b.machine.CPU()-cpu), o.err == nil
		if o.err != nil {
			x.Why = o.err.Error()
		}
		b.report.add(x)
	})
	return o.err
}

// each makes a test of each stage of a till.
func (b *till) each(t *testing.T, all []stage) {
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			if err := b.play(t.Context(), all, s.name); err != nil {
				t.Error(err)
				t.Logf("the end of the serial line: %s", printable(tail(b.serial.from(0), 3000)))
				t.Logf("the end of the log on its disk: %s", b.log(t.Context()))
			}
		})
	}
}

// task reports what something costs that no machine does.
func (r *report) task(name string, do func(note func(string, any)) error) error {
	x := row{Stage: name, Notes: map[string]any{}}
	began, cpu := time.Now(), ownCPU()
	err := do(func(k string, v any) { x.Notes[k] = v })
	x.Wall, x.CPU, x.OK = seconds(time.Since(began)), seconds(ownCPU()-cpu), err == nil
	if err != nil {
		x.Why = err.Error()
	}
	r.add(x)
	return err
}

// ownCPU is what this process and its children that ended have used.
func ownCPU() (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return d
}

func seconds(d time.Duration) float64 {
	return float64(d.Round(100*time.Millisecond)) / float64(time.Second)
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// printable leaves out what firmware says to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r < 0x7f {
			return r
		}
		return -1
	}, s)
}
