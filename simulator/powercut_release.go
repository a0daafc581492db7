package simulator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/tillward/tillward/provisioning/tree"
)

const posComponent = "ops/demo/pos"

// shipment is a release that tills are updated to.
type shipment struct {
	component, version, fate string

	publish func(ctx context.Context) error // once; whoever else asks waits
}

func (s *shipment) id() string { return s.component + "/" + s.version }

// releases draws up what will be released. The agents are one binary with its
// version written into it anew.
func (l *lane) releases() error {
	b, err := os.ReadFile(l.opt.Next)
	if err != nil {
		return fmt.Errorf("the agent to update to: %w", err)
	}
	base, digits := strings.CutSuffix(l.opt.UpdateTo, "000000")
	if !digits || !bytes.Contains(b, []byte(l.opt.UpdateTo)) {
		return fmt.Errorf("the agent to update to is %s: it must be built with a version that ends in 1000000, to be counted up from", l.opt.UpdateTo)
	}
	rounds := (l.opt.Cuts+l.opt.Tills-1)/l.opt.Tills/2 + 1
	for k := range rounds + 1 {
		s := &shipment{component: "agent", version: fmt.Sprintf("%s%06d", base, k+1), fate: good}
		switch k % 6 {
		case 2:
			s.fate = dead
		case 5:
			s.fate = sick
		}
		s.publish = l.once(func(ctx context.Context) error { return l.releaseAgent(ctx, s, b) })
		l.agents = append(l.agents, s)
	}
	for k := range rounds + 2 {
		s := &shipment{component: posComponent, version: "1.0." + strconv.Itoa(k+1), fate: good}
		if k%3 == 0 && k > 2 {
			s.fate = sick
		}
		s.publish = l.once(func(ctx context.Context) error { return l.releaseApp(ctx, s) })
		l.apps = append(l.apps, s)
	}
	return nil
}

func (l *lane) once(f func(ctx context.Context) error) func(ctx context.Context) error {
	var once sync.Once
	var err error
	return func(ctx context.Context) error {
		once.Do(func() {
			l.publishing.Lock()
			defer l.publishing.Unlock()
			err = f(ctx)
		})
		return err
	}
}

// publishAhead has releases ready before a till needs them.
func (l *lane) publishAhead(ctx context.Context) {
	for k := range max(len(l.agents), len(l.apps)) {
		for _, list := range [][]*shipment{l.agents, l.apps} {
			if k < len(list) && list[k].publish(ctx) != nil {
				return // whoever needs it says so
			}
		}
	}
}

func (l *lane) know(hash, version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known[hash] = version
}

// is names what has a hash.
func (l *lane) is(hash string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[hash]
}

func (l *lane) releaseAgent(ctx context.Context, s *shipment, binary []byte) error {
	b := bytes.ReplaceAll(binary, []byte(l.opt.UpdateTo), []byte(s.version))
	if s.fate == dead { // it passes its self-check, and then it does not live
		b = []byte("#!/bin/sh\n# " + s.version + "\n[ \"$1\" = -selfcheck ]\n")
	}
	file := filepath.Join(l.opt.Dir, "release", "agent-"+s.version)
	if err := os.WriteFile(file, b, 0o700); err != nil { // #nosec G306 -- a program
		return fmt.Errorf("release %s: %w", s.id(), err)
	}
	sum := sha256.Sum256(b)
	l.know(hex.EncodeToString(sum[:]), s.version)
	return errors.Join(l.w.Release(ctx, s.version, file), os.Remove(file))
}

// appFiles is an application that "runs" while the file below runs/ names its
// version; where that is it learns from where it lies.
var appFiles = map[string]string{
	"bin/start": "#!/bin/sh\ncat version > ${TILLWARD_CURRENT%/apps/*}/runs/pos\n",
	"bin/stop":  "#!/bin/sh\n: > ${TILLWARD_CURRENT%/apps/*}/runs/pos\n",
	"bin/check": "#!/bin/sh\nexec cmp version ${TILLWARD_CURRENT%/apps/*}/runs/pos\n",
}

func (l *lane) releaseApp(ctx context.Context, s *shipment) error {
	dir := filepath.Join(l.opt.Dir, "release", "pos-"+s.version)
	put := func(name, content string) error {
		path := filepath.Join(dir, name)
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(content), 0o755)) // #nosec G306 -- programs among them
	}
	manifest, err := json.Marshal(map[string]any{"start": []string{"./bin/start"}, "stop": []string{"./bin/stop"}, "health": []string{"./bin/check"}})
	if err != nil {
		return fmt.Errorf("release %s: %w", s.id(), err)
	}
	errs := []error{put("tillward.json", string(manifest)), put("version", s.version+"\n")}
	for name, content := range appFiles {
		if name == "bin/check" && s.fate == sick {
			content = "#!/bin/sh\necho the printer is not found >&2\nexit 3\n"
		}
		errs = append(errs, put(name, content))
	}
	for i := range 12 {
		errs = append(errs, put(fmt.Sprintf("data/%02d", i), strings.Repeat(fmt.Sprintf("%d of %s\n", i, s.version), 3000)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("release %s: %w", s.id(), err)
	}
	hash, err := treeHash(dir)
	if err != nil {
		return fmt.Errorf("release %s: %w", s.id(), err)
	}
	l.know(hash, s.version)
	if err := l.w.provision(ctx, "release", "add", "--repo", l.w.repo(), "--keys", l.w.keys(), "--tree", dir, "--tenant", "demo", "--name", "pos", "--version", s.version); err != nil {
		return err
	}
	return l.w.cli(ctx, nil, "release", "publish", "--repo", l.w.repo())
}

// treeHash is that of the archive of a folder.
func treeHash(dir string) (string, error) {
	h := sha256.New()
	if err := tree.Pack(h, dir); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
