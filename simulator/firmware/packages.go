package firmware

// trixie is the Debian of which the emulated till's kernel is, and its user land
// by default, whatever the machine of the test has: the first with a RAUC that
// streams (1.13, as Buildroot 2025.02).
const trixie = "trixie"

// Kernel and firmware of the emulated till. Of the four kernels at hand this one
// is the cheapest that has USB, see docs/firmware-test.md.
const (
	kernelPackage = "linux-image-amd64"
	uefiPackage   = "ovmf"
	stubPackage   = "systemd-boot-efi"
)

// keep is what the root takes of each package, files or folders; libraries that
// programs need come along. This is the one list of packages: what is not here,
// and no library of something here, is not on the till.
var keep = []struct {
	name  string
	paths []string
}{
	{"busybox-static", []string{"usr/bin/busybox"}},
	{"chrony", []string{"usr/sbin/chronyd"}},
	{"coreutils", []string{"usr/bin/nice"}}, // Debian's BusyBox has none
	{"cryptsetup-bin", []string{"usr/sbin/cryptsetup"}},
	{"dbus-daemon", []string{"usr/bin/dbus-daemon"}},
	{"dbus-system-bus-common", []string{"usr/share/dbus-1/system.conf"}},
	{"dmsetup", []string{"usr/sbin/dmsetup"}},
	{"e2fsprogs", []string{"etc/mke2fs.conf", "usr/bin/chattr", "usr/sbin/e2fsck", "usr/sbin/mke2fs", "usr/sbin/mkfs.ext4"}},
	{"efibootmgr", []string{"usr/bin/efibootmgr"}},
	{"libccid", []string{"etc/libccid_Info.plist", "usr/lib/pcsc"}},
	{"libgcc-s1", []string{"usr/lib/x86_64-linux-gnu/libgcc_s.so.1"}}, // glibc loads it when a thread is cancelled
	{"nftables", []string{"usr/sbin/nft"}},
	{"pcscd", []string{"usr/sbin/pcscd"}},
	{"rauc", []string{"usr/bin/rauc"}},
	{"rauc-service", []string{"usr/share/dbus-1/system.d/de.pengutronix.rauc.conf"}},
	{"util-linux", []string{"usr/bin/setpriv"}},
}

// modules are those of the kernel that the till may load; what they need comes
// along. The initrd takes its own from among them.
var modules = append([]string{
	// file systems, and the data behind its key
	"crc32c_generic", "crc32c_intel", // ext4, nf_tables and others ask for it by another name
	"ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8", "dm_crypt", "xts", "aesni_intel", "essiv", "loop", "nbd",
	// network
	"virtio_net", "virtio_rng", "nf_tables", "nft_ct", "nft_log", "nft_limit", "nft_reject", "nft_reject_inet", "nfnetlink_log", "nf_conntrack",
	// what hangs on it
	"xhci_pci", "xhci_hcd", "usbcore", "usbserial", "ftdi_sio", "usb_storage", "uas", "sd_mod", "usbhid", "hid_generic", "evdev", "usblp", "uinput", "cdc_acm", "button",
}, early...)

// early are those of the initrd: what this machine has of those that every
// till's looks for (initrd/modules). Each is measured and unpacked at each boot. Not SHA-256 in vectors:
// QEMU is slower at them than at plain code.
var early = []string{"i6300esb", "virtio_pci", "virtio_blk", "efivarfs", "dm_mod", "dm_verity", "squashfs"}
