package firmware

import "io"

// ReadQMP lets tests read what QEMU says; answers come as number and error.
func ReadQMP(r io.Reader, answer func(int, error), event func(Event)) error {
	return readQMP(r, func(id int, r reply) { answer(id, r.Err) }, event)
}

// ReadObservation takes an observation from a serial line.
func ReadObservation(said string) (*Observation, error) {
	o := &Observation{PCRs: map[int][]byte{}}
	return o, o.read(said)
}
