package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// TestDataKey runs the sessions in testdata/tpm, with boxes that boot.
func TestDataKey(t *testing.T) {
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	keys := map[string]*ecdsa.PrivateKey{}
	for _, name := range []string{"vendor", "stranger"} {
		if keys[name], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.MarshalPKIXPublicKey(&keys["vendor"].PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	boxes := map[string]*tpmfarm.TPM{}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/tpm", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			return os.WriteFile(filepath.Join(e.WorkDir, "seal.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// boot BOX RELEASE [evil]: power-cycles a box into a release; $TPM is its TPM.
			"boot": func(ts *testscript.TestScript, _ bool, args []string) {
				chip, err := boxes[args[0]], error(nil)
				if chip == nil {
					chip, err = farm.Start(t.Context(), t.TempDir())
					boxes[args[0]] = chip
				} else {
					err = chip.Restart(t.Context())
				}
				ts.Check(err)
				fw := tpmfarm.Default(args[1])
				if len(args) > 2 {
					fw.Event("kernel").Image = []byte(args[2])
				}
				ts.Check(fw.Boot(chip, ts.MkAbs("log")))
				ts.Setenv("TPM", "unix:"+chip.Socket())
			},
			// approve KEY RELEASE FILE: writes the boot reference of a release.
			"approve": func(ts *testscript.TestScript, _ bool, args []string) {
				pcrs := map[int][]byte{}
				for i, v := range tpmfarm.Default(args[1]).Registers() {
					pcrs[i] = v
				}
				a, err := boot.SignApproval(keys[args[0]], []byte("spool"), pcrs, 0)
				ts.Check(err)
				r := boot.Reference{Version: 1, Model: "box-9", Release: args[1], Approvals: []boot.Approval{a}}
				ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[2])), 0o700))
				ts.Check(os.WriteFile(ts.MkAbs(args[2]), r.Bytes(), 0o600))
			},
		},
	})
}
