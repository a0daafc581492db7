package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// entry is the body of an entry of the service's own trail. What is hashed is
// the JSON as it was written; it holds the hash before, so a changed, missing
// or added entry breaks every hash behind it.
type entry struct {
	Seq      uint64            `json:"seq"`
	At       int64             `json:"at"`
	Tenant   fleet.TenantID    `json:"tenant,omitempty"`
	Kind     string            `json:"kind"`
	Severity string            `json:"severity"`
	Actor    string            `json:"actor,omitempty"`
	Subject  string            `json:"subject,omitempty"`
	Outcome  string            `json:"outcome,omitempty"`
	Site     string            `json:"site,omitempty"`
	Detail   map[string]string `json:"detail,omitempty"`
	Prev     []byte            `json:"prev"`
}

// Audit adds ev to the service's own trail. The store gives sequence, previous
// hash, body and hash; a zero time is now. Without a tenant, every tenant can
// read it.
func (s *Store) Audit(ctx context.Context, ev fleet.AuditEvent) error {
	err := s.shared(ctx, func(ctx context.Context, w *writer) error { return w.audit(ctx, ev.Tenant, ev) })
	if err != nil {
		return fmt.Errorf("audit %s: %w", ev.Kind, err)
	}
	return nil
}

// audit chains ev to the service's own trail, as an event of tenant t.
func (w *writer) audit(ctx context.Context, t fleet.TenantID, ev fleet.AuditEvent) error {
	if ev.Kind == "" {
		return fmt.Errorf("audit event without kind: %w", fleet.ErrInvalid)
	}
	if ev.Severity == "" {
		ev.Severity = "info"
	}
	if ev.At.IsZero() {
		ev.At = w.now
	}
	if ev.Outcome == "" {
		ev.Outcome = fleet.OutcomeOf(ev.Kind)
	}
	ev.Device, ev.Tenant, ev.StoredAt = "", t, w.now
	// JSON replaces what is no UTF-8: the row must say what the body says, or the entry would look tampered with.
	ev.Kind, ev.Actor, ev.Subject, ev.Outcome = text(ev.Kind), text(ev.Actor), text(ev.Subject), text(ev.Outcome)
	if ev.Site == "" {
		err := found(w.row(ctx, `SELECT site FROM device WHERE id = ? AND tenant = ?`, ev.Subject, t).Scan(&ev.Site))
		if err != nil && !errors.Is(err, fleet.ErrNotFound) {
			return fmt.Errorf("site of %s: %w", ev.Subject, err)
		}
	}
	ev.Site = text(ev.Site)
	var hash []byte
	if err := w.row(ctx, `SELECT head, hash FROM trail WHERE device = ''`).Scan(&ev.Seq, &hash); err != nil {
		return fmt.Errorf("head of the service trail: %w", err)
	}
	ev.Seq++
	copy(ev.Prev[:], hash)
	body, err := json.Marshal(entry{
		Seq: ev.Seq, At: ms(ev.At), Tenant: ev.Tenant, Kind: ev.Kind, Severity: ev.Severity,
		Actor: ev.Actor, Subject: ev.Subject, Outcome: ev.Outcome, Site: ev.Site, Detail: ev.Detail, Prev: ev.Prev[:],
	})
	if err != nil {
		return fmt.Errorf("encode audit entry: %w", err)
	}
	ev.Body, ev.Hash = body, sha256.Sum256(body)
	if _, err := w.insertAudit(ctx, ev, true); err != nil {
		return err
	}
	return w.exec(ctx, `UPDATE trail SET head = ?, hash = ?, entries = entries + 1 WHERE device = ''`, ev.Seq, ev.Hash[:])
}

// text replaces each byte that is no UTF-8 as encoding/json does, and the zero
// byte, which PostgreSQL keeps in no text.
func text(s string) string {
	if !utf8.ValidString(s) {
		s = string([]rune(s))
	}
	return strings.ReplaceAll(s, "\x00", "\uFFFD")
}

// insertAudit reports whether the entry is new. It is surely when it comes
// behind all that its trail holds: then it may be stored with others, later in
// the transaction.
func (w *writer) insertAudit(ctx context.Context, ev fleet.AuditEvent, sure bool) (bool, error) {
	detail := ev.Detail
	if detail == nil {
		detail = map[string]string{}
	}
	when, actor := ms(ev.At), ev.Actor
	if ev.Device != "" {
		when = deviceMS(ev.At)
		if actor == string(ev.Device) {
			actor = "" // as scanAudit reads it
		}
	}
	facet, err := w.facet(ctx, ev)
	if err != nil {
		return false, err
	}
	// The number is the next of all, and not one of a sequence, which would leave some out.
	if w.newest < 0 {
		if err := w.row(ctx, `SELECT COALESCE(MAX(n), 0) FROM audit`).Scan(&w.newest); err != nil {
			return false, err
		}
	}
	row := []any{
		w.newest + 1, ev.Device, ev.Seq, ev.Tenant, when, ms(ev.StoredAt), text(ev.Kind), text(ev.Severity), text(actor), text(ev.Subject), text(ev.Outcome), text(ev.Site), toJSON(detail),
		blob(ev.Body), ev.Hash[:], ev.Prev[:], facet,
	}
	if w.bulk && sure && !w.careful {
		if row, err = converted(row); err != nil {
			return false, err
		}
		w.trail, w.newest = append(w.trail, row), w.newest+1
		return true, nil
	}
	n, err := w.changed(ctx, insertAuditRow+` ON CONFLICT (device, seq) DO NOTHING`, row...)
	if n == 1 {
		w.newest++
	}
	return n == 1, err
}

const (
	auditRowColumns = `n, device, seq, tenant, at, stored_at, kind, severity, actor, subject, outcome, site, detail, body, hash, prev, facet`
	insertAuditRow  = `INSERT INTO audit (` + auditRowColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

const auditColumns = `device, seq, tenant, at, stored_at, kind, severity, actor, subject, outcome, site, detail, body, hash, prev`

func scanAudit(r scanner) (fleet.AuditEvent, error) {
	var ev fleet.AuditEvent
	var when, stored int64
	var detail string
	var hash, prev []byte
	if err := r.Scan(&ev.Device, &ev.Seq, &ev.Tenant, &when, &stored, &ev.Kind, &ev.Severity, &ev.Actor, &ev.Subject, &ev.Outcome, &ev.Site, &detail, &ev.Body, &hash, &prev); err != nil {
		return ev, err
	}
	if err := json.Unmarshal([]byte(detail), &ev.Detail); err != nil {
		return ev, fmt.Errorf("detail of audit entry %d: %w", ev.Seq, err)
	}
	ev.At, ev.StoredAt = at(when), at(stored)
	if ev.Actor == "" {
		ev.Actor = string(ev.Device)
	}
	copy(ev.Hash[:], hash)
	copy(ev.Prev[:], prev)
	return ev, nil
}

// AuditTrail lists the trail of a device of tenant t by sequence, or with an
// empty id what tenant t may see of the service's own trail.
func (s *Store) AuditTrail(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, newestFirst bool, p fleet.Page) (items []fleet.AuditEvent, next string, err error) {
	return s.AuditTrailOf(ctx, t, id, "", newestFirst, p)
}

// AuditTrailOf is AuditTrail for the entries of one severity; empty is all.
func (s *Store) AuditTrailOf(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, severity string, newestFirst bool, p fleet.Page) (items []fleet.AuditEvent, next string, err error) {
	if id != "" {
		if err := s.owns(ctx, t, id); err != nil {
			return nil, "", fmt.Errorf("audit trail: %w", err)
		}
	}
	where, order, start := ` AND seq > ?`, ` ORDER BY seq LIMIT ?`, int64(0)
	if newestFirst {
		where, order, start = ` AND seq < ?`, ` ORDER BY seq DESC LIMIT ?`, newest
	}
	if start, err = after(p, start); err != nil {
		return nil, "", err
	}
	limit := p.Bounded()
	args := []any{id, t, start}
	switch severity {
	case "":
	case "info": // nearly all of them
		where += ` AND severity = 'info'`
	default: // as the index audit_severe has it
		where, args = where+` AND severity <> 'info' AND severity = ?`, append(args, severity)
	}
	rows, err := s.read.QueryContext(ctx, `SELECT `+auditColumns+` FROM audit WHERE device = ? AND tenant IN (?, '')`+where+order, append(args, limit+1)...) //nolint:gosec // joins the constants above
	if items, err = list(rows, err, scanAudit); err != nil {
		return nil, "", fmt.Errorf("audit trail: %w", err)
	}
	items, next = page(items, limit, func(ev fleet.AuditEvent) string { return strconv.FormatUint(ev.Seq, 10) })
	return items, next, nil
}

// AuditHead returns sequence and hash of the newest stored entry of a device's
// trail; both are zero before the first. It is for ingest, which knows the
// device by its certificate.
func (s *Store) AuditHead(ctx context.Context, id fleet.DeviceID) (seq uint64, hash [32]byte, err error) {
	var b []byte
	if err := s.read.QueryRowContext(ctx, `SELECT head, hash FROM trail WHERE device = ?`, id).Scan(&seq, &b); err != nil {
		return 0, hash, fmt.Errorf("audit head of %s: %w", id, found(err))
	}
	copy(hash[:], b)
	return seq, hash, nil
}

// VerifyAudit reads the whole trail of a device of tenant t, or with an empty
// id the service's own, and checks each hash, each link, that what is shown
// is what was hashed, and that the end was not cut off.
func (s *Store) VerifyAudit(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (ChainReport, error) {
	if id != "" {
		if err := s.owns(ctx, t, id); err != nil {
			return ChainReport{}, fmt.Errorf("verify audit: %w", err)
		}
	}
	rep, err := s.verify(ctx, t, id)
	if err != nil {
		return ChainReport{}, fmt.Errorf("verify audit: %w", err)
	}
	return rep, nil
}

func (s *Store) verify(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (ChainReport, error) {
	var rep ChainReport
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}) // head and entries of one moment
	if err != nil {
		return rep, err
	}
	defer func() { _ = tx.Rollback() }()
	var head, base uint64
	var headHash, baseHash []byte
	if err := tx.QueryRowContext(ctx, `SELECT head, hash, base, base_hash FROM trail WHERE device = ?`, id).Scan(&head, &headHash, &base, &baseHash); err != nil {
		return rep, found(err)
	}
	excused, err := lostRanges(ctx, tx, id)
	if err != nil {
		return rep, err
	}
	rows, err := tx.QueryContext(ctx, `SELECT `+auditColumns+` FROM audit WHERE device = ? AND seq > ? ORDER BY seq`, id, base)
	if err != nil {
		return rep, err
	}
	defer rows.Close()
	broken := func(at uint64, text string) {
		if rep.BrokenAt == 0 {
			rep.BrokenAt, rep.Text = max(at, 1), text
		}
	}
	var prev [32]byte // what lies before is in segments
	copy(prev[:], baseHash)
	rep.Last = base
	var lost uint64 // with a damaged file, as the device says and an anchor has signed
	for rows.Next() {
		ev, err := scanAudit(rows)
		if err != nil {
			return rep, err
		}
		want := rep.Last + 1
		gap := ev.Seq != want
		switch {
		case gap && breaks(ev) && excused(want, ev.Seq-1):
			lost += ev.Seq - want
		case gap:
			broken(want, fmt.Sprintf("entries %d to %d are missing", want, ev.Seq-1))
		}
		if ev.Prev != prev && (!breaks(ev) || !gap && ev.Prev != [32]byte{}) {
			broken(ev.Seq, fmt.Sprintf("entry %d does not follow the one before", ev.Seq))
		}
		if text := intact(t, ev); text != "" {
			broken(ev.Seq, fmt.Sprintf("entry %d %s", ev.Seq, text))
		}
		if rep.Entries == 0 {
			rep.First = ev.Seq
		}
		rep.Entries, rep.Last, prev = rep.Entries+1, ev.Seq, ev.Hash
	}
	if err := rows.Err(); err != nil {
		return rep, err
	}
	if rep.Last != head || !bytes.Equal(prev[:], headHash) {
		broken(rep.Last+1, fmt.Sprintf("the trail ends at %d and should end at %d", rep.Last, head))
	}
	if rep.OK = rep.BrokenAt == 0; rep.OK {
		rep.Text = fmt.Sprintf("%d entries, the chain is whole", rep.Entries)
		if lost > 0 {
			rep.Text = fmt.Sprintf("%d entries, the chain is whole but for %d that the device lost with a damaged file, as its TPM signed", rep.Entries, lost)
		}
	}
	return rep, nil
}

// intact checks one entry for itself; empty means that it is. An entry of a
// device has the device as its actor unless it names another and t, the device's tenant, as its owner.
func intact(t fleet.TenantID, ev fleet.AuditEvent) string {
	if sha256.Sum256(ev.Body) != ev.Hash {
		return "does not match its hash"
	}
	var in entry
	if ev.Device == "" {
		if err := json.Unmarshal(ev.Body, &in); err != nil {
			return "cannot be read"
		}
	} else {
		r, err := wire.AuditEntry{Body: ev.Body, Hash: ev.Hash}.Open()
		if err != nil {
			return "cannot be read"
		}
		in = entry{
			Seq: r.Seq, At: deviceMS(time.UnixMilli(r.At)), Tenant: t, Kind: r.Kind, Severity: r.Severity,
			Actor: cmp.Or(r.Actor, string(ev.Device)), Subject: r.Subject, Outcome: r.Outcome, Site: ev.Site, Detail: r.Detail, Prev: r.Prev[:],
		}
	}
	switch {
	case in.Seq != ev.Seq || in.At != ms(ev.At) || in.Tenant != ev.Tenant || text(in.Kind) != ev.Kind || text(in.Severity) != ev.Severity ||
		text(in.Actor) != ev.Actor || text(in.Subject) != ev.Subject || text(in.Outcome) != ev.Outcome || text(in.Site) != ev.Site || !maps.Equal(in.Detail, ev.Detail) || !bytes.Equal(in.Prev, ev.Prev[:]):
		return "shows something else than what was hashed"
	}
	return ""
}
