package api_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/cloud/internal/api"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

func resign[T metadata.Roles](t *testing.T, m *metadata.Metadata[T], key ed25519.PrivateKey) {
	t.Helper()
	signer, err := signature.LoadSigner(key, crypto.Hash(0))
	must(t, err)
	m.ClearSignatures()
	_, err = m.Sign(signer)
	must(t, err)
}

// stream reads Server-Sent Events, each as its name and data.
func stream(t *testing.T, s *site, token string) (next func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v1/live", nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.Client().Do(req)
	must(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || ct != "text/event-stream" {
		t.Fatalf("got %s as %s", resp.Status, ct)
	}
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		var name, data string
		for lines.Scan() {
			switch k, v, _ := strings.Cut(lines.Text(), ": "); {
			case k == "event":
				name = v
			case k == "data":
				data = v
			case lines.Text() == "" && data != "":
				return name + " " + data
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return ""
	}
}

func TestLive(t *testing.T) {
	s := newSite(t)
	mine, theirs := stream(t, s, s.token[fleet.Viewer]), stream(t, s, s.other)
	for _, next := range []func() string{mine, theirs} { // the first ping says that the subscription is there
		if got := next(); !strings.HasPrefix(got, "ping ") {
			t.Fatalf("got %q first, want a ping", got)
		}
	}
	into[object](t, s.as(t, fleet.Operator, "PATCH", "/v1/devices/d1", object{"label": "x"}))
	if got := mine(); got != `change {"kind":"device","id":"d1"}` {
		t.Errorf("got %q", got)
	}
	cmds, _ := items(t, s.as(t, fleet.Operator, "POST", "/v1/commands", object{"device": "d1", "verb": "identify"}))
	if got := mine(); got != `change {"kind":"command","id":"`+cmds[0]["id"].(string)+`"}` {
		t.Errorf("got %q", got)
	}
	s.hub.Publish(fleet.Change{Kind: fleet.Resync, Tenant: "main"})
	if got := mine(); got != "resync {}" {
		t.Errorf("got %q", got)
	}
	s.hub.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: "x1", Tenant: "other"})
	if got := theirs(); got != `change {"kind":"device","id":"x1"}` {
		t.Errorf("the other tenant got %q, want only what is its own", got)
	}
}

// door lets whoever comes in until it is shut.
type door struct {
	api.Accounts
	mu   sync.Mutex
	shut bool
}

func (d *door) Authenticate(*http.Request) (fleet.Principal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return fleet.Principal{}, fleet.ErrUnauthenticated
	}
	return fleet.Principal{Name: "anna", Tenant: "main", Role: fleet.Viewer}, nil
}

// TestLivePings shows a ping every 15 seconds, and that a stream ends when its
// operator may not look any more.
func TestLivePings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &door{}
		h := api.New(api.Deps{Accounts: d, Log: quiet, Watch: func(context.Context, fleet.TenantID) <-chan fleet.Change { return nil }})
		rec := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/live", nil))
		}()
		<-time.After(31 * time.Second) // of the bubble's clock
		synctest.Wait()
		if n := strings.Count(rec.Body.String(), "event: ping"); n != 3 {
			t.Errorf("got %d pings in 31 s, want 3:\n%s", n, rec.Body)
		}
		d.mu.Lock()
		d.shut = true
		d.mu.Unlock()
		at := time.Now()
		<-done
		if wait := time.Since(at); wait > 15*time.Second {
			t.Errorf("the stream went on for %s", wait)
		}
	})
}

func TestOpenAPI(t *testing.T) {
	s := newSite(t)
	type doc struct {
		OpenAPI string
		Info    struct{ Title, Version string }
		Paths   map[string]map[string]any
	}
	d := into[doc](t, s.do(t, "", "GET", "/v1/openapi.json", nil))
	if !strings.HasPrefix(d.OpenAPI, "3.1.") || d.Info.Title != "Tillward" || d.Info.Version != "1.2.3" {
		t.Errorf("got OpenAPI %q of %+v", d.OpenAPI, d.Info)
	}
	for _, op := range []string{"post /v1/session", "get /v1/devices/{id}", "patch /v1/devices/{id}", "post /v1/commands", "post /v1/releases", "get /v1/live", "delete /v1/tokens/{id}"} {
		method, path, _ := strings.Cut(op, " ")
		if d.Paths[path][method] == nil {
			t.Errorf("%s is not in the document", op)
		}
	}
	y := s.do(t, "", "GET", "/v1/openapi.yaml", nil)
	if text := string(y.body); y.status != http.StatusOK || !strings.Contains(text, "\nopenapi: 3.1.") || !strings.Contains(text, "  /v1/devices/{id}:\n") {
		t.Errorf("as YAML: got %d and %.300s", y.status, text)
	}
}

// TestNowhere asks for what is not served: the answer is a problem like any other.
func TestNowhere(t *testing.T) {
	s := newSite(t)
	problem(t, s.as(t, fleet.Admin, "GET", "/v1/nowhere", nil), http.StatusNotFound)
	r := s.as(t, fleet.Admin, "DELETE", "/v1/devices/d1", nil)
	if problem(t, r, http.StatusMethodNotAllowed); !strings.Contains(r.header.Get("Allow"), "PATCH") {
		t.Errorf("Allow is %q, want PATCH in it", r.header.Get("Allow"))
	}
	h := s.as(t, fleet.Viewer, "GET", "/v1/devices", nil).header
	if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", h)
	}
	big, err := json.Marshal(object{"label": strings.Repeat("x", 2<<20)})
	must(t, err)
	problem(t, s.as(t, fleet.Operator, "PATCH", "/v1/devices/d1", json.RawMessage(big)), http.StatusRequestEntityTooLarge)
}
