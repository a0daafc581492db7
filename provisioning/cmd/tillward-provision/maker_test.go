package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// newAuthority NAME ISSUER [leaf|old] writes NAME.pem, signed by the key of
// ISSUER.key, its own when they are the same, and sets $NAME to its fingerprint.
func newAuthority(ts *testscript.TestScript, _ bool, args []string) {
	name, issuer, kind := args[0], args[1], ""
	if len(args) > 2 {
		kind = args[2]
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalECPrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(name+".key"), der, 0o600))
	der, err = os.ReadFile(ts.MkAbs(issuer + ".key"))
	ts.Check(err)
	by, err := x509.ParseECPrivateKey(der)
	ts.Check(err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour), IsCA: kind != "leaf", KeyUsage: x509.KeyUsageCertSign,
	}
	if kind == "old" {
		c.NotAfter = time.Now().Add(-24 * time.Hour)
	}
	der, err = x509.CreateCertificate(rand.Reader, c, &x509.Certificate{Subject: pkix.Name{CommonName: issuer}}, key.Public(), by)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	sum := sha256.Sum256(der)
	ts.Setenv(name, hex.EncodeToString(sum[:]))
}
