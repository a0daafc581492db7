// Package boardtest tries those parts of the firmware's overlay that need no
// machine: the parsers of what a stick and a DHCP server say, run by the shell
// as on the box. The rest is shown in an emulated till, see simulator/firmware.
package boardtest
