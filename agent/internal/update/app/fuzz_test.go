package app

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzManifest: whatever is accepted runs a program of the tree or one named in
// full, for a bounded time.
func FuzzManifest(f *testing.F) {
	for _, s := range []string{`{"health":["./bin/check","a"],"timeout_s":3}`, `{"start":["../x"]}`, `{"stop":["./a/../../x"]}`, `{"timeout_s":-1}`, `{"health":[""]}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		for _, c := range [][]string{m.Health, m.Start, m.Stop} {
			if len(c) == 0 {
				continue
			}
			if !filepath.IsAbs(c[0]) && (!strings.HasPrefix(c[0], "./") || !strings.HasPrefix(filepath.Join("/tree", c[0])+"/", "/tree/")) {
				t.Errorf("accepted %q", c[0])
			}
		}
		if m.Timeout < 0 || m.Timeout > 600 {
			t.Errorf("accepted %d s", m.Timeout)
		}
	})
}
