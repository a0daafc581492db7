#!/bin/sh
# Makes of what image.sh left in OUT the things that go out of the house: the EFI
# partition of a slot, the update bundle, and the disk that is flashed on a new
# box. The boot reference with its approvals is beside the image here and not in
# it: it is signed after the image is built, and nothing that is measured changes.
#
# In: OUT VERSION COMPATIBLE [BOOT_JSON] [SERVICE_TOML] [RAUC_CERT RAUC_KEY] [LOADER=BOOTX64.EFI]
# Out, in OUT: esp.img disk.img [update.raucb]
set -eu
umask 022
export LC_ALL=C TZ=UTC MTOOLS_SKIP_CHECK=1

here=$(cd "$(dirname "$0")" && pwd)
: "${OUT:?}" "${VERSION:?}" "${COMPATIBLE:?}" "${BOOT_JSON=}" "${SERVICE_TOML=}" "${RAUC_CERT=}" "${RAUC_KEY=}" "${DATA_MIB:=160}" "${ROOT_MIB:=80}"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The machine of the image, from its PE header, names the file that firmware starts.
pe=$(od -An -tu4 -j60 -N4 "$OUT/uki.efi" | tr -d ' ')
case $(od -An -tx2 -j$((pe + 4)) -N2 "$OUT/uki.efi" | tr -d ' ') in
	8664) loader=BOOTX64.EFI ;;
	aa64) loader=BOOTAA64.EFI ;;
	01c0 | 01c2 | 01c4) loader=BOOTARM.EFI ;;
	*)
		echo "pack: uki.efi is for a machine that is not known here" >&2
		exit 1
		;;
esac

# put FILE AS: into the EFI partition, with a time that does not change.
put() {
	cp "$1" "$work/file"
	touch -d "@$SOURCE_DATE_EPOCH" "$work/file"
	mcopy -m -i "$OUT/esp.img" "$work/file" "::$2"
}
rm -f "$OUT/esp.img"
truncate -s 48M "$OUT/esp.img"
mkfs.vfat --invariant -F 32 -s 1 -n TILLWARD "$OUT/esp.img" >/dev/null
mmd -i "$OUT/esp.img" ::EFI ::EFI/BOOT ::EFI/tillward
put "$OUT/uki.efi" EFI/BOOT/$loader
[ -z "$BOOT_JSON" ] || put "$BOOT_JSON" EFI/tillward/boot.json
[ -z "$SERVICE_TOML" ] || put "$SERVICE_TOML" EFI/tillward/tillward-service.toml

if [ -n "$RAUC_CERT" ]; then
	mkdir "$work/bundle"
	ln "$OUT/rootfs.img" "$work/bundle/rootfs.img" 2>/dev/null || cp "$OUT/rootfs.img" "$work/bundle/rootfs.img"
	ln "$OUT/esp.img" "$work/bundle/esp.img" 2>/dev/null || cp "$OUT/esp.img" "$work/bundle/esp.img"
	sed -e "s/@COMPATIBLE@/$COMPATIBLE/" -e "s/@VERSION@/$VERSION/" "$here/manifest.raucm.in" >"$work/bundle/manifest.raucm"
	rm -f "$OUT/update.raucb"
	rauc bundle --cert="$RAUC_CERT" --key="$RAUC_KEY" --mksquashfs-args="${BUNDLE_ARGS--comp zstd -Xcompression-level 3}" \
		"$work/bundle" "$OUT/update.raucb" >"$work/log" 2>&1 || {
		cat "$work/log" >&2
		exit 1
	}
fi

# A file system in the state partition spares the first boot making one.
rm -f "$work/state.img"
truncate -s 128M "$work/state.img"
E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mkfs.ext4 -q -F -L state -m 1 -U 6d0c7a4e-3f1b-4f6e-9a53-70d1a2b3c431 \
	-E hash_seed=6d0c7a4e-3f1b-4f6e-9a53-70d1a2b3c432,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 "$work/state.img"
sed -e "s#@STATE@#$work/state.img#" -e "s/@DATA@/${DATA_MIB}M/" -e "s/size = 80M/size = ${ROOT_MIB}M/" "$here/genimage.cfg.in" >"$work/genimage.cfg"
mkdir "$work/root"
genimage --config "$work/genimage.cfg" --rootpath "$work/root" --tmppath "$work/tmp" \
	--inputpath "$OUT" --outputpath "$OUT" >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
