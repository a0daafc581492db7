// Package audit is the device's journal of what happened: entries numbered for
// the life of the device, each holding the SHA-256 of the one before, so that
// nobody can change, drop or add one unseen.
//
// It owns the making of entries and their order, the anchors by which the TPM
// vouches for the chain, and the mark: a small file beside the spool with the
// newest that is known for certain. It promises that an entry and the head of the
// chain are stored together or not at all; that an entry holds no free text and
// no card number, whoever records it, and that neither costs the event; that
// nobody waits for a TPM; and that a chain whose end was lost goes on behind any
// number that may have been used, with an entry that says so. It stores no entry
// itself: the spool does, and carries them to the service.
package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
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

// Options are what a Journal stands on.
type Options struct {
	Chain Chain
	Next  func() wire.Head // numbers the messages that carry the entries
	// Stamp tells the time, how long the box has been on, and what the time rests
	// on; nil: the system's clock, of which nothing is known.
	Stamp func() (at time.Time, mono time.Duration, clock string)
	// Holds reports whether a text could hold a card number; nil: hal.MayHoldPAN.
	Holds func(text string) bool
	// Mark is the file beside the spool; empty: none is kept.
	Mark string
	// Rebuilt is what the damaged spool is kept as; empty: it was not damaged.
	Rebuilt string
	// Recalled says that the head of a damaged spool may be behind by a little.
	Recalled bool
	// Sign has the TPM vouch for the head of the chain, and names the device; nil:
	// there is no TPM. It is called by Run and Stop alone, and may take its time.
	Sign func(ctx context.Context, seq uint64, hash [32]byte) (device string, a wire.Anchor, err error)
	// Waiting yields the oldest messages of the chain that the service has not
	// stored; nil: nobody knows them.
	Waiting func(ctx context.Context, yield func(payload []byte)) error
	// Strict refuses what is not in the contract, for tests; else it is marked.
	Strict bool
	Log    *slog.Logger
}

const headKey = "audit.head"

// ErrNoTPM is what Options.Sign returns when there is no TPM to ask, or not yet.
var ErrNoTPM = errors.New("there is no TPM to vouch for the audit chain")

// errMoved means that another entry came between an anchor and what it is bound
// to.
var errMoved = errors.New("the audit chain has gone on")

// Journal is the audit chain of one device. Its methods may be called from any
// goroutine.
type Journal struct {
	o Options

	saving sync.Mutex    // one writes the mark
	news   chan struct{} // something is to be done about what follows

	mu     sync.Mutex // also keeps what follows in step with the chain
	head   head
	broken *broken // what has to be said before the next entry
	recent [64]head
	mark   mark
	first  string    // why an anchor is due at once
	dirty  int       // entries that no anchor covers
	since  time.Time // the first of them
	left   budget
	told   uint64   // the entry that says what was countersigned last
	denied [32]byte // what was disputed last
}

type head struct {
	seq  uint64
	hash [32]byte
}

// Open continues the chain that is stored, or begins one.
func Open(ctx context.Context, o Options) (*Journal, error) {
	if o.Holds == nil {
		o.Holds = hal.MayHoldPAN
	}
	if o.Stamp == nil {
		o.Stamp = func() (time.Time, time.Duration, string) { return time.Now(), 0, wire.ClockNone }
	}
	j := &Journal{o: o, news: make(chan struct{}, 1), left: budget{ahead, time.Now()}}
	blob, err := o.Chain.Load(ctx, headKey)
	if err != nil {
		return nil, fmt.Errorf("open audit journal: %w", err)
	}
	known := j.mark.load(o.Mark, o.Log)
	j.head, err = parse(blob)
	if boot := systemBoot(); boot == "" || boot != j.mark.Boot {
		j.first = "boot"
	}
	if j.broken = damage(j.head, err, known, j.mark.head(), o); j.broken != nil {
		o.Log.Error("the audit chain goes on behind a break", slog.String("reason", j.broken.reason), slog.Uint64("known", j.broken.known.seq), slog.Any("err", err))
		j.mu.Lock()
		defer j.mu.Unlock()
		if err := j.mend(); err != nil { // before the next entry, then
			o.Log.Error("audit", slog.String("kind", "audit.break"), slog.Any("err", err))
		}
	}
	return j, nil
}

// Record adds an entry. subject is what it happened to, "" for the device
// itself; detail holds what wire.AuditKinds lists for the kind. What is not of
// its form is not told, and of what is not listed the kind alone. The error is
// the spool's: when it is full, the caller must not do what it wanted to record.
func (j *Journal) Record(ctx context.Context, kind, severity, subject string, detail map[string]string) error {
	return j.add(ctx, wire.AuditRecord{Kind: kind, Severity: severity, Subject: subject, Detail: detail}, nil)
}

// Head returns the sequence and hash of the last entry; zero when there is none.
func (j *Journal) Head() (seq uint64, hash [32]byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head.seq, j.head.hash
}

// add makes r the next entry. With after, it is errMoved unless that is the last.
func (j *Journal) add(ctx context.Context, r wire.AuditRecord, after *head) error {
	r, err := j.clean(r)
	if err != nil {
		return err
	}
	begun := false
	err = func() error {
		j.mu.Lock()
		defer j.mu.Unlock()
		begun = j.mark.Seq > 0
		if err := j.mend(); err != nil {
			return err
		}
		return j.append(ctx, r, after, nil)
	}()
	if err == nil && !begun { // once in a life: from here on it is known that there was a chain
		j.keep(nil)
	}
	return err
}

// clean makes r what may leave the box: of the forms of its kind, and without
// what could be a card number. Every entry comes past it.
func (j *Journal) clean(r wire.AuditRecord) (wire.AuditRecord, error) {
	kind := r.Kind
	r, misfits := r.Fit()
	if len(misfits) > 0 {
		if j.o.Strict {
			return r, fmt.Errorf("record %s: %s: %w", kind, strings.Join(misfits, ", "), wire.ErrMalformed)
		}
		j.o.Log.Error("an audit entry was to say what the contract does not list", slog.String("kind", r.Kind), slog.Any("misfits", misfits))
	}
	if j.o.Holds(r.Kind) {
		r.Kind = wire.AuditMisfit
	}
	for _, s := range []*string{&r.Subject, &r.Actor} {
		if j.o.Holds(*s) {
			*s = wire.AuditWithheld
		}
	}
	for k, v := range r.Detail { // Fit made it ours
		if j.o.Holds(k + "=" + v) {
			r.Detail[k] = wire.AuditWithheld
		}
	}
	return r, nil
}

// append stores r as the next entry, behind another head when there is one. One that
// is stored and may not be safe is the next all the same, with an error. j.mu is
// held.
func (j *Journal) append(ctx context.Context, r wire.AuditRecord, after, instead *head) error {
	var now head
	err := j.o.Chain.Append(ctx, headKey, string(wire.Audit), func(blob []byte) (payload, newHead []byte, err error) {
		last, err := parse(blob)
		switch {
		case instead != nil:
			last = *instead
		case err != nil: // cannot be: Open has looked
			last = j.head
		}
		if after != nil && last != *after {
			return nil, nil, errMoved
		}
		h := j.o.Next()
		at, mono, clock := j.o.Stamp()
		r.Seq, r.Prev, r.Boot, r.At, r.Mono, r.Clock = last.seq+1, last.hash, h.Boot, at.UnixMilli(), mono.Milliseconds(), clock
		entry, err := wire.SealAudit(r)
		if err != nil {
			return nil, nil, err
		}
		payload, err = wire.Encode(&wire.AuditBatch{Head: h, Entries: []wire.AuditEntry{entry}})
		now = head{r.Seq, entry.Hash}
		return payload, now.blob(), err
	})
	if err != nil {
		if err = fmt.Errorf("record %s: %w", r.Kind, err); !j.stored(now) {
			return err
		}
	}
	j.head = now
	j.recent[now.seq%uint64(len(j.recent))] = now
	switch r.Kind {
	case kindAnchor:
		j.dirty = 0
	case kindCountersigned: // nothing happened: it says what did
	default:
		if j.dirty++; j.dirty == 1 {
			j.since = time.Now()
		}
	}
	if j.dirty == 1 || j.dirty == every || j.lags() {
		select {
		case j.news <- struct{}{}:
		default:
		}
	}
	return err
}

// stored reports whether the chain has an entry of which Append said that it could
// not be stored.
func (j *Journal) stored(h head) bool {
	if h.seq == 0 { // it never came to that
		return false
	}
	blob, err := j.o.Chain.Load(context.Background(), headKey)
	return err == nil && bytes.Equal(blob, h.blob())
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
