package pkcs11_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	module "github.com/miekg/pkcs11"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/pkcs11"
	"github.com/tillward/tillward/provisioning/identity"
)

var device = identity.Identity{Tenant: "shop", Device: strings.Repeat("a", 24), Tier: identity.TierA, Model: "box"}

// softHSM makes a token of its own, called tillward with PIN 1234.
func softHSM(t *testing.T) pkcs11.Config {
	t.Helper()
	dir := t.TempDir()
	tokens, conf := filepath.Join(dir, "tokens"), filepath.Join(dir, "softhsm2.conf")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.CommandContext(t.Context(), "softhsm2-util", "--init-token", "--free", "--label", "tillward", "--pin", "1234", "--so-pin", "12345678").CombinedOutput()
	if err != nil {
		t.Fatalf("apt-get install softhsm2: %v\n%s", err, out)
	}
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			return pkcs11.Config{Module: path, Token: "tillward", PIN: []byte("1234")}
		}
	}
	t.Fatal("softhsm2-util is here, and its library is not")
	return pkcs11.Config{}
}

func open(t *testing.T, c pkcs11.Config) *pkcs11.Token {
	t.Helper()
	token, err := pkcs11.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	return token
}

func signs(k crypto.Signer) error {
	digest := sha256.Sum256([]byte("what is signed"))
	sig, err := k.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	pub, ok := k.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || !ecdsa.VerifyASN1(pub, digest[:], sig) {
		return errors.New("the signature does not verify with a P-256 key")
	}
	return nil
}

func TestToken(t *testing.T) {
	conf := softHSM(t)
	token := open(t, conf)
	if _, err := token.Find("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it is made: got %v, want ErrNotExist", err)
	}
	a, err := token.Make("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := token.Make("b")
	if err != nil {
		t.Fatal(err)
	}
	again, err := token.Make("a")
	if err != nil {
		t.Fatal(err)
	}
	same := func(x, y crypto.Signer) bool { return x.Public().(*ecdsa.PublicKey).Equal(y.Public()) }
	if !same(a, again) || same(a, b) {
		t.Error("a label does not name one key")
	}
	if err := errors.Join(signs(a), signs(b), signs(again)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(token.Remove("a"), token.Remove("a")); err != nil {
		t.Error(err)
	}
	if _, err := token.Find("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it is removed: got %v, want ErrNotExist", err)
	}
	if signs(a) == nil {
		t.Error("a removed key signs")
	}
	if err := signs(b); err != nil {
		t.Errorf("the other key: %v", err)
	}
}

func TestWrongToken(t *testing.T) {
	conf := softHSM(t)
	for name, change := range map[string]func(*pkcs11.Config){
		"PIN":    func(c *pkcs11.Config) { c.PIN = []byte("not the PIN") },
		"label":  func(c *pkcs11.Config) { c.Token = "other" },
		"module": func(c *pkcs11.Config) { c.Module = filepath.Join(t.TempDir(), "none.so") },
	} {
		bad := conf
		change(&bad)
		if token, err := pkcs11.Open(bad); err == nil {
			t.Errorf("wrong %s: it opens", name)
			_ = token.Close()
		} else if strings.Contains(err.Error(), "not the PIN") {
			t.Errorf("the error shows the PIN: %v", err)
		}
	}
	open(t, conf)
}

// A key whose attributes somebody got wrong is worth nothing: it must be made
// in the token and stay there.
func TestKeyStaysInTheToken(t *testing.T) {
	conf := softHSM(t)
	token := open(t, conf)
	if _, err := token.Make("a"); err != nil {
		t.Fatal(err)
	}
	p, session := raw(t, conf)
	if err := p.FindObjectsInit(session, []*module.Attribute{module.NewAttribute(module.CKA_CLASS, module.CKO_PRIVATE_KEY)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := p.FindObjects(session, 9)
	if err != nil || len(found) != 1 {
		t.Fatalf("found %d private keys (%v), want one", len(found), err)
	}
	if err := p.FindObjectsFinal(session); err != nil {
		t.Fatal(err)
	}
	attrs, err := p.GetAttributeValue(session, found[0], []*module.Attribute{
		module.NewAttribute(module.CKA_SENSITIVE, nil), module.NewAttribute(module.CKA_ALWAYS_SENSITIVE, nil),
		module.NewAttribute(module.CKA_EXTRACTABLE, nil), module.NewAttribute(module.CKA_NEVER_EXTRACTABLE, nil), module.NewAttribute(module.CKA_LOCAL, nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte{1, 1, 0, 1, 1} {
		if got := attrs[i].Value; len(got) != 1 || got[0] != want {
			t.Errorf("attribute %#x is %v, want %d", attrs[i].Type, got, want)
		}
	}
	if _, err := p.GetAttributeValue(session, found[0], []*module.Attribute{module.NewAttribute(module.CKA_VALUE, nil)}); err == nil {
		t.Error("the key can be read")
	}
}

// raw is the module as somebody else in this process sees it.
func raw(t *testing.T, conf pkcs11.Config) (*module.Ctx, module.SessionHandle) {
	t.Helper()
	p := module.New(conf.Module)
	t.Cleanup(p.Destroy)
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		if err != nil || info.Label != conf.Token {
			continue
		}
		session, err := p.OpenSession(slot, module.CKF_SERIAL_SESSION|module.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		return p, session
	}
	t.Fatalf("no token %s", conf.Token)
	return nil, 0
}

// A token in the network goes away and comes back: sessions, the login and
// handles are gone then, and who signs must not notice.
func TestTokenComesBack(t *testing.T) {
	conf := softHSM(t)
	token := open(t, conf)
	k, err := token.Make("a")
	if err != nil {
		t.Fatal(err)
	}
	lose := func() {
		t.Helper()
		p, session := raw(t, conf)
		info, err := p.GetSessionInfo(session)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.CloseAllSessions(info.SlotID); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		lose()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := signs(k); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	lose()
	if _, err := token.Find("a"); err != nil {
		t.Error(err)
	}
	lose() // a token finds nothing for who is not logged in
	if again, err := token.Make("a"); err != nil || !again.Public().(*ecdsa.PublicKey).Equal(k.Public()) {
		t.Errorf("another key was made beside the one that is there (%v)", err)
	}
	// Not when another key has taken the place of ours.
	if err := token.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := token.Make("a"); err != nil {
		t.Fatal(err)
	}
	lose()
	if signs(k) == nil {
		t.Error("a removed key signs when another has its label")
	}
}

// It may be away for longer than it takes to try twice. Here its library is: the link to it is broken for a while.
func TestTokenIsAwayForLong(t *testing.T) {
	conf := softHSM(t)
	library := conf.Module
	conf.Module = filepath.Join(t.TempDir(), "module.so")
	if err := os.Symlink(library, conf.Module); err != nil {
		t.Fatal(err)
	}
	token := open(t, conf)
	k, err := token.Make("a")
	if err != nil {
		t.Fatal(err)
	}
	p, session := raw(t, conf)
	info, err := p.GetSessionInfo(session)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CloseAllSessions(info.SlotID); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(conf.Module); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := signs(k); err == nil {
			t.Error("signed without a token")
		}
	}
	if err := os.Symlink(library, conf.Module); err != nil {
		t.Fatal(err)
	}
	if err := signs(k); err != nil {
		t.Errorf("it is back: got %v", err)
	}
}

func TestClosedToken(t *testing.T) {
	conf := softHSM(t)
	token := open(t, conf)
	k, err := token.Make("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(token.Close(), token.Close()); err != nil {
		t.Fatal(err)
	}
	if err := signs(k); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func counts(a *ca.Authority, der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	_, err = c.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

func issue(t testing.TB, a *ca.Authority) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.IssueDevice(device, k.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// An authority whose keys are all in the token: nothing in its folder signs,
// and rotating leaves no key behind, on neither side.
func TestAuthorityInAToken(t *testing.T) {
	conf := softHSM(t)
	token := open(t, conf)
	dir := t.TempDir()
	a, err := ca.Open(dir, "tenant", ca.Options{Keys: token})
	if err != nil {
		t.Fatal(err)
	}
	before := issue(t, a)
	if _, err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := issue(t, a)
	if _, err := a.Request(); err != nil {
		t.Fatal(err)
	}
	if a, err = ca.Open(dir, "tenant", ca.Options{Keys: token}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(counts(a, before), counts(a, after)); err != nil {
		t.Error(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.key"))
	if err != nil || len(files) != 3 { // root, issuing, the one that waits
		t.Errorf("key files %v (%v), want three", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f) // #nosec G304 -- ours
		if err != nil || strings.Contains(string(b), "PRIVATE KEY") || !strings.Contains(string(b), "Label: tenant.") {
			t.Errorf("%s does not name a key in the token (%v):\n%s", f, err, b)
		}
	}
	if n := keys(t, conf); n != len(files) {
		t.Errorf("%d keys in the token, want %d", n, len(files))
	}
	if _, err := ca.Open(dir, "tenant", ca.Options{}); err == nil || !strings.Contains(err.Error(), "PKCS#11 module") {
		t.Errorf("without the token: got %v, want what to do", err)
	}
}

// keys counts the private keys in the token.
func keys(t *testing.T, conf pkcs11.Config) int {
	t.Helper()
	p, session := raw(t, conf)
	if err := p.FindObjectsInit(session, []*module.Attribute{module.NewAttribute(module.CKA_CLASS, module.CKO_PRIVATE_KEY)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := p.FindObjects(session, 99)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.FindObjectsFinal(session); err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// An authority moves into a token by rotating, and its key file is gone then.
func TestMoveIntoAToken(t *testing.T) {
	token := open(t, softHSM(t))
	dir := t.TempDir()
	a, err := ca.Open(dir, "tenant", ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := issue(t, a)
	if a, err = ca.Open(dir, "tenant", ca.Options{Keys: token}); err != nil {
		t.Fatal(err)
	}
	between := issue(t, a) // by the key in its file
	if _, err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(counts(a, before), counts(a, between), counts(a, issue(t, a))); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tenant.1.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key is still in its file (%v)", err)
	}
}

// A key that the token lost is no reason to make another by that name.
func TestLostKey(t *testing.T) {
	token := open(t, softHSM(t))
	dir := t.TempDir()
	if _, err := ca.Open(dir, "tenant", ca.Options{Keys: token}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "tenant.1.key")) // #nosec G304 -- ours
	if err != nil {
		t.Fatal(err)
	}
	label := strings.TrimSpace(strings.SplitN(strings.SplitN(string(b), "Label: ", 2)[1], "\n", 2)[0])
	if err := token.Remove(label); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Open(dir, "tenant", ca.Options{Keys: token}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), label) {
		t.Errorf("got %v, want that %s is not there", err, label)
	}
}

// The label is on the disk before the key is in the token: a power cut between
// leaves a label, and the next start makes its key.
func TestPowerCutBeforeTheKeyIsMade(t *testing.T) {
	conf := softHSM(t)
	token := open(t, conf)
	dir := t.TempDir()
	if _, err := ca.Open(dir, "tenant", ca.Options{Keys: token}); err != nil {
		t.Fatal(err)
	}
	const file = "-----BEGIN TILLWARD TOKEN KEY-----\nLabel: tenant.2-0123\n\n-----END TILLWARD TOKEN KEY-----\n"
	if err := os.WriteFile(filepath.Join(dir, "tenant.2.key"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(dir, "tenant", ca.Options{Keys: token})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := counts(a, issue(t, a)); err != nil {
		t.Error(err)
	}
	if _, err := token.Find("tenant.2-0123"); err != nil {
		t.Error(err)
	}
	if n := keys(t, conf); n != 2 {
		t.Errorf("%d keys in the token, want root and issuing key", n)
	}
}
