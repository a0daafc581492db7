package catalog

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// unpack writes a tar stream below dir: plain files of a repository only.
func unpack(r io.Reader, dir string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("upload: %w: %w", fmt.Errorf(format, args...), fleet.ErrInvalid)
	}
	tr := tar.NewReader(r)
	var total int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bad("not a tar stream: %w", err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch {
		case n >= maxFiles || h.Size > maxFile || total+h.Size > maxTotal:
			return bad("more than %d files, %d bytes in one or %d in all", maxFiles, int64(maxFile), int64(maxTotal))
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg:
			return bad("%.100q is not a plain file", h.Name)
		case !fs.ValidPath(name) || !wanted(name):
			return bad("%.100q does not belong to a repository; only metadata/*.json and targets/ do", h.Name)
		}
		total += h.Size
		to := filepath.Join(dir, filepath.FromSlash(name))
		err = os.MkdirAll(filepath.Dir(to), 0o700)
		var f *os.File
		if err == nil {
			f, err = os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // #nosec G304 -- a valid path below our folder
		}
		switch {
		case errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR):
			return bad("%.100q comes twice", h.Name)
		case errors.Is(err, syscall.ENAMETOOLONG):
			return bad("%.100q is too long a name", h.Name)
		case err != nil:
			return fmt.Errorf("take in upload: %w", err)
		}
		in := &source{r: tr}
		_, err = io.CopyN(f, in, h.Size)
		err = errors.Join(err, f.Sync(), f.Close())
		switch {
		case in.err != nil:
			return bad("%s: %w", name, in.err)
		case err != nil: // a full disk, say, is not the upload's fault
			return fmt.Errorf("take in upload: %w", err)
		}
	}
}

// source remembers why it could not be read.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// metadata is what TUF calls its files, with consistent snapshots. The slash of
// a delegated role is written %2F.
var metadata = regexp.MustCompile(`^metadata/(timestamp|[0-9]{1,18}\.[A-Za-z0-9_][A-Za-z0-9_.+%-]{0,200})\.json$`)

func wanted(name string) bool {
	return metadata.MatchString(name) || strings.HasPrefix(name, "targets/")
}
