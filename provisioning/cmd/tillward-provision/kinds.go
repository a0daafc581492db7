package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/chunk"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

var (
	plain    = regexp.MustCompile(`^[a-z0-9]{1,16}$`) // a GOOS or GOARCH
	nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	partForm = regexp.MustCompile(`^[a-z][A-Za-z0-9._/+-]{0,127}$`) // a component
)

const maxSettings = 64 << 10

// exact reports whether v is a version written in full: the short forms and
// build marks do not name one version.
func exact(v string) bool { return semver.IsValid("v"+v) && semver.Canonical("v"+v) == "v"+v }

// target describes what is to be released. clean removes what was made for it.
func (c *releaseAdd) target() (t trust.NewTarget, clean func(), err error) {
	clean = func() {}
	n := 0
	for _, s := range []string{c.Binary, c.Bundle, c.Tree, c.Settings, c.Script} {
		if s != "" {
			n++
		}
	}
	if n != 1 {
		return t, clean, usage{errOne}
	}
	for part, v := range c.Requires {
		if !partForm.MatchString(part) || !exact(v) {
			return t, clean, usage{fmt.Errorf("--requires %s=%s: write it as agent=1.4.0", part, v)}
		}
	}
	if c.Bundle != "" {
		t, err = c.image()
		return t, clean, err
	}
	if !exact(c.Version) {
		return t, clean, usage{fmt.Errorf("--version %q: write it as 1.2.3", c.Version)}
	}
	t.Custom = trust.Custom{Version: c.Version, Models: c.Models, Requires: c.Requires}
	if c.Binary != "" {
		return t, clean, c.agent(&t)
	}
	if !nameForm.MatchString(c.Tenant) || !nameForm.MatchString(c.Name) {
		return t, clean, usage{errors.New("--tenant and --name say whose it is and what it is called, in small letters, digits, . _ and -")}
	}
	base := "ops/" + c.Tenant + "/" + c.Name + "/" + c.Version + "/"
	switch {
	case c.Settings != "":
		t.Path, t.File, t.Custom.Class = base+"settings.json", c.Settings, trust.ClassConfig
		return t, clean, settings(c.Settings)
	case c.Script != "":
		if fi, err := os.Stat(filepath.Join(c.Script, "run")); err != nil || fi.Mode()&0o111 == 0 || !fi.Mode().IsRegular() {
			return t, clean, usage{fmt.Errorf("--script %s: it wants a program called run", c.Script)}
		}
		t.Path, t.Custom.Class = base+"script.tar", trust.ClassScript
		clean, err = packed(&t, c.Script)
	default:
		t.Path, t.Custom.Class = base+"tree.tar", trust.ClassApp
		clean, err = packed(&t, c.Tree)
	}
	return t, clean, err
}

func (c *releaseAdd) agent(t *trust.NewTarget) error {
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	for flag, word := range map[string]string{"--os": c.OS, "--arch": c.Arch} {
		if !plain.MatchString(word) {
			return usage{fmt.Errorf("%s %q: write it as Go does, e.g. linux, amd64", flag, word)}
		}
	}
	if err := isFile("--binary", c.Binary); err != nil {
		return err
	}
	t.Path, t.File = "agent/"+c.Version+"/tillward-agent-"+c.OS+"-"+c.Arch, c.Binary
	t.Custom.Class, t.Custom.OS, t.Custom.Arch = trust.ClassAgent, c.OS, c.Arch
	return nil
}

// image describes a RAUC bundle by what its manifest says.
func (c *releaseAdd) image() (t trust.NewTarget, err error) {
	if c.Model == "" {
		return t, usage{errors.New("--bundle wants --model")}
	}
	if err := isFile("--bundle", c.Bundle); err != nil {
		return t, err
	}
	m, err := readBundle(c.Bundle)
	if err != nil {
		return t, fmt.Errorf("%s: %w", c.Bundle, err)
	}
	switch {
	case c.Version == "":
		c.Version = m.Version
	case c.Version != m.Version:
		return t, fmt.Errorf("%s says that it is version %s, not %s", c.Bundle, m.Version, c.Version)
	}
	if !exact(c.Version) {
		return t, fmt.Errorf("%s has version %q: devices compare versions, write it in the manifest as 1.2.3", c.Bundle, m.Version)
	}
	models := c.Models
	if len(models) == 0 {
		models = []string{c.Model}
	}
	folder := strings.Split(boot.TargetPath(c.Model, ""), "/")[1]
	t = trust.NewTarget{
		Path: "os/" + folder + "/" + c.Channel + "/" + c.Version + "/bundle.raucb", File: c.Bundle,
		Custom: trust.Custom{Class: trust.ClassOS, Version: c.Version, Models: models, Requires: c.Requires, RAUC: &m},
	}
	t.Index, err = index(c.Bundle)
	return t, err
}

// packed makes the archive of a folder.
func packed(t *trust.NewTarget, dir string) (clean func(), err error) {
	clean = func() {}
	f, err := os.CreateTemp("", "tillward-tree-")
	if err != nil {
		return clean, err
	}
	clean = func() { _ = os.Remove(f.Name()) }
	if err := errors.Join(tree.Pack(f, dir), f.Close()); err != nil {
		return clean, fmt.Errorf("pack %s: %w", dir, err)
	}
	t.File = f.Name()
	if t.Custom.Unpacked, err = tree.Size(dir); err != nil {
		return clean, fmt.Errorf("measure %s: %w", dir, err)
	}
	t.Index, err = index(f.Name())
	return clean, err
}

func index(file string) ([]byte, error) {
	f, err := os.Open(file) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := chunk.Index(f)
	if err != nil {
		return nil, fmt.Errorf("chunk index of %s: %w", file, err)
	}
	return b, nil
}

// settings checks the form of settings; what each means is for the device to say.
func settings(file string) error {
	b, err := readFile(file, maxSettings)
	if err != nil {
		return usage{err}
	}
	var v map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&v); err != nil || len(v) == 0 || d.More() {
		return fmt.Errorf("%s: settings are one JSON object with at least one setting: %w", file, errors.Join(err))
	}
	return nil
}

func isFile(flag, file string) error {
	if fi, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return usage{fmt.Errorf("%s %s: no such file", flag, file)}
	}
	return nil
}
