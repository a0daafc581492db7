// Package account says who an operator is and what they may do: access tokens
// with a role, and the console's sessions, which stand for a token.
//
// It promises that neither a token nor a session id is ever stored or logged,
// only SHA-256 hashes, and that guessing is slow. It owns no HTTP route.
package account

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	tokenPrefix = "twt_"
	// CookieName is the console's session cookie.
	CookieName  = "tw_session"
	sessionLife = 12 * time.Hour
	maxFailures = 10              // of one address
	failureLife = 5 * time.Minute // until one is forgiven
	maxTracked  = 4096            // addresses
)

// Store keeps tokens and sessions; cloud/internal/store fits.
type Store interface {
	AddToken(ctx context.Context, t fleet.Token, ev fleet.AuditEvent) error
	TokenByHash(ctx context.Context, hash [32]byte) (fleet.Token, error)
	AddSession(ctx context.Context, hash [32]byte, tokenID string, expires time.Time) error
	SessionToken(ctx context.Context, hash [32]byte, now time.Time) (fleet.Token, error)
	DropSession(ctx context.Context, hash [32]byte) error
}

// Accounts checks who asks.
type Accounts struct {
	store Store

	mu       sync.Mutex
	failures map[string]failure
}

type failure struct {
	n     int
	until time.Time
}

// New returns the accounts kept in s.
func New(s Store) *Accounts { return &Accounts{store: s, failures: make(map[string]failure)} }

// Issue makes a token; the plain text is returned once and kept nowhere. life
// 0 means that it does not expire.
func (a *Accounts) Issue(ctx context.Context, tenant fleet.TenantID, name string, role fleet.Role, life time.Duration, by string) (string, fleet.Token, error) {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, unicode.IsControl) {
		return "", fleet.Token{}, fmt.Errorf("token name %.70q: use 1 to 64 printable characters: %w", name, fleet.ErrInvalid)
	}
	if life < 0 {
		return "", fleet.Token{}, fmt.Errorf("token life %s: use 0, for ever, or more: %w", life, fleet.ErrInvalid)
	}
	if !role.Covers(fleet.Viewer) {
		return "", fleet.Token{}, fmt.Errorf("role %.20q: use viewer, operator or admin: %w", role, fleet.ErrInvalid)
	}
	plain := tokenPrefix + strings.ToLower(rand.Text()+rand.Text())
	now := time.Now()
	t := fleet.Token{
		ID: "tok_" + strings.ToLower(rand.Text()[:16]), Name: name, Tenant: tenant, Role: role, Hash: sha256.Sum256([]byte(plain)), CreatedAt: now,
	}
	if life > 0 {
		t.ExpiresAt = now.Add(life)
	}
	ev := fleet.AuditEvent{
		At: now, Kind: "token.issued", Severity: "info", Actor: by, Subject: t.ID, Detail: map[string]string{"name": name, "role": string(role)},
	}
	if err := a.store.AddToken(ctx, t, ev); err != nil {
		return "", fleet.Token{}, err
	}
	return plain, t, nil
}

// Authenticate returns who sent r: by bearer token, or by session cookie.
func (a *Accounts) Authenticate(r *http.Request) (fleet.Principal, error) {
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, plain, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return fleet.Principal{}, fleet.ErrUnauthenticated
		}
		return a.byToken(r, strings.TrimSpace(plain))
	}
	c, err := r.Cookie(CookieName)
	if err != nil {
		return fleet.Principal{}, fleet.ErrUnauthenticated
	}
	t, err := a.store.SessionToken(r.Context(), sha256.Sum256([]byte(c.Value)), time.Now())
	if errors.Is(err, fleet.ErrNotFound) || errors.Is(err, fleet.ErrExpired) {
		return fleet.Principal{}, fleet.ErrUnauthenticated
	}
	if err != nil {
		return fleet.Principal{}, err
	}
	p := principal(t)
	p.Cookie = true
	return p, nil
}

func principal(t fleet.Token) fleet.Principal {
	return fleet.Principal{Name: t.Name, Tenant: t.Tenant, Role: t.Role, TokenID: t.ID}
}

func (a *Accounts) byToken(r *http.Request, plain string) (fleet.Principal, error) {
	from := remote(r)
	if !a.mayTry(from) {
		return fleet.Principal{}, fleet.ErrTooMany
	}
	t, err := a.store.TokenByHash(r.Context(), sha256.Sum256([]byte(plain)))
	switch {
	case errors.Is(err, fleet.ErrNotFound) || errors.Is(err, fleet.ErrExpired):
		a.failed(from)
		return fleet.Principal{}, fleet.ErrUnauthenticated
	case err != nil:
		return fleet.Principal{}, err
	case !t.RevokedAt.IsZero() || (!t.ExpiresAt.IsZero() && time.Now().After(t.ExpiresAt)):
		a.failed(from)
		return fleet.Principal{}, fleet.ErrUnauthenticated
	}
	return principal(t), nil
}

// SignIn trades a token for a session cookie.
func (a *Accounts) SignIn(r *http.Request, plain string) (*http.Cookie, fleet.Principal, error) {
	p, err := a.byToken(r, strings.TrimSpace(plain))
	if err != nil {
		return nil, p, err
	}
	id := rand.Text() + rand.Text()
	expires := time.Now().Add(sessionLife)
	if err := a.store.AddSession(r.Context(), sha256.Sum256([]byte(id)), p.TokenID, expires); err != nil {
		return nil, p, err
	}
	return cookie(r, id, expires), p, nil
}

// SignOut ends the session of r and returns a cookie that clears the browser's.
func (a *Accounts) SignOut(r *http.Request) (*http.Cookie, error) {
	if c, err := r.Cookie(CookieName); err == nil {
		if err := a.store.DropSession(r.Context(), sha256.Sum256([]byte(c.Value))); err != nil {
			return nil, err
		}
	}
	return cookie(r, "", time.Unix(1, 0)), nil
}

func cookie(r *http.Request, value string, expires time.Time) *http.Cookie {
	return &http.Cookie{ //nolint:gosec // Secure where there is TLS; plain HTTP is allowed on loopback only
		Name: CookieName, Value: value, Path: "/", Expires: expires, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	}
}

// remote is what failures are counted by: an IPv4 address, or the /64 that one
// host of IPv6 can choose its addresses from.
func remote(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	a := at.Addr().Unmap()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

func (a *Accounts) mayTry(from string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.failures[from]
	return f.n < maxFailures || time.Now().After(f.until)
}

func (a *Accounts) failed(from string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.failures) >= maxTracked {
		for k, f := range a.failures {
			if now.After(f.until) {
				delete(a.failures, k)
			}
		}
		if len(a.failures) >= maxTracked {
			clear(a.failures)
		}
	}
	f := a.failures[from]
	if now.After(f.until) {
		f.n = 0
	}
	f.n++
	f.until = now.Add(failureLife)
	a.failures[from] = f
}
