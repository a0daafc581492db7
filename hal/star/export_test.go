package star

import "github.com/tillward/tillward/hal"

// Unit is one thing that Decode has found.
type Unit struct {
	Frame   []byte
	Version string
	Flow    bool
}

// Decode runs a stream through the decoder, and returns also how many runs of
// bytes meant nothing.
func Decode(stream []byte) (units []Unit, errors int) {
	var d decoder
	for _, c := range stream {
		for _, u := range d.feed(c) {
			units = append(units, Unit{u.frame, u.version, u.kind == goUnit || u.kind == holdUnit})
		}
	}
	return units, d.errors
}

// Look reads a frame in UnifiedPOS words, with the counter of ETB.
func Look(frame []byte) (hal.Power, map[string]hal.Tri, int) {
	r := readFrame(frame)
	power, sensors := r.look(true)
	return power, sensors, r.etb
}

// Pass runs a job through the filter in pieces of n bytes.
func Pass(job []byte, n int) (out []byte, lines, cuts, kicks, dots int, asked [][]byte) {
	f := filter{asked: func(cmd []byte) { asked = append(asked, cmd) }}
	for len(job) > 0 {
		k := min(n, len(job))
		out = append(out, f.pass(job[:k])...)
		job = job[k:]
	}
	return append(out, f.held...), f.lines, f.cuts, f.kicks, f.dots, asked
}

// ReadPoll reads what a printer that polls tells; ok is whether it is a poll.
func ReadPoll(b []byte) (power hal.Power, sensors map[string]hal.Tri, inputs int, ok bool) {
	p, err := readPoll(b)
	if err != nil {
		return "", nil, 0, false
	}
	power, sensors = p.look(true)
	return power, sensors, p.inputs(), true
}
