package store_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
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

const cutEnv = "TILLWARD_STORE_CUT"

// each commit of the child holds this much
const (
	cutMessages = 5
	cutSamples  = 20
)

// TestMain is the child of TestKilled when told so.
func TestMain(m *testing.M) {
	if dir := os.Getenv(cutEnv); dir != "" {
		commitForever(dir)
		return
	}
	os.Exit(m.Run())
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
	db, err := sql.Open("sqlite3", filepath.Join(dir, "tillward.db"))
	must(t, err)
	defer db.Close()
	must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

// fatal ends the child where a test would end.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { fmt.Fprintln(os.Stderr, args...); os.Exit(1) }

// TestKilled kills a committing process again and again: what Commit returned is there, a group is there as a
// whole or not at all, and counters and chains agree with the rows.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, s.Enrol(t.Context(), device("main", 1)))
	must(t, s.Close())
	var told uint64
	for round := range 8 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), cutEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for range 3 + 7*round { // somewhere else in a group each time
			if !lines.Scan() {
				t.Fatal("the child ended by itself")
			}
			told, err = strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64)
			must(t, err)
		}
		must(t, cmd.Process.Kill())
		for lines.Scan() { // what it said before it died counts as well
			if n, err := strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64); err == nil {
				told = n
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child was not killed")
		}

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
