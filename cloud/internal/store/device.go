package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const deviceColumns = `d.id, d.tenant, d.tier, d.model, d.serial, d.site, d."group", d.label, d.ek_hash, d.ak_public,
	d.cert_serial, d.cert_not_after, d.trust, d.trust_reasons, d.attested_at, d.reset_count, d.online, d.enrolled_at,
	d.last_seen, d.samples, d.findings, d.boot_digest, d.boot_release, d.waiver_until, d.waiver_by, d.waiver_reason,
	d.next_serial, d.next_not_after, d.next_ak, d.recovery_serial, d.revoked_at, d.revoked_why, d.former_of, d.left_at,
	d.installed, d.free_mib, d.supply, d.share, COALESCE(st.agent_version, ''), COALESCE(st.slot, ''), st.raw, tr.head, (tr.broken <> 0 OR tr.entries + tr.lost < tr.head)
	FROM device d JOIN trail tr ON tr.device = d.id LEFT JOIN state st ON st.device = d.id`

const deviceQuery = `SELECT ` + deviceColumns + ` WHERE d.id = ?`

func scanDevice(r scanner) (fleet.Device, error) {
	var d fleet.Device
	var reasons, findings, installed string
	var certNotAfter, attestedAt, enrolledAt, lastSeen, waived, nextNotAfter, revoked, left int64
	err := r.Scan(&d.ID, &d.Tenant, &d.Tier, &d.Model, &d.Serial, &d.Site, &d.Group, &d.Label, &d.EKHash, &d.AKPublic,
		&d.CertSerial, &certNotAfter, &d.Trust, &reasons, &attestedAt, &d.ResetCount, &d.Online, &enrolledAt,
		&lastSeen, &d.Samples, &findings, &d.BootDigest, &d.BootRelease, &waived, &d.Waiver.By, &d.Waiver.Reason,
		&d.Next.CertSerial, &nextNotAfter, &d.NextAK, &d.Recovery, &revoked, &d.RevokedWhy, &d.FormerOf, &left,
		&installed, &d.FreeMiB, &d.Supply, &d.Share, &d.AgentVersion, &d.Slot, &d.State, &d.AuditHead, &d.AuditBroken)
	if err != nil {
		return fleet.Device{}, found(err)
	}
	for _, part := range []struct {
		name, text string
		to         any
	}{{"trust reasons", reasons, &d.TrustReasons}, {"findings", findings, &d.Findings}, {"installed", installed, &d.Installed}} {
		if err := json.Unmarshal([]byte(part.text), part.to); err != nil {
			return fleet.Device{}, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	d.CertNotAfter, d.AttestedAt, d.EnrolledAt, d.LastSeen = at(certNotAfter), at(attestedAt), at(enrolledAt), at(lastSeen)
	d.Waiver.Until, d.Next.NotAfter, d.RevokedAt, d.LeftAt = at(waived), at(nextNotAfter), at(revoked), at(left)
	if len(d.NextAK) == 0 {
		d.NextAK = nil
	}
	return d, nil
}

// Enrol takes a device in, or renews it when its endorsement key is known:
// then site, group, label, counters, trails and the release it has committed to
// stay. It waits for evidence either way. A key that belongs to another tenant,
// an identity that was already given to another key and a lower tier than
// before are fleet.ErrConflict; a key that comes back in a box with another
// serial number is fleet.ErrOtherSerial, and a revoked device fleet.ErrRevoked.
func (s *Store) Enrol(ctx context.Context, d fleet.Device) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		var tenant fleet.TenantID
		var ek string
		var revoked int64
		var known past
		err := found(w.row(ctx, `SELECT tenant, ek_hash, revoked_at, tier, serial FROM device WHERE id = ? OR ek_hash = ?`, d.ID, d.EKHash).
			Scan(&tenant, &ek, &revoked, &known.tier, &known.serial))
		if errors.Is(err, fleet.ErrNotFound) {
			return w.insertDevice(ctx, d)
		}
		switch {
		case err != nil:
			return err
		case tenant != d.Tenant:
			return fmt.Errorf("its key belongs to another tenant: %w", fleet.ErrConflict)
		case ek != d.EKHash:
			return fmt.Errorf("its identity belongs to another key: %w", fleet.ErrConflict)
		case revoked != 0:
			return fleet.ErrRevoked
		}
		if err := known.allows(d); err != nil {
			return err
		}
		n, err := w.changed(ctx, `UPDATE device SET tier = ?, model = ?, serial = CASE WHEN ? <> '' THEN ? ELSE serial END, ak_public = ?, cert_serial = ?, cert_not_after = ?,
			recovery_serial = ?, next_serial = '', next_not_after = 0, next_recovery = '', next_ak = X'',
			trust = ?, trust_reasons = '[]', findings = '[]', boot_digest = X'', reset_count = ?, enrolled_at = ? WHERE id = ? AND ek_hash = ?`,
			d.Tier, d.Model, d.Serial, d.Serial, blob(d.AKPublic), d.CertSerial, ms(d.CertNotAfter),
			d.Recovery, fleet.Pending, d.ResetCount, ms(d.EnrolledAt), d.ID, d.EKHash)
		if err == nil && n != 1 {
			return fmt.Errorf("its key belongs to another identity: %w", fleet.ErrConflict)
		}
		return errors.Join(err, w.moved(ctx), w.keepAK(ctx, d.ID, d.AKPublic)) // it may come back as another model
	})
	if err != nil {
		return fmt.Errorf("enrol device %s: %w", d.ID, err)
	}
	return nil
}

// past is what a device was before, with this owner or another.
type past struct {
	tier        fleet.Tier
	serial      string
	bootRelease string
	counter     uint64
}

func (p past) allows(d fleet.Device) error {
	switch {
	case p.tier != "" && d.Tier > p.tier: // A is the strongest
		return fmt.Errorf("it had tier %s and comes back with %s: %w", p.tier, d.Tier, fleet.ErrConflict)
	case p.serial != "" && d.Serial != "" && d.Serial != p.serial:
		return fmt.Errorf("it was in the box with serial number %s and comes back in %.64q: %w", p.serial, d.Serial, fleet.ErrOtherSerial)
	}
	return nil
}

func (w *writer) insertDevice(ctx context.Context, d fleet.Device) error {
	var p past
	err := found(w.row(ctx, `SELECT tier, serial, boot_release, command_counter FROM device WHERE former_of = ? ORDER BY left_at DESC, id DESC LIMIT 1`, d.ID).
		Scan(&p.tier, &p.serial, &p.bootRelease, &p.counter))
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return err
	}
	if err := p.allows(d); err != nil {
		return err
	}
	if err := w.exec(ctx, `INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public,
		cert_serial, cert_not_after, recovery_serial, trust, trust_reasons, reset_count, enrolled_at, boot_release, command_counter)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '[]', ?, ?, ?, ?)`,
		d.ID, d.Tenant, d.Tier, d.Model, d.Serial, d.Site, d.Group, d.Label, d.EKHash, blob(d.AKPublic),
		d.CertSerial, ms(d.CertNotAfter), d.Recovery, fleet.Pending, d.ResetCount, ms(d.EnrolledAt), p.bootRelease, p.counter); err != nil {
		return err
	}
	if err := w.exec(ctx, `DELETE FROM waiting WHERE device = ?`, d.ID); err != nil {
		return err
	}
	if err := w.moved(ctx); err != nil {
		return err
	}
	if err := w.keepAK(ctx, d.ID, d.AKPublic); err != nil {
		return err
	}
	return w.exec(ctx, `INSERT INTO trail (device, head, hash, entries, broken) VALUES (?, 0, ?, 0, 0)`, d.ID, make([]byte, 32))
}

// blob keeps an empty value apart from none.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Device returns a device of tenant t. A device of another tenant is
// fleet.ErrNotFound.
func (s *Store) Device(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (fleet.Device, error) {
	d, err := scanDevice(s.read.QueryRowContext(ctx, `SELECT `+deviceColumns+` WHERE d.id = ? AND d.tenant = ?`, id, t))
	if err != nil {
		return d, fmt.Errorf("device %s: %w", id, err)
	}
	return d, nil
}

// DeviceByID returns a device of any tenant. It is for the broker and the
// verifier, which know the device by its certificate; never for operators.
func (s *Store) DeviceByID(ctx context.Context, id fleet.DeviceID) (fleet.Device, error) {
	d, err := scanDevice(s.stmts.device.QueryRowContext(ctx, id))
	if err != nil {
		return d, fmt.Errorf("device %s: %w", id, err)
	}
	return d, nil
}

// Devices lists the devices of tenant t by id.
func (s *Store) Devices(ctx context.Context, t fleet.TenantID, f DeviceFilter, p fleet.Page) (items []fleet.Device, next string, err error) {
	where := []string{`d.tenant = ?`, `d.id > ?`, `d.former_of = ''`}
	if f.Former {
		where[2] = `d.former_of <> ''`
	}
	args := []any{t, p.After}
	add := func(cond string, v ...any) { where, args = append(where, cond), append(args, v...) }
	if f.Site != "" {
		add(`d.site = ?`, f.Site)
	}
	if f.Group != "" {
		add(`d."group" = ?`, f.Group)
	}
	if f.Trust != "" {
		add(`d.trust = ?`, f.Trust)
	}
	if f.Online != nil {
		add(`d.online = ?`, *f.Online)
	}
	if f.Query != "" {
		like := "%" + strings.NewReplacer(`!`, `!!`, `%`, `!%`, `_`, `!_`).Replace(f.Query) + "%"
		// The database lowers both sides: SQLite knows no case beyond ASCII, and half of it would not find Ü by Ü.
		add(`(lower(d.id) LIKE lower(?) ESCAPE '!' OR lower(d.label) LIKE lower(?) ESCAPE '!' OR lower(d.serial) LIKE lower(?) ESCAPE '!'
			OR lower(d.site) LIKE lower(?) ESCAPE '!' OR lower(d.model) LIKE lower(?) ESCAPE '!')`, like, like, like, like, like)
	}
	limit := p.Bounded()
	query := `SELECT ` + deviceColumns + ` WHERE ` + strings.Join(where, ` AND `) + ` ORDER BY d.id LIMIT ?` //nolint:gosec // joins the constants above
	rows, err := s.read.QueryContext(ctx, query, append(args, limit+1)...)
	items, err = list(rows, err, scanDevice)
	if err != nil {
		return nil, "", fmt.Errorf("list devices: %w", err)
	}
	items, next = page(items, limit, func(d fleet.Device) string { return string(d.ID) })
	return items, next, nil
}

// SetDevice changes a device of tenant t and writes ev to the service trail.
func (s *Store) SetDevice(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, p DevicePatch, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `UPDATE device SET site = COALESCE(?, site), "group" = COALESCE(?, "group"), label = COALESCE(?, label) WHERE id = ? AND tenant = ?`,
			p.Site, p.Group, p.Label, id, t)
		if err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrNotFound
		}
		if err := errors.Join(w.moved(ctx), w.touch(ctx, id)); err != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return fmt.Errorf("set device %s: %w", id, err)
	}
	return nil
}

// MarkStale withdraws trust from devices whose last accepted evidence is older
// than before, and returns them as they are then. Silence is no failure: the
// next good evidence restores them.
func (s *Store) MarkStale(ctx context.Context, before time.Time) ([]fleet.Device, error) {
	if err := s.flush(ctx); err != nil { // who was heard a moment ago is not silent
		return nil, fmt.Errorf("mark silent devices stale: %w", err)
	}
	const silent = ` WHERE trust IN ('attested', 'degraded') AND attested_at < ?`
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM device`+silent, ms(before)).Scan(&n); err != nil {
		return nil, fmt.Errorf("mark silent devices stale: %w", err)
	}
	if n == 0 {
		return nil, nil // the writer is not troubled for nothing
	}
	var ids []fleet.DeviceID
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		rows, err := w.rows(ctx, `UPDATE device SET trust = 'stale', trust_reasons = ?`+silent+` RETURNING id`,
			toJSON([]string{"no evidence since " + before.UTC().Format(time.RFC3339)}), ms(before))
		ids, err = list(rows, err, func(r scanner) (id fleet.DeviceID, err error) { return id, r.Scan(&id) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark silent devices stale: %w", err)
	}
	var out []fleet.Device
	for _, id := range ids {
		d, err := s.DeviceByID(ctx, id)
		if err != nil {
			return out, fmt.Errorf("mark silent devices stale: %w", err)
		}
		out = append(out, d)
	}
	return out, nil
}

// SetPresence notes that a device came or went.
func (s *Store) SetPresence(ctx context.Context, id fleet.DeviceID, online bool, when time.Time) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		if online {
			if err := w.lost(ctx, id, when); err != nil {
				return err
			}
		}
		n, err := w.changed(ctx, `UPDATE device SET online = ?, last_seen = CASE WHEN ? > last_seen THEN ? ELSE last_seen END WHERE id = ?`,
			online, ms(when), ms(when), id)
		switch {
		case err != nil:
			return err
		case n == 0:
			return fleet.ErrNotFound
		case online:
			return w.trouble(ctx, id, when, 0, 1, 0)
		}
		return w.touch(ctx, id) // from now on it is silent
	})
	if err != nil {
		return fmt.Errorf("set presence of device %s: %w", id, err)
	}
	return nil
}

// AllOffline notes that no device is connected: true when the service starts.
func (s *Store) AllOffline(ctx context.Context) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		return w.exec(ctx, `UPDATE device SET online = 0 WHERE online <> 0`)
	})
	if err != nil {
		return fmt.Errorf("set all devices offline: %w", err)
	}
	return nil
}

// Summary counts the fleet of tenant t.
func (s *Store) Summary(ctx context.Context, t fleet.TenantID) (Summary, error) {
	sum := Summary{ByTrust: map[fleet.Trust]int{}, ByVersion: map[string]int{}}
	rows, err := s.read.QueryContext(ctx, `SELECT d.trust, COALESCE(st.agent_version, ''), COUNT(*), SUM(d.online), SUM(d.samples), SUM(tr.entries)
		FROM device d JOIN trail tr ON tr.device = d.id LEFT JOIN state st ON st.device = d.id
		WHERE d.tenant = ? AND d.former_of = '' GROUP BY d.trust, COALESCE(st.agent_version, '')`, t)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var trust fleet.Trust
		var version string
		var devices, online int
		var samples, entries uint64
		err := r.Scan(&trust, &version, &devices, &online, &samples, &entries)
		sum.Devices, sum.Online, sum.Samples, sum.AuditEvents = sum.Devices+devices, sum.Online+online, sum.Samples+samples, sum.AuditEvents+entries
		sum.ByTrust[trust] += devices
		sum.ByVersion[version] += devices
		return struct{}{}, err
	})
	if err == nil {
		sum.ByHealth, err = s.byHealth(ctx, t)
	}
	if err != nil {
		return Summary{}, fmt.Errorf("summary: %w", err)
	}
	return sum, nil
}

// byHealth counts devices by the worst of their peripherals, as fleet.Worst
// says; of those that are lost nothing is known.
func (s *Store) byHealth(ctx context.Context, t fleet.TenantID) (map[string]int, error) {
	by := map[string]int{}
	rows, err := s.read.QueryContext(ctx, `SELECT CASE worst WHEN 5 THEN 'Fault' WHEN 4 THEN 'Offline' WHEN 3 THEN 'Attention' WHEN 1 THEN 'OK' ELSE 'Unknown' END, COUNT(*)
		FROM (SELECT CASE WHEN d.online = 0 THEN 2 ELSE (SELECT MAX(CASE p.health WHEN 'Fault' THEN 5 WHEN 'Offline' THEN 4 WHEN 'Attention' THEN 3 WHEN 'OK' THEN 1 ELSE 2 END)
		FROM peripheral p WHERE p.device = d.id AND p.gone_at = 0) END AS worst FROM device d WHERE d.tenant = ? AND d.former_of = '') AS x GROUP BY 1`, t)
	_, err = list(rows, err, func(r scanner) (struct{}, error) {
		var health string
		var n int
		err := r.Scan(&health, &n)
		by[health] += n
		return struct{}{}, err
	})
	return by, err
}

// owns checks that a device belongs to tenant t.
func (s *Store) owns(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) error {
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT 1 FROM device WHERE id = ? AND tenant = ?`, id, t).Scan(&n); err != nil {
		return fmt.Errorf("device %s: %w", id, found(err))
	}
	return nil
}
