// Package live tells whoever watches that something changed: a fan-out in this
// process, from the rooms that change things to the consoles that show them.
//
// A Change says what, never how: the reader fetches what it shows. Nothing is
// kept; a reader that is too slow is told to fetch everything again.
package live

import (
	"context"
	"sync"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// backlog is how many changes a reader may be behind.
const backlog = 256

// Hub joins publishers and readers. The zero value is ready.
type Hub struct {
	mu      sync.Mutex
	readers map[*reader]struct{}
}

type reader struct {
	tenant fleet.TenantID
	ch     chan fleet.Change
}

// Publish tells every reader of the tenant, or of every tenant when the change
// belongs to none; it never waits.
func (h *Hub) Publish(c fleet.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		if r.tenant == c.Tenant || c.Tenant == "" {
			r.offer(c)
		}
	}
}

// offer replaces the whole backlog of a reader that is too slow by one resync.
func (r *reader) offer(c fleet.Change) {
	select {
	case r.ch <- c:
		return
	default:
	}
	for len(r.ch) > 0 {
		select {
		case <-r.ch:
		default: // the reader was faster
		}
	}
	r.ch <- fleet.Change{Kind: fleet.Resync, Tenant: r.tenant} // only offer sends, so there is room
}

// Subscribe returns the changes of a tenant until ctx ends, when the channel
// is closed.
func (h *Hub) Subscribe(ctx context.Context, tenant fleet.TenantID) <-chan fleet.Change {
	r := &reader{tenant: tenant, ch: make(chan fleet.Change, backlog)}
	h.mu.Lock()
	if h.readers == nil {
		h.readers = make(map[*reader]struct{})
	}
	h.readers[r] = struct{}{}
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.readers, r)
		close(r.ch)
	})
	return r.ch
}
