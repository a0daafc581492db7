#!/bin/sh
# Makes the initrd from programs of the target tree, so that it runs on the
# target's libraries, and from kernel modules. The same input gives the same
# bytes: sorted names, owner 0, one time for all.
#
#   mkinitrd.sh ROOT MODULES OUT.img
#
# MODULES has lib/modules/ABI, or is "" where the kernel has all that built in.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
root=$1 modules=$2 out=$3
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
epoch=${SOURCE_DATE_EPOCH:-0}

# find_in NAME: where the target tree has it; links are followed within the tree.
find_in() {
	for dir in bin sbin usr/bin usr/sbin lib usr/lib lib64 usr/lib64 lib32 usr/lib32 "lib/$triplet" "usr/lib/$triplet"; do
		if [ -e "$root/$dir/$1" ] || [ -L "$root/$dir/$1" ]; then
			resolve "/$dir/$1"
			return 0
		fi
	done
	return 1
}

# resolve PATH: the file behind links, where / is the target tree.
resolve() {
	path=$1
	while [ -L "$root$path" ]; do
		to=$(readlink "$root$path")
		case $to in
			/*) path=$to ;;
			*) path=${path%/*}/$to ;;
		esac
	done
	echo "$root$path"
}

# take NAME [AS]: a program or library, with the libraries it needs.
take() {
	as=${2:-$1}
	[ ! -e "$tree/$dir_of/$as" ] || return 0
	file=$(find_in "$1") || {
		echo "mkinitrd: the target has no $1" >&2
		exit 1
	}
	cp -L "$file" "$tree/$dir_of/$as"
	chmod 755 "$tree/$dir_of/$as"
	for lib in $(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
		case $lib in ld-*) continue ;; esac # the dynamic linker, see interpreter
		dir_of=lib
		take "$lib"
	done
}

# The dynamic linker lies where each program says.
interpreter() {
	at=$(readelf -l "$1" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
	[ -n "$at" ] && [ ! -e "$tree$at" ] || return 0
	mkdir -p "$tree${at%/*}"
	cp -L "$(resolve_dirs "$at")" "$tree$at"
	chmod 755 "$tree$at"
}

# resolve_dirs PATH: as resolve, where a folder on the way may be a link too.
resolve_dirs() {
	find_in "${1##*/}" || resolve "$1"
}

triplet=$(find "$root/usr/lib" -maxdepth 1 -name '*-linux-gnu*' -printf '%f\n' | sort | head -n 1)
mkdir -p "$tree/bin" "$tree/lib" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/run" "$tree/root"
ln -s bin "$tree/sbin"
for program in busybox dmsetup chattr; do
	dir_of=bin
	take "$program"
	interpreter "$tree/bin/$program"
done
# What init calls. chattr is BusyBox's on some trees and a program on others.
for applet in sh mount insmod watchdog head od tr tail sed grep printf mkdir readlink usleep sleep reboot kill switch_root; do
	ln -s busybox "$tree/bin/$applet"
done
cp "$here/initrd/init" "$tree/init"
chmod 755 "$tree/init"

if [ -n "$modules" ]; then
	"$here/pick-modules.sh" "$modules" "${INITRD_MODULES:-$here/initrd/modules}" "$tree/picked"
	[ ! -d "$tree/picked/lib/modules" ] || {
		mkdir -p "$tree/lib"
		cp -r "$tree/picked/lib/modules" "$tree/lib/"
	}
	mv "$tree/picked/modules.order" "$tree/modules"
	rm -rf "$tree/picked"
	rm -f "$tree"/lib/modules/*/modules.*
else
	: >"$tree/modules"
fi

find "$tree" -exec touch -h -d "@$epoch" {} +
(cd "$tree" && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) |
	zstd -q -f -"${INITRD_LEVEL:-12}" --no-progress -o "$out"
