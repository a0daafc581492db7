package uki

import (
	"bytes"
	"debug/pe"
	"fmt"
	"slices"
	"strings"
)

// Parts are what a stub is made a unified kernel image with.
type Parts struct {
	Kernel    []byte // bzImage, Image or zboot image: a PE file with the kernel's own EFI stub
	Initrd    []byte // cpio, compressed or not
	Cmdline   string // printable ASCII
	OSRelease []byte // os-release(5)
	Uname     string // release of the kernel, uname -r; may be empty
}

const page = 4096 // at least, between sections in memory

// Build appends the parts to a stub, as sections [UAPI.5 Unified Kernel Image,
// 1]. The kernel comes last: kernels that are not relocated unpack over what is
// behind them. The same stub and parts give the same bytes. Errors say which
// part is wrong.
func Build(stub []byte, p Parts) ([]byte, error) {
	f, err := readStub(stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	if err := p.check(f); err != nil {
		return nil, err
	}
	f.dropSymbols()
	sections := []Section{
		{Name: ".osrel", Data: p.OSRelease},
		{Name: ".cmdline", Data: []byte(p.Cmdline)},
		{Name: ".uname", Data: []byte(p.Uname)},
		{Name: ".initrd", Data: pad(bytes.Clone(p.Initrd), 4)}, // newer stubs pad it, older do not: so both measure the same
		{Name: ".linux", Data: p.Kernel},
	}
	for _, s := range sections {
		if len(s.Data) == 0 {
			continue
		}
		if err := f.add(s); err != nil {
			return nil, fmt.Errorf("stub: %w", err)
		}
	}
	if len(f.raw) > MaxImage {
		return nil, fmt.Errorf("image of %d bytes, at most %d: %w", len(f.raw), MaxImage, ErrImage)
	}
	if _, err := Parse(f.raw); err != nil {
		return nil, fmt.Errorf("read back what was built: %w", err)
	}
	return f.raw, nil
}

// readStub reads a stub into a copy, which may grow.
func readStub(b []byte) (*file, error) {
	f, err := read(bytes.Clone(b))
	if err != nil {
		return nil, err
	}
	switch {
	case !f.wide || f.subsystem != efiProgram:
		return nil, fmt.Errorf("not a 64-bit EFI program: %w", ErrImage)
	case f.signature > 0:
		return nil, fmt.Errorf("it is signed, which would not hold for the image: %w", ErrImage)
	case stubOf(f) == "":
		return nil, fmt.Errorf("not a stub of systemd: take linuxx64.efi.stub or linuxaa64.efi.stub: %w", ErrImage)
	}
	for _, s := range f.sections {
		if slices.Contains(measured, s.Name) && s.Name != ".sbat" {
			return nil, fmt.Errorf("it has a section %s: an image was built of it already: %w", s.Name, ErrImage)
		}
	}
	return f, nil
}

func (p Parts) check(stub *file) error {
	kernel, err := read(p.Kernel)
	switch {
	case err != nil:
		return fmt.Errorf("kernel: not one that firmware can start; take bzImage or Image, built with CONFIG_EFI_STUB and not compressed again: %w", err)
	case kernel.machine != stub.machine:
		return fmt.Errorf("kernel is for machine %#x, stub for %#x: %w", kernel.machine, stub.machine, ErrImage)
	case kernel.subsystem != efiProgram:
		return fmt.Errorf("kernel: not an EFI program: %w", ErrImage)
	case len(p.Initrd) == 0:
		return fmt.Errorf("initrd is empty: %w", ErrImage)
	case len(p.OSRelease) == 0:
		return fmt.Errorf("os-release is empty: %w", ErrImage)
	case p.Cmdline == "":
		return fmt.Errorf("command line is empty: the firmware's would count instead: %w", ErrImage)
	}
	for what, s := range map[string]string{"command line": p.Cmdline, "uname": p.Uname} {
		if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			return fmt.Errorf("%s: byte %d is not printable ASCII: %w", what, i, ErrImage)
		}
	}
	if _, err := kernel.authenticode(); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	return nil
}

// dropSymbols cuts off the table of symbols that stubs up to systemd 253 carry
// at their end and no loader reads: its size is not aligned.
func (f *file) dropSymbols() {
	const symbol = 18 // bytes
	at, n := int64(f.get32(f.header+8)), int64(f.get32(f.header+12))
	if at == 0 {
		return
	}
	end := at + n*symbol
	if end+4 <= int64(len(f.raw)) {
		end += int64(f.get32(int(end))) // the strings, with their size
	}
	if end != int64(len(f.raw)) {
		return // it lies elsewhere, and may stay
	}
	f.raw = f.raw[:at]
	f.put32(f.header+8, 0)
	f.put32(f.header+12, 0)
}

// add appends a section.
func (f *file) add(s Section) error {
	line := f.table + sectionSize*len(f.sections)
	room := f.headers
	var top, bottom uint64 // of the sections so far, in memory and in the file
	for _, s := range f.sections {
		top = max(top, uint64(s.VirtualAddress)+uint64(max(s.VirtualSize, s.Size)))
		if bottom = max(bottom, uint64(s.Offset)+uint64(s.Size)); s.Size > 0 {
			room = min(room, int(s.Offset))
		}
	}
	if line+sectionSize > room || slices.ContainsFunc(f.raw[line:line+sectionSize], func(b byte) bool { return b != 0 }) {
		return fmt.Errorf("its headers have no room for section %s: %w", s.Name, ErrImage)
	}
	inFile, inMemory := int(f.get32(f.optional+atFileGap)), max(uint64(f.get32(f.optional+atSectionGap)), page)
	if inFile < 512 || inFile > 1<<16 || inFile&(inFile-1) != 0 || inMemory > 1<<21 || inMemory&(inMemory-1) != 0 {
		return fmt.Errorf("alignment of %d in the file and %d in memory: %w", inFile, inMemory, ErrImage)
	}
	// The digest of a file is defined only when its sections lie one behind the
	// other.
	if f.raw = pad(f.raw, inFile); uint64(len(f.raw)) < bottom {
		return fmt.Errorf("it is cut short: %w", ErrImage)
	}
	offset := len(f.raw)
	f.raw = pad(append(f.raw, s.Data...), inFile)
	address := (top + inMemory - 1) &^ (inMemory - 1)
	end := (address + uint64(len(s.Data)) + inMemory - 1) &^ (inMemory - 1)
	if end > 1<<31 || len(f.raw) > 1<<31-1 {
		return fmt.Errorf("section %s of %d bytes makes it too large: %w", s.Name, len(s.Data), ErrImage)
	}
	h := sectionHeader{
		Name: s.Name, VirtualSize: uint32(len(s.Data)), VirtualAddress: uint32(address), // #nosec G115 -- bounded above
		Size: uint32(len(f.raw) - offset), Offset: uint32(offset), // #nosec G115 -- bounded above
		Characteristics: pe.IMAGE_SCN_MEM_READ | pe.IMAGE_SCN_CNT_INITIALIZED_DATA,
	}
	copy(f.raw[line:line+8], s.Name)
	for i, v := range []uint32{h.VirtualSize, h.VirtualAddress, h.Size, h.Offset} {
		f.put32(line+8+4*i, v)
	}
	f.put32(line+36, h.Characteristics)
	f.sections = append(f.sections, h)
	f.put16(f.header+2, uint16(len(f.sections))) // #nosec G115 -- the headers hold a few dozen
	f.put32(f.optional+atImageSize, uint32(end)) // #nosec G115 -- bounded above
	f.put32(f.optional+atInitialised, f.get32(f.optional+atInitialised)+h.Size)
	f.put32(f.optional+atCheckSum, 0) // not counted for EFI programs; that of the stub would be wrong
	return nil
}

// pad appends zeros up to a multiple of n.
func pad(b []byte, n int) []byte {
	return append(b, make([]byte, (n-len(b)%n)%n)...)
}

// stubOf returns which stub a file is made of, such as "systemd-stub 257.9", or
// nothing.
func stubOf(f *file) string {
	for _, s := range f.sections {
		if s.Name != ".sdmagic" || s.Size == 0 {
			continue
		}
		text := string(bytes.TrimRight(f.raw[s.Offset:s.Offset+min(s.Size, 256)], "\x00"))
		text, ok := strings.CutPrefix(text, "#### LoaderInfo: ")
		if text, end := strings.CutSuffix(text, " ####"); ok && end && strings.HasPrefix(text, "systemd-stub ") && printable(text) {
			return text
		}
	}
	return ""
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
