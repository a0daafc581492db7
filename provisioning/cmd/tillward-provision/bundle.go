package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/tillward/tillward/provisioning/trust"
)

// maxCMS bounds the signature of a bundle, as a manifest needs it, generously.
const maxCMS = 256 << 10

var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
)

func readBundle(file string) (trust.RAUC, error) {
	f, err := os.Open(file) // #nosec G304 -- the operator names the file
	if err != nil {
		return trust.RAUC{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return trust.RAUC{}, err
	}
	return parseBundle(f, fi.Size())
}

// parseBundle reads the manifest of a RAUC bundle, which lies inside the CMS
// signature at its end, and its length behind that [RAUC reference, bundle
// formats]. Who signed it is for RAUC on the device to judge, by its own keys.
func parseBundle(f io.ReaderAt, size int64) (trust.RAUC, error) {
	var tail [8]byte
	if size < int64(len(tail)) {
		return trust.RAUC{}, errors.New("not a RAUC bundle: it is too short for one")
	}
	if _, err := f.ReadAt(tail[:], size-8); err != nil {
		return trust.RAUC{}, fmt.Errorf("not a RAUC bundle: %w", err)
	}
	n := binary.BigEndian.Uint64(tail[:])
	if n == 0 || n > maxCMS || int64(n) > size-8 { // #nosec G115 -- bounded just before
		return trust.RAUC{}, errors.New("not a RAUC bundle: it does not end in a signature")
	}
	cms := make([]byte, n)
	if _, err := f.ReadAt(cms, size-8-int64(n)); err != nil { // #nosec G115 -- bounded above
		return trust.RAUC{}, fmt.Errorf("not a RAUC bundle: %w", err)
	}
	manifest, err := signedContent(cms)
	if err != nil {
		return trust.RAUC{}, err
	}
	return parseManifest(manifest)
}

// signedContent returns what a CMS signature encloses [RFC 5652, 5].
func signedContent(cms []byte) ([]byte, error) {
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(cms, &outer); err != nil {
		return nil, fmt.Errorf("not a RAUC bundle: its signature is no CMS: %w", err)
	}
	if outer.Type.Equal(oidEnvelopedData) {
		return nil, errors.New("the manifest is encrypted: release the bundle as rauc makes it, before rauc encrypt, or its manifest cannot be checked")
	}
	if !outer.Type.Equal(oidSignedData) {
		return nil, fmt.Errorf("not a RAUC bundle: its signature is CMS of type %s", outer.Type)
	}
	var signed struct {
		Version int
		Digests asn1.RawValue
		Content struct {
			Type    asn1.ObjectIdentifier
			Content []byte `asn1:"explicit,optional,tag:0"`
		}
		Rest asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(outer.Content.FullBytes, &signed); err != nil {
		if _, again := asn1.Unmarshal(outer.Content.Bytes, &signed); again != nil {
			return nil, fmt.Errorf("not a RAUC bundle: its signature is malformed: %w", errors.Join(err, again))
		}
	}
	if len(signed.Content.Content) == 0 {
		return nil, errors.New("a bundle of the format plain: devices refuse it, make it with format=verity in the [bundle] section of the manifest")
	}
	return signed.Content.Content, nil
}

// parseManifest reads what a release says of a bundle.
func parseManifest(b []byte) (trust.RAUC, error) {
	values, section := map[string]string{}, ""
	for s := bufio.NewScanner(io.LimitReader(bytes.NewReader(b), maxCMS)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		} else if k, v, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			values[section+"."+strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	sum := sha256.Sum256(b)
	m := trust.RAUC{
		Compatible: values["update.compatible"], Version: values["update.version"], Format: values["bundle.format"],
		MinRAUC: values["update.min-rauc-version"], ManifestHash: hex.EncodeToString(sum[:]),
	}
	switch {
	case m.Compatible == "" || m.Version == "":
		return m, errors.New("its manifest names no compatible or no version")
	case m.Format != "verity" && m.Format != "crypt":
		return m, fmt.Errorf("a bundle of the format %q: devices take verity and crypt", m.Format)
	}
	return m, nil
}
