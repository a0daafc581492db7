package simulator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/simulator/child"
)

// BenchOptions say where a benchmark finds its programs.
type BenchOptions struct {
	Bin string    // folder with the binaries
	Dir string    // scratch
	Out io.Writer // JSON lines
	Say io.Writer // progress, for a person

	Storm int    // devices of the reconnect storm; 0: none
	Only  string // name of the one step to run; empty: all

	Rows  int64  // of the audit trails that are searched; 0: few
	Store string // sqlite or postgres; empty: both
	Data  string // where they are, or are made and stay; empty: in Dir
}

// Figure is one line of a benchmark.
type Figure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Median float64   `json:"median"`
	Runs   []float64 `json:"runs"`
	CPU    float64   `json:"cpu_s,omitempty"` // seconds of all runs
	Limit  float64   `json:"limit,omitempty"` // what it must not exceed
	Beside *Figure   `json:"beside,omitempty"`

	Devices int     `json:"devices,omitempty"`
	Wall    float64 `json:"wall_s,omitempty"`
	Retries int     `json:"retries,omitempty"` // connections that broke and were made again
	Rows    int64   `json:"rows,omitempty"`
	Short   int     `json:"short,omitempty"` // pages that ended early
	Worst   float64 `json:"worst,omitempty"`
}

// figure sums up runs.
func figure(name, unit string, runs []float64) Figure {
	s := slices.Sorted(slices.Values(runs))
	f := Figure{Name: name, Unit: unit, Runs: runs}
	if n := len(s); n > 0 {
		f.Median, f.Worst = (s[(n-1)/2]+s[n/2])/2, s[n-1]
	}
	return f
}

const benchRuns = 5

// Bench measures and prints a JSON line for each figure: medians of several
// runs, beside what the machine itself can do, since these machines differ.
func Bench(ctx context.Context, o BenchOptions) error {
	say := func(format string, args ...any) { fmt.Fprintf(o.Say, format+"\n", args...) }
	line := func(f Figure) error { return json.NewEncoder(o.Out).Encode(f) }
	for _, step := range []struct {
		name, what string
		run        func(context.Context, BenchOptions) ([]Figure, error)
	}{
		{"size", "size of the binaries", benchSize},
		{"devices", "enrolment and connections", benchDevices},
		{"storm", fmt.Sprintf("a reconnect storm of %d devices", o.Storm), benchStorm},
		{"backlog", "a backlog on its way into the database", benchBacklog},
		{"planner", "a step of the rollout planner over 150,000 devices", benchPlanner},
		{"delta", "an application release of which one per cent is new", benchDelta},
		{"journal", "the agent's trail, with durable sync", benchJournal},
		{"counter", "the agent with 32 printers, one of them mute at last (takes two minutes)", benchCounter},
		{"audit-search", "searches of the audit trails", benchAudit},
		{"agent", "the agent, idle at its default pace (takes a minute)", benchAgent},
	} {
		if o.Only != "" && o.Only != step.name {
			continue
		}
		say("measuring %s", step.what)
		figures, err := step.run(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		for _, f := range figures {
			if err := line(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// benchSize weighs the agent.
func benchSize(_ context.Context, o BenchOptions) ([]Figure, error) {
	var out []Figure
	for name, path := range map[string]string{
		"agent_binary_bytes": "tillward-agent", "agent_binary_arm64_bytes": "arm64/tillward-agent",
	} {
		fi, err := os.Stat(filepath.Join(o.Bin, path))
		if errors.Is(err, fs.ErrNotExist) && strings.Contains(path, "/") {
			continue // not built
		}
		if err != nil {
			return nil, err
		}
		f := figure(name, "bytes", []float64{float64(fi.Size())})
		f.Limit = 16 << 20
		out = append(out, f)
	}
	return out, nil
}

// cpu is the CPU time this process has used, in seconds.
func cpu(who int) float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(who, &r); err != nil {
		return 0
	}
	sec := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return sec(r.Utime) + sec(r.Stime)
}

// verifies is the machine's own limit for signatures: ECDSA P-256 verifies in
// a second of CPU.
func verifies() (Figure, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Figure{}, err
	}
	digest := sha256.Sum256([]byte("bench"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return Figure{}, err
	}
	const n = 2000
	var runs []float64
	for range benchRuns {
		began := cpu(syscall.RUSAGE_SELF)
		for range n {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
				return Figure{}, errors.New("signature does not verify")
			}
		}
		runs = append(runs, n/(cpu(syscall.RUSAGE_SELF)-began))
	}
	return figure("ecdsa_p256_verifies_per_cpu_second", "1/s", runs), nil
}

// appends is the machine's own limit for durable writes: 4 KiB appended and
// synced in a second.
func appends(dir string) (Figure, error) {
	f, err := os.CreateTemp(dir, "append-")
	if err != nil {
		return Figure{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	const n = 200
	var runs []float64
	for range benchRuns {
		began := time.Now()
		for range n {
			if _, err := f.Write(block); err != nil {
				return Figure{}, err
			}
			if err := f.Sync(); err != nil {
				return Figure{}, err
			}
		}
		runs = append(runs, n/time.Since(began).Seconds())
	}
	return figure("synced_4k_appends_per_second", "1/s", runs), nil
}

// benchAgent looks at one real agent with a printer and a reader, at the pace
// it has in a shop.
func benchAgent(ctx context.Context, o BenchOptions) ([]Figure, error) {
	w, err := Open(ctx, Options{
		Dir: filepath.Join(o.Dir, "agent"), Bin: o.Bin, Tills: 1, Seed: 1,
		Pace: Pace{Poll: "10s", Stats: "1m", Batch: "10s", Heartbeat: "5m"}, Out: io.Discard, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	t := w.Tills[0]
	stored := func(above uint64) (float64, error) {
		began := time.Now()
		err := w.eachDevice(ctx, "samples", func(_ *Till, d device) bool { return d.Samples > above }, nil)
		return time.Since(began).Seconds(), err
	}
	t.Boot(ctx)
	boot, err := stored(0)
	if err != nil {
		return nil, err
	}
	var restarts []float64
	for range 3 {
		t.Stop()
		fleet, err := w.devices(ctx)
		if err != nil {
			return nil, err
		}
		t.Boot(ctx)
		s, err := stored(fleet[t.Name].Samples)
		if err != nil {
			return nil, err
		}
		restarts = append(restarts, s)
	}
	if err := pause(ctx, 20*time.Second); err != nil { // settled
		return nil, err
	}
	pid := t.proc.pid()
	var rss []float64
	before, began := processCPU(pid), time.Now()
	for range benchRuns {
		if err := pause(ctx, 6*time.Second); err != nil {
			return nil, err
		}
		kib, err := resident(pid)
		if err != nil {
			return nil, err
		}
		rss = append(rss, kib*1024)
	}
	used, span := processCPU(pid)-before, time.Since(began).Seconds()
	memory := figure("agent_resident_memory_bytes", "bytes", rss)
	memory.Limit = 20 << 20
	share := figure("agent_idle_cpu_share", "of a core", []float64{used / span})
	share.CPU, share.Limit = used, 0.005
	return []Figure{
		memory, share,
		figure("agent_start_to_first_stored_sample_seconds", "s", restarts),
		figure("agent_first_boot_to_first_stored_sample_seconds", "s", []float64{boot}),
	}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// resident is a process's VmRSS in KiB.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			return strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 64)
		}
	}
	return 0, fmt.Errorf("process %d shows no VmRSS", pid)
}

// processCPU is the CPU time another process has used, in seconds.
func processCPU(pid int) float64 { return child.CPU(pid).Seconds() }
