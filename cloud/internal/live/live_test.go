package live_test

import (
	"context"
	"testing"

	"github.com/tillward/tillward/cloud/internal/live"
)

func TestReadersSeeOnlyTheirTenant(t *testing.T) {
	var h live.Hub
	ctx, cancel := context.WithCancel(t.Context())
	ours, theirs := h.Subscribe(ctx, "a"), h.Subscribe(ctx, "b")
	h.Publish(live.Change{Kind: live.Device, ID: "1", Tenant: "a"})
	if c := <-ours; c.ID != "1" {
		t.Errorf("got %+v", c)
	}
	cancel()
	if c, ok := <-theirs; ok {
		t.Errorf("another tenant's reader got %+v", c)
	}
}

func TestSlowReaderIsToldToResync(t *testing.T) {
	var h live.Hub
	ch := h.Subscribe(t.Context(), "a")
	for range 300 {
		h.Publish(live.Change{Kind: live.Device, Tenant: "a"})
	}
	if c := <-ch; c.Kind != live.Resync {
		t.Errorf("got %+v after changes were lost, want resync", c)
	}
}
