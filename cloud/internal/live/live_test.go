package live_test

import (
	"context"
	"sync"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/live"
)

func TestReadersSeeOnlyTheirTenant(t *testing.T) {
	var h live.Hub
	ctx, cancel := context.WithCancel(t.Context())
	ours, theirs := h.Subscribe(ctx, "a"), h.Subscribe(ctx, "b")
	h.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: "1", Tenant: "a"})
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
		h.Publish(fleet.Change{Kind: fleet.ChangedDevice, Tenant: "a"})
	}
	if c := <-ch; c.Kind != fleet.Resync {
		t.Errorf("got %+v after changes were lost, want resync", c)
	}
}

func TestWhatBelongsToNobodyIsForAll(t *testing.T) {
	var h live.Hub
	a, b := h.Subscribe(t.Context(), "a"), h.Subscribe(t.Context(), "b")
	h.Publish(fleet.Change{Kind: fleet.ChangedRelease, ID: "agent/1.0.0"})
	for _, ch := range []<-chan fleet.Change{a, b} {
		if c := <-ch; c.ID != "agent/1.0.0" {
			t.Errorf("got %+v", c)
		}
	}
}

// TestNobodyWaits publishes to readers that come, go and never read: the publisher does not wait, and a
// reader that has gone finds its channel closed.
func TestNobodyWaits(t *testing.T) {
	var h live.Hub
	var wg sync.WaitGroup
	h.Subscribe(t.Context(), "a") // never reads
	for range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			ch := h.Subscribe(ctx, "a")
			cancel()
			for range ch { // until it is closed
			}
		})
		wg.Go(func() {
			for range 2000 {
				h.Publish(fleet.Change{Kind: fleet.ChangedDevice, Tenant: "a"})
			}
		})
	}
	wg.Wait()
}

// TestResyncComesLast: what is published behind the resync still comes.
func TestResyncComesLast(t *testing.T) {
	var h live.Hub
	ch := h.Subscribe(t.Context(), "a")
	for range 257 {
		h.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: "old", Tenant: "a"})
	}
	h.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: "new", Tenant: "a"})
	if c := <-ch; c.Kind != fleet.Resync {
		t.Errorf("got %+v, want resync", c)
	}
	if c := <-ch; c.ID != "new" {
		t.Errorf("got %+v, want what came behind", c)
	}
}
