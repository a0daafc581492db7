package swarm

// Split cuts a stream into TLS records, read in pieces that end at cut.
func Split(b []byte, cut int) []Record {
	s := splitter{up: true}
	cut = min(max(cut, 0), len(b))
	return append(s.feed(b[:cut]), s.feed(b[cut:])...)
}
