package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/owner"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// cmpSheet compares two pages of labels but for their titles.
func cmpSheet(ts *testscript.TestScript, _ bool, args []string) {
	var pages [2]string
	for i, name := range args {
		_, body, ok := strings.Cut(ts.ReadFile(name), "</title>")
		if !ok {
			ts.Fatalf("%s is not a page of labels", name)
		}
		pages[i] = body
	}
	if pages[0] != pages[1] {
		ts.Fatalf("%s and %s differ", args[0], args[1])
	}
}

// do runs the command and wants its exit code.
func do(t *testing.T, code int, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(args, &out, &errs); got != code {
		t.Fatalf("%q: exit code %d, want %d\n%s%s", args, got, code, &out, &errs)
	}
	return out.String() + errs.String()
}

// TestFactoryLine takes two devices over the line, one with an RSA EK.
func TestFactoryLine(t *testing.T) {
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(farm.Close)
	var chips [2]string
	for i := range chips {
		farm.RSA = i == 1
		chip, err := farm.Start(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		chips[i] = "unix:" + chip.Socket()
	}
	dir := t.TempDir()
	line, key, manifest, table := filepath.Join(dir, "line.jsonl"), filepath.Join(dir, "vendor.pem"), filepath.Join(dir, "m.json"), filepath.Join(dir, "batch.csv")
	do(t, 0, "factory", "read", "--tpm", chips[0], "--out", line, "--model", "vend-1", "--serial", "S1")
	if said := do(t, 1, "factory", "read", "--tpm", chips[0], "--out", line, "--model", "vend-1", "--serial", "S2"); !strings.Contains(said, "this TPM is at "+line+":1 already") {
		t.Errorf("a TPM twice: %s", said)
	}
	if said := do(t, 1, "factory", "read", "--tpm", chips[1], "--out", line, "--model", "vend-1", "--serial", "S1"); !strings.Contains(said, "serial S1 is at") {
		t.Errorf("a serial twice: %s", said)
	}
	do(t, 2, "factory", "read", "--tpm", chips[1], "--out", line, "--model", "Käse", "--serial", "S2")
	do(t, 1, "factory", "read", "--tpm", filepath.Join(dir, "none"), "--out", line, "--model", "vend-1", "--serial", "S2")
	do(t, 0, "factory", "read", "--tpm", chips[1], "--out", line, "--model", "vend-1", "--serial", "S2")
	do(t, 0, "key", "create", key)
	do(t, 0, "factory", "manifest", "--in", line, "--key", key, "--vendor", "V", "--batch", "B", "--out", manifest)

	text, err := os.ReadFile(line)
	if err != nil {
		t.Fatal(err)
	}
	said := do(t, 0, "--json", "factory", "verify", "--in", manifest, "--key", key)
	// What tpm2-tools write has its length before it; it is the same device.
	batch := "serial,model,ek_public\n"
	for i, l := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		var u unit
		if err := json.Unmarshal([]byte(l), &u); err != nil {
			t.Fatal(err)
		}
		if id := identity.DeviceID(u.EKPublic); !strings.Contains(said, `"device":"`+id+`"`) {
			t.Errorf("device %d is %s, the manifest says %s", i, id, said)
		}
		sized := append([]byte{byte(len(u.EKPublic) >> 8), byte(len(u.EKPublic))}, u.EKPublic...)
		batch += u.Serial + ",vend-1," + base64.StdEncoding.EncodeToString(sized) + "\n"
	}
	if err := os.WriteFile(table, []byte(batch), 0o600); err != nil {
		t.Fatal(err)
	}
	do(t, 0, "factory", "manifest", "--in", table, "--key", key, "--vendor", "V", "--batch", "B", "--out", manifest+"2")
	entries := func(s string) string { return s[strings.Index(s, `"entries"`):] }
	if again := do(t, 0, "--json", "factory", "verify", "--in", manifest+"2", "--key", key); entries(again) != entries(said) {
		t.Errorf("from the table: %s\nfrom the line: %s", again, said)
	}
}

// FuzzReadUnits reads what a vendor sent: what passes fits a manifest.
func FuzzReadUnits(f *testing.F) {
	for _, text := range []string{
		"serial,model,ek_sha256\nS1,m," + strings.Repeat("1", 64) + "\n", "serial,model,ek_public\nS1,m,AAEA\n", "\ufeffserial,model\n\"", "a,a\n",
		`{"ek_sha256":"` + strings.Repeat("3", 64) + `","model":"m","serial":"S"}`, `{"ek_public":"AAEACwADAHIAAAAGAIAAQwAQAAMAEAAA","model":"m","serial":"S"}`, "{}\n{",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var bad badLines
		units, err := readUnits("f", bytes.NewReader(b), &bad)
		if err != nil {
			return
		}
		for _, u := range units {
			e := owner.Listed{EKHash: u.EKHash, Device: deviceOf(u.EKHash), Model: u.Model, Serial: u.Serial}
			if err := e.Check(); err != nil || u.where == "" {
				t.Fatalf("%+v passed: %v", u, err)
			}
		}
	})
}
