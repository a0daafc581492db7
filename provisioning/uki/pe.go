package uki

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"slices"
)

// Places in a PE file [Microsoft PE Format]: offsets from the start of the
// optional header, and sizes.
const (
	atInitialised = 8
	atSectionGap  = 32 // SectionAlignment
	atFileGap     = 36 // FileAlignment
	atImageSize   = 56
	atHeaders     = 60 // SizeOfHeaders
	atCheckSum    = 64
	atDirectories = 112 // of PE32+; PE32 has them 16 earlier

	fileHeaderSize = 20
	sectionSize    = 40 // of a line of the section table

	certificates = 4 // the entry of the data directories that points to signatures
	efiProgram   = 10
)

type sectionHeader = pe.SectionHeader

// file is a PE file with what this room needs of its headers.
type file struct {
	raw       []byte
	machine   uint16
	subsystem uint16
	header    int // where the file header starts, behind "PE\0\0"
	optional  int // where the optional header starts
	table     int // where the section table starts
	wide      bool
	headers   int // SizeOfHeaders
	directory int // where the entry for signatures lies; 0: there is none
	signature int // bytes of signatures at the end of the file
	sections  []sectionHeader
}

// read checks a PE file as far as this room goes by it. Everything it returns
// lies inside of b.
func read(b []byte) (*file, error) {
	if len(b) > MaxImage {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", len(b), MaxImage, ErrImage)
	}
	p, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("not a PE file: %w: %w", ErrImage, err)
	}
	f := &file{raw: b, machine: p.Machine}
	if len(b) >= 0x40 && b[0] == 'M' && b[1] == 'Z' {
		f.header = int(binary.LittleEndian.Uint32(b[0x3c:])) + 4
	} else {
		return nil, fmt.Errorf("not a program, only an object: %w", ErrImage)
	}
	f.optional = f.header + fileHeaderSize
	f.table = f.optional + int(p.SizeOfOptionalHeader)
	var directories []pe.DataDirectory
	switch o := p.OptionalHeader.(type) {
	case *pe.OptionalHeader64:
		f.wide, f.subsystem, f.headers = true, o.Subsystem, int(o.SizeOfHeaders)
		directories = o.DataDirectory[:min(int(o.NumberOfRvaAndSizes), len(o.DataDirectory))]
		f.directory = f.optional + atDirectories
	case *pe.OptionalHeader32:
		f.subsystem, f.headers = o.Subsystem, int(o.SizeOfHeaders)
		directories = o.DataDirectory[:min(int(o.NumberOfRvaAndSizes), len(o.DataDirectory))]
		f.directory = f.optional + atDirectories - 16
	default:
		return nil, fmt.Errorf("not a program, only an object: %w", ErrImage)
	}
	f.directory += 8 * certificates
	if len(directories) <= certificates {
		f.directory = 0
	} else if d := directories[certificates]; d.Size > 0 {
		// Nothing behind the signatures: what were to lie there, firmware would
		// hash or not by its own taste.
		if uint64(d.VirtualAddress)+uint64(d.Size) != uint64(len(b)) {
			return nil, fmt.Errorf("its signature does not end with the file: %w", ErrImage)
		}
		f.signature = int(d.Size)
	}
	end := f.table + sectionSize*len(p.Sections)
	if f.headers < end || f.headers > len(b)-f.signature {
		return nil, fmt.Errorf("headers of %d bytes, the section table ends at %d of %d: %w", f.headers, end, len(b), ErrImage)
	}
	for _, s := range p.Sections {
		h := s.SectionHeader
		if h.Size > 0 && (int64(h.Offset) < int64(end) || int64(h.Offset)+int64(h.Size) > int64(len(b)-f.signature)) {
			return nil, fmt.Errorf("section %.16q lies outside of the file: %w", h.Name, ErrImage)
		}
		f.sections = append(f.sections, h)
	}
	return f, nil
}

// data returns what a section holds, as the stub finds it in memory.
func (f *file) data(s sectionHeader) ([]byte, error) {
	if s.VirtualSize > s.Size {
		return nil, fmt.Errorf("section %.16q is larger in memory than in the file: %w", s.Name, ErrImage)
	}
	return f.raw[s.Offset : s.Offset+s.VirtualSize], nil
}

func (f *file) put16(at int, v uint16) { binary.LittleEndian.PutUint16(f.raw[at:], v) }
func (f *file) put32(at int, v uint32) { binary.LittleEndian.PutUint32(f.raw[at:], v) }
func (f *file) get32(at int) uint32    { return binary.LittleEndian.Uint32(f.raw[at:]) }

// Authenticode returns the SHA-256 of a PE file as firmware takes it before it
// starts it: all but the check sum, the pointer to the signatures and the
// signatures, the sections in the order of the file [Microsoft, Windows
// Authenticode Portable Executable Signature Format, "Calculating the PE image
// hash"; TCG PC Client Platform Firmware Profile 1.06, 3.3.4.5]. Errors are
// ErrImage.
func Authenticode(b []byte) (sum [sha256.Size]byte, err error) {
	f, err := read(b)
	if err != nil {
		return sum, err
	}
	return f.authenticode()
}

func (f *file) authenticode() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	h.Write(f.raw[:f.optional+atCheckSum])
	if rest := f.optional + atCheckSum + 4; f.directory > 0 {
		h.Write(f.raw[rest:f.directory])
		h.Write(f.raw[f.directory+8 : f.headers])
	} else {
		h.Write(f.raw[rest:f.headers])
	}
	sections := slices.DeleteFunc(slices.Clone(f.sections), func(s sectionHeader) bool { return s.Size == 0 })
	slices.SortStableFunc(sections, func(a, b sectionHeader) int { return int(a.Offset) - int(b.Offset) })
	// What lies behind the sections counts from where the bytes hashed so far
	// would end, which is their end only without gaps and overlaps. Firmware is
	// not of one mind about those, so they are refused.
	hashed := f.headers
	for _, s := range sections {
		if int64(s.Offset) != int64(hashed) {
			return sum, fmt.Errorf("section %.16q leaves a gap or overlaps, the digest is not defined: %w", s.Name, ErrImage)
		}
		h.Write(f.raw[s.Offset : s.Offset+s.Size])
		hashed += int(s.Size)
	}
	h.Write(f.raw[hashed : len(f.raw)-f.signature])
	return [sha256.Size]byte(h.Sum(nil)), nil
}
