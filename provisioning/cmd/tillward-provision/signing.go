package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

type bundleCmd struct {
	Keys bundleKeys `cmd:"" help:"Make the authority that boxes trust for image bundles, and the certificate that bundles are signed with."`
}

type bundleKeys struct {
	Dir  string `arg:"" help:"Where they are kept. What is there already stays: without signing.pem and signing.key, the authority makes the next ones."`
	Name string `default:"Tillward" help:"Whose bundles they are, as it stands in the certificates."`
}

// Files of bundle keys. keyring.pem goes into the image; signing.pem and
// signing.key are for rauc bundle; ca.key is needed once in two years.
const (
	fileKeyring = "keyring.pem"
	fileCAKey   = "ca.key"
	fileSigning = "signing.pem"
	fileSignKey = "signing.key"

	authorityYears = 10
	signingYears   = 2
	early          = 24 * time.Hour // of validity before now: boxes without a clock start at the time of their image
)

// Run implements the command.
func (c *bundleKeys) Run(o *out) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return usage{err}
	}
	now := time.Now().UTC().Truncate(time.Second)
	ca, caKey, err := c.authority(now)
	if err != nil {
		return err
	}
	if now.AddDate(signingYears, 0, 0).After(ca.NotAfter) {
		return fmt.Errorf("%s ends on %s, before a signing certificate of it would: make another authority in another folder, and put both into the keyring of the next images",
			c.path(fileKeyring), ca.NotAfter.Format(time.DateOnly))
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{c.Name}, CommonName: c.Name + " bundles " + now.Format(time.DateOnly)},
		// RAUC's default, check-purpose=smimesign, wants the one use, codesign the
		// other [RAUC reference, [keyring] section].
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection},
		NotBefore: now.Add(-early), NotAfter: now.AddDate(signingYears, 0, 0), BasicConstraintsValid: true,
	}
	if err := c.issue(tmpl, ca, caKey, fileSigning, fileSignKey); err != nil {
		return err
	}
	return o.print(map[string]string{
		"keyring": c.path(fileKeyring), "authority_until": ca.NotAfter.Format(time.RFC3339), "certificate": c.path(fileSigning), "until": tmpl.NotAfter.Format(time.RFC3339),
	}, "%s  for the images of boxes, until %s\n%s  for rauc bundle with %s, until %s",
		c.path(fileKeyring), ca.NotAfter.Format(time.DateOnly), c.path(fileSigning), c.path(fileSignKey), tmpl.NotAfter.Format(time.DateOnly))
}

func (c *bundleKeys) path(name string) string { return filepath.Join(c.Dir, name) }

// authority returns the authority in the folder, or a new one.
func (c *bundleKeys) authority(now time.Time) (*x509.Certificate, crypto.Signer, error) {
	b, err := readFile(c.path(fileKeyring), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		tmpl := &x509.Certificate{
			Subject:  pkix.Name{Organization: []string{c.Name}, CommonName: c.Name + " bundle authority " + now.Format(time.DateOnly)},
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, MaxPathLenZero: true, BasicConstraintsValid: true,
			NotBefore: now.Add(-early), NotAfter: now.AddDate(authorityYears, 0, 0),
		}
		if err := c.issue(tmpl, nil, nil, fileKeyring, fileCAKey); err != nil {
			return nil, nil, err
		}
		b, err = readFile(c.path(fileKeyring), 64<<10)
	}
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, nil, fmt.Errorf("%s: not a certificate", c.path(fileKeyring))
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.path(fileKeyring), err)
	}
	key, err := readSealing(c.path(fileCAKey)) // P-256 as well
	if err != nil {
		return nil, nil, err
	}
	if !key.PublicKey.Equal(ca.PublicKey) {
		return nil, nil, fmt.Errorf("%s is not the key of %s", c.path(fileCAKey), c.path(fileKeyring))
	}
	return ca, key, nil
}

// issue makes a key and its certificate; without parent it signs itself.
// Existing files are never replaced: who has them can still sign.
func (c *bundleKeys) issue(tmpl, parent *x509.Certificate, parentKey crypto.Signer, certificate, private string) error {
	if _, err := os.Lstat(c.path(certificate)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already: move it and %s away to make the next ones", c.path(certificate), c.path(private))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		return fmt.Errorf("sign %s: %w", certificate, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	f, err := os.OpenFile(c.path(private), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = replace(c.path(certificate), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	}
	if err != nil { // half a pair is of no use
		return errors.Join(fmt.Errorf("write key: %w", err), os.Remove(c.path(private)))
	}
	return nil
}
