package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"tillward-provision": main}) }

// TestScripts runs the sessions in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", Setup: hurry, Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "flip": flip, "owner-only": ownerOnly, "cmp-sheet": cmpSheet, "authority": newAuthority, "firmware": firmware, "unified": unified, "program": program, "tenvalues": tenValues, "extended": extended, "samepolicy": samePolicy, "soften": soften,
			"issues": issues, "keyof": keyOf, "serialof": serialOf, "softtoken": softToken, "signers": signers, "keyid": keyID, "sign": signAs, "replace": swap, "stillthere": stillThere, "bundle": newBundle, "raucbundle": raucBundle, "raucinfo": raucInfo,
		},
	})
}

// hurry lets programs end at once that the race detector would keep for a second,
// and says where the image's scripts are.
func hurry(e *testscript.Env) error {
	e.Setenv("GORACE", "atexit_sleep_ms=10")
	board, err := filepath.Abs("../../../buildroot/board/tillward")
	e.Setenv("BOARD", board)
	return err
}

// exits CODE ARGS... runs tillward-provision and wants that exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	code := 0
	if err := ts.Exec("tillward-provision", args[1:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if args[0] != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func one(ts *testscript.TestScript, pattern string) string {
	names, err := filepath.Glob(ts.MkAbs(pattern))
	if err != nil || len(names) != 1 {
		ts.Fatalf("%s: %v, %v, want one file", pattern, names, err)
	}
	return names[0]
}

// flip flips a bit in the middle of the file that matches a pattern; twice undoes it.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	name := one(ts, args[0])
	b, err := os.ReadFile(name)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(name, b, 0o600))
}

// ownerOnly wants a file that nobody but its owner can read.
func ownerOnly(ts *testscript.TestScript, _ bool, args []string) {
	fi, err := os.Stat(one(ts, args[0]))
	ts.Check(err)
	if fi.Mode().Perm() != 0o600 {
		ts.Fatalf("%s has mode %s", args[0], fi.Mode())
	}
}
