// Package tree turns a folder into a tar archive and back, so that the same
// folder is always the same bytes: an application that is installed on a box
// can be packed again to prove that the disk holds what was released, and to
// serve as the seed of the next download.
//
// A tree holds files, folders and relative symbolic links that stay inside it,
// in the order of their names. Of their modes only "may be executed" is kept,
// of times and owners nothing. Unpack accepts nothing but what Pack writes, to
// the byte, so Pack(Unpack(x)) is x. It knows no signature: what is unpacked
// has been verified before.
package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ErrInvalid is returned for what cannot be, or is not, a tree of ours.
var ErrInvalid = errors.New("not a plain tree of files, folders and inner links")

const (
	maxName  = 1024 // bytes of a path inside the tree
	maxDepth = 64   // folders
	block    = 4096 // what a file takes on a disk is a multiple
)

// Pack writes the folder as a tree. A device, a link that leads out, or a name
// that is not plain text is ErrInvalid.
func Pack(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("pack tree: %w", err)
	}
	defer root.Close()
	tw := tar.NewWriter(w)
	err = walk(root, func(h *tar.Header) error {
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		f, err := root.Open(h.Name)
		if err != nil {
			return err
		}
		defer f.Close()
		// A file that grew is cut where it ended; one that shrank is an error of the writer.
		_, err = io.CopyN(tw, f, h.Size)
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return fmt.Errorf("pack tree: %w", err)
	}
	return nil
}

// Size returns what the folder takes on a disk, in whole blocks of 4 KiB.
func Size(dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, fmt.Errorf("size of tree: %w", err)
	}
	defer root.Close()
	var n int64
	err = walk(root, func(h *tar.Header) error {
		n += blocks(h)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("size of tree: %w", err)
	}
	return n, nil
}

// blocks is what one entry takes on a disk.
func blocks(h *tar.Header) int64 {
	if h.Typeflag == tar.TypeReg {
		return (h.Size + block - 1) / block * block
	}
	return block
}

// walk hands over the header of everything below root, folders before what is
// in them, by name.
func walk(root *os.Root, f func(*tar.Header) error) error {
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		switch {
		case fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 && !fi.IsDir():
			return fmt.Errorf("%s: setuid, setgid and sticky bits cannot be shipped, remove them: %w", name, ErrInvalid)
		case fi.Mode()&fs.ModeSymlink != 0:
			if link, err = root.Readlink(name); err != nil {
				return err
			}
		case !fi.IsDir() && !fi.Mode().IsRegular():
			return fmt.Errorf("%s: %s cannot be shipped: %w", name, fi.Mode().Type(), ErrInvalid)
		}
		h, err := header(name, fi.Mode(), fi.Size(), link)
		if err != nil {
			return err
		}
		return f(h)
	})
}

// header is the one way to write an entry.
func header(name string, mode fs.FileMode, size int64, link string) (*tar.Header, error) {
	if err := plain(name); err != nil {
		return nil, err
	}
	h := &tar.Header{Name: name, ModTime: time.Unix(0, 0)}
	switch {
	case mode.IsDir():
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, name+"/", 0o755
	case mode&fs.ModeSymlink != 0:
		if err := inner(name, link); err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, link, 0o777
	default:
		h.Typeflag, h.Size, h.Mode = tar.TypeReg, size, 0o644
		if mode&0o100 != 0 {
			h.Mode = 0o755
		}
	}
	return h, nil
}

// plain refuses names that a person could not read or a shell could trip over.
func plain(name string) error {
	switch {
	case !fs.ValidPath(name) || name == "." || !filepath.IsLocal(filepath.FromSlash(name)):
		return fmt.Errorf("name %.80q leads elsewhere: %w", name, ErrInvalid)
	case len(name) > maxName || strings.Count(name, "/") >= maxDepth:
		return fmt.Errorf("name %.80q is too long or too deep: %w", name, ErrInvalid)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("name %.80q is not plain text: %w", name, ErrInvalid)
	}
	return nil
}

// inner refuses links that lead out of the tree. A link must be in its shortest
// form: ".." after the name of another link would be counted from where that
// one leads.
func inner(name, link string) error {
	to := path.Join(path.Dir(name), link)
	switch {
	case link == "" || path.IsAbs(link) || to == ".." || strings.HasPrefix(to, "../"):
		return fmt.Errorf("link %s -> %.80q leads out of the tree: %w", name, link, ErrInvalid)
	case path.Clean(link) != link:
		return fmt.Errorf("link %s -> %.80q: write it as %q: %w", name, link, path.Clean(link), ErrInvalid)
	case len(link) > maxName || !utf8.ValidString(link) || strings.ContainsFunc(link, unicode.IsControl):
		return fmt.Errorf("link %s -> %.80q is not plain text: %w", name, link, ErrInvalid)
	}
	return nil
}
