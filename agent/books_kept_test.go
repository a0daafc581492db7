package agent_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/agent"
	"github.com/tillward/tillward/agent/internal/spool"
	"github.com/tillward/tillward/cloud/wire"
)

// TestKept: whoever looks on is told of a message before it is stored and after
// it, and after it only of what is.
func TestKept(t *testing.T) {
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool.db"), spool.Options{MaxBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var told []string
	b := agent.Watched(s, func(channel wire.Channel, payload []byte, how agent.Keeping) {
		told = append(told, fmt.Sprintf("%s %s %s", channel, payload, how))
	})
	of := func(text string, err error) func() ([]byte, error) {
		return func() ([]byte, error) { return []byte(text), err }
	}
	bad := errors.New("no")
	for name, tt := range map[string]struct {
		put  func() error
		want []string
		err  error
	}{
		"compose": {
			func() error { return b.Compose(t.Context(), spool.Telemetry, "telemetry", of("a", nil), nil) },
			[]string{"telemetry a begun", "telemetry a done"},
			nil,
		},
		"save": {
			func() error { return b.Save(t.Context(), "key", nil, "result", of("b", nil)) },
			[]string{"result b begun", "result b done"},
			nil,
		},
		"a value alone": {func() error { return b.Save(t.Context(), "key", nil, "", nil) }, nil, nil},
		"append": {
			func() error {
				return b.Append(t.Context(), "head", "audit", func([]byte) (p, h []byte, err error) { return []byte("c"), []byte("1"), nil })
			},
			[]string{"audit c begun", "audit c done"},
			nil,
		},
		"not made": {func() error { return b.Compose(t.Context(), spool.Audit, "audit", of("d", bad), nil) }, nil, bad},
	} {
		told = nil
		if err := tt.put(); !errors.Is(err, tt.err) || !slices.Equal(told, tt.want) {
			t.Errorf("%s: got %q, %v; want %q, %v", name, told, err, tt.want, tt.err)
		}
	}

	told = nil
	for err = nil; err == nil; { // until the quota is used up: that one was made, and is not kept
		told = nil
		err = b.Compose(t.Context(), spool.Audit, "audit", of(strings.Repeat("x", 4<<10), nil), nil)
	}
	if !errors.Is(err, spool.ErrFull) || len(told) == 0 || !strings.HasSuffix(told[len(told)-1], "refused") {
		t.Errorf("full: told of %d, %v; want that it was refused", len(told), err)
	}
}
