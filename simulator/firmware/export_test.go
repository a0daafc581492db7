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
