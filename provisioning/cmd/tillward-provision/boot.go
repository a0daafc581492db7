package main

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/trust"
)

type bootCmd struct {
	Observe bootObserve `cmd:"" help:"Make reference values of a box that is known to be good."`
	Predict bootPredict `cmd:"" help:"Make reference values of an image that was never booted, of a boot of another."`
	Approve bootApprove `cmd:"" help:"Sign the state in which sealed secrets open, and put the approval into the reference values."`
	Format  bootFormat  `cmd:"" help:"Bring reference values that were edited into their one form."`
	Show    bootShow    `cmd:"" help:"Tell what reference values say."`
	Check   bootCheck   `cmd:"" help:"Appraise a boot as the service would, and explain."`
	Add     bootAdd     `cmd:"" help:"Release reference values without a binary: of the image that boxes are flashed with, or of a model that came later."`
}

type bootObserve struct {
	bootLog
	Model   string `help:"Model of the box, as its certificate says." placeholder:"NAME"`
	Release string `help:"What it boots: os/1.2.3, or agent/1.2.3 where the agent is measured." placeholder:"RELEASE"`
	Policy  []int  `help:"Registers that count; by default 0, 2, 4, 7 and 9, with 11 where a unified kernel image was measured, and 8 where a boot loader measured its commands or nothing measured an image. PCR 1, 3 and 5 differ from box to box."`
	Soft    []int  `help:"Registers of the policy in which an unknown event degrades a box and does not quarantine it."`
	Floor   uint64 `help:"Rollback floor that TPMs are raised to once this release is committed."`
	Chain   string `default:"uefi" help:"Name of this way to boot."`
	From    string `help:"Reference values to add this boot to, as one more way; model, release, policy and floor are theirs." placeholder:"FILE"`
	Out     string `required:"" help:"Where to write the reference values." placeholder:"FILE"`
}

// Run implements the command.
func (c *bootObserve) Run(o *out) error {
	r, err := c.begin()
	if err != nil {
		return err
	}
	raw, values, events, err := c.read(r.Policy)
	if err != nil {
		return err
	}
	return c.write(o, r, raw, values, events)
}

// begin returns what the boot is added to.
func (c *bootObserve) begin() (boot.Reference, error) {
	switch {
	case c.From != "" && (c.Model != "" || c.Release != "" || c.Soft != nil || c.Floor != 0):
		return boot.Reference{}, usage{errors.New("--from: model, release, soft registers and floor are those of the file")}
	case c.From != "":
		return readReference(c.From)
	case c.Model == "" || c.Release == "":
		return boot.Reference{}, usage{errors.New("--model and --release say what the values are for; or --from adds to a file")}
	}
	return boot.Reference{Model: c.Model, Release: c.Release, Policy: c.Policy, Soft: c.Soft, Floor: c.Floor}, nil
}

// write makes the reference values of a boot.
func (c *bootObserve) write(o *out, r boot.Reference, raw []byte, values [][]byte, events []boot.Event) (err error) {
	if len(r.Policy) == 0 {
		if r.Policy, err = c.usual([]int{0, 2, 4, 7, 9}, raw, values); err != nil {
			return err
		}
	}
	for _, p := range r.Policy {
		if !slices.ContainsFunc(events, func(e boot.Event) bool { return e.PCR == p }) {
			return usage{fmt.Errorf("--policy: the log holds no event of PCR %d; leave it out, nothing would vouch for it", p)}
		}
	}
	fresh := boot.Observe(r.Model, r.Release, c.Chain, r.Policy, events)
	fresh.Soft, fresh.Floor, fresh.Approvals = slices.Sorted(slices.Values(r.Soft)), r.Floor, r.Approvals
	fresh.Chains = append(r.Chains, fresh.Chains...)
	if _, err := boot.ParseReference(fresh.Bytes()); err != nil {
		return usage{err}
	}
	if err := replace(c.Out, fresh.Bytes()); err != nil {
		return err
	}
	const secure = "EV_EFI_VARIABLE_DRIVER_CONFIG: SecureBoot=1"
	if !slices.ContainsFunc(events, func(e boot.Event) bool { return e.PCR == 7 && e.What == secure }) {
		fmt.Fprintf(os.Stderr, "%s: Secure Boot is not on in this boot: boxes that have it on will not match\n", c.Log)
	}
	n := 0
	for _, known := range fresh.Chains[len(fresh.Chains)-1].Registers {
		n += len(known)
	}
	return o.print(map[string]any{"file": c.Out, "model": fresh.Model, "release": fresh.Release, "chain": c.Chain, "events": n},
		"%s  %s boots %s by chain %s: %d events in PCR %s", c.Out, fresh.Model, fresh.Release, c.Chain, n, commas(fresh.Policy))
}

type bootApprove struct {
	bootLog
	Reference string  `required:"" help:"Reference values to put the approval into." placeholder:"FILE"`
	Key       string  `required:"" help:"The sealing key, made with key create --sealing." placeholder:"FILE"`
	Ref       string  `default:"spool" help:"What opens: the word that the agent seals it under."`
	Registers []int   `help:"Registers whose values count for sealing: by default 4, 7 and 9, and 8 and 11 as for observe; a box that differs in one of them needs an approval of its own."`
	Floor     *uint64 `help:"Highest rollback floor at which it opens; that of the reference values by default, 0: whatever the floor."`
}

// Run implements the command.
func (c *bootApprove) Run(o *out) error {
	r, err := readReference(c.Reference)
	if err != nil {
		return err
	}
	key, err := readSealing(c.Key)
	if err != nil {
		return err
	}
	raw, values, _, err := c.read(c.Registers, r.Policy)
	if err != nil {
		return err
	}
	// Who signs the state of a bad boot gives the secrets of all boxes away.
	if got := boot.Appraise([]boot.Reference{r}, nil, values, raw); got.Trust != boot.Attested {
		return fmt.Errorf("%s is not a boot that %s knows, nothing was signed: %s", c.Log, c.Reference, sentences(got.Findings))
	}
	if c.Registers == nil {
		if c.Registers, err = c.usual([]int{4, 7, 9}, raw, values); err != nil {
			return err
		}
	}
	state := make(map[int][]byte)
	for _, p := range c.Registers {
		at := slices.Index(boot.Quoted[:], p)
		switch {
		case at < 0:
			return usage{fmt.Errorf("--registers %d: only %s", p, commas(boot.Quoted[:]))}
		case at >= len(values):
			return usage{fmt.Errorf("--pcrs: no value of PCR %d", p)}
		}
		state[p] = values[at]
	}
	floor := r.Floor
	if c.Floor != nil {
		floor = *c.Floor
	}
	a, err := boot.SignApproval(key, []byte(c.Ref), state, floor)
	if err != nil {
		return err
	}
	same := func(b boot.Approval) bool {
		return bytes.Equal(a.Policy, b.Policy) && bytes.Equal(a.Ref, b.Ref) && a.Floor == b.Floor
	}
	r.Approvals = append(slices.DeleteFunc(r.Approvals, same), a)
	if _, err := boot.ParseReference(r.Bytes()); err != nil {
		return usage{err}
	}
	if err := replace(c.Reference, r.Bytes()); err != nil {
		return err
	}
	return o.print(map[string]any{"file": c.Reference, "ref": c.Ref, "policy": hex.EncodeToString(a.Policy), "floor": floor},
		"%s  approves %s in this state of PCR %s: policy %x", c.Reference, c.Ref, commas(a.PCRs), a.Policy)
}

type bootFormat struct {
	File string `arg:"" help:"The reference values; replaced when they are right."`
}

// Run implements the command.
func (c *bootFormat) Run(o *out) error {
	b, err := readFile(c.File, boot.MaxReference)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var r boot.Reference
	if err := dec.Decode(&r); err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if dec.More() {
		return fmt.Errorf("%s: goes on behind its end", c.File)
	}
	if _, err := boot.ParseReference(r.Bytes()); err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	if err := replace(c.File, r.Bytes()); err != nil {
		return err
	}
	return o.print(map[string]string{"file": c.File}, "%s  %s boots %s", c.File, r.Model, r.Release)
}

type bootShow struct {
	File string `arg:"" help:"The reference values."`
	Key  string `help:"The sealing key, to check the approvals." placeholder:"FILE"`
}

// Run implements the command.
func (c *bootShow) Run(o *out) error {
	r, err := readReference(c.File)
	if err != nil {
		return err
	}
	var key *ecdsa.PublicKey
	if c.Key != "" {
		private, err := readSealing(c.Key)
		if err != nil {
			return err
		}
		key = &private.PublicKey
	}
	for i, a := range r.Approvals {
		if key != nil && !a.Signed(key) {
			return fmt.Errorf("%s: approval %d was not signed with %s", c.File, i+1, c.Key)
		}
	}
	if o.json {
		_, err := o.w.Write(r.Bytes())
		return err
	}
	fmt.Fprintf(o.w, "%s boots %s\n", r.Model, r.Release)
	fmt.Fprintf(o.w, "target     %s\n", boot.TargetPath(r.Model, r.Release))
	fmt.Fprintf(o.w, "policy     PCR %s\n", commas(r.Policy))
	fmt.Fprintf(o.w, "soft       PCR %s\n", cmp.Or(commas(r.Soft), "none"))
	fmt.Fprintf(o.w, "floor      %d\n", r.Floor)
	for _, chain := range r.Chains {
		fmt.Fprintf(o.w, "chain      %s\n", chain.Name)
		for _, p := range r.Policy {
			for _, k := range chain.Registers[strconv.Itoa(p)] {
				optional := ""
				if k.Optional {
					optional = "optional "
				}
				fmt.Fprintf(o.w, "  PCR %d  %s  %s%s\n", p, k.Digest[:16], optional, k.What)
			}
		}
	}
	for _, a := range r.Approvals {
		fmt.Fprintf(o.w, "approval   %s in PCR %s up to floor %d: policy %x\n", a.Ref, commas(a.PCRs), a.Floor, a.Policy)
	}
	return nil
}

type bootCheck struct {
	Log       string   `help:"The event log; left out: a device that sends none." placeholder:"FILE"`
	PCRs      string   `name:"pcrs" help:"What the registers hold; as for observe." placeholder:"FILE"`
	Reference []string `required:"" help:"Reference values: of the release that runs, and of the one that is offered." placeholder:"FILE"`
}

// Run implements the command. A boot that would be quarantined is exit code 1.
func (c *bootCheck) Run(o *out) error {
	var refs []boot.Reference
	for _, file := range c.Reference {
		r, err := readReference(file)
		if err != nil {
			return err
		}
		refs = append(refs, r)
	}
	var raw []byte
	var values [][]byte
	var err error
	if c.Log != "" {
		if raw, err = readFile(c.Log, maxLogFile); err != nil {
			return err
		}
	}
	switch {
	case c.PCRs != "":
		values, err = readPCRs(c.PCRs)
	case raw != nil:
		values, err = boot.Replay(raw)
	}
	if err != nil {
		return err
	}
	got := boot.Appraise(refs, nil, values, raw)
	if o.json {
		type finding struct {
			Check   string `json:"check"`
			PCR     string `json:"pcr,omitempty"`
			Event   string `json:"event,omitempty"`
			Release string `json:"release,omitempty"`
			Text    string `json:"text"`
		}
		findings := []finding{}
		for _, f := range got.Findings {
			findings = append(findings, finding(f))
		}
		err = json.NewEncoder(o.w).Encode(map[string]any{"trust": got.Trust, "release": got.Release, "chain": got.Chain, "findings": findings})
	} else {
		fmt.Fprintf(o.w, "%s %s\n", got.Trust, strings.TrimSpace(got.Release+" "+got.Chain))
		for _, f := range got.Findings {
			fmt.Fprintf(o.w, "%-20s %s\n", f.Check, f.Text)
			if f.Event != "" {
				fmt.Fprintf(o.w, "%-20s digest %s\n", "", f.Event)
			}
		}
	}
	if err == nil && got.Trust == boot.Quarantined {
		err = errors.New("this boot would be quarantined")
	}
	return err
}

type bootAdd struct {
	change
	Reference []string `required:"" help:"The reference values." placeholder:"FILE"`
}

// Run implements the command.
func (c *bootAdd) Run(o *out) error {
	repo, keys, err := c.open()
	if err != nil {
		return err
	}
	refs, err := referenceTargets(c.Reference, "")
	if err != nil {
		return err
	}
	if err := repo.Add(refs, keys); err != nil {
		return err
	}
	var paths []string
	for _, r := range refs {
		paths = append(paths, r.Path)
	}
	return c.said(o, repo, map[string]any{"targets": paths}, "released "+strings.Join(paths, ", "))
}

// referenceTargets are files of reference values as targets of a repository;
// release, unless it is empty, is what they must be for.
func referenceTargets(files []string, release string) ([]trust.NewTarget, error) {
	var targets []trust.NewTarget
	for _, file := range files {
		r, err := readReference(file)
		if err != nil {
			return nil, err
		}
		if release != "" && r.Release != release {
			return nil, usage{fmt.Errorf("--boot %s: is for %s, not for %s", file, r.Release, release)}
		}
		targets = append(targets, trust.NewTarget{
			Path: boot.TargetPath(r.Model, r.Release), File: file,
			Custom: trust.Custom{Class: trust.ClassBoot, Version: r.Release, Model: r.Model},
		})
	}
	return targets, nil
}

// checkReferences reads the reference values of a repository that verified.
func checkReferences(dir string, targets []trust.Target) error {
	for _, t := range targets {
		if t.Custom.Class != trust.ClassBoot {
			continue
		}
		b, err := readFile(filepath.Join(dir, "targets", filepath.FromSlash(t.File())), boot.MaxReference)
		if err != nil {
			return err
		}
		if _, err := boot.ParseTarget(t.Path, b); err != nil {
			return err
		}
	}
	return nil
}

func readReference(file string) (boot.Reference, error) {
	b, err := readFile(file, boot.MaxReference)
	if err != nil {
		return boot.Reference{}, err
	}
	r, err := boot.ParseReference(b)
	if err != nil {
		return boot.Reference{}, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

func commas(list []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ", "), "[]")
}

func sentences(findings []boot.Finding) string {
	var s []string
	for _, f := range findings {
		s = append(s, f.Text)
	}
	return strings.Join(s, "; ")
}
