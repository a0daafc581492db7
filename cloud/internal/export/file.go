package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/tillward/tillward/provisioning/durable"
)

// fileOut appends lines to a file that only its user can read, and begins
// another when it is full: path.1 is the one before, path.2 the one before that.
type fileOut struct {
	path string
	max  int64
	keep int

	mu   sync.Mutex // a test comes beside the road
	f    *os.File
	size int64
}

func newFile(s Sink) *fileOut {
	o := &fileOut{path: s.Path, max: int64(s.MaxMB) << 20, keep: s.Keep}
	if o.max == 0 {
		o.max = 100 << 20
	}
	if o.keep == 0 {
		o.keep = 10
	}
	return o
}

// open opens the file behind its last whole line: half a line is of a write
// that a power cut tore, and is written again.
func (o *fileOut) open() error {
	f, err := os.OpenFile(o.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	size, err := wholeLines(f)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o.f, o.size = f, size
	return durable.SyncDir(filepath.Dir(o.path))
}

// wholeLines is where the last line that has an end ends.
func wholeLines(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, maxLine+1)
	for end > 0 {
		from := max(end-int64(len(buf)), 0)
		part := buf[:end-from]
		if _, err := f.ReadAt(part, from); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		end = from
	}
	return 0, nil
}

func (o *fileOut) send(_ context.Context, lines []line) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(lines) > 0 {
		if o.f != nil && o.size >= o.max {
			if err := o.rotate(); err != nil {
				return err
			}
		}
		if o.f == nil {
			if err := o.open(); err != nil {
				return err
			}
			if o.size >= o.max {
				continue
			}
		}
		var buf []byte
		n := 0
		for n < len(lines) && (n == 0 || o.size+int64(len(buf)) < o.max) {
			buf = append(append(buf, lines[n].b...), '\n')
			n++
		}
		if _, err := o.f.Write(buf); err != nil {
			return err
		}
		o.size += int64(len(buf))
		lines = lines[n:]
	}
	return nil
}

func (o *fileOut) rotate() error {
	err := errors.Join(o.f.Sync(), o.f.Close())
	o.f = nil
	if err != nil {
		return err
	}
	name := func(i int) string { return o.path + "." + strconv.Itoa(i) }
	for i := o.keep - 1; i >= 1; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate: %w", err)
		}
	}
	if err := os.Rename(o.path, name(1)); err != nil {
		return fmt.Errorf("rotate: %w", err)
	}
	return durable.SyncDir(filepath.Dir(o.path))
}

func (o *fileOut) confirm(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.f == nil {
		return nil
	}
	return o.f.Sync()
}

func (o *fileOut) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.f != nil {
		_ = o.f.Close() // what was not confirmed is written again
		o.f = nil
	}
}
