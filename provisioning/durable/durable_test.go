package durable_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/durable"
)

// TestReplace: the file is new or old as a whole, and nothing is left beside it but by what failed.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	for _, want := range []string{"first", "second", ""} {
		if err := os.WriteFile(path+".new", []byte("torn off"), 0o600); err != nil { // a power cut left it
			t.Fatal(err)
		}
		if err := durable.Replace(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("got %v, %v, want it for its owner only", fi.Mode(), err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("left %v, %v", left, err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"none/a", "folder"} {
		if err := durable.Replace(filepath.Join(dir, bad), []byte("x")); err == nil || !strings.Contains(err.Error(), filepath.Base(bad)) {
			t.Errorf("%s: got %v, want an error that names it", bad, err)
		}
	}
	if err := durable.SyncDir(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there was synced")
	}
}
