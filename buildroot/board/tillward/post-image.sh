#!/bin/sh
# Buildroot calls this with its folder of images, after the root file system is
# packed: image.sh and pack.sh do the rest, here as everywhere.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
images=$1
for kernel in bzImage Image zImage; do
	[ ! -f "$images/$kernel" ] || break
done
export ROOT="$TARGET_DIR" SQUASHFS="$images/rootfs.squashfs" KERNEL="$images/$kernel" MODULES=
[ ! -d "$TARGET_DIR/lib/modules" ] || MODULES=$TARGET_DIR
export STUB="$TILLWARD_EFI_STUB" VERSION="$TILLWARD_VERSION" COMPATIBLE="$TILLWARD_COMPATIBLE" MODEL="$TILLWARD_MODEL"
export CONSOLE="${TILLWARD_CONSOLE:-no}" PROVISION="${TILLWARD_PROVISION:-tillward-provision}" OUT="$images"
export INITRD='' BASE_LOG='' BASE_UKI='' BOOT_JSON="${TILLWARD_BOOT_JSON:-}" RAUC_CERT="${TILLWARD_RAUC_CERT:-}" RAUC_KEY="${TILLWARD_RAUC_KEY:-}"
vendor=${TILLWARD_VENDOR:-}
if [ -f "$vendor/base.log" ] && [ -f "$vendor/base.efi" ]; then
	BASE_LOG=$vendor/base.log BASE_UKI=$vendor/base.efi BASE_CHAINS=
	for log in "$vendor"/base-*.log; do # further ways to the image, by name
		[ ! -f "$log" ] || {
			name=${log##*/base-}
			BASE_CHAINS="$BASE_CHAINS ${name%.log}=$log"
		}
	done
	export BASE_CHAINS
fi
"$here/image.sh"
"$here/pack.sh"
