package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/tillward/tillward/provisioning/trust"
)

// roles are those that a repository of one's own begins with.
var roles = []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp, trust.RoleAgent}

type repoCmd struct {
	Init   repoInit   `cmd:"" help:"Make an empty repository and, where they are missing, its keys."`
	Show   repoShow   `cmd:"" help:"List what is released."`
	Verify repoVerify `cmd:"" help:"Check the repository as a device would, and every file in it."`
}

type repoInit struct {
	Dir       string         `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Keys      string         `required:"" help:"Folder with root.pem, targets.pem, snapshot.pem, timestamp.pem and agent/prod.pem; more keys of a role are root-2.pem and so on, other delegated roles os/MODEL/prod.pem, os/MODEL/beta.pem and ops/TENANT.pem." placeholder:"DIR"`
	Threshold map[string]int `mapsep:"," help:"How many keys of a role must sign, e.g. root=3; all by default."`
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

// verify checks a repository from a root, by default its first.
func verify(dir, from string) ([]trust.Target, error) {
	root, err := (&trust.Repository{Dir: dir}).Root()
	if from != "" {
		root, err = readFile(from, 512<<10)
	}
	if err != nil {
		return nil, err
	}
	if repo := (&trust.Repository{Dir: dir}); !repo.Stamped() {
		targets, err := repo.Verify(root)
		if err != nil {
			return nil, err
		}
		return targets, checkReferences(dir, targets)
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
	targets, err := verify(c.Dir, "")
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
	Dir  string `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Root string `help:"The root that the device's image carries; the first of the repository by default." placeholder:"FILE"`
}

// Run implements the command.
func (c *repoVerify) Run(o *out) error {
	targets, err := verify(c.Dir, c.Root)
	if err != nil {
		return err
	}
	text, stamped := "", (&trust.Repository{Dir: c.Dir}).Stamped()
	if !stamped {
		text = "; snapshot and timestamp are the service's to sign"
	}
	return o.print(map[string]any{"ok": true, "targets": len(targets), "stamped": stamped}, "%s verifies: %d targets%s", c.Dir, len(targets), text)
}

// repository opens a folder that must hold a repository.
func repository(dir string) (*trust.Repository, error) {
	r := &trust.Repository{Dir: dir}
	if _, err := r.Root(); err != nil {
		return nil, usage{fmt.Errorf("--repo %s: not a repository; make one with tillward-provision repo init: %w", dir, err)}
	}
	return r, nil
}
