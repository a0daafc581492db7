package cloud

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/archive"
	"github.com/tillward/tillward/cloud/internal/archive/shelf"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/ingest"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/trust"
	"github.com/tillward/tillward/simulator/tpmfarm"
)

// till has a TPM and records.
type till struct {
	t    *testing.T
	s    *Service
	in   *ingest.Ingest
	tpm  *tpm.TPM
	head fleet.Head
	sent uint64
}

func newTill(t *testing.T) *till {
	s := newService(t)
	s.signer = trust.NewOrderSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32)))
	farm, err := tpmfarm.Open(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(farm.Close)
	chip, err := farm.Start(t.Context(), t.TempDir())
	must(t, err)
	dev, err := tpm.Open("unix:" + chip.Socket())
	must(t, err)
	t.Cleanup(func() { _ = dev.Close() })
	ak, _, err := dev.Keys(t.Context())
	must(t, err)
	must(t, s.store.Enrol(t.Context(), fleet.Device{ID: "d1", Tenant: "main", Tier: fleet.TierC, EKHash: "e1", AKPublic: ak, EnrolledAt: time.Now()}))
	in := ingest.New(ingest.Options{Store: s.store, Stored: func(fleet.Intake, fleet.Outcome) {}, Anchor: s.anchored, Log: s.log})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- in.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	return &till{t: t, s: s, in: in, tpm: dev}
}

// records sends one entry, and waits until it is stored.
func (x *till) records(r wire.AuditRecord) {
	x.t.Helper()
	r.Seq, r.Prev, r.At, r.Boot, r.Severity = x.head.Seq+1, x.head.Hash, time.Now().UnixMilli(), wire.Boot{1}, "info"
	e, err := wire.SealAudit(r)
	must(x.t, err)
	x.head = fleet.Head{Seq: r.Seq, Hash: e.Hash}
	x.sent++
	b, err := wire.Encode(&wire.AuditBatch{Head: wire.Head{V: wire.Version, Boot: wire.Boot{1}, Seq: x.sent, Sent: r.At}, Entries: []wire.AuditEntry{e}})
	must(x.t, err)
	acked := make(chan error, 1)
	if !x.in.Submit(ingest.Message{Device: "d1", Tenant: "main", Channel: wire.Audit, Payload: b, At: time.Now(), Ack: func(err error) { acked <- err }}) {
		x.t.Fatal("no room")
	}
	must(x.t, <-acked)
}

// anchors has the TPM sign where the trail stands, or where the test says.
func (x *till) anchors(device string, head fleet.Head) {
	x.t.Helper()
	attest, sig, counter, err := x.tpm.Anchor(x.t.Context(), wire.AnchorBinding(device, head.Seq, head.Hash))
	must(x.t, err)
	x.records(wire.AuditRecord{Kind: "audit.anchor", Anchor: &wire.Anchor{Attest: attest, Signature: sig, Counter: counter, Why: "time"}})
}

func (x *till) state() fleet.TrailState {
	x.t.Helper()
	st, err := x.s.store.TrailStateOf(x.t.Context(), "d1")
	must(x.t, err)
	return st
}

// TestAnchoredAndCountersigned: what a TPM signed is found good, what it signed about something else is an
// alarm, the service signs what it holds, and a copy of all that is proven with nothing at hand but a key.
func TestAnchoredAndCountersigned(t *testing.T) {
	x := newTill(t)
	for range 3 {
		x.records(wire.AuditRecord{Kind: "link.up"})
		x.anchors("d1", x.head)
	}
	if st := x.state(); st.Anchored != 5 || st.AnchorCounter == 0 {
		t.Errorf("got %+v", st)
	}
	for range 2 { // the second time there is nothing new to sign
		must(t, x.s.countersign(t.Context(), "d1"))
	}
	got, err := x.s.store.Countersignatures(t.Context(), "d1", 0, 99)
	must(t, err)
	if len(got) != 1 || got[0].Seq != 6 || got[0].Hash != x.head.Hash {
		t.Fatalf("countersignatures: %+v", got)
	}
	order, err := wire.Decode[wire.Order](got[0].Order)
	must(t, err)
	id, pub := x.s.signer.Public()
	ring := trust.Keyring{id: pub}
	must(t, ring.VerifyOrder(wire.OrderHead, order.Payload, order.KeyID, order.Signature))

	sh := shelf.New(shelf.Options{Store: x.s.store, Signer: x.s.signer, Tenant: "main", Log: x.s.log})
	readOf := func(id fleet.DeviceID) archive.Report {
		var buf bytes.Buffer
		_, write, err := sh.Export(t.Context(), "main", id, 0, 0, "ada")
		must(t, err)
		must(t, write(t.Context(), &buf))
		r, err := archive.Verify(&buf, archive.Trust{Keys: ring, Anchor: enrol.VerifyAnchor})
		must(t, err)
		return r
	}
	read := func() archive.Report { return readOf("d1") }
	if r := read(); r.Verdict != archive.Whole || r.Anchors != 3 || r.AnchoredTo != 5 || r.CountersignedTo != 6 {
		t.Errorf("got %+v", r)
	}

	// The word of the TPM about another trail, or about another place in this one, is none about this one.
	alarms := func() int {
		all, err := x.s.store.TrailEntries(t.Context(), "", 0, 1<<62, 1000)
		must(t, err)
		n := 0
		for _, ev := range all {
			if ev.Kind == "audit.anchor_bad" && ev.Severity == "alarm" && ev.Detail["fault"] != "" {
				n++
			}
		}
		return n
	}
	before := x.head
	x.anchors("d2", x.head)
	x.anchors("d1", before)
	if st := x.state(); st.Anchored != 5 || alarms() != 1 { // the other came within the minute
		t.Errorf("%d alarms, %+v", alarms(), st)
	}
	if r := read(); r.Verdict != archive.Edited || r.FirstBad != 7 || r.AnchoredTo != 5 {
		t.Errorf("got %+v", r)
	}
}

// TestAnchorKeys: an anchor is held against a few keys and not against all that a device ever made. The one in use
// is among them, however many were made that it never got.
func TestAnchorKeys(t *testing.T) {
	x := newTill(t)
	counter := uint64(0)
	anchors := func(what string, good bool) {
		t.Helper()
		x.anchors("d1", x.head)
		if st := x.state(); (st.AnchorCounter > counter) != good {
			t.Errorf("%s: got %+v, want good %v", what, st, good)
		}
		counter = x.state().AnchorCounter
	}
	renews := func(n byte) {
		t.Helper()
		must(t, x.s.store.SetRenewed(t.Context(), "d1", fleet.Renewed{}, "", []byte{0, n})) // of one moment, the keys go by their bytes
	}
	for n := range byte(2 * fleet.AnchorKeys) {
		renews(n)
	}
	anchors("the key in use", true)
	must(t, x.s.store.PromoteAK(t.Context(), "d1", []byte{0, 2*fleet.AnchorKeys - 1}))
	if keys, err := x.s.store.AttestationKeys(t.Context(), "d1"); err != nil || len(keys) < fleet.AnchorKeys || keys[0].Public[1] != 2*fleet.AnchorKeys-1 {
		t.Errorf("got %x, %v", keys, err)
	}
	anchors("a key of long ago", false)
}

// TestPastIsProven: what a device left with the owner it had is signed in the name of the device.
func TestPastIsProven(t *testing.T) {
	x := newTill(t)
	x.records(wire.AuditRecord{Kind: "link.up"})
	x.anchors("d1", x.head)
	must(t, x.s.countersign(t.Context(), "d1"))
	must(t, x.s.store.PutOwnership(t.Context(), fleet.Ownership{Device: "d1", Voucher: []byte("v"), Entries: 1, Owner: "main", State: fleet.Released}, fleet.AuditEvent{Kind: "ownership.set"}))
	must(t, x.s.store.Reset(t.Context(), "d1", fleet.AuditEvent{Kind: "device.reset"}))
	var buf bytes.Buffer
	_, write, err := shelf.New(shelf.Options{Store: x.s.store, Signer: x.s.signer, Tenant: "main", Log: x.s.log}).Export(t.Context(), "main", "d1.1", 0, 0, "ada")
	must(t, err)
	must(t, write(t.Context(), &buf))
	r, err := archive.Verify(&buf, archive.Trust{Anchor: enrol.VerifyAnchor})
	if err != nil || r.Verdict != archive.Whole || r.Device != "d1" || r.Anchors != 1 || r.AnchoredTo != 1 || r.CountersignedTo != 2 {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestBrokenTrailIsNotCountersigned: the service does not say that it holds what it does not hold.
func TestBrokenTrailIsNotCountersigned(t *testing.T) {
	x := newTill(t)
	x.records(wire.AuditRecord{Kind: "link.up"})
	x.head.Seq += 3
	x.records(wire.AuditRecord{Kind: "link.up"})
	must(t, x.s.countersign(t.Context(), "d1"))
	if st := x.state(); st.Countersigned != 0 || !st.Broken || st.Missing != 3 {
		t.Errorf("got %+v", st)
	}
}

func TestKeepIsAYear(t *testing.T) {
	for text, want := range map[string]string{
		"12 months": "", "1 year": "", "366 days": "", "24 months": "", "10 years": "",
		"11 months": "PCI DSS 10.5.1", "365 days": "PCI DSS 10.5.1", "90 days": "PCI DSS 10.5.1",
		"0 months": "not a span", "months": "not a span", "12": "not a span", "12 weeks": "not a span", "": "not a span", "-1 years": "not a span", "12h": "not a span",
	} {
		var k Keep
		err := k.UnmarshalText([]byte(text))
		if err == nil {
			err = AuditConfig{Online: k}.check()
		}
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
		if b, _ := k.MarshalText(); err == nil {
			var again Keep
			if must(t, again.UnmarshalText(b)); again != k {
				t.Errorf("%q is written %q", text, b)
			}
		}
		if want == "PCI DSS 10.5.1" {
			must(t, AuditConfig{Online: k, AllowShort: true}.check())
		}
	}
	if err := (AuditConfig{}).check(); err == nil {
		t.Error("no span: got no error")
	}
	noon := time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC)
	if got := (Keep{Months: 12}).before(noon); !got.Equal(noon.AddDate(-1, 0, 0)) {
		t.Errorf("12 months before %s: %s", noon, got)
	}
}
