package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/simulator/postgres"
)

// sealed is ev with another time, sealed anew.
func sealed(t testing.TB, ev fleet.AuditEvent, unixMilli int64) fleet.AuditEvent {
	t.Helper()
	e, err := wire.SealAudit(wire.AuditRecord{
		Seq: ev.Seq, At: unixMilli, Boot: wire.Boot{1}, Kind: ev.Kind, Severity: ev.Severity, Subject: ev.Subject, Detail: ev.Detail, Prev: ev.Prev,
	})
	must(t, err)
	ev.At, ev.Body, ev.Hash = time.UnixMilli(unixMilli), e.Body, e.Hash
	return ev
}

// what a child does, and where
const (
	cutEnv  = "TILLWARD_STORE_CUT"
	cutWhat = "TILLWARD_STORE_CUT_WHAT"
)

// each commit of the child holds this much
const (
	cutMessages = 5
	cutSamples  = 20
)

// TestMain is the child of a test that kills it when told so.
func TestMain(m *testing.M) {
	dir := os.Getenv(cutEnv)
	switch os.Getenv(cutWhat) {
	case "commit":
		commitForever(dir)
	case "appraise":
		appraiseForever(dir)
	case "change hands":
		changeHandsForever(dir)
	}
	os.Exit(postgres.Main(m, func(ctx context.Context, url string) error { return store.Setup(ctx, url, "", quiet) }))
}

// commitForever commits groups of messages and says so after each.
func commitForever(dir string) {
	ctx, t := context.Background(), fatal{}
	s, err := store.Open(ctx, dir, quiet)
	must(t, err)
	d, err := s.DeviceByID(ctx, "main-d01")
	must(t, err)
	seq, hash, err := s.AuditHead(ctx, d.ID)
	must(t, err)
	for n := d.Samples / (cutMessages * cutSamples); ; n++ {
		var in []store.Intake
		for i := range uint64(cutMessages) {
			ev := chain(t, seq+1, hash, 1, "link.up")[0]
			seq, hash = ev.Seq, ev.Hash
			in = append(in, store.Intake{
				Device: d.ID, Tenant: "main", At: noon, Samples: samples(n*cutMessages+i+1, cutSamples), Audit: []fleet.AuditEvent{ev},
				Service: &fleet.AuditEvent{Kind: "ingest.noted", Actor: "ingest"},
			})
		}
		_, err := s.Commit(ctx, in)
		must(t, err)
		fmt.Println(n + 1)
	}
}

func count(t *testing.T, dir, query string) (n uint64) {
	t.Helper()
	db, err := store.Behind(dir)
	must(t, err)
	defer db.Close()
	must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

// fatal ends the child where a test would end.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { fmt.Fprintln(os.Stderr, args...); os.Exit(1) }

// killed lets a child work on the store in dir, and kills it after it has said that number of lines. It returns
// the last line it said.
func killed(t *testing.T, dir, what string, lines int) (told uint64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), cutEnv+"="+dir, cutWhat+"="+what)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	said := bufio.NewScanner(out)
	for range lines {
		if !said.Scan() {
			t.Fatal("the child ended by itself")
		}
		told, err = strconv.ParseUint(strings.TrimSpace(said.Text()), 10, 64)
		must(t, err)
	}
	must(t, cmd.Process.Kill())
	for said.Scan() { // what it said before it died counts as well
		if n, err := strconv.ParseUint(strings.TrimSpace(said.Text()), 10, 64); err == nil {
			told = n
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	return told
}

// TestKilled kills a committing process again and again: what Commit returned is there, a group is there as a
// whole or not at all, and counters and chains agree with the rows.
func TestKilled(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	must(t, s.Enrol(t.Context(), device("main", 1)))
	must(t, s.Close())
	for round := range 8 {
		told := killed(t, dir, "commit", 3+7*round) // somewhere else in a group each time

		s := open(t, dir)
		d, err := s.DeviceByID(t.Context(), "main-d01")
		must(t, err)
		groups := d.Samples / (cutMessages * cutSamples)
		if d.Samples%(cutMessages*cutSamples) != 0 || groups < told || groups > told+1 {
			t.Errorf("round %d: got %d samples, want %d groups of %d or one more", round, d.Samples, told, cutMessages*cutSamples)
		}
		rows := count(t, dir, `SELECT COUNT(*) FROM sample`)
		series, err := s.Series(t.Context(), "main", d.ID)
		must(t, err)
		if rows != d.Samples || series[0].Count != d.Samples {
			t.Errorf("round %d: got %d rows and a series of %d, want %d", round, rows, series[0].Count, d.Samples)
		}
		for _, id := range []fleet.DeviceID{d.ID, ""} {
			rep, err := s.VerifyAudit(t.Context(), "main", id)
			if err != nil || !rep.OK || rep.Entries != groups*cutMessages {
				t.Errorf("round %d: trail of %q: got %+v, %v, want %d entries", round, id, rep, err, groups*cutMessages)
			}
		}
		must(t, s.Close())
	}
}

// appraiseForever says something new of a device again and again, beside others that do the same.
func appraiseForever(dir string) {
	ctx, t := context.Background(), fatal{}
	s, err := store.Open(ctx, dir, quiet)
	must(t, err)
	first := uint64(0)
	if l, _, err := s.Attestations(ctx, "main", "main-d01", fleet.Page{Limit: 1}); err == nil && len(l) == 1 {
		first, err = strconv.ParseUint(string(l[0].Digest), 10, 64)
		must(t, err)
	}
	verdict := func(id fleet.DeviceID, n uint64) {
		a := good(id, "", strconv.FormatUint(n, 10), noon)
		if n%3 == 0 {
			a.Trust, a.Findings = fleet.Quarantined, []fleet.Finding{unknown}
		}
		ev := event("attest." + string(a.Trust))
		ev.Tenant, ev.Subject, ev.Detail = "main", string(id), map[string]string{"n": string(a.Digest)}
		must(t, s.Appraised(ctx, a, false, ev))
	}
	verdict("main-d02", first+1)
	go func() {
		for n := first + 2; ; n++ {
			verdict("main-d02", n)
		}
	}()
	for n := first + 1; ; n++ {
		verdict("main-d01", n)
		fmt.Println(n)
	}
}

// TestKilledAppraising kills it: a verdict that Appraised returned is there, on the device and among those that
// are kept; and what the trail says of a verdict is there when the verdict is, and not without it.
func TestKilledAppraising(t *testing.T) {
	dir := postgres.Place(t)
	s := open(t, dir)
	for n := range 2 {
		must(t, s.Enrol(t.Context(), device("main", n+1)))
	}
	must(t, s.Close())
	for round := range 4 {
		told := killed(t, dir, "appraise", 3+10*round)
		s := open(t, dir)
		for _, id := range []fleet.DeviceID{"main-d01", "main-d02"} {
			d := byID(t, s, id)
			l := appraisals(t, s, d)
			n, err := strconv.ParseUint(string(l[0].Digest), 10, 64)
			must(t, err)
			if id == "main-d01" && (n < told || n > told+1) {
				t.Errorf("round %d: got verdict %d, want %d or one more", round, n, told)
			}
			want, digest := fleet.Attested, l[0].Digest
			if n%3 == 0 {
				want, digest = fleet.Quarantined, nil
			}
			if d.Trust != want || l[0].Trust != want || string(d.BootDigest) != string(digest) {
				t.Errorf("round %d: verdict %d on %s: got %s, kept as %s, accepted boot %q", round, n, id, d.Trust, l[0].Trust, d.BootDigest)
			}
			trail, _, err := s.AuditTrail(t.Context(), "main", "", true, fleet.Page{Limit: 1000})
			must(t, err)
			i := slices.IndexFunc(trail, func(ev fleet.AuditEvent) bool { return ev.Subject == string(id) })
			if i < 0 || trail[i].Detail["n"] != string(l[0].Digest) || trail[i].Kind != "attest."+string(want) {
				t.Errorf("round %d: verdict %d on %s: the trail ends with %+v", round, n, id, trail[max(i, 0)])
			}
		}
		must(t, s.Close())
	}
}

const hands = 8 // steps of a device from the vendor's list to the next owner

// changeHandsForever takes one device after another through them.
func changeHandsForever(dir string) {
	ctx, t := context.Background(), fatal{}
	s, err := store.Open(ctx, dir, quiet)
	must(t, err)
	n := 1
	for ; ; n++ {
		if _, err := s.ListedDevice(ctx, listed(n).Device); err != nil {
			break
		}
	}
	for ; ; n++ {
		l, d := listed(n), device("main", n)
		d.ID, d.EKHash, d.CertSerial = l.Device, l.EKHash, "01"
		for step, do := range []func() error{
			func() error {
				_, err := s.ImportManifest(ctx, []store.Listing{l}, event("manifest.import"))
				return err
			},
			func() error {
				if err := s.Claim(ctx, "main", l.Device, "guess", "", "", event("device.claim")); !errors.Is(err, fleet.ErrClaim) {
					return fmt.Errorf("wrong code: got %w", err)
				}
				return nil
			},
			func() error { return s.Claim(ctx, "main", l.Device, l.ClaimHash, "", "", event("device.claim")) },
			func() error { return s.Enrol(ctx, d) },
			func() error { return s.SetRenewed(ctx, d.ID, fleet.Renewed{CertSerial: "02"}, "", nil) },
			func() error { _, err := s.Admit(ctx, d.ID, "main", "02"); return err },
			func() error {
				return s.PutOwnership(ctx, stands(d.ID, 3, "abc", fleet.Released), event("ownership.set"))
			},
			func() error { return s.Reset(ctx, d.ID, event("device.reset")) },
		} {
			must(t, do())
			fmt.Println((n-1)*hands + step + 1)
		}
	}
}

// TestKilledChangingHands kills it: each step that was acknowledged is there, the next one as a whole or not at
// all, and the trail tells of each once.
func TestKilledChangingHands(t *testing.T) {
	dir := postgres.Place(t)
	for round := range 2 * hands {
		told := killed(t, dir, "change hands", 1+round)
		s := open(t, dir)
		n := int(told+hands-1) / hands
		step := handed(t, s, dir, n)
		if step == hands { // the next device may have begun
			n++
			step = handed(t, s, dir, n)
		}
		if got := uint64((n-1)*hands + step); got < told || got > told+1 {
			t.Errorf("round %d: got step %d, want %d or one more", round, got, told)
		}
		rep, err := s.VerifyAudit(t.Context(), "main", "")
		entries := count(t, dir, `SELECT COUNT(*) + COUNT(CASE WHEN claimed_at > 0 THEN 1 END) FROM listing`) + count(t, dir, `SELECT COUNT(*) FROM ownership`) +
			count(t, dir, `SELECT COUNT(*) FROM device WHERE former_of <> ''`)
		if err != nil || !rep.OK || rep.Entries != entries {
			t.Errorf("round %d: trail: got %+v, %v, want %d entries", round, rep, err, entries)
		}
		must(t, s.Close())
	}
}

// handed says how many steps a device has gone, and fails when it stands between two.
func handed(t *testing.T, s *store.Store, dir string, n int) int {
	t.Helper()
	id := listed(n).Device
	l, err := s.ListedDevice(t.Context(), id)
	if errors.Is(err, fleet.ErrNotFound) {
		return 0
	}
	must(t, err)
	wrong := count(t, dir, `SELECT wrong_claims FROM listing WHERE device = '`+string(id)+`'`)
	former := count(t, dir, `SELECT COUNT(*) FROM device WHERE former_of = '`+string(id)+`' AND cert_serial = '02'`)
	d, err := s.DeviceByID(t.Context(), id)
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		t.Fatal(err)
	}
	live := err == nil
	_, err = s.Ownership(t.Context(), id)
	released := err == nil
	claimed := l.Tenant == "main" && l.ClaimHash == "" && !l.ClaimedAt.IsZero() && wrong == 0
	fresh := l.Tenant == "" && l.ClaimHash != "" && l.ClaimedAt.IsZero() && !live && !released
	switch {
	case fresh && wrong <= 1:
		return 1 + int(wrong)
	case claimed && !live && !released && former == 0:
		return 3
	case claimed && live && !released && d.CertSerial == "01" && d.Next.CertSerial == "":
		return 4
	case claimed && live && !released && d.CertSerial == "01" && d.Next.CertSerial == "02":
		return 5
	case claimed && live && d.CertSerial == "02" && d.Next.CertSerial == "" && former == 0:
		return 6 + map[bool]int{true: 1}[released]
	case l.Tenant == "" && l.ClaimHash == "" && !l.ClaimedAt.IsZero() && !live && released && former == 1:
		return hands
	}
	t.Fatalf("device %s stands between two steps: listing %+v, %d wrong codes, device %+v, released %t, %d former", id, l, wrong, d, released, former)
	return 0
}
