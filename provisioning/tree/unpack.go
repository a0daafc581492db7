package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Limits of a tree that is unpacked.
type Limits struct {
	Entries int   // files, folders and links; 0: 100,000
	Bytes   int64 // on the disk, in whole blocks of 4 KiB; 0: 4 GiB
}

// ErrTooLarge is returned for a tree beyond the limits.
var ErrTooLarge = errors.New("tree is too large")

// Unpack writes the tree into dir, which it makes, or which is empty. What it
// returns without an error is on the disk to stay: every file and folder was
// synced. After an error the folder holds a part, and is the caller's to
// remove. An archive that Pack would not write is ErrInvalid.
func Unpack(r io.Reader, dir string, l Limits) error {
	if l.Entries == 0 {
		l.Entries = 100_000
	}
	if l.Bytes == 0 {
		l.Bytes = 4 << 30
	}
	if err := unpack(r, dir, l); err != nil {
		return fmt.Errorf("unpack tree: %w", err)
	}
	return nil
}

func unpack(r io.Reader, dir string, l Limits) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { // #nosec G301 -- an application's user reads it
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if there, err := fs.ReadDir(root.FS(), "."); err != nil || len(there) > 0 {
		return errors.Join(err, fmt.Errorf("%s is not an empty folder: %w", dir, fs.ErrExist))
	}
	// What is read is written again as Pack would, and compared as it goes: the
	// order, the modes and the last zero are checked that way.
	e := &echo{r: r}
	u := unpacker{root: root, echo: e, in: tar.NewReader(e), out: tar.NewWriter(e), open: []string{"."}, left: l, buf: make([]byte, 32<<10)}
	for {
		h, err := u.in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return e.blame(err)
		}
		if err := u.entry(h); err != nil {
			return fmt.Errorf("%.80q: %w", h.Name, err)
		}
	}
	if err := u.out.Close(); err != nil {
		return e.blame(err)
	}
	if n, _ := io.ReadFull(e, make([]byte, 1)); n != 0 || e.err != nil || e.seen.Len() != 0 {
		return e.blame(errors.New("something follows the end"))
	}
	if err := u.close(""); err != nil {
		return err
	}
	above, err := os.Open(filepath.Dir(filepath.Clean(dir)))
	if err != nil {
		return err
	}
	return errors.Join(above.Sync(), above.Close())
}

// unpacker writes one entry after the other.
type unpacker struct {
	root *os.Root
	echo *echo
	in   *tar.Reader
	out  *tar.Writer
	open []string // folders that lead to the last entry, the tree itself first
	last string   // name of the last entry
	left Limits
	buf  []byte
}

func (u *unpacker) entry(h *tar.Header) error {
	name := strings.TrimSuffix(h.Name, "/")
	var mode fs.FileMode
	switch h.Typeflag {
	case tar.TypeReg:
		mode = fs.FileMode(h.Mode) & 0o100 // #nosec G115 -- one bit is looked at
	case tar.TypeDir:
		mode = fs.ModeDir
	case tar.TypeSymlink:
		mode = fs.ModeSymlink
	default:
		return fmt.Errorf("entry of type %q: %w", h.Typeflag, ErrInvalid)
	}
	want, err := header(name, mode, h.Size, h.Linkname)
	if err != nil {
		return err
	}
	if err := u.out.WriteHeader(want); err != nil {
		return u.echo.blame(err)
	}
	if u.last != "" && !before(u.last, name) {
		return fmt.Errorf("comes after %.80q, which is out of order: %w", u.last, ErrInvalid)
	}
	u.last = name
	u.left.Entries--
	u.left.Bytes -= blocks(want)
	if u.left.Entries < 0 || u.left.Bytes < 0 {
		return ErrTooLarge
	}
	if err := u.close(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		u.open = append(u.open, name)
		return errors.Join(u.root.Mkdir(name, 0o755), u.root.Chmod(name, 0o755))
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, name)
	default:
		return u.file(name, want)
	}
}

func (u *unpacker) file(name string, h *tar.Header) error {
	mode := fs.FileMode(h.Mode) // #nosec G115 -- 0644 or 0755
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	for err == nil {
		var n int
		n, err = u.in.Read(u.buf)
		if _, werr := f.Write(u.buf[:n]); werr != nil {
			return errors.Join(werr, f.Close())
		}
		if _, werr := u.out.Write(u.buf[:n]); werr != nil {
			return errors.Join(u.echo.blame(werr), f.Close())
		}
	}
	if !errors.Is(err, io.EOF) {
		return errors.Join(u.echo.blame(err), f.Close())
	}
	return errors.Join(f.Chmod(mode), f.Sync(), f.Close())
}

// close syncs the folders that are complete now that something in parent comes;
// all of them when parent is empty. A parent that is not open was never there.
func (u *unpacker) close(parent string) error {
	for len(u.open) > 0 {
		dir := u.open[len(u.open)-1]
		if dir == parent {
			return nil
		}
		f, err := u.root.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		u.open = u.open[:len(u.open)-1]
	}
	if parent == "" {
		return nil
	}
	return fmt.Errorf("folder %.80q is missing: %w", parent, ErrInvalid)
}

// before reports whether a walk comes by a first.
func before(a, b string) bool {
	// The separator sorts before all other characters: "a/b" comes before "a.b",
	// as a walk goes into a folder before it goes on.
	return strings.ReplaceAll(a, "/", "\x00") < strings.ReplaceAll(b, "/", "\x00")
}

// echo compares what is written with what has been read. Its memory is what was
// read and not yet written: a header or a piece of a file.
type echo struct {
	r    io.Reader
	err  error // of r, if not io.EOF
	seen bytes.Buffer
}

// Read implements io.Reader.
func (e *echo) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	e.seen.Write(b[:n])
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

// Write implements io.Writer.
func (e *echo) Write(b []byte) (int, error) {
	if !bytes.Equal(e.seen.Next(len(b)), b) {
		return 0, fmt.Errorf("is not written as it must be: %w", ErrInvalid)
	}
	return len(b), nil
}

// blame makes an error of the archive ErrInvalid, unless it could not be read.
func (e *echo) blame(err error) error {
	switch {
	case e.err != nil:
		return e.err
	case errors.Is(err, ErrInvalid):
		return err
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}
