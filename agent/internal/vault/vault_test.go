package vault_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// chip is the lines that fit hal/tpm to the room, as main has them.
type chip struct{ *tpm.TPM }

func (c chip) Seal(ctx context.Context, release *ecdsa.PublicKey, ref, secret []byte) ([]byte, error) {
	key, err := tpm.ReleaseKey(release)
	if err != nil {
		return nil, err
	}
	return c.TPM.Seal(ctx, key, ref, secret)
}

func (c chip) Unseal(ctx context.Context, release *ecdsa.PublicKey, blob []byte, a boot.Approval) ([]byte, error) {
	key, err := tpm.ReleaseKey(release)
	if err != nil {
		return nil, err
	}
	secret, err := c.TPM.Unseal(ctx, key, blob, tpm.Approval(a))
	if errors.Is(err, tpm.ErrOtherTPM) {
		err = fmt.Errorf("%w: %w", vault.ErrLost, err)
	}
	return secret, err
}

// box is a till on a software TPM with a firmware.
type box struct {
	t     *testing.T
	farm  *tpmfarm.Farm
	chip  *tpmfarm.TPM
	dev   chip
	key   *ecdsa.PrivateKey // the release's
	vault *vault.Vault
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{t: t}
	var err error
	b.farm, err = tpmfarm.Open(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(b.farm.Close)
	b.chip, err = b.farm.Start(t.Context(), t.TempDir())
	must(t, err)
	b.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	b.vault = &vault.Vault{Dir: filepath.Join(t.TempDir(), "vault"), Release: &b.key.PublicKey}
	return b
}

// boot power-cycles the box into a firmware.
func (b *box) boot(f tpmfarm.Firmware) {
	b.t.Helper()
	if b.dev.TPM != nil {
		must(b.t, b.dev.Close())
		must(b.t, b.chip.Restart(b.t.Context()))
	}
	must(b.t, f.Boot(b.chip, filepath.Join(b.t.TempDir(), "log")))
	dev, err := tpm.Open("unix:" + b.chip.Socket())
	must(b.t, err)
	b.t.Cleanup(func() { _ = dev.Close() })
	b.dev = chip{dev}
}

// release is what a release says of a firmware, approved with key.
func release(t *testing.T, key *ecdsa.PrivateKey, name string, f tpmfarm.Firmware, floor uint64) boot.Reference {
	t.Helper()
	pcrs := map[int][]byte{}
	for i, v := range f.Registers() {
		pcrs[boot.Quoted[i]] = v
	}
	a, err := boot.SignApproval(key, []byte("spool"), pcrs, floor)
	must(t, err)
	return boot.Reference{Version: 1, Model: "m", Release: name, Approvals: []boot.Approval{a}}
}

func (b *box) keep(name string, f tpmfarm.Firmware, floor uint64) {
	b.t.Helper()
	ok, err := b.vault.Keep(release(b.t, b.key, name, f, floor))
	if must(b.t, err); !ok || !b.vault.Has(name) {
		b.t.Fatalf("approvals of %s are not on file", name)
	}
}

func (b *box) open() []byte {
	b.t.Helper()
	key, err := b.vault.Open(b.t.Context(), b.dev, vault.Books)
	must(b.t, err)
	return key
}

// closed shows that the key does not open, and which way.
func (b *box) closed(what string, want error) {
	b.t.Helper()
	if key, err := b.vault.Open(b.t.Context(), b.dev, vault.Books); !errors.Is(err, want) || key != nil {
		b.t.Errorf("%s: got %x, %v, want %v", what, key, err, want)
	}
}

// TestKeySurvivesUpdatesAndDiesOnTampering is the life of a key: made when a
// release approves the boot, opened after each restart, through an update whose
// approval came before, and in no other state.
func TestKeySurvivesUpdatesAndDiesOnTampering(t *testing.T) {
	b := newBox(t)
	one, two := tpmfarm.Default("agent/1.0.0"), tpmfarm.Default("agent/1.1.0")
	b.boot(one)
	b.closed("before anything", vault.ErrNone)
	if err := b.vault.Make(t.Context(), b.dev, vault.Books); !errors.Is(err, vault.ErrClosed) || b.vault.Begun(vault.Books) {
		t.Fatalf("without an approval: got %v, begun %v", err, b.vault.Begun(vault.Books))
	}
	b.keep("agent/1.1.0", two, 0)
	if err := b.vault.Make(t.Context(), b.dev, vault.Books); !errors.Is(err, vault.ErrClosed) || b.vault.Begun(vault.Books) {
		t.Fatalf("with the approval of another boot: got %v, begun %v", err, b.vault.Begun(vault.Books))
	}
	b.keep("agent/1.0.0", one, 0)
	must(t, b.vault.Make(t.Context(), b.dev, vault.Books))
	key := b.open()
	must(t, b.vault.Make(t.Context(), b.dev, vault.Books)) // changes nothing

	b.boot(one)
	if got := b.open(); !bytes.Equal(got, key) {
		t.Errorf("after a restart: got %x, want %x", got, key)
	}
	b.boot(two)
	if got := b.open(); !bytes.Equal(got, key) {
		t.Errorf("after an update: got %x, want %x", got, key)
	}
	evil := tpmfarm.Default("agent/1.1.0")
	evil.Event("kernel").Image = []byte("another kernel")
	b.boot(evil)
	b.closed("another kernel", vault.ErrClosed)
	b.boot(one)
	if got := b.open(); !bytes.Equal(got, key) {
		t.Errorf("repaired: got %x, want %x", got, key)
	}

	// The floor of a release that the box has not booted into yet would close
	// the key.
	next := release(t, b.key, "agent/1.1.0", two, 2)
	next.Floor = 2
	if b.vault.Outlives(t.Context(), b.dev, next) {
		t.Error("the floor may be raised before the box has booted into the release")
	}
	b.boot(two)
	low := release(t, b.key, "agent/1.1.0", two, 1)
	low.Floor = 2
	if b.vault.Outlives(t.Context(), b.dev, low) || !b.vault.Outlives(t.Context(), b.dev, next) {
		t.Error("want the floor raised by the approval that allows it, and by no other")
	}

	// Committed: the old release opens nothing any more.
	b.keep("agent/1.0.0", one, 1)
	b.keep("agent/1.1.0", two, 2)
	b.boot(two)
	must(t, b.dev.RaiseFloor(t.Context(), 2))
	b.open()
	b.boot(one)
	b.closed("a release below the floor", vault.ErrClosed)
}

// TestOnlyTheReleaseKeyApproves keeps nothing that another key signed, and does
// not believe a file that says otherwise.
func TestOnlyTheReleaseKeyApproves(t *testing.T) {
	b := newBox(t)
	f := tpmfarm.Default("agent/1.0.0")
	b.boot(f)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	if ok, err := b.vault.Keep(release(t, stranger, "agent/1.0.0", f, 0)); ok || err != nil || b.vault.Has("agent/1.0.0") {
		t.Errorf("a stranger's approval: got %v, %v", ok, err)
	}
	if ok, err := b.vault.Keep(boot.Reference{Release: "agent/1.0.0"}); ok || err != nil {
		t.Errorf("no approval: got %v, %v", ok, err)
	}
	other := &vault.Vault{Dir: b.vault.Dir, Release: &stranger.PublicKey} // who writes on the disk
	if ok, err := other.Keep(release(t, stranger, "agent/1.0.0", f, 0)); !ok || err != nil {
		t.Fatalf("got %v, %v", ok, err)
	}
	if err := b.vault.Make(t.Context(), b.dev, vault.Books); !errors.Is(err, vault.ErrClosed) {
		t.Errorf("a stranger's approval on the disk: got %v, want ErrClosed", err)
	}
}

// TestAnotherTPM has the disk of one box in another, and a TPM that was
// cleared.
func TestAnotherTPM(t *testing.T) {
	b := newBox(t)
	f := tpmfarm.Default("agent/1.0.0")
	b.boot(f)
	b.keep("agent/1.0.0", f, 0)
	must(t, b.vault.Make(t.Context(), b.dev, vault.Books))
	thief, err := b.farm.Start(t.Context(), t.TempDir())
	must(t, err)
	must(t, f.Boot(thief, filepath.Join(t.TempDir(), "log")))
	dev, err := tpm.Open("unix:" + thief.Socket())
	must(t, err)
	defer dev.Close()
	b.dev = chip{dev}
	b.closed("another TPM", vault.ErrLost)
	must(t, b.vault.Forget(vault.Books))
	must(t, b.vault.Forget(vault.Books))
	b.closed("forgotten", vault.ErrNone)
}

// TestDamagedFiles: what cannot be read is lost or as good as not there.
func TestDamagedFiles(t *testing.T) {
	b := newBox(t)
	f := tpmfarm.Default("agent/1.0.0")
	b.boot(f)
	b.keep("agent/1.0.0", f, 0)
	must(t, b.vault.Make(t.Context(), b.dev, vault.Books))
	key := filepath.Join(b.vault.Dir, "key.json")
	good, err := os.ReadFile(key)
	must(t, err)
	must(t, os.WriteFile(key, good[:len(good)/2], 0o600))
	b.closed("a torn key file", vault.ErrLost)
	must(t, os.Remove(key))
	must(t, os.Mkdir(key, 0o700)) // as a medium that fails: there, and not readable now
	if _, err := b.vault.Open(t.Context(), b.dev, vault.Books); err == nil || errors.Is(err, vault.ErrLost) || !b.vault.Begun(vault.Books) {
		t.Errorf("a key file that cannot be read now: got %v, begun %v, want an error that gives nothing up", err, b.vault.Begun(vault.Books))
	}
	must(t, os.Remove(key))
	must(t, os.WriteFile(key, good, 0o600))
	names, err := filepath.Glob(filepath.Join(b.vault.Dir, "*.approved.json"))
	must(t, err)
	must(t, os.WriteFile(names[0], []byte("{"), 0o600))
	b.closed("a torn approval", vault.ErrClosed)
	b.keep("agent/1.0.0", f, 0)
	b.open()
}

// TestOldReleasesGo keeps a bounded number, the newest.
func TestOldReleasesGo(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	v := &vault.Vault{Dir: t.TempDir(), Release: &key.PublicKey}
	f := tpmfarm.Default("x")
	for i := range 20 {
		name := fmt.Sprintf("agent/1.%d.0", i)
		_, err := v.Keep(release(t, key, name, f, 0))
		must(t, err)
		files, err := filepath.Glob(filepath.Join(v.Dir, "*.approved.json"))
		must(t, err)
		for _, f := range files { // a file system may know seconds only
			fi, err := os.Stat(f)
			must(t, err)
			must(t, os.Chtimes(f, time.Time{}, fi.ModTime().Add(-time.Second)))
		}
	}
	for i, want := range map[int]bool{0: false, 3: false, 4: true, 19: true} {
		if got := v.Has(fmt.Sprintf("agent/1.%d.0", i)); got != want {
			t.Errorf("release %d of 20 on file: got %v, want %v", i+1, got, want)
		}
	}
}

// TestDeadBattery: a clock that is years behind makes the newest file look old.
func TestDeadBattery(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	v := &vault.Vault{Dir: t.TempDir(), Release: &key.PublicKey}
	for i := range 20 {
		name := fmt.Sprintf("agent/1.%d.0", i)
		_, err := v.Keep(release(t, key, name, tpmfarm.Default("x"), 0))
		must(t, err)
		if !v.Has(name) {
			t.Errorf("the approvals of %s were dropped at once", name)
		}
		files, err := filepath.Glob(filepath.Join(v.Dir, "*.approved.json"))
		must(t, err)
		for _, f := range files {
			must(t, os.Chtimes(f, time.Time{}, time.Now().AddDate(50, 0, 0)))
		}
	}
}

// TestBaseline: a new agent has to open what was open when it was offered.
func TestBaseline(t *testing.T) {
	v := &vault.Vault{Dir: t.TempDir()}
	before := func(release string) [2]bool {
		return [2]bool{v.OpenBefore(release, vault.Books), v.OpenBefore(release, vault.Data)}
	}
	if got := before("agent/2.0.0"); got != [2]bool{true, true} {
		t.Errorf("nothing known: got %v, want the strict answer", got)
	}
	must(t, v.Baseline("agent/2.0.0", vault.Books))
	if got := before("agent/2.0.0"); got != [2]bool{false, true} {
		t.Errorf("books closed before 2.0.0: got %v", got)
	}
	must(t, v.Baseline("agent/2.0.0", vault.Data, vault.Books))
	if got, other := before("agent/2.0.0"), before("agent/3.0.0"); got != [2]bool{false, false} || other != [2]bool{true, true} {
		t.Errorf("both closed before 2.0.0: got %v, want no demand on it, and on others as ever: %v", got, other)
	}
	must(t, v.Baseline("agent/2.0.0"))
	if got := before("agent/2.0.0"); got != [2]bool{true, true} {
		t.Errorf("open before 2.0.0: got %v, want it to open too", got)
	}
	// What an agent left that knew of no data.
	must(t, os.WriteFile(filepath.Join(v.Dir, "baseline.json"), []byte(`{"release":"agent/2.0.0","open":false}`), 0o600))
	if got := before("agent/2.0.0"); got != [2]bool{false, true} {
		t.Errorf("of an older agent: got %v", got)
	}
}

// TestKeysAreApart: what befalls one key leaves the other, and the floor rises
// only when both outlive it.
func TestKeysAreApart(t *testing.T) {
	b := newBox(t)
	f := tpmfarm.Default("agent/1.0.0")
	b.boot(f)
	b.keep("agent/1.0.0", f, 0)
	if b.vault.Any() {
		t.Error("something is sealed before anything was")
	}
	must(t, b.vault.Make(t.Context(), b.dev, vault.Data))
	if b.vault.Begun(vault.Books) || !b.vault.Any() {
		t.Error("the key of the data is that of the books")
	}
	must(t, b.vault.Make(t.Context(), b.dev, vault.Books))
	data, err := b.vault.Open(t.Context(), b.dev, vault.Data)
	must(t, err)
	if bytes.Equal(data, b.open()) {
		t.Error("one key for both")
	}
	must(t, b.vault.Forget(vault.Books))
	b.closed("forgotten", vault.ErrNone)
	if got, err := b.vault.Open(t.Context(), b.dev, vault.Data); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the data after the books were given up: got %x, %v, want %x", got, err, data)
	}

	next := release(t, b.key, "agent/1.1.0", tpmfarm.Default("agent/1.1.0"), 0)
	otherRef, err := boot.SignApproval(b.key, []byte("another"), map[int][]byte{4: make([]byte, 32)}, 0)
	must(t, err)
	stranger0, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	if !b.vault.Covers(next) || b.vault.Covers(boot.Reference{Approvals: []boot.Approval{otherRef}}) || b.vault.Covers(release(t, stranger0, "agent/1.1.0", f, 0)) {
		t.Error("want a release covered by an approval of the release key for the word that was sealed for, and by no other")
	}

	high := release(t, b.key, "agent/1.0.0", f, 2)
	high.Floor = 2
	stranger := tpmfarm.Default("agent/9.0.0")
	other := release(t, b.key, "agent/1.0.0", stranger, 2)
	other.Floor = 2
	if b.vault.Outlives(t.Context(), b.dev, other) || !b.vault.Outlives(t.Context(), b.dev, high) {
		t.Error("with the data alone: want the floor raised by what opens it, and by nothing else")
	}
	must(t, b.vault.Make(t.Context(), b.dev, vault.Books))
	file := filepath.Join(b.vault.Dir, string(vault.Data))
	good, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, bytes.Replace(good, []byte(`{"ref":"`), []byte(`{"ref":"YWFh`), 1), 0o600)) // sealed for another word
	if b.vault.Outlives(t.Context(), b.dev, high) {
		t.Error("the floor may be raised though the data does not outlive it")
	}
	must(t, errors.Join(os.Remove(file), os.Mkdir(file, 0o700)))
	if b.vault.Outlives(t.Context(), b.dev, high) {
		t.Error("the floor may be raised though nobody can see now whether the data outlives it")
	}
	must(t, errors.Join(os.Remove(file), os.WriteFile(file, good[:10], 0o600)))
	if !b.vault.Outlives(t.Context(), b.dev, high) {
		t.Error("a key that is lost keeps the floor down for ever")
	}
}
