package account_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/account"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T) (a *account.Accounts, dir string) {
	t.Helper()
	dir = t.TempDir()
	st, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	return account.New(st), dir
}

func request(from, token string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = from
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

func TestIssue(t *testing.T) {
	a, dir := open(t)
	plain, tok, err := a.Issue(t.Context(), "main", "anna", fleet.Operator, time.Hour, "root")
	must(t, err)
	if !strings.HasPrefix(plain, "twt_") || len(plain) < 40 || tok.Hash != sha256.Sum256([]byte(plain)) || time.Until(tok.ExpiresAt) > time.Hour {
		t.Errorf("got %s and %+v", plain, tok)
	}
	p, err := a.Authenticate(request("192.0.2.1:1", plain))
	if err != nil || p != (fleet.Principal{Name: "anna", Tenant: "main", Role: fleet.Operator, TokenID: tok.ID}) {
		t.Errorf("got %+v, %v", p, err)
	}
	c, p, err := a.SignIn(request("192.0.2.1:1", ""), plain+"\n")
	if err != nil || p.Name != "anna" || c.Secure || !c.HttpOnly {
		t.Errorf("got %+v, %v and cookie %v", p, err, c)
	}
	tlsReq := request("192.0.2.1:1", "")
	tlsReq.TLS = &tls.ConnectionState{}
	if c, _, err := a.SignIn(tlsReq, plain); err != nil || !c.Secure {
		t.Errorf("over TLS: got %v, %v, want a Secure cookie", c, err)
	}
	for _, name := range []string{"tillward.db", "tillward.db-wal"} { // what is stored must not open the door
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if strings.Contains(string(b), plain) || strings.Contains(string(b), c.Value) {
			t.Errorf("%s holds a token or a session", name)
		}
	}
	for _, bad := range []struct {
		name string
		role fleet.Role
		life time.Duration
	}{{"", "viewer", 0}, {strings.Repeat("n", 65), "viewer", 0}, {"a\tb", "viewer", 0}, {"a", "root", 0}, {"a", "", 0}, {"a", "viewer", -1}} {
		if _, _, err := a.Issue(t.Context(), "main", bad.name, bad.role, bad.life, "root"); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%+v: got %v, want it refused", bad, err)
		}
	}
}

func TestSessionEnds(t *testing.T) {
	a, _ := open(t)
	plain, _, err := a.Issue(t.Context(), "main", "anna", fleet.Viewer, 0, "root")
	must(t, err)
	c, _, err := a.SignIn(request("192.0.2.1:1", ""), plain)
	must(t, err)
	r := request("192.0.2.1:1", "")
	r.AddCookie(c)
	if p, err := a.Authenticate(r); err != nil || !p.Cookie {
		t.Errorf("got %+v, %v", p, err)
	}
	gone, err := a.SignOut(r)
	if err != nil || gone.Value != "" || gone.Expires.After(time.Now()) {
		t.Errorf("got %v, %v", gone, err)
	}
	if _, err := a.Authenticate(r); !errors.Is(err, fleet.ErrUnauthenticated) {
		t.Errorf("after sign-out: got %v", err)
	}
	forged := request("192.0.2.1:1", "")
	forged.AddCookie(&http.Cookie{Name: account.CookieName, Value: "guess"})
	if _, err := a.Authenticate(forged); !errors.Is(err, fleet.ErrUnauthenticated) {
		t.Errorf("forged: got %v", err)
	}
	if _, err := a.SignOut(request("192.0.2.1:1", "")); err != nil {
		t.Errorf("sign-out of nobody: %v", err)
	}
}

// shelf holds one token in memory, so that time can be the test's.
type shelf struct {
	account.Store
	token fleet.Token
}

func (s *shelf) TokenByHash(_ context.Context, h [32]byte) (fleet.Token, error) {
	if h != s.token.Hash {
		return fleet.Token{}, fleet.ErrNotFound
	}
	return s.token, nil
}

// SessionToken fails as a broken disk does.
func (s *shelf) SessionToken(context.Context, [32]byte, time.Time) (fleet.Token, error) {
	return fleet.Token{}, errBroken
}

var errBroken = errors.New("disk is broken")

func TestGuessingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := account.New(&shelf{token: fleet.Token{Name: "anna", Role: fleet.Viewer, Hash: sha256.Sum256([]byte("good"))}})
		try := func(from, token string, want error) {
			t.Helper()
			if _, err := a.Authenticate(request(from, token)); !errors.Is(err, want) {
				t.Errorf("%s with %q: got %v, want %v", from, token, err, want)
			}
		}
		for i := range 10 {
			try(fmt.Sprintf("192.0.2.1:%d", 1000+i), "bad", fleet.ErrUnauthenticated) // ports do not matter
			try(fmt.Sprintf("[2001:db8::%d]:1", i), "bad", fleet.ErrUnauthenticated)  // nor does what a host of IPv6 chooses itself
		}
		try("192.0.2.1:1", "good", fleet.ErrTooMany)
		try("[::ffff:192.0.2.1]:1", "good", fleet.ErrTooMany)
		try("[2001:db8::ffff]:1", "good", fleet.ErrTooMany)
		try("192.0.2.2:1", "good", nil)
		try("[2001:db8:0:1::1]:1", "good", nil)
		<-time.After(4 * time.Minute)
		try("192.0.2.1:1", "good", fleet.ErrTooMany)
		<-time.After(2 * time.Minute)
		try("192.0.2.1:1", "good", nil)
		try("192.0.2.1:1", "bad", fleet.ErrUnauthenticated) // it counts from one again
		try("192.0.2.1:1", "good", nil)
		for i := range 6000 { // many addresses do not fill the memory, nor lock out the rest
			try(fmt.Sprintf("198.51.%d.%d:1", i/250, i%250), "bad", fleet.ErrUnauthenticated)
		}
		try("203.0.113.1:1", "good", nil)
	})
}

// TestExpiredTokens shows that account looks at the life of a token itself, and
// that a broken store is no wrong token.
func TestExpiredTokens(t *testing.T) {
	now := time.Now()
	for name, tok := range map[string]fleet.Token{"expired": {ExpiresAt: now.Add(-time.Second)}, "revoked": {RevokedAt: now}} {
		tok.Hash = sha256.Sum256([]byte("good"))
		if _, err := account.New(&shelf{token: tok}).Authenticate(request("192.0.2.1:1", "good")); !errors.Is(err, fleet.ErrUnauthenticated) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	r := request("192.0.2.1:1", "")
	r.AddCookie(&http.Cookie{Name: account.CookieName, Value: "x"})
	if _, err := account.New(&shelf{}).Authenticate(r); !errors.Is(err, errBroken) || errors.Is(err, fleet.ErrUnauthenticated) {
		t.Errorf("broken store: got %v", err)
	}
}
