package port

import "io"

// ParseIdentity is parseIdentity, OpenError openError.
var (
	ParseIdentity = parseIdentity
	OpenError     = openError
)

// Real makes a stand-in of a USB node behave as usblp itself does.
func Real(c io.Closer) { c.(*lp).real = true }
