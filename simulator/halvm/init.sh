#!/bin/busybox sh
# The first and only program of the lane's machine. The kernel's words go to
# the first serial line, what is of interest to the second.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
ip link set lo up
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty -onlcr -echo
export HOME=/tmp PATH=/bin
for module in $(cat /modules.list); do
	arguments=
	[ "$module" = dummy_hcd ] && arguments=num=2
	[ "$module" = i2c_stub ] && arguments=chip_addr=0x48
	insmod "/modules/$module.ko" $arguments || echo "HALVM MODULE $module"
done
mount -t configfs configfs /sys/kernel/config
if grep -q halvm.shell /proc/cmdline; then
	stty sane
	echo "The tests are /lane.test -test.v -test.run NAME; poweroff -f ends the machine."
	setsid -c sh
else
	for suite in $(cat /suites.list); do
		echo "HALVM BEGIN $suite"
		/lane.test -test.v -test.timeout 10m -test.run "^Test$suite\$"
		echo "HALVM END $suite $?"
	done
	echo "HALVM DONE"
fi
poweroff -f
