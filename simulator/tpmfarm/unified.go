package tpmfarm

import (
	"debug/pe"
	"encoding/binary"
	"fmt"

	"github.com/tillward/tillward/provisioning/uki"
)

const evTag = 0x00000006

// Unified is a till that boots a unified kernel image: firmware as that of
// Default, then the image as systemd's stub 257 and Linux 6.12 measure it.
func Unified(image []byte) (Firmware, error) {
	i, err := uki.Parse(image)
	if err != nil {
		return Firmware{}, fmt.Errorf("boot an image: %w", err)
	}
	f := Default("").Without("boot-manager", "kernel", "cmdline", "agent")
	add := func(m Measured) { f.Events = append(f.Events, m) }
	list := i.Measurements()
	put := func(pcr int) {
		for _, m := range list {
			if m.PCR != pcr || m.What == "kernel" {
				continue
			}
			sum := m.Digests[len(m.Digests)-1]
			e := Measured{Name: m.What, PCR: pcr, Type: evIPL, Data: wide(m.What + "\x00"), Sum: sum[:]}
			switch m.What {
			case "image":
				e.Type, e.Data = evApplication, loadEvent(`\EFI\BOOT\BOOTX64.EFI`)
			case "command line":
				e.Type, e.Data, e.Sum = evTag, tag(0x8f3b22ed, "LOADED_IMAGE::LoadOptions\x00"), m.Digests[0][:]
			case "initrd":
				e.Type, e.Data = evTag, tag(0x8f3b22ec, "Linux initrd\x00")
			}
			add(e)
		}
	}
	put(4)
	put(11)
	add(Measured{Name: "kernel", PCR: 4, Type: evApplication, Data: loadEvent(""), Sum: i.Kernel[:]})
	put(9)
	return f, nil
}

// tag is TCG_PCClientTaggedEvent [TCG PC Client Platform Firmware Profile 1.06,
// 10.4.2.1].
func tag(id uint32, data string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, id)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...) // #nosec G115 -- a dozen bytes
}

// Image makes a small unified kernel image of a release; nothing can run it.
func Image(release string) ([]byte, error) {
	return uki.Build(Program(uki.Section{Name: ".text", Data: []byte("stub")},
		uki.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub 257.9 ####")},
	), uki.Parts{
		Kernel: Program(uki.Section{Name: ".text", Data: []byte("kernel of " + release)}), Initrd: []byte("initrd of " + release),
		Cmdline: "quiet release=" + release, OSRelease: []byte("ID=tillward\nVERSION_ID=" + release + "\n"),
	})
}

// Program makes an EFI program for x86-64 as small as firmware takes it, with
// room in its headers for a dozen sections more. Nothing can run it.
func Program(sections ...uki.Section) []byte {
	const header, optional, table, headers, gap = 0x44, 0x58, 0x58 + 112 + 16*8, 0x600, 512
	b := make([]byte, headers)
	put := func(at int, v any) { _, _ = binary.Encode(b[at:], binary.LittleEndian, v) }
	copy(b, "MZ")
	put(0x3c, uint32(header-4))
	copy(b[header-4:], "PE\x00\x00")
	put(header, pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: uint16(len(sections)), SizeOfOptionalHeader: 112 + 16*8, Characteristics: 0x206}) // #nosec G115 -- a few
	address := uint32(0x1000)
	for i, s := range sections {
		n := uint32(len(s.Data)) // #nosec G115 -- small
		h := pe.SectionHeader32{
			VirtualSize: n, VirtualAddress: address, SizeOfRawData: (n + gap - 1) / gap * gap,
			PointerToRawData: uint32(len(b)), Characteristics: pe.IMAGE_SCN_MEM_READ, // #nosec G115 -- small
		}
		copy(h.Name[:], s.Name)
		put(table+40*i, h)
		b = append(b, make([]byte, h.SizeOfRawData)...)
		copy(b[h.PointerToRawData:], s.Data)
		address += (n + 0xfff) &^ 0xfff
	}
	put(optional, pe.OptionalHeader64{
		Magic: 0x20b, SectionAlignment: 0x1000, FileAlignment: gap, SizeOfImage: address, SizeOfHeaders: headers,
		Subsystem: pe.IMAGE_SUBSYSTEM_EFI_APPLICATION, NumberOfRvaAndSizes: 16,
	})
	return b
}
