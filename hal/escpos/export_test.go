package escpos

// Decode runs a stream through the decoder and returns its units by kind, and
// how many runs of bytes meant nothing.
func Decode(stream []byte) (realtime []byte, frames [][4]byte, blocks []string, errors int) {
	var d decoder
	for _, c := range stream {
		u, ok := d.feed(c)
		if !ok {
			continue
		}
		switch u.kind {
		case realtimeAnswer:
			realtime = append(realtime, u.b)
		case frameAnswer:
			frames = append(frames, u.frame)
		case blockAnswer:
			blocks = append(blocks, u.block)
		}
	}
	return realtime, frames, blocks, d.errors
}

// ParseCounter is parseCounter.
var ParseCounter = parseCounter
