package boot_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

func FuzzParseLog(f *testing.F) {
	honest := tpmfarm.Default(running)
	values := honest.Registers()
	raw := honest.Log()
	f.Add(raw)
	f.Add(raw[:69])
	f.Add(tpmfarm.Firmware{}.Log())
	f.Add(honest.Without("kernel").Log())
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := boot.ParseLog(b, values)
		switch {
		case err != nil && (!errors.Is(err, boot.ErrLog) || events != nil):
			t.Fatalf("got %d events and %v", len(events), err)
		case err == nil:
			if len(events) != len(honest.Events) {
				t.Fatalf("another log adds up to the same registers: %d events", len(events))
			}
			for i, e := range events {
				if len(e.What) > 128 || strings.ContainsFunc(e.What, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Fatalf("event %d says %q", i, e.What)
				}
			}
		}
		// What is replayed without the library comes to the same as with it.
		computed, err := boot.Replay(b)
		if err != nil {
			return
		}
		if _, err := boot.ParseLog(b, computed); err != nil {
			t.Fatalf("replayed to %x: %v", computed, err)
		}
	})
}

func FuzzParseReference(f *testing.F) {
	_, b := golden(f)
	f.Add(b)
	f.Add(observed(f, running).Bytes())
	f.Add(boot.Reference{Version: 1, Model: model, Release: running}.Bytes())
	honest := tpmfarm.Default(running)
	log, values := honest.Log(), honest.Registers()
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := boot.ParseReference(b)
		if err != nil {
			if !errors.Is(err, boot.ErrReference) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(r.Bytes(), b) {
			t.Fatalf("two forms:\n%s\n%s", b, r.Bytes())
		}
		got := boot.Appraise([]boot.Reference{r}, nil, values, log)
		if !slices.Contains([]string{boot.Attested, boot.Degraded, boot.Quarantined}, got.Trust) {
			t.Fatalf("got %+v", got)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	packed, err := boot.Pack(tpmfarm.Default(running).Log())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := boot.Unpack(b)
		if err != nil {
			if !errors.Is(err, boot.ErrLog) || raw != nil {
				t.Fatalf("got %d bytes and %v", len(raw), err)
			}
			return
		}
		if len(raw) > 1<<20 {
			t.Fatalf("unpacked %d bytes", len(raw))
		}
		again, err := boot.Pack(raw)
		if err != nil {
			return // packs worse than it came
		}
		if got, err := boot.Unpack(again); err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("got %d bytes and %v, want %d", len(got), err, len(raw))
		}
	})
}
