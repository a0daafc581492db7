package ca_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/ca"
)

var secret = ca.Options{Passphrase: []byte("correct horse battery staple")}

func TestKeysAreEncrypted(t *testing.T) {
	dir := t.TempDir()
	a, err := ca.Open(dir, "tenant", secret)
	if err != nil {
		t.Fatal(err)
	}
	before := issued(t, a)
	rotate(t, a)
	if _, err := a.Request(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"tenant.key", "tenant.2.key", "tenant.3.key"} {
		if block, _ := pem.Decode(get(t, filepath.Join(dir, n))); block == nil || block.Type != "ENCRYPTED PRIVATE KEY" {
			t.Errorf("%s is not encrypted", n)
		}
	}
	for name, o := range map[string]ca.Options{"no passphrase": {}, "another": {Passphrase: []byte("Correct horse")}} {
		if _, err := ca.Open(dir, "tenant", o); err == nil || !strings.Contains(err.Error(), "passphrase") {
			t.Errorf("%s: got %v, want a word on the passphrase", name, err)
		}
	}
	a, err = ca.Open(dir, "tenant", secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := counts(a, before); err != nil {
		t.Error(err)
	}
}

// Plain keys, also those of an older version, are encrypted when a passphrase
// is first given, and nothing else changes.
func TestPlainKeysAreEncryptedWhenRead(t *testing.T) {
	fresh := t.TempDir()
	open(t, fresh)
	for name, dir := range map[string]string{"old authority": oldAuthority(t), "authority": fresh} {
		plain := open(t, dir)
		before := issued(t, plain)
		a, err := ca.Open(dir, "tenant", secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := counts(a, before); err != nil || !a.Root().Equal(plain.Root()) || a.Issuing()[0] != plain.Issuing()[0] {
			t.Errorf("%s: it is another authority (%v)", name, err)
		}
		keys, err := filepath.Glob(filepath.Join(dir, "*.key"))
		if err != nil || len(keys) == 0 {
			t.Fatalf("keys %v (%v)", keys, err)
		}
		for _, k := range keys {
			if b := get(t, k); !bytes.Contains(b, []byte("BEGIN ENCRYPTED PRIVATE KEY")) || bytes.Contains(b, []byte("BEGIN PRIVATE KEY")) {
				t.Errorf("%s: %s is not encrypted", name, k)
			}
			if fi, err := os.Stat(k); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: %s has mode %v (%v)", name, k, fi.Mode(), err)
			}
		}
	}
}

func TestOpenSSLReadsOurKeysAndWeIts(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("apt-get install openssl: %v", err)
	}
	dir := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), openssl, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("openssl %s: %v\n%s", args[0], err, out)
		}
		return out
	}
	pass := filepath.Join(dir, "pass")
	put(t, pass, secret.Passphrase)
	a, err := ca.Open(dir, "tenant", secret)
	if err != nil {
		t.Fatal(err)
	}
	got := run("pkey", "-in", filepath.Join(dir, "tenant.key"), "-passin", "file:"+pass, "-pubout")
	want := run("x509", "-in", filepath.Join(dir, "tenant.pem"), "-pubkey", "-noout")
	if !bytes.Equal(got, want) {
		t.Errorf("openssl reads\n%swant\n%s", got, want)
	}
	run("verify", "-CAfile", filepath.Join(dir, "tenant.pem"), filepath.Join(dir, "tenant.1.pem"))

	plain := filepath.Join(dir, "plain")
	put(t, plain, keyPEM(t, key(t, elliptic.P256())))
	run("pkcs8", "-in", filepath.Join(dir, "tenant.1.key"), "-passin", "file:"+pass, "-out", plain)
	block, _ := pem.Decode(get(t, plain))
	undo := ca.FullCost()
	full, err := ca.Encrypt(block.Bytes, secret.Passphrase)
	undo()
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "full"), full)
	run("pkey", "-inform", "DER", "-in", filepath.Join(dir, "full"), "-passin", "file:"+pass, "-noout")
	for name, how := range map[string][]string{"PBKDF2": {"-v2", "aes-256-cbc", "-iter", "10000"}, "scrypt": {"-scrypt"}} {
		run(append([]string{"pkcs8", "-topk8", "-in", plain, "-passout", "file:" + pass, "-out", filepath.Join(dir, "tenant.1.key")}, how...)...)
		b, err := ca.Open(dir, "tenant", secret)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := counts(a, issued(t, b)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	run("pkcs8", "-topk8", "-in", plain, "-passout", "file:"+pass, "-out", filepath.Join(dir, "tenant.1.key"), "-v1", "PBE-SHA1-3DES")
	if _, err := ca.Open(dir, "tenant", secret); err == nil || !strings.Contains(err.Error(), "PBES2") {
		t.Errorf("an old format: got %v, want a word on PBES2", err)
	}
}

func TestDamagedKeyFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := ca.Open(dir, "tenant", secret); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tenant.1.key")
	block, _ := pem.Decode(get(t, path))
	for _, cut := range []int{1, 8, 17, len(block.Bytes) / 2} {
		b := block.Bytes[:len(block.Bytes)-cut]
		put(t, path, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: b}))
		if _, err := ca.Open(dir, "tenant", secret); err == nil {
			t.Errorf("without its last %d bytes: it opens", cut)
		}
	}
	put(t, path, []byte("nothing in PEM"))
	if _, err := ca.Open(dir, "tenant", secret); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("no PEM: got %v, want what to do", err)
	}
}

func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pass")
	put(t, path, []byte("a b \r\n"))
	if b, err := ca.Passphrase(path); err != nil || string(b) != "a b " {
		t.Errorf("got %q and %v", b, err)
	}
	if err := os.Chmod(path, 0o604); err != nil { // #nosec G302 -- the point of it
		t.Fatal(err)
	}
	if _, err := ca.Passphrase(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by everybody: got %v, want what to do", err)
	}
	for name, b := range map[string]string{"empty": "\n", "too long": strings.Repeat("x", 1025)} {
		p := filepath.Join(dir, "p")
		put(t, p, []byte(b))
		if _, err := ca.Passphrase(p); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	if _, err := ca.Passphrase(filepath.Join(dir, "none")); err == nil {
		t.Error("no file: it is taken")
	}
	put(t, filepath.Join(dir, "tenant-ca"), []byte("from systemd"))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if b, err := ca.Passphrase("tenant-ca"); err != nil || string(b) != "from systemd" {
		t.Errorf("credential: got %q and %v", b, err)
	}
}

// Key files come from backups and other tools.
func FuzzDecrypt(f *testing.F) {
	for _, p := range []string{"", "x"} {
		der, err := ca.Encrypt([]byte("0123456789abcdef"), []byte(p))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
		f.Add(der[:len(der)-3])
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > 1<<12 {
			return
		}
		_, _ = ca.Decrypt(der, []byte("x"))
	})
}

// Signers of releases keep their keys in the same form.
func TestEncryptKey(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ca.EncryptKey(der, []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if got, err := ca.DecryptKey(block, []byte("open sesame")); err != nil || !bytes.Equal(got, der) {
		t.Errorf("got %x and %v", got, err)
	}
	if got, err := ca.DecryptKey(block, []byte("another")); err == nil && bytes.Equal(got, der) {
		t.Error("another passphrase opened it")
	}
	if _, err := ca.DecryptKey(&pem.Block{Type: "PRIVATE KEY", Bytes: der}, []byte("open sesame")); err == nil {
		t.Error("a plain key was decrypted")
	}
	if _, err := ca.EncryptKey(der, nil); err == nil {
		t.Error("encrypted with nothing")
	}
}
