package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/identity"
)

// issues DIR NAME [PASSPHRASE-FILE] opens an authority as a service does and
// lets it issue a device's certificate; with ! it must not open.
func issues(ts *testscript.TestScript, neg bool, args []string) {
	var o ca.Options
	if len(args) > 2 {
		b, err := ca.Passphrase(ts.MkAbs(args[2]))
		ts.Check(err)
		o.Passphrase = b
	}
	a, err := ca.Open(ts.MkAbs(args[0]), args[1], o)
	if neg {
		if err == nil {
			ts.Fatalf("%s opens", args[1])
		}
		ts.Logf("%v", err)
		return
	}
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	id := identity.Identity{Tenant: "shop", Device: strings.Repeat("a", 24), Tier: identity.TierA, Model: "box"}
	der, err := a.IssueDevice(id, key.Public(), time.Hour)
	ts.Check(err)
	cert, err := x509.ParseCertificate(der)
	ts.Check(err)
	_, err = cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	ts.Check(err)
}

// keyOf NAME FILE sets a variable to the key of a certificate or request, as
// --json show prints it; serialOf to the serial number.
func keyOf(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], firstOf(ts, args[1]).Key)
}

func serialOf(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], firstOf(ts, args[1]).Serial)
}

func firstOf(ts *testscript.TestScript, file string) document {
	ts.Check(ts.Exec("tillward-provision", "--json", "ca", "show", file))
	var list []document
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &list))
	return list[0]
}

// softToken makes a SoftHSM2 token called tillward with PIN 1234 and sets
// MODULE to its module.
func softToken(ts *testscript.TestScript, _ bool, _ []string) {
	dir := ts.MkAbs("tokens")
	ts.Check(os.Mkdir(dir, 0o700))
	conf := filepath.Join(dir, "softhsm2.conf")
	ts.Check(os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nlog.level = ERROR\n"), 0o600))
	ts.Setenv("SOFTHSM2_CONF", conf)
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		ts.Fatalf("apt-get install softhsm2: %v", err)
	}
	ts.Check(ts.Exec(util, "--init-token", "--free", "--label", "tillward", "--pin", "1234", "--so-pin", "12345678"))
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			ts.Setenv("MODULE", path)
			return
		}
	}
	ts.Fatalf("softhsm2-util is here, and its library is not")
}
