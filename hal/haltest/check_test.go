package haltest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/haltest"
	"github.com/tillward/tillward/hal/virtual"
)

// gossip is a driver that checks configurations with one fault of character.
type gossip struct {
	virtual.Driver
	way  string
	trap haltest.Trap
}

func (g gossip) Check(cfg hal.Config) ([]hal.Info, error) {
	call := func(network, at string) {
		if c, err := (&net.Dialer{}).DialContext(context.Background(), network, at); err == nil {
			_ = c.Close()
		}
	}
	infos, err := g.Driver.Check(cfg)
	switch g.way {
	case "dials":
		call("tcp", g.trap.TCP)
	case "knocks":
		call("unix", g.trap.Unix)
	case "reads":
		_, _ = os.ReadFile(g.trap.Secret)
	case "lists":
		_, _ = filepath.Glob(filepath.Join(g.trap.Root, "sys/class/input/event*"))
	case "writes":
		_ = os.WriteFile(filepath.Join(g.trap.Root, "dev/new"), nil, 0o600)
	case "takes anything":
		return []hal.Info{{ID: cfg.ID, Driver: "virtual", Category: hal.Category(cfg.Options["category"]), Claim: cfg.Claim}}, nil
	case "takes nothing":
		return nil, &hal.Error{Code: "E_ILLEGAL", Op: "open", Err: errors.New(`unknown option "colour"`)}
	case "has words of its own":
		if err != nil {
			return nil, &hal.Error{Code: "E_ILLEGAL", Op: "open", Err: errors.New(`unknown option "colour"`)}
		}
	case "says not what":
		if err != nil {
			return nil, &hal.Error{Code: "E_ILLEGAL", Op: "open"}
		}
	case "has no code":
		if err != nil {
			return nil, errors.New(err.Error())
		}
	case "is nameless":
		if err == nil {
			infos[0].ID = ""
		}
	}
	return infos, err
}

// TestGossip is run by TestCheckCatches, in a process of its own.
func TestGossip(t *testing.T) {
	way, ok := os.LookupEnv("HALTEST_GOSSIP")
	if !ok {
		t.Skip("it is for TestCheckCatches")
	}
	haltest.Check(t, func(trap haltest.Trap) (hal.Driver, []hal.Config) {
		return gossip{way: way, trap: trap}, []hal.Config{{ID: "x", Options: map[string]string{"control": "unix:" + trap.Unix}}}
	}, map[string]hal.Config{`unknown option "colour"`: {ID: "x", Options: map[string]string{"colour": "red"}}})
}

// FuzzGossip is run by TestCheckCatches too.
func FuzzGossip(f *testing.F) {
	way, ok := os.LookupEnv("HALTEST_GOSSIP")
	if !ok {
		f.Skip("it is for TestCheckCatches")
	}
	haltest.Config(f, gossip{way: way}, hal.Config{ID: "x", Options: map[string]string{"category": "POSPrinter"}})
}

// TestCheckCatches has Check and Config pass an honest driver, and catch
// each other one.
func TestCheckCatches(t *testing.T) {
	const fuzzed = "in fuzzing: "
	for way, want := range map[string]string{
		fuzzed + "is honest": fuzzed, fuzzed + "takes anything": fuzzed + "opening it open fuzzed: E_ILLEGAL", fuzzed + "takes nothing": fuzzed + "opening it <nil>",
		fuzzed + "has words of its own": fuzzed + "opening it open fuzzed", fuzzed + "is nameless": fuzzed + "and is checked as",
		"is honest": "", "dials": "touches [127.0.0.1:", "knocks": "/s]", "reads": "root/secret", "lists": "root/sys/class/input", "writes": "root/dev/new",
		"takes anything": "want an E_ILLEGAL", "takes nothing": "want what it is", "has words of its own": "opening it gives", "says not what": `want an E_ILLEGAL with "unknown`,
		"has no code": "want an E_ILLEGAL", "is nameless": "want what it is",
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			test, want := "TestGossip", want
			if rest, ok := strings.CutPrefix(want, fuzzed); ok {
				test, want = "FuzzGossip", rest
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^"+test+"$")
			cmd.Env = append(os.Environ(), "HALTEST_GOSSIP="+strings.TrimPrefix(way, fuzzed))
			out, err := cmd.CombinedOutput()
			exit, failed := errors.AsType[*exec.ExitError](err)
			switch {
			case want == "" && (err != nil || !strings.Contains(string(out), "PASS: "+test)):
				t.Errorf("an honest driver failed: %v\n%s", err, out)
			case want != "" && (!failed || exit.ExitCode() != 1 || !strings.Contains(string(out), want)):
				t.Errorf("not caught: %v\n%s", err, out)
			}
		})
	}
}
