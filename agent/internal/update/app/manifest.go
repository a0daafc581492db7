package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// manifestName is the file at the top of a tree that says how the application
// is handled.
const manifestName = "tillward.json"

const (
	maxManifest = 64 << 10
	maxArgs     = 64
	maxTimeout  = 10 * time.Minute
)

// manifest is tillward.json. Each command is a program and its arguments; one
// that begins with ./ lies in the tree. Start and stop must bear to be called
// when there is nothing to do. Unknown fields are for agents to come.
type manifest struct {
	Health  []string `json:"health,omitempty"` // exits with 0 when the application does its work
	Start   []string `json:"start,omitempty"`  // what runs from `current` is started, or told to start anew
	Stop    []string `json:"stop,omitempty"`
	Timeout int      `json:"timeout_s,omitempty"` // of each command; 0: as configured
}

// parse reads a manifest.
func parse(b []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return manifest{}, err
	}
	if m.Timeout < 0 || m.Timeout > int(maxTimeout/time.Second) {
		return manifest{}, fmt.Errorf("timeout_s %d: must lie between 0 and %d", m.Timeout, int(maxTimeout/time.Second))
	}
	for _, c := range [...]struct {
		name string
		args []string
	}{{"health", m.Health}, {"start", m.Start}, {"stop", m.Stop}} {
		if len(c.args) == 0 {
			continue
		}
		switch p := c.args[0]; {
		case len(c.args) > maxArgs:
			return manifest{}, fmt.Errorf("%s has %d arguments, at most %d", c.name, len(c.args), maxArgs)
		case strings.HasPrefix(p, "./") && filepath.IsLocal(p), filepath.IsAbs(p):
		default:
			return manifest{}, fmt.Errorf("%s %.80q: must begin with ./ for a program of the tree, or be a full path", c.name, p)
		}
		for _, a := range c.args {
			if strings.ContainsRune(a, 0) {
				return manifest{}, fmt.Errorf("%s: no argument may hold a zero byte", c.name)
			}
		}
	}
	return m, nil
}

// read returns the manifest of the tree in dir. A tree without one holds data
// alone: that it is whole is all there is to prove.
func read(dir string) (manifest, error) {
	f, err := os.OpenInRoot(dir, manifestName) // it may be a link, not one that leads out
	if errors.Is(err, fs.ErrNotExist) {
		return manifest{}, nil
	}
	if err != nil {
		return manifest{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fmt.Errorf("more than %d bytes", maxManifest)
	}
	var m manifest
	if err == nil {
		m, err = parse(b)
	}
	if err != nil {
		return manifest{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	return m, nil
}
