package archive_test

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/trust"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var (
	service = trust.NewOrderSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)))
	noon    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// chip signs anchors as a TPM's attestation key does, over what this test
// lets stand for the attestation: what is bound, and the counter.
type chip struct{ key *ecdsa.PrivateKey }

func newChip(t testing.TB, seed byte) chip {
	return chip{must(ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{seed}, 32)))(t)}
}

func (c chip) public(t testing.TB) []byte { return must(c.key.PublicKey.Bytes())(t) }

func statement(binding [32]byte, counter uint64) []byte {
	return binary.BigEndian.AppendUint64(binding[:], counter)
}

func (c chip) anchor(t testing.TB, binding [32]byte, counter uint64) *wire.Anchor {
	attest := statement(binding, counter)
	sum := sha256.Sum256(attest)
	r, s, err := ecdsa.Sign(rand.Reader, c.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return &wire.Anchor{Attest: attest, Signature: sig, Counter: counter, Why: "boot"}
}

func checkAnchor(ak []byte, binding [32]byte, attest, signature []byte, counter uint64) error {
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), ak)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(statement(binding, counter))
	if !bytes.Equal(attest, statement(binding, counter)) || !ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		return errors.New("another signature")
	}
	return nil
}

// history is a device's trail as the service holds it.
type history struct {
	t       testing.TB
	tpm     chip
	entries []fleet.AuditEvent
	signed  map[uint64][]byte
	after   archive.Point
	counter uint64
}

func newHistory(t testing.TB) *history {
	return &history{t: t, tpm: newChip(t, 1), signed: map[uint64][]byte{}}
}

func (h *history) head() archive.Point {
	if len(h.entries) == 0 {
		return h.after
	}
	e := h.entries[len(h.entries)-1]
	return archive.Point{Seq: e.Seq, Hash: e.Hash}
}

func (h *history) add(r wire.AuditRecord) {
	h.t.Helper()
	head := h.head()
	if r.Seq == 0 {
		r.Seq = head.Seq + 1
	}
	if r.Prev == [32]byte{} && r.Break == nil {
		r.Prev = head.Hash
	}
	r.At, r.Boot, r.Severity = noon.Add(time.Duration(r.Seq)*time.Second).UnixMilli(), wire.Boot{1}, cmp.Or(r.Severity, "info")
	e := must(wire.SealAudit(r))(h.t)
	h.entries = append(h.entries, fleet.AuditEvent{
		Device: "dev", Tenant: "main", Seq: r.Seq, At: time.UnixMilli(r.At), StoredAt: noon, Kind: r.Kind, Severity: r.Severity, Actor: cmp.Or(r.Actor, "dev"),
		Subject: r.Subject, Outcome: r.Outcome, Site: "berlin", Detail: r.Detail, Body: e.Body, Hash: e.Hash, Prev: r.Prev,
	})
}

func (h *history) event(n int) {
	for range n {
		h.add(wire.AuditRecord{Kind: "link.up", Subject: "<broker>", Detail: map[string]string{"try": "1"}})
	}
}

func (h *history) anchor() {
	h.counter++
	h.anchorAt(h.counter)
}

func (h *history) anchorAt(counter uint64) {
	head := h.head()
	h.add(wire.AuditRecord{Kind: "audit.anchor", Anchor: h.tpm.anchor(h.t, wire.AnchorBinding("dev", head.Seq, head.Hash), counter)})
}

func (h *history) countersign() {
	head := h.head()
	h.signed[head.Seq] = countersigned(h.t, head)
}

func countersigned(t testing.TB, p archive.Point) []byte {
	payload := must(wire.Encode(&wire.Countersign{V: wire.Version, Tenant: "main", Device: "dev", Seq: p.Seq, Hash: p.Hash, At: noon.UnixMilli()}))(t)
	id, sig, err := service.SignOrder(wire.OrderHead, payload)
	if err != nil {
		t.Fatal(err)
	}
	return must(wire.Encode(&wire.Order{Kind: wire.OrderHead, Payload: payload, KeyID: id, Signature: sig}))(t)
}

func (h *history) header() archive.Header {
	id, pub := service.Public()
	return archive.Header{
		What: archive.DeviceTrail, Tenant: "main", Device: "dev", After: h.after, Last: h.head().Seq, MadeAt: noon, MadeBy: "ada",
		AKs: []archive.Key{{Public: h.tpm.public(h.t), Since: noon}}, Keys: []archive.Key{{ID: id, Public: pub, Since: noon}},
	}
}

// file is the sealed file of a history.
func (h *history) file() []byte {
	h.t.Helper()
	var buf bytes.Buffer
	w := must(archive.NewWriter(&buf, h.header()))(h.t)
	for _, ev := range h.entries {
		if err := w.Entry(ev); err != nil {
			h.t.Fatal(err)
		}
		if order := h.signed[ev.Seq]; order != nil {
			if err := w.Countersign(order, noon); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	must(w.Close(service))(h.t)
	return buf.Bytes()
}

// short is a trail of 12 entries: anchors at 1, 5 and 11, countersignatures behind 3 and 9.
func short(t testing.TB) *history {
	h := newHistory(t)
	h.anchor()
	h.event(2)
	h.countersign()
	h.event(1)
	h.anchor()
	h.event(4)
	h.countersign()
	h.event(1)
	h.anchor()
	h.event(1)
	return h
}

func given() archive.Trust {
	id, pub := service.Public()
	return archive.Trust{Keys: trust.Keyring{id: pub}, Anchor: checkAnchor}
}

// knows is given, by who knows the attestation key, too.
func knows(ak []byte) archive.Trust {
	by := given()
	by.AKs = []archive.Hash{sha256.Sum256(ak)}
	return by
}

func verify(t testing.TB, file []byte, by archive.Trust) archive.Report {
	t.Helper()
	return must(archive.Verify(bytes.NewReader(file), by))(t)
}

func TestWhole(t *testing.T) {
	file := short(t).file()
	for name, by := range map[string]archive.Trust{"given": given(), "file": {Anchor: checkAnchor}} {
		r := verify(t, file, by)
		if r.Verdict != archive.Whole || r.FirstBad != 0 || r.Entries != 12 || r.First != 1 || r.Head.Seq != 12 || r.Anchors != 3 || r.AnchoredTo != 10 ||
			r.Countersigned != 2 || r.CountersignedTo != 9 || len(r.AKs) != 1 || r.AK != "file" || !r.Sealed || r.Key != name || r.Device != "dev" {
			t.Errorf("%s: got %+v", name, r)
		}
	}
	if r := verify(t, file, archive.Trust{}); r.Verdict != archive.Whole || r.Anchors != 0 || r.AnchorsSeen != 3 || r.AnchoredTo != 0 {
		t.Errorf("without a check of anchors: got %+v", r)
	}
	for i, line := range bytes.Split(bytes.TrimSuffix(file, []byte("\n")), []byte("\n")) {
		if !json.Valid(line) {
			t.Errorf("line %d is no JSON: %s", i+1, line)
		}
	}
}

// TestAttacks breaks one thing each.
func TestAttacks(t *testing.T) {
	other := trust.NewOrderSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)))
	otherID, otherPub := other.Public()
	for _, c := range []struct {
		name  string
		make  func(h *history) []byte
		trust archive.Trust
		want  string
		bad   uint64
		text  string
	}{
		{"nothing", func(h *history) []byte { return h.file() }, given(), archive.Whole, 0, "nothing is missing"},
		{"an entry replaced by one with a good hash", func(h *history) []byte {
			forge(h, 6, func(r *wire.AuditRecord) { r.Kind = "link.down" })
			return h.file()
		}, given(), archive.Edited, 7, "does not follow entry 6"},
		{"a whole history made anew by who has the service's key", func(h *history) []byte {
			// The service may sign what it likes; the device's TPM does not follow.
			forge(h, 6, func(r *wire.AuditRecord) { r.Kind = "link.down" })
			relink(h, 7)
			return h.file()
		}, given(), archive.Forked, 9, "has signed another entry"},
		{"the same, and the countersignatures left out", func(h *history) []byte {
			forge(h, 6, func(r *wire.AuditRecord) { r.Kind = "link.down" })
			relink(h, 7)
			clear(h.signed)
			return h.file()
		}, given(), archive.Edited, 11, "anchor 11 does not hold"},
		{"what is shown", func(h *history) []byte {
			h.entries[5].Kind = "link.down"
			return h.file()
		}, given(), archive.Edited, 6, "shows something else"},
		{"a detail", func(h *history) []byte {
			h.entries[5].Detail = map[string]string{"try": "2"}
			return h.file()
		}, given(), archive.Edited, 6, "shows something else"},
		{"a body", func(h *history) []byte {
			h.entries[5].Body = append(bytes.Clone(h.entries[5].Body), 0)
			return h.file()
		}, given(), archive.Edited, 6, "not what was hashed"},
		{"an entry left out", func(h *history) []byte {
			h.entries = append(h.entries[:5:5], h.entries[6:]...)
			return h.file()
		}, given(), archive.Gap, 6, "6 to 6 are missing"},
		{"a countersigned one left out", func(h *history) []byte {
			order := h.signed[9]
			h.entries = append(h.entries[:8:8], h.entries[9:]...)
			h.signed[8] = order
			return h.file()
		}, given(), archive.Gap, 9, "9 to 9 are missing"},
		{"sealed without its end", func(h *history) []byte {
			h.entries = h.entries[:10]
			h.signed[10] = countersigned(h.t, archive.Point{Seq: 12, Hash: [32]byte{1}})
			return h.file()
		}, given(), archive.Truncated, 11, "goes on to entry 12"},
		{"sealed without its beginning", func(h *history) []byte {
			h.entries = h.entries[2:]
			return h.file()
		}, given(), archive.Truncated, 1, "cut at the front"},
		{"behind a segment", func(h *history) []byte {
			h.after = archive.Point{Seq: 2, Hash: h.entries[1].Hash}
			h.entries = h.entries[2:]
			return h.file()
		}, given(), archive.Whole, 0, ""},
		{"behind another segment", func(h *history) []byte {
			h.after = archive.Point{Seq: 2, Hash: [32]byte{9}}
			h.entries = h.entries[2:]
			return h.file()
		}, given(), archive.Edited, 3, "does not follow entry 2"},
		{"empty behind a segment", func(h *history) []byte {
			h.after = h.head()
			h.entries = nil
			return h.file()
		}, given(), archive.Whole, 0, "0 entries"},
		{"cut off with the seal", func(h *history) []byte { return cut(h.file(), 4) }, given(), archive.Truncated, 10, "ends before entry 10"},
		{"only the seal cut off", func(h *history) []byte { return cut(h.file(), 1) }, given(), archive.Unsealed, 0, "no seal"},
		{"sealed by somebody else", func(h *history) []byte { return h.file() }, archive.Trust{Keys: trust.Keyring{otherID: otherPub}}, archive.Unsealed, 0, "with the key that was given"},
		{"an anchor's counter as before", func(h *history) []byte {
			h.anchorAt(h.counter)
			return h.file()
		}, given(), archive.Forked, 13, "is a copy"},
		{"an anchor's counter gone back", func(h *history) []byte {
			h.anchorAt(1)
			return h.file()
		}, given(), archive.Forked, 13, "went back"},
		{"an anchor of another TPM", func(h *history) []byte {
			real := h.tpm
			h.tpm = newChip(h.t, 2)
			h.anchor()
			h.tpm = real
			return h.file()
		}, given(), archive.Edited, 13, "anchor 13 does not hold"},
		{"a TPM that was made up, by who has the service's key", func(h *history) []byte {
			h.tpm, h.counter, h.entries, h.signed = newChip(h.t, 3), 0, nil, map[uint64][]byte{}
			h.anchor()
			h.event(3)
			h.anchor()
			return h.file()
		}, knows(newChip(t, 1).public(t)), archive.Edited, 1, "no attestation key that was given"},
		{"the TPM that is known", func(h *history) []byte { return h.file() }, knows(newChip(t, 1).public(t)), archive.Whole, 0, ""},
		{"the countersignature of another trail", func(h *history) []byte {
			h.signed[12] = countersigned(h.t, archive.Point{Seq: 12, Hash: [32]byte{1}})
			return h.file()
		}, given(), archive.Forked, 12, "has signed another entry"},
		{"lost and explained", func(h *history) []byte {
			broken(h, h.entries[7])
			h.anchor()
			return h.file()
		}, given(), archive.Gap, 13, "its TPM signed"},
		{"lost and explained by who knows nothing any more", func(h *history) []byte {
			broken(h, fleet.AuditEvent{})
			h.anchor()
			return h.file()
		}, given(), archive.Gap, 13, "its TPM signed"},
		{"lost and explained, with what was never sent", func(h *history) []byte {
			broken(h, fleet.AuditEvent{Seq: 15, Hash: [32]byte{1}})
			h.anchor()
			return h.file()
		}, given(), archive.Gap, 13, "its TPM signed"},
		{"more gaps than are listed, and then one that is explained", func(h *history) []byte {
			for range 300 {
				h.add(wire.AuditRecord{Seq: h.head().Seq + 2, Kind: "link.up"})
			}
			broken(h, h.entries[7])
			h.anchor()
			return h.file()
		}, given(), archive.Gap, 13, "13 to 13 are missing"},
		{"broken without a number left out", func(h *history) []byte {
			known := h.entries[7]
			h.add(wire.AuditRecord{Seq: 13, Kind: "audit.break", Severity: "alarm", Break: &wire.Break{Seq: known.Seq, Hash: known.Hash}})
			h.anchor()
			return h.file()
		}, given(), archive.Whole, 0, "nothing is missing"},
		{"broken behind what is not there", func(h *history) []byte {
			h.add(wire.AuditRecord{Seq: 13, Kind: "audit.break", Severity: "alarm", Break: &wire.Break{Seq: 8, Hash: [32]byte{1}}})
			h.anchor()
			return h.file()
		}, given(), archive.Edited, 13, "does not follow"},
		{"lost and told without an anchor", func(h *history) []byte {
			broken(h, h.entries[7])
			h.event(1)
			return h.file()
		}, given(), archive.Gap, 13, "13 to 19 are missing"},
		{"lost and explained by what is not there", func(h *history) []byte {
			e := h.entries[7]
			e.Hash[0] ^= 1
			broken(h, e)
			h.anchor()
			return h.file()
		}, given(), archive.Gap, 13, "13 to 19 are missing"},
		{"explained, and changed behind", func(h *history) []byte {
			broken(h, h.entries[7])
			h.anchor()
			h.event(1)
			h.entries[len(h.entries)-1].Subject = "x"
			return h.file()
		}, given(), archive.Edited, 22, "shows something else"},
		{"an entry twice", func(h *history) []byte { return lines(h.file(), func(l []string) []string { return ins(l, 6, l[5]) }) }, given(), archive.Forked, 4, "twice"},
		{"two entries swapped", func(h *history) []byte {
			return lines(h.file(), func(l []string) []string { l[6], l[7] = l[7], l[6]; return l })
		}, given(), archive.Forked, 5, "stands behind"},
		{"when it was stored", func(h *history) []byte {
			return bytes.Replace(h.file(), []byte(`"stored_at":"2026-03-01T12:00:00Z"`), []byte(`"stored_at":"2026-03-01T13:00:00Z"`), 1)
		}, given(), archive.Edited, 1, "entry 1, or what stood before it"},
		{"a field twice", func(h *history) []byte {
			return bytes.Replace(h.file(), []byte(`"kind":"link.up"`), []byte(`"kind":"link.up","Kind":"link.up"`), 1)
		}, given(), archive.Edited, 2, "entry 2"},
		{"the header's device", func(h *history) []byte {
			return bytes.Replace(h.file(), []byte(`"device":"dev"`), []byte(`"device":"dew"`), 1)
		}, given(), archive.Edited, 0, "the header"},
		{"no header", func(h *history) []byte { return lines(h.file(), func(l []string) []string { return l[1:] }) }, given(), archive.Truncated, 0, "no header"},
		{"something behind the seal", func(h *history) []byte { return append(h.file(), "{}\n"...) }, given(), archive.Edited, 0, "behind the seal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := verify(t, c.make(short(t)), c.trust)
			if r.Verdict != c.want || r.FirstBad != c.bad || !strings.Contains(r.Text, c.text) {
				t.Errorf("got %s at %d: %s\nwant %s at %d: ...%s...", r.Verdict, r.FirstBad, r.Text, c.want, c.bad, c.text)
			}
			if explained := c.text == "its TPM signed" || c.name == "explained, and changed behind"; explained != (len(r.Missing) == 1 && r.Missing[0].Explained) {
				t.Errorf("missing: %+v", r.Missing)
			}
		})
	}
	for _, text := range []string{"", "x", "{}\n", "{\"line\":\"other\"}\n", strings.Repeat("x", 1<<20)} {
		if _, err := archive.Verify(strings.NewReader(text), given()); err == nil {
			t.Errorf("%.20q: got no error", text)
		}
	}
	if _, err := archive.Verify(strings.NewReader(`{"line":"header","version":2,"what":"device"}`+"\n"), given()); !errors.Is(err, archive.ErrNoTrail) {
		t.Errorf("a newer format: %v", err)
	}
}

// forge seals entry seq anew with something else in it.
func forge(h *history, seq uint64, change func(*wire.AuditRecord)) {
	e := &h.entries[seq-1]
	r := must(wire.AuditEntry{Body: e.Body, Hash: e.Hash}.Open())(h.t)
	change(&r)
	s := must(wire.SealAudit(r))(h.t)
	e.Body, e.Hash, e.Prev, e.Kind = s.Body, s.Hash, r.Prev, r.Kind
}

// relink chains all entries from seq on to the one before anew.
func relink(h *history, seq uint64) {
	for ; int(seq) <= len(h.entries); seq++ {
		prev := h.entries[seq-2].Hash
		forge(h, seq, func(r *wire.AuditRecord) { r.Prev = prev })
	}
}

// broken adds a break record behind an entry, seven numbers on.
func broken(h *history, known fleet.AuditEvent) {
	h.add(wire.AuditRecord{Seq: h.head().Seq + 8, Kind: "audit.break", Severity: "alarm", Break: &wire.Break{Seq: known.Seq, Hash: known.Hash}})
}

func lines(file []byte, change func([]string) []string) []byte {
	l := strings.SplitAfter(strings.TrimSuffix(string(file), "\n"), "\n")
	l[len(l)-1] += "\n"
	return []byte(strings.Join(change(l), ""))
}

func ins(l []string, at int, line string) []string {
	return append(append(append([]string{}, l[:at]...), line), l[at:]...)
}

// cut drops the last n lines.
func cut(file []byte, n int) []byte {
	return lines(file, func(l []string) []string { return l[:len(l)-n] })
}

func TestWriterRefuses(t *testing.T) {
	h := short(t)
	var buf bytes.Buffer
	w := must(archive.NewWriter(&buf, h.header()))(t)
	for _, ev := range h.entries[:2] {
		if err := w.Entry(ev); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Entry(h.entries[1]); err == nil {
		t.Error("an entry twice: got no error")
	}
	for _, bad := range []archive.Header{{What: "x"}, {What: archive.DeviceTrail}, {What: archive.ServiceTrail, Device: "dev"}} {
		if _, err := archive.NewWriter(&buf, bad); err == nil {
			t.Errorf("%+v: got no error", bad)
		}
	}
}

// BenchmarkVerify tells how fast a trail is read, and that it needs no memory that grows with it.
func BenchmarkVerify(b *testing.B) {
	h := newHistory(b)
	for range 100 {
		h.event(99)
		h.anchor()
	}
	file := h.file()
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if r := verify(b, file, given()); r.Verdict != archive.Whole {
			b.Fatal(r.Text)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(h.entries))/b.Elapsed().Seconds(), "entries/s")
}

func ExampleVerify() {
	_, err := archive.Verify(strings.NewReader("a file of something else"), archive.Trust{})
	fmt.Println(err)
	// Output: not a sealed audit trail
}
