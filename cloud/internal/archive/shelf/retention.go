package shelf

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/durable"
)

const (
	retainEvery  = 6 * time.Hour
	segmentEvery = 30 * 24 * time.Hour // a trail is put away so often, not a row a day
	ripePage     = 500                 // trails looked at in one query
	dropBatch    = 1000                // rows deleted in one transaction
)

type retentionStore interface {
	Ripe(ctx context.Context, from string, due, until time.Time, held int64, limit int) ([]fleet.RipeTrail, string, error)
	AddSegment(ctx context.Context, t fleet.TenantID, g fleet.Segment, ev fleet.AuditEvent) error
	DropArchived(ctx context.Context, id fleet.DeviceID, limit int) (int64, error)
	Undropped(ctx context.Context) ([]fleet.DeviceID, error)
	Audit(ctx context.Context, ev fleet.AuditEvent) error
}

// Run puts away what is old until ctx ends.
func (x *Shelf) Run(ctx context.Context) error {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		if err := x.run(ctx, time.Now()); err != nil && ctx.Err() == nil {
			x.o.Log.Error("put the audit trails away; it is tried again", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// run does it once, as of now.
func (x *Shelf) run(ctx context.Context, now time.Time) error {
	var st State
	st.Err = x.round(ctx, now, &st)
	if st.Err == nil { // what comes again after it was well is told again
		delete(x.told, kindFailed+"service")
		maps.DeleteFunc(x.told, func(what string, _ bool) bool { return st.Held == "" && strings.HasPrefix(what, kindHeld) })
	}
	st.At = time.Now()
	x.mu.Lock()
	x.state = st
	x.mu.Unlock()
	return st.Err
}

func (x *Shelf) round(ctx context.Context, now time.Time, st *State) error {
	begun, err := x.o.Store.Undropped(ctx)
	if err != nil {
		return err
	}
	for _, id := range begun {
		if err := x.drop(ctx, id); err != nil {
			return err
		}
	}
	held, slow, err := x.held(ctx)
	if err != nil {
		return err
	}
	until := x.o.Before(now)
	for from := ""; ; {
		ripe, next, err := x.o.Store.Ripe(ctx, from, until.Add(-segmentEvery), until, held, ripePage)
		if err != nil {
			return err
		}
		for _, t := range ripe {
			if t.Held {
				st.Held = slow
				x.tell(ctx, kindHeld, "warn", slow, "entries are old enough to be put away, and sink "+slow+" has not sent them: see tillward export list")
			}
			if t.Last == 0 {
				continue
			}
			who := cmp.Or(string(t.Device), "service")
			switch err := x.put(ctx, t); {
			case errors.Is(err, errUnsound):
				st.Unsound++
				x.o.Log.Error("put a trail away", slog.String("trail", who), slog.Any("err", err))
				x.tell(ctx, kindFailed, "alarm", who, fmt.Sprintf("its entries stay in the database: %.300v", err))
			case err != nil && ctx.Err() == nil: // the disk, say: the others would not fare better
				x.tell(ctx, kindFailed, "alarm", "service", fmt.Sprintf("entries stay in the database: %.300v", err))
				return err
			case err != nil:
				return err
			}
		}
		if next == "" {
			return nil
		}
		from = next
	}
}

// held is the row that no sink is behind, and which sink is the last.
func (x *Shelf) held(ctx context.Context) (n int64, sink string, err error) {
	all, err := x.o.Sinks(ctx)
	n = math.MaxInt64
	for _, s := range all {
		if s.N < n {
			n, sink = s.N, s.Name
		}
	}
	return n, sink, err
}

// What is told.
const (
	kindHeld   = "audit.archive_held"
	kindFailed = "audit.archive_failed"
)

// tell writes to the service's trail, once as long as it stays so and the
// service runs.
func (x *Shelf) tell(ctx context.Context, kind, severity, subject, what string) {
	if x.told[kind+subject] {
		return
	}
	err := x.o.Store.Audit(ctx, fleet.AuditEvent{Tenant: x.o.Tenant, Kind: kind, Severity: severity, Actor: "service", Subject: subject, Detail: map[string]string{"what": what}})
	if err != nil {
		x.o.Log.Error("audit", slog.String("kind", kind), slog.Any("err", err))
		return
	}
	x.told[kind+subject] = true
}

var errUnsound = errors.New("the trail does not hold")

// put writes a segment, notes it and deletes its rows.
func (x *Shelf) put(ctx context.Context, t fleet.RipeTrail) error {
	if t.Tenant == "" {
		t.Tenant = x.o.Tenant
	}
	name, err := x.free(segmentName(t))
	if err != nil {
		return err
	}
	to := filepath.Join(x.o.Dir, filepath.FromSlash(name))
	seal, err := x.write(ctx, to, t)
	switch {
	case errors.Is(err, archive.ErrNoTrail): // no reader would take it; other trails are not the worse for that
		return fmt.Errorf("%w: write segment %s: %w", errUnsound, name, err)
	case err != nil:
		return fmt.Errorf("write segment %s: %w", name, err)
	}
	g := fleet.Segment{Trail: t.Device, First: seal.First, Last: seal.Head.Seq, Hash: seal.Head.Hash, Entries: seal.Entries, File: name}
	rep, err := x.read(&g)
	if err != nil {
		return fmt.Errorf("read segment %s back: %w", name, err)
	}
	// A gap was there before, and the alarm of it. What was changed in the database stays there to be looked at.
	if rep.Verdict != archive.Whole && rep.Verdict != archive.Gap {
		return errors.Join(fmt.Errorf("%w: it is %s at entry %d: %s", errUnsound, rep.Verdict, rep.FirstBad, rep.Text), os.Remove(to))
	}
	ev := fleet.AuditEvent{
		Kind: "audit.archived", Severity: "info", Actor: "service", Subject: cmp.Or(string(t.Device), "service"), Outcome: "success",
		Detail: map[string]string{
			"file": name, "first": strconv.FormatUint(g.First, 10), "last": strconv.FormatUint(g.Last, 10), "entries": strconv.FormatUint(g.Entries, 10), "sha256": fmt.Sprintf("%x", g.SHA256),
		},
	}
	switch err := x.o.Store.AddSegment(ctx, t.Tenant, g, ev); {
	case errors.Is(err, fleet.ErrConflict): // something came late: the next run has it, too
		x.o.Log.Info("a trail has changed while it was put away; it is done anew", slog.String("file", name), slog.Any("err", err))
		return os.Remove(to)
	case err != nil:
		return err
	}
	return x.drop(ctx, t.Device)
}

func (x *Shelf) drop(ctx context.Context, id fleet.DeviceID) error {
	for {
		if n, err := x.o.Store.DropArchived(ctx, id, dropBatch); err != nil || n == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// segmentName is where a segment lies, unless something lies there already.
func segmentName(t fleet.RipeTrail) string {
	who := cmp.Or(string(t.Device), "service")
	folder := who
	if t.Device != "" {
		folder = who[:min(2, len(who))]
	}
	return path.Join(folder, fmt.Sprintf("%s-%012d.trail.gz", who, t.From.Seq+1))
}

// write writes a segment to a file, which is whole and on the disk, or not there.
func (x *Shelf) write(ctx context.Context, to string, t fleet.RipeTrail) (seal archive.Seal, err error) {
	dir := filepath.Dir(to)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return seal, err
	}
	tmp := to + ".part"                                                   // the next try writes over what is left of one that was cut off
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // #nosec G304 -- named by us
	if err != nil {
		return seal, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	z := gzip.NewWriter(f)
	seal, err = x.seal(ctx, z, t.Tenant, stretch{device: t.Device, formerOf: t.FormerOf, after: t.From, last: t.Last, by: "service", all: t.Device == ""})
	if err := errors.Join(err, z.Close(), f.Sync(), f.Close()); err != nil {
		return seal, err
	}
	if err := os.Rename(tmp, to); err != nil {
		return seal, err
	}
	return seal, errors.Join(durable.SyncDir(dir), durable.SyncDir(x.o.Dir), durable.SyncDir(filepath.Dir(x.o.Dir)))
}

// free is a name that no file has yet: nothing that was sealed is written over
// or moved. There is a file when a run was cut off, when the database was set
// back to before it was noted, and when a device that was given up has come back
// and begun anew.
func (x *Shelf) free(name string) (string, error) {
	for n, other := 2, name; ; n++ {
		switch _, err := os.Lstat(filepath.Join(x.o.Dir, filepath.FromSlash(other))); {
		case errors.Is(err, fs.ErrNotExist):
			return other, nil
		case err != nil:
			return "", fmt.Errorf("segment %s: %w", other, err)
		}
		other = fmt.Sprintf("%s.%d.trail.gz", strings.TrimSuffix(name, ".trail.gz"), n)
	}
}

// read verifies the file of a segment and fills in what it is as a file.
func (x *Shelf) read(g *fleet.Segment) (archive.Report, error) {
	if !fs.ValidPath(g.File) {
		return archive.Report{}, fmt.Errorf("segment %.80q: %w", g.File, fleet.ErrInvalid)
	}
	f, err := os.Open(filepath.Join(x.o.Dir, filepath.FromSlash(g.File))) // #nosec G304 -- named by us, and checked
	if err != nil {
		return archive.Report{}, err
	}
	defer f.Close()
	sum := sha256.New()
	br := bufio.NewReaderSize(io.TeeReader(f, sum), 64<<10)
	z, err := gzip.NewReader(br)
	if err != nil {
		return archive.Report{}, err
	}
	rep, err := archive.Verify(z, x.trust())
	if err != nil {
		return rep, err
	}
	if _, err := io.Copy(io.Discard, br); err != nil {
		return rep, err
	}
	info, err := f.Stat()
	if err != nil {
		return rep, err
	}
	g.Bytes = info.Size()
	sum.Sum(g.SHA256[:0])
	return rep, nil
}

// Verify reads the file of a segment of tenant t and holds it against what is
// noted of it.
func (x *Shelf) Verify(ctx context.Context, t fleet.TenantID, n int64) (rep fleet.SegmentReport, err error) {
	noted, err := x.o.Store.Segment(ctx, t, n)
	if err != nil {
		return rep, err
	}
	rep.Segment = noted
	is := noted
	r, err := x.read(&is)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		rep.Verdict, rep.FirstBad, rep.Text = "missing", noted.First, "the file is not in the archive folder: put it back from a copy"
		return rep, nil
	case err != nil:
		rep.Verdict, rep.FirstBad, rep.Text = "unreadable", noted.First, strings.TrimSpace(fmt.Sprintf("%.300v", err))
		return rep, nil
	}
	rep.Verdict, rep.FirstBad, rep.Text = r.Verdict, r.FirstBad, r.Text
	if is.SHA256 != noted.SHA256 || r.First != noted.First || r.Head.Seq != noted.Last || r.Head.Hash != noted.Hash {
		if r.Verdict == archive.Whole || r.Verdict == archive.Gap {
			rep.Verdict, rep.FirstBad, rep.Text = archive.Forked, noted.First, "it is another sealed file than the one that was put there"
		}
	}
	return rep, nil
}
