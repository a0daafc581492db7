package tpmfarm

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf16"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/provisioning/boot"
)

// Types of events [TCG PC Client Platform Firmware Profile 1.06, 10.4.1].
const (
	evNoAction    = 0x00000003
	evSeparator   = 0x00000004
	evCRTMVersion = 0x00000008
	evIPL         = 0x0000000D
	evVariable    = 0x80000001
	evBootOrder   = 0x80000002
	evApplication = 0x80000003
	evAction      = 0x80000007
	evBlob        = 0x80000008
	evAuthority   = 0x800000E0
)

// Firmware is what a till measures while it boots. Who wants another boot
// changes the events; where the simulator attacks, an event can be left out of
// the log, or be in the log only.
type Firmware struct{ Events []Measured }

// Measured is one event.
type Measured struct {
	Name   string // by which Event finds it
	PCR    int
	Type   uint32
	Data   []byte
	Image  []byte // what the digest is over, where that is not the data: code is
	Sum    []byte // the digest, where it is over parts of a file
	Hidden bool   // measured, but not in the log
	Faked  bool   // in the log, but not measured
}

func (m Measured) measured() []byte {
	if m.Image != nil {
		return m.Image
	}
	return m.Data
}

// Digest is the SHA-256 that the register is extended with.
func (m Measured) Digest() [32]byte {
	if m.Sum != nil {
		return [32]byte(m.Sum)
	}
	return sha256.Sum256(m.measured())
}

// Default is a UEFI till that boots a release, e.g. os/1.2.3: the firmware with
// Secure Boot on, then boot manager, kernel, command line and agent image, of
// which each release has its own. Its variables differ in nothing from till to
// till, unlike those of real ones.
func Default(release string) Firmware {
	var f Firmware
	add := func(m Measured) { f.Events = append(f.Events, m) }
	add(Measured{Name: "crtm", PCR: 0, Type: evCRTMVersion, Data: wide("Tillward virtual firmware 1")})
	add(Measured{Name: "firmware", PCR: 0, Type: evBlob, Data: make([]byte, 16), Image: []byte("firmware volume 1")})
	for _, v := range []string{"SecureBoot", "PK", "KEK", "db", "dbx"} {
		value := signatures("key of " + v)
		if v == "SecureBoot" {
			value = []byte{1}
		}
		add(Measured{Name: v, PCR: 7, Type: evVariable, Data: variable(globalGUID, v, value)})
	}
	add(Measured{Name: "boot-order", PCR: 1, Type: evBootOrder, Data: variable(globalGUID, "BootOrder", []byte{1, 0})})
	for pcr := range 8 {
		add(Measured{Name: fmt.Sprintf("separator-%d", pcr), PCR: pcr, Type: evSeparator, Data: make([]byte, 4)})
	}
	add(Measured{Name: "action", PCR: 4, Type: evAction, Data: []byte("Calling EFI Application from Boot Option")})
	add(Measured{Name: "authority", PCR: 7, Type: evAuthority, Data: variable(shimGUID, "SbatLevel", []byte("sbat,1,2026010100\n"))})
	add(Measured{Name: "boot-manager", PCR: 4, Type: evApplication, Data: loadEvent(`\EFI\BOOT\BOOTX64.EFI`), Image: []byte("boot manager")})
	add(Measured{Name: "kernel", PCR: 9, Type: evIPL, Data: []byte("/boot/bzImage"), Image: []byte("kernel of " + release)})
	add(Measured{Name: "cmdline", PCR: 8, Type: evIPL, Data: []byte("kernel_cmdline: root=PARTLABEL=system ro quiet"), Image: []byte("root=PARTLABEL=system ro quiet")})
	add(Measured{Name: "agent", PCR: 9, Type: evIPL, Data: []byte("/boot/tillward-agent.img"), Image: []byte("agent image of " + release)})
	add(Measured{Name: "exit", PCR: 5, Type: evAction, Data: []byte("Exit Boot Services Invocation")})
	add(Measured{Name: "exited", PCR: 5, Type: evAction, Data: []byte("Exit Boot Services Returned with Success")})
	return f
}

// Event returns the event of that name, to change it.
func (f Firmware) Event(name string) *Measured {
	for i := range f.Events {
		if f.Events[i].Name == name {
			return &f.Events[i]
		}
	}
	panic("tpmfarm: the firmware measures no " + name)
}

// Without returns the firmware without the events of these names.
func (f Firmware) Without(names ...string) Firmware {
	return Firmware{slices.DeleteFunc(slices.Clone(f.Events), func(m Measured) bool { return slices.Contains(names, m.Name) })}
}

// Boot extends the registers of a TPM that was started just now and writes the
// log to logFile, as binary_bios_measurements of the kernel. A till that boots
// again restarts its TPM first.
func (f Firmware) Boot(t *TPM, logFile string) error {
	c, err := dialTPM(t.socket)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	defer c.Close()
	dev := conn{c}
	rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{
		PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{1, 0, 0}}},
	}}.Execute(dev)
	if err != nil {
		return fmt.Errorf("boot: read PCR 0: %w", err)
	}
	if d := rsp.PCRValues.Digests; len(d) != 1 || !slices.Equal(d[0].Buffer, make([]byte, sha256.Size)) {
		return errors.New("boot: PCR 0 is extended already, restart the TPM first")
	}
	for _, m := range f.Events {
		if m.Faked {
			continue
		}
		d256, d384 := m.Digest(), sha512.Sum384(m.measured())
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(m.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
				{HashAlg: tpm2.TPMAlgSHA256, Digest: d256[:]}, {HashAlg: tpm2.TPMAlgSHA384, Digest: d384[:]},
			}},
		}.Execute(dev)
		if err != nil {
			return fmt.Errorf("boot: extend PCR %d with %s: %w", m.PCR, m.Name, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := os.WriteFile(logFile, f.Log(), 0o600); err != nil {
		return fmt.Errorf("boot: write event log: %w", err)
	}
	return nil
}

// Log is the crypto-agile log of the boot [TCG PC Client Platform Firmware
// Profile 1.06, 10.2], with digests of two banks.
func (f Firmware) Log() []byte {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2) // client platform, version 2.0, 64-bit words
	spec = le.AppendUint32(spec, 2)
	for _, a := range [...][2]uint16{{uint16(tpm2.TPMAlgSHA256), sha256.Size}, {uint16(tpm2.TPMAlgSHA384), sha512.Size384}} {
		spec = le.AppendUint16(le.AppendUint16(spec, a[0]), a[1])
	}
	spec = append(spec, 0) // no words of the maker
	log := le.AppendUint32(le.AppendUint32(nil, 0), evNoAction)
	log = append(log, make([]byte, 20)...)
	log = append(le.AppendUint32(log, uint32(len(spec))), spec...)

	event := func(pcr int, kind uint32, d256 [32]byte, d384 [48]byte, data []byte) {
		log = le.AppendUint32(le.AppendUint32(le.AppendUint32(log, uint32(pcr)), kind), 2)
		log = append(le.AppendUint16(log, uint16(tpm2.TPMAlgSHA256)), d256[:]...)
		log = append(le.AppendUint16(log, uint16(tpm2.TPMAlgSHA384)), d384[:]...)
		log = append(le.AppendUint32(log, uint32(len(data))), data...)
	}
	event(0, evNoAction, [32]byte{}, [48]byte{}, append([]byte("StartupLocality\x00"), 0))
	for _, m := range f.Events {
		if !m.Hidden {
			event(m.PCR, m.Type, m.Digest(), sha512.Sum384(m.measured()), m.Data)
		}
	}
	return log
}

// Registers is what the quoted registers of the SHA-256 bank hold after Boot, in
// the order of boot.Quoted: PCR 0 to 9 and 11.
func (f Firmware) Registers() [][]byte {
	values := make([][]byte, len(boot.Quoted))
	for i := range values {
		values[i] = make([]byte, sha256.Size)
	}
	for _, m := range f.Events {
		if at := slices.Index(boot.Quoted[:], m.PCR); !m.Faked && at >= 0 {
			d := m.Digest()
			sum := sha256.Sum256(slices.Concat(values[at], d[:]))
			values[at] = sum[:]
		}
	}
	return values
}

// Reference is what the makers of this boot would sign for a model: the registers
// that are the same on all tills of it.
func (f Firmware) Reference(model, release string) (boot.Reference, error) {
	events, err := boot.ParseLog(f.Log(), f.Registers())
	if err != nil {
		return boot.Reference{}, err
	}
	policy := []int{0, 2, 4, 7, 8, 9}
	if slices.ContainsFunc(events, func(e boot.Event) bool { return e.PCR == 11 }) {
		policy = []int{0, 2, 4, 7, 9, 11}
	}
	return boot.ParseReference(boot.Observe(model, release, "uefi", policy, events).Bytes())
}

// GUIDs as they are stored [UEFI 2.10, 3.3 and 32.4.1].
const (
	globalGUID = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	shimGUID   = "\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23"
	sha256GUID = "\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28"
)

// variable is UEFI_VARIABLE_DATA.
func variable(guid, name string, value []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(le.AppendUint64([]byte(guid), uint64(len(name))), uint64(len(value)))
	return slices.Concat(b, wide(name), value)
}

// signatures is an EFI_SIGNATURE_LIST that holds the hash of one image.
func signatures(image string) []byte {
	const size = 16 + sha256.Size
	le, sum := binary.LittleEndian, sha256.Sum256([]byte(image))
	b := le.AppendUint32([]byte(sha256GUID), 16+3*4+size)
	b = le.AppendUint32(le.AppendUint32(b, 0), size)
	return slices.Concat(b, []byte(globalGUID), sum[:])
}

// loadEvent is UEFI_IMAGE_LOAD_EVENT with a file's path.
func loadEvent(file string) []byte {
	le := binary.LittleEndian
	name := append(wide(file), 0, 0)
	path := le.AppendUint16([]byte{4, 4}, uint16(4+len(name)))
	path = append(append(path, name...), 0x7f, 0xff, 4, 0)
	b := le.AppendUint64(make([]byte, 24), uint64(len(path)))
	return append(b, path...)
}

func wide(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}
