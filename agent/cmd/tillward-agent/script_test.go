package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/agent"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tillward-agent": func() { os.Exit(run()) }})
}

// TestScripts runs the sessions in testdata with the real program.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true})
}

var block = regexp.MustCompile("(?ms)^```toml\n(.*?)^```$")

// TestDocs checks what the documentation says to write in a configuration.
func TestDocs(t *testing.T) {
	files, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	devices := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			if !bytes.Contains(m[1], []byte("[[device]]")) {
				continue // of the service
			}
			path := filepath.Join(t.TempDir(), filepath.Base(file)+".toml")
			if err := os.WriteFile(path, m[1], 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, wrong := agent.CheckConfig(path, carried())
			for _, err := range wrong {
				t.Error(err)
			}
			devices += len(cfg.Devices)
		}
	}
	if devices < 8 {
		t.Errorf("the documentation has %d devices", devices)
	}
}
