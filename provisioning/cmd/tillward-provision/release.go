package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"

	"golang.org/x/mod/semver"

	"github.com/tillward/tillward/provisioning/trust"
)

// roles are those that a repository of one's own begins with.
var roles = []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp, trust.RoleAgent}

type keyCmd struct {
	Create keyCreate `cmd:"" help:"Make a key that does not exist yet."`
}

type keyCreate struct {
	File    string `arg:"" help:"Where to write it; readable by its owner only."`
	Sealing string `help:"Make a sealing key (P-256), which approves the boots that a device's secrets open in, and write its public half here." placeholder:"FILE"`
}

// Run implements the command.
func (c *keyCreate) Run(o *out) error {
	if c.Sealing != "" {
		if err := createSealing(c.File, c.Sealing); err != nil {
			return err
		}
		return o.print(map[string]string{"file": c.File, "public": c.Sealing}, "%s  sealing key; devices get %s", c.File, c.Sealing)
	}
	key, err := trust.NewKey(c.File)
	if err != nil {
		return err
	}
	id := trust.KeyID(key.Public().(ed25519.PublicKey))
	return o.print(map[string]string{"file": c.File, "key_id": id}, "%s  key %s", c.File, id)
}

type repoCmd struct {
	Init   repoInit   `cmd:"" help:"Make an empty repository and, where they are missing, its keys."`
	Show   repoShow   `cmd:"" help:"List what is released."`
	Verify repoVerify `cmd:"" help:"Check the repository as a device would, and every file in it."`
}

type repoInit struct {
	Dir       string         `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Keys      string         `required:"" help:"Folder with root.pem, targets.pem, snapshot.pem, timestamp.pem and agent/prod.pem; more keys of a role are root-2.pem and so on, other delegated roles os/MODEL/prod.pem, os/MODEL/beta.pem and ops/TENANT.pem." placeholder:"DIR"`
	Threshold map[string]int `help:"How many keys of a role must sign, e.g. root=3; all by default."`
}

// Run implements the command.
func (c *repoInit) Run(o *out) error {
	if err := os.MkdirAll(c.Keys, 0o700); err != nil {
		return fmt.Errorf("key folder: %w", err)
	}
	for role := range c.Threshold {
		if !slices.Contains(roles, role) && !trust.Delegated(role) {
			return usage{fmt.Errorf("--threshold %s: roles are root, targets, snapshot, timestamp, agent/prod, os/MODEL/prod, os/MODEL/beta and ops/TENANT", role)}
		}
	}
	keys, err := trust.ReadKeys(c.Keys)
	if err != nil {
		return err
	}
	for _, role := range roles {
		if len(keys[role]) > 0 {
			continue
		}
		file := filepath.Join(c.Keys, filepath.FromSlash(role)+".pem")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("key folder: %w", err)
		}
		k, err := trust.NewKey(file)
		if err != nil {
			return err
		}
		keys[role] = []ed25519.PrivateKey{k}
	}
	if _, err := trust.InitRepository(c.Dir, keys, c.Threshold); err != nil {
		return err
	}
	root := filepath.Join(c.Dir, "metadata", "1.root.json")
	return o.print(map[string]string{"dir": c.Dir, "root": root}, "%s is ready. Images carry %s; keep %s offline.", c.Dir, root, c.Keys)
}

// verify checks a repository from its first root.
func verify(dir string) ([]trust.Target, error) {
	root, err := (&trust.Repository{Dir: dir}).Root()
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp("", "tillward-verify-")
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer os.RemoveAll(state)
	targets, err := trust.VerifyRepository(context.Background(), dir, state, root)
	if err != nil {
		return nil, err
	}
	return targets, checkReferences(dir, targets)
}

type repoShow struct {
	Dir string `required:"" help:"Folder of the repository." placeholder:"DIR"`
}

// Run implements the command.
func (c *repoShow) Run(o *out) error {
	targets, err := verify(c.Dir)
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(targets)
	}
	for _, t := range targets {
		fmt.Fprintf(o.w, "%-50s %10d bytes  %s\n", t.Path, t.Length, t.SHA256[:16])
	}
	return nil
}

type repoVerify struct {
	Dir string `required:"" help:"Folder of the repository." placeholder:"DIR"`
}

// Run implements the command.
func (c *repoVerify) Run(o *out) error {
	targets, err := verify(c.Dir)
	if err != nil {
		return err
	}
	return o.print(map[string]any{"ok": true, "targets": len(targets)}, "%s verifies: %d targets", c.Dir, len(targets))
}

type releaseCmd struct {
	Add     releaseAdd     `cmd:"" help:"Release an agent binary and sign the repository anew."`
	Refresh releaseRefresh `cmd:"" help:"Sign snapshot and timestamp anew, so that devices do not take the repository for frozen."`
}

type releaseAdd struct {
	Repo    string `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Keys    string `required:"" help:"Folder with the keys." placeholder:"DIR"`
	Binary  string `required:"" help:"The agent." placeholder:"FILE"`
	Version string `required:"" name:"version" help:"Its version, e.g. 1.2.3. A release never changes: a new binary needs a new version."`
	OS      string `default:"linux" help:"What it runs on."`
	Arch    string `help:"amd64 or arm64; that of this machine by default."`

	Boot []string `help:"Boot reference values of this release, a file for each model; signed with it." placeholder:"FILE"`
}

// plain is a GOOS or GOARCH.
var plain = regexp.MustCompile(`^[a-z0-9]{1,16}$`)

// Run implements the command.
func (c *releaseAdd) Run(o *out) error {
	v := "v" + c.Version
	if !semver.IsValid(v) || semver.Canonical(v) != v { // the short forms and build marks do not name one version
		return usage{fmt.Errorf("--version %q: write it as 1.2.3", c.Version)}
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	for flag, word := range map[string]string{"--os": c.OS, "--arch": c.Arch} {
		if !plain.MatchString(word) {
			return usage{fmt.Errorf("%s %q: write it as Go does, e.g. linux, amd64", flag, word)}
		}
	}
	if fi, err := os.Stat(c.Binary); errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return usage{fmt.Errorf("--binary %s: no such file", c.Binary)}
	}
	refs, err := referenceTargets(c.Boot, "agent/"+c.Version)
	if err != nil {
		return err
	}
	keys, err := trust.ReadKeys(c.Keys)
	if err != nil {
		return err
	}
	repo, err := repository(c.Repo)
	if err != nil {
		return err
	}
	path := "agent/" + c.Version + "/tillward-agent-" + c.OS + "-" + c.Arch
	err = repo.Add(append([]trust.NewTarget{{
		Path: path, File: c.Binary, Custom: trust.Custom{Class: "agent", Version: c.Version, OS: c.OS, Arch: c.Arch},
	}}, refs...), keys)
	if err != nil {
		return err
	}
	return o.print(map[string]string{"release": "agent/" + c.Version, "target": path}, "released %s; publish it with: tillward release publish --repo %s", path, c.Repo)
}

type releaseRefresh struct {
	Repo string `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Keys string `required:"" help:"Folder with snapshot.pem and timestamp.pem." placeholder:"DIR"`
}

// Run implements the command.
func (c *releaseRefresh) Run(o *out) error {
	keys, err := trust.ReadKeys(c.Keys)
	if err != nil {
		return err
	}
	repo, err := repository(c.Repo)
	if err != nil {
		return err
	}
	if err := repo.Refresh(keys); err != nil {
		return err
	}
	return o.print(map[string]string{"repo": c.Repo}, "%s is fresh", c.Repo)
}

// repository opens a folder that must hold a repository.
func repository(dir string) (*trust.Repository, error) {
	r := &trust.Repository{Dir: dir}
	if _, err := r.Root(); err != nil {
		return nil, usage{fmt.Errorf("--repo %s: not a repository; make one with tillward-provision repo init: %w", dir, err)}
	}
	return r, nil
}

type ekCmd struct {
	Sign   ekSign   `cmd:"" help:"Sign a batch of TPMs: a JSON array of {ek_sha256, model, serial}."`
	Verify ekVerify `cmd:"" help:"Check a signed batch."`
}

type ekSign struct {
	In  string `required:"" help:"JSON file with the batch." placeholder:"FILE"`
	Key string `required:"" help:"The vendor's key." placeholder:"FILE"`
	Out string `required:"" help:"Where to write the signed list." placeholder:"FILE"`
}

// Run implements the command.
func (c *ekSign) Run(o *out) error {
	b, err := os.ReadFile(c.In)
	if err != nil {
		return usage{err}
	}
	var entries []trust.ListedEK
	if err := json.Unmarshal(b, &entries); err != nil {
		return fmt.Errorf("%s: %w", c.In, err)
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	l, err := trust.SignList(key, entries)
	if err != nil {
		return err
	}
	if _, err := trust.VerifyList(key.Public().(ed25519.PublicKey), l); err != nil { // also checks the entries
		return err
	}
	b, err = json.Marshal(l) // not indented: the signature is over the entries as they stand
	if err != nil {
		return fmt.Errorf("encode list: %w", err)
	}
	if err := os.WriteFile(c.Out, append(b, '\n'), 0o644); err != nil { // #nosec G306 -- public by nature
		return fmt.Errorf("write list: %w", err)
	}
	return o.print(map[string]any{"file": c.Out, "entries": len(entries)}, "%s  %d TPMs", c.Out, len(entries))
}

type ekVerify struct {
	In  string `required:"" help:"The signed list." placeholder:"FILE"`
	Key string `required:"" help:"The vendor's key; its public half is used." placeholder:"FILE"`
}

// Run implements the command.
func (c *ekVerify) Run(o *out) error {
	b, err := os.ReadFile(c.In)
	if err != nil {
		return usage{err}
	}
	var l trust.List
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("%s: %w", c.In, err)
	}
	key, err := trust.ReadKey(c.Key)
	if err != nil {
		return err
	}
	entries, err := trust.VerifyList(key.Public().(ed25519.PublicKey), l)
	if err != nil {
		return err
	}
	return o.print(entries, "%s verifies: %d TPMs", c.In, len(entries))
}
