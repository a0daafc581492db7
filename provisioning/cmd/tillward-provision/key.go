package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/pkcs11"
	"github.com/tillward/tillward/provisioning/trust"
)

type keyCmd struct {
	Create keyCreate `cmd:"" help:"Make a key that does not exist yet, in a file or in a token."`
	Public keyPublic `cmd:"" help:"Write the public half of a key, for others to name it by."`
}

type keyCreate struct {
	File   string `arg:"" optional:"" help:"Where to write it; readable by its owner only."`
	PKCS11 string `name:"pkcs11" help:"Make it in this token instead, which never lets it out: pkcs11:token=LABEL;object=NAME?module-path=FILE&pin-source=FILE" placeholder:"URI"`
	Public string `help:"Write its public half here, too." placeholder:"FILE"`

	PassphraseFile string `help:"File with a passphrase that encrypts the key." placeholder:"FILE"`

	Sealing string `help:"Make a sealing key (P-256), which approves the boots that a device's secrets open in, and write its public half here." placeholder:"FILE"`
}

// Run implements the command.
func (c *keyCreate) Run(o *out) error {
	switch {
	case (c.File == "") == (c.PKCS11 == ""):
		return usage{errors.New("give a file or --pkcs11, and not both")}
	case c.PassphraseFile != "" && (c.PKCS11 != "" || c.Sealing != ""):
		return usage{errors.New("--passphrase-file is for a signing key in a file")}
	case c.PassphraseFile != "":
		pub, err := createEncrypted(c.File, c.PassphraseFile)
		if err != nil {
			return err
		}
		return c.made(o, c.File, pub)
	case c.PKCS11 != "":
		if c.Sealing != "" {
			return usage{errors.New("--sealing makes a key in a file")}
		}
		return withToken(c.PKCS11, func(t *pkcs11.Token, label string) error {
			if _, err := t.Find(label); err == nil {
				return fmt.Errorf("the token has a key %s already; a key is made once", label)
			}
			key, err := t.Make(label)
			if err != nil {
				return err
			}
			return c.made(o, label, key.Public())
		})
	case c.Sealing != "":
		if err := createSealing(c.File, c.Sealing); err != nil {
			return err
		}
		return o.print(map[string]string{"file": c.File, "public": c.Sealing}, "%s  sealing key; devices get %s", c.File, c.Sealing)
	}
	key, err := trust.NewKey(c.File)
	if err != nil {
		return err
	}
	return c.made(o, c.File, key.Public())
}

func (c *keyCreate) made(o *out, name string, pub crypto.PublicKey) error {
	if c.Public != "" {
		if err := writePublic(c.Public, pub); err != nil {
			return err
		}
	}
	id, err := trust.TUFKeyID(pub)
	if err != nil {
		return err
	}
	v := map[string]string{"file": name, "tuf_key_id": id}
	text := fmt.Sprintf("%s  key %s", name, trust.Short(id))
	if k, ok := pub.(ed25519.PublicKey); ok {
		v["key_id"] = trust.KeyID(k)
		text = fmt.Sprintf("%s  key %s, in releases %s", name, trust.KeyID(k), trust.Short(id))
	}
	return o.print(v, "%s", text)
}

// createEncrypted makes a key that only a passphrase opens.
func createEncrypted(file, passphraseFile string) (crypto.PublicKey, error) {
	passphrase, err := ca.Passphrase(passphraseFile)
	if err != nil {
		return nil, err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	b, err := ca.EncryptKey(der, passphrase)
	if err != nil {
		return nil, err
	}
	return pub, createAll([]newFile{{file, 0o600, func(w io.Writer) error { _, err := w.Write(b); return err }}})
}

// readSigner reads a key that may be encrypted. Where nobody has named a file
// with the passphrase, it is asked for on the terminal.
func readSigner(file, passphraseFile string) (crypto.Signer, error) {
	b, err := readFile(file, 64<<10)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || !strings.HasPrefix(block.Type, "ENCRYPTED") {
		return trust.ReadKey(file)
	}
	var passphrase []byte
	switch stdin := int(os.Stdin.Fd()); { // #nosec G115 -- a descriptor
	case passphraseFile != "":
		passphrase, err = ca.Passphrase(passphraseFile)
	case term.IsTerminal(stdin):
		fmt.Fprintf(os.Stderr, "Passphrase of %s: ", file)
		passphrase, err = term.ReadPassword(stdin)
		fmt.Fprintln(os.Stderr)
	default:
		err = usage{fmt.Errorf("%s is encrypted: give --passphrase-file", file)}
	}
	if err != nil {
		return nil, err
	}
	der, err := ca.DecryptKey(block, passphrase)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", file, err)
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := k.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("read key %s: the passphrase is another, or it holds no Ed25519 key", file), err)
	}
	return key, nil
}

type keyPublic struct {
	signer
	Out string `required:"" help:"Where to write it." placeholder:"FILE"`
}

// Run implements the command.
func (c *keyPublic) Run(o *out) error {
	return c.with(func(key crypto.Signer) error {
		if err := writePublic(c.Out, key.Public()); err != nil {
			return err
		}
		id, err := trust.TUFKeyID(key.Public())
		if err != nil {
			return err
		}
		return o.print(map[string]string{"file": c.Out, "tuf_key_id": id}, "%s  key %s", c.Out, trust.Short(id))
	})
}

// signer names the private key of whoever signs.
type signer struct {
	Key            string `help:"File with the key." placeholder:"FILE"`
	PassphraseFile string `help:"File with the passphrase of an encrypted key; asked for on a terminal otherwise." placeholder:"FILE"`

	PKCS11 string `name:"pkcs11" help:"Key in a token: pkcs11:token=LABEL;object=NAME?module-path=FILE&pin-source=FILE" placeholder:"URI"`
}

// with calls f with the key, and lets go of the token after.
func (c *signer) with(f func(crypto.Signer) error) error {
	switch {
	case (c.Key == "") == (c.PKCS11 == ""):
		return usage{errors.New("give --key or --pkcs11, and not both")}
	case c.Key != "":
		key, err := readSigner(c.Key, c.PassphraseFile)
		if err != nil {
			return err
		}
		return f(key)
	}
	return withToken(c.PKCS11, func(t *pkcs11.Token, label string) error {
		key, err := t.Find(label)
		if err != nil {
			return err
		}
		return f(key)
	})
}

// withToken logs in to the token that a URI names [RFC 7512].
func withToken(uri string, f func(*pkcs11.Token, string) error) (err error) {
	conf, label, pin, err := parseToken(uri)
	if err != nil {
		return usage{fmt.Errorf("--pkcs11: %w", err)}
	}
	if conf.PIN, err = ca.Passphrase(pin); err != nil {
		return fmt.Errorf("PIN: %w", err)
	}
	token, err := pkcs11.Open(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	return f(token, label)
}

// parseToken reads pkcs11:token=LABEL;object=NAME?module-path=FILE&pin-source=FILE.
// A PIN in the URI itself would be seen by everybody who lists the processes.
func parseToken(uri string) (conf pkcs11.Config, label, pin string, err error) {
	rest, ok := strings.CutPrefix(uri, "pkcs11:")
	if !ok {
		return conf, "", "", errors.New("write it as pkcs11:token=LABEL;object=NAME?module-path=FILE&pin-source=FILE")
	}
	path, query, _ := strings.Cut(rest, "?")
	for _, part := range append(strings.Split(path, ";"), strings.Split(query, "&")...) {
		if part == "" {
			continue
		}
		name, raw, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(raw)
		if err != nil {
			return conf, "", "", fmt.Errorf("%s: %w", name, err)
		}
		switch name {
		case "token":
			conf.Token = value
		case "object":
			label = value
		case "module-path":
			conf.Module = value
		case "pin-source":
			pin = strings.TrimPrefix(value, "file:")
		case "type":
			if value != "private" {
				return conf, "", "", fmt.Errorf("type=%s: a private key is wanted", value)
			}
		case "pin-value":
			return conf, "", "", errors.New("put the PIN into a file and name it as pin-source")
		default:
			return conf, "", "", fmt.Errorf("%s: not known; token, object, module-path and pin-source are", name)
		}
	}
	for name, value := range map[string]string{"token": conf.Token, "object": label, "module-path": conf.Module, "pin-source": pin} {
		if value == "" {
			return conf, "", "", fmt.Errorf("%s is missing", name)
		}
	}
	return conf, label, pin, nil
}

func writePublic(file string, pub crypto.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return fmt.Errorf("encode public key: %w", err)
	}
	return createAll([]newFile{{file, 0o644, func(w io.Writer) error {
		return pem.Encode(w, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}}})
}

// readKeysOf reads the public keys that signers handed in, each in a file.
func readKeysOf(files []string) ([]crypto.PublicKey, error) {
	var list []crypto.PublicKey
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, usage{err}
		}
		block, _ := pem.Decode(b)
		if block == nil || block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("%s: not a public key; make it with tillward-provision key public", file)
		}
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if _, err := trust.TUFKeyID(pub); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		list = append(list, pub)
	}
	return list, nil
}
