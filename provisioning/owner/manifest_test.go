package owner_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/owner"
)

// key returns the same key for the same letter.
func key(letter byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{letter}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

var day = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ek(n int) string { return strings.Repeat(fmt.Sprintf("%02x", n), 32) }

func batch() owner.Manifest {
	return owner.Manifest{Vendor: "Vend GmbH", Batch: "2026-47", Order: "4711", MadeAt: day, Entries: []owner.Listed{
		{EKHash: ek(1), Model: "vend-1", Serial: "S1", ClaimHash: ek(77)},
		{EKHash: ek(2), Model: "vend-1", Serial: "S2"},
	}}
}

func TestManifestGolden(t *testing.T) {
	got, err := owner.SignManifest(key('v'), batch())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "manifest-v1.json")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	m, err := owner.OpenManifest(public(key('v')), want)
	if err != nil {
		t.Fatal(err)
	}
	expected := batch()
	expected.Version = 1
	expected.Entries[0].Device, expected.Entries[1].Device = "aeaqcaibaeaqcaibaeaqcaib", "aibaeaqcaibaeaqcaibaeaqc"
	if !reflect.DeepEqual(m, expected) {
		t.Errorf("got\n%+v\nwant\n%+v", m, expected)
	}
}

func TestSignManifestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*owner.Manifest)
		want  error
	}{
		"nothing":    {func(m *owner.Manifest) { m.Entries = nil }, owner.ErrMalformed},
		"too much":   {func(m *owner.Manifest) { m.Entries = make([]owner.Listed, owner.MaxListed+1) }, owner.ErrLimit},
		"no date":    {func(m *owner.Manifest) { m.MadeAt = time.Time{} }, owner.ErrMalformed},
		"no vendor":  {func(m *owner.Manifest) { m.Vendor = "" }, owner.ErrMalformed},
		"no batch":   {func(m *owner.Manifest) { m.Batch = "" }, owner.ErrMalformed},
		"long order": {func(m *owner.Manifest) { m.Order = strings.Repeat("9", 65) }, owner.ErrLimit},
		"EK twice":   {func(m *owner.Manifest) { m.Entries[1].EKHash, m.Entries[1].Device = ek(1), "" }, owner.ErrDuplicate},
		"device twice": {func(m *owner.Manifest) {
			m.Entries[1].EKHash, m.Entries[1].Device = ek(1)[:62]+"ff", ""
		}, owner.ErrDuplicate},
		"serial twice":       {func(m *owner.Manifest) { m.Entries[1].Serial = "S1" }, owner.ErrDuplicate},
		"no serial":          {func(m *owner.Manifest) { m.Entries[1].Serial = "" }, owner.ErrMalformed},
		"short hash":         {func(m *owner.Manifest) { m.Entries[1].EKHash = "11" }, owner.ErrMalformed},
		"upper-case hash":    {func(m *owner.Manifest) { m.Entries[1].EKHash = strings.Repeat("A", 64) }, owner.ErrMalformed},
		"bad claim":          {func(m *owner.Manifest) { m.Entries[1].ClaimHash = "no" }, owner.ErrMalformed},
		"another's device":   {func(m *owner.Manifest) { m.Entries[1].Device = till }, owner.ErrMalformed},
		"umlaut in model":    {func(m *owner.Manifest) { m.Entries[1].Model = "Käse" }, owner.ErrMalformed},
		"line end in serial": {func(m *owner.Manifest) { m.Entries[1].Serial = "S\n2" }, owner.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			m := batch()
			c.spoil(&m)
			if b, err := owner.SignManifest(key('v'), m); !errors.Is(err, c.want) || b != nil {
				t.Errorf("got %q and %v, want %v", b, err, c.want)
			}
		})
	}
}

// signRaw signs any text as the vendor would sign a manifest.
func signRaw(t testing.TB, raw string) []byte {
	t.Helper()
	const domain = "tillward-manifest-v1"
	covered := fmt.Appendf(nil, "\x00\x00\x00%c%s", len(domain), domain)
	covered = append(covered, byte(len(raw)>>24), byte(len(raw)>>16), byte(len(raw)>>8), byte(len(raw)))
	covered = append(covered, raw...)
	b, err := owner.SignManifest(key('v'), batch())
	if err != nil {
		t.Fatal(err)
	}
	var env struct {
		KeyID string `json:"key_id"`
	}
	if err := json.Unmarshal(b, &env); err != nil {
		t.Fatal(err)
	}
	sig, err := json.Marshal(ed25519.Sign(key('v'), covered))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"manifest":%s,"key_id":%q,"signature":%s}`, raw, env.KeyID, sig)
}

func TestOpenManifestRefuses(t *testing.T) {
	good, err := owner.SignManifest(key('v'), batch())
	if err != nil {
		t.Fatal(err)
	}
	var env struct{ Manifest json.RawMessage }
	if err := json.Unmarshal(good, &env); err != nil {
		t.Fatal(err)
	}
	body := string(env.Manifest)
	if m, err := owner.OpenManifest(public(key('v')), signRaw(t, body)); err != nil || len(m.Entries) != 2 {
		t.Fatalf("signRaw signs %v and %v", m, err)
	}
	pub := public(key('v'))
	for name, c := range map[string]struct {
		pub  ed25519.PublicKey
		b    []byte
		want error
	}{
		"another key":         {public(key('w')), good, owner.ErrSignature},
		"no key":              {nil, good, owner.ErrSignature},
		"another serial":      {pub, bytes.Replace(good, []byte(`"S2"`), []byte(`"S3"`), 1), owner.ErrSignature},
		"another batch":       {pub, bytes.Replace(good, []byte(`2026-47`), []byte(`2026-48`), 1), owner.ErrSignature},
		"list of EKs":         {pub, []byte(`{"entries":[],"key_id":"","signature":""}`), owner.ErrMalformed},
		"newer version":       {pub, signRaw(t, strings.Replace(body, `"version":1`, `"version":2,"new":true`, 1)), owner.ErrVersion},
		"no version":          {pub, signRaw(t, strings.Replace(body, `"version":1,`, ``, 1)), owner.ErrVersion},
		"unknown field":       {pub, signRaw(t, strings.Replace(body, `"version":1`, `"version":1,"new":true`, 1)), owner.ErrMalformed},
		"EK twice":            {pub, signRaw(t, strings.NewReplacer(ek(2), ek(1), "aibaeaqcaibaeaqcaibaeaqc", "aeaqcaibaeaqcaibaeaqcaib").Replace(body)), owner.ErrDuplicate},
		"serial twice":        {pub, signRaw(t, strings.Replace(body, `"S2"`, `"S1"`, 1)), owner.ErrDuplicate},
		"another's device":    {pub, signRaw(t, strings.Replace(body, "aibaeaqcaibaeaqcaibaeaqc", till, 1)), owner.ErrMalformed},
		"something behind it": {pub, append(bytes.Clone(good), "{}"...), owner.ErrMalformed},
		"cut":                 {pub, good[:len(good)/2], owner.ErrMalformed},
		"nothing":             {pub, nil, owner.ErrMalformed},
		"too large":           {pub, make([]byte, owner.MaxManifest+1), owner.ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := owner.OpenManifest(c.pub, c.b); !errors.Is(err, c.want) || len(m.Entries) != 0 {
				t.Errorf("got %v and %v, want %v", m, err, c.want)
			}
		})
	}
}

func FuzzOpenManifest(f *testing.F) {
	good, err := owner.SignManifest(key('v'), batch())
	if err != nil {
		f.Fatal(err)
	}
	var env struct{ Manifest json.RawMessage }
	if err := json.Unmarshal(good, &env); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(env.Manifest))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"entries":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = owner.OpenManifest(public(key('v')), raw)
		if !json.Valid(raw) {
			return
		}
		// Past the signature: what it then says was checked in full.
		m, err := owner.OpenManifest(public(key('v')), signRaw(t, string(raw)))
		if err != nil {
			return
		}
		for _, e := range m.Entries {
			if b, err := hex.DecodeString(e.EKHash); err != nil || owner.DeviceOf([32]byte(b)) != e.Device {
				t.Fatalf("entry %+v passed", e)
			}
		}
		if _, err := owner.SignManifest(key('v'), m); err != nil {
			t.Fatalf("opened, but not to be signed: %v", err)
		}
	})
}
