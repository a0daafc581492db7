package store

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const admitQuery = `SELECT d.tenant, d.cert_serial, d.next_serial, d.recovery_serial, d.next_recovery, d.revoked_at, COALESCE(o.state, '')
	FROM device d LEFT JOIN ownership o ON o.device = d.id WHERE d.id = ?`

// Admit says what the certificate with that serial number opens to a device of
// a tenant. A device of another tenant is fleet.ErrNotFound, a revoked one
// fleet.ErrRevoked, and a certificate that is neither in use nor waiting to be
// fleet.ErrReplaced.
//
// A newer certificate that is shown the first time takes the place of the one
// in use; that is stored before Admit returns, so that the older one stays
// replaced. Everything else is one read.
func (s *Store) Admit(ctx context.Context, id fleet.DeviceID, t fleet.TenantID, serial string) (fleet.Admission, error) {
	adm, err := s.admit(ctx, id, t, serial)
	if err != nil {
		return "", fmt.Errorf("admit device %s: %w", id, err)
	}
	return adm, nil
}

func (s *Store) admit(ctx context.Context, id fleet.DeviceID, t fleet.TenantID, serial string) (fleet.Admission, error) {
	adm, first, err := admission(s.stmts.admit.QueryRowContext(ctx, id), t, serial)
	if err != nil || !first {
		return adm, err
	}
	err = s.shared(ctx, func(ctx context.Context, w *writer) error {
		adm, first, err = admission(w.row(ctx, admitQuery, id), t, serial) // it may have been revoked in between
		if err != nil || !first {
			return err
		}
		return w.promote(ctx, id, serial)
	})
	return adm, err
}

// admission decides, and reports whether the certificate is shown the first time.
func admission(r scanner, t fleet.TenantID, serial string) (adm fleet.Admission, first bool, err error) {
	var tenant fleet.TenantID
	var current, next, recovery, nextRecovery string
	var revoked int64
	var state fleet.OwnershipState
	if err := r.Scan(&tenant, &current, &next, &recovery, &nextRecovery, &revoked, &state); err != nil {
		return "", false, found(err)
	}
	adm = fleet.AdmitMember
	if state == fleet.Releasing || state == fleet.Released {
		adm = fleet.AdmitQuarantine
	}
	switch {
	case tenant != t:
		return "", false, fleet.ErrNotFound
	case revoked != 0:
		return "", false, fleet.ErrRevoked
	case serial == "":
		return "", false, fleet.ErrReplaced
	case serial == current:
		return adm, false, nil
	case serial == next:
		return adm, true, nil
	case serial == recovery:
		return fleet.AdmitQuarantine, false, nil
	case serial == nextRecovery:
		return fleet.AdmitQuarantine, true, nil
	}
	return "", false, fleet.ErrReplaced
}

// promote puts the newer certificate in use. What came with it replaces its
// own elder too: a device that shows one has received both.
func (w *writer) promote(ctx context.Context, id fleet.DeviceID, serial string) error {
	return w.exec(ctx, `UPDATE device SET recovery_serial = CASE WHEN next_recovery <> '' THEN next_recovery ELSE recovery_serial END, next_recovery = '',
		cert_serial = CASE WHEN next_serial = ? THEN next_serial ELSE cert_serial END,
		cert_not_after = CASE WHEN next_serial = ? THEN next_not_after ELSE cert_not_after END,
		next_not_after = CASE WHEN next_serial = ? THEN 0 ELSE next_not_after END,
		next_serial = CASE WHEN next_serial = ? THEN '' ELSE next_serial END WHERE id = ?`, serial, serial, serial, serial, id)
}

// SetRenewed notes what was issued to a device beside what it uses: a
// certificate, a certificate for recovery, an attestation key. What is empty
// stays as it was. Each takes its elder's place when the device first shows it
// (Admit, PromoteAK), so that an answer that never arrived locks nobody out.
// A revoked device is fleet.ErrRevoked.
func (s *Store) SetRenewed(ctx context.Context, id fleet.DeviceID, r fleet.Renewed, recovery string, ak []byte) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		var revoked int64
		if err := w.row(ctx, `SELECT revoked_at FROM device WHERE id = ?`, id).Scan(&revoked); err != nil {
			return found(err)
		}
		if revoked != 0 {
			return fleet.ErrRevoked
		}
		if err := w.keepAK(ctx, id, ak); err != nil {
			return err
		}
		return w.exec(ctx, `UPDATE device SET next_not_after = CASE WHEN ? <> '' THEN ? ELSE next_not_after END,
			next_serial = CASE WHEN ? <> '' THEN ? ELSE next_serial END,
			next_recovery = CASE WHEN ? <> '' THEN ? ELSE next_recovery END,
			next_ak = CASE WHEN ? <> 0 THEN ? ELSE next_ak END WHERE id = ?`,
			r.CertSerial, ms(r.NotAfter), r.CertSerial, r.CertSerial, recovery, recovery, len(ak) > 0, blob(ak), id)
	})
	if err != nil {
		return fmt.Errorf("renew device %s: %w", id, err)
	}
	return nil
}

// PromoteAK drops the attestation key of a device for the one that follows,
// which has just been seen to sign. Another key than that is
// fleet.ErrConflict; the key in use is nothing to do.
func (s *Store) PromoteAK(ctx context.Context, id fleet.DeviceID, ak []byte) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error {
		var current, next []byte
		if err := w.row(ctx, `SELECT ak_public, next_ak FROM device WHERE id = ?`, id).Scan(&current, &next); err != nil {
			return found(err)
		}
		switch {
		case len(ak) == 0 || !bytes.Equal(ak, current) && !bytes.Equal(ak, next):
			return fmt.Errorf("it has no such attestation key: %w", fleet.ErrConflict)
		case bytes.Equal(ak, current):
			return nil
		}
		return w.exec(ctx, `UPDATE device SET ak_public = next_ak, next_ak = X'' WHERE id = ?`, id)
	})
	if err != nil {
		return fmt.Errorf("promote attestation key of device %s: %w", id, err)
	}
	return nil
}

// Expiring returns the devices whose certificate ends before then and that
// have not been issued one that lasts longer, the soonest first, with what is
// about their certificates and nothing else: of a large fleet it can be many.
// It is for the service's own watch, which looks at every tenant.
func (s *Store) Expiring(ctx context.Context, before time.Time) ([]fleet.Device, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, tenant, cert_serial, cert_not_after, next_serial, next_not_after FROM device
		WHERE cert_not_after > 0 AND cert_not_after < ? AND next_not_after < ? AND revoked_at = 0 AND former_of = '' ORDER BY cert_not_after`, ms(before), ms(before))
	items, err := list(rows, err, func(r scanner) (d fleet.Device, err error) {
		var ends, next int64
		err = r.Scan(&d.ID, &d.Tenant, &d.CertSerial, &ends, &d.Next.CertSerial, &next)
		d.CertNotAfter, d.Next.NotAfter = at(ends), at(next)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("list expiring certificates: %w", err)
	}
	return items, nil
}

// Revoke ends the identity of a device of tenant t: no certificate of it is
// admitted and none is issued until Readmit. Revoking twice is
// fleet.ErrConflict.
func (s *Store) Revoke(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, why string, ev fleet.AuditEvent) error {
	finding := fleet.Finding{Check: "identity.revoked", Text: text("the identity was revoked: " + why)}
	err := s.setRevoked(ctx, t, id, false, ev, `UPDATE device SET revoked_at = ?, revoked_why = ?, trust = 'quarantined', trust_reasons = ?,
		findings = ?, boot_digest = X'' WHERE id = ?`, time.Now().UnixMilli(), why, toJSON([]string{finding.Text}), toJSON([]fleet.Finding{finding}), id)
	if err != nil {
		return fmt.Errorf("revoke device %s: %w", id, err)
	}
	return nil
}

// Readmit takes a revocation back: the certificate on file is admitted again,
// and the device waits for evidence. A device that is not revoked is
// fleet.ErrConflict.
func (s *Store) Readmit(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, ev fleet.AuditEvent) error {
	err := s.setRevoked(ctx, t, id, true, ev, `UPDATE device SET revoked_at = 0, revoked_why = '', trust = 'pending', trust_reasons = '[]',
		findings = '[]', boot_digest = X'' WHERE id = ?`, id)
	if err != nil {
		return fmt.Errorf("readmit device %s: %w", id, err)
	}
	return nil
}

func (s *Store) setRevoked(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, from bool, ev fleet.AuditEvent, query string, args ...any) error {
	return s.tx(ctx, func(ctx context.Context, w *writer) error {
		var revoked int64
		if err := w.row(ctx, `SELECT revoked_at FROM device WHERE id = ? AND tenant = ? AND former_of = ''`, id, t).Scan(&revoked); err != nil {
			return found(err)
		}
		if was := revoked != 0; was != from {
			return fmt.Errorf("revoked before is %t: %w", was, fleet.ErrConflict)
		}
		if err := w.exec(ctx, query, args...); err != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
}

// Waive lets a quarantined device of tenant t in until a date, on somebody's
// word. A zero waiver takes it back.
func (s *Store) Waive(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, v fleet.Waiver, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `UPDATE device SET waiver_until = ?, waiver_by = ?, waiver_reason = ? WHERE id = ? AND tenant = ? AND former_of = ''`,
			ms(v.Until), v.By, v.Reason, id, t)
		if err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrNotFound
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return fmt.Errorf("set waiver of device %s: %w", id, err)
	}
	return nil
}
