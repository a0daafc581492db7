#!/bin/sh
# Copies kernel modules by name, with what they depend on, to another folder:
# the initrd and the root carry only what a till needs. Modules that the kernel
# has built in, or does not have, are passed over.
#
#   pick-modules.sh MODULES LIST DEST
#
# MODULES has lib/modules/ABI; LIST has a name a line, # begins a comment. DEST
# gets lib/modules/ABI with plain .ko files (a signature at their end stays) and
# DEST/modules.order, the files in the order in which they can be loaded.
set -eu

modules=$1 list=$2 dest=$3
mkdir -p "$dest"
: >"$dest/modules.order"
abi=$(cd "$modules/lib/modules" 2>/dev/null && find . -mindepth 1 -maxdepth 1 -printf '%f\n' | sort | head -n 1) || abi=
[ -n "$abi" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# modprobe wants an index, which not every package of a kernel carries.
from=$modules
if [ ! -s "$modules/lib/modules/$abi/modules.dep" ]; then
	mkdir -p "$work/lib/modules"
	cp -a "$modules/lib/modules/$abi" "$work/lib/modules/"
	from=$work
	depmod -b "$from" "$abi"
fi

sed -e 's/#.*//' "$list" | while read -r name; do
	[ -n "$name" ] || continue
	modprobe -d "$from" -S "$abi" --show-depends "$name" 2>/dev/null || true
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >"$work/files"

while read -r file; do
	path=${file#"$from"/}
	case $path in /*) path=lib/modules/${file#*/lib/modules/} ;; esac
	plain=${path%.xz}
	plain=${plain%.zst}
	plain=${plain%.gz}
	mkdir -p "$dest/${plain%/*}"
	case $path in
		*.xz) xz -dc "$file" >"$dest/$plain" ;;
		*.zst) zstd -dcq "$file" >"$dest/$plain" ;;
		*.gz) gzip -dc "$file" >"$dest/$plain" ;;
		*) cp "$file" "$dest/$plain" ;;
	esac
	chmod 644 "$dest/$plain"
	echo "$plain" >>"$dest/modules.order"
done <"$work/files"
mkdir -p "$dest/lib/modules/$abi"
for index in modules.order modules.builtin modules.builtin.modinfo; do
	[ ! -e "$modules/lib/modules/$abi/$index" ] || cp "$modules/lib/modules/$abi/$index" "$dest/lib/modules/$abi/"
done
