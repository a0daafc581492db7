package brcheck

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Tree is a Buildroot checkout, the source of a kernel where one is at hand,
// and a folder of ours for what configuring leaves.
type Tree struct{ Buildroot, Linux, Out string }

// Check asks the checkout what it makes of each configuration of the external
// tree in dir: all checks, or those with one of the given words in their name.
// Nothing in the checkout is changed.
func (tree Tree) Check(ctx context.Context, dir string, only ...string) iter.Seq2[Result, error] {
	x, checks, err := tree.checks(dir)
	return runAll(ctx, x, err, checks, only)
}

func (tree Tree) checks(dir string) (*external, []check, error) {
	x, err := open(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, path := range []*string{&tree.Buildroot, &tree.Out, &x.dir} {
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, nil, err
		}
	}
	raw, err := os.ReadFile(filepath.Join(tree.Buildroot, "Makefile"))
	if err != nil {
		return nil, nil, fmt.Errorf("no Buildroot checkout: %w", err)
	}
	m := regexp.MustCompile(`(?m)^export BR2_VERSION := (\S+)$`).FindSubmatch(raw)
	if m == nil {
		return nil, nil, fmt.Errorf("%s: its Makefile names no version of Buildroot", tree.Buildroot)
	}
	release := string(m[1])
	checks := []check{{release + " check-package", tree.style}}
	for _, name := range slices.Sorted(maps.Keys(x.defconfigs)) {
		one := board{tree, name, filepath.Join(tree.Out, release, name)}
		for _, c := range []check{
			{"loads, and loses no line", one.loads},
			{"comes back from savedefconfig", one.comesBack},
			{"packages resolve, and the agent is built as it should", one.resolves},
			{"users are made", one.users},
			{"kernel takes its fragments", one.kernel},
		} {
			checks = append(checks, check{release + " " + name + " " + c.name, c.run})
		}
	}
	return x, checks, nil
}

// board is one configuration in one checkout.
type board struct {
	Tree
	name, out string
}

// make runs Buildroot's make; a failure is the tree's and not ours.
func (b board) make(ctx context.Context, x *external, words ...string) (stdout string, wrong []string, err error) {
	if err := os.MkdirAll(b.out, 0o755); err != nil { //nolint:gosec // a cache like the others
		return "", nil, err
	}
	c := exec.CommandContext(ctx, "make", append([]string{"-s", "-C", b.Buildroot, "O=" + b.out, "BR2_EXTERNAL=" + x.dir}, words...)...)
	c.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=", "MAKELEVEL=")
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			return "", nil, ctx.Err()
		}
		return "", []string{fmt.Sprintf("make %s: %v: %s", words[0], err, last(said.String()+out.String()))}, nil
	}
	return out.String(), nil, nil
}

// last is the end of what a program said.
func last(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], " | ")
}

func (b board) loads(ctx context.Context, x *external) (string, []string, error) {
	_, wrong, err := b.make(ctx, x, b.name+"_defconfig")
	if err != nil || wrong != nil {
		return "", wrong, err
	}
	got, err := os.ReadFile(filepath.Join(b.out, ".config"))
	if err != nil {
		return "", nil, err
	}
	want := x.defconfigs[b.name]
	return fmt.Sprintf("%d lines", len(want.lines)), lost(want.lines, parseConfig(".config", string(got))), nil
}

// lost are the settings that a configuration does not have. One that is to be
// off may be missing altogether: what it hangs on is off, too.
func lost(want []setting, got config) (wrong []string) {
	has := map[string]string{}
	for _, s := range got.lines {
		has[s.name] = s.value
	}
	for _, s := range want {
		if value, ok := has[s.name]; value != s.value && (ok || s.value != "n") {
			wrong = append(wrong, fmt.Sprintf("lost: %s (it says %q)", s, value))
		}
	}
	return wrong
}

func (b board) comesBack(ctx context.Context, x *external) (string, []string, error) {
	saved := filepath.Join(b.out, "saved")
	if _, wrong, err := b.make(ctx, x, "savedefconfig", "BR2_DEFCONFIG="+saved); err != nil || wrong != nil {
		return "", wrong, err
	}
	again := b
	again.out += ".again"
	if _, wrong, err := again.make(ctx, x, "defconfig", "BR2_DEFCONFIG="+saved); err != nil || wrong != nil {
		return "", wrong, err
	}
	var both [2]config
	for i, out := range []string{b.out, again.out} {
		raw, err := os.ReadFile(filepath.Join(out, ".config"))
		if err != nil {
			return "", nil, err
		}
		both[i] = parseConfig(".config", string(raw))
		both[i].lines = slices.DeleteFunc(both[i].lines, func(s setting) bool { // where it came from, and the commit
			return s.name == "BR2_DEFCONFIG" || s.name == "BR2_EXTERNAL_"+x.name+"_VERSION"
		})
	}
	raw, err := os.ReadFile(saved)
	if err != nil {
		return "", nil, err
	}
	// Lines that are the default here are written all the same: for the reader, and for the day it changes.
	note := fmt.Sprintf("%d lines, %d of them not the default", len(x.defconfigs[b.name].lines), len(parseConfig(saved, string(raw)).lines))
	return note, append(lost(both[0].lines, both[1]), lost(both[1].lines, both[0])...), nil
}

// info is what show-info says of a package.
type info struct {
	Version      string   `json:"version"`
	Licenses     string   `json:"licenses"`
	Dependencies []string `json:"dependencies"`
}

// wants are packages without which no image of ours is one.
var wants = []string{
	"busybox", "ccid", "chrony", "cryptsetup", "dbus", "e2fsprogs", "efibootmgr", "host-genimage", "host-rauc", "host-squashfs",
	"libcurl", "libnl", "linux", "lvm2", "nftables", "pcsc-lite", "rauc", "tillward-agent", "util-linux",
}

func (b board) resolves(ctx context.Context, x *external) (string, []string, error) {
	out, wrong, err := b.make(ctx, x, "show-info", "printvars", "VARS=TILLWARD_%")
	if err != nil || wrong != nil {
		return "", wrong, err
	}
	vars, rest := "", ""
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "{") {
			rest = line
		} else {
			vars += line
		}
	}
	packages := map[string]info{}
	if err := json.Unmarshal([]byte(rest), &packages); err != nil {
		return "", []string{fmt.Sprintf("show-info: %v", err)}, nil
	}
	wrong = append(unresolved(packages), misbuilt(vars, x.defconfigs[b.name])...)
	return fmt.Sprintf("%d packages: rauc %s, linux %s, go %s", len(packages), packages["rauc"].Version, packages["linux"].Version, packages["host-go-bin"].Version), wrong, nil
}

func unresolved(packages map[string]info) (wrong []string) {
	for name, p := range packages {
		for _, d := range p.Dependencies {
			if _, ok := packages[d]; !ok {
				wrong = append(wrong, fmt.Sprintf("%s depends on %s, which is not there", name, d))
			}
		}
	}
	for _, name := range wants {
		if _, ok := packages[name]; !ok {
			wrong = append(wrong, "no package "+name)
		}
	}
	return wrong
}

// misbuilt reads the line by which Buildroot would build the agent.
func misbuilt(vars string, c config) (wrong []string) {
	build := ""
	for line := range strings.Lines(vars) {
		if strings.HasPrefix(line, "TILLWARD_AGENT_BUILD_CMDS=") {
			build = line
		}
	}
	for _, want := range []string{
		"-mod=vendor", "GOPROXY=off", "CGO_ENABLED=1", `-tags "sqlite_omit_load_extension netgo osusergo nethttpomithttp2"`, "-trimpath",
		"-gcflags=all=-l", "-X main.version=0.1.0", "-linkmode external", "-extldflags '", "-static", "-Os", "github.com/tillward/tillward/agent/cmd/tillward-agent",
	} {
		if !strings.Contains(build, want) {
			wrong = append(wrong, fmt.Sprintf("the agent is not built with %s: %s", want, build))
		}
	}
	for _, want := range []string{
		"TILLWARD_VERSION=0.1.0\n", "TILLWARD_CONSOLE=no\n",
		"TILLWARD_MODEL=" + c.value("BR2_TILLWARD_MODEL") + "\n", "TILLWARD_COMPATIBLE=" + c.value("BR2_TILLWARD_COMPATIBLE") + "\n",
	} {
		if !strings.Contains(vars, want) {
			wrong = append(wrong, "the scripts do not get "+strings.TrimSpace(want))
		}
	}
	return wrong
}

// users has Buildroot's own script make our users over its skeleton of /etc.
func (b board) users(ctx context.Context, x *external) (string, []string, error) {
	root := filepath.Join(b.out, "users")
	if err := os.RemoveAll(root); err != nil {
		return "", nil, err
	}
	if err := os.CopyFS(root, os.DirFS(filepath.Join(b.Buildroot, "system/skeleton"))); err != nil {
		return "", nil, err
	}
	c := exec.CommandContext(ctx, filepath.Join(b.Buildroot, "support/scripts/mkusers"), filepath.Join(x.dir, "board/tillward/users.table"), root)
	c.Env = append(os.Environ(), "LC_ALL=C", "BR2_CONFIG="+filepath.Join(b.out, ".config"))
	if out, err := c.CombinedOutput(); err != nil {
		return "", []string{"mkusers: " + last(string(out))}, ctx.Err()
	}
	var wrong []string
	for file, wants := range map[string][]string{
		"etc/passwd": {`(?m)^tillward:x:[0-9]+:[0-9]+:[^:]*:/:/bin/false$`},
		"etc/shadow": {`(?m)^tillward:\*:`},
		"etc/group":  {"lp", "dialout", "gpio", "i2c", "tss"},
	} {
		raw, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			return "", nil, err
		}
		for _, want := range wants {
			if file == "etc/group" {
				want = `(?m)^` + want + `:[^:]*:[0-9]+:(.*,)?tillward$`
			}
			if !regexp.MustCompile(want).Match(raw) {
				wrong = append(wrong, fmt.Sprintf("%s has no line %s", file, want))
			}
		}
	}
	return "tillward, without a password, in its groups", wrong, nil
}

// style runs Buildroot's own check of packages over ours.
func (tree Tree) style(ctx context.Context, x *external) (string, []string, error) {
	files := []string{"Config.in", "external.mk", "external.desc"}
	for _, pattern := range []string{"configs/*_defconfig", "package/*/*", "board/tillward/patches/*/*", "*.sh"} {
		found, err := filepath.Glob(filepath.Join(x.dir, pattern))
		if err != nil {
			return "", nil, err
		}
		for _, f := range found {
			name, err := filepath.Rel(x.dir, f)
			if err != nil {
				return "", nil, err
			}
			files = append(files, name)
		}
	}
	c := exec.CommandContext(ctx, filepath.Join(tree.Buildroot, "utils/check-package"), append([]string{"-b"}, files...)...)
	c.Dir = x.dir
	c.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH")) // its Python is the system's, which has what it imports
	out, err := c.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if !strings.Contains(text, "lines processed") {
		return "", nil, fmt.Errorf("check-package: %w: %s", err, last(text))
	}
	if strings.Contains(text, "\n0 warnings generated") {
		return last(text), nil, nil
	}
	return "", strings.Split(text, "\n"), nil
}
