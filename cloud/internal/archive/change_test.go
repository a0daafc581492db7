package archive_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/cloud/internal/archive"
)

// line is what the test knows of a line without the code it tests.
type line struct {
	Line string `json:"line"`
	Seq  uint64 `json:"seq"`
	text []byte
}

func split(t testing.TB, file []byte) (list []line) {
	for l := range bytes.Lines(file) {
		var v line
		if err := json.Unmarshal(l, &v); err != nil {
			t.Fatal(err)
		}
		v.text = bytes.Clone(l)
		list = append(list, v)
	}
	return list
}

func join(list []line) (file []byte) {
	for _, l := range list {
		file = append(file, l.text...)
	}
	return file
}

// TestChanged: any byte changed, any line dropped, doubled or swapped with the next one is found, and the
// first record that is wrong is named: the entry of the line, or the one that a countersignature is about.
func TestChanged(t *testing.T) {
	file := short(t).file()
	all := split(t, file)
	check := func(t *rapid.T, changed []byte, i int, what string) {
		r, err := archive.Verify(bytes.NewReader(changed), given())
		l := all[i]
		switch {
		case err != nil && i == 0:
			return // its first bytes are by which a trail is known
		case err != nil:
			t.Fatalf("%s of line %d: %v", what, i+1, err)
		case r.Verdict == archive.Whole || r.Verdict == "" || r.Text == "":
			t.Fatalf("%s of line %d (%s %d) was not found: %+v", what, i+1, l.Line, l.Seq, r)
		}
		want := []uint64{0}
		switch l.Line {
		case "entry":
			want = []uint64{l.Seq}
		case "countersign":
			// By what is read of it, it may look like the entry to come; when it is gone, the line behind tells.
			want = []uint64{l.Seq, l.Seq + 1}
		case "header":
			want = []uint64{0, 1} // nothing that is no entry has a number; without it, the next line is the first
		case "seal":
			want = []uint64{0, 12}
		}
		if !slices.Contains(want, r.FirstBad) {
			t.Fatalf("%s of line %d (%s %d): got %s at %d (%s), want %v", what, i+1, l.Line, l.Seq, r.Verdict, r.FirstBad, r.Text, want)
		}
	}
	t.Run("byte", rapid.MakeCheck(func(t *rapid.T) {
		i := rapid.IntRange(0, len(all)-1).Draw(t, "line")
		at := rapid.IntRange(0, len(all[i].text)-1).Draw(t, "at")
		list := slices.Clone(all)
		list[i].text = bytes.Clone(all[i].text)
		list[i].text[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		check(t, join(list), i, "a changed byte")
	}))
	t.Run("dropped", rapid.MakeCheck(func(t *rapid.T) {
		i := rapid.IntRange(0, len(all)-1).Draw(t, "line")
		check(t, join(slices.Delete(slices.Clone(all), i, i+1)), i, "dropping")
	}))
	t.Run("doubled", rapid.MakeCheck(func(t *rapid.T) {
		i := rapid.IntRange(0, len(all)-1).Draw(t, "line")
		check(t, join(slices.Insert(slices.Clone(all), i, all[i])), i, "doubling")
	}))
	t.Run("swapped", rapid.MakeCheck(func(t *rapid.T) {
		i := rapid.IntRange(0, len(all)-2).Draw(t, "line")
		list := slices.Clone(all)
		list[i], list[i+1] = list[i+1], list[i]
		check(t, join(list), i, "swapping")
	}))
	t.Run("cut", rapid.MakeCheck(func(t *rapid.T) {
		at := rapid.IntRange(40, len(file)-1).Draw(t, "at")
		r, err := archive.Verify(bytes.NewReader(file[:at]), given())
		if err != nil {
			t.Fatal(err)
		}
		whole := uint64(bytes.Count(file[:at], []byte(`"line":"entry"`)))
		if at < len(file) && file[at-1] != '\n' && bytes.HasPrefix(file[bytes.LastIndexByte(file[:at], '\n')+1:at], []byte(`{"line":"entry"`)) {
			whole-- // half an entry
		}
		if want := map[bool]string{true: archive.Truncated, false: archive.Unsealed}[whole < 12]; r.What != "" && (r.Verdict != want || want == archive.Truncated && r.FirstBad != whole+1) {
			t.Fatalf("cut at %d, behind entry %d: got %s at %d (%s)", at, whole, r.Verdict, r.FirstBad, r.Text)
		}
	}))
}

// FuzzVerify: whatever is read, nothing panics, and nothing but what the service sealed is whole.
func FuzzVerify(f *testing.F) {
	calm := newHistory(f) // signed by nothing that signs otherwise each time
	calm.event(3)
	calm.countersign()
	calm.event(3)
	sealed := calm.file()
	f.Add(sealed)
	file := short(f).file()
	f.Add(file)
	for _, n := range []int{1, 3, 7} {
		f.Add(cut(file, n))
	}
	f.Add(lines(file, func(l []string) []string { return l[2:] }))
	f.Add([]byte(`{"line":"header","version":1,"what":"service","tenant":"","after":{"seq":0,"hash":""},"last":18446744073709551615,"made_at":"","made_by":"","sum":""}` + "\n"))
	f.Add([]byte("{\"line\":\"seal\"}\n"))
	h := newHistory(f)
	h.anchor()
	h.event(2)
	broken(h, h.entries[1])
	h.anchor()
	f.Add(h.file())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := archive.Verify(bytes.NewReader(b), given())
		if err == nil && (r.Verdict == "" || r.Text == "") {
			t.Errorf("no verdict: %+v", r)
		}
		if r.Verdict == archive.Whole && !bytes.Equal(b, sealed) && r.AnchorsSeen == 0 {
			t.Errorf("whole, and never sealed: %+v", r)
		}
	})
}
