package telemetry

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal"
)

const maxItems = 32 // sensors, and capabilities, of a peripheral

// listed reports whether the device shows as a peripheral: all do, but a box
// that only counts.
func listed(w *watcher) bool { return w.status != nil || w.info.Category != hal.Host }

// describe says who a device is; how it is remains unknown.
func describe(i hal.Info) wire.Peripheral {
	return wire.Peripheral{
		ID: i.ID, Category: string(i.Category), Driver: i.Driver, Maker: i.Maker, Model: i.Model, Serial: i.Serial,
		Firmware: i.Firmware, Simulated: i.Simulated, Power: string(hal.PowerUnknown), Health: string(hal.NoSensor), Reason: "M_NOT_ASKED",
		Claim: string(i.Claim), Key: i.Key, Interface: i.Interface, Caps: i.Caps, RollLines: i.RollLines,
	}
}

// clean makes a peripheral fit for the contract and blanks what may be a card
// number. A driver reads these texts from hardware, which may say anything, so
// that it is the text which leaves the box that is looked at.
func (m *Monitor) clean(p wire.Peripheral) wire.Peripheral {
	for _, s := range []*string{&p.ID, &p.Category, &p.Driver, &p.Power, &p.Health, &p.Reason, &p.Claim, &p.Interface} {
		*s = m.guarded(identifier(*s))
	}
	for _, s := range []*string{&p.Maker, &p.Model, &p.Serial, &p.Firmware} {
		*s = cut(m.guarded(shown(*s)), wire.MaxName)
	}
	p.Key = cut(m.guarded(shown(p.Key)), wire.MaxTopic)
	for s, otherwise := range map[*string]string{&p.Category: string(hal.Other), &p.Driver: "unknown", &p.Power: "PS_UNKNOWN", &p.Health: "Unknown"} {
		if *s == "" {
			*s = otherwise
		}
	}
	sensors := make(map[string]string, len(p.Sensors))
	for _, k := range slices.Sorted(maps.Keys(p.Sensors)) {
		v := p.Sensors[k]
		if name := m.guarded(identifier(k)); name != "" && len(sensors) < maxItems && (v == "Yes" || v == "No" || v == "Unknown") {
			sensors[name] = v
		}
	}
	p.Sensors = sensors
	if len(sensors) == 0 {
		p.Sensors = nil
	}
	var caps []string
	for _, c := range p.Caps {
		if c = m.guarded(identifier(c)); c != "" {
			caps = append(caps, c)
		}
	}
	slices.Sort(caps)
	caps = slices.Compact(caps)
	p.Caps = caps[:min(len(caps), maxItems)]
	return p
}

func (m *Monitor) guarded(s string) string {
	if s != "" && hal.MayHoldPAN(s) {
		m.dropped.Add(1)
		return ""
	}
	return s
}

// nameOf makes an ID that the contract takes. Each is told by some ID, also one
// that has none, or one that could be a card number.
func nameOf(id string) string {
	if name := identifier(id); name != "" && !hal.MayHoldPAN(id) && !hal.MayHoldPAN(name) {
		return name
	}
	return "unnamed-" + letters(id)
}

// letters tells s from others in twelve letters, without a digit, so that it
// never looks like a card number.
func letters(s string) string {
	sum := sha256.Sum256([]byte(s))
	for i := range 12 {
		sum[i] = 'a' + sum[i]%16
	}
	return string(sum[:12])
}

// shown is s without what nobody sees, and what a terminal would obey.
func shown(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// identifier makes s a name that the contract takes.
func identifier(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s[:min(len(s), 4*wire.MaxName)])
	return s[:min(len(s), wire.MaxName)]
}

// cut shortens s to limit bytes of UTF-8.
func cut(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
