package port

import "io"

// ParseIdentity is parseIdentity, OpenError openError.
var (
	ParseIdentity = parseIdentity
	OpenError     = openError
)

// Same reports whether all that is told is the same.
func Same(a, b Found) bool {
	a.plugged, b.plugged = "", ""
	return a == b
}

// Real makes a stand-in of a USB node behave as usblp itself does.
func Real(c io.Closer) { c.(*lp).real = true }

// Hear takes in how much a device says, and takes its time.
func Hear() func(n int) { return new(calm).heard }
