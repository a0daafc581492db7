package uki_test

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/uki"
)

const (
	amd64 = 0x8664
	arm64 = 0xaa64
)

// program makes a PE file as small as firmware takes it.
func program(machine, subsystem uint16, room int, sections ...uki.Section) []byte {
	const header, optional, gap = 0x44, 0x58, 512
	table := optional + 112 + 16*8
	headers := (table + 40*(len(sections)+room) + gap - 1) / gap * gap
	b := make([]byte, headers)
	put := func(at int, v any) { _, _ = binary.Encode(b[at:], binary.LittleEndian, v) }
	copy(b, "MZ")
	put(0x3c, uint32(header-4))
	copy(b[header-4:], "PE\x00\x00")
	put(header, pe.FileHeader{Machine: machine, NumberOfSections: uint16(len(sections)), SizeOfOptionalHeader: 112 + 16*8, Characteristics: 0x206})
	address := uint32(0x1000)
	for i, s := range sections {
		h := pe.SectionHeader32{
			VirtualSize: uint32(len(s.Data)), VirtualAddress: address, SizeOfRawData: uint32((len(s.Data) + gap - 1) / gap * gap),
			PointerToRawData: uint32(len(b)), Characteristics: pe.IMAGE_SCN_MEM_READ,
		}
		copy(h.Name[:], s.Name)
		put(table+40*i, h)
		b = append(b, make([]byte, h.SizeOfRawData)...)
		copy(b[h.PointerToRawData:], s.Data)
		address += (h.VirtualSize + 0xfff) &^ 0xfff
	}
	o := pe.OptionalHeader64{
		Magic: 0x20b, SectionAlignment: 0x1000, FileAlignment: gap, SizeOfImage: address, SizeOfHeaders: uint32(headers),
		CheckSum: 0x12345678, Subsystem: subsystem, NumberOfRvaAndSizes: 16,
	}
	put(optional, o)
	return b
}

func stub(version string) []byte {
	return program(amd64, 10, 12,
		uki.Section{Name: ".text", Data: bytes.Repeat([]byte("code"), 300)},
		uki.Section{Name: ".sbat", Data: []byte("sbat,1\n")},
		uki.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub " + version + " ####\x00")})
}

func kernel(text string) []byte {
	return program(amd64, 10, 0, uki.Section{Name: ".text", Data: []byte(text)})
}

func parts() uki.Parts {
	return uki.Parts{Kernel: kernel("6.12"), Initrd: []byte("initrd"), Cmdline: "quiet root=x", OSRelease: []byte("ID=tillward\n"), Uname: "6.12.1"}
}

func build(t testing.TB, stub []byte, p uki.Parts) []byte {
	t.Helper()
	b, err := uki.Build(stub, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stubs are one of ours, and those of systemd that this machine has.
func stubs(t *testing.T) map[string][]byte {
	all := map[string][]byte{"small": stub("257.9")}
	for _, f := range []string{"/usr/lib/systemd/boot/efi/linuxx64.efi.stub", os.Getenv("TILLWARD_EFI_STUB")} {
		if b, err := os.ReadFile(f); err == nil {
			all[f] = b
		}
	}
	if len(all) == 1 {
		t.Log("systemd-boot-efi is not installed: only a stub made here")
	}
	return all
}

// TestBuild wants of an image what a loader goes by: each section where it says
// it is, none over another, in the file and in memory.
func TestBuild(t *testing.T) {
	for name, stub := range stubs(t) {
		t.Run(name, func(t *testing.T) {
			p := parts()
			p.Kernel = kernel(strings.Repeat("long", 5000))
			b := build(t, stub, p)
			if again := build(t, stub, p); !bytes.Equal(b, again) {
				t.Error("two builds of the same parts differ")
			}
			f, err := pe.NewFile(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{".osrel": string(p.OSRelease), ".cmdline": p.Cmdline, ".uname": p.Uname, ".initrd": "initrd\x00\x00", ".linux": string(p.Kernel)}
			var inFile, inMemory uint32
			for _, s := range f.Sections {
				if s.Offset < inFile || s.Offset%512 != 0 || s.Size%512 != 0 {
					t.Errorf("%s lies at %#x in the file, behind %#x", s.Name, s.Offset, inFile)
				}
				text, ours := want[s.Name]
				if s.VirtualAddress < inMemory || ours && s.VirtualAddress%4096 != 0 {
					t.Errorf("%s lies at %#x in memory, behind %#x", s.Name, s.VirtualAddress, inMemory)
				}
				inFile, inMemory = s.Offset+s.Size, s.VirtualAddress+s.VirtualSize
				if data, err := s.Data(); ours && (err != nil || string(data[:s.VirtualSize]) != text) {
					t.Errorf("%s holds %d bytes and %v, want %d", s.Name, s.VirtualSize, err, len(text))
				}
				delete(want, s.Name)
			}
			if len(want) > 0 || f.Sections[len(f.Sections)-1].Name != ".linux" {
				t.Errorf("sections %v are missing, or the kernel is not the last", want)
			}
			o := f.OptionalHeader.(*pe.OptionalHeader64)
			if int(inFile) != len(b) || o.SizeOfImage != (inMemory+4095)&^4095 || o.CheckSum != 0 || f.PointerToSymbolTable != 0 {
				t.Errorf("%d bytes, sections end at %d; image %#x, sections end at %#x; check sum %d; symbols at %d",
					len(b), inFile, o.SizeOfImage, inMemory, o.CheckSum, f.PointerToSymbolTable)
			}
			i, err := uki.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if i.Machine != amd64 || !strings.HasPrefix(i.Stub, "systemd-stub 25") || i.Cmdline() != p.Cmdline || !bytes.Equal(i.Section(".linux"), p.Kernel) {
				t.Errorf("read back as %#x, %q, %q", i.Machine, i.Stub, i.Cmdline())
			}
		})
	}
}

// TestBuildRefuses stubs that are none and parts that do not fit.
func TestBuildRefuses(t *testing.T) {
	other := stub("257.9")
	signed := stub("257.9")
	binary.LittleEndian.PutUint32(signed[0x58+112+8*4:], uint32(len(signed)))
	binary.LittleEndian.PutUint32(signed[0x58+112+8*4+4:], 8)
	signed = append(signed, make([]byte, 8)...)
	magic := uki.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257 ####")}
	full := program(amd64, 10, 0, uki.Section{Name: ".text", Data: []byte("x")}, magic)
	// The headers end where the section of the file starts, whatever they say.
	crowded := slices.Concat(full[:0x58+240+80], bytes.Repeat([]byte{1}, 300), full[0x58+240+380:])
	for _, c := range []struct {
		name, want string
		stub       []byte
		change     func(*uki.Parts)
	}{
		{"no PE", "not a PE file", []byte("ELF"), nil},
		{"object", "only an object", make([]byte, 4096), nil},
		{"no stub", "not a stub of systemd", kernel("x"), nil},
		{"driver", "not a 64-bit EFI program", program(amd64, 11, 12, magic), nil},
		{"signed", "signed", signed, nil},
		{"crowded", "no room for section .osrel", crowded, nil},
		{"built twice", "built of it already", build(t, other, parts()), nil},
		{"kernel for ARM", "kernel is for machine 0xaa64", nil, func(p *uki.Parts) {
			p.Kernel = program(arm64, 10, 0, uki.Section{Name: ".text", Data: []byte("x")})
		}},
		{"compressed kernel", "not compressed again", nil, func(p *uki.Parts) { p.Kernel = []byte("\x1f\x8b and so on") }},
		{"kernel that is a driver", "not an EFI program", nil, func(p *uki.Parts) { p.Kernel = program(amd64, 11, 0) }},
		{"no initrd", "initrd is empty", nil, func(p *uki.Parts) { p.Initrd = nil }},
		{"no os-release", "os-release is empty", nil, func(p *uki.Parts) { p.OSRelease = nil }},
		{"no command line", "command line is empty", nil, func(p *uki.Parts) { p.Cmdline = "" }},
		{"two lines", "command line: byte 5", nil, func(p *uki.Parts) { p.Cmdline = "quiet\ninit=/bin/sh" }},
		{"umlaut", "uname: byte 1", nil, func(p *uki.Parts) { p.Uname = "6ä" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parts()
			if c.change != nil {
				c.change(&p)
			}
			if c.stub == nil {
				c.stub = other
			}
			if _, err := uki.Build(c.stub, p); !errors.Is(err, uki.ErrImage) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestSplit takes images apart and puts them together again.
func TestSplit(t *testing.T) {
	for name, stub := range stubs(t) {
		t.Run(name, func(t *testing.T) {
			p := parts()
			b := build(t, stub, p)
			whole := bytes.Clone(b)
			cut, got, err := uki.Split(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, whole) {
				t.Error("the image was written to")
			}
			if !bytes.Equal(got.Kernel, p.Kernel) || string(got.Initrd) != "initrd\x00\x00" || got.Cmdline != p.Cmdline || !bytes.Equal(got.OSRelease, p.OSRelease) || got.Uname != p.Uname {
				t.Errorf("got parts %q, want %q", got, p)
			}
			p.Kernel, p.Cmdline = kernel(strings.Repeat("long", 5000)), "other words"
			if !bytes.Equal(build(t, cut, p), build(t, stub, p)) {
				t.Error("an image of the stub that was cut out is not that of the stub itself")
			}
		})
	}
	b := build(t, stub("257.9"), parts())
	signed := append(bytes.Clone(b), make([]byte, 8)...)
	binary.LittleEndian.PutUint32(signed[0x58+112+8*4:], uint32(len(b)))
	binary.LittleEndian.PutUint32(signed[0x58+112+8*4+4:], 8)
	other := bytes.Clone(b)
	binary.LittleEndian.PutUint32(other[0x58+64:], 7) // a check sum, as others write it
	longer := append(bytes.Clone(b), 0)
	for _, c := range []struct {
		name, want string
		image      []byte
	}{
		{"signed", "signed", signed},
		{"of another tool", "another tool", other},
		{"a byte more", "another tool", longer},
		{"stub alone", "no section .linux", stub("257.9")},
		{"nothing", "not a PE file", nil},
	} {
		if _, _, err := uki.Split(c.image); !errors.Is(err, uki.ErrImage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	whole := build(t, stub("257.9"), parts())
	line := func(name string) int { return bytes.Index(whole[:1024], append([]byte(name), 0)) }
	for _, c := range []struct {
		name, want string
		change     func(b []byte) []byte
	}{
		{"cut short", "section \".linux\"", func(b []byte) []byte { return b[:len(b)-512] }},
		{"stub alone", "no section .linux", func([]byte) []byte { return stub("257.9") }},
		{"twice", "there twice", func(b []byte) []byte { copy(b[line(".uname"):], ".osrel"); return b }},
		{"profiles", "more than one way", func(b []byte) []byte { copy(b[line(".uname"):], ".hwids"); return b }},
		{"larger in memory", "larger in memory", func(b []byte) []byte { b[line(".initrd")+10] = 1; return b }},
		{"in the headers", "outside of the file", func(b []byte) []byte { binary.LittleEndian.PutUint32(b[line(".uname")+20:], 16); return b }},
		{"gap", "leaves a gap or overlaps", func(b []byte) []byte { b[line(".uname")+21] += 2; return b }},
		{"other magic", "systemd's stub", func(b []byte) []byte { return bytes.Replace(b, []byte("LoaderInfo"), []byte("loaderinfo"), 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := uki.Parse(c.change(bytes.Clone(whole))); !errors.Is(err, uki.ErrImage) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestAuthenticode holds the digest against the words of the specification, for
// a file with nothing odd about it, and against what does and does not count.
func TestAuthenticode(t *testing.T) {
	b := kernel("some code")
	const check, directory = 0x58 + 64, 0x58 + 112 + 32
	want := sha256.Sum256(slices.Concat(b[:check], b[check+4:directory], b[directory+8:]))
	got, err := uki.Authenticode(b)
	if err != nil || got != want {
		t.Fatalf("got %x and %v, want %x", got, err, want)
	}
	signed := append(bytes.Clone(b), make([]byte, 64)...)
	binary.LittleEndian.PutUint32(signed[directory:], uint32(len(b)))
	binary.LittleEndian.PutUint32(signed[directory+4:], 64)
	signed[check] ^= 1
	if got, err = uki.Authenticode(signed); err != nil || got != want {
		t.Errorf("signed: got %x and %v, want %x", got, err, want)
	}
	if got, err = uki.Authenticode(append(bytes.Clone(b), 1)); err != nil || got == want {
		t.Errorf("a byte more: got %x and %v", got, err)
	}
	if _, err = uki.Authenticode(append(signed, 0)); !errors.Is(err, uki.ErrImage) {
		t.Errorf("behind the signature: got %v", err)
	}
	for at := range b {
		if at >= check && at < check+4 || at >= directory && at < directory+8 {
			continue
		}
		bad := bytes.Clone(b)
		bad[at] ^= 0x80
		if got, err := uki.Authenticode(bad); err == nil && got == want {
			t.Fatalf("byte %d does not count", at)
		}
	}
}

func TestMeasurements(t *testing.T) {
	i, err := uki.Parse(build(t, stub("257.9"), parts()))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range i.Measurements() {
		got = append(got, fmt.Sprintf("%d %s %v", m.PCR, m.What, m.Always))
	}
	want := []string{
		"4 image true", "4 kernel false", "9 command line true", "9 initrd true",
		"11 name of section .linux true", "11 section .linux true", "11 name of section .osrel true", "11 section .osrel true",
		"11 name of section .cmdline true", "11 section .cmdline true", "11 name of section .initrd true", "11 section .initrd true",
		"11 name of section .uname false", "11 section .uname false", "11 name of section .sbat false", "11 section .sbat false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	line := sha256.Sum256([]byte("q\x00u\x00i\x00e\x00t\x00 \x00r\x00o\x00o\x00t\x00=\x00x\x00\x00\x00"))
	if m := i.Measurements()[2]; m.Digests[0] != line || m.Digests[1] == line {
		t.Errorf("command line: got %x, want %x first", m.Digests, line)
	}
	other, err := uki.Parse(build(t, stub("257.10"), parts()))
	if err != nil || i.SameStub(other) || !i.SameStub(i) {
		t.Errorf("another stub passes for the same, or %v", err)
	}
}

// FuzzParse reads images that nobody built: no panic, what is taken has a digest,
// and what can be taken apart is whole.
func FuzzParse(f *testing.F) {
	f.Add(build(f, stub("257.9"), parts()))
	f.Add(stub("252"))
	f.Add(kernel("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := uki.Parse(b)
		if err != nil {
			if !errors.Is(err, uki.ErrImage) {
				t.Errorf("not ErrImage: %v", err)
			}
			return
		}
		for _, m := range i.Measurements() {
			if len(m.Digests) == 0 {
				t.Errorf("%s without a digest", m.What)
			}
		}
		if sum, err := uki.Authenticode(b); err != nil || sum != i.PE {
			t.Errorf("got %x and %v, want %x", sum, err, i.PE)
		}
		if stub, p, err := uki.Split(b); err == nil {
			if again, err := uki.Build(stub, p); err != nil || !bytes.Equal(again, b) {
				t.Errorf("put together again it differs: %v", err)
			}
		} else if !errors.Is(err, uki.ErrImage) {
			t.Errorf("not ErrImage: %v", err)
		}
	})
}
