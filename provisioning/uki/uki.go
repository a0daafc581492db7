// Package uki builds and reads unified kernel images: one EFI program out of
// systemd's stub, kernel, initrd, command line and os-release [UAPI.5 Unified
// Kernel Image], and says which digests firmware, stub and kernel will measure
// when they start it.
//
// It promises that the same stub and parts give the same bytes, and that a
// digest it names was computed over what a boot goes by: a file whose measured
// bytes depend on who reads it is refused. It signs nothing, knows no event log
// (that is [provisioning/boot]) and does not say which register values follow.
package uki

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// MaxImage bounds an image and each of its parts, in bytes.
const MaxImage = 256 << 20

// ErrImage is returned for what is not an image, stub or kernel that this room
// understands; the text says why.
var ErrImage = errors.New("not usable as EFI image")

// Section is a part of an image by the name that the stub finds it under.
type Section struct {
	Name string
	Data []byte
}

// measured are the sections that stubs read, in the order in which they measure
// them into PCR 11, names first [systemd-stub(7), "TPM PCR Notes"; UAPI.5, 5].
// Signatures of PCR values, .pcrsig, are not measured.
var measured = []string{
	".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
}

// Image is a unified kernel image.
type Image struct {
	Machine  uint16    // PE: 0x8664 x86-64, 0xaa64 64-bit ARM
	Stub     string    // what it calls itself: "systemd-stub 257.9"
	Sections []Section // that the stub reads, in the order in which it measures them
	PE       [sha256.Size]byte
	Kernel   [sha256.Size]byte // Authenticode, as PE
	code     [sha256.Size]byte // of the stub itself
}

// Parse reads an image. It must have the four sections without which no box of
// ours boots, and each section once. Errors are ErrImage.
func Parse(b []byte) (Image, error) {
	f, err := read(b)
	if err != nil {
		return Image{}, err
	}
	i := Image{Machine: f.machine, Stub: stubOf(f)}
	if i.Stub == "" {
		return Image{}, fmt.Errorf("no image of systemd's stub: %w", ErrImage)
	}
	code := sha256.New()
	for n, s := range f.sections {
		if slices.ContainsFunc(f.sections[:n], func(o sectionHeader) bool { return o.Name == s.Name }) {
			return Image{}, fmt.Errorf("section %.16q is there twice: %w", s.Name, ErrImage)
		}
		if slices.Contains(strange, s.Name) {
			return Image{}, fmt.Errorf("section %s: images with more than one way to boot are not read: %w", s.Name, ErrImage)
		}
		if !slices.Contains(measured, s.Name) || s.Name == ".sbat" {
			fmt.Fprintf(code, "%q %d %d\n", s.Name, s.VirtualAddress, s.Size)
			code.Write(f.raw[s.Offset : s.Offset+s.Size])
		}
	}
	i.code = [sha256.Size]byte(code.Sum(nil))
	for _, name := range measured {
		n := slices.IndexFunc(f.sections, func(s sectionHeader) bool { return s.Name == name })
		if n < 0 {
			if slices.Contains(measured[:4], name) {
				return Image{}, fmt.Errorf("no section %s: %w", name, ErrImage)
			}
			continue
		}
		data, err := f.data(f.sections[n])
		if err != nil {
			return Image{}, err
		}
		i.Sections = append(i.Sections, Section{Name: name, Data: data})
	}
	if i.PE, err = f.authenticode(); err != nil {
		return Image{}, err
	}
	if i.Kernel, err = Authenticode(i.Section(".linux")); err != nil {
		return Image{}, fmt.Errorf("section .linux: %w", err)
	}
	return i, nil
}

// strange are sections by which a stub chooses at boot what it starts.
var strange = []string{".profile", ".dtbauto", ".hwids", ".efifw"}

// Section returns the data of a section, or nothing.
func (i Image) Section(name string) []byte {
	for _, s := range i.Sections {
		if s.Name == name {
			return s.Data
		}
	}
	return nil
}

// SameStub reports whether two images have the same stub, byte for byte, so
// that both measure in the same way.
func (i Image) SameStub(o Image) bool { return i.code == o.code }

// Measurement is an event that a boot of an image leaves in the log of the
// firmware. Whoever measures may differ in how, so that there can be several
// digests; images that measure in the same way have it at the same place.
type Measurement struct {
	PCR     int
	What    string
	Digests [][sha256.Size]byte
	Always  bool // in every boot with a measuring firmware; else it depends on stub and kernel
}

// Measurements are the events of an image, in the order of each register:
//
//   - PCR 4: the image and the kernel in it, as the firmware loads them
//     (EV_EFI_BOOT_SERVICES_APPLICATION). Newer stubs load the kernel themselves.
//   - PCR 9: the command line in UTF-16 and the initrd, by the kernel's own stub
//     (EV_EVENT_TAG, since Linux 6.1 at the latest). Newer stubs of systemd put a
//     copy of os-release behind the initrd (257). Without Secure Boot a stub takes
//     another command line from the firmware's boot entry: it shows here alone.
//   - PCR 11: name, with its final zero, and data of each section (EV_IPL). Which
//     sections but the first four hangs on the stub.
func (i Image) Measurements() []Measurement {
	sum := func(pcr int, what string, always bool, forms ...[]byte) Measurement {
		m := Measurement{PCR: pcr, What: what, Always: always}
		for _, b := range forms {
			m.Digests = append(m.Digests, sha256.Sum256(b))
		}
		return m
	}
	initrd, line := i.Section(".initrd"), utf16Bytes(i.Cmdline())
	list := []Measurement{
		{PCR: 4, What: "image", Digests: [][sha256.Size]byte{i.PE}, Always: true},
		{PCR: 4, What: "kernel", Digests: [][sha256.Size]byte{i.Kernel}},
		sum(9, "command line", true, append(slices.Clip(line), 0, 0), line),
		sum(9, "initrd", true, initrd, append(pad(slices.Clip(initrd), 4), cpio(".extra", "os-release", i.Section(".osrel"))...)),
	}
	for n, s := range i.Sections {
		list = append(list,
			sum(11, "name of section "+s.Name, n < 4, append([]byte(s.Name), 0)),
			sum(11, "section "+s.Name, n < 4, s.Data))
	}
	return list
}

// Cmdline returns the kernel's command line as the stub hands it over.
func (i Image) Cmdline() string { return strings.TrimRight(string(i.Section(".cmdline")), "\x00\n ") }

func utf16Bytes(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}
