package simulator_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the agent may weigh: it lies on each till up to three times, and most of it
// is in memory.
const maxAgent = 16 << 20

// heavy is what the agent does without, with all below it. Such things come in
// behind a library that needs something small of them, and take more than their own
// size: templates call methods by name, so that the linker may drop none.
var heavy = []string{
	"github.com/prometheus", "github.com/alecthomas/kong", "text/template", "html/template",
	"encoding/xml", "encoding/gob", "expvar", "net/http/pprof", "go/parser", "testing",
}

// carried picks what is heavy among imported packages.
func carried(packages []string) (found []string) {
	for _, p := range packages {
		if slices.ContainsFunc(heavy, func(h string) bool { return within(p, h) }) {
			found = append(found, p)
		}
	}
	return found
}

func TestAgentCarriesNothingHeavy(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-tags", "sqlite_omit_load_extension netgo osusergo", "../agent/cmd/tillward-agent")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if !slices.Contains(packages, module+"/agent") {
		t.Fatalf("the agent is not among the %d packages listed", len(packages))
	}
	for _, p := range carried(packages) {
		t.Errorf("the agent carries %s: see what imports it, and do without or put that into a package of its own", p)
	}
	if got := carried(append(packages, "github.com/prometheus/client_golang/prometheus", "testing", "testing/fstest", "testingx")); len(got) != 3 {
		t.Errorf("found %q in a heavy agent, want three", got)
	}
}

// TestAgentWeighsLittle looks at what `make build` has left.
func TestAgentWeighsLittle(t *testing.T) {
	for _, name := range []string{"tillward-agent", "arm64/tillward-agent"} {
		fi, err := os.Stat(filepath.Join("..", "bin", name))
		if errors.Is(err, fs.ErrNotExist) {
			t.Logf("bin/%s is not built", name)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > maxAgent {
			t.Errorf("bin/%s has %d bytes, at most %d: compare `go tool nm -size -sort size` of two builds without -s", name, fi.Size(), maxAgent)
		}
	}
}
