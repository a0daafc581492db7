package api

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

func newID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:16]) }

func cut(s string, n int) string { return s[:min(len(s), n)] }

type session struct {
	Name   string `json:"name"`
	Role   string `json:"role"`
	Tenant string `json:"tenant"`
}

func viewSession(p fleet.Principal) session { return session{p.Name, string(p.Role), string(p.Tenant)} }

// raw hands a handler the request behind it.
type raw struct{ r *http.Request }

// Resolve implements huma.Resolver.
func (x *raw) Resolve(ctx huma.Context) []error {
	x.r, _ = humago.Unwrap(ctx)
	return nil
}

type signedIn struct {
	SetCookie http.Cookie `header:"Set-Cookie"`
	Body      session
}

type signedOut struct {
	SetCookie http.Cookie `header:"Set-Cookie"`
}

func (s *server) access() {
	huma.Register(s.api, huma.Operation{
		OperationID: "sign-in", Method: http.MethodPost, Path: "/v1/session", Summary: "Trade a token for the console's session", Security: []map[string][]string{},
	}, func(ctx context.Context, in *struct {
		raw
		Body struct {
			Token string `json:"token" maxLength:"256"`
		}
	},
	) (*signedIn, error) {
		c, p, err := s.Accounts.SignIn(in.r, in.Body.Token)
		if errors.Is(err, fleet.ErrUnauthenticated) {
			s.note(ctx, fleet.AuditEvent{Kind: "access.sign-in-refused", Severity: "warn", Actor: in.r.RemoteAddr, Subject: "console", Detail: map[string]string{"reason": "unknown, expired or revoked token"}})
		}
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		if s.Known != nil {
			s.Known(ctx, p.Name)
		}
		s.note(context.WithValue(ctx, ctxKey{}, p), fleet.AuditEvent{Kind: "access.signed-in", Severity: "info", Actor: p.Name, Subject: "console"})
		return &signedIn{*c, viewSession(p)}, nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "get-session", Method: http.MethodGet, Path: "/v1/session", Summary: "Who am I", Metadata: needs(fleet.Viewer),
	}, func(ctx context.Context, _ *struct{}) (*body[session], error) {
		return &body[session]{viewSession(who(ctx))}, nil
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "sign-out", Method: http.MethodDelete, Path: "/v1/session", Summary: "End the session", DefaultStatus: http.StatusNoContent,
	}, func(ctx context.Context, in *raw) (*signedOut, error) {
		if !safe(in.r) {
			return nil, s.fault(ctx, errForged)
		}
		p, known := s.Accounts.Authenticate(in.r)
		c, err := s.Accounts.SignOut(in.r)
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		if known == nil {
			s.note(context.WithValue(ctx, ctxKey{}, p), fleet.AuditEvent{Kind: "access.signed-out", Severity: "info", Actor: p.Name, Subject: "console"})
		}
		return &signedOut{*c}, nil
	})
	s.tokens()
}

type token struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Role      string     `json:"role" enum:"viewer,operator,admin"`
	CreatedAt *time.Time `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at"`
	RevokedAt *time.Time `json:"revoked_at"`
	Token     string     `json:"token,omitempty" doc:"the token itself; shown once, when it is made"`
}

func viewToken(t fleet.Token) token {
	return token{t.ID, t.Name, string(t.Role), when(t.CreatedAt), when(t.ExpiresAt), when(t.RevokedAt), ""}
}

func (s *server) tokens() {
	huma.Register(s.api, huma.Operation{
		OperationID: "list-tokens", Method: http.MethodGet, Path: "/v1/tokens", Summary: "List operator tokens", Metadata: needs(fleet.Admin),
	}, func(ctx context.Context, _ *struct{}) (*body[list[token]], error) {
		items, err := s.Store.Tokens(ctx, who(ctx).Tenant)
		return pageOf(items, "", viewToken), s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "create-token", Method: http.MethodPost, Path: "/v1/tokens", Summary: "Make an operator token", Metadata: needs(fleet.Admin),
	}, func(ctx context.Context, in *struct {
		Body struct {
			Name      string `json:"name" minLength:"1" maxLength:"64"`
			Role      string `json:"role" enum:"viewer,operator,admin"`
			ExpiresIn int    `json:"expires_in_s,omitempty" minimum:"0" maximum:"315360000" doc:"seconds; 0: never"`
		}
	},
	) (*body[token], error) {
		p := who(ctx)
		plain, t, err := s.Accounts.Issue(ctx, p.Tenant, in.Body.Name, fleet.Role(in.Body.Role), time.Duration(in.Body.ExpiresIn)*time.Second, p.Name)
		v := viewToken(t)
		v.Token = plain
		return &body[token]{v}, s.fault(ctx, err)
	})
	huma.Register(s.api, huma.Operation{
		OperationID: "revoke-token", Method: http.MethodDelete, Path: "/v1/tokens/{id}", Summary: "Revoke an operator token", Metadata: needs(fleet.Admin),
		DefaultStatus: http.StatusNoContent,
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"64"`
	},
	) (*struct{}, error) {
		p := who(ctx)
		ev := fleet.AuditEvent{At: time.Now(), Kind: "token.revoked", Severity: "info", Actor: p.Name, Subject: in.ID}
		return nil, s.fault(ctx, s.Store.RevokeToken(ctx, p.Tenant, in.ID, ev))
	})
}

// change, resync and ping are the events of /v1/live.
type (
	change struct {
		Kind string `json:"kind" enum:"device,command,rollout,release,audit,event"`
		ID   string `json:"id"`
	}
	resync struct{}
	ping   struct {
		At time.Time `json:"at"`
	}
)

func (s *server) live() {
	sse.Register(s.api, huma.Operation{
		OperationID: "live", Method: http.MethodGet, Path: "/v1/live", Summary: "What changes, as it changes", Metadata: needs(fleet.Viewer),
		Description: "change names a thing to fetch again; resync means that changes were lost: fetch everything; ping comes every 15 seconds.",
	}, map[string]any{"change": change{}, "resync": resync{}, "ping": ping{}}, func(ctx context.Context, in *raw, send sse.Sender) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		changes := s.Watch(ctx, who(ctx).Tenant)
		beat := time.NewTicker(15 * time.Second)
		defer beat.Stop()
		if send.Data(ping{time.Now().UTC()}) != nil {
			return
		}
		for {
			var err error
			select {
			case <-ctx.Done():
				return
			case now := <-beat.C:
				if _, err := s.Accounts.Authenticate(in.r); err != nil {
					return // revoked or expired meanwhile
				}
				err = send.Data(ping{now.UTC()})
			case c, ok := <-changes:
				switch {
				case !ok:
					return
				case c.Kind == fleet.Resync:
					err = send.Data(resync{})
				default:
					err = send.Data(change{string(c.Kind), c.ID})
				}
			}
			if err != nil {
				return
			}
		}
	})
}
