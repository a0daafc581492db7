#!/bin/sh
# Makes a copy of this repository with the Go modules that it needs: what
# Buildroot builds the agent from, since it lets no build fetch anything.
# A folder vendor/ in the repository itself would change every build of it.
#
#   source.sh DIR            what lies here, changes and all
#   source.sh DIR COMMIT     what was committed
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
dir=$1 commit=${2:-}
case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
mkdir -p "$dir"
new=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$new"' EXIT

cd "$here"
if [ -n "$commit" ]; then
	git archive "$commit" | tar -x -C "$new"
elif git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
	git ls-files -z --cached --others --exclude-standard | rsync -rlp --from0 --files-from=- --ignore-missing-args . "$new/"
else
	# A release tarball, unpacked: there is no git to ask.
	rsync -rlp --exclude=/.cache --exclude=/bin --exclude=/dist --exclude=node_modules ./ "$new/"
fi
if [ ! -f "$new/vendor/modules.txt" ]; then
	(cd "$new" && GOFLAGS='' GOWORK=off go mod vendor)
fi

# Files that did not change keep their time, so that a second build is a short one.
rsync -rlp --checksum --delete "$new/" "$dir/"
