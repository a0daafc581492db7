package tree_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/tillward/tillward/provisioning/tree"
)

// app makes a small application: "a/" before "a.txt" before "ab", a name too
// long for the plain tar header, one beyond ASCII, an empty file and folder.
func app(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a/z":              "last",
		"a/b/c":            "deep",
		"a.txt":            "text",
		"ab":               "",
		"bin/check":        "#!/bin/sh\n",
		"größe/日本語.txt":    "utf-8",
		"lib/" + long(200): strings.Repeat("x", 5000),
	} {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Mkdir(filepath.Join(dir, "empty"), 0o711), os.Chmod(filepath.Join(dir, "bin/check"), 0o710),
		os.Symlink("../a/b/c", filepath.Join(dir, "bin", "link")), os.Symlink("nothing-yet", filepath.Join(dir, "dangling")))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func long(n int) string { return strings.Repeat("n", n) }

func pack(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tree.Pack(&b, dir); err != nil {
		t.Fatalf("pack: %v", err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	first := pack(t, app(t))
	// The bytes are a promise: a box packs what a release tool of another year packed.
	const want = "705b7815747628086afaaaeeb7255c9e52cafac5a744bea80d617dd2733d0105"
	if s := sha256.Sum256(first); hex.EncodeToString(s[:]) != want {
		t.Errorf("golden tree: got %x, want %s", s, want)
	}
	dir := filepath.Join(t.TempDir(), "app")
	// How the bytes come must not matter.
	if err := tree.Unpack(iotest.HalfReader(bytes.NewReader(first)), dir, tree.Limits{}); err != nil {
		t.Fatalf("unpack: %v", err)
	}
	if err := os.Chtimes(filepath.Join(dir, "a.txt"), time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if again := pack(t, dir); !bytes.Equal(again, first) {
		t.Error("what was unpacked is packed to other bytes")
	}
	for name, want := range map[string]fs.FileMode{"bin/check": 0o755, "a.txt": 0o644, "empty": fs.ModeDir | 0o755, ".": fs.ModeDir | 0o755} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode() != want {
			t.Errorf("%s: got %v %v, want %v", name, fi.Mode(), err, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "bin", "link")); err != nil || string(b) != "deep" {
		t.Errorf("link: got %q, %v", b, err)
	}
	if n, err := tree.Size(dir); err != nil || n != (6+7+2)*4096 {
		t.Errorf("size: got %d, %v; want 6 folders, 7 blocks of files and 2 links", n, err)
	}
}

func TestEmpty(t *testing.T) {
	b := pack(t, t.TempDir())
	dir := filepath.Join(t.TempDir(), "app")
	if err := tree.Unpack(bytes.NewReader(b), dir, tree.Limits{}); err != nil {
		t.Fatal(err)
	}
	if again := pack(t, dir); !bytes.Equal(again, b) {
		t.Error("the empty tree is packed to other bytes")
	}
}

func TestPackRefuses(t *testing.T) {
	for name, make := range map[string]func(dir string) error{
		"link out":          func(d string) error { return os.Symlink("../x", filepath.Join(d, "l")) },
		"absolute link":     func(d string) error { return os.Symlink("/etc/passwd", filepath.Join(d, "l")) },
		"roundabout link":   func(d string) error { return os.Symlink("a/../../x", filepath.Join(d, "l")) },
		"link not shortest": func(d string) error { return os.Symlink("a/../b", filepath.Join(d, "l")) },
		"fifo":              func(d string) error { return syscall.Mkfifo(filepath.Join(d, "f"), 0o600) },
		"control character": func(d string) error { return os.WriteFile(filepath.Join(d, "a\nb"), nil, 0o600) },
		"not utf-8":         func(d string) error { return os.WriteFile(filepath.Join(d, "a\xff"), nil, 0o600) },
		"setuid": func(d string) error {
			p := filepath.Join(d, "su")
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, fs.ModeSetuid|0o755))
		},
	} {
		dir := t.TempDir()
		if err := make(dir); err != nil {
			t.Fatal(err)
		}
		if err := tree.Pack(io.Discard, dir); !errors.Is(err, tree.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if err := tree.Pack(io.Discard, filepath.Join(t.TempDir(), "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: got %v, want not exist", err)
	}
}

// archive writes a tar as another tool might.
func archive(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		h.Size = int64(len(h.Uname)) // the content, for brevity
		content := h.Uname
		h.Uname = ""
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(0, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uname: content}
}

func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}

func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
}

func TestUnpackRefuses(t *testing.T) {
	with := func(h tar.Header, f func(*tar.Header)) tar.Header { f(&h); return h }
	good := archive(t, folder("a"), file("a/b", "x"), link("c", "a/b"))
	// The twin: the same hand makes one that is taken.
	if err := tree.Unpack(bytes.NewReader(good), filepath.Join(t.TempDir(), "app"), tree.Limits{}); err != nil {
		t.Fatalf("a good archive: %v", err)
	}
	for name, b := range map[string][]byte{
		"absolute":           archive(t, file("/etc/x", "x")),
		"up":                 archive(t, file("../x", "x")),
		"up inside":          archive(t, folder("a"), file("a/../../x", "x")),
		"dot":                archive(t, folder("."), file("./x", "x")),
		"through a link":     archive(t, link("a", "b"), file("a/x", "x")),
		"over a link":        archive(t, link("a", "b"), file("a", "x")),
		"link out":           archive(t, link("a", "../x")),
		"link to root":       archive(t, link("a", "/")),
		"link past a link":   archive(t, folder("d"), link("d/l", "../d/x/../../.."), file("e", "")),
		"hard link":          archive(t, file("a", "x"), tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a", Mode: 0o644}),
		"device":             archive(t, tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o644, Devmajor: 1, Devminor: 3}),
		"fifo":               archive(t, tar.Header{Typeflag: tar.TypeFifo, Name: "f", Mode: 0o644}),
		"twice":              archive(t, file("a", "x"), file("a", "y")),
		"out of order":       archive(t, file("b", "x"), file("a", "y")),
		"folder after":       archive(t, folder("a"), file("a.b", "x"), file("a/c", "y")),
		"no folder":          archive(t, file("a/b", "x")),
		"setuid":             archive(t, with(file("a", "x"), func(h *tar.Header) { h.Mode = 0o4755 })),
		"group may write":    archive(t, with(file("a", "x"), func(h *tar.Header) { h.Mode = 0o664 })),
		"owner":              archive(t, with(file("a", "x"), func(h *tar.Header) { h.Uid = 1000 })),
		"time":               archive(t, with(file("a", "x"), func(h *tar.Header) { h.ModTime = time.Unix(1, 0) })),
		"extended attribute": archive(t, with(file("a", "x"), func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"} })),
		"gnu format":         archive(t, with(file(long(150), "x"), func(h *tar.Header) { h.Format = tar.FormatGNU })),
		"nothing":            {},
		"text":               bytes.Repeat([]byte("no archive\n"), 100),
		"cut in a file":      good[:1030],
		"cut at the end":     good[:len(good)-512],
		"more":               append(bytes.Clone(good), 0),
		"second archive":     append(bytes.Clone(good), good...),
		"flipped padding":    flip(good, 1024+100),
	} {
		above := t.TempDir()
		dir := filepath.Join(above, "app")
		if err := tree.Unpack(bytes.NewReader(b), dir, tree.Limits{}); !errors.Is(err, tree.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
		if there, _ := os.ReadDir(above); len(there) != 1 {
			t.Errorf("%s: wrote outside of its folder: %v", name, there)
		}
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func TestLimits(t *testing.T) {
	b := archive(t, file("a", "x"), file("b", "y"))
	for _, c := range []struct {
		l    tree.Limits
		want error
	}{
		{tree.Limits{Entries: 2, Bytes: 8192}, nil},
		{tree.Limits{Entries: 1}, tree.ErrTooLarge},
		{tree.Limits{Bytes: 8191}, tree.ErrTooLarge},
	} {
		if err := tree.Unpack(bytes.NewReader(b), filepath.Join(t.TempDir(), "app"), c.l); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.l, err, c.want)
		}
	}
}

func TestUnpackKeepsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tree.Unpack(bytes.NewReader(archive(t, file("a", "x"))), dir, tree.Limits{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want %v", err, fs.ErrExist)
	}
}

// A source that fails is not an archive that is wrong: trying again may help.
func TestReaderFails(t *testing.T) {
	b := archive(t, folder("a"), file("a/b", "x"))
	gone := errors.New("line gone")
	for _, n := range []int{0, 100, 512, 1030, 1600, len(b)} {
		r := io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(gone))
		if err := tree.Unpack(r, filepath.Join(t.TempDir(), "app"), tree.Limits{}); !errors.Is(err, gone) || errors.Is(err, tree.ErrInvalid) {
			t.Errorf("after %d bytes: got %v, want %v", n, err, gone)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, app(f)))
	f.Add(archive(f, folder("a"), file("a/b", "x"), link("c", "a/b")))
	f.Add(archive(f, link("a", "../x"), file("/x", "x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		above := t.TempDir()
		dir := filepath.Join(above, "app")
		err := tree.Unpack(bytes.NewReader(b), dir, tree.Limits{Entries: 100, Bytes: 1 << 20})
		if there, _ := os.ReadDir(above); len(there) != 1 {
			t.Fatalf("wrote outside of its folder: %v", there)
		}
		if err == nil && !bytes.Equal(pack(t, dir), b) {
			t.Fatal("was unpacked, and is packed to other bytes")
		}
	})
}
