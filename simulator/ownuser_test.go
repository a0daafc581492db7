package simulator_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator"
)

const ownUID = 54321 // nobody's

// powers names what a process may that a user of its own may not, going by
// /proc/PID/status [capabilities(7)]. bounded says that it must not be able to
// get anything either.
func powers(status string, bounded bool) (has []string) {
	rows := map[string]string{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		rows[name] = strings.TrimSpace(value)
	}
	for _, id := range []string{"Uid", "Gid"} {
		if f := strings.Fields(rows[id]); len(f) != 4 || slices.Contains(f, "0") {
			has = append(has, id+" "+rows[id])
		}
	}
	if slices.Contains(strings.Fields(rows["Groups"]), "0") {
		has = append(has, "Groups "+rows["Groups"])
	}
	sets := []string{"CapInh", "CapPrm", "CapEff", "CapAmb"}
	if bounded {
		sets = append(sets, "CapBnd")
		if rows["NoNewPrivs"] != "1" {
			has = append(has, "NoNewPrivs "+rows["NoNewPrivs"])
		}
	}
	for _, set := range sets {
		if v, err := strconv.ParseUint(rows[set], 16, 64); err != nil || v != 0 {
			has = append(has, set+" "+rows[set])
		}
	}
	return has
}

// ofThreads are the powers of every thread of a process.
func ofThreads(t *testing.T, pid int, bounded bool) (has []string) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d has no threads (%v)", pid, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if os.IsNotExist(err) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		has = append(has, powers(string(b), bounded)...)
	}
	return has
}

// TestOwnUser holds that the agent does its work as a user of its own without
// a single capability: it enrols by its TPM, is attested, watches a printer,
// and the service has what it measured.
func TestOwnUser(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // #nosec G302 -- a folder to pass through
		t.Fatal(err)
	}
	opt, err := desk(dir, 1, simulator.DeskPace)
	if err != nil {
		t.Fatal(err)
	}
	w, err := simulator.Open(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	till, root := w.Tills[0], os.Getuid() == 0
	if root {
		if err := till.AsUser(ownUID); err != nil {
			t.Fatal(err)
		}
	}
	till.Boot(ctx)
	err = w.Until(ctx, "the till is attested and what it measures is stored", func(ctx context.Context) (bool, error) {
		var fleet struct {
			Items []struct {
				Trust       string
				Samples     uint64
				Peripherals []struct{ ID, Health, Power string }
			}
		}
		if err := w.Operator.Get(ctx, "/v1/devices", &fleet); err != nil || len(fleet.Items) != 1 {
			return false, err
		}
		d, online := fleet.Items[0], 0
		for _, p := range d.Peripherals {
			if (p.ID == "receipt" && p.Health == "OK") || (p.ID == "box" && p.Power == "PS_ONLINE") {
				online++
			}
		}
		return d.Trust == "attested" && d.Samples > 0 && online == 2, nil
	})
	if err != nil {
		tell(t, dir)
		t.Fatal(err)
	}
	if has := ofThreads(t, till.PID(), root); len(has) != 0 {
		t.Errorf("the agent has %q", has)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", till.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if root && !strings.Contains(string(status), "\nUid:\t54321\t54321\t54321\t54321\n") {
		t.Errorf("the agent is not user %d:\n%s", ownUID, status)
	}
}

// TestPowersAreSeen is the must-fail twin: one capability, in whatever set, is
// seen, and so is root.
func TestPowersAreSeen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a capability away")
	}
	user := []string{"--reuid=54321", "--regid=54321", "--clear-groups", "--no-new-privs"}
	with := func(more ...string) []string { return append(slices.Clone(user), more...) }
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"nothing":      {with("--inh-caps=-all", "--bounding-set=-all"), nil},
		"can get one":  {with("--inh-caps=-all", "--bounding-set=-all,+net_raw"), []string{"CapBnd 0000000000002000"}},
		"inherits one": {with("--inh-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"), []string{"CapInh 0000000000002000", "CapBnd 0000000000002000"}},
		"has one": {with("--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"), []string{
			"CapInh 0000000000002000", "CapPrm 0000000000002000", "CapEff 0000000000002000", "CapAmb 0000000000002000", "CapBnd 0000000000002000",
		}},
		"can be others": {[]string{"--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"}, []string{"NoNewPrivs 0"}},
		"root's group":  {[]string{"--reuid=54321", "--regid=54321", "--groups=0", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"}, []string{"Groups 0"}},
		"root":          {[]string{"--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--clear-groups"}, []string{"Uid 0\t0\t0\t0", "Gid 0\t0\t0\t0"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "setpriv", append(test.args, "sleep", "600")...) // #nosec G204 -- a test
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for {
				if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); err == nil && string(b) == "sleep\n" {
					break
				}
				select {
				case <-ctx.Done():
					t.Fatal("setpriv never became the program")
				case <-time.After(time.Millisecond):
				}
			}
			if got := ofThreads(t, cmd.Process.Pid, true); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
