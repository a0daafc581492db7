package guest

import (
	"fmt"
	"io"
	"os"
	"slices"
)

// Initrd writes an archive of the kind that the kernel unpacks [Linux,
// driver-api/early-userspace/buffer-format]. The first error stays and is
// returned by Close.
type Initrd struct {
	w   io.Writer
	n   int // files so far
	err error
}

// NewInitrd begins an archive.
func NewInitrd(w io.Writer) *Initrd { return &Initrd{w: w} }

// Add adds a file, or with the mode of one a folder. Its folders come first.
func (a *Initrd) Add(name string, mode uint32, data []byte) {
	a.n++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	a.write(data)
}

// write pads to four bytes.
func (a *Initrd) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(append(slices.Clip(b), make([]byte, -len(b)&3)...))
	}
}

// Copy adds a program that lies in a file.
func (a *Initrd) Copy(name, from string) {
	b, err := os.ReadFile(from) // #nosec G304 -- what we built, or Debian's
	if err != nil && a.err == nil {
		a.err = err
	}
	a.Add(name, 0o100755, b)
}

// Close ends the archive, not what it is written to.
func (a *Initrd) Close() error {
	a.Add("TRAILER!!!", 0, nil)
	return a.err
}
