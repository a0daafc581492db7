package spool_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A disk that loses what was not synced: the calls of a process on its files, as
// strace saw them, and what may be left of them when the power goes.

const sector = 512

// call is one of them. What the process says on its standard output is among
// them, in order.
type call struct {
	name, path, to string
	off            int64 // of a write; the new length of a truncation
	data           []byte
	said           string
}

const traced = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mmap"

// record runs a command and returns its calls on what lies in dir.
func record(t *testing.T, dir string, cmd *exec.Cmd) (calls []call) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("the power cannot be cut: install strace")
	}
	out := filepath.Join(t.TempDir(), "calls")
	cmd.Args = append([]string{strace, "-f", "-qq", "-xx", "-y", "-s", "1000000", "--seccomp-bpf", "-e", "signal=none", "-e", "trace=" + traced, "-o", out}, cmd.Args...)
	cmd.Path = strace
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begun := map[string]string{} // by thread
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		thread, line, _ := strings.Cut(lines.Text(), " ")
		line = strings.TrimSpace(line)
		if head, ok := strings.CutSuffix(line, " <unfinished ...>"); ok {
			begun[thread] = head
			continue
		}
		if strings.HasPrefix(line, "<... ") {
			_, rest, _ := strings.Cut(line, " resumed>")
			line = begun[thread] + rest
		}
		if c, ok := parseCall(t, dir, line); ok {
			calls = append(calls, c)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return calls
}

func parseCall(t *testing.T, dir, line string) (c call, ok bool) {
	t.Helper()
	name, rest, ok := strings.Cut(line, "(")
	end := strings.LastIndex(rest, ")")
	if !ok || end < 0 {
		return c, false // it has not come back, or it is no call
	}
	_, result, _ := strings.Cut(rest[end:], "= ")
	if result == "" || result[0] == '-' || result[0] == '?' {
		return c, false // it failed, or is made again
	}
	args := strings.Split(rest[:end], ", ")
	text := func(s string) string {
		b, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(s, `"`), `\x`, ""))
		if err != nil {
			t.Fatalf("cannot read %.100q of %.100q", s, line)
		}
		return string(b)
	}
	file := func(s string) string { // of 5</path>
		_, s, _ = strings.Cut(strings.TrimSuffix(s, ">"), "<")
		if !strings.HasPrefix(s, `\x2f`) {
			return ""
		}
		return text(s)
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("cannot read %.100q of %.100q", s, line)
		}
		return n
	}
	c.name = name
	switch name {
	case "openat":
		c.path = text(args[1])
		if strings.Contains(args[2], "O_TRUNC") {
			c.name = "truncate"
		} else if !strings.Contains(args[2], "O_CREAT") {
			return c, false
		}
	case "write":
		if strings.HasPrefix(args[0], "1<") {
			return call{name: "says", said: strings.TrimSpace(text(args[1]))}, true
		}
		c.path = file(args[0])
	case "pwrite64":
		c.path, c.data, c.off = file(args[0]), []byte(text(args[1])), number(args[3])
	case "ftruncate":
		c.name, c.path, c.off = "truncate", file(args[0]), number(args[1])
	case "fsync", "fdatasync":
		c.name, c.path = "sync", file(args[0])
	case "unlink":
		c.path = text(args[0])
	case "unlinkat":
		c.name, c.path = "unlink", text(args[1])
	case "rename":
		c.path, c.to = text(args[0]), text(args[1])
	case "renameat", "renameat2":
		c.name, c.path, c.to = "rename", text(args[1]), text(args[3])
	case "mmap":
		if len(args) < 5 || !strings.Contains(args[3], "MAP_SHARED") {
			return c, false
		}
		c.path = file(args[4])
	default:
		if at := strings.Index(rest, hexOf(dir)); at >= 0 {
			c.path = text(strings.FieldsFunc(rest[at:], func(r rune) bool { return r == '>' || r == '"' })[0])
		}
	}
	if c.path != dir && !strings.HasPrefix(c.path, dir+"/") || strings.HasSuffix(c.path, "-shm") || strings.HasSuffix(c.path, ".reserve") {
		return c, false // elsewhere, or memory that is shared, or nothing to be read again
	}
	switch c.name {
	case "openat", "pwrite64", "truncate", "sync", "unlink", "rename":
		return c, true
	}
	t.Fatalf("%s on %s: the disk of this test knows it not", name, c.path)
	return c, false
}

func hexOf(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, `\x%02x`, s[i])
	}
	return b.String()
}

// inode is a file: what is safe of it, and the writes and truncations that are not.
type inode struct {
	safe    []byte
	pending []call
}

// disk is a folder on it. Names change in order, as on a file system with a
// journal; what is written to a file does not.
type disk struct {
	safe, now map[string]*inode
	names     []change // that are not safe
	lies      bool     // it says that it has synced, and has not
}

// change of a name.
type change struct {
	call
	made *inode
}

func (c change) to(names map[string]*inode) {
	switch c.name {
	case "openat":
		names[c.path] = c.made
	case "unlink":
		delete(names, c.path)
	case "rename":
		names[c.call.to] = names[c.path]
		delete(names, c.path)
	}
}

func newDisk(t *testing.T, dir string) *disk {
	t.Helper()
	d := &disk{safe: map[string]*inode{}, now: map[string]*inode{}}
	names, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		d.safe[n] = &inode{safe: b}
		d.now[n] = d.safe[n]
	}
	return d
}

// clone is a disk that holds the same, on which nothing has happened yet.
func (d *disk) clone() *disk {
	c := &disk{safe: map[string]*inode{}, now: map[string]*inode{}}
	for n, f := range d.safe {
		c.safe[n] = &inode{safe: bytes.Clone(f.safe)}
		c.now[n] = c.safe[n]
	}
	return c
}

func (d *disk) rename(c change) {
	c.to(d.now)
	d.names = append(d.names, c)
}

// do lets a call happen.
func (d *disk) do(t *testing.T, c call) {
	t.Helper()
	f := d.now[c.path]
	if f == nil && (c.name == "openat" || c.name == "truncate") {
		f = new(inode)
		d.rename(change{call{name: "openat", path: c.path}, f})
	}
	switch c.name {
	case "pwrite64", "truncate":
		if f == nil {
			t.Fatalf("%s on %s, which is not there", c.name, c.path)
		}
		f.pending = append(f.pending, c)
	case "unlink", "rename":
		d.rename(change{c, nil})
	case "sync":
		if d.lies {
			return
		}
		n := len(d.names) // of a folder: all
		if f != nil {
			for _, p := range f.pending {
				f.safe = apply(f.safe, p, nil)
			}
			f.pending = nil
			// A file that was made is there once it is synced.
			n = slices.IndexFunc(d.names, func(c change) bool { return c.made == f }) + 1
		}
		for _, c := range d.names[:n] {
			c.to(d.safe)
		}
		d.names = d.names[n:]
	}
}

// apply writes to a file; torn tells which sectors arrive, nil: all.
func apply(b []byte, c call, torn func() bool) []byte {
	if c.name == "truncate" {
		if c.off <= int64(len(b)) {
			return b[:c.off:c.off]
		}
		return append(slices.Clip(b), make([]byte, c.off-int64(len(b)))...)
	}
	for begin := c.off; begin < c.off+int64(len(c.data)); {
		end := min((begin/sector+1)*sector, c.off+int64(len(c.data)))
		if torn == nil || torn() {
			if end > int64(len(b)) {
				b = append(b, make([]byte, end-int64(len(b)))...)
			}
			copy(b[begin:end], c.data[begin-c.off:end-c.off])
		}
		begin = end
	}
	return b
}

// cut writes to a folder what is left when the power goes now: what is safe, and
// of the rest a part that r draws.
func (d *disk) cut(t *testing.T, from, to string, r *rand.Rand) {
	t.Helper()
	names := maps.Clone(d.safe)
	for _, c := range d.names[:r.IntN(len(d.names)+1)] {
		c.to(names)
	}
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for n, f := range names {
		if f == nil {
			continue
		}
		b := bytes.Clone(f.safe)
		how := r.IntN(5)
		until := r.IntN(len(f.pending) + 1)
		for i, p := range f.pending {
			switch {
			case how == 0, how == 1 && i >= until: // nothing, or all up to one
			case how == 2, how == 1: // all
				b = apply(b, p, nil)
			case how == 3: // some
				if r.IntN(2) == 0 {
					b = apply(b, p, nil)
				}
			default: // parts of some
				if p.name != "truncate" || r.IntN(2) == 0 {
					b = apply(b, p, func() bool { return r.IntN(3) > 0 })
				}
			}
		}
		if err := os.WriteFile(to+strings.TrimPrefix(n, from), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
