package catalog_test

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

var orderKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func signOrder(kind string, m wire.Message) ([]byte, error) {
	b, err := wire.Encode(m)
	if err != nil {
		return nil, err
	}
	id, sig, err := trust.NewOrderSigner(orderKey).SignOrder(kind, b)
	if err != nil {
		return nil, err
	}
	return wire.Encode(&wire.Order{Kind: kind, Payload: b, KeyID: id, Signature: sig})
}

// export writes a medium to a folder, as an operator unpacks it.
func (w *world) export(t *testing.T, m fleet.Medium) (string, time.Time, []string) {
	t.Helper()
	ends, write, err := w.Export(t.Context(), m, signOrder)
	must(t, err)
	var b bytes.Buffer
	must(t, write(&b))
	dir := t.TempDir()
	var names []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return filepath.Join(dir, "tillward-update"), ends, names
		}
		must(t, err)
		names = append(names, h.Name)
		to := filepath.Join(dir, h.Name)
		must(t, os.MkdirAll(filepath.Dir(to), 0o700))
		c, err := io.ReadAll(tr)
		must(t, err)
		must(t, os.WriteFile(to, c, 0o600))
	}
}

// A medium that the service wrote is one that a device takes, for as long as it
// says, and that is worth nothing over the network.
func TestMediumReachesTheDevice(t *testing.T) {
	w := newOnline(t)
	w.release(t, "agent/1.1.0", "1.1.0")
	tree := filepath.Join(t.TempDir(), "tree")
	must(t, os.WriteFile(tree, []byte("tree"), 0o600))
	must(t, w.repo.Add([]trust.NewTarget{{Path: "ops/acme/till/3.0.0/tree.tar", File: tree, Custom: trust.Custom{Class: "app", Version: "3.0.0"}}}, w.keys))
	_, err := w.publish(t)
	must(t, err)
	dev := w.device(t)
	sees(t, dev, "agent/1.0.0/bin")
	before := files(t, w.dir)

	m := fleet.Medium{ID: "md_1", Tenant: "acme", By: "ann", Releases: []fleet.ReleaseID{"ops/acme/till/3.0.0", "agent/1.1.0"}, Life: 60 * 24 * time.Hour}
	dir, ends, names := w.export(t, m)
	if d := time.Until(ends); d < 60*24*time.Hour-time.Hour || d > 60*24*time.Hour {
		t.Errorf("ends in %s, want sixty days", d)
	}
	if names[len(names)-1] != "tillward-update/order.cbor" || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "agent/1.0.0") }) {
		t.Errorf("on the medium: %v; want what was asked for, and the order last", names)
	}
	if files(t, w.dir) != before {
		t.Error("the export changed what is in place")
	}
	medium := dev.Medium(dir)
	for _, p := range []string{"ops/acme/till/3.0.0/tree.tar", "agent/1.1.0/bin"} {
		x, err := medium.Target(t.Context(), p)
		must(t, err)
		must(t, x.CheckFile(filepath.Join(dir, "targets", x.File())))
	}

	raw, err := os.ReadFile(filepath.Join(dir, "order.cbor"))
	must(t, err)
	o, err := wire.Decode[wire.Order](raw)
	must(t, err)
	id, pub := trust.NewOrderSigner(orderKey).Public()
	must(t, trust.Keyring{id: pub}.VerifyOrder(wire.OrderMedium, o.Payload, o.KeyID, o.Signature))
	order, err := wire.Decode[wire.MediumOrder](o.Payload)
	must(t, err)
	if order.ID != "md_1" || order.Tenant != "acme" || order.NotAfter != ends.UnixMilli() || len(order.Releases) != 2 || order.Releases[0].Class != "app" || order.Releases[1].Target != "agent/1.1.0/bin" {
		t.Errorf("order: %+v", order)
	}

	// A mirror that got hold of it cannot freeze a device with its long life.
	const base = "https://mirror.invalid/metadata"
	dev.URL, dev.Fetch = base, trust.FolderFetch(base, filepath.Join(dir, "metadata"))
	if err := dev.Refresh(t.Context()); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("over the network: got %v, want ErrSignature", err)
	}
}

// A medium ends with the first metadata that it needs.
func TestMediumEndsWithItsMetadata(t *testing.T) {
	w := newWorld(t) // whose root does not know us: the timestamp is as it is
	_, err := w.publish(t)
	must(t, err)
	dir, ends, _ := w.export(t, fleet.Medium{ID: "md_1", Tenant: "acme", Releases: []fleet.ReleaseID{"agent/1.0.0"}, Life: 60 * 24 * time.Hour})
	if d := time.Until(ends); d > 7*24*time.Hour {
		t.Errorf("ends in %s, want with the timestamp", d)
	}
	if _, err := w.device(t).Medium(dir).Target(t.Context(), "agent/1.0.0/bin"); err != nil {
		t.Error(err)
	}
}

func TestNoMediumOfThat(t *testing.T) {
	w := newOnline(t)
	day := fleet.Medium{ID: "md_1", Tenant: "acme", Releases: []fleet.ReleaseID{"agent/1.0.0"}, Life: 24 * time.Hour}
	if _, _, err := w.Export(t.Context(), day, signOrder); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	var many []trust.NewTarget
	for i := range wire.MaxMedium + 1 {
		many = append(many, trust.NewTarget{Path: "ops/acme/many/1.0.0/" + strings.Repeat("f", i+1), File: file, Custom: trust.Custom{Class: "app", Version: "1.0.0"}})
	}
	must(t, w.repo.Add(append(many,
		trust.NewTarget{Path: "ops/acme/till/3.0.0/tree.tar", File: file, Custom: trust.Custom{Class: "app", Version: "3.0.0"}},
		trust.NewTarget{Path: "ops/acme/till/2.0.0/tree.tar", File: file, Custom: trust.Custom{Class: "app", Version: "2.0.0", Withdrawn: true}},
	), w.keys))
	_, err := w.publish(t)
	must(t, err)
	for name, tt := range map[string]struct {
		tenant   fleet.TenantID
		releases []fleet.ReleaseID
		life     time.Duration
		want     error
	}{
		"unknown":       {"acme", []fleet.ReleaseID{"agent/9.9.9"}, time.Hour, fleet.ErrNotFound},
		"of another":    {"other", []fleet.ReleaseID{"ops/acme/till/3.0.0"}, time.Hour, fleet.ErrNotFound},
		"withdrawn":     {"acme", []fleet.ReleaseID{"ops/acme/till/2.0.0"}, time.Hour, fleet.ErrConflict},
		"twice":         {"acme", []fleet.ReleaseID{"agent/1.0.0", "agent/1.0.0"}, time.Hour, fleet.ErrInvalid},
		"none":          {"acme", nil, time.Hour, fleet.ErrInvalid},
		"too many":      {"acme", []fleet.ReleaseID{"ops/acme/many/1.0.0"}, time.Hour, fleet.ErrInvalid},
		"for ever":      {"acme", []fleet.ReleaseID{"agent/1.0.0"}, 91 * 24 * time.Hour, fleet.ErrInvalid},
		"for no time":   {"acme", []fleet.ReleaseID{"agent/1.0.0"}, time.Minute, fleet.ErrInvalid},
		"the good twin": {"acme", []fleet.ReleaseID{"agent/1.0.0", "ops/acme/till/3.0.0"}, time.Hour, nil},
	} {
		if _, _, err := w.Export(t.Context(), fleet.Medium{ID: "md_1", Tenant: tt.tenant, Releases: tt.releases, Life: tt.life}, signOrder); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	// What has rotted since is noticed while it is written.
	_, write, err := w.Export(t.Context(), day, signOrder)
	must(t, err)
	names, err := filepath.Glob(filepath.Join(w.dir, "targets", "agent", "1.0.0", "*"))
	must(t, err)
	must(t, os.WriteFile(names[0], []byte("agent 6.6.6"), 0o600))
	if err := write(io.Discard); err == nil || !strings.Contains(err.Error(), "rotted") {
		t.Errorf("rotten: got %v", err)
	}
}
