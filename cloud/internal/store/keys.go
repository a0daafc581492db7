package store

import (
	"context"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// mostKeys are on file of a device: more do not fit in the first line of a
// sealed file, and each anchor of one may be held against all of them.
const mostKeys = 256

// aksQuery begins with the keys that the device has been seen to use and will
// use: however many were made that never reached it, it signs with those.
const aksQuery = `SELECT k.public, k.since, k.first, k.last FROM attestation_key k LEFT JOIN device d ON d.id = k.device WHERE k.device = ?
	ORDER BY CASE k.public WHEN d.ak_public THEN 0 WHEN d.next_ak THEN 1 ELSE 2 END, k.since DESC, k.public`

// AttestationKeys lists the attestation keys that a device signs with, or has
// signed with what is at hand of its trail: first the one in use and the one
// that follows, then the newest.
func (s *Store) AttestationKeys(ctx context.Context, id fleet.DeviceID) ([]fleet.AttestationKey, error) {
	rows, err := s.stmts.aks.QueryContext(ctx, id)
	out, err := list(rows, err, func(r scanner) (k fleet.AttestationKey, err error) {
		var since int64
		err = r.Scan(&k.Public, &since, &k.First, &k.Last)
		k.Since = at(since)
		return k, err
	})
	if err != nil {
		return nil, fmt.Errorf("attestation keys of %s: %w", id, err)
	}
	return out, nil
}

// keepAK notes an attestation key that a device may sign with from now on, and
// forgets those that it no longer may and that have signed nothing which is at
// hand. When too many are left the device gets none: fleet.ErrManyKeys.
func (w *writer) keepAK(ctx context.Context, id fleet.DeviceID, ak []byte) error {
	if len(ak) == 0 {
		return nil
	}
	var n int
	if err := w.row(ctx, `SELECT COUNT(*) FROM attestation_key WHERE device = ? AND public = ?`, id, ak).Scan(&n); err != nil || n > 0 {
		return err
	}
	if err := w.exec(ctx, `DELETE FROM attestation_key WHERE device = ? AND last <= COALESCE((SELECT base FROM trail WHERE device = ?), 0)
		AND public NOT IN (SELECT ak_public FROM device WHERE id = ? UNION ALL SELECT next_ak FROM device WHERE id = ?)
		AND public NOT IN (SELECT public FROM attestation_key WHERE device = ? ORDER BY since DESC, public LIMIT ?)`, id, id, id, id, id, fleet.AnchorKeys); err != nil {
		return err
	}
	if err := w.row(ctx, `SELECT COUNT(*) FROM attestation_key WHERE device = ?`, id).Scan(&n); err != nil {
		return err
	}
	if n >= mostKeys {
		return fmt.Errorf("%d keys have signed entries that are not in a sealed file yet: %w", n, fleet.ErrManyKeys)
	}
	return w.exec(ctx, `INSERT INTO attestation_key (device, public, since) VALUES (?, ?, ?) ON CONFLICT (device, public) DO NOTHING`, id, ak, ms(w.now))
}

// signed notes which key has signed an anchor: the entry needs it from now on.
func (t *tally) signed(a fleet.AnchorSeen) {
	if len(a.Key.Public) == 0 {
		return
	}
	if t.keys == nil {
		t.keys = map[string]fleet.AttestationKey{}
	}
	k, ok := t.keys[string(a.Key.Public)]
	if !ok {
		k = a.Key
		k.First, k.Last = a.Seq, a.Seq
	}
	k.First, k.Last = min(k.First, a.Seq), max(k.Last, a.Seq)
	t.keys[string(a.Key.Public)] = k
}

// needKeys writes down which keys the new entries of a device need; one that
// was forgotten since the anchor was judged comes back.
func (g *group) needKeys(ctx context.Context, id fleet.DeviceID, t *tally) error {
	for _, k := range t.keys {
		if err := g.w.exec(ctx, `INSERT INTO attestation_key (device, public, since, first, last) VALUES (?, ?, ?, ?, ?) ON CONFLICT (device, public) DO UPDATE SET
			first = CASE WHEN attestation_key.first = 0 OR attestation_key.first > excluded.first THEN excluded.first ELSE attestation_key.first END,
			last = CASE WHEN attestation_key.last < excluded.last THEN excluded.last ELSE attestation_key.last END`,
			id, k.Public, ms(k.Since), k.First, k.Last); err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
	}
	return nil
}
