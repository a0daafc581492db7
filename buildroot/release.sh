#!/bin/sh
# Makes the source tarball of a version, with all Go modules in it, and the file
# of its hash where Buildroot looks for it:
#
#   release.sh VERSION OUT -> OUT/tillward-VERSION.tar.gz
#                             OUT/tillward-agent/tillward-agent.hash
#
# It holds what was committed, and the same commit gives the same bytes.
set -eu
export LC_ALL=C TZ=UTC

here=$(cd "$(dirname "$0")/.." && pwd)
version=$1 out=$2
case $version in
	*-dirty)
		echo "release: there are changes that are not committed" >&2
		exit 1
		;;
esac
mkdir -p "$out/tillward-agent"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=tillward-$version
"$here/buildroot/source.sh" "$work/$name" HEAD
when=$(git -C "$here" log -1 --format=%ct)
tar -C "$work" --sort=name --format=ustar --mtime="@$when" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
	-c "$name" | gzip -9n >"$out/$name.tar.gz"
(cd "$out" && printf '# Made with the tarball\nsha256  %s  %s\n' "$(sha256sum "$name.tar.gz" | cut -c 1-64)" "$name.tar.gz" \
	>tillward-agent/tillward-agent.hash)
echo "$out/$name.tar.gz"
