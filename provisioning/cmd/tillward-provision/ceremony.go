package main

import (
	"bufio"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/tillward/tillward/provisioning/trust"
)

type releaseInit struct {
	Repo      string         `required:"" help:"Folder of the repository, which does not exist yet." placeholder:"DIR"`
	Root      []string       `required:"" help:"Public keys that sign the root." placeholder:"FILE"`
	Targets   []string       `required:"" help:"Public keys that sign the delegations." placeholder:"FILE"`
	Online    []string       `help:"Public key of the fleet service (tillward release online-key), which signs snapshot and timestamp by itself." placeholder:"FILE"`
	Snapshot  []string       `help:"Public keys that sign snapshots, where the service does not." placeholder:"FILE"`
	Timestamp []string       `help:"Public keys that sign timestamps, where the service does not." placeholder:"FILE"`
	Threshold map[string]int `mapsep:"," help:"How many keys of a role must sign, e.g. root=3; all by default. Of online keys one is enough."`
}

// Run implements the command.
func (c *releaseInit) Run(o *out) error {
	files := map[string][]string{
		trust.RoleRoot: c.Root, trust.RoleTargets: c.Targets,
		trust.RoleSnapshot: append(c.Snapshot, c.Online...), trust.RoleTimestamp: append(c.Timestamp, c.Online...),
	}
	for role := range c.Threshold {
		if files[role] == nil {
			return usage{fmt.Errorf("--threshold %s: roles are root, targets, snapshot and timestamp", role)}
		}
	}
	all := map[string]trust.Signers{}
	for role, names := range files {
		keys, err := readKeysOf(names)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return usage{fmt.Errorf("no key signs %s: give --online, or --snapshot and --timestamp", role)}
		}
		n := c.Threshold[role]
		if n == 0 && (role == trust.RoleSnapshot || role == trust.RoleTimestamp) {
			n = 1
		}
		all[role] = trust.Signers{Keys: keys, Threshold: n}
	}
	repo := &trust.Repository{Dir: c.Repo}
	if err := repo.Begin(all); err != nil {
		return err
	}
	return (&change{Repo: c.Repo}).said(o, repo, map[string]any{"dir": c.Repo}, c.Repo)
}

type releaseDelegate struct {
	Add    delegateAdd    `cmd:"" help:"Let keys sign the targets of a role."`
	Remove delegateRemove `cmd:"" help:"Take a role back; devices find nothing any more of what it signed."`
}

type delegateAdd struct {
	change
	Role      string   `arg:"" help:"agent/prod, os/MODEL/prod, os/MODEL/beta or ops/TENANT."`
	Key       []string `required:"" help:"Public keys that sign it." placeholder:"FILE"`
	Threshold int      `help:"How many of them must sign; all by default."`
}

// Run implements the command.
func (c *delegateAdd) Run(o *out) error {
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	pubs, err := readKeysOf(c.Key)
	if err != nil {
		return err
	}
	if err := repo.Delegate(c.Role, trust.Signers{Keys: pubs, Threshold: c.Threshold}, keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"role": c.Role}, "delegated "+c.Role)
}

type delegateRemove struct {
	change
	Role string `arg:"" help:"Which."`
}

// Run implements the command.
func (c *delegateRemove) Run(o *out) error {
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	if err := repo.Undelegate(c.Role, keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"role": c.Role}, "took back "+c.Role)
}

type releaseRotate struct {
	change
	Role      string   `arg:"" help:"root, targets, snapshot, timestamp or a delegated role."`
	Add       []string `help:"Public keys that sign it from now on." placeholder:"FILE"`
	Revoke    []string `help:"Keys that sign it no more: ids as release status shows them, or files of public keys." placeholder:"KEY"`
	Threshold int      `help:"How many keys must sign from now on; as before by default."`
}

// Run implements the command.
func (c *releaseRotate) Run(o *out) error {
	if len(c.Add) == 0 && len(c.Revoke) == 0 {
		return usage{errors.New("give --add, --revoke or both")}
	}
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	pubs, err := readKeysOf(c.Add)
	if err != nil {
		return err
	}
	for i, name := range c.Revoke {
		if _, err := os.Stat(name); err != nil {
			continue // an id
		}
		gone, err := readKeysOf([]string{name})
		if err != nil {
			return err
		}
		if c.Revoke[i], err = trust.TUFKeyID(gone[0]); err != nil {
			return err
		}
	}
	if err := repo.Rotate(c.Role, pubs, c.Revoke, c.Threshold, keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"role": c.Role}, "changed the keys of "+c.Role)
}

type releaseThreshold struct {
	change
	Role string `arg:"" help:"root, targets, snapshot, timestamp or a delegated role."`
	N    int    `arg:"" help:"How many of its keys must sign."`
}

// Run implements the command.
func (c *releaseThreshold) Run(o *out) error {
	if c.N < 1 {
		return usage{fmt.Errorf("%d: at least one key must sign", c.N)}
	}
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	if err := repo.Rotate(c.Role, nil, nil, c.N, keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"role": c.Role}, fmt.Sprintf("set the threshold of %s to %d", c.Role, c.N))
}

type releaseRecover struct {
	Repo      string   `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Root      []string `required:"" help:"Public keys of the new root." placeholder:"FILE"`
	Threshold int      `help:"How many of them must sign; all by default."`
}

// Run implements the command.
func (c *releaseRecover) Run(o *out) error {
	ch := &change{Repo: c.Repo}
	repo, _, err := ch.open()
	if err != nil {
		return err
	}
	pubs, err := readKeysOf(c.Root)
	if err != nil {
		return err
	}
	if err := repo.Recover(trust.Signers{Keys: pubs, Threshold: c.Threshold}); err != nil {
		return err
	}
	return ch.said(o, repo, map[string]any{"role": trust.RoleRoot}, "a root that follows from none; devices take it only with an image that carries it")
}

type releaseRenew struct {
	change
	Roles  []string `arg:"" optional:"" help:"Which; by default all that expire soon."`
	Within int      `default:"30" help:"Soon is within so many days."`
}

// Run implements the command.
func (c *releaseRenew) Run(o *out) error {
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	if len(c.Roles) == 0 {
		status, err := repo.Status()
		if err != nil {
			return err
		}
		for _, s := range status {
			if s.Role != trust.RoleSnapshot && s.Role != trust.RoleTimestamp && s.Expires != nil && s.Draft == nil && time.Until(*s.Expires) < time.Duration(c.Within)*24*time.Hour {
				c.Roles = append(c.Roles, s.Role)
			}
		}
	}
	if len(c.Roles) == 0 {
		return o.print(map[string]any{"roles": []string{}}, "nothing expires within %d days", c.Within)
	}
	if err := repo.Renew(c.Roles, keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"roles": c.Roles}, "renewed "+strings.Join(c.Roles, ", "))
}

type releaseDiscard struct {
	Repo string `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Role string `arg:"" help:"Whose draft."`
}

// Run implements the command.
func (c *releaseDiscard) Run(o *out) error {
	if err := (&trust.Repository{Dir: c.Repo}).Discard(c.Role); err != nil {
		return err
	}
	return o.print(map[string]string{"role": c.Role}, "threw the draft of %s away", c.Role)
}

// signatures is the file that a signer hands back.
type signatures struct {
	Signatures []trust.Signature `json:"signatures"`
}

type releaseSign struct {
	signer
	Drafts []string `arg:"" help:"The drafts." placeholder:"FILE"`
	Root   string   `help:"A root that you keep yourself: what a draft says of the past is checked by it." placeholder:"FILE"`
	Out    string   `required:"" help:"Where to write the signatures, to hand back." placeholder:"FILE"`
	Yes    bool     `help:"Sign without asking."`
}

// Run implements the command.
func (c *releaseSign) Run(o *out) error {
	var drafts []*trust.Draft
	text := o.w
	if o.json {
		text = io.Discard
	}
	for _, file := range c.Drafts {
		d, err := trust.ReadDraft(file)
		if err != nil {
			return err
		}
		if c.Root != "" {
			root, err := readFile(c.Root, 512<<10)
			if err != nil {
				return usage{err}
			}
			if err := d.Follows(root); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		lines, err := d.Describe()
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		fmt.Fprintln(text, strings.Join(lines, "\n"))
		drafts = append(drafts, d)
	}
	if !c.Yes {
		if err := ask(text); err != nil {
			return err
		}
	}
	return c.with(func(key crypto.Signer) error {
		var s signatures
		for _, d := range drafts {
			sig, err := d.Sign(key)
			if err != nil {
				return err
			}
			s.Signatures = append(s.Signatures, sig)
		}
		if err := createAll([]newFile{{c.Out, 0o644, func(w io.Writer) error {
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			return e.Encode(s)
		}}}); err != nil {
			return err
		}
		return o.print(map[string]any{"file": c.Out, "signatures": len(s.Signatures)}, "signed by %s; hand back %s", trust.Short(s.Signatures[0].KeyID), c.Out)
	})
}

// ask wants a yes on the terminal.
func ask(w io.Writer) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) { // #nosec G115 -- a descriptor
		return usage{errors.New("nothing was signed: there is nobody to ask; read what is to be signed, then give --yes")}
	}
	fmt.Fprint(w, "Sign this? Type yes: ")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was signed")
	}
	return nil
}

type releaseMerge struct {
	Repo       string   `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Signatures []string `arg:"" optional:"" help:"What signers handed back; none: go on where a power cut has stopped it." placeholder:"FILE"`
}

// Run implements the command.
func (c *releaseMerge) Run(o *out) error {
	repo := &trust.Repository{Dir: c.Repo}
	var all []trust.Signature
	for _, file := range c.Signatures {
		b, err := readFile(file, 1<<20)
		if err != nil {
			return usage{err}
		}
		list, err := parseSignatures(b)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, list...)
	}
	done, err := repo.Merge(all)
	if err != nil {
		return err
	}
	drafts, err := draftsOf(repo)
	if err != nil {
		return err
	}
	var lines []string
	if len(done) > 0 {
		lines = append(lines, "complete: "+strings.Join(done, ", "))
	}
	for _, d := range drafts {
		lines = append(lines, waits(d))
	}
	if len(drafts) == 0 {
		lines = append(lines, "publish it with: tillward release publish --repo "+c.Repo)
	}
	return o.print(map[string]any{"complete": done, "drafts": len(drafts)}, "%s", strings.Join(lines, "\n"))
}

// parseSignatures reads what a signer handed back.
func parseSignatures(b []byte) ([]trust.Signature, error) {
	var s signatures
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("not a file of signatures: %w", err)
	}
	if len(s.Signatures) == 0 {
		return nil, errors.New("not a file of signatures: there is none in it")
	}
	return s.Signatures, nil
}

type releaseStatus struct {
	Repo string `required:"" help:"Folder of the repository." placeholder:"DIR"`
}

// Run implements the command.
func (c *releaseStatus) Run(o *out) error {
	repo, _, err := (&change{Repo: c.Repo}).open()
	if err != nil {
		return err
	}
	list, err := repo.Status()
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(list)
	}
	unseen := false
	for _, s := range list {
		left := "not published yet"
		switch {
		case s.Expires != nil:
			left = fmt.Sprintf("version %d, %s", s.Version, ends(*s.Expires))
		case s.Role == trust.RoleSnapshot || s.Role == trust.RoleTimestamp:
			left = "none in this folder, the service makes it when it is published"
		}
		fmt.Fprintf(o.w, "%-24s %s, signed by %d of %d\n", s.Role, left, s.Threshold, len(s.Keys))
		for _, id := range s.Keys {
			mark := ""
			if s.Draft != nil && slices.Contains(s.Draft.Signed, id) {
				mark = "  has signed the draft"
			}
			fmt.Fprintf(o.w, "    %s%s\n", trust.Short(id), mark)
		}
		if s.Draft != nil {
			fmt.Fprintln(o.w, waits(s))
		}
		unseen = unseen || s.Unseen
	}
	if unseen {
		fmt.Fprintln(o.w, "devices do not see all of it yet: run release refresh")
	}
	return nil
}

// ends says when something expires, louder the sooner.
func ends(at time.Time) string {
	days := int(time.Until(at).Hours() / 24)
	switch {
	case time.Now().After(at):
		return "EXPIRED on " + at.Format(time.DateOnly)
	case days < 30:
		return fmt.Sprintf("expires in %d days, on %s", days, at.Format(time.DateOnly))
	}
	return "good until " + at.Format(time.DateOnly)
}
