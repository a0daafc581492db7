package archive_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tillward/tillward/cloud/internal/archive"
)

// TestManyKeys: as many keys as a device can have fit into the first line, and a file whose first line no reader would
// take is not written.
func TestManyKeys(t *testing.T) {
	h := newHistory(t)
	h.event(1)
	h.anchor()
	head := h.header()
	own := head.AKs
	with := func(keys int) (*archive.Writer, *bytes.Buffer, error) {
		head.AKs = nil
		for n := range keys {
			head.AKs = append(head.AKs, archive.Key{Public: bytes.Repeat([]byte{byte(n)}, 400), Since: noon})
		}
		head.AKs = append(head.AKs, own...)
		var buf bytes.Buffer
		w, err := archive.NewWriter(&buf, head)
		return w, &buf, err
	}
	w, buf, err := with(264)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range h.entries {
		if err := w.Entry(ev); err != nil {
			t.Fatal(err)
		}
	}
	must(w.Close(service))(t)
	if r := verify(t, buf.Bytes(), given()); r.Verdict != archive.Whole || r.Anchors != 1 {
		t.Errorf("got %+v", r)
	}
	if _, _, err := with(1000); !errors.Is(err, archive.ErrNoTrail) {
		t.Errorf("a first line that is too long: got %v", err)
	}
}
