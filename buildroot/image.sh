#!/bin/sh
# Builds the image of a board with a Buildroot checkout that the vendor brings:
# what `make image` calls. See docs/vendor.md.
#
# In: BOARD BUILDROOT VENDOR VERSION [MODEL COMPATIBLE CONSOLE STUB BOOT_JSON
#     RAUC_CERT RAUC_KEY RELEASE EXTERNAL CONFIG] OUT
# Out, in OUT/images: disk.img update.raucb boot.json image.json and what they are made of.
set -eu
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
: "${BOARD=}" "${BUILDROOT=}" "${VENDOR=}" "${VERSION:?}" "${OUT=}"
: "${MODEL=}" "${COMPATIBLE=}" "${CONSOLE=}" "${STUB=}" "${BOOT_JSON=}" "${RAUC_CERT=}" "${RAUC_KEY=}" "${RELEASE=}" "${EXTERNAL=}" "${CONFIG=}"
boards=$(cd "$here/configs" && printf '%s\n' *_defconfig | sed 's/^tillward_//; s/_defconfig$//' | tr '\n' ' ')
say() { echo "image: $*" >&2; }
stop() {
	say "$*"
	exit 2
}
# full PATH: from the root.
full() {
	case $1 in
		'' | /* | pkcs11:*) echo "$1" ;;
		*) echo "$PWD/$1" ;;
	esac
}

if [ -z "$BUILDROOT" ]; then
	cat >&2 <<END
make image builds with a Buildroot that you bring; nothing of it is in this repository.

  1. Get it: the LTS 2025.02.x or 2026.05.x, from https://buildroot.org/download.html
  2. make image BOARD=pc_x86_64 BUILDROOT=path VENDOR=folder
     boards: $boards
     the vendor folder, and all the other words: docs/vendor.md

What it needs: a PC with Linux, 4 processors or more, 8 GB of memory, 20 GB of disk and the internet (Buildroot
fetches the sources of some 110 packages, about 1 GB, and checks them by their hashes). From Debian:
  build-essential bc bzip2 cpio file git libelf-dev libssl-dev patch perl python3 rsync unzip wget xz-utils zstd systemd-boot-efi
How long it takes is an estimate: nobody has built one of these images in full. An image of half as many packages
took 22 minutes on 2 processors with a compiler that was there; this one builds its compiler first, so expect one
to two hours on 4 processors the first time, and minutes after a change to the agent.
END
	exit 2
fi
BOARD=${BOARD#tillward_}
BOARD=${BOARD%_defconfig}
[ -n "$BOARD" ] || stop "say which BOARD: $boards"
BUILDROOT=$(full "$BUILDROOT") VENDOR=$(full "$VENDOR") OUT=$(full "${OUT:-.cache/buildroot/$BOARD}")
[ -f "$BUILDROOT/package/pkg-golang.mk" ] || stop "$BUILDROOT is no Buildroot checkout"
release=$(sed -n 's/^export BR2_VERSION := //p' "$BUILDROOT/Makefile")
case $release in
	2025.02.* | 2026.05.*) ;;
	*) say "Buildroot $release: checked were 2025.02.16 and 2026.05.1" ;;
esac
tree=$here
for more in $EXTERNAL; do
	tree=$tree:$(full "$more")
done

[ -n "$VENDOR" ] || stop "say which VENDOR folder: it holds what makes the image yours, docs/vendor.md"
for file in agent.toml service-roots.pem root.json seal.pub rauc-keyring.pem; do
	[ -f "$VENDOR/$file" ] || stop "the vendor folder has no $file: docs/vendor.md says who makes it"
done
if grep -rlq 'PRIVATE KEY' "$VENDOR"; then
	stop "there is a private key in the vendor folder: it would be in every image"
fi
missing=
for program in make gcc g++ bash patch gzip bzip2 perl tar cpio unzip rsync file bc wget python3 zstd xz go; do
	command -v $program >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] || stop "not installed:$missing"
mkdir -p "$OUT"
free=$(df -Pk "$OUT" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge 15 ] || [ -d "$OUT/images" ] || stop "$OUT has $free GB free; a first build needs about 15"

if [ -n "$RELEASE" ]; then
	[ -f "$RELEASE/tillward-$VERSION.tar.gz" ] || stop "$RELEASE has no tillward-$VERSION.tar.gz: make release"
	RELEASE=$(full "$RELEASE")
else
	"$here/source.sh" "$here/../.cache/buildroot/source"
fi

make -s -C "$BUILDROOT" O="$OUT" BR2_EXTERNAL="$tree" "tillward_${BOARD}_defconfig" >"$OUT/configure.log" 2>&1 || {
	tail -n 20 "$OUT/configure.log" >&2
	stop "Buildroot does not take the configuration of $BOARD"
}

# What differs from build to build goes behind the board's own lines.
own=$OUT/own.config
set_to() { [ -z "$2" ] || printf '%s="%s"\n' "$1" "$2"; }
{
	set_to BR2_TILLWARD_VERSION "$VERSION"
	set_to BR2_TILLWARD_VENDOR_DIR "$VENDOR"
	set_to BR2_TILLWARD_MODEL "$MODEL"
	set_to BR2_TILLWARD_COMPATIBLE "$COMPATIBLE"
	set_to BR2_TILLWARD_EFI_STUB "$(full "$STUB")"
	set_to BR2_TILLWARD_BOOT_JSON "$(full "$BOOT_JSON")"
	set_to BR2_TILLWARD_RAUC_CERT "$(full "$RAUC_CERT")"
	set_to BR2_TILLWARD_RAUC_KEY "$(full "$RAUC_KEY")"
	[ "$CONSOLE" != yes ] || echo BR2_TILLWARD_CONSOLE=y
	if [ -n "$RELEASE" ]; then
		echo BR2_PACKAGE_TILLWARD_AGENT_RELEASE=y
		set_to BR2_PACKAGE_TILLWARD_AGENT_SITE "file://$RELEASE"
		set_to BR2_GLOBAL_PATCH_DIR "$(sed -n 's/^BR2_GLOBAL_PATCH_DIR="\(.*\)"$/\1/p' "$OUT/.config") $RELEASE"
	fi
	for file in "$VENDOR/buildroot.config" $CONFIG; do
		[ ! -f "$file" ] || grep -v '^#  *$' "$file"
	done
} >"$own"
cat "$own" >>"$OUT/.config"
make -s -C "$BUILDROOT" O="$OUT" olddefconfig >>"$OUT/configure.log" 2>&1
grep -E '^(BR2_|# BR2_.* is not set)' "$own" | while read -r line; do
	grep -qxF -- "$line" "$OUT/.config" || {
		echo "image: Buildroot dropped this line, which is misspelt or wants another: $line" >&2
		exit 1
	}
done

stub=$(sed -n 's/^BR2_TILLWARD_EFI_STUB="\(.*\)"$/\1/p' "$OUT/.config")
[ -f "$stub" ] || stop "no EFI stub $stub: Debian's systemd-boot-efi has it; give another as STUB=file"

# A changed agent is built again; Buildroot does not look into folders by itself.
if [ -d "$OUT/build/tillward-agent-$VERSION" ] && [ -z "$RELEASE" ]; then
	make -s -C "$BUILDROOT" O="$OUT" tillward-agent-dirclean
fi
began=$(date +%s)
say "Buildroot $release builds $BOARD, version $VERSION; its words are in $OUT/build.log"
make -C "$BUILDROOT" O="$OUT" >"$OUT/build.log" 2>&1 || {
	tail -n 30 "$OUT/build.log" >&2
	say "the build ended with an error; the whole of it is in $OUT/build.log"
	exit 1
}
say "built in $((($(date +%s) - began) / 60)) minutes"

# What is in it, for whoever has to answer for it. Buildroot fetches the form of the list from the internet.
if [ -x "$BUILDROOT/utils/generate-cyclonedx" ] &&
	make -s -C "$BUILDROOT" O="$OUT" show-info 2>/dev/null | "$BUILDROOT/utils/generate-cyclonedx" >"$OUT/images/sbom-image.cdx.json" 2>"$OUT/sbom.log"; then
	say "the list of what is in the image: $OUT/images/sbom-image.cdx.json"
else
	rm -f "$OUT/images/sbom-image.cdx.json"
	say "no list of what is in the image (see $OUT/sbom.log); that of the agent: make sbom"
fi
ls -l "$OUT/images"/disk.img "$OUT/images"/update.raucb "$OUT/images"/boot.json 2>/dev/null || true
[ -n "$BOOT_JSON" ] || say "no approved boot reference yet: the data partition stays closed until there is one, docs/vendor.md"
