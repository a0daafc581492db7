package store

import (
	"context"
	"fmt"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

const tokenColumns = `t.id, t.name, t.tenant, t.role, t.hash, t.created_at, t.expires_at, t.revoked_at` //nolint:gosec // names of columns, no secret

func scanToken(r scanner) (fleet.Token, error) {
	var t fleet.Token
	var hash []byte
	var created, expires, revoked int64
	if err := r.Scan(&t.ID, &t.Name, &t.Tenant, &t.Role, &hash, &created, &expires, &revoked); err != nil {
		return fleet.Token{}, found(err)
	}
	copy(t.Hash[:], hash)
	t.CreatedAt, t.ExpiresAt, t.RevokedAt = at(created), at(expires), at(revoked)
	return t, nil
}

// usable returns t if it may be used at now.
func usable(t fleet.Token, now time.Time) (fleet.Token, error) {
	switch {
	case !t.RevokedAt.IsZero():
		return fleet.Token{}, fmt.Errorf("token %s was revoked: %w", t.ID, fleet.ErrExpired)
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return fleet.Token{}, fmt.Errorf("token %s: %w", t.ID, fleet.ErrExpired)
	}
	return t, nil
}

// AddToken keeps a token, of which only the hash is stored.
func (s *Store) AddToken(ctx context.Context, t fleet.Token, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		n, err := w.changed(ctx, `INSERT INTO token (id, tenant, name, role, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT DO NOTHING`, t.ID, t.Tenant, t.Name, t.Role, t.Hash[:], ms(t.CreatedAt), ms(t.ExpiresAt))
		if err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrExists
		}
		return w.audit(ctx, t.Tenant, ev)
	})
	if err != nil {
		return fmt.Errorf("add token %s: %w", t.ID, err)
	}
	return nil
}

// TokenByHash returns the token with that hash. An unknown one is
// fleet.ErrNotFound; one that was revoked or is past its life is
// fleet.ErrExpired.
func (s *Store) TokenByHash(ctx context.Context, hash [32]byte) (fleet.Token, error) {
	t, err := scanToken(s.read.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM token t WHERE t.hash = ?`, hash[:]))
	if err != nil {
		return fleet.Token{}, fmt.Errorf("token: %w", err)
	}
	return usable(t, time.Now())
}

// Tokens lists the tokens of tenant t, revoked ones too, by id.
func (s *Store) Tokens(ctx context.Context, t fleet.TenantID) ([]fleet.Token, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT `+tokenColumns+` FROM token t WHERE t.tenant = ? ORDER BY t.id`, t)
	items, err := list(rows, err, scanToken)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return items, nil
}

// RevokeToken ends a token of tenant t and its sessions. Revoking twice is
// fleet.ErrConflict.
func (s *Store) RevokeToken(ctx context.Context, t fleet.TenantID, id string, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		token, err := scanToken(w.row(ctx, `SELECT `+tokenColumns+` FROM token t WHERE t.id = ? AND t.tenant = ?`, id, t))
		if err != nil {
			return err
		}
		if !token.RevokedAt.IsZero() {
			return fmt.Errorf("it was revoked before: %w", fleet.ErrConflict)
		}
		if err := w.exec(ctx, `UPDATE token SET revoked_at = ? WHERE id = ?`, ms(w.now), id); err != nil {
			return err
		}
		if err := w.exec(ctx, `DELETE FROM session WHERE token = ?`, id); err != nil {
			return err
		}
		return w.audit(ctx, t, ev)
	})
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	return nil
}

// AddSession keeps a sign-in, of which only the hash is stored, and drops those
// that are past their life.
func (s *Store) AddSession(ctx context.Context, hash [32]byte, tokenID string, expires time.Time) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		if err := w.exec(ctx, `DELETE FROM session WHERE expires_at <= ?`, ms(w.now)); err != nil {
			return err
		}
		return w.exec(ctx, `INSERT INTO session (hash, token, expires_at) VALUES (?, ?, ?)`, hash[:], tokenID, ms(expires))
	})
	if err != nil {
		return fmt.Errorf("add session: %w", err)
	}
	return nil
}

// SessionToken returns the token behind a session at now. An unknown session
// is fleet.ErrNotFound; one that is past its life, or whose token is, is
// fleet.ErrExpired.
func (s *Store) SessionToken(ctx context.Context, hash [32]byte, now time.Time) (fleet.Token, error) {
	var expires int64
	t, err := scanToken(with{s.read.QueryRowContext(ctx, `SELECT `+tokenColumns+`, s.expires_at FROM session s JOIN token t ON t.id = s.token WHERE s.hash = ?`, hash[:]), &expires})
	if err != nil {
		return fleet.Token{}, fmt.Errorf("session: %w", err)
	}
	if !now.Before(at(expires)) {
		return fleet.Token{}, fmt.Errorf("session: %w", fleet.ErrExpired)
	}
	return usable(t, now)
}

// with scans one column more than its user asks for.
type with struct {
	scanner
	more any
}

func (w with) Scan(dest ...any) error { return w.scanner.Scan(append(dest, w.more)...) }

// DropSession ends a session; an unknown one is no error.
func (s *Store) DropSession(ctx context.Context, hash [32]byte) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		return w.exec(ctx, `DELETE FROM session WHERE hash = ?`, hash[:])
	})
	if err != nil {
		return fmt.Errorf("drop session: %w", err)
	}
	return nil
}
