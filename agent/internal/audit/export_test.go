package audit

import "log/slog"

// Marked is the entry that the mark in a file is about.
func Marked(file string) uint64 {
	var m mark
	m.load(file, slog.New(slog.DiscardHandler))
	return m.Seq
}

// ParseMark reads a mark and writes it again.
func ParseMark(b []byte, file string) (seq uint64, err error) {
	m, err := parseMark(b)
	if err != nil {
		return 0, err
	}
	return m.Seq, m.save(file)
}
