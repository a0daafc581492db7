package trust_test

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

func TestRoleOf(t *testing.T) {
	for path, want := range map[string]string{
		"agent/1.2.3/tillward-agent-linux-amd64": "agent/prod",
		"boot/POS_500/agent_1.2.3.json":          "agent/prod",
		"os/POS_500/prod/1.2.3/bundle.raucb":     "os/POS_500/prod",
		"os/POS_500/beta/1.2.3/bundle.raucb":     "os/POS_500/beta",
		"boot/POS_500/os_POS_500_beta_1.2.json":  "os/POS_500/beta",
		"ops/main/till/1.2.3/tree.tar":           "ops/main",
		// What no delegation is for.
		"os/1.2.3/bundle.raucb":               "targets",
		"os/POS_500/nightly/1.2.3/bundle":     "targets",
		"os/[a-z]/prod/1.2.3/bundle":          "targets",
		"os/*/prod/1.2.3/bundle":              "targets",
		"boot/POS_500/os_1.2.3.json":          "targets",
		"boot/POS_500/os_OTHER_prod_1.2.json": "targets",
		"ops/Main/till/1.2.3/tree.tar":        "targets",
		"agent/1.2.3/deeper/agent":            "targets",
		"":                                    "targets",
	} {
		if got := trust.RoleOf(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

// add releases one file whose content is its path.
func (w *world) add(t *testing.T, path string, custom trust.Custom) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, []byte(path))
	return w.repo.Add([]trust.NewTarget{{Path: path, File: file, Custom: custom}}, w.keys)
}

// A device that knew a role does not stumble when it is taken back, nor when it
// is given again.
func TestUndelegatedRole(t *testing.T) {
	w := fleet(t)
	const app = "ops/acme/pos/1.0.0/tree.tar"
	must(t, w.add(t, app, trust.Custom{Class: trust.ClassApp, Version: "1.0.0"}))
	_, err := w.dev.Target(t.Context(), app)
	must(t, err)
	must(t, w.repo.Undelegate("ops/acme", w.keys))
	if _, err := w.dev.Target(t.Context(), app); !errors.Is(err, trust.ErrNoTarget) {
		t.Errorf("taken back: got %v, want ErrNoTarget", err)
	}
	must(t, w.dev.Refresh(t.Context()))
	w.release(t, "1.4.0")
	if _, err := w.dev.Target(t.Context(), "agent/1.4.0/tillward-agent-linux-amd64"); err != nil {
		t.Errorf("another role: %v", err)
	}
	key := newKey(t)
	w.keys["ops/acme"] = []ed25519.PrivateKey{key}
	must(t, w.repo.Delegate("ops/acme", trust.Signers{Keys: []crypto.PublicKey{key.Public()}}, w.keys))
	must(t, w.add(t, "ops/acme/pos/1.1.0/tree.tar", trust.Custom{Class: trust.ClassApp, Version: "1.1.0"}))
	if _, err := w.dev.Target(t.Context(), "ops/acme/pos/1.1.0/tree.tar"); err != nil {
		t.Errorf("given again: %v", err)
	}
}

// Each class of target is signed by the role that its path is for.
func TestDelegatedTargetsReachTheDevice(t *testing.T) {
	w := newWorld(t)
	w.keys["os/POS_500/prod"] = []ed25519.PrivateKey{newKey(t), newKey(t)}
	w.keys["ops/main"] = []ed25519.PrivateKey{newKey(t)}
	w.release(t, "1.2.3")
	all := []string{path, "boot/POS_500/os_POS_500_prod_2.0.0.json", "ops/main/till/1.0.0/tree.tar", "os/POS_500/prod/2.0.0/bundle.raucb"}
	for _, p := range all[1:] {
		if err := w.add(t, p, trust.Custom{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range all {
		if _, err := w.dev.Target(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	targets, err := trust.VerifyRepository(t.Context(), w.repo.Dir, t.TempDir(), w.dev.FactoryRoot)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range targets {
		got = append(got, x.Path)
	}
	if !slices.Equal(got, all) {
		t.Errorf("got %q, want %q", got, all)
	}
	for _, name := range []string{"1.agent%2Fprod.json", "2.os%2FPOS_500%2Fprod.json", "1.ops%2Fmain.json"} {
		if _, err := os.Stat(w.file(name)); err != nil {
			t.Error(err)
		}
	}
	top, err := metadata.Targets().FromFile(w.file("4.targets.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(top.Signed.Targets) != 0 || len(top.Signed.Delegations.Roles) != 3 {
		t.Errorf("targets holds %v and %v, want delegations only", top.Signed.Targets, top.Signed.Delegations.Roles)
	}
}

// Whom targets may delegate to is few, and no path plays tricks by it.
func TestDelegated(t *testing.T) {
	long := strings.Repeat("a", 64)
	for role, want := range map[string]bool{
		"agent/prod": true, "os/POS_500/prod": true, "os/POS_500/beta": true, "ops/main": true, "os/" + long + "/prod": true, "ops/" + long: true,
		"": false, "targets": false, "agent/beta": false, "os/../prod": false, "os/a/b/prod": false, "ops/Main": false, "ops/main/": false, "ops/a\n": false,
		"os/" + long + "a/prod": false, "ops/" + long + "a": false,
	} {
		if got := trust.Delegated(role); got != want {
			t.Errorf("%.20q: got %v", role, got)
		}
	}
}

// A key that may sign one component signs no other, neither under its own path
// nor by putting its name into its own metadata.
func TestDelegatedRoleStaysInItsPaths(t *testing.T) {
	w := newWorld(t)
	w.keys["ops/main"] = []ed25519.PrivateKey{newKey(t)}
	if err := w.add(t, "ops/main/till/1.0.0/tree.tar", trust.Custom{}); err != nil {
		t.Fatal(err)
	}
	w.release(t, "1.2.3")
	const foreign = "agent/6.6.6/tillward-agent-linux-amd64"
	m, err := metadata.Targets().FromFile(w.file("1.ops%2Fmain.json"))
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Targets[foreign] = m.Signed.Targets["ops/main/till/1.0.0/tree.tar"]
	m.Signed.Targets["ops/other/till/1.0.0/tree.tar"] = m.Signed.Targets["ops/main/till/1.0.0/tree.tar"]
	m.Signed.Version++
	resign(t, m, w.file("2.ops%2Fmain.json"), w.keys["ops/main"][0])
	if err := w.repo.Refresh(w.keys); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{foreign, "ops/other/till/1.0.0/tree.tar"} {
		if got, err := w.dev.Target(t.Context(), p); !errors.Is(err, trust.ErrNoTarget) {
			t.Errorf("%s: got %+v and %v, want ErrNoTarget", p, got, err)
		}
	}
	targets, err := w.dev.Targets(t.Context())
	if err != nil || len(targets) != 2 {
		t.Errorf("listed %+v and %v, want the two that count", targets, err)
	}
	if listed, err := w.repo.List(); err != nil || len(listed) != 2 {
		t.Errorf("listed %+v and %v, want the two that count", listed, err)
	}
}

// What too few have signed never gets into a snapshot.
func TestRefreshRefusesUnsigned(t *testing.T) {
	w := newWorld(t)
	w.release(t, "1.2.3")
	m, err := metadata.Targets().FromFile(w.file("1.agent%2Fprod.json"))
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Version++
	resign(t, m, w.file("2.agent%2Fprod.json"), newKey(t))
	if err := w.repo.Refresh(w.keys); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("got %v, want ErrSignature", err)
	}
	if _, err := w.dev.Target(t.Context(), path); err != nil {
		t.Errorf("the repository as it was: %v", err)
	}
}

// A tenant whose metadata has expired does not hold up the others.
func TestExpiredDelegation(t *testing.T) {
	w := newWorld(t)
	w.keys["ops/main"] = []ed25519.PrivateKey{newKey(t)}
	const app = "ops/main/till/1.0.0/tree.tar"
	if err := w.add(t, app, trust.Custom{}); err != nil {
		t.Fatal(err)
	}
	w.release(t, "1.2.3")
	m, err := metadata.Targets().FromFile(w.file("1.ops%2Fmain.json"))
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Version++
	m.Signed.Expires = time.Now().Add(-time.Minute).UTC()
	resign(t, m, w.file("2.ops%2Fmain.json"), w.keys["ops/main"][0])
	if err := w.repo.Refresh(w.keys); err != nil {
		t.Fatal(err)
	}
	if _, err := w.dev.Target(t.Context(), app); !errors.Is(err, trust.ErrExpired) {
		t.Errorf("got %v, want ErrExpired", err)
	}
	if targets, err := w.dev.Targets(t.Context()); err != nil || len(targets) != 1 || targets[0].Path != path {
		t.Errorf("got %+v and %v, want the agent alone", targets, err)
	}
}

// A chunk index is checked like the target that names it.
func TestChunkIndexIsChecked(t *testing.T) {
	w := newWorld(t)
	const app, sum = "ops/main/till/1.0.0/tree.tar", "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" // of foo
	if err := w.add(t, app, trust.Custom{Class: trust.ClassApp, Version: "1.0.0", Chunks: &trust.Chunks{SHA256: sum, Length: 3}}); err != nil {
		t.Fatal(err)
	}
	verify := func() error {
		_, err := trust.VerifyRepository(t.Context(), w.repo.Dir, t.TempDir(), w.dev.FactoryRoot)
		return err
	}
	if err := verify(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the index: got %v", err)
	}
	index := filepath.Join(w.repo.Dir, "targets/ops/main/till/1.0.0", sum+".tree.tar.chunks")
	write(t, index, []byte("foo"))
	if err := verify(); err != nil {
		t.Error(err)
	}
	write(t, index, []byte("fop"))
	if err := verify(); !errors.Is(err, trust.ErrMismatch) {
		t.Errorf("another index: got %v, want ErrMismatch", err)
	}
}

func TestReadKeys(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"root", "root-2", "agent/prod", "agent/prod-2", "os/box-2/prod", "ops/shop-2", "other", "ops/shop-2/key"} {
		file := filepath.Join(dir, name+".pem")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := trust.NewKey(file); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := trust.ReadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for role, k := range keys {
		got[role] = len(k)
	}
	want := map[string]int{"root": 2, "agent/prod": 2, "os/box-2/prod": 1, "ops/shop-2": 1}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for role, n := range want {
		if got[role] != n {
			t.Errorf("%s: got %d keys, want %d", role, got[role], n)
		}
	}
}
