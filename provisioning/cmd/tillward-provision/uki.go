package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tillward/tillward/provisioning/uki"
)

type ukiCmd struct {
	Build ukiBuild `cmd:"" help:"Make one EFI program of stub, kernel, initrd and command line."`
	Show  ukiShow  `cmd:"" help:"Tell what an image is made of, and what a boot of it measures."`
}

type ukiBuild struct {
	Stub        string `required:"" help:"systemd's EFI stub: linuxx64.efi.stub or linuxaa64.efi.stub." placeholder:"FILE"`
	Kernel      string `required:"" help:"The kernel: bzImage or Image, with its own EFI stub." placeholder:"FILE"`
	Initrd      string `required:"" help:"The initrd, compressed or not." placeholder:"FILE"`
	Cmdline     string `help:"The kernel's command line." placeholder:"TEXT"`
	CmdlineFile string `help:"A file that holds it." placeholder:"FILE"`
	OSRel       string `name:"osrel" required:"" help:"The os-release of the image." placeholder:"FILE"`
	Uname       string `help:"The release of the kernel, uname -r." placeholder:"TEXT"`
	Out         string `required:"" help:"Where to write the image." placeholder:"FILE"`
}

// Run implements the command.
func (c *ukiBuild) Run(o *out) error {
	if (c.Cmdline == "") == (c.CmdlineFile == "") {
		return usage{errors.New("--cmdline or --cmdline-file says with which command line the kernel starts")}
	}
	p := uki.Parts{Cmdline: c.Cmdline, Uname: c.Uname}
	var stub []byte
	for _, f := range []struct {
		path string
		to   *[]byte
	}{{c.Stub, &stub}, {c.Kernel, &p.Kernel}, {c.Initrd, &p.Initrd}, {c.OSRel, &p.OSRelease}} {
		b, err := readFile(f.path, uki.MaxImage)
		if err != nil {
			return err
		}
		*f.to = b
	}
	if c.CmdlineFile != "" {
		b, err := readFile(c.CmdlineFile, 64<<10)
		if err != nil {
			return err
		}
		p.Cmdline = strings.TrimSpace(string(b))
	}
	b, err := uki.Build(stub, p)
	if err != nil {
		return err
	}
	if err := replace(c.Out, b); err != nil {
		return err
	}
	sum, err := uki.Authenticode(b)
	if err != nil {
		return err
	}
	return o.print(map[string]any{"file": c.Out, "bytes": len(b), "authenticode": hex.EncodeToString(sum[:])},
		"%s  %d bytes, authenticode %x", c.Out, len(b), sum)
}

type ukiShow struct {
	File string `arg:"" help:"The image."`
}

// Run implements the command.
func (c *ukiShow) Run(o *out) error {
	i, err := readUKI(c.File)
	if err != nil {
		return err
	}
	type section struct {
		Name   string `json:"name"`
		Bytes  int    `json:"bytes"`
		SHA256 string `json:"sha256"`
	}
	type measurement struct {
		PCR     int      `json:"pcr"`
		What    string   `json:"what"`
		Always  bool     `json:"always"`
		Digests []string `json:"digests"`
	}
	sections, measurements := []section{}, []measurement{}
	for _, s := range i.Sections {
		sections = append(sections, section{s.Name, len(s.Data), fmt.Sprintf("%x", sha256.Sum256(s.Data))})
	}
	for _, m := range i.Measurements() {
		line := measurement{PCR: m.PCR, What: m.What, Always: m.Always}
		for _, d := range slices.Compact(m.Digests) {
			line.Digests = append(line.Digests, hex.EncodeToString(d[:]))
		}
		measurements = append(measurements, line)
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(map[string]any{
			"machine": machineName(i.Machine), "stub": i.Stub, "cmdline": i.Cmdline(), "uname": string(i.Section(".uname")), "os_release": string(i.Section(".osrel")),
			"authenticode": hex.EncodeToString(i.PE[:]), "kernel_authenticode": hex.EncodeToString(i.Kernel[:]),
			"sections": sections, "measurements": measurements,
		})
	}
	fmt.Fprintf(o.w, "machine    %s\nstub       %s\ncmdline    %s\n", machineName(i.Machine), i.Stub, i.Cmdline())
	for _, s := range sections {
		fmt.Fprintf(o.w, "section    %-9s %9d bytes  sha256 %s\n", s.Name, s.Bytes, s.SHA256)
	}
	for _, m := range measurements {
		often := ""
		if !m.Always {
			often = "  (not by every stub and kernel)"
		}
		fmt.Fprintf(o.w, "PCR %-2d     %s  %s%s\n", m.PCR, strings.Join(m.Digests, " or "), m.What, often)
	}
	return nil
}

func readUKI(path string) (uki.Image, error) {
	b, err := readFile(path, uki.MaxImage)
	if err != nil {
		return uki.Image{}, err
	}
	i, err := uki.Parse(b)
	if err != nil {
		return uki.Image{}, fmt.Errorf("%s: %w", path, err)
	}
	return i, nil
}

func machineName(m uint16) string {
	switch m {
	case 0x8664:
		return "x86-64"
	case 0xaa64:
		return "aarch64"
	default:
		return fmt.Sprintf("%#x", m)
	}
}
