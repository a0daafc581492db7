package halvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Result is how a suite went.
type Result struct {
	Suite   string  `json:"suite"`
	OK      bool    `json:"ok"`
	Tests   int     `json:"tests"` // that passed
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Seconds float64 `json:"seconds"`
	Why     string  `json:"why,omitempty"` // it is not OK
}

// boot runs the machine to its end.
func (l Lane) boot(ctx context.Context, k kernel, image string) ([]Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.Timeout, fmt.Errorf("the machine did not end within %v", l.Timeout))
	defer cancel()
	log, arguments := filepath.Join(l.Cache, "kernel.log"), "console=ttyS0 panic=-1 loglevel=7"
	if l.Shell {
		arguments += " halvm.shell"
	}
	q := exec.CommandContext(ctx, "qemu-system-x86_64", // #nosec G204 -- fixed but for our own files
		"-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+log, "-serial", "stdio", "-kernel", k.image(), "-initrd", image, "-append", arguments)
	q.Stderr, q.WaitDelay = os.Stderr, 10*time.Second
	if l.Shell {
		q.Stdin, q.Stdout = os.Stdin, l.Out
		return nil, q.Run()
	}
	said, err := q.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := q.Start(); err != nil {
		return nil, fmt.Errorf("%w; it is in the package qemu-system-x86", err)
	}
	results, done, readErr := read(io.TeeReader(said, l.Out), l.Suites)
	err = errors.Join(readErr, q.Wait())
	switch {
	case ctx.Err() != nil:
		return results, fmt.Errorf("%w; what the kernel said is in %s", context.Cause(ctx), log)
	case err != nil:
		return results, err
	case !done:
		return results, fmt.Errorf("the machine stopped before the tests were over; what the kernel said is in %s", log)
	}
	return results, nil
}

var (
	mark    = regexp.MustCompile(`^HALVM (BEGIN|END|DONE|MODULE) ?(\S*) ?(\d*)$`)
	verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)
)

// read makes results of what the machine says, and reports whether it came to
// its end. A suite that was never begun, never ended, or tested nothing has
// failed.
func read(r io.Reader, suites []string) (results []Result, done bool, err error) {
	for _, s := range suites {
		results = append(results, Result{Suite: s, Why: "it was not run"})
	}
	var now *Result
	var began time.Time
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if m := verdict.FindStringSubmatch(line); m != nil && now != nil {
			switch m[1] {
			case "PASS":
				now.Tests++
			case "FAIL":
				now.Failed++
			case "SKIP":
				now.Skipped++
			}
			continue
		}
		m := mark.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		switch m[1] {
		case "BEGIN":
			now, began = nil, time.Now()
			if i := slices.IndexFunc(results, func(r Result) bool { return r.Suite == m[2] }); i >= 0 {
				now = &results[i]
				now.Why = "it did not end"
			}
		case "END":
			if now != nil && now.Suite == m[2] {
				now.Seconds = time.Since(began).Round(100 * time.Millisecond).Seconds()
				now.judge(m[3])
			}
			now = nil
		case "MODULE":
			return results, false, fmt.Errorf("the kernel refused its module %s", m[2])
		case "DONE":
			done = true
		}
	}
	return results, done, lines.Err()
}

// judge says whether a suite that ended with this exit code passed.
func (r *Result) judge(code string) {
	switch {
	case code != "0":
		r.Why = "exit code " + code
	case r.Failed > 0:
		r.Why = "a test failed"
	case r.Tests == 0:
		r.Why = "nothing was tested"
	default:
		r.OK, r.Why = true, ""
	}
}
