package firmware

import (
	"io"
	"net"
)

// ReadQMP lets tests read what QEMU says; answers come as number and error.
func ReadQMP(r io.Reader, answer func(int, error), event func(Event)) error {
	return readQMP(r, func(id int, r reply) { answer(id, r.Err) }, event)
}

// ReadObservation takes an observation from a serial line.
func ReadObservation(said string) (*Observation, error) {
	o := &Observation{PCRs: map[int][]byte{}}
	return o, o.read(said)
}

// Disk is the till's disk without a till.
type Disk struct{ d *disk }

func OpenDisk(path string) (*Disk, error) {
	d, err := openDisk(path)
	return &Disk{d}, err
}

func (d *Disk) ReadAt(b []byte, at int64) error                { return d.d.readAt(b, at) }
func (d *Disk) WriteAt(b []byte, at int64, through bool) error { return d.d.writeAt(b, at, through) }
func (d *Disk) Flush() error                                   { return d.d.flush() }
func (d *Disk) PowerOff(keep func() bool) error                { return d.d.powerOff(keep) }
func (d *Disk) CutAfter(n int64)                               { d.d.cutAfter(n) }
func (d *Disk) OnCut(f func())                                 { d.d.cut = f }
func (d *Disk) Serve(l net.Listener)                           { d.d.serve(l) }
func (d *Disk) Speak(c io.ReadWriter) error                    { return d.d.speak(c) }

var Coin = coin

// Kernel is the file of the kernel that images are made with.
func (k *Kit) Kernel() string { return k.kernel() }

// Processes are those that the machine consists of now.
func (m *Machine) Processes() (pids []int) {
	if r := m.current(); r != nil {
		pids = append(pids, r.start().qemu.PID(), r.start().tpm.PID())
	}
	return pids
}

// Users makes passwd and group of a table.
var Users = users

// Take copies a program of one tree to another, with what it needs.
func Take(from, to, name string) error {
	return assembly{from: from, to: to, done: map[string]bool{}}.take(name)
}

// Digest is the SHA-256 of a file, in hexadecimal, and its size.
var Digest = digest

// CheckVerity reads a root with the tree of hashes behind it.
func CheckVerity(f io.ReaderAt, size, blocks int64, salt, root []byte) error {
	return verity{blocks, salt, root}.check(f, size)
}
