package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// What operators do is in the trail because whoever does it for them writes the
// entry in the same transaction. This file adds what no transaction does: that
// something was asked for and was not done, and that somebody looked into the
// trails [PCI DSS 4.0, 10.2.1.3].

// readEvery is how long one entry stands for an operator who looks into the
// same trail again and again, as an open console does.
const readEvery = time.Hour

// maxLooks bounds what is remembered of who looked where.
const maxLooks = 10_000

// looks remembers who looked into which trail, and when.
type looks struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// fresh reports whether a look is worth an entry.
func (l *looks) fresh(what string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.last[what]; ok && now.Sub(at) < readEvery {
		return false
	}
	if l.last == nil || len(l.last) >= maxLooks {
		l.last = map[string]time.Time{}
	}
	l.last[what] = now
	return true
}

// aim is what a request is about: what its path names, or its operation.
func aim(ctx huma.Context) string {
	for _, name := range []string{"id", "name"} {
		if v := ctx.Param(name); v != "" {
			return cut(v, 64)
		}
	}
	return ctx.Operation().OperationID
}

// seen is set by a handler that has written itself why it did not do it.
type seen struct{ refusal bool }

type seenKey struct{}

// witness lets p make a request, and notes what came of it where nobody else does.
func (s *server) witness(ctx huma.Context, p fleet.Principal, next func(huma.Context)) {
	op, mark := ctx.Operation().OperationID, &seen{}
	ctx = huma.WithValue(ctx, seenKey{}, mark)
	next(ctx)
	status := ctx.Status()
	switch reads := ctx.Method() == http.MethodGet || ctx.Method() == http.MethodHead; {
	case reads && status < 400 && strings.Contains(op, "audit") && !strings.HasPrefix(op, "export-"): // those say so themselves
		about := aim(ctx)
		if about == op {
			about = "trails"
		}
		if s.looks.fresh(p.TokenID+" "+op+" "+about, time.Now()) {
			s.note(ctx.Context(), fleet.AuditEvent{Kind: "audit.read", Severity: "info", Actor: p.Name, Subject: about, Detail: map[string]string{"operation": op}})
		}
	case !reads && status >= 400 && !mark.refusal:
		ev := fleet.AuditEvent{Kind: "access.failed", Severity: "info", Actor: p.Name, Subject: aim(ctx), Detail: map[string]string{"operation": op, "status": strconv.Itoa(status)}}
		if status == http.StatusForbidden {
			ev.Kind, ev.Severity = "access.refused", "warn"
		}
		s.note(ctx.Context(), ev)
	}
}

// said marks the request behind ctx as one whose refusal is in the trail.
func said(ctx context.Context) {
	if m, ok := ctx.Value(seenKey{}).(*seen); ok {
		m.refusal = true
	}
}
