//go:build firmware

package firmware_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/firmware"
)

// part is a partition of a disk.
type part struct{ start, size int64 }

// partition finds one by its name.
func partition(ctx context.Context, disk, name string) (part, error) {
	out, err := exec.CommandContext(ctx, "sfdisk", "--json", disk).Output()
	if err != nil {
		return part{}, fmt.Errorf("sfdisk: %w", err)
	}
	var t struct {
		Table struct {
			Sector     int64 `json:"sectorsize"`
			Partitions []struct {
				Name        string
				Start, Size int64
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &t); err != nil {
		return part{}, err
	}
	for _, p := range t.Table.Partitions {
		if p.Name == name {
			return part{p.Start * t.Table.Sector, p.Size * t.Table.Sector}, nil
		}
	}
	return part{}, fmt.Errorf("the disk has no partition %s", name)
}

// read opens a partition of a disk.
func read(ctx context.Context, disk, name string) (*io.SectionReader, io.Closer, error) {
	p, err := partition(ctx, disk, name)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(disk)
	if err != nil {
		return nil, nil, err
	}
	return io.NewSectionReader(f, p.start, p.size), f, nil
}

// copyDisk makes a copy of a disk, as sparse as it is.
func copyDisk(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// mcopy copies a file from or to an image of a FAT file system.
func mcopy(ctx context.Context, image string, args ...string) error {
	cmd := exec.CommandContext(ctx, "mcopy", append([]string{"-o", "-i", image}, args...)...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mcopy %q: %w: %s", args, err, out)
	}
	return nil
}

func (b *till) disk() string { return filepath.Join(b.dir, "disk.img") }

// log is the end of what the till has written down, without the kernel's words
// of each boot; what it has not written yet is missing.
func (b *till) log(ctx context.Context) string {
	all, err := journal(ctx, b.disk(), filepath.Join(b.dir, "state.img"))
	if err != nil {
		return err.Error()
	}
	var said strings.Builder
	for line := range strings.Lines(all) {
		if !strings.Contains(line, " kernel: ") || strings.Contains(line, "tillward: ") {
			said.WriteString(line)
		}
	}
	return printable(tail(said.String(), 6000))
}

// mtools copies a file from or to the EFI partition of a slot.
func (b *till) mtools(ctx context.Context, slot string, args ...string) error {
	p, err := partition(ctx, b.disk(), "esp-"+slot)
	if err != nil {
		return err
	}
	return mcopy(ctx, fmt.Sprintf("%s@@%d", b.disk(), p.start), args...)
}

const loader = "::EFI/BOOT/BOOTX64.EFI"

// tampered changes the initrd of the slot that runs, by hand and with all else
// as it was. The till still starts; it says what it is, and is not believed.
func tampered(ctx context.Context, b *till, note func(string, any)) error {
	slot, err := b.slot(ctx)
	if err != nil {
		return err
	}
	if err := b.machine.Kill(); err != nil {
		return err
	}
	good, bad := filepath.Join(b.dir, "good.efi"), filepath.Join(b.dir, "bad.efi")
	if err := b.mtools(ctx, slot, loader, good); err != nil {
		return err
	}
	digests, err := b.spike(good, bad)
	if err != nil {
		return err
	}
	if err := b.mtools(ctx, slot, bad, loader); err != nil {
		return err
	}
	if err := b.power(); err != nil {
		return err
	}
	d, err := b.on(ctx, "is quarantined", 5*time.Minute, func(d device) bool { return d.Trust == "quarantined" && len(d.Findings) > 0 })
	if err != nil {
		return err
	}
	var named []string
	for _, f := range d.Findings {
		if slices.Contains(digests, f.Event) {
			named = append(named, fmt.Sprintf("%s PCR %s %.12s", f.Check, f.PCR, f.Event))
		}
	}
	note("named", strings.Join(named, "; "))
	if len(named) == 0 {
		return fmt.Errorf("no finding names the image or its initrd, %q: %+v", digests, d.Findings)
	}
	said, err := b.fleet.command(ctx, b.id, "diagnose", time.Minute, nil)
	if err != nil {
		return err
	}
	if !strings.Contains(said, "data closed") {
		return fmt.Errorf("what is sealed opened in a boot that was tampered with:\n%s", head(said))
	}
	if err := b.machine.Kill(); err != nil {
		return err
	}
	if err := b.mtools(ctx, slot, good, loader); err != nil {
		return err
	}
	if err := b.power(); err != nil {
		return err
	}
	_, err = b.on(ctx, "is trusted as it was", 4*time.Minute, func(d device) bool { return d.Trust == "attested" })
	return err
}

// spike puts a file of nobody's into the initrd of an image, and returns the
// digests of what a boot of it measures and one of the good image does not.
func (l *lab) spike(good, bad string) (digests []string, err error) {
	b, err := os.ReadFile(good)
	if err != nil {
		return nil, err
	}
	i, err := uki.Parse(b)
	if err != nil {
		return nil, err
	}
	stub, err := os.ReadFile(l.kit.Stub())
	if err != nil {
		return nil, err
	}
	initrd := slices.Clone(i.Section(".initrd"))
	initrd = append(initrd, make([]byte, -len(initrd)&3)...)
	initrd = append(initrd, cpio("spike", "of nobody's")...)
	changed, err := uki.Build(stub, uki.Parts{
		Kernel: i.Section(".linux"), Initrd: initrd, Cmdline: i.Cmdline(), OSRelease: i.Section(".osrel"), Uname: string(i.Section(".uname")),
	})
	if err != nil {
		return nil, err
	}
	j, err := uki.Parse(changed)
	if err != nil {
		return nil, err
	}
	was := map[string]bool{}
	for _, m := range i.Measurements() {
		for _, d := range m.Digests {
			was[hex.EncodeToString(d[:])] = true
		}
	}
	for _, m := range j.Measurements() {
		for _, d := range m.Digests {
			if s := hex.EncodeToString(d[:]); !was[s] {
				digests = append(digests, s)
			}
		}
	}
	return digests, os.WriteFile(bad, changed, 0o600)
}

// cpio is an archive of one file [Linux, driver-api/early-userspace/buffer-format].
func cpio(name, content string) []byte {
	var b []byte
	add := func(name, content string, mode int) {
		b = fmt.Appendf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		b = append(b, make([]byte, -len(b)&3)...)
		b = append(b, content...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	add(name, content, 0o100644)
	add("TRAILER!!!", "", 0)
	return b
}

// slot is the letter of the slot that runs.
func (b *till) slot(ctx context.Context) (string, error) {
	_, name, err := b.runs(ctx)
	switch {
	case err != nil:
		return "", err
	case strings.HasSuffix(name, ".0"):
		return "a", nil
	case strings.HasSuffix(name, ".1"):
		return "b", nil
	}
	return "", fmt.Errorf("slot %q is neither .0 nor .1", name)
}

// flipped changes one byte of the root that runs. The till does not start it: it
// starts the other one, which is the release before, and the service says so.
func flipped(ctx context.Context, b *till, note func(string, any)) error {
	slot, err := b.slot(ctx)
	if err != nil {
		return err
	}
	if err := b.machine.Kill(); err != nil {
		return err
	}
	seen := b.events()
	p, err := partition(ctx, b.disk(), "rootfs-"+slot)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(b.disk(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var one [1]byte
	_, err = f.ReadAt(one[:], p.start+40)
	if err == nil {
		one[0] ^= 1
		_, err = f.WriteAt(one[:], p.start+40)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := b.power(); err != nil {
		return err
	}
	old := system + "/" + b.flash
	d, err := b.on(ctx, "runs what it ran before", 5*time.Minute, func(d device) bool {
		return d.Trust == "quarantined" && len(d.Findings) > 0 && d.Findings[0].Release == old
	})
	if err != nil {
		return err
	}
	note("finding", d.Findings[0].Check+" "+d.Findings[0].Release)
	note("events", strings.Join(b.events()[len(seen):], " "))
	return nil
}

var dataIs = regexp.MustCompile(`the data partition is (\w+)`)

// stolen puts a copy of a till's disk into a box with another TPM.
func stolen(ctx context.Context, b *till, note func(string, any)) error {
	if err := b.machine.Kill(); err != nil {
		return err
	}
	const name = "thief"
	chip, err := b.fleet.Chip(ctx, name)
	if err != nil {
		return err
	}
	chip.Stop()
	thief, err := b.bare(ctx, name, b.flash, b.disk())
	if err != nil {
		return err
	}
	defer func() { _ = thief.machine.Kill() }()
	before, err := luks(ctx, thief.disk())
	if err != nil {
		return err
	}
	if err := thief.power(); err != nil {
		return err
	}
	var found []string
	err = b.fleet.Until(ctx, "the till says what became of its data", func(context.Context) (bool, error) {
		found = dataIs.FindStringSubmatch(thief.serial.from(0))
		return found != nil, nil
	})
	if err != nil {
		return fmt.Errorf("%w; it said %s", err, printable(tail(thief.serial.from(0), 2000)))
	}
	note("data", found[1])
	note("thief CPU s", seconds(thief.machine.CPU()))
	after, err := luks(ctx, thief.disk())
	if err := errors.Join(err, thief.machine.Kill()); err != nil {
		return err
	}
	if found[1] != "lost" && found[1] != "closed" || before != after {
		return fmt.Errorf("its data is %q, its header %s, which was %s", found[1], after, before)
	}
	if strings.Contains(thief.serial.from(0), "encrypting it") {
		return errors.New("the data of a stolen disk was made anew")
	}
	return b.power()
}

// luks is the digest of the header of the data partition, which must be LUKS2.
func luks(ctx context.Context, disk string) (string, error) {
	r, f, err := read(ctx, disk, "data")
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 32<<10) // both copies, without the keyslots
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	if string(b[:6]) != "LUKS\xba\xbe" || b[7] != 2 {
		return "", fmt.Errorf("the data partition begins with %x, which is not LUKS2", b[:8])
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}

// sums are those of two files.
func sums(files [2]string) (a, b string, err error) {
	a, _, err1 := firmware.Digest(files[0])
	b, _, err2 := firmware.Digest(files[1])
	return a, b, errors.Join(err1, err2)
}

// valuesOf are what two references say, without the approvals: a signature is
// another one each time.
func valuesOf(files [2]string) (a, b string, err error) {
	var out [2]string
	for i, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			return "", "", err
		}
		r, err := boot.ParseReference(raw)
		if err != nil {
			return "", "", err
		}
		for j := range r.Approvals {
			r.Approvals[j].Signature = nil
		}
		out[i] = string(r.Bytes())
	}
	return out[0], out[1], nil
}

// happened counts events of a kind in the trail of a till.
func (b *till) happened(ctx context.Context, kind string) (n int, err error) {
	trail, err := b.fleet.trail(ctx, b.id)
	for _, e := range trail {
		if e.Kind == kind {
			n++
		}
	}
	return n, err
}
