package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/pkcs11"
)

type caCmd struct {
	Root    caRoot    `cmd:"" help:"Make a root, on the machine that keeps its key."`
	Request caRequest `cmd:"" help:"Make the next issuing key in the service's folder, and the request for its certificate."`
	Sign    caSign    `cmd:"" help:"Sign a request, on the machine that keeps the root's key."`
	Install caInstall `cmd:"" help:"Put the signed certificate into the service's folder. A service that runs takes it with: tillward ca rotate."`
	Retire  caRetire  `cmd:"" help:"Make an issuing certificate count no more, from the service's next start."`
	Show    caShow    `cmd:"" help:"Tell what certificates and requests say."`
}

// caFolder is where an authority lies and what opens its keys.
type caFolder struct {
	Dir            string `default:"." help:"Folder of the authority." placeholder:"DIR"`
	Name           string `required:"" help:"Name of the authority: tenant-ca or service-ca."`
	PassphraseFile string `help:"File with the passphrase that encrypts key files." placeholder:"FILE"`
	Module         string `help:"PKCS#11 module of the token that keeps the keys." placeholder:"FILE"`
	Token          string `help:"Label of the token." placeholder:"LABEL"`
	PINFile        string `name:"pin-file" help:"File with the PIN of the token." placeholder:"FILE"`
}

// with calls f with the keys' options, and lets go of the token after.
func (c *caFolder) with(f func(ca.Options) error) (err error) {
	var o ca.Options
	if c.Name == "" || filepath.Base(c.Name) != c.Name || strings.HasPrefix(c.Name, ".") {
		return usage{fmt.Errorf("--name %q: the name of an authority, not a path", c.Name)}
	}
	if (c.Module == "") != (c.Token == "") || (c.Module == "") != (c.PINFile == "") {
		return usage{errors.New("--module, --token and --pin-file go together")}
	}
	if c.PassphraseFile != "" {
		if o.Passphrase, err = ca.Passphrase(c.PassphraseFile); err != nil {
			return err
		}
	}
	if c.Module != "" {
		pin, err := ca.Passphrase(c.PINFile)
		if err != nil {
			return fmt.Errorf("PIN: %w", err)
		}
		token, err := pkcs11.Open(pkcs11.Config{Module: c.Module, Token: c.Token, PIN: pin})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, token.Close()) }()
		o.Keys = token
	}
	return f(o)
}

type caRoot struct {
	caFolder
	Plain bool `help:"Leave the key file unencrypted, for a disk that is encrypted itself."`
}

// Run implements the command.
func (c *caRoot) Run(o *out) error {
	if c.PassphraseFile == "" && c.Module == "" && !c.Plain {
		return usage{errors.New("a root's key wants protection: give --passphrase-file, or --module with --token and --pin-file, or --plain")}
	}
	return c.with(func(opt ca.Options) error {
		if err := os.MkdirAll(c.Dir, 0o700); err != nil {
			return err
		}
		r, err := ca.MakeRoot(c.Dir, c.Name, opt)
		if err != nil {
			return err
		}
		return o.documents([]document{describe(filepath.Join(c.Dir, c.Name+".pem"), r.Certificate())})
	})
}

type caRequest struct {
	caFolder
	Out string `required:"" help:"Where to write the request." placeholder:"FILE"`
}

// Run implements the command.
func (c *caRequest) Run(o *out) error {
	return c.with(func(opt ca.Options) error {
		r, err := ca.OpenRoot(c.Dir, c.Name, opt)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(c.Out); err == nil {
			return usage{fmt.Errorf("--out %s is there already; move it away or name another", c.Out)}
		}
		b, err := r.Request()
		if err != nil {
			return err
		}
		return o.written(c.Out, b)
	})
}

type caSign struct {
	caFolder
	In   string `required:"" help:"The request." placeholder:"FILE"`
	Key  string `required:"" help:"SHA-256 of the requested key, or at least its first 16 digits, as whoever made the request reads it out." placeholder:"HEX"`
	Days int    `default:"730" help:"How long the certificate lasts."`
	Out  string `required:"" help:"Where to write the certificate." placeholder:"FILE"`
}

// Run implements the command.
func (c *caSign) Run(o *out) error {
	b, err := os.ReadFile(c.In)
	if err != nil {
		return err
	}
	list, err := documents(c.In, b)
	if err != nil {
		return err
	}
	want := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(c.Key))
	switch {
	case len(want) < 16:
		return usage{fmt.Errorf("--key %s: at least 16 digits are compared", c.Key)}
	case c.Days < 1:
		return usage{fmt.Errorf("--days %d: at least 1", c.Days)}
	case !strings.HasPrefix(list[0].Key, want):
		return fmt.Errorf("%s asks for key %s: that is not the one read out, somebody may have exchanged the request", c.In, list[0].Key)
	}
	return c.with(func(opt ca.Options) error {
		r, err := ca.OpenRoot(c.Dir, c.Name, opt)
		if err != nil {
			return err
		}
		cert, err := r.Sign(b, time.Duration(c.Days)*24*time.Hour)
		if err != nil {
			return err
		}
		return o.written(c.Out, cert)
	})
}

type caInstall struct {
	caFolder
	In string `required:"" help:"The certificate." placeholder:"FILE"`
}

// Run implements the command.
func (c *caInstall) Run(o *out) error {
	b, err := os.ReadFile(c.In)
	if err != nil {
		return err
	}
	return c.with(func(opt ca.Options) error {
		r, err := ca.OpenRoot(c.Dir, c.Name, opt)
		if err != nil {
			return err
		}
		if err := r.Install(b); err != nil {
			return err
		}
		list, err := documents(c.In, b)
		if err != nil {
			return err
		}
		return o.documents(list)
	})
}

type caRetire struct {
	caFolder
	Serial string `arg:"" help:"Serial number of the certificate." placeholder:"HEX"`
}

// Run implements the command.
func (c *caRetire) Run(o *out) error {
	return c.with(func(opt ca.Options) error {
		r, err := ca.OpenRoot(c.Dir, c.Name, opt)
		if err != nil {
			return err
		}
		if err := r.Retire(c.Serial); err != nil {
			return err
		}
		return o.print(map[string]string{"retired": c.Serial}, "%s retired; start the service again, so that nobody it let in before stays", c.Serial)
	})
}

type caShow struct {
	Files []string `arg:"" help:"Certificates and requests in PEM." placeholder:"FILE"`
}

// Run implements the command.
func (c *caShow) Run(o *out) error {
	var all []document
	for _, f := range c.Files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		list, err := documents(f, b)
		if err != nil {
			return err
		}
		all = append(all, list...)
	}
	return o.documents(all)
}

// document is a certificate or a request as printed.
type document struct {
	File      string `json:"file"`
	Kind      string `json:"kind"` // root, issuing, certificate or request
	Subject   string `json:"subject"`
	Key       string `json:"key"` // SHA-256 of the public key
	Serial    string `json:"serial,omitempty"`
	NotBefore string `json:"not_before,omitempty"`
	NotAfter  string `json:"not_after,omitempty"`
	SHA256    string `json:"sha256,omitempty"` // of the certificate
}

// documents reads every certificate and request of a file; there is at least one.
func documents(file string, b []byte) ([]document, error) {
	var list []document
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			list = append(list, describe(file, cert))
		case "CERTIFICATE REQUEST":
			csr, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			list = append(list, document{File: file, Kind: "request", Subject: csr.Subject.String(), Key: fingerprint(csr.RawSubjectPublicKeyInfo)})
		default:
			return nil, fmt.Errorf("%s: %s is neither a certificate nor a request", file, block.Type)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: neither a certificate nor a request in PEM", file)
	}
	return list, nil
}

func describe(file string, c *x509.Certificate) document {
	kind := "certificate"
	switch {
	case c.IsCA && c.CheckSignatureFrom(c) == nil:
		kind = "root"
	case c.IsCA:
		kind = "issuing"
	}
	return document{
		File: file, Kind: kind, Subject: c.Subject.String(), Key: fingerprint(c.RawSubjectPublicKeyInfo), Serial: c.SerialNumber.Text(16),
		NotBefore: c.NotBefore.UTC().Format(time.RFC3339), NotAfter: c.NotAfter.UTC().Format(time.RFC3339), SHA256: fingerprint(c.Raw),
	}
}

func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// written writes a document to a new file and prints it.
func (o *out) written(path string, b []byte) error {
	list, err := documents(path, b)
	if err != nil {
		return err
	}
	if err := createAll([]newFile{{path, 0o644, func(w io.Writer) error { _, err := w.Write(b); return err }}}); err != nil {
		return err
	}
	return o.documents(list)
}

func (o *out) documents(list []document) error {
	if o.json {
		return json.NewEncoder(o.w).Encode(list)
	}
	for _, d := range list {
		fmt.Fprintf(o.w, "%s  %s %q\n  key     %s\n", d.File, d.Kind, d.Subject, d.Key)
		if d.Kind != "request" {
			fmt.Fprintf(o.w, "  serial  %s  from %s until %s\n  SHA-256 %s\n", d.Serial, d.NotBefore[:10], d.NotAfter[:10], d.SHA256)
		}
	}
	return nil
}
