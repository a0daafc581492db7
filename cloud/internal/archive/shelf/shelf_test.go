package shelf

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/postgres"
)

const device = fleet.DeviceID("dev")

var signer = trust.NewOrderSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)))

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// months is a time so many months ahead.
func months(n int) time.Time { return time.Now().AddDate(0, n, 0) }

// place is a service's folder with a store and a shelf in it.
type place struct {
	t     testing.TB
	where string // of the store
	dir   string
	store *store.Store
	shelf *Shelf
	sinks []fleet.ExportState
	head  fleet.Head
}

func options(s Store, dir string) Options {
	return Options{
		Store: s, Signer: signer, Dir: filepath.Join(dir, "archive"), Tenant: "main", Before: func(now time.Time) time.Time { return now.AddDate(0, -12, 0) },
		Sinks: func(context.Context) ([]fleet.ExportState, error) { return nil, nil }, Log: slog.New(slog.DiscardHandler),
	}
}

func newPlace(t testing.TB) *place {
	p := &place{t: t, where: postgres.Place(t), dir: t.TempDir()}
	p.open()
	must(t, p.store.Enrol(t.Context(), fleet.Device{ID: device, Tenant: "main", Tier: fleet.TierC, EKHash: "ek", AKPublic: []byte{1}, EnrolledAt: time.Now()}))
	return p
}

func (p *place) open() {
	p.t.Helper()
	var err error
	p.store, err = store.Open(p.t.Context(), p.where, slog.New(slog.DiscardHandler))
	must(p.t, err)
	p.t.Cleanup(func() { _ = p.store.Close() })
	o := options(p.store, p.dir)
	o.Sinks = func(context.Context) ([]fleet.ExportState, error) { return p.sinks, nil }
	p.shelf = New(o)
}

// records lets the device record n entries, and send them.
func (p *place) records(n int) {
	p.t.Helper()
	in := fleet.Intake{Device: device, Tenant: "main", At: time.Now()}
	for range n {
		e, err := wire.SealAudit(wire.AuditRecord{Seq: p.head.Seq + 1, At: time.Now().UnixMilli(), Boot: wire.Boot{1}, Kind: "link.up", Severity: "info", Prev: p.head.Hash})
		must(p.t, err)
		in.Audit = append(in.Audit, fleet.AuditEvent{Seq: p.head.Seq + 1, At: time.Now().Truncate(time.Millisecond), Kind: "link.up", Severity: "info", Body: e.Body, Hash: e.Hash, Prev: p.head.Hash})
		r, err := e.Open()
		must(p.t, err)
		in.Audit[len(in.Audit)-1].At = time.UnixMilli(r.At)
		p.head = fleet.Head{Seq: p.head.Seq + 1, Hash: e.Hash}
	}
	_, err := p.store.Commit(p.t.Context(), []fleet.Intake{in})
	must(p.t, err)
}

func (p *place) acts(n int) {
	p.t.Helper()
	for i := range n {
		must(p.t, p.store.Audit(p.t.Context(), fleet.AuditEvent{Tenant: "main", Kind: "device.changed", Actor: "ada", Subject: fmt.Sprint(i)}))
	}
}

func (p *place) countersigns() {
	p.t.Helper()
	payload, err := wire.Encode(&wire.Countersign{V: wire.Version, Tenant: "main", Device: string(device), Seq: p.head.Seq, Hash: p.head.Hash, At: 5})
	must(p.t, err)
	id, sig, err := signer.SignOrder(wire.OrderHead, payload)
	must(p.t, err)
	order, err := wire.Encode(&wire.Order{Kind: wire.OrderHead, Payload: payload, KeyID: id, Signature: sig})
	must(p.t, err)
	must(p.t, p.store.AddCountersign(p.t.Context(), fleet.Countersigned{Device: device, Seq: p.head.Seq, Hash: p.head.Hash, At: time.UnixMilli(5), Order: order}))
}

// behind works on the database behind the store's back. On PostgreSQL that is for the tests of the store:
// the service's role has not the right to.
func (p *place) behind() *sql.DB {
	p.t.Helper()
	if postgres.On() {
		p.t.Skip("of SQLite")
	}
	db, err := sql.Open("sqlite3", filepath.Join(p.where, "tillward.db")+"?_busy_timeout=5000")
	must(p.t, err)
	return db
}

func (p *place) raw(query string) {
	p.t.Helper()
	db := p.behind()
	defer db.Close()
	_, err := db.ExecContext(p.t.Context(), query)
	must(p.t, err)
}

func (p *place) segments() []fleet.Segment {
	p.t.Helper()
	all, _, err := p.store.Segments(p.t.Context(), "main", "", fleet.Page{})
	must(p.t, err)
	return all
}

// rows counts what the database holds of a trail.
func (p *place) rows(id fleet.DeviceID) int {
	p.t.Helper()
	all, err := p.store.TrailEntries(p.t.Context(), id, 0, 1<<62, 100_000)
	must(p.t, err)
	return len(all)
}

// kinds are the events of a kind in the service's trail.
func (p *place) kinds(kind string) (n int, last fleet.AuditEvent) {
	p.t.Helper()
	all, err := p.store.TrailEntries(p.t.Context(), "", 0, 1<<62, 100_000)
	must(p.t, err)
	for _, ev := range all {
		if ev.Kind == kind {
			n, last = n+1, ev
		}
	}
	return n, last
}

func (p *place) whole() {
	p.t.Helper()
	for _, id := range []fleet.DeviceID{device, ""} {
		if rep, err := p.store.VerifyAudit(p.t.Context(), "main", id); err != nil || !rep.OK {
			p.t.Errorf("the trail of %q: %+v, %v", id, rep, err)
		}
	}
}

// TestPutsAway: what is old goes into sealed files that follow each other, and the trails go on behind them.
func TestPutsAway(t *testing.T) {
	p := newPlace(t)
	p.records(25)
	p.countersigns()
	p.records(2*sealBatch - 10)
	p.acts(29)
	must(t, p.store.Audit(t.Context(), fleet.AuditEvent{Tenant: "other", Kind: "device.changed", Actor: "eve"})) // of all tenants
	must(t, p.shelf.run(t.Context(), months(12)))
	if got := p.segments(); len(got) != 0 {
		t.Fatalf("before they are a month over: %+v", got)
	}
	must(t, p.shelf.run(t.Context(), months(14)))
	got := p.segments()
	if len(got) != 2 || got[0].Trail != "" || got[0].First != 1 || got[0].Last < 29 || got[1].Trail != device || got[1].First != 1 || got[1].Last != p.head.Seq || got[1].Entries != p.head.Seq {
		t.Fatalf("got %+v", got)
	}
	if n := p.rows(device); n != 0 {
		t.Errorf("%d rows of the device are left", n)
	}
	if n, ev := p.kinds("audit.archived"); n != 2 || ev.Subject != string(device) || ev.Detail["entries"] != fmt.Sprint(p.head.Seq) {
		t.Errorf("audited: %d, %+v", n, ev)
	}
	p.whole()
	rep, err := p.shelf.Verify(t.Context(), "main", got[1].N)
	if err != nil || rep.Verdict != archive.Whole {
		t.Errorf("segment: %+v, %v", rep, err)
	}

	// What comes again is known, and what comes next follows.
	before := p.head
	p.head = fleet.Head{}
	p.records(5)
	p.head = before
	p.records(10)
	p.whole()
	must(t, p.shelf.run(t.Context(), months(12)))
	if n := p.rows(device); n != 10 {
		t.Errorf("%d rows of the device, want 10", n)
	}
	p.acts(1) // the newest row stays, whosever it is
	must(t, p.shelf.run(t.Context(), months(28)))
	got = p.segments()
	if last := got[len(got)-1]; len(got) != 4 || last.Trail != device || last.First != before.Seq+1 || last.Last != p.head.Seq {
		t.Fatalf("got %+v", got)
	}
	r := p.read(got[3])
	if r.Verdict != archive.Whole || r.After != (archive.Point{Seq: before.Seq, Hash: before.Hash}) || r.MadeBy != "service" {
		t.Errorf("the second segment: %+v", r)
	}
	if r := p.read(got[1]); r.Countersigned != 1 || r.CountersignedTo != 25 || r.Key != "given" {
		t.Errorf("the first: %+v", r)
	}
	p.whole()
	p.records(3)
	var buf bytes.Buffer
	entries, write, err := p.shelf.Export(t.Context(), "main", device, 0, 0, "ada")
	must(t, err)
	must(t, write(t.Context(), &buf))
	if r, err := archive.Verify(&buf, p.shelf.trust()); err != nil || entries != 3 || r.Verdict != archive.Whole || r.Entries != 3 || r.After.Seq != p.head.Seq-3 || r.MadeBy != "ada" {
		t.Errorf("export: %d, %+v, %v", entries, r, err)
	}
	if _, _, err := p.shelf.Export(t.Context(), "main", device, 1, 0, "ada"); !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "lie in sealed segments") {
		t.Errorf("export of what is put away: %v", err)
	}
	if _, _, err := p.shelf.Export(t.Context(), "main", device, 0, 5, "ada"); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("export up to what is put away: %v", err)
	}
	if _, _, err := p.shelf.Export(t.Context(), "other", device, 0, 0, "eve"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("export to another tenant: %v", err)
	}
}

func (p *place) read(g fleet.Segment) archive.Report {
	p.t.Helper()
	rep, err := p.shelf.read(&g)
	must(p.t, err)
	return rep
}

// TestHeldBySinks: what a receiver has not been sent stays, and that is told once.
func TestHeldBySinks(t *testing.T) {
	p := newPlace(t)
	p.records(10)
	p.sinks = []fleet.ExportState{{Name: "fast", ExportCursor: fleet.ExportCursor{N: 9}}, {Name: "slow", ExportCursor: fleet.ExportCursor{N: 4}}}
	for range 2 {
		must(t, p.shelf.run(t.Context(), months(14)))
		if got := p.segments(); len(got) != 1 || got[0].Trail != device || got[0].Last != 4 {
			t.Fatalf("got %+v", got)
		}
	}
	if st := p.shelf.State(); st.Held != "slow" || st.Err != nil || st.At.IsZero() {
		t.Errorf("state: %+v", st)
	}
	if n, ev := p.kinds("audit.archive_held"); n != 1 || ev.Subject != "slow" || ev.Severity != "warn" {
		t.Errorf("told %d times, %+v", n, ev)
	}
	p.sinks = nil
	must(t, p.shelf.run(t.Context(), months(14)))
	if n := p.rows(device); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	p.whole()
}

// TestWhatDoesNotHoldStays: evidence of a change is not cleared away by the clock.
func TestWhatDoesNotHoldStays(t *testing.T) {
	p := newPlace(t)
	p.records(10)
	p.raw(`DROP TRIGGER audit_unchanged; UPDATE audit SET kind = 'nothing' WHERE device = 'dev' AND seq = 7`)
	for range 2 {
		must(t, p.shelf.run(t.Context(), months(14)))
	}
	if n := p.rows(device); n != 10 {
		t.Errorf("%d rows, want all 10", n)
	}
	if st := p.shelf.State(); st.Unsound != 1 || st.Err != nil {
		t.Errorf("state: %+v", st)
	}
	if left, err := filepath.Glob(filepath.Join(p.dir, "archive", "de", "*")); err != nil || len(left) != 0 {
		t.Errorf("a file that is no segment is left: %v, %v", left, err)
	}
	if n, ev := p.kinds("audit.archive_failed"); n != 1 || ev.Severity != "alarm" || !strings.Contains(ev.Detail["what"], "edited at entry 7") {
		t.Errorf("told %d times: %+v", n, ev)
	}
}

// TestNoRoomForSegments: a folder that cannot be written is told of once, and nothing is deleted.
func TestNoRoomForSegments(t *testing.T) {
	p := newPlace(t)
	p.records(10)
	must(t, os.WriteFile(filepath.Join(p.dir, "archive"), nil, 0o600))
	for range 2 {
		if err := p.shelf.run(t.Context(), months(14)); err == nil {
			t.Error("got no error")
		}
	}
	if n, ev := p.kinds("audit.archive_failed"); n != 1 || ev.Subject != "service" || p.rows(device) != 10 {
		t.Errorf("told %d times: %+v, %d rows", n, ev, p.rows(device))
	}
	if st := p.shelf.State(); st.Err == nil {
		t.Errorf("state: %+v", st)
	}
	must(t, os.Remove(filepath.Join(p.dir, "archive")))
	// A file of before the database was set back is nobody's to write over.
	old := filepath.Join(p.dir, "archive", "de", "dev-000000000001.trail.gz")
	must(t, os.MkdirAll(filepath.Dir(old), 0o700))
	must(t, os.WriteFile(old, []byte("sealed"), 0o600))
	must(t, p.shelf.run(t.Context(), months(14)))
	if len(p.segments()) == 0 {
		t.Error("nothing was put away afterwards")
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "sealed" {
		t.Errorf("what was there: %q, %v", b, err)
	}
	p.records(5)
	p.acts(1)
	before, _ := p.kinds("audit.archive_failed")
	must(t, os.RemoveAll(filepath.Join(p.dir, "archive")))
	must(t, os.WriteFile(filepath.Join(p.dir, "archive"), nil, 0o600))
	if err := p.shelf.run(t.Context(), months(14)); err == nil {
		t.Error("got no error")
	}
	if n, _ := p.kinds("audit.archive_failed"); n != before+1 {
		t.Errorf("when it comes again: told %d times, want once more", n-before)
	}
}

// TestRowsGoOnlyIntoSegments is the must-fail twin: no way but by a segment.
func TestRowsGoOnlyIntoSegments(t *testing.T) {
	p := newPlace(t)
	p.records(10)
	p.countersigns()
	p.records(10)
	if n, err := p.store.DropArchived(t.Context(), device, 100); err != nil || n != 0 {
		t.Errorf("nothing is archived: %d, %v", n, err)
	}
	for _, query := range []string{
		`DELETE FROM audit`, `DELETE FROM audit WHERE device = 'dev' AND seq = 1`, `DELETE FROM countersign`, `UPDATE audit SET body = X'00'`, `UPDATE audit SET device = 'x'`, `UPDATE countersign SET seq = 1`,
		`INSERT INTO audit_gate VALUES ('segment'); DELETE FROM audit WHERE device = 'dev'`, // the gate alone does not do
		`INSERT INTO audit_gate VALUES ('leave'); UPDATE audit SET body = X'00'`,
		`INSERT INTO audit_gate VALUES ('segment'); DELETE FROM segment WHERE 1; DELETE FROM countersign`,
	} {
		db := p.behind()
		_, err := db.ExecContext(t.Context(), `BEGIN; `+query+`; COMMIT`)
		if err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: got %v, want a refusal", query, err)
		}
		must(t, db.Close())
	}
	// A segment that is not what follows is refused.
	for _, g := range []fleet.Segment{{Trail: device, First: 1, Last: 5, Hash: [32]byte{1}}, {Trail: device, First: 6, Last: 5}, {Trail: device, First: 0, Last: 5}, {Trail: "nobody", First: 1, Last: 1}} {
		if err := p.store.AddSegment(t.Context(), "main", g, fleet.AuditEvent{Kind: "audit.archived"}); err == nil {
			t.Errorf("%+v: got no error", g)
		}
	}
	if n := p.rows(device); n != 20 {
		t.Errorf("%d rows, want 20", n)
	}
	p.whole()
}

// TestSegmentIsNotWhatWasPutThere: a file that was changed, exchanged or lost is found out.
func TestSegmentIsNotWhatWasPutThere(t *testing.T) {
	p := newPlace(t)
	p.records(10)
	must(t, p.shelf.run(t.Context(), months(14)))
	g := p.segments()[0]
	name := filepath.Join(p.dir, "archive", filepath.FromSlash(g.File))
	good, err := os.ReadFile(name)
	must(t, err)
	z, err := gzip.NewReader(bytes.NewReader(good))
	must(t, err)
	text, err := io.ReadAll(z)
	must(t, err)
	packed := func(b []byte) []byte {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		_, err := w.Write(b)
		must(t, errors.Join(err, w.Close()))
		return buf.Bytes()
	}
	var other bytes.Buffer
	w, err := archive.NewWriter(&other, archive.Header{What: archive.DeviceTrail, Tenant: "main", Device: string(device)})
	must(t, err)
	_, err = w.Close(signer)
	must(t, err)
	for what, c := range map[string]struct {
		file []byte
		want string
	}{
		"as it was":       {good, archive.Whole},
		"edited":          {packed(bytes.Replace(text, []byte("link.up"), []byte("link.no"), 1)), archive.Edited},
		"cut":             {packed(text[:len(text)/2]), archive.Truncated},
		"half a file":     {good[:len(good)/2], archive.Truncated},
		"not compressed":  {text, "unreadable"},
		"another trail":   {packed(other.Bytes()), archive.Forked},
		"compressed anew": {append(packed(text[:9]), packed(text[9:])...), archive.Forked}, // the same trail, and another file
		"empty":           {nil, "unreadable"},
	} {
		must(t, os.WriteFile(name, c.file, 0o600))
		if rep, err := p.shelf.Verify(t.Context(), "main", g.N); err != nil || rep.Verdict != c.want || rep.Text == "" {
			t.Errorf("%s: got %s (%s), %v, want %s", what, rep.Verdict, rep.Text, err, c.want)
		}
	}
	must(t, os.Remove(name))
	if rep, err := p.shelf.Verify(t.Context(), "main", g.N); err != nil || rep.Verdict != "missing" {
		t.Errorf("gone: got %+v, %v", rep, err)
	}
	if _, err := p.shelf.Verify(t.Context(), "other", g.N); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("of another tenant: %v", err)
	}
}

// cutStore dies at its nth call, as a process does whose power fails.
type cutStore struct {
	*store.Store
	left int
}

func (c *cutStore) call() {
	if c.left--; c.left == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (c *cutStore) TrailEntries(ctx context.Context, id fleet.DeviceID, seq, last uint64, limit int) ([]fleet.AuditEvent, error) {
	c.call()
	return c.Store.TrailEntries(ctx, id, seq, last, limit)
}

func (c *cutStore) AddSegment(ctx context.Context, t fleet.TenantID, g fleet.Segment, ev fleet.AuditEvent) error {
	c.call() // the file is there
	err := c.Store.AddSegment(ctx, t, g, ev)
	c.call() // and is noted
	return err
}

func (c *cutStore) DropArchived(ctx context.Context, id fleet.DeviceID, limit int) (int64, error) {
	c.call()
	n, err := c.Store.DropArchived(ctx, id, min(limit, 7))
	c.call()
	return n, err
}

const (
	cutEnv      = "TILLWARD_SHELF_CUT"
	cutStoreEnv = "TILLWARD_SHELF_CUT_STORE"
	cutLeft     = "TILLWARD_SHELF_CUT_LEFT"
)

// TestMain is the child of TestCut when told so.
func TestMain(m *testing.M) {
	dir := os.Getenv(cutEnv)
	if dir == "" {
		os.Exit(postgres.Main(m, func(ctx context.Context, url string) error {
			return store.Setup(ctx, url, "", slog.New(slog.DiscardHandler))
		}))
	}
	left, _ := strconv.Atoi(os.Getenv(cutLeft))
	s, err := store.Open(context.Background(), os.Getenv(cutStoreEnv), slog.New(slog.DiscardHandler))
	if err == nil {
		err = New(options(&cutStore{Store: s, left: left}, dir)).run(context.Background(), months(14))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestCut kills the process at each of its steps. Each time all entries are there, once: in the database or
// in a segment that is noted and whole; and the next run goes on.
func TestCut(t *testing.T) {
	p := newPlace(t)
	p.records(20)
	p.acts(5)
	count := map[fleet.DeviceID]uint64{device: 20, "": 0}
	cuts := 0
	for n := 1; ; n++ {
		must(t, p.store.Close())
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), cutEnv+"="+p.dir, cutStoreEnv+"="+p.where, cutLeft+"="+strconv.Itoa(n))
		cmd.Stderr = os.Stderr
		err := cmd.Run()
		p.open()
		st, err2 := p.store.TrailStateOf(t.Context(), "")
		must(t, err2)
		count[""] = st.Head
		p.inOnePlace(count)
		p.whole()
		if err == nil {
			break
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Exited() {
			t.Fatalf("cut %d: %v", n, err)
		}
		if cuts = n; n > 100 {
			t.Fatal("it does not get done")
		}
	}
	if n := p.rows(device); n != 0 || cuts < 5 {
		t.Errorf("%d rows are left after %d cuts", n, cuts)
	}
	left, err := filepath.Glob(filepath.Join(p.dir, "archive", "*", "*.part"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// inOnePlace checks that of each trail the entries 1 to n are there, none twice.
func (p *place) inOnePlace(want map[fleet.DeviceID]uint64) {
	p.t.Helper()
	for id, n := range want {
		var sealed, last uint64
		for _, g := range p.segments() {
			if g.Trail != id {
				continue
			}
			is := g
			if r, err := p.shelf.read(&is); err != nil || r.Verdict != archive.Whole || is.SHA256 != g.SHA256 || g.First != last+1 || r.Entries != g.Last-last {
				p.t.Fatalf("segment %+v: %+v, %v", g, r, err)
			}
			last, sealed = g.Last, sealed+g.Entries
		}
		rows, err := p.store.TrailEntries(p.t.Context(), id, last, 1<<62, 100_000)
		must(p.t, err)
		if sealed+uint64(len(rows)) != n {
			p.t.Fatalf("trail %q: %d entries in segments and %d in the database, want %d", id, sealed, len(rows), n)
		}
	}
}

// BenchmarkPutAway tells how fast entries go from the database into a sealed file that was read back.
func BenchmarkPutAway(b *testing.B) {
	const entries = 20_000
	for b.Loop() {
		b.StopTimer()
		p := newPlace(b)
		for range entries / 1000 {
			p.records(1000)
		}
		p.acts(1)
		b.StartTimer()
		must(b, p.shelf.run(b.Context(), months(14)))
		b.StopTimer()
		if n := p.rows(device); n != 0 {
			b.Fatalf("%d rows are left", n)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*entries/b.Elapsed().Seconds(), "entries/s")
}
