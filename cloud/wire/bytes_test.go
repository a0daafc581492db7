package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/tillward/tillward/cloud/wire"
)

// golden reads testdata/v{version}/{name}.hex: hexadecimal, line breaks allowed.
func golden(t testing.TB, version int, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(goldenPath(version, name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatalf("%s of version %d: %v", name, version, err)
	}
	return b
}

func goldenPath(version int, name string) string {
	return filepath.Join("testdata", fmt.Sprintf("v%d", version), name+".hex")
}

// TestGolden holds the bytes of every message of every version: what is newest
// must still be written that way, and what was ever written must still be read.
func TestGolden(t *testing.T) {
	if *update {
		for _, k := range kinds(t) {
			b, err := wire.Encode(k.sample)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for line := range chunks(hex.EncodeToString(b), 96) {
				fmt.Fprintln(&text, line)
			}
			path := goldenPath(wire.Version, k.name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, k := range kinds(t) {
		t.Run(k.name, func(t *testing.T) {
			want := golden(t, wire.Version, k.name)
			got, err := wire.Encode(k.sample)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("encoded: got\n%x\nwant\n%x", got, want)
			}
			m, err := k.decode(want)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m, k.sample) {
				t.Errorf("decoded: got\n%+v\nwant\n%+v", m, k.sample)
			}
		})
	}
	for version := range wire.Version {
		files, err := filepath.Glob(goldenPath(version+1, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("version %d has no golden bytes (%v)", version+1, err)
		}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".hex")
			i := indexOf(kinds(t), name)
			if i < 0 {
				t.Errorf("%s: no message of this name is left; version %d is still in the field", file, version+1)
				continue
			}
			if _, err := kinds(t)[i].decode(golden(t, version+1, name)); err != nil {
				t.Errorf("%s is not readable any more: %v", file, err)
			}
		}
	}
}

func indexOf(kinds []kind, name string) int {
	for i, k := range kinds {
		if k.name == name {
			return i
		}
	}
	return -1
}

func chunks(s string, n int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > 0 {
			m := min(n, len(s))
			if !yield(s[:m]) {
				return
			}
			s = s[m:]
		}
	}
}

// TestUnknownFields adds a key of the future to every message: an old agent reads what it knows.
func TestUnknownFields(t *testing.T) {
	for _, k := range kinds(t) {
		b := golden(t, wire.Version, k.name)
		if b[0]&0xe0 != 0xa0 || b[0]&0x1f > 22 {
			t.Fatalf("%s does not begin with a short map: %x", k.name, b[:1])
		}
		future := append([]byte{b[0] + 1}, b[1:]...)
		future = append(future, 0x18, 0xc8, 0x82, 0x01, 0xa1, 0x01, 0x61, 'x') // 200: [1, {1: "x"}]
		m, err := k.decode(future)
		if err != nil {
			t.Errorf("%s with an unknown field: %v", k.name, err)
			continue
		}
		if !reflect.DeepEqual(m, k.sample) {
			t.Errorf("%s with an unknown field: got %+v, want %+v", k.name, m, k.sample)
		}
	}
}

// TestRefusedBytes are forms of CBOR that two readers could take for two messages.
func TestRefusedBytes(t *testing.T) {
	for _, k := range kinds(t) {
		good := golden(t, wire.Version, k.name)
		// The first pair of the map is {1: head or another field}; repeat key 1 at the end.
		double := append([]byte{good[0] + 1}, good[1:]...)
		double = append(double, 0x01, 0x01)
		indef := append([]byte{0xbf}, good[1:]...)
		indef = append(indef, 0xff)
		for name, b := range map[string][]byte{
			"duplicate key":     double,
			"indefinite length": indef,
			"tag":               append([]byte{0xd9, 0xd9, 0xf7}, good...),
			"trailing byte":     append(bytes.Clone(good), 0x00),
			"cut short":         good[:len(good)-1],
			"empty":             {},
			"an array":          {0x80},
			"deep":              append([]byte{0xa1, 0x18, 0xc8}, append(bytes.Repeat([]byte{0x81}, 20), 0x00)...),
			"long array":        append([]byte{0xa1, 0x18, 0xc8, 0x99, 0x04, 0x01}, make([]byte, 1025)...),
		} {
			if _, err := k.decode(b); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("%s, %s: got %v, want %v", k.name, name, err, wire.ErrMalformed)
			}
		}
	}
	t.Run("text that is not UTF-8", func(t *testing.T) {
		b := []byte{0xa2, 0x01, 0x01, 0x03, 0x61, 0xff} // challenge: {1: 1, 3: "\xff"}
		if _, err := wire.Decode[wire.Challenge](b); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("got %v, want %v", err, wire.ErrMalformed)
		}
	})
}

// fuzz holds for every message: no input panics, what is decoded is within the
// limits, and it survives a round trip unchanged.
func fuzz(f *testing.F, name string) {
	all := kinds(f)
	i := indexOf(all, name)
	if i < 0 {
		f.Fatalf("no message %q", name)
	}
	k := all[i]
	f.Add(golden(f, wire.Version, name))
	f.Add([]byte{0xa0})
	f.Add([]byte{0xbf, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := k.decode(b)
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrLimit) {
				t.Fatalf("error that nobody can decide on: %v", err)
			}
			return
		}
		if err := m.Check(); err != nil {
			t.Fatalf("decoded outside the limits: %v", err)
		}
		first, err := wire.Encode(m)
		if errors.Is(err, wire.ErrLimit) && len(b) > wire.MaxMessage/2 {
			return // fields that were left out are written, which can be a little longer
		}
		if err != nil {
			t.Fatalf("decoded but not encodable: %v", err)
		}
		again, err := k.decode(first)
		if err != nil {
			t.Fatalf("own bytes refused: %v", err)
		}
		second, err := wire.Encode(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("round trip changed the message (%v):\n%x\n%x", err, first, second)
		}
		if err := cbor.Wellformed(first); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzTelemetry(f *testing.F) { fuzz(f, "telemetry") }
func FuzzEvent(f *testing.F)     { fuzz(f, "event") }
func FuzzAudit(f *testing.F)     { fuzz(f, "audit") }
func FuzzState(f *testing.F)     { fuzz(f, "state") }
func FuzzResult(f *testing.F)    { fuzz(f, "result") }
func FuzzEvidence(f *testing.F)  { fuzz(f, "evidence") }
func FuzzOrder(f *testing.F)     { fuzz(f, "order") }
func FuzzCommand(f *testing.F)   { fuzz(f, "command") }
func FuzzOffer(f *testing.F)     { fuzz(f, "offer") }
func FuzzChallenge(f *testing.F) { fuzz(f, "challenge") }
func FuzzMedium(f *testing.F)    { fuzz(f, "medium") }

// FuzzHead reads the head alone: of whatever decodes as a whole, it is the same.
func FuzzHead(f *testing.F) {
	for _, m := range []wire.Message{&wire.TelemetryBatch{Head: head(1), Samples: []wire.Sample{{Name: "a"}}}, &wire.AuditBatch{Head: head(3), Entries: entries(f, 2)}} {
		b, err := wire.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := wire.HeadOf(b)
		if err != nil && !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrLimit) {
			t.Fatalf("error that nobody can decide on: %v", err)
		}
		if m, whole := wire.Decode[wire.TelemetryBatch](b); whole == nil && (err != nil || m.Head != h) {
			t.Fatalf("got %+v (%v), want %+v", h, err, m.Head)
		}
		if m, whole := wire.Decode[wire.AuditBatch](b); whole == nil && (err != nil || m.Head != h) {
			t.Fatalf("got %+v (%v), want %+v", h, err, m.Head)
		}
	})
}

// FuzzAuditEntry feeds bodies whose hash is right: what opens must seal again to the same entry
// unless it was not in the deterministic form.
func FuzzAuditEntry(f *testing.F) {
	for _, e := range entries(f, 2) {
		f.Add(e.Body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := wire.AuditEntry{Body: body, Hash: hashOf(body)}.Open()
		if err != nil {
			return
		}
		e, err := wire.SealAudit(r)
		if errors.Is(err, wire.ErrLimit) && len(body) > wire.MaxAuditBody/2 {
			return
		}
		if err != nil {
			t.Fatalf("opened but not sealable: %v", err)
		}
		if again, err := e.Open(); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("got %+v (%v), want %+v", again, err, r)
		}
	})
}
