package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/simulator/postgres"
)

var (
	noon  = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	quiet = slog.New(slog.DiscardHandler)
)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// device is the nth of a tenant, as enrolment hands it over.
func device(tenant fleet.TenantID, n int) fleet.Device {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s-%d", tenant, n))
	return fleet.Device{
		ID: fleet.DeviceID(fmt.Sprintf("%s-d%02d", tenant, n)), Tenant: tenant, Tier: fleet.TierC, Model: "vend-1", Serial: fmt.Sprintf("S%02d", n),
		Site: "site-1", Group: "canary", EKHash: hex.EncodeToString(sum[:]), AKPublic: []byte{1, 2, 3}, CertSerial: "ab", CertNotAfter: noon.AddDate(0, 1, 0),
		EnrolledAt: noon, ResetCount: 7,
	}
}

// enrolled opens a store with n devices of tenant main and one of tenant other.
func enrolled(t *testing.T, n int) (*store.Store, []fleet.Device) {
	t.Helper()
	s := open(t, postgres.Place(t))
	var ds []fleet.Device
	for i := range n {
		ds = append(ds, device("main", i+1))
	}
	ds = append(ds, device("other", 1))
	for i, d := range ds {
		must(t, s.Enrol(t.Context(), d))
		got, err := s.DeviceByID(t.Context(), d.ID)
		must(t, err)
		ds[i] = got
	}
	return s, ds
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

// chain makes n consecutive audit events of a device behind prev.
func chain(t testing.TB, first uint64, prev [32]byte, n int, kind string) []fleet.AuditEvent {
	t.Helper()
	var out []fleet.AuditEvent
	for i := range uint64(n) {
		r := wire.AuditRecord{
			Seq: first + i, At: noon.UnixMilli(), Boot: wire.Boot{1}, Kind: kind, Severity: "info", Subject: "till",
			Detail: map[string]string{"n": fmt.Sprint(first + i)}, Prev: prev,
		}
		e, err := wire.SealAudit(r)
		must(t, err)
		out = append(out, fleet.AuditEvent{
			Seq: r.Seq, At: noon, Kind: r.Kind, Severity: r.Severity, Subject: r.Subject, Detail: r.Detail, Body: e.Body, Hash: e.Hash, Prev: prev,
		})
		prev = e.Hash
	}
	return out
}

func event(kind string) fleet.AuditEvent { return fleet.AuditEvent{Kind: kind, Actor: "anna"} }

// sql1 changes the database behind the store's back.
func sql1(t testing.TB, dir, query string, args ...any) {
	t.Helper()
	db, err := store.Behind(dir)
	must(t, err)
	defer db.Close()
	_, err = db.ExecContext(context.Background(), query, args...)
	must(t, err)
}

// tamper is sql1 for whoever has the database file and takes its guards away first.
func tamper(t testing.TB, dir, query string, args ...any) {
	t.Helper()
	if postgres.On() { // where it is the role that may not
		sql1(t, dir, query, args...)
		return
	}
	sql1(t, dir, `DROP TRIGGER IF EXISTS audit_unchanged; DROP TRIGGER IF EXISTS audit_named; DROP TRIGGER IF EXISTS audit_kept;
		DROP TRIGGER IF EXISTS countersign_unchanged; DROP TRIGGER IF EXISTS countersign_kept`)
	sql1(t, dir, query, args...)
}

func TestEnrolAndRenew(t *testing.T) {
	s, _ := enrolled(t, 1)
	d := device("main", 1)
	site, label := "site-9", "front"
	must(t, s.SetDevice(t.Context(), "main", d.ID, store.DevicePatch{Site: &site, Label: &label}, event("device.set")))
	must(t, s.Appraised(t.Context(), good(d.ID, "", "boot", noon), false))

	d.CertSerial, d.AKPublic, d.Site, d.Group, d.ResetCount = "cd", []byte{9}, "elsewhere", "elsewhere", 0
	must(t, s.Enrol(t.Context(), d))
	got, err := s.Device(t.Context(), "main", d.ID)
	must(t, err)
	if got.CertSerial != "cd" || len(got.AKPublic) != 1 || got.Trust != fleet.Pending || got.ResetCount != 0 {
		t.Errorf("renewed: got %+v", got)
	}
	if got.Site != "site-9" || got.Group != "canary" || got.Label != "front" {
		t.Errorf("site, group, label: got %q %q %q, want them kept", got.Site, got.Group, got.Label)
	}

	other := d
	other.Tenant = "other"
	wantErr(t, "key of another tenant", s.Enrol(t.Context(), other), fleet.ErrConflict)
	other = d
	other.EKHash = strings.Repeat("0", 64)
	wantErr(t, "identity of another key", s.Enrol(t.Context(), other), fleet.ErrConflict)
	other = d
	other.ID = "another"
	wantErr(t, "key of another identity", s.Enrol(t.Context(), other), fleet.ErrConflict)
	other = d
	other.Tier = fleet.TierD
	wantErr(t, "lower tier", s.Enrol(t.Context(), other), fleet.ErrConflict)
	if after, err := s.Device(t.Context(), "main", d.ID); err != nil || after.CertSerial != "cd" || after.Tier != fleet.TierC {
		t.Errorf("after refusals: got %+v, %v", after, err)
	}
}

func TestPresence(t *testing.T) {
	s, ds := enrolled(t, 2)
	id := ds[0].ID
	must(t, s.SetPresence(t.Context(), id, true, noon))
	must(t, s.SetPresence(t.Context(), ds[1].ID, true, noon))
	yes := true
	on, _, err := s.Devices(t.Context(), "main", store.DeviceFilter{Online: &yes}, fleet.Page{})
	must(t, err)
	if len(on) != 2 {
		t.Errorf("online: got %d, want 2", len(on))
	}
	must(t, s.AllOffline(t.Context()))
	if on, _, err = s.Devices(t.Context(), "main", store.DeviceFilter{Online: &yes}, fleet.Page{}); err != nil || len(on) != 0 {
		t.Errorf("after AllOffline: got %d, %v, want none", len(on), err)
	}
	wantErr(t, "presence of nobody", s.SetPresence(t.Context(), "nobody", true, noon), fleet.ErrNotFound)
}

func TestDevicesByPage(t *testing.T) {
	s, _ := enrolled(t, 7)
	label := "50%_off"
	must(t, s.SetDevice(t.Context(), "main", "main-d03", store.DevicePatch{Label: &label}, event("device.set")))
	var ids []string
	p := fleet.Page{Limit: 3}
	for pages := 1; ; pages++ {
		ds, next, err := s.Devices(t.Context(), "main", store.DeviceFilter{}, p)
		must(t, err)
		for _, d := range ds {
			ids = append(ids, string(d.ID))
		}
		if next == "" {
			if pages != 3 {
				t.Errorf("got %d pages, want 3", pages)
			}
			break
		}
		p.After = next
	}
	if len(ids) != 7 || !slices.IsSorted(ids) {
		t.Errorf("got %v, want main-d01 to main-d07", ids)
	}
	for query, want := range map[string]int{"D03": 0, "d03": 1, "S0": 7, "50%_": 1, "%": 1, "_": 1, "nothing": 0, "VEND": 7} {
		ds, _, err := s.Devices(t.Context(), "main", store.DeviceFilter{Query: query}, fleet.Page{})
		must(t, err)
		if query == "D03" {
			want = 1 // upper and lower case are the same
		}
		if len(ds) != want {
			t.Errorf("query %q: got %d, want %d", query, len(ds), want)
		}
	}
	for name, f := range map[string]store.DeviceFilter{"site": {Site: "x"}, "group": {Group: "x"}, "trust": {Trust: fleet.Attested}} {
		if ds, _, err := s.Devices(t.Context(), "main", f, fleet.Page{}); err != nil || len(ds) != 0 {
			t.Errorf("%s: got %d, %v, want none", name, len(ds), err)
		}
	}
}

// TestTenants tries each read and each change as another tenant: nothing is found, nothing moves. Its twin
// is the same call by the owner.
func TestTenants(t *testing.T) {
	s, ds := enrolled(t, 1)
	ctx, id := t.Context(), ds[0].ID
	c, err := s.AddCommand(ctx, fleet.Command{Device: id, Tenant: "main", Verb: "identify", IssuedAt: noon, NotAfter: noon.Add(time.Hour)}, event("command.add"))
	must(t, err)
	must(t, s.AddRelease(ctx, fleet.Release{ID: "agent/1.0.0"}, event("release.add")))
	must(t, s.AddRollout(ctx, fleet.Rollout{ID: "r1", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutRunning}, event("rollout.add")))
	_, err = s.Enlist(ctx, "r1")
	must(t, err)
	must(t, s.AddRelease(ctx, fleet.Release{ID: "ops/main/pos/1.0.0", Tenant: "main"}, event("release.add")))
	must(t, s.AddRollout(ctx, fleet.Rollout{ID: "r2", Tenant: "main", Release: "agent/1.0.0", State: fleet.RolloutDraft}, event("rollout.add")))
	must(t, s.AddToken(ctx, fleet.Token{ID: "tok", Tenant: "main", Role: fleet.Admin, Hash: [32]byte{1}}, event("token.add")))
	_, err = s.Commit(ctx, []store.Intake{{Device: id, Tenant: "main", At: noon, Samples: samples(1, 1)}})
	must(t, err)
	must(t, s.SeeFirmware(ctx, "main", "vend-1", id, []fleet.FirmwareEvent{{PCR: 7, Digest: "bb"}}))
	manifest(t, s, 1)
	must(t, s.Claim(ctx, "main", "dev-1", "code-1", "", "", fleet.AuditEvent{Kind: "device.claim"}))
	must(t, s.NoteWaiting(ctx, asks(1, fleet.TierA, time.Now())))

	for name, call := range map[string]func(fleet.TenantID) error{
		"Device": func(x fleet.TenantID) error { _, err := s.Device(ctx, x, id); return err },
		"SetDevice": func(x fleet.TenantID) error {
			return s.SetDevice(ctx, x, id, store.DevicePatch{}, event("device.set"))
		},
		"Series": func(x fleet.TenantID) error { _, err := s.Series(ctx, x, id); return err },
		"Points": func(x fleet.TenantID) error {
			_, err := s.Points(ctx, x, id, "printer", "temp", noon, noon, 9)
			return err
		},
		"Events":     func(x fleet.TenantID) error { _, _, err := s.Events(ctx, x, id, fleet.Page{}); return err },
		"AuditTrail": func(x fleet.TenantID) error { _, _, err := s.AuditTrail(ctx, x, id, true, fleet.Page{}); return err },
		"AuditTrailOf": func(x fleet.TenantID) error {
			_, _, err := s.AuditTrailOf(ctx, x, id, "alarm", true, fleet.Page{})
			return err
		},
		"VerifyAudit": func(x fleet.TenantID) error {
			_, err := s.VerifyAudit(ctx, x, id)
			return err
		},
		"AddCommand": func(x fleet.TenantID) error {
			_, err := s.AddCommand(ctx, fleet.Command{Device: id, Tenant: x, Verb: "reboot"}, event("command.add"))
			return err
		},
		"Command":     func(x fleet.TenantID) error { _, err := s.Command(ctx, x, c.ID); return err },
		"Rollout":     func(x fleet.TenantID) error { _, err := s.Rollout(ctx, x, "r1"); return err },
		"ReleaseOf":   func(x fleet.TenantID) error { _, err := s.ReleaseOf(ctx, x, "ops/main/pos/1.0.0"); return err },
		"DeviceUnits": func(x fleet.TenantID) error { _, _, err := s.DeviceUnits(ctx, x, id, fleet.Page{}); return err },
		"RolloutUnits": func(x fleet.TenantID) error {
			_, _, err := s.RolloutUnits(ctx, x, "r1", fleet.ExecutionFilter{}, fleet.Page{})
			return err
		},
		"AddRollout": func(x fleet.TenantID) error {
			return s.AddRollout(ctx, fleet.Rollout{ID: "r3", Tenant: x, Release: "ops/main/pos/1.0.0", State: fleet.RolloutDraft}, event("rollout.add"))
		},
		"SaveRollout": func(x fleet.TenantID) error {
			_, err := s.SaveRollout(ctx, fleet.Rollout{ID: "r2", Tenant: x, Release: "agent/1.0.0", State: fleet.RolloutDenied, Version: 1}, event("rollout.denied"))
			return err
		},
		"RetryRollout": func(x fleet.TenantID) error {
			_, err := s.RetryRollout(ctx, x, "r1", id, event("rollout.retry"))
			if errors.Is(err, fleet.ErrConflict) { // found, and nothing to be tried again
				return nil
			}
			return err
		},
		"Commit": func(x fleet.TenantID) error {
			_, err := s.Commit(ctx, []store.Intake{{Device: id, Tenant: x, At: noon, Samples: samples(2, 1)}})
			return err
		},
		"Attestations": func(x fleet.TenantID) error { _, _, err := s.Attestations(ctx, x, id, fleet.Page{}); return err },
		"Waive":        func(x fleet.TenantID) error { return s.Waive(ctx, x, id, fleet.Waiver{}, event("device.waive")) },
		"Revoke and Readmit": func(x fleet.TenantID) error {
			if err := s.Revoke(ctx, x, id, "lost", event("device.revoke")); err != nil {
				return err
			}
			wantErr(t, "Readmit by another tenant", s.Readmit(ctx, "other", id, event("device.readmit")), fleet.ErrNotFound)
			return s.Readmit(ctx, x, id, event("device.readmit"))
		},
		"Admit": func(x fleet.TenantID) error { _, err := s.Admit(ctx, id, x, "ab"); return err },
		"SeeFirmware": func(x fleet.TenantID) error {
			return s.SeeFirmware(ctx, x, "vend-1", id, []fleet.FirmwareEvent{{PCR: 4, Digest: "aa"}})
		},
		"DecideFirmware": func(x fleet.TenantID) error {
			return s.DecideFirmware(ctx, x, "vend-1", 7, "bb", fleet.ApprovalGranted, event("firmware.decide"))
		},
		"RevokeToken": func(x fleet.TenantID) error { return s.RevokeToken(ctx, x, "tok", event("token.revoke")) },
	} {
		wantErr(t, name+" by another tenant", call("other"), fleet.ErrNotFound)
		if err := call("main"); err != nil {
			t.Errorf("%s by its owner: got error %v", name, err)
		}
	}
	for name, count := range map[string]func(fleet.TenantID) (int, error){
		"Devices": func(x fleet.TenantID) (int, error) {
			l, _, err := s.Devices(ctx, x, store.DeviceFilter{}, fleet.Page{})
			return len(l), err
		},
		"Commands": func(x fleet.TenantID) (int, error) {
			l, _, err := s.Commands(ctx, x, store.CommandFilter{}, fleet.Page{})
			return len(l), err
		},
		"Rollouts": func(x fleet.TenantID) (int, error) { l, _, err := s.Rollouts(ctx, x, fleet.Page{}); return len(l), err },
		"ReleasesOf": func(x fleet.TenantID) (int, error) {
			l, _, err := s.ReleasesOf(ctx, x, fleet.Page{})
			return len(l) - 1, err // the vendor's is everybody's
		},
		"Sites":  func(x fleet.TenantID) (int, error) { l, err := s.Sites(ctx, x); return len(l), err },
		"Tokens": func(x fleet.TenantID) (int, error) { l, err := s.Tokens(ctx, x); return len(l), err },
		"FirmwareEvents": func(x fleet.TenantID) (int, error) {
			l, _, err := s.FirmwareEvents(ctx, x, "", "", fleet.Page{})
			return len(l), err
		},
		"FirmwareDecisions": func(x fleet.TenantID) (int, error) {
			l, err := s.FirmwareDecisions(ctx, x, "vend-1")
			return len(l), err
		},
		"Waiting": func(x fleet.TenantID) (int, error) { l, _, err := s.Waiting(ctx, x, fleet.Page{}); return len(l), err },
		"Summary": func(x fleet.TenantID) (int, error) { l, err := s.Summary(ctx, x); return l.Devices, err },
		"service trail": func(x fleet.TenantID) (int, error) {
			l, _, err := s.AuditTrail(ctx, x, "", true, fleet.Page{})
			return len(l), err
		},
	} {
		// What belongs to no tenant (the release, the manifest) is seen by every one.
		none := map[string]int{"service trail": 3}[name]
		if n, err := count("stranger"); err != nil || n != none {
			t.Errorf("%s of a stranger: got %d, %v, want %d", name, n, err, none)
		}
		if n, err := count("main"); err != nil || n <= none {
			t.Errorf("%s of the owner: got %d, %v, want more than %d", name, n, err, none)
		}
	}
}

// TestRefusesNewerSchema opens what a newer program wrote.
func TestRefusesNewerSchema(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	must(t, s.Close())
	sql1(t, dir, `INSERT INTO schema_version (version, applied_at) VALUES (9999, 0)`)
	_, err := store.Open(t.Context(), dir, quiet)
	if err == nil || !strings.Contains(err.Error(), "9999") {
		t.Fatalf("got %v, want a refusal that names the version", err)
	}
}

// administrator is the address of a database for who may do everything.
func administrator(where string) string {
	return strings.Replace(where, "tillward_service@", "postgres@", 1)
}

// firstOnPostgres is the first version of the schema that was ever on PostgreSQL.
const firstOnPostgres = 12

// renumber has the database go on counting behind the numbers that the data gave itself.
func renumber(t testing.TB, dir string) {
	sql1(t, dir, `DO $$
		DECLARE c record;
		BEGIN
			FOR c IN SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'tillward' AND is_identity = 'YES' LOOP
				EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, %L), (SELECT COALESCE(MAX(%I), 0) + 1 FROM tillward.%I), false)',
					'tillward.' || quote_ident(c.table_name), c.column_name, c.column_name, c.table_name);
			END LOOP;
		END $$`)
}

// dataOf is what a database of a version holds. A file that begins with "-- as before" adds to that of the version
// before it.
func dataOf(t *testing.T, version int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("testdata/v%d.sql", version))
	if err != nil {
		t.Fatalf("each version needs its data: %v", err)
	}
	if bytes.HasPrefix(data, []byte("-- as before")) {
		return dataOf(t, version-1) + string(data)
	}
	return string(data)
}

// earlier is a database of an earlier version: the migrations up to that one, its data, and more.
func earlier(t *testing.T, version int, more string) (dir string) {
	t.Helper()
	if postgres.On() && version < firstOnPostgres {
		t.Skip("none was on PostgreSQL then")
	}
	files, err := filepath.Glob("migrations/*.sql")
	must(t, err)
	slices.Sort(files)
	dir, become := postgres.Place(t), ""
	if postgres.On() {
		become = `SET ROLE tillward_owner; `
		sql1(t, dir, `DROP SCHEMA tillward CASCADE; CREATE SCHEMA tillward AUTHORIZATION tillward_owner;
			GRANT USAGE ON SCHEMA tillward TO tillward_service`)
	}
	sql1(t, dir, become+`CREATE TABLE schema_version (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)`)
	for n, f := range files[:version] {
		text, err := os.ReadFile(f)
		must(t, err)
		if postgres.On() {
			text = []byte(store.SchemaOf(string(text)))
		}
		sql1(t, dir, become+string(text))
		sql1(t, dir, `INSERT INTO schema_version (version, applied_at) VALUES (?, 1)`, n+1)
	}
	sql1(t, dir, dataOf(t, version)+more)
	tamper(t, dir, `UPDATE audit SET severity = 'alarm' WHERE device = 'd1'`)
	if postgres.On() {
		renumber(t, dir)
		must(t, store.Setup(t.Context(), administrator(dir), "", quiet))
	}
	return dir
}

// TestMigrates opens a database of each earlier version with data in it: the migrations up to that version,
// then testdata/v{version}.sql. Every version must read the same.
func TestMigrates(t *testing.T) {
	files, err := filepath.Glob("migrations/*.sql")
	must(t, err)
	slices.Sort(files)
	if len(files) == 0 {
		t.Fatal("no migrations")
	}
	for i := range files {
		version := i + 1
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			s := open(t, earlier(t, version, ""))
			ctx := t.Context()
			d, err := s.Device(ctx, "main", "d1")
			must(t, err)
			if d.Site != "berlin" || d.Samples != 2 || d.AgentVersion != "0.1.0" || d.AuditHead != 1 || d.Trust != fleet.Attested {
				t.Errorf("device: got %+v", d)
			}
			points, err := s.Points(ctx, "main", "d1", "printer", "temp", time.Time{}, time.Time{}, 10)
			if err != nil || len(points) != 2 || points[1].Value != 22.5 {
				t.Errorf("points: got %v, %v", points, err)
			}
			if c, err := s.Command(ctx, "main", "c1"); err != nil || c.State != fleet.CommandSucceeded || c.Args["seconds"] != "5" {
				t.Errorf("command: got %+v, %v", c, err)
			}
			if es, _, err := s.RolloutUnits(ctx, "main", "r1", fleet.ExecutionFilter{}, fleet.Page{}); err != nil || len(es) != 1 || es[0].State != fleet.ExecDownloading {
				t.Errorf("executions: got %+v, %v", es, err)
			}
			r, err := s.Rollout(ctx, "main", "r1")
			if err != nil || r.Spec.Filter.Group != "canary" || r.Spec.Deadline != time.Hour || r.Spec.Gate.BadCap != 1 || r.Spec.Gate.Bad != -1 || r.Spec.Attempts != 1 || r.Version < 1 || !r.StartedAt.Equal(r.CreatedAt) {
				t.Errorf("rollout: got %+v, %v", r, err)
			}
			if version >= 5 && (len(r.Waves) != 1 || r.Waves[0].State != fleet.WaveRunning || len(r.Holds) != 1 || r.Holds[0].Model != "bad") {
				t.Errorf("waves and holds: got %+v, %+v", r.Waves, r.Holds)
			}
			us, cursor, err := s.Units(ctx, "r1", 0)
			if err != nil || len(us) != 1 || cursor != 1 || us[0].Wave != 0 || us[0].Site != "berlin" || us[0].EnteredAt.IsZero() || version >= 4 && us[0].Attempt != 1 {
				t.Errorf("units: got %+v up to %d, %v", us, cursor, err)
			}
			if rel, err := s.ReleaseOf(ctx, "main", "agent/1.0.0"); err != nil || rel.Component != "agent" || rel.Withdrawn || len(rel.Models) != 0 {
				t.Errorf("release: got %+v, %v", rel, err)
			}
			if l, err := s.Sites(ctx, "main"); err != nil || len(l) != 1 || l[0].Devices != 1 || version >= 5 && l[0].Zone != "Europe/Berlin" {
				t.Errorf("sites: got %+v, %v", l, err)
			}
			if tok, err := s.TokenByHash(ctx, [32]byte{}); err != nil || tok.Role != fleet.Admin {
				t.Errorf("token: got %+v, %v", tok, err)
			}
			if version == 1 {
				if d.BootRelease != "" || len(d.Findings) != 0 || !d.RevokedAt.IsZero() || d.Waiver != (fleet.Waiver{}) {
					t.Errorf("device from before boots were judged: got %+v", d)
				}
			} else if l, _, err := s.Attestations(ctx, "main", "d1", fleet.Page{}); err != nil || len(l) != 1 || d.BootRelease != "agent/1.0.0" || string(d.BootDigest) != "D" ||
				len(d.Findings) != 1 || d.Findings[0].Check != "boot.unjudged" || d.Waiver.By != "anna" || d.Next.CertSerial != "ac" || d.Recovery != "ad" {
				t.Errorf("device with a judged boot: got %+v and %d appraisals, %v", d, len(l), err)
			}
			if adm, err := s.Admit(ctx, "d1", "main", "ab"); err != nil || adm != fleet.AdmitMember {
				t.Errorf("admit: got %s, %v", adm, err)
			}
			if l, err := s.ListedEK(ctx, "ek1"); err != nil || l.Tenant != "main" || l.Site != "berlin" {
				t.Errorf("listing: got %+v, %v", l, err)
			}
			if l, _, err := s.AuditTrailOf(ctx, "main", "d1", "alarm", true, fleet.Page{}); err != nil || len(l) != 1 || l[0].Kind != "enrol.done" {
				t.Errorf("alarms: got %+v, %v", l, err)
			}
			if f, err := s.SearchTrails(ctx, "main", fleet.TrailQuery{What: "enrol.", Who: "d1"}, fleet.Page{}); err != nil || len(f.Items) != 1 || f.Items[0].Actor != "d1" {
				t.Errorf("search: got %+v, %v", f, err)
			}
			// And it is written to as if it had always been new.
			out, err := s.Commit(ctx, []store.Intake{{Device: "d1", Tenant: "main", At: noon, Samples: []fleet.Sample{
				{Boot: [16]byte{1}, Seq: 1, Index: 0, At: noon, Peripheral: "printer", Name: "temp", Value: 21},
				{Boot: [16]byte{1}, Seq: 2, Index: 0, At: noon, Peripheral: "printer", Name: "temp", Value: 23},
			}}})
			if err != nil || out[0].NewSamples != 1 || out[0].Duplicates != 1 {
				t.Errorf("commit: got %+v, %v, want one new and one duplicate", out, err)
			}
			if x, err := s.MoveExecution(ctx, store.ExecutionStep{ID: "x1", State: fleet.ExecStaged}, noon); err != nil || x == nil || x.State != fleet.ExecStaged {
				t.Errorf("move: got %+v, %v", x, err)
			}
			if us, _, err := s.Units(ctx, "r1", cursor); err != nil || len(us) != 1 || us[0].State != fleet.ExecStaged {
				t.Errorf("units that changed: got %+v, %v", us, err)
			}
			r.State, r.Reason = fleet.RolloutPaused, "as it should"
			if r, err = s.SaveRollout(ctx, r, event("rollout.pause")); err != nil || r.State != fleet.RolloutPaused {
				t.Errorf("save: got %+v, %v", r, err)
			}
			must(t, s.Audit(ctx, event("service.start")))
			must(t, s.Appraised(ctx, good("d1", "agent/1.0.0", "new", noon), false))
			must(t, s.PutOwnership(ctx, stands("d1", 9, "abc", fleet.Released), event("ownership.set")))
			must(t, s.Reset(ctx, "d1", event("device.reset")))
		})
	}
}

func TestClosed(t *testing.T) {
	s := open(t, postgres.Place(t))
	must(t, s.Ping(t.Context()))
	must(t, s.Close())
	if err := s.Audit(t.Context(), event("late")); err == nil {
		t.Error("audit after Close: got no error")
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Error("ping after Close: got no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "canceled", open(t, postgres.Place(t)).Audit(ctx, event("late")), context.Canceled)
}

func TestMode(t *testing.T) {
	dir := t.TempDir()
	must(t, open(t, dir).Audit(t.Context(), event("service.start")))
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	for _, f := range files {
		i, err := os.Stat(f)
		must(t, err)
		if i.Mode().Perm() != 0o600 {
			t.Errorf("%s: got mode %o, want 600", f, i.Mode().Perm())
		}
	}
	if len(files) < 2 {
		t.Errorf("got %v, want the database and its log", files)
	}
}
