package brcheck

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// parts are the partitions of every box, in their order. The firmware names the
// slot it started by the last letter of an identifier.
var parts = []struct {
	name, kind, ends string
	mib              int64 // at least
}{
	{"esp-a", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "A", 48},
	{"esp-b", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "B", 48},
	{"rootfs-a", "", "A", 80},
	{"rootfs-b", "", "B", 80},
	{"state", "", "", 128},
	{"data", "", "", 128},
}

// disk is what sfdisk says of one.
type disk struct {
	Label      string `json:"label"`
	Sector     int64  `json:"sectorsize"`
	Partitions []struct {
		Start, Size      int64
		Type, UUID, Name string
	} `json:"partitions"`
}

// checkPack has pack.sh make disk and bundle of a root and a kernel that are
// none, and looks at both with the tools of others.
func checkPack(ctx context.Context, x *external) (string, []string, error) {
	out, err := os.MkdirTemp("", "brcheck-*")
	if err != nil {
		return "", nil, err
	}
	defer os.RemoveAll(out)
	if err := dummies(out); err != nil {
		return "", nil, err
	}
	c := exec.CommandContext(ctx, filepath.Join(x.dir, "board/tillward/pack.sh"))
	c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "OUT="+out, "VERSION=1.2.3", "COMPATIBLE=brcheck",
		"RAUC_CERT="+filepath.Join(out, "cert.pem"), "RAUC_KEY="+filepath.Join(out, "key.pem"))
	if said, err := c.CombinedOutput(); err != nil {
		return "", []string{fmt.Sprintf("pack.sh: %v: %s", err, last(string(said)))}, ctx.Err()
	}
	table, err := output(ctx, "sfdisk", "--json", filepath.Join(out, "disk.img"))
	if err != nil {
		return "", nil, err
	}
	var d struct {
		Table disk `json:"partitiontable"`
	}
	if err := json.Unmarshal(table, &d); err != nil {
		return "", nil, err
	}
	system, err := x.read("board/tillward/overlay/etc/rauc/system.conf")
	if err != nil {
		return "", nil, err
	}
	wrong := append(d.Table.wrong(), slotsWithout(system)...)
	bad, err := bundleWrong(ctx, out)
	return fmt.Sprintf("%d partitions, a signed bundle", len(d.Table.Partitions)), append(wrong, bad...), err
}

func (d disk) wrong() (wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if d.Label != "gpt" || len(d.Partitions) != len(parts) {
		bad("disk: %s with %d partitions, want gpt with %d", d.Label, len(d.Partitions), len(parts))
		return wrong
	}
	end := int64(0)
	seen := map[string]bool{}
	for i, p := range d.Partitions {
		want := parts[i]
		switch {
		case p.Name != want.name:
			bad("disk: partition %d is %q, want %q", i+1, p.Name, want.name)
		case want.kind != "" && !strings.EqualFold(p.Type, want.kind):
			bad("disk: %s is of type %s", p.Name, p.Type)
		case !strings.HasSuffix(strings.ToUpper(p.UUID), want.ends) || seen[p.UUID]:
			bad("disk: %s is called %s, want an identifier of its own that ends in %q", p.Name, p.UUID, want.ends)
		case p.Size*d.Sector < want.mib<<20:
			bad("disk: %s has %d MiB, want %d", p.Name, p.Size*d.Sector>>20, want.mib)
		case p.Start < end || p.Start*d.Sector%(1<<20) != 0:
			bad("disk: %s starts at sector %d, want a whole MiB from %d on", p.Name, p.Start, end)
		}
		end, seen[p.UUID] = p.Start+p.Size, true
	}
	return wrong
}

// slotsWithout lists what RAUC's slots would be written to and is no partition,
// and settings without which an update could be forged or start unasked.
func slotsWithout(system string) (wrong []string) {
	for _, m := range regexp.MustCompile(`(?m)^device=(.*)$`).FindAllStringSubmatch(system, -1) {
		name, ok := strings.CutPrefix(m[1], "/dev/disk/by-partlabel/")
		known := false
		for _, p := range parts[:4] {
			known = known || p.name == name
		}
		if !ok || !known {
			wrong = append(wrong, "system.conf: no partition "+m[1])
		}
	}
	for _, line := range []string{"bundle-formats=-plain", "activate-installed=false", "path=/etc/rauc/keyring.pem", "compatible=@COMPATIBLE@", "bootname=A", "bootname=B"} {
		if !strings.Contains(system, "\n"+line+"\n") {
			wrong = append(wrong, "system.conf: does not say "+line)
		}
	}
	return wrong
}

// bundleWrong asks the real RAUC: the bundle is good by its own authority, not
// by another, and is of the kind whose every block is checked as it is read.
func bundleWrong(ctx context.Context, out string) ([]string, error) {
	info := func(ca string) ([]byte, error) {
		return output(ctx, "rauc", "--keyring="+filepath.Join(out, ca), "info", "--output-format=json", filepath.Join(out, "update.raucb"))
	}
	var wrong []string
	raw, err := info("ca.pem")
	if err != nil {
		return []string{fmt.Sprintf("bundle: %v", err)}, ctx.Err()
	}
	if _, err := info("other.pem"); err == nil {
		wrong = append(wrong, "bundle: good by an authority that did not sign it")
	}
	// The manifest is in the signature: RAUC 1.8 tells its format only by name in the output for people.
	people, err := output(ctx, "rauc", "--keyring="+filepath.Join(out, "ca.pem"), "info", filepath.Join(out, "update.raucb"))
	if err != nil {
		return nil, err
	}
	for _, want := range []string{`"compatible":"brcheck"`, `"version":"1.2.3"`, `"rootfs"`, `"efi"`} {
		if !strings.Contains(strings.ReplaceAll(string(raw), " ", ""), want) {
			wrong = append(wrong, fmt.Sprintf("bundle: RAUC does not say %s: %s", want, raw))
		}
	}
	if !regexp.MustCompile(`Bundle Format:\s+verity`).Match(people) {
		wrong = append(wrong, "bundle: its format is not verity: "+last(string(people)))
	}
	return wrong, nil
}

func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	raw, err := c.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s: %w: %s", name, err, last(string(exit.Stderr)))
	}
	return raw, err
}

// dummies puts into dir what pack.sh starts from, and keys of a minute.
func dummies(dir string) error {
	root := make([]byte, 1<<20)
	for i := range root {
		root[i] = byte(i * i >> 8)
	}
	program := make([]byte, 4096) // as much of a PE file as says for which machine it is
	copy(program, "MZ")
	binary.LittleEndian.PutUint32(program[60:], 64)
	copy(program[64:], "PE\x00\x00\x64\x86")
	for name, raw := range map[string][]byte{"rootfs.img": root, "uki.efi": program} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			return err
		}
	}
	for _, name := range []string{"other", "ca"} {
		ca, key, err := certificate(dir, name, nil, nil)
		if err != nil {
			return err
		}
		if name == "ca" {
			if _, _, err := certificate(dir, "cert", ca, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// certificate writes dir/name.pem, and dir/key.pem for one that signs bundles.
func certificate(dir, name string, by *x509.Certificate, byKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "brcheck " + name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	if by == nil {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		by, byKey = c, key
	} else {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
		raw, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
			return nil, nil, err
		}
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, byKey)
	if err != nil {
		return nil, nil, err
	}
	return c, key, os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600)
}
