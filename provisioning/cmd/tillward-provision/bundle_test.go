package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/trust"
)

// newBundle FILE COMPATIBLE VERSION FORMAT has rauc make a bundle.
func newBundle(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs("bundle-" + args[2])
	ts.Check(os.MkdirAll(filepath.Join(dir, "in"), 0o700))
	ts.Check(os.WriteFile(filepath.Join(dir, "in", "rootfs.img"), noise(args[2], 200_000), 0o600))
	manifest := "[update]\ncompatible=" + args[1] + "\nversion=" + args[2] + "\n\n[bundle]\nformat=" + args[3] + "\n\n[image.rootfs]\nfilename=rootfs.img\n"
	ts.Check(os.WriteFile(filepath.Join(dir, "in", "manifest.raucm"), []byte(manifest), 0o600))
	key, cert := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	for _, call := range [][]string{
		{"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=images", "-days", "30"},
		{"rauc", "bundle", "--cert", cert, "--key", key, filepath.Join(dir, "in"), ts.MkAbs(args[0])},
	} {
		bin, err := exec.LookPath(call[0])
		if err != nil {
			ts.Fatalf("apt-get install openssl rauc squashfs-tools: %v", err)
		}
		ts.Check(ts.Exec(bin, call[1:]...))
	}
}

// raucBundle FILE KEYS VERSION has rauc make a bundle with keys of bundle keys.
func raucBundle(ts *testscript.TestScript, neg bool, args []string) {
	dir, keys := ts.MkAbs("in-"+args[2]), ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(os.WriteFile(filepath.Join(dir, "rootfs.img"), noise(args[2], 200_000), 0o600))
	manifest := "[update]\ncompatible=pos500\nversion=" + args[2] + "\n\n[bundle]\nformat=verity\n\n[image.rootfs]\nfilename=rootfs.img\n"
	ts.Check(os.WriteFile(filepath.Join(dir, "manifest.raucm"), []byte(manifest), 0o600))
	call(ts, neg, "rauc", "--keyring", keys+"/keyring.pem", "bundle", "--cert", keys+"/signing.pem", "--key", keys+"/signing.key", dir, ts.MkAbs(args[0]))
}

// raucInfo FILE CONF has rauc check a bundle as a box with that configuration
// does.
func raucInfo(ts *testscript.TestScript, neg bool, args []string) {
	call(ts, neg, "rauc", "--conf", ts.MkAbs(args[1]), "info", ts.MkAbs(args[0]))
}

func call(ts *testscript.TestScript, neg bool, name string, args ...string) {
	bin, err := exec.LookPath(name)
	if err != nil {
		ts.Fatalf("apt-get install openssl rauc squashfs-tools: %v", err)
	}
	if err := ts.Exec(bin, args...); (err != nil) != neg {
		ts.Fatalf("%s %q: %v", name, args, err)
	}
}

// noise is content that does not compress: rauc wants a bundle of some size.
func noise(seed string, n int) []byte {
	b := make([]byte, n)
	sum := sha256.Sum256([]byte(seed))
	_, _ = rand.NewChaCha8(sum).Read(b)
	return b
}

// sealed is a bundle of content and a CMS signature around manifest.
func sealed(t testing.TB, manifest string) []byte {
	t.Helper()
	type content struct {
		Type    asn1.ObjectIdentifier
		Content []byte `asn1:"explicit,optional,omitempty,tag:0"`
	}
	type data struct {
		Version int
		Digests []asn1.ObjectIdentifier `asn1:"set"`
		Content content
	}
	type info struct {
		Type    asn1.ObjectIdentifier
		Content data `asn1:"explicit,tag:0"`
	}
	cms, err := asn1.Marshal(info{oidSignedData, data{Version: 1, Content: content{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}, []byte(manifest)}}})
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.AppendUint64(append([]byte("hsqs, some blocks"), cms...), uint64(len(cms)))
}

func TestParseBundle(t *testing.T) {
	const good = "[update]\ncompatible=pos500\nversion=1.2.3\nmin-rauc-version=1.14\n# a note\n\n[bundle]\nformat=verity\nverity-size=4096\n"
	for name, tt := range map[string]struct {
		bundle []byte
		want   trust.RAUC
		err    string
	}{
		"verity": {sealed(t, good), trust.RAUC{
			Compatible: "pos500", Version: "1.2.3", Format: "verity", MinRAUC: "1.14",
			ManifestHash: "266fe68c5f2ad9a8c9b30a10d9293d6cddc398d4a69fdc60c1361f6505496812", // sha256sum of the manifest
		}, ""},
		"plain":      {sealed(t, ""), trust.RAUC{}, "format plain"},
		"no version": {sealed(t, "[update]\ncompatible=pos500\n[bundle]\nformat=verity\n"), trust.RAUC{}, "no compatible or no version"},
		"odd format": {sealed(t, strings.ReplaceAll(good, "verity\n", "tar\n")), trust.RAUC{}, `format "tar"`},
		"empty":      {nil, trust.RAUC{}, "not a RAUC bundle"},
		"no end":     {make([]byte, 64), trust.RAUC{}, "does not end in a signature"},
		"huge end":   {bytes.Repeat([]byte{0xff}, 64), trust.RAUC{}, "does not end in a signature"},
		"no CMS":     {binary.BigEndian.AppendUint64(make([]byte, 64), 32), trust.RAUC{}, "is no CMS"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseBundle(bytes.NewReader(tt.bundle), int64(len(tt.bundle)))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %+v and %v, want an error with %q", got, err, tt.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v and %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add(sealed(f, "[update]\ncompatible=a\nversion=1.2.3\n[bundle]\nformat=verity\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseBundle(bytes.NewReader(b), int64(len(b))); err == nil && (m.Compatible == "" || m.Version == "" || len(m.ManifestHash) != 64) {
			t.Errorf("got %+v without an error", m)
		}
	})
}

func FuzzParseSignatures(f *testing.F) {
	f.Add([]byte(`{"signatures":[{"role":"root","version":1,"keyid":"00","sig":"00"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := parseSignatures(b); err == nil && len(list) == 0 {
			t.Error("no signature and no error")
		}
	})
}
