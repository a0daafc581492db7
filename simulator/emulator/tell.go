package emulator

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// KeepCounters makes the counters outlive the printer: they are read from the
// file now, if it is there, and written to it at each cut and by Close.
func (p *Printer) KeepCounters(file string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, err := os.ReadFile(file) // #nosec G304 -- the caller's own file
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("printer emulator: counters: %w", err)
	}
	if err == nil {
		kept := map[int]uint64{}
		if err := json.Unmarshal(b, &kept); err != nil {
			return fmt.Errorf("printer emulator: counters in %s: %w", file, err)
		}
		for n, v := range kept {
			if _, known := p.counters[n]; known {
				p.counters[n] = v
			}
		}
	}
	p.state = file
	return nil
}

func (p *Printer) keepLocked() {
	if p.state == "" {
		return
	}
	b, err := json.Marshal(p.counters)
	if err == nil {
		err = os.WriteFile(p.state, b, 0o600)
	}
	if err != nil {
		p.lost = cmp.Or(p.lost, fmt.Errorf("printer emulator: counters: %w", err))
	}
}

// Renew puts another printer of the kind in its place, fresh from the box: all
// that it counts begins anew.
func (p *Printer) Renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.counters)
	for _, n := range []int{20, 21, 50, 70, 148, 149, 178, 198} {
		p.counters[n] = 0
	}
}

// sensorLocked is GS r n, answered in its turn and so never while off-line.
func (p *Printer) sensorLocked(n byte) {
	switch n {
	case 1, '1':
		f := p.frameLocked()
		p.sendLocked(f[2])
	case 2, '2':
		p.sendLocked(bits(0, map[byte]bool{0x01: p.hasLocked(DrawerOpen)}))
	case 4, '4':
		p.sendLocked(0) // no ink is used, so none is low
	default:
		p.unknownLocked([]byte{gs, 'r', n})
	}
}

// identifyLocked is GS I n.
func (p *Printer) identifyLocked(n byte) {
	if p.faults[NoIdentity] {
		return
	}
	switch n {
	case 1, '1': // model
		p.sendLocked(0x20)
	case 2, '2': // type: it has a cutter
		p.sendLocked(0x02)
	case 3, '3': // version of the firmware
		p.sendLocked(0x04)
	case 65:
		p.blockLocked("1.04 ESC/POS")
	case 66:
		p.blockLocked("TILLWARD")
	case 67:
		p.blockLocked("EMU-T80")
	case 68:
		p.blockLocked(p.serial)
	case 69: // further fonts
		p.blockLocked("")
	default:
		p.unknownLocked([]byte{gs, 'I', n})
	}
}

func (p *Printer) blockLocked(s string) {
	p.sendLocked(append(append([]byte{0x5f}, s...), 0)...)
}

// maintenanceLocked is GS g 0 m nL nH (reset) and GS g 2 m nL nH (tell).
func (p *Printer) maintenanceLocked(cmd []byte) {
	if p.faults[NoCounters] {
		return
	}
	n := int(cmd[4]) + int(cmd[5])<<8
	v, known := p.counters[n]
	switch {
	case !known, cmd[2] != '0' && cmd[2] != '2':
		p.unknownLocked(cmd)
	case cmd[2] == '2':
		p.blockLocked(strconv.FormatUint(v, 10))
	case n < 128: // the others are for life
		p.counters[n] = 0
	}
}
