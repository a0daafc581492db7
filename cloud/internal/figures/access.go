package figures

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	logQueue = 4096 // lines that wait for the disk
	flushing = time.Second
)

// Line is one request in the access log. It holds no path, query, header or
// body.
type Line struct {
	At     time.Time
	Part   string
	Who    string // name of the token or id of the device; empty: nobody we know
	Route  string // pattern
	Status int
	Bytes  int64
	Took   time.Duration
	Remote string
}

type lineJSON struct {
	Time   string  `json:"time"`
	Part   string  `json:"part"`
	Who    string  `json:"who,omitempty"`
	Route  string  `json:"route"`
	Status int     `json:"status"`
	Bytes  int64   `json:"bytes"`
	MS     float64 `json:"ms"`
	Remote string  `json:"remote"`
}

// Log is the access log: JSON, a line for each request, in a file that is begun
// anew when it is full. A nil Log writes nothing.
type Log struct {
	path string
	max  int64 // bytes of a file
	keep int   // older ones
	log  *slog.Logger

	lines   chan Line
	dropped atomic.Uint64 // since the start
	told    uint64        // dropped lines that the file tells of

	f    *os.File
	size int64
}

// OpenLog opens or makes the file at path. It is begun anew at so many MiB, and
// keep older ones stay.
func OpenLog(path string, maxMiB, keep int, log *slog.Logger) (*Log, error) {
	l := &Log{path: path, max: int64(maxMiB) << 20, keep: keep, log: log, lines: make(chan Line, logQueue)}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) // #nosec G304 -- the operator names the file
	if err != nil {
		return fmt.Errorf("access log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("access log: %w", err), f.Close())
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write hands a line over. It never waits: a line that finds no room is
// dropped, counted, and the file says how many were.
func (l *Log) Write(line Line) {
	if l == nil {
		return
	}
	select {
	case l.lines <- line:
	default:
		l.dropped.Add(1)
	}
}

// Dropped is how many lines found no room since the start.
func (l *Log) Dropped() uint64 {
	if l == nil {
		return 0
	}
	return l.dropped.Load()
}

// Run writes until ctx ends, and then what waits.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	buf := make([]byte, 0, 64<<10)
	tick := time.NewTicker(flushing)
	defer tick.Stop()
	defer func() { _ = l.f.Close() }()
	failed := false
	out := func() {
		if n := l.dropped.Load(); n > l.told {
			buf = fmt.Appendf(buf, `{"time":%q,"dropped":%d}`+"\n", time.Now().UTC().Format(time.RFC3339Nano), n-l.told)
			l.told = n
		}
		if len(buf) == 0 {
			return
		}
		err := l.put(buf)
		buf = buf[:0]
		if err != nil && !failed {
			l.log.Error("access log", slog.Any("err", err))
		}
		failed = err != nil
	}
	for {
		select {
		case <-ctx.Done():
			for {
				select {
				case line := <-l.lines:
					buf = line.append(buf)
					continue
				default:
				}
				break
			}
			out()
			return nil
		case line := <-l.lines:
			if buf = line.append(buf); len(buf) >= 32<<10 {
				out()
			}
		case <-tick.C:
			out()
		}
	}
}

// put writes whole lines or none, into a new file when this one is full.
func (l *Log) put(b []byte) (err error) {
	defer func() {
		if err != nil {
			l.dropped.Add(uint64(bytes.Count(b, []byte("\n")))) // #nosec G115 -- a count
		}
	}()
	if l.size > 0 && l.size+int64(len(b)) > l.max {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if _, err := l.f.Write(b); err != nil {
		return errors.Join(fmt.Errorf("write: %w", err), l.f.Truncate(l.size)) // half a line would spoil the next one
	}
	l.size += int64(len(b))
	return nil
}

// rotate makes path path.1, path.1 path.2 and so on, and the last go.
func (l *Log) rotate() error {
	name := func(n int) string { return l.path + "." + strconv.Itoa(n) }
	if l.keep == 0 {
		l.size = 0
		if err := l.f.Truncate(0); err != nil {
			return fmt.Errorf("begin anew: %w", err)
		}
		return nil
	}
	// What follows it is there before any makes room: older ones do not go for a file that cannot be made.
	next := l.path + ".next"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600) // #nosec G304 -- beside the operator's file
	if err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	for n := l.keep; n > 1; n-- {
		if err := os.Rename(name(n-1), name(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("put away: %w", err), f.Close())
		}
	}
	if err := os.Rename(l.path, name(1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("put away: %w", err), f.Close())
	}
	if err := os.Rename(next, l.path); err != nil {
		return errors.Join(fmt.Errorf("begin anew: %w", err), f.Close())
	}
	old := l.f
	l.f, l.size = f, 0
	return old.Close()
}

func (l Line) append(b []byte) []byte {
	j, err := json.Marshal(lineJSON{
		Time: l.At.UTC().Format(time.RFC3339Nano), Part: l.Part, Who: l.Who, Route: l.Route, Status: l.Status, Bytes: l.Bytes,
		MS: float64(l.Took.Microseconds()) / 1000, Remote: l.Remote,
	})
	if err != nil {
		return b // only texts and numbers come here
	}
	return append(append(b, j...), '\n')
}
