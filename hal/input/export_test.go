package input

// RecordSize is the size of one record of the kernel.
const RecordSize = recordSize

// Take counts one piece after the other, and tells all that is remembered.
func Take(pieces ...[]byte) (scans, errors int, kept any) {
	c := counter{end: isEnter}
	for _, p := range pieces {
		s, e := c.take(p)
		scans, errors = scans+s, errors+e
	}
	return scans, errors, struct{ some, lost bool }{c.some, c.lost}
}

// HasEnter says whether a bitmap of sysfs has the Enter key.
func HasEnter(bitmap string) bool { return hasKey(bitmap, isEnter) }

// HeldBelow is Held below another root, with another way to look.
var HeldBelow = held
