package main

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/tillward/tillward/provisioning/trust"
)

type releaseCmd struct {
	Init      releaseInit      `cmd:"" help:"Draft the root of a new repository from the public keys of those who will sign."`
	Delegate  releaseDelegate  `cmd:"" help:"Say who signs agents, images of a model, or what a tenant brings."`
	Add       releaseAdd       `cmd:"" help:"Release an agent, an image, an application, settings or a script."`
	Withdraw  releaseWithdraw  `cmd:"" help:"Let nobody get a release any more; who runs it goes on."`
	Renew     releaseRenew     `cmd:"" help:"Draft roles again as they are, before they expire."`
	Rotate    releaseRotate    `cmd:"" help:"Add keys to a role and take others from it."`
	Threshold releaseThreshold `cmd:"" help:"Set how many keys of a role must sign."`
	Recover   releaseRecover   `cmd:"" help:"Draft a root that follows from none, when too many root keys are lost."`
	Sign      releaseSign      `cmd:"" help:"Show drafts and sign them, on the machine that holds the key."`
	Merge     releaseMerge     `cmd:"" help:"Put signatures on their drafts; what has enough is published to the folder."`
	Status    releaseStatus    `cmd:"" help:"Tell what expires when, and whose signature is missing."`
	Discard   releaseDiscard   `cmd:"" help:"Throw a draft away."`
	Refresh   releaseRefresh   `cmd:"" help:"Sign snapshot and timestamp anew, so that devices do not take the repository for frozen."`
}

// change is what every verb that changes a repository takes.
type change struct {
	Repo string `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Keys string `help:"Folder with the keys, to sign at once. Without it a draft waits for signatures." placeholder:"DIR"`
}

// open returns the repository and the keys, if they are at hand.
func (c *change) open() (*trust.Repository, trust.Keys, error) {
	repo := &trust.Repository{Dir: c.Repo}
	if _, err := repo.Status(); err != nil {
		return nil, nil, usage{fmt.Errorf("--repo %s: not a repository; make one with tillward-provision repo init or release init: %w", c.Repo, err)}
	}
	if c.Keys == "" {
		return repo, nil, nil
	}
	keys, err := trust.ReadKeys(c.Keys)
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("--keys %s: no key of a role is in it", c.Keys)
	}
	return repo, keys, err
}

// said prints what was done, and for drafts who signs next.
func (c *change) said(o *out, repo *trust.Repository, v map[string]any, done string) error {
	if c.Keys != "" {
		return o.print(v, "%s; publish it with: tillward release publish --repo %s", done, c.Repo)
	}
	drafts, err := draftsOf(repo)
	if err != nil {
		return err
	}
	files, lines := []string{}, []string{"drafted: " + done}
	for _, d := range drafts {
		files, lines = append(files, d.Draft.File), append(lines, waits(d))
	}
	v["drafts"] = files
	return o.print(v, "%s", strings.Join(lines, "\n"))
}

func draftsOf(repo *trust.Repository) (list []trust.RoleStatus, err error) {
	status, err := repo.Status()
	for _, s := range status {
		if s.Draft != nil {
			list = append(list, s)
		}
	}
	return list, err
}

// waits says in a line what a draft lacks.
func waits(s trust.RoleStatus) string {
	var lacks []string
	for _, m := range s.Draft.Missing {
		var ids []string
		for _, id := range m.Keys {
			ids = append(ids, trust.Short(id))
		}
		lacks = append(lacks, fmt.Sprintf("%d more of %s (%s)", m.Need, strings.Join(ids, ", "), m.Of))
	}
	what := "has all signatures and waits for the others"
	if len(lacks) > 0 {
		what = "wants " + strings.Join(lacks, " and ")
	}
	return fmt.Sprintf("  %s  %s %d %s", s.Draft.File, s.Role, s.Draft.Version, what)
}

type releaseAdd struct {
	change
	Version string `name:"version" help:"Its version, e.g. 1.2.3; a bundle says its own. A release never changes: other content needs another version."`

	Binary   string `help:"An agent." placeholder:"FILE" group:"What"`
	Bundle   string `help:"A system image: a RAUC bundle of the format verity or crypt." placeholder:"FILE" group:"What"`
	Tree     string `help:"An application: a folder." placeholder:"DIR" group:"What"`
	Settings string `help:"Settings: a JSON object." placeholder:"FILE" group:"What"`
	Script   string `help:"A script: a folder with a program called run." placeholder:"DIR" group:"What"`

	OS      string `default:"linux" help:"What an agent runs on." group:"For whom"`
	Arch    string `help:"amd64 or arm64; that of this machine by default." group:"For whom"`
	Model   string `help:"The model that an image is for." group:"For whom"`
	Channel string `default:"prod" enum:"prod,beta" help:"prod, or beta for images that only devices of the beta channel look at." group:"For whom"`
	Tenant  string `help:"The tenant that an application, settings or a script are for." group:"For whom"`
	Name    string `help:"What an application, settings or a script are called." group:"For whom"`

	Models   []string          `help:"Models that it fits; all by default." group:"Conditions"`
	Requires map[string]string `mapsep:"," help:"Components that a device must run at least, e.g. agent=1.4.0." placeholder:"COMPONENT=VERSION" group:"Conditions"`
	Boot     []string          `help:"Boot reference values of this release, a file for each model; signed with it." placeholder:"FILE"`
}

// Run implements the command.
func (c *releaseAdd) Run(o *out) error {
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	add, clean, err := c.target()
	if err != nil {
		return err
	}
	defer clean()
	release := path.Dir(add.Path)
	refs, err := referenceTargets(c.Boot, release)
	if err != nil {
		return err
	}
	if err := repo.Add(append([]trust.NewTarget{add}, refs...), keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"release": release, "target": add.Path}, "released "+add.Path)
}

type releaseWithdraw struct {
	change
	Release string `arg:"" help:"Which, e.g. agent/1.2.3."`
}

// Run implements the command.
func (c *releaseWithdraw) Run(o *out) error {
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	if err := repo.Withdraw(c.Release, keys); err != nil {
		return err
	}
	return c.said(o, repo, map[string]any{"withdrawn": c.Release}, "withdrew "+c.Release)
}

type releaseRefresh struct {
	Repo string `required:"" help:"Folder of the repository." placeholder:"DIR"`
	Keys string `required:"" help:"Folder with snapshot.pem and timestamp.pem." placeholder:"DIR"`
}

// Run implements the command.
func (c *releaseRefresh) Run(o *out) error {
	repo, err := repository(c.Repo)
	if err != nil {
		return err
	}
	keys, err := trust.ReadKeys(c.Keys)
	if err != nil {
		return err
	}
	if err := repo.Refresh(keys); err != nil {
		return err
	}
	return o.print(map[string]string{"repo": c.Repo}, "%s is fresh", c.Repo)
}

var errOne = errors.New("give one of --binary, --bundle, --tree, --settings and --script")
