// Package shelf seals audit trails: for whoever asks, to take away, and for good
// when their entries have been in the database long enough. It keeps the sealed
// files in a folder, a segment of a trail in each, and reads them again.
//
// A power cut may fall anywhere. A segment is noted only when its file is on the
// disk and was read back, rows are deleted only when their segment is noted, and
// what was begun is finished or begun again at the next run. What a receiver of
// the trails has not been sent, and what does not hold, stays in the database,
// and the service's trail says so. What a sealed file is, and whether one is
// whole, knows cloud/internal/archive.
package shelf

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
)

// Options of a Shelf.
type Options struct {
	Store  Store
	Signer archive.Signer
	Dir    string // of segments
	Tenant fleet.TenantID
	Before func(now time.Time) time.Time                          // what was stored before goes into segments
	Sinks  func(ctx context.Context) ([]fleet.ExportState, error) // which have to be sent it first
	Log    *slog.Logger
}

// Shelf seals trails and keeps segments.
type Shelf struct {
	o    Options
	told map[string]bool // what was said already, and is still so

	mu    sync.Mutex
	state State
}

// State is how putting away went the last time.
type State struct {
	At      time.Time // when it ended; zero: not yet
	Err     error     // why it ended before its time
	Unsound int       // trails that do not hold, and stay in the database
	Held    string    // sink that has not been sent what is old; empty: none
}

// State says how it went.
func (x *Shelf) State() State {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state
}

// New returns a Shelf; Run puts away what is old.
func New(o Options) *Shelf { return &Shelf{o: o, told: map[string]bool{}} }

// sealBatch is how many entries of a trail are read at once: no transaction
// stays open while a receiver takes its time.
const sealBatch = 500

// Store is what holds the trails; cloud/internal/store fits.
type Store interface {
	retentionStore
	TrailState(ctx context.Context, t fleet.TenantID, id fleet.DeviceID) (fleet.TrailState, error)
	TrailHeadBefore(ctx context.Context, id fleet.DeviceID, seq uint64) (fleet.Head, error)
	TrailEntries(ctx context.Context, id fleet.DeviceID, seq, last uint64, limit int) ([]fleet.AuditEvent, error)
	Countersignatures(ctx context.Context, id fleet.DeviceID, seq, last uint64) ([]fleet.Countersigned, error)
	AttestationKeys(ctx context.Context, id fleet.DeviceID) ([]fleet.AttestationKey, error)
	DeviceByID(ctx context.Context, id fleet.DeviceID) (fleet.Device, error)
	TrailShared(ctx context.Context, t fleet.TenantID) (bool, error)
	Segment(ctx context.Context, t fleet.TenantID, n int64) (fleet.Segment, error)
}

// stretch is a part of a trail.
type stretch struct {
	device, formerOf fleet.DeviceID
	after            fleet.Head
	last             uint64
	by               string
	all              bool // entries of every tenant
}

// Key returns the key that trails are sealed with.
func (x *Shelf) Key() (id string, key ed25519.PublicKey) { return x.o.Signer.Public() }

// Export prepares the entries of a trail from one number to another, 0 for all
// that are there, to be written as a sealed file. It says how many at most.
func (x *Shelf) Export(ctx context.Context, t fleet.TenantID, id fleet.DeviceID, from, to uint64, by string) (entries uint64, write func(context.Context, io.Writer) error, err error) {
	st, err := x.o.Store.TrailState(ctx, t, id)
	if err != nil {
		return 0, nil, err
	}
	p := stretch{device: id, after: fleet.Head{Seq: st.Base, Hash: st.BaseHash}, last: st.Head, by: by}
	switch {
	case to != 0 && from > to:
		return 0, nil, fmt.Errorf("from entry %d to entry %d: begin before the end: %w", from, to, fleet.ErrInvalid)
	case from != 0 && from <= st.Base, to != 0 && to <= st.Base:
		return 0, nil, fmt.Errorf("entries up to %d lie in sealed segments: begin with entry %d, and see audit segments for the rest: %w", st.Base, st.Base+1, fleet.ErrInvalid)
	case from > st.Head+1:
		return 0, nil, fmt.Errorf("the trail ends with entry %d: %w", st.Head, fleet.ErrInvalid)
	}
	if to != 0 {
		p.last = min(p.last, to)
	}
	if from > st.Base+1 {
		if p.after, err = x.o.Store.TrailHeadBefore(ctx, id, from); err != nil {
			return 0, nil, err
		}
	}
	if id == "" {
		if shared, err := x.o.Store.TrailShared(ctx, t); err != nil || shared {
			if err == nil {
				err = fmt.Errorf("the service's own trail holds entries of other tenants, and without them it is no chain: %w", fleet.ErrForbidden)
			}
			return 0, nil, err
		}
	}
	if id != "" {
		d, err := x.o.Store.DeviceByID(ctx, id)
		if err != nil {
			return 0, nil, err
		}
		p.formerOf = d.FormerOf
	}
	return p.last - min(p.last, p.after.Seq), func(ctx context.Context, w io.Writer) error {
		_, err := x.seal(ctx, w, t, p)
		return err
	}, nil
}

// seal writes a part of a trail as a sealed file.
func (x *Shelf) seal(ctx context.Context, w io.Writer, t fleet.TenantID, p stretch) (archive.Seal, error) {
	id, pub := x.o.Signer.Public()
	h := archive.Header{
		What: archive.ServiceTrail, Tenant: string(t), After: archive.Point{Seq: p.after.Seq, Hash: p.after.Hash}, Last: p.last, MadeAt: time.Now().UTC().Truncate(time.Second), MadeBy: p.by,
		Keys: []archive.Key{{ID: id, Public: pub}},
	}
	if p.device != "" {
		h.What, h.Device = archive.DeviceTrail, string(p.device)
		if p.formerOf != "" {
			h.Device, h.Name = string(p.formerOf), string(p.device)
		}
		keys, err := x.o.Store.AttestationKeys(ctx, p.device)
		if err != nil {
			return archive.Seal{}, err
		}
		for i, k := range keys {
			// Those that signed anchors of it, and those that can have signed what comes late while it is written.
			if i < fleet.AnchorKeys || k.First <= p.last && k.Last > p.after.Seq {
				h.AKs = append(h.AKs, archive.Key{Public: k.Public, Since: k.Since})
			}
		}
	}
	out, err := archive.NewWriter(w, h)
	if err != nil {
		return archive.Seal{}, err
	}
	for at := p.after.Seq; ; {
		entries, err := x.o.Store.TrailEntries(ctx, p.device, at, p.last, sealBatch)
		if err != nil {
			return archive.Seal{}, err
		}
		if len(entries) == 0 {
			return out.Close(x.o.Signer)
		}
		end := entries[len(entries)-1].Seq
		signed, err := x.o.Store.Countersignatures(ctx, p.device, at, end)
		if err != nil {
			return archive.Seal{}, err
		}
		for _, ev := range entries {
			if ev.Tenant != t && ev.Tenant != "" && !p.all {
				return archive.Seal{}, fmt.Errorf("entry %d is another tenant's: %w", ev.Seq, fleet.ErrForbidden)
			}
			err := out.Entry(ev)
			for len(signed) > 0 && signed[0].Seq <= ev.Seq && err == nil {
				if signed[0].Seq == ev.Seq {
					err = out.Countersign(signed[0].Order, signed[0].At)
				}
				signed = signed[1:]
			}
			if err != nil {
				return archive.Seal{}, err
			}
		}
		at = end
	}
}

// trust is what the service believes of its own files.
func (x *Shelf) trust() archive.Trust {
	id, pub := x.o.Signer.Public()
	return archive.Trust{Keys: trust.Keyring{id: pub}, Anchor: enrol.VerifyAnchor}
}
