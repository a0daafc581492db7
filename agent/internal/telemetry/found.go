package telemetry

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

const (
	firstScan = 3 * time.Second // what a bus tells this soon was there before
	maxFound  = 256             // candidates that are remembered
)

// find is what the bus has found.
type find struct {
	c    hal.Candidate
	p    wire.Peripheral
	scan int // in which scan of the bus it was seen last
}

// gone reports whether it was pulled out and that has not been told yet.
func (f *find) gone() bool { return f.p.Power != string(hal.PowerOnline) }

// hunt has the bus tell what is plugged in, and begins again when it fails.
func (m *Monitor) hunt(ctx context.Context) {
	failures, said := 0, ""
	for scan := 1; ctx.Err() == nil; scan++ {
		began := time.Now()
		rest := time.AfterFunc(firstScan, func() {
			m.post(ctx, func(ctx context.Context) { m.missing(ctx, scan) })
		})
		ended := make(chan error, 1)
		go func() {
			ended <- safely(func() error {
				return m.o.Bus.Watch(ctx, func(c hal.Change) {
					there := time.Since(began) < firstScan
					m.post(ctx, func(ctx context.Context) { m.change(ctx, c, scan, scan == 1 && there) })
				})
			})
		}()
		var err error
		select {
		case err = <-ended:
		case <-ctx.Done():
			select {
			case <-ended: //nolint:errcheck // it was told to end
			case <-time.After(heed):
			}
		}
		rest.Stop()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			failures = 0
		}
		wait := hal.Backoff(failures, backoffMin, backoffMax)
		failures++
		if why := fmt.Sprint(err); why != said {
			said = why
			m.o.Log.Warn("the bus of peripherals is not watched", "error", err, "again_in", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// change takes in that something came or went. Who is watched at that place is
// told to look.
func (m *Monitor) change(ctx context.Context, c hal.Change, scan int, there bool) {
	m.mu.Lock()
	claimed := false
	for _, w := range m.watchers {
		if m.claims(w, c.Candidate) {
			claimed = true
			w.moved.Store(true)
			nudge(w.kick)
		}
	}
	m.mu.Unlock()
	f := m.found[c.Key]
	switch {
	case slices.ContainsFunc(m.o.Ignore, func(a string) bool { return matches(a, c.Candidate) }):
	case c.Gone:
		if f != nil && !f.gone() {
			m.lose(ctx, f, claimed)
		}
	case f == nil && len(m.found) >= maxFound:
	default:
		p := present(c.Candidate)
		p.Power = string(hal.PowerOnline)
		p = m.clean(p)
		p.ID = m.name(c.Candidate)
		p.Since = m.o.Now().UnixMilli()
		if f != nil && !f.gone() {
			p.Since = f.p.Since
		}
		came := f == nil || f.gone()
		m.found[c.Key] = &find{c.Candidate, p, scan}
		if came && !claimed {
			if !there {
				m.tellPower(ctx, p, "ONLINE", string(hal.PowerOffOffline))
			}
			m.Touch()
		}
	}
}

// lose takes in that something was pulled out. It is told once more.
func (m *Monitor) lose(ctx context.Context, f *find, claimed bool) {
	was := f.p.Power
	f.p.Power, f.p.Health, f.p.Reason, f.p.Since = string(hal.PowerOffOffline), string(hal.Offline), "POWER_OFF_OFFLINE", m.o.Now().UnixMilli()
	if !claimed {
		m.tellPower(ctx, f.p, "OFF_OFFLINE", was)
		m.Touch()
	}
}

// missing takes in what a bus that is watched anew has not found again.
func (m *Monitor) missing(ctx context.Context, scan int) {
	for _, f := range m.found {
		if f.scan < scan && !f.gone() {
			m.lose(ctx, f, m.claimed(f.c))
		}
	}
}

// unclaimed is what was found and no device stands for, by ID.
func (m *Monitor) unclaimed() (out []wire.Peripheral) {
	for _, f := range m.found {
		m.mu.Lock()
		_, taken := m.watchers[f.p.ID]
		m.mu.Unlock()
		if !taken && !m.claimed(f.c) {
			out = append(out, f.p)
		}
	}
	slices.SortFunc(out, func(a, b wire.Peripheral) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// forget leaves out what is gone, once that has been told.
func (m *Monitor) forget() {
	maps.DeleteFunc(m.found, func(_ string, f *find) bool { return f.gone() })
}

func (m *Monitor) claimed(c hal.Candidate) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.watchers {
		if m.claims(w, c) {
			return true
		}
	}
	return false
}

// claims reports whether a watched device stands for the candidate: where it
// says that it is counts before where it was configured to be.
func (m *Monitor) claims(w *watcher, c hal.Candidate) bool {
	key, _, is := w.known()
	if key == c.Key {
		return true
	}
	if reader, ok := strings.CutPrefix(key, "pcsc:"); ok {
		return is == hal.SmartCardRW && c.Category == hal.SmartCardRW && sameReader(reader, c)
	}
	if exact(key) {
		return false
	}
	return matches(key, c) || matches(m.o.Addresses[w.under], c)
}

// exact reports whether a key names one device, and not a kind.
func exact(key string) bool {
	return strings.HasPrefix(key, "usb:") && (strings.Contains(key, "@") || strings.Count(key, ":") > 2)
}

// matches reports whether an address is that of the candidate: usb:VID:PID for
// any of the kind, a whole key, or a device file.
func matches(address string, c hal.Candidate) bool {
	if address == "" {
		return false
	}
	rest, ok := strings.CutPrefix(c.Key, address)
	return address == c.Node || ok && (rest == "" || !exact(address) && strings.HasPrefix(address, "usb:") && (rest[0] == ':' || rest[0] == '@'))
}

// sameReader reports whether pcscd's name of a reader may be that of the
// candidate: it is made of what the maker calls the device.
func sameReader(reader string, c hal.Candidate) bool {
	reader = strings.ToLower(reader)
	model, maker := strings.ToLower(c.Model), strings.ToLower(c.Maker)
	first, _, _ := strings.Cut(maker, " ")
	return model != "" && strings.Contains(reader, model) || len(first) > 1 && strings.HasPrefix(reader, first)
}

// present describes what nobody has a driver for.
func present(c hal.Candidate) wire.Peripheral {
	return wire.Peripheral{
		ID: c.Key, Category: string(c.Category), Driver: "none", Maker: c.Maker, Model: c.Model, Serial: c.Serial, Firmware: c.Firmware,
		Health: string(hal.NoSensor), Reason: "M_NO_DRIVER", Key: c.Key, Interface: c.Interface,
	}
}

// name makes an ID of a key: the same each time, and fit for a path. What is in
// the key beside plain letters is told apart by a hash, which has no digits so
// that it never looks like a card number.
func (m *Monitor) name(c hal.Candidate) string {
	plain := true
	id := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		case r == ':' || r == '@':
			return '-'
		}
		plain = false
		return '_'
	}, c.Key)
	if plain && len(id) <= wire.MaxName && id != "" && !hal.MayHoldPAN(id) {
		return id
	}
	if hal.MayHoldPAN(id) || hal.MayHoldPAN(c.Key) {
		id = "usb"
	}
	return id[:min(len(id), 40)] + "-" + letters(c.Key)
}
