#!/bin/sh
# Makes of a target tree and a kernel what one slot holds: the root with its
# verity tree, the initrd, the unified kernel image that names the root's hash,
# and the boot reference of that image. Needs no root and no network; the same
# input gives the same bytes.
#
# In: ROOT KERNEL MODULES STUB VERSION COMPATIBLE MODEL CONSOLE PROVISION OUT
#     [SQUASHFS] [INITRD] [BASE_LOG BASE_UKI [BASE_CHAINS] [RELEASE]] [SOURCE_DATE_EPOCH]
# Out, in OUT: rootfs.squashfs rootfs.img initrd.img uki.efi image.json
#     [boot.json predicted.log and predicted-NAME.log of each chain]
# SQUASHFS, INITRD: made already; else they are made of the target tree.
# BASE_CHAINS: NAME=LOG, more ways in which the firmware of the model comes to
# the image, see docs/boot-references.md. RELEASE: as the repository calls it.
set -eu
umask 022
export LC_ALL=C TZ=UTC

here=$(cd "$(dirname "$0")" && pwd)
: "${ROOT:?the target tree}" "${KERNEL:?}" "${STUB:?the EFI stub of systemd}" "${VERSION:?}" "${COMPATIBLE:?}" "${MODEL:?}" "${OUT:?}"
: "${PROVISION:=tillward-provision}" "${MODULES=}" "${CONSOLE:=no}" "${SQUASHFS=}" "${INITRD=}" "${BASE_LOG=}" "${BASE_UKI=}" "${SQUASHFS_LEVEL:=15}"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
mkdir -p "$OUT"

# The root. The slot is 80 MiB with its tree; what goes above 64 MiB without is
# an image that lost sight of what it is for.
if [ -n "$SQUASHFS" ]; then
	cmp -s "$SQUASHFS" "$OUT/rootfs.squashfs" || cp "$SQUASHFS" "$OUT/rootfs.squashfs"
else
	rm -f "$OUT/rootfs.squashfs"
	mksquashfs "$ROOT" "$OUT/rootfs.squashfs" -noappend -all-root -no-xattrs -no-exports -no-progress -quiet \
		-comp zstd -Xcompression-level "$SQUASHFS_LEVEL" -b 128K >/dev/null
fi
bytes=$(stat -c %s "$OUT/rootfs.squashfs")
[ "$bytes" -le $((64 * 1024 * 1024)) ] || {
	echo "image: the root has $bytes bytes, at most 64 MiB fit" >&2
	exit 1
}
blocks=$(((bytes + 4095) / 4096))
cp "$OUT/rootfs.squashfs" "$OUT/rootfs.img"
truncate -s $((blocks * 4096)) "$OUT/rootfs.img"

# The salt follows from the version, so that building again gives the same tree.
salt=$(printf 'tillward root of %s %s' "$COMPATIBLE" "$VERSION" | sha256sum | cut -c 1-64)
hash=$(veritysetup format --no-superblock --format=1 --hash=sha256 --salt="$salt" \
	--data-block-size=4096 --hash-block-size=4096 --data-blocks="$blocks" --hash-offset=$((blocks * 4096)) \
	"$OUT/rootfs.img" "$OUT/rootfs.img" | sed -n 's/^Root hash:[[:space:]]*//p')
[ ${#hash} = 64 ] || {
	echo "image: veritysetup gave no root hash" >&2
	exit 1
}

if [ -n "$INITRD" ]; then
	cmp -s "$INITRD" "$OUT/initrd.img" || cp "$INITRD" "$OUT/initrd.img"
else
	"$here/mkinitrd.sh" "$ROOT" "$MODULES" "$OUT/initrd.img"
fi

# What every till's kernel is told. A panic restarts the box, so does an oops:
# then it is the next start's turn, and in the end the other slot's.
cmdline="tillward.root=$hash,$salt,$blocks rdinit=/init ro lockdown=integrity panic=10 oops=panic"
if [ "$CONSOLE" = yes ]; then
	cmdline="$cmdline console=ttyS0 loglevel=6"
else
	cmdline="$cmdline quiet loglevel=4"
fi
cmdline="$cmdline${CMDLINE_EXTRA:+ $CMDLINE_EXTRA}"
printf '%s' "$cmdline" >"$OUT/cmdline"
cat >"$OUT/os-release" <<EOF
ID=tillward
NAME=Tillward
PRETTY_NAME="Tillward $VERSION ($MODEL)"
VERSION_ID=$VERSION
IMAGE_ID=$COMPATIBLE
IMAGE_VERSION=$VERSION
EOF
"$PROVISION" uki build --stub "$STUB" --kernel "$KERNEL" --initrd "$OUT/initrd.img" \
	--cmdline-file "$OUT/cmdline" --osrel "$OUT/os-release" --out "$OUT/uki.efi" >/dev/null

if [ -n "$BASE_LOG" ] && [ -n "$BASE_UKI" ]; then
	export OUT VERSION MODEL BASE_LOG BASE_UKI PROVISION
	"$here/predict.sh"
fi

sum() { sha256sum "$1" | cut -c 1-64; }
size() { stat -c %s "$1"; }
cat >"$OUT/image.json" <<EOF
{
  "version": "$VERSION",
  "compatible": "$COMPATIBLE",
  "model": "$MODEL",
  "root_hash": "$hash",
  "stub": {"bytes": $(size "$STUB"), "sha256": "$(sum "$STUB")"},
  "files": {
    "rootfs.squashfs": {"bytes": $(size "$OUT/rootfs.squashfs"), "sha256": "$(sum "$OUT/rootfs.squashfs")"},
    "rootfs.img": {"bytes": $(size "$OUT/rootfs.img"), "sha256": "$(sum "$OUT/rootfs.img")"},
    "initrd.img": {"bytes": $(size "$OUT/initrd.img"), "sha256": "$(sum "$OUT/initrd.img")"},
    "uki.efi": {"bytes": $(size "$OUT/uki.efi"), "sha256": "$(sum "$OUT/uki.efi")"}
  }
}
EOF
