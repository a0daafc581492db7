package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/tillward/tillward/provisioning/makers"
)

type makerCmd struct {
	List   makerList   `cmd:"" help:"List the authorities of TPM makers."`
	Add    makerAdd    `cmd:"" help:"Pin certificates of a maker. Roots want their fingerprint confirmed."`
	Verify makerVerify `cmd:"" help:"Check a folder against its pins, and that nothing in it has ended unlisted."`
}

// authority is a certificate as printed.
type authority struct {
	Maker    string `json:"maker"`
	File     string `json:"file"`
	SHA256   string `json:"sha256"`
	Subject  string `json:"subject"`
	Root     bool   `json:"root"`
	Expired  bool   `json:"expired"`
	NotAfter string `json:"not_after"`
	Licence  string `json:"licence"`
	Source   string `json:"source"`
}

func authorities(maker string, list []makers.Certificate) []authority {
	out := make([]authority, 0, len(list))
	for _, c := range list {
		out = append(out, authority{
			Maker: maker, File: c.File, SHA256: c.SHA256, Subject: c.Subject.String(), Root: c.Root(), Expired: c.Expired,
			NotAfter: c.NotAfter.UTC().Format(time.DateOnly), Licence: c.Licence, Source: c.Source,
		})
	}
	return out
}

func (o *out) authorities(list []authority) error {
	if o.json {
		return json.NewEncoder(o.w).Encode(list)
	}
	for _, a := range list {
		kind := "intermediate"
		if a.Root {
			kind = "root"
		}
		if a.Expired {
			kind += ", expired"
		}
		fmt.Fprintf(o.w, "%-12s %s  until %s  %s\n  %q\n  %s, %s\n", a.Maker, kind, a.NotAfter, a.SHA256, a.Subject, a.Source, a.Licence)
	}
	return nil
}

type makerList struct {
	Dir string `help:"Folder with PINS; that built into this program by default." placeholder:"DIR"`
}

// Run implements the command.
func (c *makerList) Run(o *out) error {
	list, err := makers.List()
	if c.Dir != "" {
		list, err = inFolder(c.Dir)
	}
	if err != nil {
		return err
	}
	if len(list) == 0 && !o.json {
		return makers.ErrNone
	}
	all := []authority{}
	for _, m := range list {
		all = append(all, authorities(m.Name, m.Certificates)...)
	}
	return o.authorities(all)
}

func inFolder(dir string) ([]makers.Maker, error) {
	f, err := makers.Open(os.DirFS(dir))
	if err != nil {
		return nil, err
	}
	return f.Makers(), nil
}

type makerAdd struct {
	Dir     string   `required:"" help:"Folder with PINS; made when it is not there." placeholder:"DIR"`
	Maker   string   `required:"" help:"Whose they are, e.g. infineon." placeholder:"NAME"`
	Source  string   `required:"" help:"Where they were taken from: an address, or a repository and path." placeholder:"TEXT"`
	Licence string   `required:"" help:"Licence of what they were taken from, or \"none stated\"." placeholder:"TEXT"`
	SHA256  []string `name:"sha256" help:"Fingerprint of a new root, compared with what its maker publishes; once for each root." placeholder:"HEX"`
	Files   []string `arg:"" help:"PEM files, one certificate each."`
}

// Run implements the command.
func (c *makerAdd) Run(o *out) error {
	added, err := makers.Add(c.Dir, makers.Offer{
		Maker: c.Maker, Source: c.Source, Licence: c.Licence, Files: c.Files, Confirmed: c.SHA256,
	}, time.Now())
	if err != nil {
		return err
	}
	return o.authorities(authorities(c.Maker, added))
}

type makerVerify struct {
	Dir    string `required:"" help:"Folder with PINS." placeholder:"DIR"`
	Relist bool   `help:"List as expired what has ended, in place of failing on it."`
}

// Run implements the command.
func (c *makerVerify) Run(o *out) error {
	if c.Relist {
		if _, err := makers.Relist(c.Dir, time.Now()); err != nil {
			return err
		}
	}
	f, err := makers.Open(os.DirFS(c.Dir))
	if err != nil {
		return err
	}
	var ended []error
	for _, s := range f.Stale(time.Now()) {
		ended = append(ended, fmt.Errorf("%s (%s) ended on %s; \"maker verify --relist\" lists it as expired", s.File, s.Subject, s.NotAfter.UTC().Format(time.DateOnly)))
	}
	if len(ended) > 0 {
		return errors.Join(ended...)
	}
	n := 0
	for _, m := range f.Makers() {
		n += len(m.Certificates)
	}
	return o.print(map[string]any{"ok": true, "makers": len(f.Makers()), "certificates": n},
		"%s verifies: %d makers, %d certificates", c.Dir, len(f.Makers()), n)
}
