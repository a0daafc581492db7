package uki

import "fmt"

// cpio makes the archive of one small file in a folder that stubs hand to the
// kernel behind the initrd, byte for byte as systemd writes it (src/boot/cpio.c
// of release 257; the format is newc of cpio(5)).
func cpio(folder, name string, data []byte) []byte {
	const dir, file = 0o040555, 0o100444
	b := entry(nil, 1, dir, folder, nil)
	b = entry(b, 2, file, folder+"/"+name, data)
	return append(b, trailer...)
}

// trailer ends an archive; the one number in it that has letters is in capitals.
const trailer = "070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
	"00000000" + "00000000" + "00000000" + "00000000" + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"

// entry appends one file: numbers of eight hex digits, then name and data, each
// up to a multiple of four bytes.
func entry(b []byte, inode, mode int, name string, data []byte) []byte {
	b = append(b, "070701"...)
	for _, v := range [...]int{inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		b = fmt.Appendf(b, "%08x", v)
	}
	b = pad(append(append(b, name...), 0), 4)
	return pad(append(b, data...), 4)
}
