package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const (
	keptAppraisals = 500 // of a device; the service trail has each change for good

	touchDelay = time.Second // how long a steady verdict may wait for others
	maxTouched = 4096        // steady verdicts in one commit
)

// lastBoot is what is on file of a device's last boot.
type lastBoot struct {
	trust    fleet.Trust
	findings string
	digest   []byte
	release  string
	reset    uint32
	revoked  int64

	n      int64 // of the newest attestation; 0 before the first
	newest fleet.Attestation
	found  string // its findings
}

const lastBootQuery = `SELECT d.trust, d.findings, d.boot_digest, d.boot_release, d.reset_count, d.revoked_at,
	COALESCE(a.n, 0), COALESCE(a.trust, ''), COALESCE(a."release", ''), COALESCE(a.reset_count, 0), a.digest, COALESCE(a.findings, '')
	FROM device d LEFT JOIN attestation a ON a.device = d.id AND a.n = (SELECT MAX(n) FROM attestation WHERE device = d.id)
	WHERE d.id = ?`

func scanLastBoot(r scanner) (b lastBoot, err error) {
	err = r.Scan(&b.trust, &b.findings, &b.digest, &b.release, &b.reset, &b.revoked,
		&b.n, &b.newest.Trust, &b.newest.Release, &b.newest.ResetCount, &b.newest.Digest, &b.found)
	return b, found(err)
}

// says reports whether a says what the newest attestation says already. Steady
// evidence names no release: it is a boot that was judged before.
func (b lastBoot) says(a fleet.Attestation, findings string) bool {
	return b.n > 0 && b.newest.Trust == a.Trust && b.newest.ResetCount == a.ResetCount && bytes.Equal(b.newest.Digest, a.Digest) &&
		b.found == findings && (a.Release == "" || a.Release == b.newest.Release)
}

// Appraised notes what the verifier says about a device: its trust, what was
// found, and, when it was accepted, the boot it was accepted for. A verdict
// that says something new is kept. The reset count of an accepted quote is kept
// too and never grows smaller.
//
// The release of an accepted boot becomes the one the device has committed to
// when there is none yet, or when committed says so; otherwise only an
// execution that ends good moves it. A verdict that is no acceptance, one by a
// waiver, and one for a release that is neither committed nor offered forget
// the accepted boot, so that the next evidence is judged in full. A revoked device is fleet.ErrRevoked, and nothing is noted.
//
// What changes something is there when Appraised returns; many at one moment
// share a commit. A steady verdict, which only says that nothing has changed,
// is written with others within a second. A power cut may lose it, which is
// harmless: the device then looks as if it had last shown evidence a second or
// an interval earlier, is at worst called stale too soon, and its next
// evidence, which it shows as soon as it connects again, says the same.
func (s *Store) Appraised(ctx context.Context, a fleet.Attestation, committed bool, ev ...fleet.AuditEvent) error {
	if a.At.IsZero() {
		a.At = time.Now()
	}
	if a.Findings == nil {
		a.Findings = []fleet.Finding{}
	}
	findings := toJSON(a.Findings)
	b, err := scanLastBoot(s.stmts.lastBoot.QueryRowContext(ctx, a.Device))
	switch {
	case err != nil:
	case len(ev) == 0 && b.steady(a, findings, committed):
		err = s.touch(ctx, a.Device, a.At)
	case len(ev) == 0 && b.refused(a, findings):
		return nil // it is all on file, and a device that keeps trying costs nothing
	default:
		err = s.shared(ctx, func(ctx context.Context, w *writer) error {
			err := w.appraised(ctx, a, findings, committed)
			for _, e := range ev {
				if err == nil {
					err = w.audit(ctx, e.Tenant, e)
				}
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("set trust of device %s: %w", a.Device, err)
	}
	return nil
}

// steady reports whether nothing but the time of a is new.
func (b lastBoot) steady(a fleet.Attestation, findings string, committed bool) bool {
	return a.Accepted() && a.Until.IsZero() && b.revoked == 0 && b.trust == a.Trust && b.findings == findings &&
		bytes.Equal(b.digest, a.Digest) && b.reset == a.ResetCount && b.says(a, findings) &&
		(a.Release == "" || a.Release == b.release || b.release != "" && !committed)
}

// refused reports whether a is no acceptance and nothing in it is new.
func (b lastBoot) refused(a fleet.Attestation, findings string) bool {
	return !a.Accepted() && b.revoked == 0 && b.trust == a.Trust && b.findings == findings && len(b.digest) == 0 && b.says(a, findings)
}

func (w *writer) appraised(ctx context.Context, a fleet.Attestation, findings string, committed bool) error {
	b, err := scanLastBoot(w.row(ctx, lastBootQuery, a.Device))
	if err != nil {
		return err
	}
	if b.revoked != 0 {
		return fleet.ErrRevoked
	}
	reasons := make([]string, len(a.Findings))
	for i, f := range a.Findings {
		reasons[i] = f.Text
	}
	var accepted int64
	digest, release, reset := []byte{}, b.release, b.reset
	if a.Accepted() {
		accepted, reset = ms(a.At), max(reset, a.ResetCount)
		if a.Until.IsZero() && a.Release != "" && (release == "" || committed) {
			release = a.Release
		}
		keep, err := w.keepsBoot(ctx, a, b, release)
		if err != nil {
			return err
		}
		if keep {
			digest = blob(a.Digest)
		}
	}
	if err := w.exec(ctx, `UPDATE device SET trust = ?, trust_reasons = ?, findings = ?, boot_digest = ?, boot_release = ?,
		attested_at = CASE WHEN ? > attested_at THEN ? ELSE attested_at END, reset_count = ? WHERE id = ?`,
		a.Trust, toJSON(reasons), findings, digest, release, accepted, accepted, reset, a.Device); err != nil {
		return err
	}
	if b.says(a, findings) {
		return nil
	}
	if err := w.exec(ctx, `INSERT INTO attestation (device, n, at, trust, "release", reset_count, digest, findings) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		a.Device, b.n+1, ms(a.At), a.Trust, a.Release, a.ResetCount, blob(a.Digest), findings); err != nil {
		return err
	}
	return w.exec(ctx, `DELETE FROM attestation WHERE device = ? AND n <= ?`, a.Device, b.n+1-keptAppraisals)
}

// keepsBoot reports whether the boot that a accepts may be accepted again by its
// digest alone, now that the device is committed to release. An update may have
// ended, or a decision been taken back, since the verifier looked: steady
// evidence brings nothing back that was forgotten, and a boot of a release that
// is neither the committed nor an offered one is judged again.
func (w *writer) keepsBoot(ctx context.Context, a fleet.Attestation, b lastBoot, release string) (bool, error) {
	switch {
	case !a.Until.IsZero():
		return false, nil
	case a.Release == "":
		return release == "" || bytes.Equal(b.digest, a.Digest), nil
	case a.Release == release:
		return true, nil
	}
	var n int
	err := w.row(ctx, offered+`SELECT COUNT(*) FROM offered WHERE "release" = ?`, a.Device, a.Release).Scan(&n)
	return n > 0, err
}

// touch notes a steady verdict, to be written soon.
func (s *Store) touch(ctx context.Context, id fleet.DeviceID, when time.Time) error {
	s.mu.Lock()
	if len(s.touched) == 0 {
		s.soon = time.AfterFunc(touchDelay, func() {
			if err := s.flush(context.Background()); err != nil && !errors.Is(err, errClosed) {
				s.log.Error("steady verdicts not written, devices may look silent", slog.Any("err", err))
			}
		})
	}
	s.touched[id] = max(s.touched[id], ms(when))
	full := len(s.touched) >= maxTouched
	s.mu.Unlock()
	if full {
		return s.flush(ctx)
	}
	return nil
}

// flush writes the steady verdicts that wait. Those that cannot be written are
// given up: each is repeated by the next one of its device.
func (s *Store) flush(ctx context.Context) error {
	s.mu.Lock()
	n := len(s.touched)
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	return s.tx(ctx, s.writeTouched)
}

func (s *Store) writeTouched(ctx context.Context, w *writer) error {
	s.mu.Lock()
	touched := s.touched
	s.touched = map[fleet.DeviceID]int64{}
	if s.soon != nil {
		s.soon.Stop()
	}
	s.mu.Unlock()
	for id, when := range touched {
		// What was said of the device since then stands.
		if err := w.exec(ctx, `UPDATE device SET attested_at = ? WHERE id = ? AND attested_at < ? AND trust IN ('attested', 'degraded')`, when, id, when); err != nil {
			return err
		}
	}
	return nil
}

// Attestations lists what was said of a device of tenant t, newest first.
func (s *Store) Attestations(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p fleet.Page) (items []fleet.Attestation, next string, err error) {
	if err := s.owns(ctx, t, id); err != nil {
		return nil, "", fmt.Errorf("attestations: %w", err)
	}
	start, err := after(p, newest)
	if err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	rows, err := s.read.QueryContext(ctx, `SELECT n, device, at, trust, "release", reset_count, digest, findings
		FROM attestation WHERE device = ? AND n < ? ORDER BY n DESC LIMIT ?`, id, start, limit+1)
	found, err := list(rows, err, func(r scanner) (numbered[fleet.Attestation], error) {
		var a numbered[fleet.Attestation]
		var when int64
		var findings string
		if err := r.Scan(&a.n, &a.v.Device, &when, &a.v.Trust, &a.v.Release, &a.v.ResetCount, &a.v.Digest, &findings); err != nil {
			return a, err
		}
		a.v.At = at(when)
		return a, json.Unmarshal([]byte(findings), &a.v.Findings)
	})
	if err != nil {
		return nil, "", fmt.Errorf("attestations of %s: %w", id, err)
	}
	items, next = values(found, limit)
	return items, next, nil
}

// superseded is true of an execution e of rollout r when the device ran another
// release with reference values to a good end, which the operator ordered
// later: what e still says then is old news and brings no release back.
const superseded = `EXISTS (SELECT 1 FROM execution e2 JOIN rollout r2 ON r2.id = e2.rollout JOIN device d2 ON d2.id = e2.device
	JOIN boot_reference b2 ON b2.model = d2.model AND b2."release" = r2."release"
	WHERE e2.device = e.device AND r2.n > r.n AND e2.state IN ('SUCCEEDED', 'ALREADY_INSTALLED'))`

// offered are the releases that a device was offered and may be booting into.
// One that ran out of time counts until another was installed: what a slow
// device says later is the truth.
const offered = `WITH offered AS (SELECT r.n, r."release" FROM execution e JOIN rollout r ON r.id = e.rollout
	WHERE e.device = ? AND (e.offered_at > 0 OR e.attempt > 0) AND e.state NOT IN ('SUCCEEDED', 'ALREADY_INSTALLED', 'FAILED', 'ROLLED_BACK', 'REJECTED', 'CANCELED', 'REMOVED')
	AND NOT ` + superseded + `) `

// OfferedRelease returns the release that a device was offered last and may
// be booting into. None is fleet.ErrNotFound. It is for the verifier.
func (s *Store) OfferedRelease(ctx context.Context, device fleet.DeviceID) (fleet.ReleaseID, error) {
	var id fleet.ReleaseID
	if err := s.read.QueryRowContext(ctx, offered+`SELECT "release" FROM offered ORDER BY n DESC LIMIT 1`, device).Scan(&id); err != nil {
		return "", fmt.Errorf("release offered to %s: %w", device, found(err))
	}
	return id, nil
}

// settleBoot notes what the end of an execution says of its device's boot. A
// good end commits the device to the release, when that has reference values:
// from now on an older one is refused. After any end, a boot that was accepted
// for another release than the committed one is judged in full again.
func (w *writer) settleBoot(ctx context.Context, e fleet.Execution) error {
	if e.State.Good() {
		if err := w.exec(ctx, `UPDATE device SET boot_release = new."release"
			FROM (SELECT e.device, r."release" FROM execution e JOIN rollout r ON r.id = e.rollout WHERE e.id = ? AND NOT `+superseded+`) AS new
			WHERE device.id = new.device
			AND EXISTS (SELECT 1 FROM boot_reference b WHERE b.model = device.model AND b."release" = new."release")`, e.ID); err != nil {
			return err
		}
	}
	return w.exec(ctx, `UPDATE device SET boot_digest = X'' WHERE id = ? AND boot_release <> COALESCE(
		(SELECT a."release" FROM attestation a WHERE a.device = device.id ORDER BY a.n DESC LIMIT 1), '')`, e.Device)
}

// prepared are the reads of the hot path.
type prepared struct {
	admit, lastBoot, device                *sql.Stmt
	usage, boots, samples, events, counted *sql.Stmt
	trail, aks                             *sql.Stmt
}

func (s *Store) prepare(ctx context.Context) (err error) {
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&s.stmts.admit, admitQuery},
		{&s.stmts.lastBoot, lastBootQuery},
		{&s.stmts.device, deviceQuery},
		{&s.stmts.usage, usageQuery},
		{&s.stmts.boots, bootsQuery},
		{&s.stmts.samples, samplesQuery},
		{&s.stmts.events, eventsQuery},
		{&s.stmts.counted, countedQuery},
		{&s.stmts.trail, trailStateQuery},
		{&s.stmts.aks, aksQuery},
	} {
		if *p.stmt, err = s.read.PrepareContext(ctx, p.query); err != nil { //nolint:sqlclosecheck // Close closes it
			return err
		}
	}
	return nil
}

func (p prepared) close() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{p.admit, p.lastBoot, p.device, p.usage, p.boots, p.samples, p.events, p.counted, p.trail, p.aks} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	return errors.Join(errs...)
}

func key(pcr int, digest string) string { return strconv.Itoa(pcr) + ":" + digest }
