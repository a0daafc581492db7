#!/bin/sh
# Finishes a target tree: what differs between versions, models and vendors, and
# what the overlay needs of any tree, be it Buildroot's or one of Debian packages.
# Buildroot calls it with the tree; others call it after they have copied the
# overlay and the agent.
#
#   post-build.sh TARGET_DIR
#
# VERSION MODEL COMPATIBLE CONSOLE(yes|no) VENDOR(dir), or the same with TILLWARD_
# before them, as Buildroot's make gives them.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
target=$1
version=${VERSION:-${TILLWARD_VERSION:-}}
model=${MODEL:-${TILLWARD_MODEL:-}}
compatible=${COMPATIBLE:-${TILLWARD_COMPATIBLE:-}}
console=${CONSOLE:-${TILLWARD_CONSOLE:-no}}
vendor=${VENDOR:-${TILLWARD_VENDOR:-}}
fail() {
	echo "post-build: $*" >&2
	exit 1
}
[ -n "$version" ] || fail "no VERSION"
[ -n "$model" ] || fail "no MODEL"
[ -n "$compatible" ] || fail "no COMPATIBLE"
case $version$compatible in *[!0-9A-Za-z.+~_-]*) fail "VERSION and COMPATIBLE: letters, digits and .+~_- only" ;; esac
[ -x "$target/usr/bin/tillward-agent" ] || fail "the target has no /usr/bin/tillward-agent"

# Which release this is: for people, and for the agent's minimum boot loader.
release=$target/usr/lib/os-release
mkdir -p "$target/usr/lib" "$target/etc"
cat >"$release" <<EOF
NAME="Tillward"
ID=tillward
PRETTY_NAME="Tillward $version ($model)"
VERSION_ID=$version
IMAGE_ID=$compatible
IMAGE_VERSION=$version
EOF
ln -snf ../usr/lib/os-release "$target/etc/os-release"
echo "${SOURCE_DATE_EPOCH:-0}" >"$target/etc/tillward/built"
echo tillward >"$target/etc/hostname"
printf '127.0.0.1\tlocalhost tillward\n::1\tlocalhost\n' >"$target/etc/hosts"
sed -i "s/^compatible=.*/compatible=$compatible/" "$target/etc/rauc/system.conf"

# D-Bus: only root and the agent may ask RAUC to install.
mkdir -p "$target/etc/dbus-1/system.d"
cp "$here/../../../agent/cmd/tillward-agent/system/tillward.dbus.conf" "$target/etc/dbus-1/system.d/tillward.conf"
# Nothing is started by a message: what runs is init's.
rm -rf "$target/usr/share/dbus-1/system-services"

# Mount points, and links to what is in memory.
for dir in dev proc sys run tmp var root state data mnt; do
	[ ! -L "$target/$dir" ] || rm "$target/$dir"
	mkdir -p "$target/$dir"
done
rm -rf "${target:?}/var" "${target:?}/tmp"
mkdir "$target/var" "$target/tmp"
ln -snf /run/resolv.conf "$target/etc/resolv.conf"
ln -snf /proc/self/mounts "$target/etc/mtab"
rm -f "$target/etc/machine-id" "$target/etc/fstab"
# Buildroot's own start scripts would start what init keeps already.
rm -rf "$target/etc/init.d"

# What a model's boot loader is called on the EFI partition.
case $(od -An -tx1 -j18 -N1 "$target/usr/bin/tillward-agent" | tr -d ' ') in
	3e) loader=BOOTX64 ;;
	b7) loader=BOOTAA64 ;;
	28) loader=BOOTARM ;;
	*) fail "an agent for a machine that is not known here" ;;
esac
printf '\\EFI\\BOOT\\%s.EFI\n' $loader >"$target/etc/tillward/loader"

# there NAME: whether the target has it, or a link of BusyBox by that name.
there() {
	for path in /bin /sbin /usr/bin /usr/sbin; do
		[ ! -e "$target$path/$1" ] || return 0
		case $(readlink "$target$path/$1") in */busybox | busybox) return 0 ;; esac
	done
	return 1
}

# Commands that the tree has no program for become BusyBox's. init and what ends
# it are always BusyBox's, whatever the tree has under those names.
while read -r dir commands; do
	case $dir in
		'' | '#'*) continue ;;
		!*)
			for command in $commands; do
				there "$command" || fail "the target has no $command"
			done
			;;
		=*)
			for command in $commands; do ln -snf /bin/busybox "$target${dir#=}/$command"; done
			;;
		*)
			for command in $commands; do
				there "$command" || ln -snf /bin/busybox "$target$dir/$command"
			done
			;;
	esac
done <"$here/applets"

# The vendor's folder: what the box trusts and how it is set up. No secrets.
if [ -n "$vendor" ]; then
	[ -d "$vendor" ] || fail "no vendor folder $vendor"
	if grep -rlq 'PRIVATE KEY' "$vendor"; then
		fail "there is a private key in the vendor folder: it would be in every image"
	fi
	for file in agent.toml service-roots.pem root.json seal.pub rauc-keyring.pem; do
		[ -f "$vendor/$file" ] || fail "the vendor folder has no $file (tillward-provision makes them, see docs/vendor.md)"
	done
	mkdir -p "$target/etc/tillward/nftables.d"
	for file in agent.toml service-roots.pem root.json seal.pub vendor.pub network.conf time.conf board.conf scanners; do
		[ ! -f "$vendor/$file" ] || cp "$vendor/$file" "$target/etc/tillward/$file"
	done
	for file in "$vendor"/nftables.d/*.nft; do
		[ ! -f "$file" ] || cp "$file" "$target/etc/tillward/nftables.d/"
	done
	cp "$vendor/rauc-keyring.pem" "$target/etc/rauc/keyring.pem"
fi
mkdir -p "$target/etc/tillward/nftables.d"
find "$target/etc/tillward" "$target/etc/rauc" -type d -exec chmod 755 {} +
find "$target/etc/tillward" "$target/etc/rauc" -type f -exec chmod 644 {} +

# A console is for whoever develops an image, never for one that is sold.
sed -i '/ttyS0::/d' "$target/etc/inittab"
if [ "$console" = yes ]; then
	echo "ttyS0::respawn:/bin/sh -l" >>"$target/etc/inittab"
fi
