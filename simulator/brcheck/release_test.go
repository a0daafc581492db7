package brcheck_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRelease makes the source tarball twice: the same bytes, with the modules
// that Buildroot will not fetch, and with its hash where Buildroot looks.
func TestRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("collects every module, twice")
	}
	if _, err := os.Stat(filepath.Join(tree, "../.git")); err != nil {
		t.Skip("not a clone: there is no commit to release")
	}
	release := func(version, out string) (string, error) {
		c := exec.CommandContext(t.Context(), filepath.Join(tree, "release.sh"), version, out)
		said, err := c.CombinedOutput()
		return string(said), err
	}
	var both [2][]byte
	for i := range both {
		out := t.TempDir()
		if said, err := release("1.2.3", out); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		raw, err := os.ReadFile(filepath.Join(out, "tillward-1.2.3.tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		hash, err := os.ReadFile(filepath.Join(out, "tillward-agent/tillward-agent.hash"))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("\nsha256  %x  tillward-1.2.3.tar.gz\n", sha256.Sum256(raw)); !strings.HasSuffix(string(hash), want) {
			t.Errorf("got %q, want %q", hash, want)
		}
		both[i] = raw
	}
	if !bytes.Equal(both[0], both[1]) {
		t.Error("two releases of one commit differ")
	}
	names := listed(t, both[0])
	for _, want := range []string{"LICENSE", "go.mod", "vendor/modules.txt", "vendor/github.com/mattn/go-sqlite3/sqlite3-binding.c", "buildroot/external.mk"} {
		if !names["tillward-1.2.3/"+want] {
			t.Errorf("the tarball has no %s", want)
		}
	}
	if said, err := release("1.2.3-dirty", t.TempDir()); err == nil || !strings.Contains(said, "not committed") {
		t.Errorf("of changes that are not committed: got %v, %q, want a refusal", err, said)
	}
}

func listed(t *testing.T, raw []byte) map[string]bool {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
	}
}
