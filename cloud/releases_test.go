package cloud

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/trust"
)

// The online key is made once, its public half lies beside it, and what a root
// that names it brings is kept fresh; what others have to sign is an alarm, once.
func TestOnlineKeyKeepsReleasesFresh(t *testing.T) {
	s := newService(t)
	s.cfg.DataDir = t.TempDir()
	must(t, s.openCatalog())
	key := s.catalog.Key
	public, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "online.pub"))
	must(t, err)
	must(t, s.openCatalog())
	if again, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "online.pub")); !s.catalog.Key.Equal(key) || err != nil || !bytes.Equal(again, public) || !bytes.HasPrefix(public, []byte("-----BEGIN PUBLIC KEY-----")) {
		t.Errorf("the key changed at a restart, or its public half: %s and %v", again, err)
	}
	if fi, err := os.Stat(filepath.Join(s.cfg.DataDir, "online.key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the private half: %v and %v", fi, err)
	}

	other, err := trust.NewKey(filepath.Join(t.TempDir(), "key.pem"))
	must(t, err)
	repo, err := trust.InitRepository(t.TempDir(), trust.Keys{
		trust.RoleRoot: {other}, trust.RoleTargets: {other}, trust.RoleSnapshot: {key}, trust.RoleTimestamp: {key}, trust.RoleAgent: []ed25519.PrivateKey{other},
	}, nil)
	must(t, err)
	must(t, os.Remove(filepath.Join(repo.Dir, "metadata", "timestamp.json")))
	must(t, os.Remove(filepath.Join(repo.Dir, "metadata", "1.snapshot.json")))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.AddFS(os.DirFS(repo.Dir)))
	must(t, w.Close())
	_, err = releases{s}.Publish(t.Context(), &b)
	must(t, err)
	f, err := releases{s}.Freshness()
	if err != nil || !f.Online || time.Since(f.Signed) > time.Minute {
		t.Fatalf("got %+v and %v", f, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, s.keepFresh(ctx))
	if all, _, err := s.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{Limit: 9}); err != nil || len(all) != 0 {
		t.Errorf("fresh, and in the trail is %+v, %v", all, err)
	}
	// Rotten metadata cannot be kept fresh, and somebody hears of it.
	must(t, os.WriteFile(filepath.Join(s.cfg.DataDir, "artifacts", "metadata", "1.agent%2Fprod.json"), []byte("rotten"), 0o600))
	must(t, s.keepFresh(ctx))
	if all, _, err := s.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{Limit: 9}); err != nil || len(all) != 1 || all[0].Kind != "release.stale" || all[0].Severity != "alarm" {
		t.Errorf("rotten, and in the trail is %+v, %v", all, err)
	}
}

// TestOfAnother: what a tenant has made for its own devices is handed to no others.
func TestOfAnother(t *testing.T) {
	for path, want := range map[string]bool{
		"/tuf/targets/ops/main/pos/1.0.0/ab.tree.tar":          false,
		"/tuf/targets/ops/other/pos/1.0.0/ab.tree.tar":         true,
		"/tuf/targets/ops/main/../other/pos/1.0.0/ab.tree.tar": true,
		"/tuf//targets/./ops/other/pos/1.0.0/ab.tree.tar":      true,
		"/tuf/targets/ops/mainly/pos/1.0.0/ab.tree.tar":        true,
		"/tuf/targets/ops/": false,
		"/tuf/targets/agent/1.0.0/ab.tillward-agent-linux-amd64": false,
		"/tuf/metadata/1.ops%2Fother.json":                       false,
		"/tuf/timestamp.json":                                    false,
	} {
		if got := ofAnother(path, "main"); got != want {
			t.Errorf("%s: got %v", path, got)
		}
	}
}
