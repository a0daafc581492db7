package store_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

var unknown = fleet.Finding{Check: "boot.unknown-event", PCR: "4", Event: "EV_EFI_BOOT_SERVICES_APPLICATION", Text: "an event that no release knows"}

// good is the verdict on a boot that was judged in full; digest tells boots apart.
func good(id fleet.DeviceID, release, digest string, when time.Time) fleet.Attestation {
	return fleet.Attestation{Device: id, At: when, Trust: fleet.Attested, Release: release, ResetCount: 8, Digest: []byte(digest)}
}

// bad is a verdict against a device.
func bad(id fleet.DeviceID, when time.Time) fleet.Attestation {
	return fleet.Attestation{Device: id, At: when, Trust: fleet.Quarantined, ResetCount: 9, Digest: []byte("bad"), Findings: []fleet.Finding{unknown}}
}

func byID(t testing.TB, s *store.Store, id fleet.DeviceID) fleet.Device {
	t.Helper()
	d, err := s.DeviceByID(t.Context(), id)
	must(t, err)
	return d
}

func appraisals(t testing.TB, s *store.Store, d fleet.Device) []fleet.Attestation {
	t.Helper()
	l, _, err := s.Attestations(t.Context(), d.Tenant, d.ID, fleet.Page{Limit: 1000})
	must(t, err)
	return l
}

func TestAppraised(t *testing.T) {
	s, ds := enrolled(t, 1)
	d := ds[0]
	must(t, s.Appraised(t.Context(), good(d.ID, "agent/1.0.0", "boot 1", noon), false))
	got := byID(t, s, d.ID)
	if got.Trust != fleet.Attested || string(got.BootDigest) != "boot 1" || got.BootRelease != "agent/1.0.0" || got.ResetCount != 8 || !got.AttestedAt.Equal(noon) {
		t.Errorf("accepted: got %+v", got)
	}

	must(t, s.Appraised(t.Context(), bad(d.ID, noon.Add(time.Minute)), false))
	got = byID(t, s, d.ID)
	if got.Trust != fleet.Quarantined || !slices.Equal(got.TrustReasons, []string{unknown.Text}) || !slices.Equal(got.Findings, []fleet.Finding{unknown}) {
		t.Errorf("refused: got %s %v %v", got.Trust, got.TrustReasons, got.Findings)
	}
	if len(got.BootDigest) != 0 || got.ResetCount != 8 || !got.AttestedAt.Equal(noon) || got.BootRelease != "agent/1.0.0" {
		t.Errorf("refused: got digest %q, reset count %d, attested at %s, release %s; want none and the rest as it was",
			got.BootDigest, got.ResetCount, got.AttestedAt, got.BootRelease)
	}
	for range 3 { // says nothing new
		must(t, s.Appraised(t.Context(), bad(d.ID, noon.Add(time.Hour)), false))
	}

	a := good(d.ID, "agent/1.0.0", "boot 2", noon.Add(2*time.Minute))
	a.ResetCount = 3 // an older quote
	must(t, s.Appraised(t.Context(), a, false))
	if got = byID(t, s, d.ID); got.ResetCount != 8 || len(got.Findings) != 0 || len(got.TrustReasons) != 0 {
		t.Errorf("accepted again: got %+v, want reset count 8 and nothing found", got)
	}
	l := appraisals(t, s, got)
	var trusts []fleet.Trust
	for _, a := range l {
		trusts = append(trusts, a.Trust)
	}
	if !slices.Equal(trusts, []fleet.Trust{fleet.Attested, fleet.Quarantined, fleet.Attested}) {
		t.Fatalf("kept: got %v, want three, newest first", trusts)
	}
	if !slices.Equal(l[1].Findings, []fleet.Finding{unknown}) || !l[1].At.Equal(noon.Add(time.Minute)) || l[1].ResetCount != 9 || string(l[1].Digest) != "bad" || l[1].Device != d.ID {
		t.Errorf("kept: got %+v", l[1])
	}
	wantErr(t, "nobody", s.Appraised(t.Context(), good("nobody", "", "", noon), false), fleet.ErrNotFound)
}

// TestAppraisedRelease is about the release a device has committed to: an appraisal without a commit never
// brings another one.
func TestAppraisedRelease(t *testing.T) {
	old, now := "agent/1.0.0", "agent/1.1.0"
	waived := good("main-d01", now, "w", noon)
	waived.Trust, waived.Until = fleet.Degraded, noon.Add(time.Hour)
	refused := bad("main-d01", noon)
	refused.Release = now
	for _, c := range []struct {
		name      string
		have      string
		offered   fleet.ReleaseID
		a         fleet.Attestation
		committed bool
		want      string
		digest    string
	}{
		{"first", "", "", good("main-d01", old, "x", noon), false, "agent/1.0.0", "x"},
		{"first without reference values", "", "", good("main-d01", "", "x", noon), false, "", "x"},
		{"first and refused", "", "", refused, false, "", ""},
		{"first by a waiver", "", "", waived, false, "", ""},
		{"offered and not committed", old, "agent/1.1.0", good("main-d01", now, "x", noon), false, "agent/1.0.0", "x"},
		{"not offered any more", old, "agent/1.2.0", good("main-d01", now, "x", noon), false, "agent/1.0.0", ""},
		{"old one after the commit", now, "", good("main-d01", old, "x", noon), false, "agent/1.1.0", ""},
		{"committed release by a waiver", now, "", waived, false, "agent/1.1.0", ""},
		{"steady", old, "", good("main-d01", "", "before", noon), false, "agent/1.0.0", "before"},
		{"steady, of a boot that was forgotten", old, "", good("main-d01", "", "x", noon), false, "agent/1.0.0", ""},
		{"committed", old, "", good("main-d01", now, "x", noon), true, "agent/1.1.0", "x"},
		{"committed and refused", old, "", refused, true, "agent/1.0.0", ""},
		{"committed by a waiver", old, "", waived, true, "agent/1.0.0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ds := enrolled(t, 1)
			if c.have != "" {
				must(t, s.Appraised(t.Context(), good(ds[0].ID, c.have, "before", noon), true))
			}
			if c.offered != "" {
				rolled(t, s, 1, c.offered, fleet.ExecRebooting)
			}
			must(t, s.Appraised(t.Context(), c.a, c.committed))
			if d := byID(t, s, ds[0].ID); d.BootRelease != c.want || string(d.BootDigest) != c.digest {
				t.Errorf("got release %q and digest %q, want %q and %q", d.BootRelease, d.BootDigest, c.want, c.digest)
			}
		})
	}
}

// TestSteady repeats a verdict: it is no news, but the device was heard.
func TestSteady(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	for n := range 3 {
		must(t, s.Enrol(t.Context(), device("main", n+1)))
	}
	heard, silent, revoked := fleet.DeviceID("main-d01"), fleet.DeviceID("main-d02"), fleet.DeviceID("main-d03")
	later := noon.Add(time.Hour)
	for _, id := range []fleet.DeviceID{heard, silent, revoked} {
		must(t, s.Appraised(t.Context(), good(id, "agent/1.0.0", "boot", noon), false))
	}
	must(t, s.Appraised(t.Context(), good(heard, "", "boot", later), false)) // steady evidence names no release
	must(t, s.Appraised(t.Context(), good(revoked, "agent/1.0.0", "boot", later), false))
	must(t, s.Revoke(t.Context(), "main", revoked, "stolen", event("device.revoke")))

	stale, err := s.MarkStale(t.Context(), later)
	must(t, err)
	if len(stale) != 1 || stale[0].ID != silent {
		t.Errorf("stale: got %+v, want %s alone", stale, silent)
	}
	if d := byID(t, s, heard); !d.AttestedAt.Equal(later) || d.Trust != fleet.Attested || len(appraisals(t, s, d)) != 1 {
		t.Errorf("heard: got %s attested at %s and %d appraisals, want attested %s and 1", d.Trust, d.AttestedAt, len(appraisals(t, s, d)), later)
	}
	if d := byID(t, s, revoked); d.Trust != fleet.Quarantined || !d.AttestedAt.Equal(noon) {
		t.Errorf("revoked with a verdict under way: got %s attested at %s, want quarantined %s", d.Trust, d.AttestedAt, noon)
	}
	wantErr(t, "steady verdict on a revoked device", s.Appraised(t.Context(), good(revoked, "agent/1.0.0", "boot", later), false), fleet.ErrRevoked)
	wantErr(t, "new verdict on a revoked device", s.Appraised(t.Context(), good(revoked, "agent/1.0.0", "other", later), false), fleet.ErrRevoked)

	// What was said last is written when the store closes.
	last := later.Add(time.Hour)
	must(t, s.Appraised(t.Context(), good(heard, "agent/1.0.0", "boot", last), false))
	must(t, s.Close())
	if d := byID(t, open(t, dir), heard); !d.AttestedAt.Equal(last) {
		t.Errorf("after Close: got attested at %s, want %s", d.AttestedAt, last)
	}
}

// TestSteadyIsNews tells what is steady from what is not: each of these is there at once and kept.
func TestSteadyIsNews(t *testing.T) {
	for name, change := range map[string]func(*fleet.Attestation){
		"trust":       func(a *fleet.Attestation) { a.Trust = fleet.Degraded },
		"digest":      func(a *fleet.Attestation) { a.Digest = []byte("another") },
		"reset count": func(a *fleet.Attestation) { a.ResetCount++ },
		"finding":     func(a *fleet.Attestation) { a.Findings = []fleet.Finding{unknown} },
	} {
		s, ds := enrolled(t, 1)
		a := good(ds[0].ID, "agent/1.0.0", "boot", noon)
		must(t, s.Appraised(t.Context(), a, false))
		a.At = noon.Add(time.Hour)
		change(&a)
		must(t, s.Appraised(t.Context(), a, false))
		d := byID(t, s, ds[0].ID)
		if l := appraisals(t, s, d); len(l) != 2 || !l[0].At.Equal(a.At) || !d.AttestedAt.Equal(a.At) || !bytes.Equal(d.BootDigest, a.Digest) {
			t.Errorf("%s: got %d appraisals, attested at %s, want 2 and %s at once", name, len(l), d.AttestedAt, a.At)
		}
	}
}

// TestSteadyCommits says of the same boot that the device has committed to it.
func TestSteadyCommits(t *testing.T) {
	s, ds := enrolled(t, 1)
	must(t, s.Appraised(t.Context(), good(ds[0].ID, "agent/1.0.0", "old", noon), false))
	for _, committed := range []bool{false, false, true, true} {
		must(t, s.Appraised(t.Context(), good(ds[0].ID, "agent/1.1.0", "new", noon), committed))
		want := map[bool]string{false: "agent/1.0.0", true: "agent/1.1.0"}[committed]
		if d := byID(t, s, ds[0].ID); d.BootRelease != want {
			t.Errorf("committed %t: got %s, want %s", committed, d.BootRelease, want)
		}
	}
}

// TestSteadyHeals brings a silent device back: it says nothing new, but its trust is.
func TestSteadyHeals(t *testing.T) {
	s, ds := enrolled(t, 1)
	must(t, s.Appraised(t.Context(), good(ds[0].ID, "agent/1.0.0", "boot", noon), false))
	if l, err := s.MarkStale(t.Context(), noon.Add(time.Second)); err != nil || len(l) != 1 {
		t.Fatalf("got %d stale, %v, want 1", len(l), err)
	}
	must(t, s.Appraised(t.Context(), good(ds[0].ID, "", "boot", noon.Add(time.Minute)), false))
	d := byID(t, s, ds[0].ID)
	if d.Trust != fleet.Attested || len(d.TrustReasons) != 0 || len(appraisals(t, s, d)) != 1 {
		t.Errorf("got %s %v and %d appraisals, want attested at once and 1", d.Trust, d.TrustReasons, len(appraisals(t, s, d)))
	}
}

// TestSteadyLost cuts the power before a steady verdict is written: what is there is the verdict before, and
// the next one is taken.
func TestSteadyLost(t *testing.T) {
	if postgres.On() {
		t.Skip("the files of a server are not copied while it runs")
	}
	dir, cut := t.TempDir(), t.TempDir()
	s := open(t, dir)
	must(t, s.Enrol(t.Context(), device("main", 1)))
	must(t, s.Appraised(t.Context(), good("main-d01", "agent/1.0.0", "boot", noon), false))
	must(t, s.Appraised(t.Context(), good("main-d01", "", "boot", noon.Add(time.Hour)), false))
	files, err := filepath.Glob(filepath.Join(dir, "tillward.db*"))
	must(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		if !strings.HasSuffix(f, "-shm") {
			must(t, os.WriteFile(filepath.Join(cut, filepath.Base(f)), b, 0o600))
		}
	}
	after := open(t, cut)
	d := byID(t, after, "main-d01")
	if d.Trust != fleet.Attested || string(d.BootDigest) != "boot" || d.BootRelease != "agent/1.0.0" || d.AttestedAt.Before(noon) {
		t.Errorf("got %+v, want attested at noon or later", d)
	}
	must(t, after.Appraised(t.Context(), good("main-d01", "", "boot", noon.Add(2*time.Hour)), false))
	if l, err := after.MarkStale(t.Context(), noon.Add(2*time.Hour)); err != nil || len(l) != 0 {
		t.Errorf("after the next evidence: got %d stale, %v, want none", len(l), err)
	}
}

// TestAppraisalsAreBounded flaps longer than the store remembers.
func TestAppraisalsAreBounded(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	ds := []fleet.Device{device("main", 1)}
	must(t, s.Enrol(t.Context(), ds[0]))
	asBytes := `CAST(CAST(n - 1 AS TEXT) AS BLOB)`
	if postgres.On() {
		asBytes = `convert_to(CAST(n - 1 AS TEXT), 'UTF8')`
	}
	sql1(t, dir, `INSERT INTO attestation (device, n, at, trust, "release", reset_count, digest, findings)
		WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 500) SELECT 'main-d01', n, 1, 'attested', '', 8, `+asBytes+`, '[]' FROM c`)
	for n := 500; n < 510; n++ {
		must(t, s.Appraised(t.Context(), good(ds[0].ID, "", fmt.Sprint(n), noon), false))
	}
	l := appraisals(t, s, ds[0])
	if len(l) != 500 || string(l[0].Digest) != "509" || string(l[499].Digest) != "10" {
		t.Errorf("got %d from %q to %q, want the last 500", len(l), l[0].Digest, l[len(l)-1].Digest)
	}
	var paged []fleet.Attestation
	for p := (fleet.Page{Limit: 200}); ; {
		l, next, err := s.Attestations(t.Context(), "main", ds[0].ID, p)
		must(t, err)
		if paged = append(paged, l...); next == "" {
			break
		}
		p.After = next
	}
	if len(paged) != 500 || string(paged[499].Digest) != "10" {
		t.Errorf("by page: got %d", len(paged))
	}
}

// rolled gives a device an execution of a new rollout of that release, in that state.
func rolled(t testing.TB, s *store.Store, n int, release fleet.ReleaseID, state fleet.ExecutionState) fleet.ExecutionID {
	t.Helper()
	if err := s.AddRelease(t.Context(), fleet.Release{ID: release}, event("release.add")); err != nil {
		_, err = s.Release(t.Context(), release)
		must(t, err)
	}
	id := fleet.RolloutID(fmt.Sprintf("r%d", n))
	must(t, s.AddRollout(t.Context(), fleet.Rollout{ID: id, Tenant: "main", Release: release, State: fleet.RolloutRunning}, event("rollout.add")))
	_, err := s.Enlist(t.Context(), id)
	must(t, err)
	l, _, err := s.RolloutUnits(t.Context(), "main", id, fleet.ExecutionFilter{}, fleet.Page{})
	must(t, err)
	if state != fleet.ExecQueued {
		moved(t, s, l[0].ID, fleet.ExecOffered)
		moved(t, s, l[0].ID, state)
	}
	return l[0].ID
}

func moved(t testing.TB, s *store.Store, id fleet.ExecutionID, state fleet.ExecutionState) {
	t.Helper()
	_, err := s.MoveExecution(t.Context(), store.ExecutionStep{ID: id, State: state}, noon)
	must(t, err)
}

func TestOfferedRelease(t *testing.T) {
	s, ds := enrolled(t, 1)
	id := ds[0].ID
	want := func(what string, want fleet.ReleaseID) {
		t.Helper()
		got, err := s.OfferedRelease(t.Context(), id)
		if want == "" {
			wantErr(t, what, err, fleet.ErrNotFound)
		} else if got != want || err != nil {
			t.Errorf("%s: got %s, %v, want %s", what, got, err, want)
		}
	}
	want("no rollout", "")
	x1 := rolled(t, s, 1, "agent/1.0.0", fleet.ExecQueued)
	want("not offered yet", "")
	moved(t, s, x1, fleet.ExecOffered)
	want("offered", "agent/1.0.0")
	moved(t, s, x1, fleet.ExecRebooting)
	want("rebooting", "agent/1.0.0")
	moved(t, s, x1, fleet.ExecTimedOut)
	want("slow, as the service guesses", "agent/1.0.0")
	must(t, s.PutReferences(t.Context(), []fleet.BootReference{{Model: "vend-1", Release: "agent/1.1.0", Body: []byte("b")}}))
	rolled(t, s, 9, "app/3.0.0", fleet.ExecSucceeded)
	want("slow, and something that is no boot succeeded", "agent/1.0.0")
	x2 := rolled(t, s, 2, "agent/1.1.0", fleet.ExecOffered)
	want("offered after", "agent/1.1.0")
	moved(t, s, x2, fleet.ExecSucceeded)
	want("slow one of an older order, after the newer succeeded", "")
	rolled(t, s, 3, "agent/1.2.0", fleet.ExecFailed)
	want("failed", "")
	if _, err := s.OfferedRelease(t.Context(), "other-d01"); err == nil {
		t.Error("another device: got a release")
	}
}

// TestCommitsRelease ends executions well: the device is committed to a release that has reference values, and
// an order from before brings no older one back.
func TestCommitsRelease(t *testing.T) {
	s, ds := enrolled(t, 1)
	id := ds[0].ID
	must(t, s.PutReferences(t.Context(), []fleet.BootReference{
		{Model: "vend-1", Release: "agent/1.0.0", Body: []byte("a")}, {Model: "vend-1", Release: "agent/1.1.0", Body: []byte("b")}, {Model: "vend-2", Release: "agent/1.2.0", Body: []byte("c")},
	}))
	slow := rolled(t, s, 1, "agent/1.0.0", fleet.ExecTimedOut)
	must(t, s.Appraised(t.Context(), good(id, "agent/1.0.0", "old boot", noon), false))
	want := func(what, release, digest string) {
		t.Helper()
		if d := byID(t, s, id); d.BootRelease != release || string(d.BootDigest) != digest {
			t.Errorf("%s: got %s and %q, want %s and %q", what, d.BootRelease, d.BootDigest, release, digest)
		}
	}

	next := rolled(t, s, 2, "agent/1.1.0", fleet.ExecRebooting)
	out, err := s.Commit(t.Context(), []store.Intake{{Device: id, Tenant: "main", At: noon, Step: &store.ExecutionStep{ID: next, State: fleet.ExecSucceeded}}})
	if err != nil || out[0].Execution == nil {
		t.Fatalf("got %+v, %v", out, err)
	}
	want("a device that says so and still runs the old boot", "agent/1.1.0", "")
	must(t, s.Appraised(t.Context(), good(id, "agent/1.1.0", "new boot", noon), false))

	moved(t, s, slow, fleet.ExecSucceeded)
	want("the slow one of an older order", "agent/1.1.0", "new boot")
	rolled(t, s, 3, "agent/1.2.0", fleet.ExecSucceeded)
	want("a release without reference values for this model", "agent/1.1.0", "new boot")

	// Uncommitted, the offered boot is accepted; it stops being when the update ends badly.
	failed := rolled(t, s, 4, "agent/1.0.0", fleet.ExecRebooting)
	must(t, s.Appraised(t.Context(), good(id, "agent/1.0.0", "back boot", noon), false))
	want("offered", "agent/1.1.0", "back boot")
	moved(t, s, failed, fleet.ExecFailed)
	want("failed", "agent/1.1.0", "")

	rolled(t, s, 5, "agent/1.0.0", fleet.ExecSucceeded)
	want("what the operator orders last counts, also an older release", "agent/1.0.0", "")
}

// TestAppraisedIsAudited: the trail says of a verdict what it is told to, also when nothing else is new, and nothing
// when the verdict does not count.
func TestAppraisedIsAudited(t *testing.T) {
	s, ds := enrolled(t, 1)
	kinds := func() (out []string) {
		l, _, err := s.AuditTrail(t.Context(), "main", "", false, fleet.Page{})
		must(t, err)
		for _, ev := range l {
			out = append(out, ev.Kind)
		}
		return out
	}
	say := func(kind string) fleet.AuditEvent { ev := event(kind); ev.Tenant = "main"; return ev }
	id := ds[0].ID
	must(t, s.Appraised(t.Context(), good(id, "agent/1.0.0", "boot", noon), false, say("first")))
	must(t, s.Appraised(t.Context(), good(id, "agent/1.0.0", "boot", noon), false))
	must(t, s.Appraised(t.Context(), good(id, "agent/1.0.0", "boot", noon), false, say("steady")))
	must(t, s.Appraised(t.Context(), bad(id, noon), false))
	must(t, s.Appraised(t.Context(), bad(id, noon), false, say("refused again")))
	wantErr(t, "without kind", s.Appraised(t.Context(), good(id, "", "boot 2", noon), false, fleet.AuditEvent{}), fleet.ErrInvalid)
	if d := byID(t, s, id); d.Trust != fleet.Quarantined {
		t.Errorf("a verdict that could not be audited: got %s on file", d.Trust)
	}
	must(t, s.Revoke(t.Context(), "main", id, "stolen", say("revoked")))
	wantErr(t, "revoked", s.Appraised(t.Context(), good(id, "", "boot", noon), false, say("attested")), fleet.ErrRevoked)
	if got := kinds(); !slices.Equal(got, []string{"first", "steady", "refused again", "revoked"}) {
		t.Errorf("got %q", got)
	}
}
