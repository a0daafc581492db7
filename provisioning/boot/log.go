package boot

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/google/go-attestation/attest"
)

// ParseLog reads a crypto-agile log, binary_bios_measurements of the kernel
// [TCG PC Client Platform Firmware Profile 1.06, 10.2], and replays it against
// the quoted values of the SHA-256 bank, which are those of the first registers
// of Quoted. Every register whose value is not that of a reset must be what the
// log adds up to. It returns the events of these registers in the order of the
// log. Errors are ErrLog.
func ParseLog(raw []byte, pcrs [][]byte) ([]Event, error) {
	log, err := parse(raw)
	if err != nil {
		return nil, err
	}
	switch {
	case len(pcrs) == 0:
		return nil, fmt.Errorf("no register values to hold the log against: %w", ErrLog)
	case len(pcrs) > len(Quoted):
		return nil, fmt.Errorf("%d register values, at most %d are quoted: %w", len(pcrs), len(Quoted), ErrLog)
	}
	values := make([]attest.PCR, len(pcrs))
	for i, p := range pcrs {
		if len(p) != sha256.Size {
			return nil, fmt.Errorf("value of PCR %d has %d bytes: %w", Quoted[i], len(p), ErrLog)
		}
		values[i] = attest.PCR{Index: Quoted[i], Digest: p, DigestAlg: crypto.SHA256}
	}
	verified, err := log.Verify(values)
	if bad, ok := errors.AsType[attest.ReplayError](err); ok && len(bad.InvalidPCRs) > 0 {
		return nil, &replayError{bad.InvalidPCRs}
	}
	if err != nil {
		return nil, fmt.Errorf("replay: %w: %w", ErrLog, err)
	}
	events := make([]Event, 0, len(verified))
	covered := make(map[int]bool)
	for _, v := range verified {
		if len(v.Digest) != sha256.Size || !slices.Contains(Quoted[:len(pcrs)], v.Index) {
			return nil, fmt.Errorf("event of PCR %d with a digest of %d bytes: %w", v.Index, len(v.Digest), ErrLog)
		}
		covered[v.Index] = true
		events = append(events, event(v))
	}
	// A register without an event adds up to anything as far as the library
	// goes.
	var bare []int
	for i, p := range pcrs {
		if !covered[Quoted[i]] && !bytes.Equal(p, reset) {
			bare = append(bare, Quoted[i])
		}
	}
	if len(bare) > 0 {
		return nil, &replayError{bare}
	}
	return events, nil
}

// Replay returns what the registers of Quoted hold after the boot that a log
// tells of, when it is complete. It is for reference values, never for trust.
func Replay(raw []byte) ([][]byte, error) {
	log, err := parse(raw)
	if err != nil {
		return nil, err
	}
	values := make([][]byte, len(Quoted))
	for i := range values {
		values[i] = bytes.Clone(reset)
	}
	begun := false
	for _, e := range log.Events(attest.HashSHA256) {
		at := slices.Index(Quoted[:], e.Index)
		switch {
		case at < 0:
		case e.Type == noAction:
			if locality, ok := startup(e); ok && !begun {
				values[0][sha256.Size-1] = locality
			}
		case len(e.Digest) != sha256.Size:
			return nil, fmt.Errorf("event of PCR %d without a SHA-256 digest: switch the firmware's SHA-256 bank on: %w", e.Index, ErrLog)
		default:
			begun = begun || e.Index == 0
			sum := sha256.Sum256(slices.Concat(values[at], e.Digest))
			values[at] = sum[:]
		}
	}
	if !begun {
		values[0] = bytes.Clone(reset)
	}
	return values, nil
}

const noAction attest.EventType = 3

// startup reads the locality that TPM2_Startup came from, which PCR 0 begins
// with [TCG PC Client Platform Firmware Profile 1.06, 10.4.5.3].
func startup(e attest.Event) (byte, bool) {
	if e.Index != 0 || len(e.Data) != 17 || !strings.HasPrefix(string(e.Data), "StartupLocality") {
		return 0, false
	}
	return e.Data[16], true
}

var reset = make([]byte, sha256.Size)

// replayError names the registers that a log does not add up to.
type replayError struct{ pcrs []int }

func (e *replayError) Error() string {
	return fmt.Sprintf("the log does not add up to the value of %s: %v", names(e.pcrs), ErrLog)
}

func (e *replayError) Unwrap() error { return ErrLog }

// only reports whether err is about that register and no other.
func only(err error, pcr int) bool {
	bad, ok := errors.AsType[*replayError](err)
	return ok && slices.Equal(bad.pcrs, []int{pcr})
}

func names(pcrs []int) string {
	return "PCR " + strings.Trim(strings.ReplaceAll(fmt.Sprint(pcrs), " ", ", "), "[]")
}

const maxBanks = 16 // digests of an event; five kinds are in use

// parse reads a log after checks that the library leaves out: what it allocates
// and how long it loops hangs on these numbers.
func parse(raw []byte) (*attest.EventLog, error) {
	if len(raw) > maxRaw {
		return nil, fmt.Errorf("event log of %d bytes, at most %d: %w", len(raw), maxRaw, ErrLog)
	}
	if err := checkHead(raw); err != nil {
		return nil, err
	}
	log, err := attest.ParseEventLog(raw)
	if err != nil {
		return nil, fmt.Errorf("read event log: %w: %w", ErrLog, err)
	}
	if n := len(log.Events(attest.HashSHA256)); n > maxSeen {
		return nil, fmt.Errorf("%d events, at most %d: %w", n, maxSeen, ErrLog)
	}
	if !slices.Contains(log.Algs, attest.HashSHA256) {
		return nil, fmt.Errorf("no SHA-256 digests: switch the firmware's SHA-256 bank on: %w", ErrLog)
	}
	return log, nil
}

// specID begins the data of the first event of a crypto-agile log.
const specID = "Spec ID Event03\x00"

// checkHead looks at the first event: PCR, type, SHA-1 digest, size, then
// signature, class, version, errata, word size and the number of algorithms.
func checkHead(raw []byte) error {
	const head = 4 + 4 + 20 + 4
	const algs = head + len(specID) + 4 + 4
	if len(raw) < algs+4 || binary.LittleEndian.Uint32(raw[4:]) != uint32(noAction) || string(raw[head:head+len(specID)]) != specID {
		return fmt.Errorf("not a crypto-agile event log (%s): %w", strings.TrimRight(specID, "\x00"), ErrLog)
	}
	if n := binary.LittleEndian.Uint32(raw[algs:]); n == 0 || n > maxBanks {
		return fmt.Errorf("event log with %d kinds of digest, at most %d: %w", n, maxBanks, ErrLog)
	}
	return nil
}

func event(v attest.Event) Event {
	e := Event{PCR: v.Index, Type: uint32(v.Type), Digest: [sha256.Size]byte(v.Digest)}
	e.What = printable(v.Type.String())
	text := read(v.Type, v.Data)
	switch {
	case text == "":
	case vouched(v):
		e.What = printable(e.What + ": " + text)
	default:
		e.What = printable(e.What + " says: " + text)
	}
	return e
}

// vouched reports whether the digest is over the data, or the part of it that
// GRUB measures, so that the data is no longer the device's word alone.
func vouched(v attest.Event) bool {
	part := bytes.TrimSuffix(v.Data, []byte{0})
	parts := [][]byte{v.Data, part}
	for _, label := range []string{"grub_cmd: ", "kernel_cmdline: ", "module_cmdline: "} {
		if rest, ok := bytes.CutPrefix(part, []byte(label)); ok {
			parts = append(parts, rest)
		}
	}
	return slices.ContainsFunc(parts, func(p []byte) bool {
		sum := sha256.Sum256(p)
		return bytes.Equal(sum[:], v.Digest)
	})
}

// Types whose data is a structure [TCG PC Client Platform Firmware Profile
// 1.06, 10.4.1].
const (
	separator      attest.EventType = 0x00000004
	variableConfig attest.EventType = 0x80000001
	variableBoot   attest.EventType = 0x80000002
	application    attest.EventType = 0x80000003
	bootDriver     attest.EventType = 0x80000004
	runtimeDriver  attest.EventType = 0x80000005
	variableSigner attest.EventType = 0x800000E0
)

// read makes text of an event's data, or nothing.
func read(t attest.EventType, data []byte) string {
	switch t {
	case separator:
		return hex.EncodeToString(data[:min(len(data), 8)])
	case variableConfig, variableBoot, variableSigner:
		return variable(data)
	case application, bootDriver, runtimeDriver:
		return devicePath(data)
	default:
		return words(data)
	}
}

// variable reads UEFI_VARIABLE_DATA: GUID, two lengths, name, value. A value of
// one byte, such as that of SecureBoot, is shown.
func variable(data []byte) string {
	const head = 16 + 8 + 8
	if len(data) < head {
		return ""
	}
	units, size := binary.LittleEndian.Uint64(data[16:]), binary.LittleEndian.Uint64(data[24:])
	if units > uint64(len(data)-head)/2 {
		return ""
	}
	name, value := data[head:head+2*int(units)], data[head+2*int(units):]
	if size == 1 && len(value) == 1 {
		return fmt.Sprintf("%s=%d", wide(name), value[0])
	}
	return wide(name)
}

// devicePath reads UEFI_IMAGE_LOAD_EVENT: three numbers, a length and a device
// path, of which the file names are shown [UEFI 2.10, 10.3.5.4].
func devicePath(data []byte) string {
	const head = 4 * 8
	if len(data) < head {
		return ""
	}
	var parts []string
	for p := data[head:]; len(p) >= 4; {
		n := int(binary.LittleEndian.Uint16(p[2:]))
		if n < 4 || n > len(p) {
			break
		}
		if p[0] == 4 && p[1] == 4 {
			parts = append(parts, wide(p[4:n]))
		}
		p = p[n:]
	}
	return strings.Join(parts, " ")
}

// words reads text in ASCII or UTF-16; systemd writes the latter.
func words(data []byte) string {
	b := bytes.TrimRight(data, "\x00")
	if len(b) == 0 {
		return ""
	}
	plain := func(c byte) bool { return c >= ' ' && c <= '~' || c == '\n' || c == '\t' }
	if !slices.ContainsFunc(b, func(c byte) bool { return !plain(c) }) {
		return string(b)
	}
	text := wide(data)
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r > '~' || !plain(byte(r)) }) {
		return ""
	}
	return text
}

func wide(b []byte) string {
	units := make([]uint16, 0, min(len(b)/2, maxWhat))
	for len(b) >= 2 && len(units) < maxWhat {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units, b = append(units, u), b[2:]
	}
	return string(utf16.Decode(units))
}

// printable keeps s to what a log line and a certificate's label can carry.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), maxWhat)]
}
