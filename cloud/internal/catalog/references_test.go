package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/trust"
)

// reference is a signed document for a model without measurements, which is
// enough of one here.
func reference(model, release string) boot.Reference {
	return boot.Reference{Version: 1, Model: model, Release: release}
}

// refer adds b as the target path.
func (w *world) refer(t *testing.T, path string, b []byte, custom trust.Custom) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "reference.json")
	must(t, os.WriteFile(file, b, 0o600))
	must(t, w.repo.Add([]trust.NewTarget{{Path: path, File: file, Custom: custom}}, w.keys))
}

func TestReferencesComeWithTheRepository(t *testing.T) {
	w := newWorld(t)
	if got, err := w.References(t.Context()); err != nil || got != nil {
		t.Errorf("before anything was published: got %+v, %v", got, err)
	}
	if rs, err := w.publish(t); err != nil || len(rs) != 1 {
		t.Fatalf("got %+v, %v", rs, err)
	}
	if got, err := w.References(t.Context()); err != nil || got != nil {
		t.Errorf("none published: got %+v, %v", got, err)
	}
	for _, r := range []boot.Reference{reference("POS 500", "agent/1.0.0"), reference("POS 500", "os/7"), reference("POS 700", "os/7")} {
		w.refer(t, boot.TargetPath(r.Model, r.Release), r.Bytes(), trust.Custom{Class: "boot", Version: r.Release, Model: r.Model})
	}
	// Reference values are not a release that a rollout could point at.
	if rs, err := w.publish(t); err != nil || len(rs) != 1 || rs[0].ID != "agent/1.0.0" || len(rs[0].Targets) != 1 {
		t.Fatalf("got %+v, %v", rs, err)
	}
	got, err := w.References(t.Context())
	if err != nil || len(got) != 3 {
		t.Fatalf("got %+v, %v", got, err)
	}
	want := reference("POS 500", "agent/1.0.0")
	if g := got[0]; g.Model != want.Model || g.Release != "agent/1.0.0" || !bytes.Equal(g.Body, want.Bytes()) || g.PublishedAt.IsZero() {
		t.Errorf("got %+v, want %+v", g, want)
	}

	// What rots is not judged by.
	names, err := filepath.Glob(filepath.Join(w.dir, "targets", "boot", "POS_500", "*.os_7.json"))
	if err != nil || len(names) != 1 {
		t.Fatalf("targets: %v, %v", names, err)
	}
	b, err := os.ReadFile(names[0])
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(names[0], b, 0o600))
	if got, err := w.References(t.Context()); !errors.Is(err, trust.ErrMismatch) || got != nil {
		t.Errorf("rotten: got %+v, %v", got, err)
	}
}

// What does not fit what the fleet was judged by is refused before devices or the next start of the service see it.
func TestReferencesThatDoNotFit(t *testing.T) {
	w := newWorld(t)
	r := reference("POS 500", "os/7")
	w.refer(t, boot.TargetPath(r.Model, r.Release), r.Bytes(), trust.Custom{Class: "boot", Version: r.Release, Model: r.Model})
	var asked []fleet.BootReference
	w.Fits = func(_ context.Context, refs []fleet.BootReference) error { asked = refs; return fleet.ErrConflict }
	if rs, err := w.publish(t); !errors.Is(err, fleet.ErrConflict) || rs != nil {
		t.Errorf("got %+v and %v", rs, err)
	}
	if len(asked) != 1 || asked[0].Release != "os/7" || !bytes.Equal(asked[0].Body, r.Bytes()) {
		t.Errorf("asked about %+v", asked)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "metadata", "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	w.Fits = nil
	if _, err := w.publish(t); err != nil {
		t.Error(err)
	}
}

// A signature over nonsense makes no sense of it.
func TestWrongReferencesAreRefused(t *testing.T) {
	r := reference("POS 500", "os/7")
	path, custom := boot.TargetPath(r.Model, r.Release), trust.Custom{Class: "boot", Version: r.Release, Model: r.Model}
	for name, add := range map[string]func(w *world){
		"not a reference":    func(w *world) { w.refer(t, path, []byte("{}"), custom) },
		"another form":       func(w *world) { w.refer(t, path, bytes.TrimSpace(r.Bytes()), custom) },
		"too large":          func(w *world) { w.refer(t, path, make([]byte, boot.MaxReference+1), custom) },
		"in another's place": func(w *world) { w.refer(t, "boot/POS_700/os_7.json", r.Bytes(), custom) },
		"outside of boot":    func(w *world) { w.refer(t, "os/7/reference.json", r.Bytes(), custom) },
		"of another model": func(w *world) {
			w.refer(t, path, r.Bytes(), trust.Custom{Class: "boot", Version: r.Release, Model: "POS 700"})
		},
		"of another release": func(w *world) {
			w.refer(t, path, r.Bytes(), trust.Custom{Class: "boot", Version: "os/8", Model: r.Model})
		},
		"program in its folder": func(w *world) {
			w.refer(t, "boot/POS_500/bin", []byte("x"), trust.Custom{Class: "agent", Version: "1"})
		},
	} {
		w := newWorld(t)
		add(w)
		if rs, err := w.publish(t); !errors.Is(err, fleet.ErrInvalid) || rs != nil {
			t.Errorf("%s: got %+v and %v, want it refused", name, rs, err)
		}
		if left, err := filepath.Glob(filepath.Join(w.dir, "metadata", "*")); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v, %v", name, left, err)
		}
	}
}
