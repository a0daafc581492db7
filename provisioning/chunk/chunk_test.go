package chunk_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/tillward/tillward/provisioning/chunk"
)

// noise is the same n bytes for the same seed, on every machine.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{seed})
	_, _ = r.Read(b) // never fails
	return b
}

func index(t testing.TB, content []byte) ([]byte, []chunk.Chunk) {
	t.Helper()
	b, err := chunk.Index(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("index: %v", err)
	}
	cs, err := chunk.Parse(b)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return b, cs
}

func TestIndex(t *testing.T) {
	for _, n := range []int{0, 1, chunk.Min - 1, chunk.Min, chunk.Min + 1, chunk.Max, chunk.Max + 1, 1 << 20} {
		for name, content := range map[string][]byte{"noise": noise(1, n), "zeros": make([]byte, n)} {
			t.Run(fmt.Sprintf("%s %d", name, n), func(t *testing.T) {
				b, cs := index(t, content)
				at := 0
				for i, c := range cs {
					if c.Offset != int64(at) {
						t.Fatalf("piece %d: got offset %d, want %d", i, c.Offset, at)
					}
					if c.Length > chunk.Max || c.Length < chunk.Min && i < len(cs)-1 {
						t.Errorf("piece %d has %d bytes", i, c.Length)
					}
					if !c.Is(content[at : at+c.Length]) {
						t.Errorf("piece %d is not what lies there", i)
					}
					at += c.Length
				}
				if at != n {
					t.Errorf("pieces make %d bytes, want %d", at, n)
				}
				if int64(len(b)) > chunk.MaxIndex(int64(n)) {
					t.Errorf("index has %d bytes, MaxIndex says %d", len(b), chunk.MaxIndex(int64(n)))
				}
			})
		}
	}
}

// The cuts are part of the format: a box in the field looks for the pieces of
// its old release where these constants put them.
func TestGolden(t *testing.T) {
	const want = "08db668aae58194c19b5c1c8abf128119593cc5e7398db43981eb47820803e60"
	b, cs := index(t, noise(7, 4<<20))
	if got := sum(b); got != want {
		t.Errorf("index of the golden content: got %s, want %s (%d pieces)", got, want, len(cs))
	}
	if avg := (4 << 20) / len(cs); avg < 14<<10 || avg > 24<<10 {
		t.Errorf("pieces of %d bytes on average, want about 16 KiB", avg)
	}
	if share := float64(len(b)) / (4 << 20); share > 0.003 {
		t.Errorf("the index is %.2f %% of the content", 100*share)
	}
}

// What is put in or taken out in the middle moves the rest, and must cost no
// more than the pieces around it.
func TestShift(t *testing.T) {
	old := noise(2, 2<<20)
	in := append(append(bytes.Clone(old[:1<<20]), "a line more"...), old[1<<20:]...)
	_, before := index(t, old)
	_, after := index(t, in)
	known := map[[32]byte]bool{}
	for _, c := range before {
		known[c.Sum] = true
	}
	fresh := 0
	for _, c := range after {
		if !known[c.Sum] {
			fresh += c.Length
		}
	}
	if fresh == 0 || fresh > 3*chunk.Max {
		t.Errorf("%d bytes are new after putting in a line", fresh)
	}
}

func TestReaderFails(t *testing.T) {
	broken := errors.New("disk gone")
	if _, err := chunk.Index(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	stop := errors.New("enough")
	if err := chunk.Split(bytes.NewReader(noise(1, 1<<20)), func(chunk.Chunk, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want %v", err, stop)
	}
	// A reader that gives a byte at a time is cut at the same places.
	content := noise(3, 200<<10)
	slow, err := chunk.Index(iotest.OneByteReader(bytes.NewReader(content)))
	if fast, _ := index(t, content); err != nil || !bytes.Equal(slow, fast) {
		t.Errorf("the cuts depend on how the content is read (%v)", err)
	}
}

func TestParseRefuses(t *testing.T) {
	good, _ := index(t, noise(1, 100<<10))
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, b := range map[string][]byte{
		"nothing":         {},
		"version 2":       edit(func(b []byte) []byte { b[7] = 2; return b }),
		"other file":      []byte("this is a text, and long enough to be one"),
		"cut":             good[:len(good)-1],
		"entry missing":   good[:len(good)-34],
		"entry too many":  append(bytes.Clone(good), good[16:50]...),
		"short piece":     edit(func(b []byte) []byte { b[16], b[17] = 0, 0; return b }),
		"other length":    edit(func(b []byte) []byte { b[15]++; return b }),
		"negative length": edit(func(b []byte) []byte { b[8] = 0xff; return b }),
		"huge length":     edit(func(b []byte) []byte { b[9] = 0xff; return b }),
	} {
		if cs, err := chunk.Parse(b); !errors.Is(err, chunk.ErrIndex) {
			t.Errorf("%s: got %d pieces, %v; want ErrIndex", name, len(cs), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, n := range []int{0, 10, 100 << 10} {
		b, _ := index(f, noise(1, n))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cs, err := chunk.Parse(b)
		if err != nil {
			if !errors.Is(err, chunk.ErrIndex) {
				t.Fatalf("got %v, want ErrIndex", err)
			}
			return
		}
		var at int64
		for _, c := range cs {
			if c.Offset != at || c.Length < 1 || c.Length > chunk.Max {
				t.Fatalf("piece of %d at %d, want it at %d", c.Length, c.Offset, at)
			}
			at += int64(c.Length)
		}
	})
}

func BenchmarkIndex(b *testing.B) {
	content := noise(1, 32<<20)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := chunk.Index(bytes.NewReader(content)); err != nil {
			b.Fatal(err)
		}
	}
}

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
