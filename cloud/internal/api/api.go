// Package api is the public HTTP API of the fleet service: JSON under /v1,
// Server-Sent Events for what is live, OpenAPI 3.1 that says all of it.
//
// It translates between HTTP and the domain and holds the one map from errors
// to status codes [RFC 9457]. It promises that nobody sees or moves what
// belongs to another tenant, that each operation asks for its role, and that
// refusals are audited. It decides nothing else.
//
// It exports more names than other rooms: structs that inputs and answers embed
// must be, or they would not be read and written.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Accounts knows who asks; cloud/internal/account fits.
type Accounts interface {
	Authenticate(r *http.Request) (fleet.Principal, error)
	SignIn(r *http.Request, token string) (*http.Cookie, fleet.Principal, error)
	SignOut(r *http.Request) (*http.Cookie, error)
	Issue(ctx context.Context, t fleet.TenantID, name string, role fleet.Role, life time.Duration, by string) (string, fleet.Token, error)
}

// Deps are the rooms behind the API.
type Deps struct {
	Tenant   fleet.TenantID // under which a failed sign-in is audited
	Store    Store
	Accounts Accounts
	Owners   Owners
	Exports  Exports
	Figures  Figures
	Health   func(ctx context.Context) ([]fleet.PartHealth, error) // of every part of the service
	Known    func(ctx context.Context, name string)                // tells the access log who asks
	Trails   Trails
	Send     func(ctx context.Context, r fleet.CommandRequest) (fleet.Command, error)
	Releases publisher
	Watch    func(ctx context.Context, t fleet.TenantID) <-chan fleet.Change
	Changed  func(c fleet.Change)
	Wake     func() // a rollout changed
	Preview  func(ctx context.Context, t fleet.TenantID, r fleet.ReleaseID, s fleet.Spec) (fleet.Preview, error)
	Why      func(ctx context.Context, t fleet.TenantID, device fleet.DeviceID) ([]fleet.Delay, error) // of rollouts that run
	Check    func(s fleet.Spec) error                                                                  // whether it can be carried out
	Hours    func(text string) error                                                                   // whether they can be read
	FourEyes bool                                                                                      // a rollout is approved by somebody else
	Version  string
	Log      *slog.Logger

	Challenge   func(device fleet.DeviceID) error // asks a connected device for fresh evidence
	Reappraise  func(model string)                // what counts for the boot of a model changed
	Disconnect  func(device fleet.DeviceID, why string)
	Authorities func() []fleet.Authority
	Rotate      func(ctx context.Context) error // signs with a new issuing certificate
	Retire      func(serial string) error       // believes an older one no more
}

// server holds the handlers.
type server struct {
	Deps
	api      huma.API
	progress costly[fleet.Progress]
	tallies  costly[tally]
	health   costly[map[string]fleet.Health]
	looks    looks
}

type ctxKey struct{}

// who returns the operator behind a request; the middleware has seen to it.
func who(ctx context.Context) fleet.Principal {
	p, _ := ctx.Value(ctxKey{}).(fleet.Principal)
	return p
}

const roleKey = "role"

// needs is the metadata that asks for a role.
func needs(r fleet.Role) map[string]any { return map[string]any{roleKey: r} }

// New returns the handler of everything under /v1.
func New(d Deps) http.Handler {
	mux := http.NewServeMux()
	cfg := huma.DefaultConfig("Tillward", d.Version)
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath = "/v1/openapi", "", "/v1/schemas"
	cfg.Info.Description = "The fleet service: devices and whose they are, commands, releases, rollouts and audit trails."
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token":   {Type: "http", Scheme: "bearer", Description: "an operator token, twt_..."},
		"session": {Type: "apiKey", In: "cookie", Name: "tw_session", Description: "the console's session; unsafe methods need the header X-Tillward: 1"},
	}
	cfg.Security = []map[string][]string{{"token": {}}, {"session": {}}}
	s := &server{Deps: d, api: humago.New(mux, cfg)}
	s.api.UseMiddleware(s.guard)
	s.access()
	s.devices()
	s.peripherals()
	s.commands()
	s.rollouts()
	s.sites()
	s.releases()
	s.trust()
	s.owners()
	s.exports()
	s.figures()
	s.search()
	s.archive()
	s.live()
	return secure(described(mux))
}

// described answers what no operation is registered for as the operations
// answer, too.
func described(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		a := answer{header: http.Header{}, status: http.StatusNotFound}
		mux.ServeHTTP(&a, r)
		detail := "nothing is served here; /v1/openapi.json lists what is"
		if allow := a.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
			detail = "use one of the methods " + allow
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(a.status)
		_ = json.NewEncoder(w).Encode(huma.ErrorModel{Title: http.StatusText(a.status), Status: a.status, Detail: detail})
	})
}

// answer keeps status and header of what the mux would say, and drops its text.
type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }

// guard lets a request through when its operator may make it.
func (s *server) guard(ctx huma.Context, next func(huma.Context)) {
	need, _ := ctx.Operation().Metadata[roleKey].(fleet.Role)
	if need == "" { // sign-in and sign-out
		next(ctx)
		return
	}
	r, _ := humago.Unwrap(ctx)
	p, err := s.Accounts.Authenticate(r)
	if err == nil && s.Known != nil {
		s.Known(ctx.Context(), p.Name)
	}
	refused := func(by string, detail map[string]string) {
		detail["operation"] = ctx.Operation().OperationID
		s.note(context.WithValue(ctx.Context(), ctxKey{}, p), fleet.AuditEvent{Kind: "access.refused", Severity: "warn", Actor: by, Subject: aim(ctx), Detail: detail})
	}
	switch {
	case err != nil:
		// Who shows nothing is not worth an entry; who has been shut out has had his.
		if r.Header.Get("Authorization") != "" && errors.Is(err, fleet.ErrUnauthenticated) {
			refused(r.RemoteAddr, map[string]string{"reason": "unknown, expired or revoked token"})
		}
		s.refuse(ctx, err)
		return
	case p.Cookie && !safe(r):
		refused(p.Name, map[string]string{"reason": "no X-Tillward header"})
		s.refuse(ctx, errForged)
		return
	case !p.Role.Covers(need):
		refused(p.Name, map[string]string{"role": string(p.Role), "needs": string(need)})
		_ = huma.WriteErr(s.api, ctx, http.StatusForbidden, "this needs the role "+string(need)+"; your token has "+string(p.Role))
		return
	}
	s.witness(huma.WithValue(ctx, ctxKey{}, p), p, next)
}

// errForged answers a browser that another site may have sent here.
var errForged = fmt.Errorf("a request with the session cookie needs the header X-Tillward: 1: %w", fleet.ErrForbidden)

// safe reports whether r changes nothing, or cannot have been made by another
// site's page: such a page may not set a header of its own.
func safe(r *http.Request) bool {
	return r.Method == http.MethodGet || r.Method == http.MethodHead || r.Header.Get("X-Tillward") == "1"
}

func (s *server) refuse(ctx huma.Context, err error) {
	switch {
	case errors.Is(err, fleet.ErrUnauthenticated):
		ctx.SetHeader("WWW-Authenticate", `Bearer realm="tillward"`)
	case errors.Is(err, fleet.ErrTooMany):
		ctx.SetHeader("Retry-After", "300")
	}
	e := s.fault(ctx.Context(), err)
	if m, ok := errors.AsType[*huma.ErrorModel](e); ok {
		_ = huma.WriteErr(s.api, ctx, m.Status, m.Detail)
		return
	}
	_ = huma.WriteErr(s.api, ctx, http.StatusInternalServerError, "internal error")
}

// note writes to the service's audit trail; a trail that cannot be written is
// logged, the refusal stands all the same.
func (s *server) note(ctx context.Context, ev fleet.AuditEvent) {
	ev.At = time.Now()
	if ev.Outcome = fleet.OutcomeOf(ev.Kind); ev.Outcome == fleet.Refused {
		said(ctx)
	}
	if ev.Tenant = who(ctx).Tenant; ev.Tenant == "" {
		ev.Tenant = s.Tenant
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second) // hanging up does not keep it out of the trail
	defer cancel()
	if err := s.Store.Audit(ctx, ev); err != nil {
		s.Log.Error("audit", slog.String("kind", ev.Kind), slog.Any("err", err))
	}
}

// fault is the one map from errors to HTTP. What the operator reads says what
// was wrong; what is our own fault goes to the log.
func (s *server) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []struct {
		err    error
		status int
	}{
		{fleet.ErrUnauthenticated, http.StatusUnauthorized},
		{fleet.ErrTooMany, http.StatusTooManyRequests},
		{fleet.ErrNotFound, http.StatusNotFound},
		{fleet.ErrInvalid, http.StatusUnprocessableEntity},
		{fleet.ErrExists, http.StatusConflict},
		{fleet.ErrConflict, http.StatusConflict},
		{fleet.ErrForbidden, http.StatusForbidden},
		{fleet.ErrExpired, http.StatusGone},
	} {
		if errors.Is(err, k.err) {
			return huma.NewError(k.status, err.Error())
		}
	}
	if ctx.Err() == nil {
		s.Log.Error("request", slog.Any("err", err))
	}
	return huma.NewError(http.StatusInternalServerError, "the service could not do this; its log says why")
}

// streams are paths that take more than a form; each has a limit of its own.
var streams = []string{"/v1/releases", "/v1/manifests", "/v1/orders", "/v1/vouchers"}

// secure sets what browsers need to hear.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		if r.Body != nil && !slices.Contains(streams, r.URL.Path) {
			r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
		}
		next.ServeHTTP(w, r)
	})
}

// list is one page.
type list[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next" doc:"give it as after to read on; empty at the end"`
}

// Paged is the query of a page. It is exported, as every struct that inputs
// embed, because huma passes over embedded fields that are not.
type Paged struct {
	After string `query:"after" doc:"the next of the page before"`
	Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"0: 100"`
}

func (p Paged) page() fleet.Page { return fleet.Page{After: p.After, Limit: p.Limit} }

// body wraps a JSON answer.
type body[T any] struct{ Body T }

// pageOf converts a page of the store.
func pageOf[T, V any](items []T, next string, view func(T) V) *body[list[V]] {
	out := list[V]{Items: make([]V, 0, len(items)), Next: next}
	for _, i := range items {
		out.Items = append(out.Items, view(i))
	}
	return &body[list[V]]{out}
}

// when is a time in JSON; null when it never was.
func when(t time.Time) *time.Time {
	if t.IsZero() || t.Unix() <= 0 {
		return nil
	}
	u := t.UTC()
	return &u
}
