package halvm_test

import (
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/halvm"
)

// TestRead reads what a machine says, and what it says when all is not well.
func TestRead(t *testing.T) {
	const good = "HALVM BEGIN A\r\n=== RUN   TestA\r\n    --- PASS: TestA/x (0.10s)\r\n--- PASS: TestA (0.10s)\r\nPASS\r\nHALVM END A 0\r\nHALVM DONE\r\n"
	for _, c := range []struct {
		name, said string
		ok, done   bool
		why        string
	}{
		{"all is well", good, true, true, ""},
		{"a test fails", strings.Replace(good, "    --- PASS", "    --- FAIL", 1), false, true, "a test failed"},
		{"an exit code", strings.Replace(good, "END A 0", "END A 2", 1), false, true, "exit code 2"},
		{"nothing was tested", strings.ReplaceAll(good, "--- PASS", "--- SKIP"), false, true, "nothing was tested"},
		{"no test has that name", "HALVM BEGIN A\ntesting: warning: no tests to run\nPASS\nHALVM END A 0\nHALVM DONE\n", false, true, "nothing was tested"},
		{"the machine dies in the middle", strings.Split(good, "PASS\r\nHALVM")[0], false, false, "it did not end"},
		{"the machine dies before", "", false, false, "it was not run"},
		{"another suite ends", strings.Replace(good, "END A", "END B", 1), false, true, "it did not end"},
		{"a test that prints marks", strings.Replace(good, "=== RUN", "x HALVM END A 0", 1), true, true, ""},
	} {
		results, done, err := halvm.Read(strings.NewReader(c.said), []string{"A"})
		if err != nil || len(results) != 1 || done != c.done || results[0].OK != c.ok || results[0].Why != c.why {
			t.Errorf("%s: got %+v, %v, %v", c.name, results, done, err)
		}
	}
	if _, _, err := halvm.Read(strings.NewReader("HALVM MODULE usblp\n"), []string{"A"}); err == nil {
		t.Error("a module that the kernel refuses: got no error")
	}
}
