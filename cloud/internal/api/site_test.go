package api_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/account"
	"github.com/tillward/tillward/cloud/internal/api"
	"github.com/tillward/tillward/cloud/internal/archive/shelf"
	"github.com/tillward/tillward/cloud/internal/catalog"
	"github.com/tillward/tillward/cloud/internal/dispatch"
	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/live"
	"github.com/tillward/tillward/cloud/internal/owner"
	"github.com/tillward/tillward/cloud/internal/rollout"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/postgres"
)

var quiet = slog.New(slog.DiscardHandler)

// site is the API over a real store with two tenants: main has d1 to d3, other
// has x1. Nobody is connected.
type site struct {
	*httptest.Server
	store     *store.Store
	hub       *live.Hub
	accounts  *account.Accounts
	artifacts string
	woken     chan struct{}
	vendor    ed25519.PrivateKey
	owners    *owner.Registry
	token     map[fleet.Role]string
	other     string // an admin's of the other tenant

	delays []fleet.Delay // why devices wait, by another room
	mu     sync.Mutex
	acts   []string // what was asked of other rooms
}

func (s *site) act(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acts = append(s.acts, fmt.Sprintf(format, args...))
}

// acted returns what was asked of other rooms since it was asked last.
func (s *site) acted() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.acts, ", ")
	s.acts = nil
	return all
}

// published is the catalog as the service wires it.
type published struct {
	*catalog.Catalog
	signer *trust.OrderSigner
}

func (p published) Export(ctx context.Context, m fleet.Medium) (time.Time, func(io.Writer) error, error) {
	return p.Catalog.Export(ctx, m, func(kind string, m wire.Message) ([]byte, error) { return dispatch.Order(p.signer, kind, m) })
}

// unplugged reaches no device.
type unplugged struct{}

func (unplugged) Send(fleet.DeviceID, wire.Channel, []byte) error { return errors.New("not connected") }

func (unplugged) Connected() map[fleet.DeviceID]fleet.Trust { return nil }

func newSite(t *testing.T) *site {
	t.Helper()
	return siteWith(t, func(*api.Deps) {})
}

func siteWith(t *testing.T, change func(*api.Deps)) *site {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), postgres.Place(t), quiet)
	must(t, err)
	s := &site{
		store: st, hub: &live.Hub{}, accounts: account.New(st), artifacts: filepath.Join(dir, "artifacts"),
		woken: make(chan struct{}, 100), token: map[fleet.Role]string{},
	}
	for _, d := range []fleet.Device{
		{ID: "d1", Tenant: "main", Site: "berlin", Group: "canary", Serial: "S1"},
		{ID: "d2", Tenant: "main", Site: "berlin", Group: "canary", Serial: "S2"},
		{ID: "d3", Tenant: "main", Site: "paris", Group: "rest", Serial: "S3"},
		{ID: "x1", Tenant: "other", Site: "oslo", Group: "canary", Serial: "S4"},
	} {
		d.Tier, d.EKHash, d.EnrolledAt = fleet.TierC, "ek-"+string(d.ID), time.Now()
		must(t, st.Enrol(t.Context(), d))
	}
	for _, r := range []fleet.Role{fleet.Viewer, fleet.Operator, fleet.Admin} {
		s.token[r], _, err = s.accounts.Issue(t.Context(), "main", string(r), r, 0, "test")
		must(t, err)
	}
	s.other, _, err = s.accounts.Issue(t.Context(), "other", "olga", fleet.Admin, 0, "test")
	must(t, err)
	cat, err := catalog.Open(s.artifacts)
	must(t, err)
	cat.Key, err = trust.NewKey(filepath.Join(dir, "online.key"))
	must(t, err)
	key, err := trust.NewKey(filepath.Join(dir, "order.key"))
	must(t, err)
	d := dispatch.New(dispatch.Options{
		Store: st, Signer: trust.NewOrderSigner(key), Sender: unplugged{}, Log: quiet,
		Changed: func(c fleet.Command) {
			s.hub.Publish(fleet.Change{Kind: fleet.ChangedCommand, ID: string(c.ID), Tenant: c.Tenant})
		},
	})
	_, s.vendor, err = ed25519.GenerateKey(rand.Reader)
	must(t, err)
	_, tenant, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	s.owners = owner.New(owner.Options{
		Store: st, Tenant: "main", Name: "Main GmbH", Key: tenant, Vendors: []owner.Vendor{{Name: "Vend", Key: s.vendor.Public().(ed25519.PublicKey)}}, Waiting: true,
		Relinquish: d.Relinquish, Cut: func(id fleet.DeviceID, why string) { s.act("cut %s: %s", id, why) }, Changed: func(fleet.DeviceID) {}, Log: quiet,
	})
	exports, err := export.New(export.Options{
		Store: st, Tenant: "main", Version: "1.2.3", Log: quiet,
		Sinks: []export.Sink{{Name: "siem", Kind: export.KindFile, Format: export.FormatCEF, Since: "start", Path: filepath.Join(dir, "trail.cef")}},
	})
	must(t, err)
	deps := api.Deps{
		Exports: exports,
		Trails:  shelf.New(shelf.Options{Store: st, Signer: trust.NewOrderSigner(key), Dir: filepath.Join(dir, "archive"), Tenant: "main", Log: quiet}),
		Preview: rollout.New(rollout.Options{Store: st, Link: unplugged{}, Log: quiet}).Preview,
		Check:   rollout.Check,
		Hours: func(text string) error {
			_, err := rollout.ParseHours(text)
			return err
		},
		Why: func(_ context.Context, t fleet.TenantID, id fleet.DeviceID) ([]fleet.Delay, error) {
			s.act("why %s %s", t, id)
			return s.delays, nil
		},
		Owners: s.owners,
		Challenge: func(id fleet.DeviceID) error {
			s.act("challenge %s", id)
			return nil
		},
		Reappraise: func(model string) { s.act("reappraise %s", model) },
		Disconnect: func(id fleet.DeviceID, why string) { s.act("disconnect %s: %s", id, why) },
		Authorities: func() []fleet.Authority {
			return []fleet.Authority{{Serial: "0a", NotAfter: time.Now().Add(time.Hour), Current: true}, {Serial: "09", NotAfter: time.Now().Add(time.Minute)}}
		},
		Retire: func(serial string) error {
			if serial != "aa" {
				return fleet.ErrNotFound
			}
			return nil
		},
		Rotate: func(context.Context) error {
			s.act("rotate")
			return nil
		},
		Tenant: "main", Store: st, Accounts: s.accounts, Send: d.Send, Releases: published{cat, trust.NewOrderSigner(key)}, Watch: s.hub.Subscribe, Changed: s.hub.Publish,
		Wake: func() { s.woken <- struct{}{} }, Version: "1.2.3", Log: quiet,
	}
	change(&deps)
	s.Server = httptest.NewServer(api.New(deps))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reply is an answer, read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// into decodes a good answer.
func into[T any](t *testing.T, r reply) T {
	t.Helper()
	var v T
	if r.status/100 != 2 {
		t.Fatalf("got %s, want success", r)
	}
	must(t, json.Unmarshal(r.body, &v))
	return v
}

// problem decodes a refusal and checks that it is one as RFC 9457 says.
func problem(t *testing.T, r reply, status int) string {
	t.Helper()
	var p struct {
		Status        int
		Title, Detail string
	}
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("got %s as %q, want a problem with status %d", r, r.header.Get("Content-Type"), status)
	}
	must(t, json.Unmarshal(r.body, &p))
	if p.Status != status || p.Title == "" || p.Detail == "" {
		t.Errorf("got %s, want status, title and detail", r)
	}
	return p.Detail
}

// do sends a request; body is JSON unless it is a reader.
func (s *site) do(t *testing.T, token, method, path string, body any, more ...func(*http.Request)) reply {
	t.Helper()
	var in io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		in, kind = b, "application/x-tar"
	default:
		j, err := json.Marshal(b)
		must(t, err)
		in = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, in)
	must(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if in != nil {
		req.Header.Set("Content-Type", kind)
	}
	for _, f := range more {
		f(req)
	}
	resp, err := s.Client().Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return reply{resp.StatusCode, resp.Header, b}
}

func (s *site) as(t *testing.T, r fleet.Role, method, path string, body any) reply {
	t.Helper()
	return s.do(t, s.token[r], method, path, body)
}

type object = map[string]any

// items are a list's items and its next key.
func items(t *testing.T, r reply) ([]object, string) {
	t.Helper()
	l := into[struct {
		Items []object
		Next  string
	}](t, r)
	if l.Items == nil {
		t.Fatalf("got %s, want items, be they none", r)
	}
	return l.Items, l.Next
}

// trail returns the kinds in the service's own trail of tenant main, newest
// first, with what the newest of each kind says.
func (s *site) trail(t *testing.T) map[string]fleet.AuditEvent {
	t.Helper()
	all, _, err := s.store.AuditTrail(context.Background(), "main", "", true, fleet.Page{Limit: 1000})
	must(t, err)
	m := map[string]fleet.AuditEvent{}
	for _, ev := range all {
		if _, ok := m[ev.Kind]; !ok {
			m[ev.Kind] = ev
		}
	}
	return m
}

// repository is a signed one with its keys.
func repository(t *testing.T) (*trust.Repository, trust.Keys) {
	t.Helper()
	keys := trust.Keys{}
	for _, role := range []string{trust.RoleRoot, trust.RoleTargets, trust.RoleSnapshot, trust.RoleTimestamp} {
		k, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
		must(t, err)
		keys[role] = []ed25519.PrivateKey{k}
	}
	repo, err := trust.InitRepository(t.TempDir(), keys, nil)
	must(t, err)
	return repo, keys
}
