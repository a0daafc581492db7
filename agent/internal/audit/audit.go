// Package audit is the device's journal of what happened: entries numbered for
// the life of the device, each holding the SHA-256 of the one before, so that
// nobody can change, drop or add one unseen.
//
// It owns the making of entries and their order. It promises that an entry and
// the head of the chain are stored together or not at all, and that a text
// which is too long is cut rather than the event lost. It stores nothing
// itself: the spool does, and carries the entries to the service.
package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/wire"
)

// Severities of an entry.
const (
	Info  = "info"  // something happened
	Warn  = "warn"  // something failed and was coped with
	Alarm = "alarm" // somebody should look
)

// Chain stores a value and a message together; the spool does.
type Chain interface {
	// Append hands link the present head and stores the message and the new head in one step.
	Append(ctx context.Context, key, channel string, link func(head []byte) (payload, newHead []byte, err error)) error
	Load(ctx context.Context, key string) ([]byte, error)
}

const (
	headKey    = "audit.head"
	maxDetails = 16
	cutMark    = "..."
)

// Journal is the audit chain of one device. Its methods may be called from any
// goroutine.
type Journal struct {
	chain Chain
	next  func() wire.Head
	log   *slog.Logger

	mu   sync.Mutex // also keeps Head in step with the chain
	head head
}

type head struct {
	seq  uint64
	hash [32]byte
}

// Open continues the chain that is stored, or begins one. next numbers the
// messages that carry the entries.
func Open(ctx context.Context, chain Chain, next func() wire.Head, log *slog.Logger) (*Journal, error) {
	j := &Journal{chain: chain, next: next, log: log}
	blob, err := chain.Load(ctx, headKey)
	if err != nil {
		return nil, fmt.Errorf("open audit journal: %w", err)
	}
	if j.head, err = parse(blob); err != nil {
		// Beginning again shows as an alarm at the service; not starting would stop the till's updates for ever.
		log.Error("audit chain begins anew", "error", err)
	}
	return j, nil
}

// Record adds an entry. subject is what it happened to, "" for the device
// itself; detail holds up to 16 values. Texts are cut to the limits of the
// contract. The error is the spool's: when it is full, the caller must not do
// what it wanted to record.
func (j *Journal) Record(ctx context.Context, kind, severity, subject string, detail map[string]string) error {
	r := wire.AuditRecord{
		At: time.Now().UnixMilli(), Kind: kind, Severity: severity,
		Subject: cut(subject, wire.MaxText), Detail: fit(detail, wire.MaxText),
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var after head
	err := j.chain.Append(ctx, headKey, string(wire.Audit), func(blob []byte) (payload, newHead []byte, err error) {
		last, err := parse(blob)
		if err != nil {
			last = head{}
		}
		h := j.next()
		r.Seq, r.Prev, r.Boot = last.seq+1, last.hash, h.Boot
		entry, err := wire.SealAudit(r)
		if errors.Is(err, wire.ErrLimit) { // the values together are too long
			short := r
			short.Detail = fit(detail, wire.MaxAuditBody/maxDetails/4)
			entry, err = wire.SealAudit(short)
		}
		if err != nil {
			return nil, nil, err
		}
		payload, err = wire.Encode(&wire.AuditBatch{Head: h, Entries: []wire.AuditEntry{entry}})
		after = head{r.Seq, entry.Hash}
		return payload, after.blob(), err
	})
	if err != nil {
		return fmt.Errorf("record %s: %w", kind, err)
	}
	j.head = after
	return nil
}

// Head returns the sequence and hash of the last entry; zero when there is none.
func (j *Journal) Head() (seq uint64, hash [32]byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head.seq, j.head.hash
}

func (h head) blob() []byte {
	return append(binary.BigEndian.AppendUint64(nil, h.seq), h.hash[:]...)
}

func parse(blob []byte) (h head, err error) {
	if blob == nil {
		return h, nil
	}
	if len(blob) != 8+len(h.hash) {
		return h, fmt.Errorf("stored audit head has %d bytes", len(blob))
	}
	h.seq = binary.BigEndian.Uint64(blob)
	copy(h.hash[:], blob[8:])
	return h, nil
}

// fit makes detail acceptable to the contract: plain names, few and short values.
func fit(detail map[string]string, limit int) map[string]string {
	if len(detail) == 0 {
		return nil
	}
	out := make(map[string]string, min(len(detail), maxDetails))
	for _, k := range slices.Sorted(maps.Keys(detail)) {
		if len(out) == maxDetails {
			break
		}
		out[name(k)] = cut(detail[k], limit)
	}
	return out
}

func name(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if s == "" {
		return "_"
	}
	return s[:min(len(s), wire.MaxName)]
}

// cut shortens s to limit bytes of UTF-8 with a mark at the end.
func cut(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= limit {
		return s
	}
	end := limit - len(cutMark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + cutMark
}
