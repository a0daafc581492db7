package simulator

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/tillward/tillward/cloud"
)

// benchPlanner measures one step of the planner over a large fleet, on one core.
func benchPlanner(context.Context, BenchOptions) ([]Figure, error) {
	const devices = 150_000
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out []Figure
	for _, part := range []struct {
		name  string
		first bool
	}{{"planner_step_cpu_ms", false}, {"planner_first_step_cpu_ms", true}} {
		step := cloud.PlannerStep(devices, part.first)
		var runs []float64
		for range benchRuns {
			began := cpu(syscall.RUSAGE_THREAD)
			step()
			runs = append(runs, (cpu(syscall.RUSAGE_THREAD)-began)*1000)
		}
		f := figure(part.name, "ms of CPU", runs)
		f.Limit, f.Devices = 200, devices
		out = append(out, f)
	}
	return out, nil
}

// benchDelta updates the application of a real till to a release of which one
// per cent is other content, and reports what share of a full download came
// from the service.
func benchDelta(ctx context.Context, o BenchOptions) (_ []Figure, err error) {
	w, err := Open(ctx, Options{
		Dir: filepath.Join(o.Dir, "delta"), Bin: o.Bin, Next: filepath.Join(o.Bin, "next", "tillward-agent"), Tills: 1, Seed: 1, Pace: DeskPace,
		Out: io.Discard, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	w.Tills[0].Boot(ctx)
	defer w.Tills[0].Stop()
	tree := filepath.Join(o.Dir, "pos")
	if err := growTree(tree); err != nil {
		return nil, err
	}
	first, err := w.bring(ctx, tree, "1.0.0")
	if err != nil {
		return nil, err
	}
	if err := changeTree(tree); err != nil {
		return nil, err
	}
	second, err := w.bring(ctx, tree, "1.1.0")
	if err != nil {
		return nil, err
	}
	f := figure("app_delta_wire_percent", "% of a full download", []float64{float64(second.Wire) * 100 / float64(first.Wire)})
	f.Limit = 5
	full := figure("app_full_bytes", "bytes", []float64{float64(first.Wire)})
	f.Beside = &full
	return []Figure{f}, nil
}

// moved is where the bytes of an execution came from.
type moved struct {
	Wire   uint64 `json:"wire"`
	Reused uint64 `json:"reused"`
}

// bring releases a tree as the application pos and waits until every till has
// it.
func (w *World) bring(ctx context.Context, tree, version string) (m moved, err error) {
	release := "ops/" + w.service.cfg.Tenant + "/pos/" + version
	if err := w.provision(ctx, "release", "add", "--repo", w.repo(), "--keys", w.keys(), "--tree", tree, "--tenant", w.service.cfg.Tenant, "--name", "pos", "--version", version); err != nil {
		return m, err
	}
	if err := w.cli(ctx, nil, "release", "publish", "--repo", w.repo()); err != nil {
		return m, err
	}
	id, err := w.Rollout(ctx, release)
	if err != nil {
		return m, err
	}
	if err := w.WaitRollout(ctx, id, "COMPLETED"); err != nil {
		return m, err
	}
	var ro struct {
		Bytes moved `json:"bytes"`
	}
	err = w.Operator.Get(ctx, "/v1/rollouts/"+url.PathEscape(id), &ro)
	return ro.Bytes, err
}

// The application of the benchmark: files that nothing compresses, of which a
// few places change.
const (
	treeFiles = 64
	treeFile  = 512 << 10 // bytes
	treeEdits = 5         // of 64 KiB each: one per cent
)

func growTree(dir string) error {
	noise := rand.NewChaCha8([32]byte{'p', 'o', 's'})
	for i := range treeFiles {
		name := treeName(dir, i)
		if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
			return err
		}
		b := make([]byte, treeFile)
		_, _ = noise.Read(b) // never fails
		if err := os.WriteFile(name, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func treeName(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("lib%d", i%8), fmt.Sprintf("part-%02d.bin", i))
}

func changeTree(dir string) error {
	noise := rand.NewChaCha8([32]byte{'n', 'e', 'w'})
	for i := range treeEdits {
		f, err := os.OpenFile(treeName(dir, 7+i*11), os.O_WRONLY, 0) // #nosec G304 -- our own folder
		if err != nil {
			return err
		}
		b := make([]byte, 64<<10)
		_, _ = noise.Read(b) // never fails
		_, err = f.WriteAt(b, 100_000)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}
