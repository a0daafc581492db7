package api_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/trust"
)

// release adds an agent of that version to a repository.
func release(t *testing.T, repo *trust.Repository, keys trust.Keys, version string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent")
	must(t, os.WriteFile(file, []byte("agent "+version), 0o600))
	must(t, repo.Add([]trust.NewTarget{{
		Path: "agent/" + version + "/tillward-agent-linux-amd64", File: file,
		Custom: trust.Custom{Class: "agent", Version: version, OS: "linux", Arch: "amd64"},
	}}, keys))
}

// pack makes the tar stream of a folder, and what more adds.
func pack(t *testing.T, dir string, more ...*tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.AddFS(os.DirFS(dir)))
	for _, h := range more {
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		h.Mode = 0o644
		must(t, w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte("evil"))
			must(t, err)
		}
	}
	must(t, w.Close())
	return &b
}

// tree is every file below dir with its content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, p, d.Type())
		if d.Type().IsRegular() {
			c, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x\n", c)
		}
		return nil
	}))
	return b.String()
}

func TestPublish(t *testing.T) {
	s := newSite(t)
	repo, keys := repository(t)
	release(t, repo, keys, "1.0.0")
	added, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir)))
	if len(added) != 1 || added[0]["id"] != "agent/1.0.0" || added[0]["version"] != "1.0.0" || added[0]["published_by"] != "admin" || added[0]["published_at"] == nil {
		t.Fatalf("got %v", added)
	}
	if ev := s.trail(t)["release.published"]; ev.Actor != "admin" || ev.Subject != "agent/1.0.0" || ev.Tenant != "main" {
		t.Errorf("audited as %+v", ev)
	}
	if again, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir))); len(again) != 0 {
		t.Errorf("the same once more: got %v, want nothing new", again)
	}
	if ev := s.trail(t)["release.metadata"]; ev.Actor != "admin" || ev.Detail["releases"] != "1" {
		t.Errorf("audited as %+v", ev)
	}
	release(t, repo, keys, "1.1.0")
	if added, _ = items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir))); len(added) != 1 || added[0]["id"] != "agent/1.1.0" {
		t.Errorf("the next: got %v", added)
	}
	list, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/releases", nil))
	if len(list) != 2 || list[0]["id"] != "agent/1.1.0" {
		t.Errorf("list: %v", list)
	}
	one := into[struct {
		Targets []struct {
			Path, SHA256 string
			Length       int
		}
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/releases/agent/1.1.0", nil))
	if len(one.Targets) != 1 || one.Targets[0].Length != len("agent 1.1.0") || len(one.Targets[0].SHA256) != 64 {
		t.Errorf("targets: %+v", one)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/releases/agent/9.9.9", nil), http.StatusNotFound)
}

// TestBadUploads breaks an upload in every way. Each is refused with a reason,
// changes nothing and is in the trail; afterwards the good one still goes in.
func TestBadUploads(t *testing.T) {
	s := newSite(t)
	repo, keys := repository(t)
	release(t, repo, keys, "1.0.0")
	_, _ = items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir)))
	old := filepath.Join(t.TempDir(), "old")
	must(t, os.CopyFS(old, os.DirFS(repo.Dir)))
	release(t, repo, keys, "1.1.0")

	flip := func(pattern string) func(t *testing.T, dir string) io.Reader {
		return func(t *testing.T, dir string) io.Reader {
			names, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(names) != 1 {
				t.Fatalf("%s: got %v, %v, want one file", pattern, names, err)
			}
			b, err := os.ReadFile(names[0])
			must(t, err)
			b[len(b)/2] ^= 1
			must(t, os.WriteFile(names[0], b, 0o600))
			return pack(t, dir)
		}
	}
	extra := func(h tar.Header) func(t *testing.T, dir string) io.Reader {
		return func(t *testing.T, dir string) io.Reader { return pack(t, dir, &h) }
	}
	for name, broken := range map[string]func(t *testing.T, dir string) io.Reader{
		"flipped target":    flip("targets/agent/1.1.0/*"),
		"flipped targets":   flip("metadata/2.agent%2Fprod.json"),
		"flipped snapshot":  flip("metadata/3.snapshot.json"),
		"flipped timestamp": flip("metadata/timestamp.json"),
		"flipped root":      flip("metadata/1.root.json"),
		"expired": func(t *testing.T, dir string) io.Reader {
			p := filepath.Join(dir, "metadata", "timestamp.json")
			m, err := metadata.Timestamp().FromFile(p)
			must(t, err)
			m.Signed.Expires = time.Now().Add(-time.Minute)
			resign(t, m, keys[trust.RoleTimestamp][0])
			must(t, m.ToFile(p, false))
			return pack(t, dir)
		},
		"other root": func(t *testing.T, _ string) io.Reader {
			r, k := repository(t)
			release(t, r, k, "1.1.0")
			return pack(t, r.Dir)
		},
		"missing target": func(t *testing.T, dir string) io.Reader {
			must(t, os.RemoveAll(filepath.Join(dir, "targets", "agent", "1.1.0")))
			return pack(t, dir)
		},
		"traversal":        extra(tar.Header{Name: "targets/../../evil", Typeflag: tar.TypeReg}),
		"traversal up":     extra(tar.Header{Name: "../evil", Typeflag: tar.TypeReg}),
		"traversal inside": extra(tar.Header{Name: "metadata/../root.json", Typeflag: tar.TypeReg}),
		"absolute":         extra(tar.Header{Name: "/metadata/9.root.json", Typeflag: tar.TypeReg}),
		"unknown file":     extra(tar.Header{Name: "README", Typeflag: tar.TypeReg}),
		"unknown metadata": extra(tar.Header{Name: "metadata/evil.json", Typeflag: tar.TypeReg}),
		"deeper metadata":  extra(tar.Header{Name: "metadata/a/1.root.json", Typeflag: tar.TypeReg}),
		"twice":            extra(tar.Header{Name: "metadata/timestamp.json", Typeflag: tar.TypeReg}),
		"file as folder":   extra(tar.Header{Name: "targets/agent", Typeflag: tar.TypeReg}),
		"long name":        extra(tar.Header{Name: "targets/" + strings.Repeat("n", 300), Typeflag: tar.TypeReg}),
		"symlink":          extra(tar.Header{Name: "targets/l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"hard link":        extra(tar.Header{Name: "targets/l", Typeflag: tar.TypeLink, Linkname: "metadata/timestamp.json"}),
		"device file":      extra(tar.Header{Name: "targets/l", Typeflag: tar.TypeChar}),
		"cut off": func(t *testing.T, dir string) io.Reader {
			b, err := io.ReadAll(pack(t, dir))
			must(t, err)
			return bytes.NewReader(b[:len(b)/2])
		},
		"no tar": func(*testing.T, string) io.Reader { return strings.NewReader(strings.Repeat("no tar ", 200)) },
		"empty":  func(*testing.T, string) io.Reader { return strings.NewReader("") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "repo")
			must(t, os.CopyFS(dir, os.DirFS(repo.Dir)))
			before, entries := tree(t, s.artifacts), s.entries(t)
			d := problem(t, s.as(t, fleet.Admin, "POST", "/v1/releases", broken(t, dir)), http.StatusUnprocessableEntity)
			if tree(t, s.artifacts) != before {
				t.Error("the artifact folder has changed")
			}
			ev := s.trail(t)["release.refused"]
			if s.entries(t) != entries+1 || ev.Actor != "admin" || ev.Severity != "alarm" || ev.Tenant != "main" || !strings.HasPrefix(d, ev.Detail["reason"]) {
				t.Errorf("told %q, audited as %+v", d, ev)
			}
			if got, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/releases", nil)); len(got) != 1 {
				t.Errorf("releases: %v", got)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(s.artifacts), "evil")); err == nil {
		t.Error("a file was written outside the artifact folder")
	}
	// What was refused has not moved the floor: the repository before is still good, and so is the next.
	if got, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, old))); len(got) != 0 {
		t.Errorf("the first repository once more: %v", got)
	}
	if got, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir))); len(got) != 1 {
		t.Errorf("the good one: %v", got)
	}
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, old)), http.StatusUnprocessableEntity) // now it is a rollback
}

// TestReleasesOfTenants publishes what belongs to tenants, and withdraws some.
func TestReleasesOfTenants(t *testing.T) {
	s := newSite(t)
	repo, keys := repository(t)
	release(t, repo, keys, "1.0.0")
	file := filepath.Join(t.TempDir(), "tree")
	must(t, os.WriteFile(file, []byte("tree"), 0o600))
	for _, tenant := range []string{"main", "other"} {
		must(t, repo.Add([]trust.NewTarget{{Path: "ops/" + tenant + "/till/1.0.0/tree.tar", File: file, Custom: trust.Custom{
			Class: "app", Version: "1.0.0", Models: []string{"POS 500"}, Requires: map[string]string{"agent": "1.0.0"},
		}}}, keys))
	}
	_, _ = items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir)))
	list, _ := items(t, s.as(t, fleet.Viewer, "GET", "/v1/releases", nil))
	if len(list) != 2 {
		t.Errorf("list: %v, want the vendor's and our own", list)
	}
	one := into[struct {
		Component, Tenant string
		Models            []string
		Requires          map[string]string
		Withdrawn         bool
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/release?id=ops/main/till/1.0.0", nil))
	if one.Component != "ops/main/till" || one.Tenant != "main" || len(one.Models) != 1 || one.Requires["agent"] != "1.0.0" || one.Withdrawn {
		t.Errorf("got %+v", one)
	}
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/release?id=ops/other/till/1.0.0", nil), http.StatusNotFound)
	problem(t, s.as(t, fleet.Viewer, "GET", "/v1/release", nil), http.StatusUnprocessableEntity)

	// Withdrawn: the same target, said otherwise by its signers.
	p := filepath.Join(repo.Dir, "metadata", "1.ops%2Fmain.json")
	m, err := metadata.Targets().FromFile(p)
	must(t, err)
	m.Signed.Version = 2
	raw := m.Signed.Targets["ops/main/till/1.0.0/tree.tar"].Custom
	*raw = []byte(strings.Replace(string(*raw), "{", `{"withdrawn":true,`, 1))
	m.ClearSignatures()
	resign(t, m, keys[trust.RoleTargets][0])
	must(t, m.ToFile(filepath.Join(repo.Dir, "metadata", "2.ops%2Fmain.json"), false))
	must(t, repo.Refresh(keys))
	changed, _ := items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir)))
	if len(changed) != 1 || changed[0]["id"] != "ops/main/till/1.0.0" || changed[0]["withdrawn"] != true {
		t.Errorf("changed: %v", changed)
	}
	if ev := s.trail(t)["release.withdrawn"]; ev.Actor != "admin" || ev.Subject != "ops/main/till/1.0.0" {
		t.Errorf("audited as %+v", ev)
	}
}

// TestMedia writes an update medium, which is in the trail, and none for others.
func TestMedia(t *testing.T) {
	s := newSite(t)
	repo, keys := repository(t)
	release(t, repo, keys, "1.0.0")
	_, _ = items(t, s.as(t, fleet.Admin, "POST", "/v1/releases", pack(t, repo.Dir)))
	r := s.as(t, fleet.Admin, "POST", "/v1/media", map[string]any{"releases": []string{"agent/1.0.0"}, "life_days": 3})
	ends, err := time.Parse(time.RFC3339, r.header.Get("Tillward-Ends"))
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/x-tar" || err != nil || time.Until(ends) > 3*24*time.Hour || time.Until(ends) < 70*time.Hour {
		t.Fatalf("got %d as %v, ends %s and %v", r.status, r.header, ends, err)
	}
	last := ""
	for tr := tar.NewReader(bytes.NewReader(r.body)); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		last = h.Name
	}
	if last != "tillward-update/order.cbor" {
		t.Errorf("last on the medium: %q", last)
	}
	if ev := s.trail(t)["release.exported"]; ev.Actor != "admin" || ev.Subject != r.header.Get("Tillward-Medium") || ev.Detail["releases"] != "agent/1.0.0" {
		t.Errorf("audited as %+v", ev)
	}
	problem(t, s.as(t, fleet.Operator, "POST", "/v1/media", map[string]any{"releases": []string{"agent/1.0.0"}}), http.StatusForbidden)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/media", map[string]any{"releases": []string{"agent/9.9.9"}}), http.StatusNotFound)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/media", map[string]any{"releases": []string{}}), http.StatusUnprocessableEntity)
	problem(t, s.as(t, fleet.Admin, "POST", "/v1/media", map[string]any{"releases": []string{"agent/1.0.0"}, "life_days": 91}), http.StatusUnprocessableEntity)

	key := into[struct {
		Key    string
		Online bool
		Ends   map[string]time.Time
	}](t, s.as(t, fleet.Viewer, "GET", "/v1/online-key", nil))
	if !strings.HasPrefix(key.Key, "-----BEGIN PUBLIC KEY-----") || key.Online || !key.Ends["timestamp"].After(time.Now()) {
		t.Errorf("online key: %+v", key)
	}
}
