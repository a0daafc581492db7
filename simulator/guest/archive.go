// Package guest is what emulated machines are made of: packages of Debian, of
// this machine's release or another, unpacked and not installed; the modules of
// a kernel with those that they need; an initrd. The archive and its proxy are
// those of this machine's apt, so no name of a host is in here; what it says is
// checked against Debian's keys.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// keyring is of Debian's own package, which every Debian has.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Archive is a release of Debian.
type Archive struct {
	options []string // for apt; none: this machine's own release, with its lists as they are
}

// Open returns an archive of a release and reads its lists into dir, where they
// may be removed when the archive is no longer used. An empty release is this
// machine's own.
func Open(ctx context.Context, dir, release string) (*Archive, error) {
	if release == "" {
		return &Archive{}, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil { // #nosec G301 -- nothing secret in it
			return nil, err
		}
	}
	own, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, err
	}
	// With no list read yet apt says where it would look for them; it needs none.
	targets, err := Command(ctx, "", "apt-get", "update", "--print-uris", "-o", "Dir::State::lists="+dir+"/lists")
	if err != nil {
		return nil, fmt.Errorf("%w; this is for machines with Debian", err)
	}
	list, err := sources(string(own), string(targets), release)
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"sources.list": list, "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { // #nosec G306 -- nothing secret in it
			return nil, err
		}
	}
	a := &Archive{}
	for _, o := range []string{
		"Dir::State=" + dir, "Dir::State::lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status", "Dir::Cache=" + dir + "/cache",
		"Dir::Etc::sourcelist=" + dir + "/sources.list", "Dir::Etc::sourceparts=-", "APT::Architecture=amd64", "APT::Architectures::=amd64",
		"APT::Sandbox::User=root", "Debug::NoLocking=1", "Acquire::Languages=none", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"Acquire::Retries=3",
	} {
		a.options = append(a.options, "-o", o)
	}
	// An archive of somebody else's, with names like Debian's, does not matter.
	_, err = a.apt(ctx, "", "apt-get", "update", "--error-on=any")
	if _, none := a.apt(ctx, "", "apt-cache", "show", "base-files"); none != nil {
		return nil, errors.Join(err, none)
	}
	return a, nil
}

var codename = regexp.MustCompile(`(?m)^VERSION_CODENAME="?(\w+)"?$`)

var target = regexp.MustCompile(`(?m)^'(\S+/)dists/([^/]+)/main/binary-[^/]+/Packages[^/']*'`)

// sources makes the list of sources of a release from this machine's: the same
// archives, main and its security updates. Targets are what apt would download
// for this machine's own release.
func sources(osRelease, targets, release string) (string, error) {
	m := codename.FindStringSubmatch(osRelease)
	if m == nil {
		return "", errors.New("this machine does not say which release of Debian it has")
	}
	var list []string
	for _, t := range target.FindAllStringSubmatch(targets, -1) {
		for _, suffix := range []string{"", "-security"} {
			if t[2] == m[1]+suffix {
				list = append(list, fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s %s%s main\n", keyring, t[1], release, suffix))
			}
		}
	}
	slices.Sort(list)
	if list = slices.Compact(list); len(list) == 0 {
		return "", fmt.Errorf("apt of this machine knows no archive of %s: it is for machines with Debian", m[1])
	}
	return strings.Join(list, ""), nil
}

var depends = regexp.MustCompile(`(?m)^Depends: linux-image-(\S+) \(= (\S+)\)$`)

// Kernel says which kernel a metapackage stands for: its ABI, as in
// linux-image-ABI, and its version.
func (a *Archive) Kernel(ctx context.Context, meta string) (abi, version string, err error) {
	out, err := a.apt(ctx, "", "apt-cache", "show", "--no-all-versions", meta)
	if err != nil {
		return "", "", fmt.Errorf("%w; this is for amd64 machines with Debian", err)
	}
	m := depends.FindSubmatch(out)
	if m == nil {
		return "", "", fmt.Errorf("%s does not say which kernel it is", meta)
	}
	return string(m[1]), string(m[2]), nil
}

var install = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) `)

// Needs returns the packages and all that they stand on, as name=version, in
// the order of their names.
func (a *Archive) Needs(ctx context.Context, names ...string) ([]string, error) {
	out, err := a.apt(ctx, "", "apt-get", append([]string{"install", "-s", "-y", "--no-install-recommends"}, names...)...)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, m := range install.FindAllStringSubmatch(string(out), -1) {
		all = append(all, m[1]+"="+m[2])
	}
	slices.Sort(all)
	return all, nil
}

// Unpack downloads packages, each name or name=version, and unpacks them into a
// folder. No script of theirs is run.
func (a *Archive) Unpack(ctx context.Context, dir string, packages ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return err
	}
	debs, err := os.MkdirTemp(filepath.Dir(dir), "debs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	if _, err := a.apt(ctx, debs, "apt-get", append([]string{"download"}, packages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) != len(packages) {
		return fmt.Errorf("apt brought %d packages of %d", len(files), len(packages))
	}
	for _, f := range files {
		if _, err := Command(ctx, "", "dpkg-deb", "-x", f, dir); err != nil {
			return err
		}
	}
	return nil
}

func (a *Archive) apt(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	return Command(ctx, dir, program, append(slices.Clone(a.options), args...)...)
}

// Command runs a program in a folder and returns what it wrote; what it said is
// part of the error.
func Command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	var out, said bytes.Buffer
	c := exec.CommandContext(ctx, name, args...) // #nosec G204 -- Debian's own tools, and scripts of ours
	c.Dir, c.Stdout, c.Stderr = dir, &out, &said
	c.Env = append(os.Environ(), "LC_ALL=C")
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", name, err, tail(out.Bytes()), tail(said.Bytes()))
	}
	return out.Bytes(), nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
