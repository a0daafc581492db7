package figures_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/cloud/internal/figures"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

// TestWatch: since when a part is how it is, and a part that does not answer
// holds up nobody.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var state atomic.Value
		state.Store(fleet.PartOK)
		hang := make(chan struct{})
		said := func(part, state string) []fleet.PartHealth {
			return []fleet.PartHealth{{Part: part, State: state, What: "w"}}
		}
		var asked atomic.Int32
		w := figures.NewWatch(quiet,
			figures.Check{Part: "stuck", Look: func(context.Context) []fleet.PartHealth { asked.Add(1); <-hang; return said("stuck", fleet.PartOK) }},
			figures.Check{Part: "store", Look: func(context.Context) []fleet.PartHealth { return said("store", state.Load().(string)) }},
			figures.Check{Part: "mad", Look: func(context.Context) []fleet.PartHealth { panic("oops") }},
		)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		began := time.Now()
		look := func() map[string]fleet.PartHealth {
			all, err := w.Parts(t.Context())
			if err != nil || len(all) != 3 || all[0].Part != "stuck" {
				t.Fatalf("got %+v, %v", all, err)
			}
			by := map[string]fleet.PartHealth{}
			for _, p := range all {
				by[p.Part] = p
			}
			return by
		}
		first := look() // waits for the first round, which ends without the one that is stuck
		if first["stuck"].State != fleet.PartFailing || first["stuck"].Todo == "" || first["mad"].State != fleet.PartFailing || first["store"].State != fleet.PartOK {
			t.Errorf("got %+v", first)
		}
		time.Sleep(30 * time.Second)
		state.Store(fleet.PartDegraded)
		time.Sleep(15 * time.Second)
		changed := look()["store"]
		if changed.State != fleet.PartDegraded || changed.Since.Sub(began) < 30*time.Second {
			t.Errorf("got %+v", changed)
		}
		time.Sleep(time.Minute)
		if later := look()["store"]; !later.Since.Equal(changed.Since) {
			t.Errorf("it is so since %s, want %s", later.Since, changed.Since)
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("who does not answer was asked %d times, want once", n)
		}
		close(hang)
		time.Sleep(20 * time.Second)
		if p := look()["stuck"]; p.State != fleet.PartOK {
			t.Errorf("it answers again: got %+v", p)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		gone, end := context.WithCancel(t.Context())
		end()
		if _, err := figures.NewWatch(quiet).Parts(gone); err == nil {
			t.Error("before the first look there is nothing to tell")
		}
	})
}
