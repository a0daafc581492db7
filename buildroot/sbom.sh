#!/bin/sh
# Lists what an agent is made of, as CycloneDX: from the binary itself, without
# what differs from run to run.
#
#   sbom.sh CYCLONEDX_GOMOD VERSION BINARY OUT
set -eu

"$1" bin -json -licenses -std -noserial -version "$2" -output "$4.new" "$3" 2>"$4.log" || {
	cat "$4.log" >&2
	exit 1
}
# The time, and the digests of the tool as it was built here.
sed '1,/"component":/{/"timestamp":/d;/"hashes":/,/^ *\],$/d}' "$4.new" >"$4"
rm "$4.new" "$4.log"
