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
# A VERSION or a MODEL in the environment would reach the build of every package,
# and so would what our own make was told.
board=${BOARD:-} buildroot=${BUILDROOT:-} vendor=${VENDOR:-} version=${VERSION:?} out=${OUT:-}
model=${MODEL:-} compatible=${COMPATIBLE:-} console=${CONSOLE:-} stub=${STUB:-} boot_json=${BOOT_JSON:-}
rauc_cert=${RAUC_CERT:-} rauc_key=${RAUC_KEY:-} release=${RELEASE:-} external=${EXTERNAL:-} config=${CONFIG:-} cyclone=${CYCLONE:-}
unset BOARD BUILDROOT VENDOR VERSION OUT MODEL COMPATIBLE CONSOLE STUB BOOT_JSON RAUC_CERT RAUC_KEY RELEASE EXTERNAL CONFIG CYCLONE
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL
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

if [ -z "$buildroot" ]; then
	cat >&2 <<END
make image builds with a Buildroot that you bring; nothing of it is in this repository.

  1. Get it: the LTS 2025.02.x or 2026.05.x, from https://buildroot.org/download.html
  2. make image BOARD=pc_x86_64 BUILDROOT=path VENDOR=folder
     boards: $boards
     the vendor folder, and all the other words: docs/vendor.md

What it needs: a PC with Linux, 4 processors or more, 8 GB of memory, 20 GB of disk, the internet, and a user who
is not root (Buildroot fetches some 80 archives of sources, about half a GB, and checks them by their hashes). From Debian:
  build-essential bc bzip2 cpio file git libelf-dev libssl-dev patch perl python3 rsync unzip wget xz-utils zstd systemd-boot-efi
How long it takes: qemu_x86_64 was built in full in 48 minutes on 2 processors that others used as well, with a
compiler that was there. Buildroot builds its compiler first: expect one to two hours on 4 processors (an estimate,
nobody has measured that). After a change to the agent it takes a minute. docs/vendor.md, 12, says what was built.
END
	exit 2
fi
board=${board#tillward_}
board=${board%_defconfig}
[ -n "$board" ] || stop "say which BOARD: $boards"
buildroot=$(full "$buildroot") vendor=$(full "$vendor") out=$(full "${out:-.cache/buildroot/$board}")
[ -f "$buildroot/package/pkg-golang.mk" ] || stop "$buildroot is no Buildroot checkout"
br2=$(sed -n 's/^export BR2_VERSION := //p' "$buildroot/Makefile")
case $br2 in
	2025.02.* | 2026.05.*) ;;
	*) say "Buildroot $br2: checked were 2025.02.16 and 2026.05.1" ;;
esac
tree=$here
for more in $external; do
	tree=$tree:$(full "$more")
done

[ -n "$vendor" ] || stop "say which VENDOR folder: it holds what makes the image yours, docs/vendor.md"
for file in agent.toml service-roots.pem root.json seal.pub rauc-keyring.pem; do
	[ -f "$vendor/$file" ] || stop "the vendor folder has no $file: docs/vendor.md says who makes it"
done
if grep -rlq 'PRIVATE KEY' "$vendor"; then
	stop "there is a private key in the vendor folder: it would be in every image"
fi
missing=
for program in make gcc g++ bash patch gzip bzip2 perl tar cpio unzip rsync file bc wget python3 zstd xz go; do
	command -v $program >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] || stop "not installed:$missing"
mkdir -p "$out"
free=$(df -Pk "$out" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge 15 ] || [ -d "$out/images" ] || stop "$out has $free GB free; a first build needs about 15"

if [ -n "$release" ]; then
	[ -f "$release/tillward-$version.tar.gz" ] || stop "$release has no tillward-$version.tar.gz: make release"
	release=$(full "$release")
else
	"$here/source.sh" "$here/../.cache/buildroot/source"
fi

# Times in the image are that of the commit, which is also the least that a box
# without a clock believes.
: "${SOURCE_DATE_EPOCH:=$(git -C "$here" log -1 --format=%ct 2>/dev/null || stat -c %Y "$here/../go.mod")}"
export SOURCE_DATE_EPOCH

make -s -C "$buildroot" O="$out" BR2_EXTERNAL="$tree" "tillward_${board}_defconfig" >"$out/configure.log" 2>&1 || {
	tail -n 20 "$out/configure.log" >&2
	stop "Buildroot does not take the configuration of $board"
}

# What differs from build to build goes behind the board's own lines.
own=$out/own.config
set_to() { [ -z "$2" ] || printf '%s="%s"\n' "$1" "$2"; }
{
	set_to BR2_TILLWARD_VERSION "$version"
	set_to BR2_TILLWARD_VENDOR_DIR "$vendor"
	set_to BR2_TILLWARD_MODEL "$model"
	set_to BR2_TILLWARD_COMPATIBLE "$compatible"
	set_to BR2_TILLWARD_EFI_STUB "$(full "$stub")"
	set_to BR2_TILLWARD_BOOT_JSON "$(full "$boot_json")"
	set_to BR2_TILLWARD_RAUC_CERT "$(full "$rauc_cert")"
	set_to BR2_TILLWARD_RAUC_KEY "$(full "$rauc_key")"
	[ "$console" != yes ] || echo BR2_TILLWARD_CONSOLE=y
	if [ -n "$release" ]; then
		echo BR2_PACKAGE_TILLWARD_AGENT_RELEASE=y
		set_to BR2_PACKAGE_TILLWARD_AGENT_SITE "file://$release"
		set_to BR2_GLOBAL_PATCH_DIR "$(sed -n 's/^BR2_GLOBAL_PATCH_DIR="\(.*\)"$/\1/p' "$out/.config") $release"
	fi
	for file in "$vendor/buildroot.config" $config; do
		[ ! -f "$file" ] || grep -v '^#  *$' "$file"
	done
} >"$own"
cat "$own" >>"$out/.config"
make -s -C "$buildroot" O="$out" olddefconfig >>"$out/configure.log" 2>&1
grep -E '^(BR2_|# BR2_.* is not set)' "$own" | while read -r line; do
	grep -qxF -- "$line" "$out/.config" || {
		echo "image: Buildroot dropped this line, which is misspelt or wants another: $line" >&2
		exit 1
	}
done

use=$(sed -n 's/^BR2_TILLWARD_EFI_STUB="\(.*\)"$/\1/p' "$out/.config")
[ -f "$use" ] || stop "no EFI stub $use: Debian's systemd-boot-efi has it; give another as STUB=file"

# A changed agent is built again; Buildroot does not look into folders by itself.
if [ -d "$out/build/tillward-agent-$version" ] && [ -z "$release" ]; then
	make -s -C "$buildroot" O="$out" tillward-agent-dirclean
fi
began=$(date +%s)
say "Buildroot $br2 builds $board, version $version; its words are in $out/build.log"
make -C "$buildroot" O="$out" >"$out/build.log" 2>&1 || {
	tail -n 30 "$out/build.log" >&2
	say "the build ended with an error; the whole of it is in $out/build.log"
	exit 1
}
say "built in $(($(date +%s) - began)) seconds"

# Kernel and BusyBox are configured in the midst of the build, and what Kconfig
# drops of their fragments, ours or a vendor's, nobody hears of otherwise.
made=$(make -s -C "$buildroot" O="$out" printvars VARS='LINUX_DIR BUSYBOX_DIR LINUX_KCONFIG_FRAGMENT_FILES BUSYBOX_KCONFIG_FRAGMENT_FILES')
for what in LINUX BUSYBOX; do
	fragments=$(echo "$made" | sed -n "s/^${what}_KCONFIG_FRAGMENT_FILES=//p")
	# shellcheck disable=SC2086 # a list, and Buildroot takes no spaces in names either
	"$here/survived.sh" "$(echo "$made" | sed -n "s/^${what}_DIR=//p")/.config" $fragments >&2 || stop "$what was built without these lines of its fragments"
done

# What is in it, for whoever has to answer for it: of the agent from its binary,
# of the rest by Buildroot, which fetches the form of such lists from the internet.
[ -z "$cyclone" ] || "$here/sbom.sh" "$(full "$cyclone")" "$version" "$out/target/usr/bin/tillward-agent" "$out/images/sbom-agent.cdx.json"
list=$out/images/sbom-image.cdx.json
if make -s -C "$buildroot" O="$out" show-info 2>"$out/sbom.log" >"$out/info.json" &&
	"$buildroot/utils/generate-cyclonedx" <"$out/info.json" >"$list" 2>>"$out/sbom.log"; then
	say "the list of what is in the image: $list"
else
	rm -f "$list"
	say "no list of what is in the image but the agent, see $out/sbom.log"
fi
ls -l "$out/images"/disk.img "$out/images"/update.raucb "$out/images"/boot.json 2>/dev/null || true
[ -n "$boot_json" ] || say "no approved boot reference yet: the data partition stays closed until there is one, docs/vendor.md"
