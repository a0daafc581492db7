package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/simulator/guest"
)

// TestSources makes the list of another release from a machine's own archives.
func TestSources(t *testing.T) {
	const (
		os12    = "ID=debian\nVERSION_CODENAME=bookworm\n"
		targets = "'http://a.example/debian/dists/bookworm/InRelease' a.example_InRelease 0 \n" +
			"'http://a.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' a.example_Packages 0 \n" +
			"'http://a.example/debian/dists/bookworm/main/binary-all/Packages.xz' a.example_Packages 0 \n" +
			"'http://a.example/debian/dists/bookworm/contrib/binary-amd64/Packages.xz' a.example_Packages 0 \n" +
			"'http://a.example/debian/dists/bookworm-updates/main/binary-amd64/Packages.xz' a.example_Packages 0 \n" +
			"'http://b.example/security/dists/bookworm-security/main/binary-amd64/Packages' b.example_Packages 0 \n" +
			"'https://c.example/node_20.x/dists/nodistro/main/binary-amd64/Packages' c.example_Packages 0 \n"
	)
	got, err := guest.Sources(os12, targets, "trixie")
	const signed = "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
	want := signed + "http://a.example/debian/ trixie main\n" + signed + "http://b.example/security/ trixie-security main\n"
	if err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for name, c := range map[string][2]string{
		"no release":          {"ID=x\n", targets},
		"not Debian's":        {"VERSION_CODENAME=noble\n", targets},
		"a machine with none": {os12, ""},
	} {
		if _, err := guest.Sources(c[0], c[1], "trixie"); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// module is an object file that says of itself what it needs.
func module(t *testing.T, path, depends string) {
	t.Helper()
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const header, entry = 64, 64
	var b bytes.Buffer
	head := make([]byte, header)
	copy(head, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(head[16:], 1)  // relocatable
	le.PutUint16(head[18:], 62) // x86-64
	le.PutUint32(head[20:], 1)
	le.PutUint64(head[40:], uint64(header+len(info)+len(names)))
	le.PutUint16(head[52:], header)
	le.PutUint16(head[58:], entry)
	le.PutUint16(head[60:], 3)
	le.PutUint16(head[62:], 2)
	b.Write(head)
	b.WriteString(info)
	b.WriteString(names)
	section := func(name, kind uint32, offset, size int) {
		s := make([]byte, entry)
		le.PutUint32(s[0:], name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], uint64(offset))
		le.PutUint64(s[32:], uint64(size))
		b.Write(s)
	}
	section(0, 0, 0, 0)
	section(1, 1, header, len(info))
	section(10, 3, header+len(info), len(names))
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestModules collects modules in the order in which they can be loaded.
func TestModules(t *testing.T) {
	dir := t.TempDir()
	module(t, filepath.Join(dir, "dm-verity.ko"), "dm-mod,dm-bufio")
	module(t, filepath.Join(dir, "dm-bufio.ko"), "dm-mod")
	module(t, filepath.Join(dir, "dm-mod.ko"), "")
	module(t, filepath.Join(dir, "lost.ko"), "not-there")
	module(t, filepath.Join(dir, "unasked.ko"), "dm-mod")
	elsewhere := filepath.Join(t.TempDir(), "own.ko")
	module(t, elsewhere, "dm_bufio,ext4")
	if err := os.WriteFile(filepath.Join(dir, "bad.ko"), []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw-random.ko\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Command(t.Context(), dir, "xz", "dm-bufio.ko"); err != nil {
		t.Skip("no xz here:", err)
	}
	got, err := guest.Modules(t.Context(), dir, []string{"hw_random", "dm_verity", "own", "dm-verity"}, map[string]string{"own": elsewhere})
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
		if _, err := os.Stat(m.File); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"dm_mod", "dm_bufio", "dm_verity", "own"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %q, %v; want %q", names, err, want)
	}
	for _, name := range []string{"lost", "bad", "nowhere"} {
		if _, err := guest.Modules(context.Background(), dir, []string{name}, nil); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// TestInitrd has cpio list what was written.
func TestInitrd(t *testing.T) {
	var b bytes.Buffer
	a := guest.NewInitrd(&b)
	a.Add("bin", 0o040755, nil)
	a.Copy("bin/it", "guest_test.go")
	a.Add("init", 0o100755, []byte("abc"))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 || !strings.Contains(b.String(), "bin/it\x00") || !strings.Contains(b.String(), "TRAILER!!!\x00") {
		t.Errorf("got %d bytes", b.Len())
	}
	a = guest.NewInitrd(&b)
	a.Copy("bin/it", "not there")
	if err := a.Close(); err == nil {
		t.Error("a program that is not there: got no error")
	}
}
