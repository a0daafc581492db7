package command_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/tillward/tillward/agent/internal/command"
)

// TestFinal: nothing is recorded behind the success of a verb that ends the
// membership, its failure is; and the success is found again after a restart.
func TestFinal(t *testing.T) {
	path := file(t)
	b := newBox(t, path)
	refuse := true
	b.verbs["leave"] = command.Verb{Final: true, Idempotent: true, Run: func(context.Context, map[string]string) ([]byte, error) {
		if refuse {
			return nil, errors.New("not yet")
		}
		return nil, nil
	}}
	b.start()
	b.do(2, order(t, plain("c1", 1, "identify")), order(t, plain("c2", 2, "leave")))
	if o, err := command.Succeeded(t.Context(), b.spool, "leave"); o != nil || err != nil {
		t.Errorf("refused: got %v, %v", o, err)
	}
	b.stop()
	refuse = false
	b.start()
	b.do(3, order(t, plain("c3", 3, "leave")))
	b.stop()
	_, audit := b.took()
	want := []string{"command.start info c1", "command.done info c1", "command.start info c2", "command.failed warn c2 error", "command.start info c3"}
	if !slices.Equal(audit, want) {
		t.Errorf("audit %q, want %q", audit, want)
	}
	b.stop = nil
	if err := b.spool.Close(); err != nil {
		t.Fatal(err)
	}
	again := newBox(t, path)
	o, err := command.Succeeded(t.Context(), again.spool, "leave")
	if err != nil || o == nil || o.ID != "c3" || o.Args["label"] != "Kasse 1" {
		t.Errorf("after a restart: got %+v, %v", o, err)
	}
	if o, err := command.Succeeded(t.Context(), again.spool, "reboot"); o != nil || err != nil {
		t.Errorf("another verb: got %v, %v", o, err)
	}
}
