#!/bin/sh
# How a box will boot an image that nobody has booted yet: the boot reference of
# the image, and the log of each way to it, which the sealing key approves.
#
# In: OUT VERSION MODEL BASE_LOG BASE_UKI PROVISION [BASE_CHAINS] [RELEASE]
# Out, in OUT beside uki.efi: boot.json predicted.log and predicted-NAME.log
# BASE_CHAINS: NAME=LOG, more ways in which the firmware of the model comes to
# the image, see docs/boot-references.md. RELEASE: as the repository calls it.
set -eu
export LC_ALL=C

: "${OUT:?}" "${VERSION:?}" "${MODEL:?}" "${BASE_LOG:?}" "${BASE_UKI:?}" "${PROVISION:=tillward-provision}"
predict() { # LOG PREDICTED FURTHER...
	log=$1 predicted=$2
	shift 2
	"$PROVISION" boot predict --log "$log" --was "$BASE_UKI" --uki "$OUT/uki.efi" --out "$OUT/boot.json" --predicted "$OUT/$predicted" "$@" >/dev/null
}
# told TEXT: whether the firmware measured that it did so with an entry of its boot menu.
told() { grep -qaF "$1 EFI Application from Boot Option" "$BASE_LOG"; }

rm -f "$OUT/boot.json" "$OUT"/predicted*.log
folder=$(printf %s "$MODEL" | tr -c 'A-Za-z0-9._+-' _)
predict "$BASE_LOG" predicted.log --model "$MODEL" --release "${RELEASE:-os/$folder/prod/$VERSION}"

# The other slot may hold nothing that can be loaded: a new box, or one that was
# cut off while it was written to. The firmware then starts this one in the same
# breath, and its log tells of both. Where it measures no boot menu, or had tried
# an entry in vain on the way to the observed boot, that cannot be foretold.
if told Calling && ! told Returning\ from; then
	predict "$BASE_LOG" predicted-failed-1.log --failed 1 --from "$OUT/boot.json" --chain failed-1
else
	echo "predict: no reference of a boot after an entry that failed: the observed log does not have one entry of the boot menu" >&2
fi
for chain in ${BASE_CHAINS:-}; do
	predict "${chain#*=}" "predicted-${chain%%=*}.log" --from "$OUT/boot.json" --chain "${chain%%=*}"
done
