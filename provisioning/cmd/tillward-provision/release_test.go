package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/trust"
)

// signers NAME... makes a key for each: NAME.pem and NAME.pub.
func signers(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ts.Check(ts.Exec("tillward-provision", "key", "create", name+".pem", "--public", name+".pub"))
	}
}

// keyID NAME FILE puts the id of the public key in a file into a variable.
func keyID(ts *testscript.TestScript, _ bool, args []string) {
	keys, err := readKeysOf([]string{ts.MkAbs(args[1])})
	ts.Check(err)
	id, err := trust.TUFKeyID(keys[0])
	ts.Check(err)
	ts.Setenv(args[0], trust.Short(id))
}

// stillthere COMPONENT VERSION N wants N files of a release in the folder repo.
func stillThere(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(ts.MkAbs(filepath.Join("repo/targets", args[0], args[1], "*")))
	ts.Check(err)
	if strconv.Itoa(len(names)) != args[2] {
		ts.Fatalf("there is %q, want %s files", names, args[2])
	}
}

// sign NAME DRAFT... signs drafts of the folder repo as NAME and merges the signature.
func signAs(ts *testscript.TestScript, _ bool, args []string) {
	out := filepath.Join(ts.Getenv("WORK"), args[0]+".sig")
	_ = os.Remove(out)
	call := []string{"release", "sign", "--key", args[0] + ".pem", "--out", out, "--yes"}
	for _, d := range args[1:] {
		call = append(call, "repo/draft/"+d+".json")
	}
	ts.Check(ts.Exec("tillward-provision", call...))
	ts.Check(ts.Exec("tillward-provision", "release", "merge", "--repo", "repo", out))
}

// replace FILE OLD NEW replaces text in a file, all of it.
func swap(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs(args[0])
	b, err := os.ReadFile(file)
	ts.Check(err)
	if !bytes.Contains(b, []byte(args[1])) {
		ts.Fatalf("%s does not hold %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(file, bytes.ReplaceAll(b, []byte(args[1]), []byte(args[2])), 0o600))
}
