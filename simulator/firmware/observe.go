package firmware

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tillward/tillward/provisioning/uki"
	"github.com/tillward/tillward/simulator/guest"
)

// Observation is a boot of this model that was watched: the base from which the
// reference values of its images are worked out.
type Observation struct {
	UKI  string         // file of the unified kernel image that was started
	Log  []byte         // its event log, as the kernel gives it
	PCRs map[int][]byte // of the SHA-256 bank, at the end of it
}

//go:embed observe.sh
var observer []byte

// Observe boots an image of the observer, which tells the event log and nothing
// else, on a machine with the parts of o, but for disk, serial line and TPM: that
// one is new. What it leaves is in dir.
func (k *Kit) Observe(ctx context.Context, dir string, o MachineOptions) (*Observation, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- nothing secret in it
		return nil, err
	}
	seen := &Observation{UKI: filepath.Join(dir, "observer.efi"), PCRs: map[int][]byte{}}
	image, err := k.observer()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(seen.UKI, image, 0o644); err != nil { // #nosec G306 -- nothing secret in it
		return nil, err
	}
	o.Disk, o.TPM = filepath.Join(dir, "observer.img"), ""
	if err := espDisk(ctx, o.Disk, seen.UKI); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	o.Serial = &said
	for _, old := range []string{"vars.fd", "tpm"} {
		if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
			return nil, err
		}
	}
	m := k.Machine(dir, o)
	if err := m.Start(ctx); err != nil {
		return nil, err
	}
	if err := m.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("the observer did not end: %w; it said:\n%s", err, said.Bytes()[max(0, said.Len()-1000):])
	}
	return seen, seen.read(said.String())
}

// read takes the observation from what the observer said.
func (o *Observation) read(said string) error {
	_, log, ok1 := strings.Cut(said, "OBSERVE LOG")
	log, pcrs, ok2 := strings.Cut(log, "OBSERVE PCRS")
	pcrs, _, ok3 := strings.Cut(pcrs, "OBSERVE END")
	if !ok1 || !ok2 || !ok3 {
		return fmt.Errorf("the observer did not tell all; it said:\n%s", said[max(0, len(said)-1000):])
	}
	var err error
	if o.Log, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(log), "")); err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	f := strings.Fields(pcrs)
	if len(f)%2 != 0 || len(o.Log) == 0 {
		return fmt.Errorf("this boot was not measured: %d bytes of log, PCRs %q", len(o.Log), f)
	}
	for i := 0; i < len(f); i += 2 {
		n, err := strconv.Atoi(f[i])
		if err != nil {
			return err
		}
		if o.PCRs[n], err = hex.DecodeString(f[i+1]); err != nil {
			return fmt.Errorf("PCR %d: %w", n, err)
		}
	}
	return nil
}

// observer is the observer's unified kernel image.
func (k *Kit) observer() ([]byte, error) {
	var initrd bytes.Buffer
	a := guest.NewInitrd(&initrd)
	for _, dir := range []string{"bin", "dev", "proc", "sys"} {
		a.Add(dir, 0o040755, nil)
	}
	a.Add("init", 0o100755, observer)
	a.Copy("bin/busybox", k.file("root/usr/bin/busybox"))
	if err := a.Close(); err != nil {
		return nil, err
	}
	stub, err := os.ReadFile(k.Stub())
	if err != nil {
		return nil, err
	}
	kernel, err := os.ReadFile(k.kernel())
	if err != nil {
		return nil, err
	}
	return uki.Build(stub, uki.Parts{
		Kernel: kernel, Initrd: initrd.Bytes(), OSRelease: []byte("ID=tillward\nNAME=Observer\nVERSION_ID=0\n"),
		Cmdline: "console=ttyS0 quiet loglevel=4 panic=10",
	})
}

// espDisk makes a disk that is one EFI partition with one program, which any
// UEFI starts.
func espDisk(ctx context.Context, disk, program string) error {
	if err := os.RemoveAll(disk); err != nil {
		return err
	}
	f, err := os.Create(disk) // #nosec G304 -- of our own folder
	if err != nil {
		return err
	}
	if err := f.Truncate(48 << 20); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"mkfs.vfat", "-F", "32", "-s", "1", disk},
		{"mmd", "-i", disk, "::EFI", "::EFI/BOOT"},
		{"mcopy", "-i", disk, program, "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if _, err := guest.Command(ctx, "", c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}
