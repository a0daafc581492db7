package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tillward/tillward/agent/internal/vault"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/boot"
)

// maxEvents is how many events of the log a diagnosis lists; the output of a
// command has 32 KiB.
const maxEvents = 200

// diagnose tells what an operator needs to see why a device is not trusted, or
// not well. It holds no secret: whoever may read results may read it.
func (a *Agent) diagnose(ctx context.Context, m *membership, dev TPM) ([]byte, error) {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("agent %s, slot %s, up %s, model %s, serial %s", a.o.Version, a.o.Slot, time.Since(a.started).Round(time.Second), a.cfg.Model, a.serial())
	seq, _ := a.journal.Head()
	line("spool %d waiting, %d shed, audit head %d, full %v", a.spool.Depth(), a.spool.Shed(), seq, a.spool.Full())
	switch {
	case a.closed != nil:
		line("books locked, going on in plain ones: %v", a.closed)
	case a.spool.Locked():
		line("books encrypted")
	case a.vault != nil && a.vault.Begun(vault.Books):
		line("books plain until the next start")
	default:
		line("books plain")
	}
	switch {
	case a.shut != nil:
		line("data closed: %v", a.shut)
	case a.vault != nil && a.vault.Begun(vault.Data):
		line("data encrypted")
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(a.cfg.StateDir, &fs); err == nil {
		unit := uint64(fs.Bsize) >> 10 // #nosec G115 -- a block has some KiB
		line("state partition %d MiB free of %d", fs.Bavail*unit>>10, fs.Blocks*unit>>10)
	}
	m.mu.Lock()
	leaf := m.leaf
	m.mu.Unlock()
	certificate(line, "certificate", leaf)
	certificate(line, "recovery certificate", m.Rescue())
	line("listening: %s", cmp.Or(strings.Join(listening("/proc"), ", "), "nothing"))
	a.diagnoseTPM(ctx, line, dev)
	return b.Bytes(), ctx.Err() // what the TPM was asked in the end was not answered
}

// listening lists what can be reached from the network, of every process of the
// box, as the kernel tells it: TCP that listens, UDP that is open to anybody.
func listening(proc string) (out []string) {
	for _, table := range [...]struct{ name, state string }{{"tcp", "0A"}, {"tcp6", "0A"}, {"udp", "07"}, {"udp6", "07"}} {
		b, err := os.ReadFile(filepath.Join(proc, "net", table.name)) // #nosec G304 -- below proc
		if err != nil {
			continue
		}
		for row := range strings.Lines(string(b)) {
			f := strings.Fields(row)
			if len(f) < 4 || f[3] != table.state || strings.Trim(f[2], "0:") != "" {
				continue
			}
			if at, ok := endpoint(f[1]); ok && len(out) < maxEvents {
				out = append(out, strings.TrimSuffix(table.name, "6")+" "+at)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// endpoint reads an address of these tables: words of the machine's byte order in
// hexadecimal, and the port.
func endpoint(s string) (string, bool) {
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(b)%4 != 0 {
		return "", false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	ip, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)).String(), ok
}

func certificate(line func(string, ...any), what string, c *x509.Certificate) {
	if c == nil {
		line("%s none", what)
		return
	}
	line("%s %s: %s to %s", what, c.SerialNumber.Text(16), c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
}

func (a *Agent) diagnoseTPM(ctx context.Context, line func(string, ...any), dev TPM) {
	h, err := dev.Health(ctx)
	if err != nil {
		line("TPM: %v", err)
	} else {
		line("TPM %s firmware %08x:%08x, lockout count %d of %d, locked %v, room for %d keys",
			h.Manufacturer, h.Firmware>>32, h.Firmware&0xffffffff, h.LockoutCounter, h.MaxAuthFail, h.InLockout, h.PersistentAvail)
	}
	if a.vault != nil {
		if floor, err := dev.Floor(ctx); err != nil {
			line("rollback floor: %v", err)
		} else {
			line("rollback floor %d", floor)
		}
	}
	_, _, pcrs, err := dev.Quote(ctx, make([]byte, 32))
	if err != nil {
		line("registers: %v", err)
		return
	}
	for i, v := range pcrs {
		line("PCR %d %s", boot.Quoted[i], hex.EncodeToString(v))
	}
	raw, err := a.eventLog()
	switch {
	case err != nil:
		line("event log: %v", err)
		return
	case len(raw) == 0:
		line("event log: none")
		return
	}
	events, err := boot.ParseLog(raw, pcrs)
	if err != nil {
		line("event log of %d bytes: %s", len(raw), cut(err.Error(), wire.MaxText))
	} else {
		line("event log of %d bytes, %d events, covers the registers", len(raw), len(events))
	}
	for i, e := range events {
		if i == maxEvents {
			line("and %d more events", len(events)-i)
			return
		}
		line("event %d #%x %s", e.PCR, e.Digest[:6], e.What) // so few digits are never taken for a card number
	}
}
