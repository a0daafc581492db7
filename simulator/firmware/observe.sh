#!/bin/busybox sh
# The only program of the observer: it tells over the serial line what the
# firmware measured at this boot.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t securityfs securityfs /sys/kernel/security
$b mount -t devtmpfs devtmpfs /dev
exec >/dev/ttyS0
$b stty -onlcr </dev/ttyS0
echo "OBSERVE LOG"
$b base64 /sys/kernel/security/tpm0/binary_bios_measurements
echo "OBSERVE PCRS"
for pcr in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
	echo "$pcr $($b cat /sys/class/tpm/tpm0/pcr-sha256/$pcr)"
done
echo "OBSERVE END"
$b poweroff -f
