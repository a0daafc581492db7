package slottest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// keys are those of somebody who signs bundles; all parts are PEM.
type keys struct{ ca, cert, key []byte }

// newKeys makes an authority and a key for signing code below it.
func newKeys(t testing.TB) *keys {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Bundle CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Bundles"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	encode := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return &keys{encode("CERTIFICATE", caDER), encode("CERTIFICATE", leafDER), encode("PRIVATE KEY", keyDER)}
}

// Spec says what a bundle is to be; the zero value of each field but Version
// makes one that fits the box.
type Spec struct {
	Version    string
	Compatible string
	Format     string // plain or verity; plain, because not every kernel has dm-verity
	Content    []byte // of rootfs
	Foreign    bool   // signed by another authority, of the same name
	Hook       string // shell lines that run after the slot was written
}

// Bundle is a bundle that was made.
type Bundle struct {
	Path         string
	SHA256       string // hex
	ManifestHash string // hex
	Content      []byte
}

// Bundle makes a bundle.
func (b *Box) Bundle(s Spec) Bundle {
	b.t.Helper()
	if s.Compatible == "" {
		s.Compatible = Compatible
	}
	if s.Format == "" {
		s.Format = "plain"
	}
	by := b.keys
	if s.Foreign {
		by = newKeys(b.t)
	}
	if s.Content == nil {
		s.Content = make([]byte, 512<<10)
		_, _ = rand.Read(s.Content)
	}
	dir := b.t.TempDir()
	file := func(name string, content []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		b.must(os.WriteFile(path, content, mode))
		return path
	}
	cert, key := file("cert.pem", by.cert, 0o600), file("key.pem", by.key, 0o600)
	in := filepath.Join(dir, "in")
	b.must(os.Mkdir(in, 0o700))
	manifest := fmt.Sprintf("[update]\ncompatible=%s\nversion=%s\n\n[bundle]\nformat=%s\n\n[image.rootfs]\nfilename=rootfs.img\n", s.Compatible, s.Version, s.Format)
	if s.Hook != "" {
		manifest += "hooks=post-install\n\n[hooks]\nfilename=hook\n"
		file("in/hook", []byte("#!/bin/sh\n"+s.Hook+"\n"), 0o700)
	}
	file("in/rootfs.img", s.Content, 0o600)
	file("in/manifest.raucm", []byte(manifest), 0o600)
	made := Bundle{Path: filepath.Join(dir, "bundle.raucb"), Content: s.Content}
	b.output(raucCommand(), "--cert="+cert, "--key="+key, "bundle", in, made.Path)
	whole, err := os.ReadFile(made.Path)
	b.must(err)
	made.SHA256, made.ManifestHash = sum(whole), sum(b.manifest(made.Path, whole, s.Format))
	return made
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// manifest returns what RAUC takes for the manifest of a bundle: a file in it
// or, of the other formats, what was signed [RAUC, "Bundle Formats"].
func (b *Box) manifest(path string, whole []byte, format string) []byte {
	b.t.Helper()
	if format == "plain" {
		return []byte(b.output("unsquashfs", "-quiet", "-cat", path, "manifest.raucm"))
	}
	end := len(whole) - 8
	size := binary.BigEndian.Uint64(whole[end:])
	cms := filepath.Join(b.t.TempDir(), "cms")
	b.must(os.WriteFile(cms, whole[end-int(size):end], 0o600))
	return []byte(b.output("openssl", "cms", "-verify", "-noverify", "-inform", "DER", "-in", cms))
}
