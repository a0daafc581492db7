package cloud

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/broker"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/live"
	"github.com/tillward/tillward/cloud/internal/owner"
	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
	deed "github.com/tillward/tillward/provisioning/owner"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// box is a device as its maker lists it.
type box struct {
	ek    [sha256.Size]byte
	id    string
	claim deed.Claim
}

func newBox(name string) box {
	ek := sha256.Sum256([]byte(name))
	id := deed.DeviceOf(ek)
	return box{ek, id, deed.NewClaim(id)}
}

func (b box) hash() string { return hex.EncodeToString(b.ek[:]) }

var (
	vendor = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	self   = ed25519.NewKeyFromSeed([]byte("01234567890123456789012345678901"))
)

// newService is a service of tenant main without its listeners.
func newService(t *testing.T) *Service {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), t.TempDir(), quiet)
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	b, err := broker.New(broker.Options{Listener: ln, Log: quiet, Clients: x509.NewCertPool, TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") },
	}})
	must(t, err)
	devices, err := ca.Open(t.TempDir(), "tenant-ca", ca.Options{})
	must(t, err)
	s := &Service{store: st, broker: b, hub: &live.Hub{}, devices: devices, tenant: "main", cfg: Config{Tenant: "main"}, log: quiet}
	s.owners = owner.New(owner.Options{
		Store: st, Tenant: "main", Name: "Main", Key: self, Vendors: []owner.Vendor{{Name: "Vend", Key: vendor.Public().(ed25519.PublicKey)}},
		Cut: b.Disconnect, Changed: func(fleet.DeviceID) {}, Log: quiet,
	})
	return s
}

// lists imports a maker's manifest with a label for each box.
func (s *Service) lists(t *testing.T, boxes ...box) {
	t.Helper()
	m := deed.Manifest{Vendor: "Vend", Batch: "B", MadeAt: time.Now()}
	for _, b := range boxes {
		m.Entries = append(m.Entries, deed.Listed{EKHash: b.hash(), Model: "vend-1", Serial: "S-" + b.id, ClaimHash: b.claim.Hash()})
	}
	f, err := deed.SignManifest(vendor, m)
	must(t, err)
	_, err = s.owners.ImportManifest(t.Context(), "main", f, "test")
	must(t, err)
}

// TestOwner asks who owns an applicant: by list, by certificate, by the code of
// its label, by its voucher and by what it was before.
func TestOwner(t *testing.T) {
	s := newService(t)
	for tenant, ek := range map[fleet.TenantID]string{"main": "listed", "other": "theirs"} {
		_, err := s.store.ImportEKs(t.Context(), tenant, []fleet.Listing{{EKHash: ek, Serial: "S-" + ek}}, fleet.AuditEvent{Kind: "ek.imported"})
		must(t, err)
	}
	_, err := s.store.ImportEKs(t.Context(), "main", []fleet.Listing{{EKHash: "corrected", Model: "vend-2"}}, fleet.AuditEvent{Kind: "ek.imported"})
	must(t, err)
	unclaimed, coded, sold := newBox("unclaimed"), newBox("coded"), newBox("sold")
	s.lists(t, unclaimed, coded, sold)
	for _, d := range []fleet.Device{
		{ID: "strong", Tenant: "main", Tier: fleet.TierA, EKHash: "strong", Serial: "S-1"},
		{ID: "modelled", Tenant: "main", Tier: fleet.TierA, EKHash: "modelled", Model: "vend-1"},
		{ID: "corrected", Tenant: "main", Tier: fleet.TierA, EKHash: "corrected", Model: "vend-1"},
		{ID: "moved", Tenant: "other", Tier: fleet.TierA, EKHash: "moved"},
		{ID: "revoked", Tenant: "main", Tier: fleet.TierA, EKHash: "revoked"},
	} {
		d.EnrolledAt = time.Now()
		must(t, s.store.Enrol(t.Context(), d))
	}
	must(t, s.store.Revoke(t.Context(), "main", "revoked", "stolen", fleet.AuditEvent{Kind: "device.revoked"}))
	s.sell(t, sold)
	for _, c := range []struct {
		name      string
		a         enrol.Applicant
		autoClaim bool
		tenant    string
		want      identity.Tier
		err       error
		check     string
	}{
		{"listed", enrol.Applicant{Device: "d1", EKHash: "listed"}, false, "main", identity.TierB, nil, ""},
		{"listed with a certificate", enrol.Applicant{Device: "d1", EKHash: "listed", Tier: identity.TierA}, false, "main", identity.TierA, nil, ""},
		{"listed, in its box", enrol.Applicant{Device: "d1", EKHash: "listed", Serial: "S-listed"}, false, "main", identity.TierB, nil, ""},
		{"listed, in another box", enrol.Applicant{Device: "d1", EKHash: "listed", Serial: "S-2"}, false, "", "", enrol.ErrRefused, "enrol.ek-duplicate"},
		{"on another tenant's list", enrol.Applicant{Device: "d1", EKHash: "theirs"}, true, "other", identity.TierB, nil, ""},
		{"unknown", enrol.Applicant{Device: "d1", EKHash: "unknown"}, true, "", "", enrol.ErrRefused, "enrol.ek-listed"},
		{"unknown with a code", enrol.Applicant{Device: "d1", EKHash: "unknown", Claim: coded.claim.URI()}, true, "", "", enrol.ErrRefused, "enrol.ek-listed"},
		{"a certificate, not claimed", enrol.Applicant{Device: "w1", EKHash: "w1", Tier: identity.TierA, Serial: "S-9", From: "192.0.2.1"}, false, "", "", enrol.ErrUnclaimed, ""},
		{"a certificate, claimed by itself", enrol.Applicant{Device: "d1", EKHash: "unknown", Tier: identity.TierC}, true, "main", identity.TierC, nil, ""},

		{"on a manifest", enrol.Applicant{Model: "vend-1", Device: unclaimed.id, EKHash: unclaimed.hash()}, false, "", "", enrol.ErrUnclaimed, ""},
		{"on a manifest, has a label", enrol.Applicant{Model: "vend-1", Device: unclaimed.id, EKHash: unclaimed.hash(), Tier: identity.TierA}, true, "", "", enrol.ErrUnclaimed, ""},
		{"with another label's code", enrol.Applicant{Model: "vend-1", Device: unclaimed.id, EKHash: unclaimed.hash(), Claim: coded.claim.Code}, false, "", "", enrol.ErrRefused, "enrol.claim"},
		{"with a label's code of before", enrol.Applicant{Model: "vend-1", Device: unclaimed.id, EKHash: unclaimed.hash(), Claim: deed.NewClaim(unclaimed.id).Code}, false, "", "", enrol.ErrRefused, "enrol.claim"},
		{"with no code at all", enrol.Applicant{Model: "vend-1", Device: unclaimed.id, EKHash: unclaimed.hash(), Claim: "1234"}, false, "", "", enrol.ErrRefused, "enrol.claim"},
		{"with the code", enrol.Applicant{Model: "vend-1", Device: coded.id, EKHash: coded.hash(), Claim: coded.claim.Code}, false, "main", identity.TierB, nil, ""},
		{"with the code, which it still shows", enrol.Applicant{Model: "vend-1", Device: coded.id, EKHash: coded.hash(), Claim: coded.claim.Code}, false, "main", identity.TierB, nil, ""},
		{"sold on", enrol.Applicant{Model: "vend-1", Device: sold.id, EKHash: sold.hash(), Tier: identity.TierA}, true, "", "", enrol.ErrRefused, "enrol.owner"},
		{"sold on, with its old code", enrol.Applicant{Model: "vend-1", Device: sold.id, EKHash: sold.hash(), Claim: sold.claim.Code}, true, "", "", enrol.ErrRefused, "enrol.owner"},

		{"back with the same tier", enrol.Applicant{Device: "strong", EKHash: "strong", Tier: identity.TierA}, true, "main", identity.TierA, nil, ""},
		{"back with a lower tier", enrol.Applicant{Device: "strong", EKHash: "strong", Tier: identity.TierC}, true, "", "", enrol.ErrRefused, "enrol.tier"},
		{"back in another box", enrol.Applicant{Device: "strong", EKHash: "strong", Tier: identity.TierA, Serial: "S-2"}, true, "", "", enrol.ErrRefused, "enrol.ek-duplicate"},
		{"of another tenant", enrol.Applicant{Device: "moved", EKHash: "moved", Tier: identity.TierA}, true, "", "", enrol.ErrRefused, "enrol.owner"},
		{"as another model than its manifest says", enrol.Applicant{Device: coded.id, EKHash: coded.hash(), Model: "vend-2", Claim: coded.claim.Code}, false, "", "", enrol.ErrRefused, "enrol.model"},
		{"as no model", enrol.Applicant{Device: coded.id, EKHash: coded.hash(), Claim: coded.claim.Code}, false, "", "", enrol.ErrRefused, "enrol.model"},
		{"back as the model it was", enrol.Applicant{Device: "modelled", EKHash: "modelled", Tier: identity.TierA, Model: "vend-1"}, true, "main", identity.TierA, nil, ""},
		{"back as another model", enrol.Applicant{Device: "modelled", EKHash: "modelled", Tier: identity.TierA, Model: "vend-2"}, true, "", "", enrol.ErrRefused, "enrol.model"},
		{"back as no model", enrol.Applicant{Device: "modelled", EKHash: "modelled", Tier: identity.TierA}, true, "", "", enrol.ErrRefused, "enrol.model"},
		{"back as another model, which a list says", enrol.Applicant{Device: "corrected", EKHash: "corrected", Tier: identity.TierA, Model: "vend-2"}, false, "main", identity.TierA, nil, ""},
		{"revoked", enrol.Applicant{Device: "revoked", EKHash: "revoked", Tier: identity.TierA}, true, "", "", enrol.ErrRefused, "identity.revoked"},
	} {
		s.cfg.Enrol.AutoClaim = c.autoClaim
		tenant, tier, err := (&directory{s}).Owner(t.Context(), c.a)
		if tenant != c.tenant && err == nil || tier != c.want && err == nil || !errors.Is(err, c.err) || enrol.Check(err) != c.check {
			t.Errorf("%s: got %q, %q, %v (%s); want %q, %q, %v (%s)", c.name, tenant, tier, err, enrol.Check(err), c.tenant, c.want, c.err, c.check)
		}
	}
	waiting, _, err := s.store.Waiting(t.Context(), "main", fleet.Page{})
	must(t, err)
	got := map[fleet.DeviceID]fleet.Waiting{}
	for _, w := range waiting {
		got[w.Device] = w
	}
	if w := got["w1"]; len(got) != 2 || w.Tier != fleet.TierA || w.From != "192.0.2.1" || w.Serial != "S-9" || w.Listed || !got[fleet.DeviceID(unclaimed.id)].Listed {
		t.Errorf("%+v wait, want w1 and the one that is listed", waiting)
	}
}

// sell gives a device to another owner, who has accepted.
func (s *Service) sell(t *testing.T, b box) {
	t.Helper()
	now := time.Now()
	pub := vendor.Public().(ed25519.PublicKey)
	next := ed25519.NewKeyFromSeed([]byte("next owner's key, 32 bytes long."))
	v, err := deed.NewVoucher(vendor, deed.Product{Vendor: "Vend", EKHash: b.ek, Model: "vend-1", Serial: "S-" + b.id}, now)
	must(t, err)
	for _, step := range []struct {
		from ed25519.PrivateKey
		to   deed.Party
		by   ed25519.PrivateKey
	}{
		{vendor, deed.Party{Key: self.Public().(ed25519.PublicKey), Name: "Main"}, self},
		{self, deed.Party{Key: next.Public().(ed25519.PublicKey), Name: "Next"}, next},
	} {
		v, err = v.Transfer(pub, step.from, step.to, deed.Terms{MayTransfer: true}, now)
		must(t, err)
		v, err = v.Accept(pub, step.by, now)
		must(t, err)
		own := v
		if step.by.Equal(self) {
			_, err = s.owners.ImportVouchers(t.Context(), "main", deed.EncodeOrder([]deed.Voucher{own}), "test")
			must(t, err)
		}
	}
	_, err = s.owners.ImportVouchers(t.Context(), "main", deed.EncodeOrder([]deed.Voucher{v}), "test")
	must(t, err)
}

// TestEnrolled records members, and refuses what has changed since Owner spoke.
func TestEnrolled(t *testing.T) {
	s := newService(t)
	b, sold := newBox("one"), newBox("sold")
	d := &directory{s}
	member := func(b box) enrol.Member {
		return enrol.Member{
			Identity: identity.Identity{Tenant: "main", Device: b.id, Tier: identity.TierB, Model: "vend-1", Serial: "c1", NotAfter: time.Now().Add(time.Hour)},
			Recovery: identity.Identity{Serial: "r1"}, EKHash: b.hash(), SerialNo: "S-" + b.id, AK: []byte{1}, ResetCount: 3,
		}
	}
	must(t, d.Enrolled(t.Context(), member(b)))
	have, err := s.store.DeviceByID(t.Context(), fleet.DeviceID(b.id))
	if err != nil || have.CertSerial != "c1" || have.Recovery != "r1" || have.ResetCount != 3 || have.Trust != fleet.Pending {
		t.Errorf("got %+v, %v", have, err)
	}
	other := member(b)
	other.SerialNo = "S-2"
	if err := d.Enrolled(t.Context(), other); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != "enrol.ek-duplicate" {
		t.Errorf("in another box: got %v", err)
	}
	s.sell(t, sold)
	if err := d.Enrolled(t.Context(), member(sold)); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != "enrol.owner" {
		t.Errorf("sold on: got %v", err)
	}
	must(t, s.store.Revoke(t.Context(), "main", fleet.DeviceID(b.id), "stolen", fleet.AuditEvent{Kind: "device.revoked"}))
	if err := d.Enrolled(t.Context(), member(b)); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != "identity.revoked" {
		t.Errorf("revoked: got %v", err)
	}
}

// TestTooManyKeys: a device that has used attestation keys without end is told so, by renewal and by enrolment.
func TestTooManyKeys(t *testing.T) {
	s := newService(t)
	b := newBox("one")
	d := &directory{s}
	shown := identity.Identity{Tenant: "main", Device: b.id, Tier: identity.TierB, Model: "vend-1", Serial: "c1", NotAfter: time.Now().Add(time.Hour)}
	must(t, d.Enrolled(t.Context(), enrol.Member{Identity: shown, EKHash: b.hash(), AK: []byte{1}}))
	in := fleet.Intake{Device: fleet.DeviceID(b.id), Tenant: "main", At: time.Now()}
	for seq := uint64(1); seq <= 256; seq++ {
		in.Audit = append(in.Audit, fleet.AuditEvent{Seq: seq, At: time.Now(), Kind: "audit.anchor", Severity: "info", Hash: [32]byte{byte(seq)}})
		in.Anchors = append(in.Anchors, fleet.AnchorSeen{Seq: seq, Counter: seq, Key: fleet.AttestationKey{Public: []byte{2, byte(seq)}, Since: time.Now()}})
	}
	_, err := s.store.Commit(t.Context(), []fleet.Intake{in})
	must(t, err)
	must(t, d.Renewed(t.Context(), enrol.Renewal{Shown: shown}))
	if err := d.Renewed(t.Context(), enrol.Renewal{Shown: shown, NextAK: []byte{3}}); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != "identity.keys" {
		t.Errorf("renewal: got %v", err)
	}
	if err := d.Enrolled(t.Context(), enrol.Member{Identity: shown, EKHash: b.hash(), AK: []byte{3}}); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != "identity.keys" {
		t.Errorf("enrolment: got %v", err)
	}
}

// TestStanding renews what a certificate opens, and nothing else.
func TestStanding(t *testing.T) {
	s := newService(t)
	b := newBox("one")
	d := &directory{s}
	id := fleet.DeviceID(b.id)
	must(t, s.store.Enrol(t.Context(), fleet.Device{
		ID: id, Tenant: "main", Tier: fleet.TierB, Model: "vend-1", EKHash: b.hash(), AKPublic: []byte{1}, CertSerial: "c1", Recovery: "r1",
		CertNotAfter: time.Now().Add(time.Hour), ResetCount: 5, EnrolledAt: time.Now(),
	}))
	shown := identity.Identity{Tenant: "main", Device: b.id, Serial: "c1", Issuer: s.issuer()}
	st, err := d.Standing(t.Context(), shown)
	if err != nil || string(st.AK) != "\x01" || st.EKHash != b.hash() || st.Tier != identity.TierB || st.Model != "vend-1" || st.Good {
		t.Errorf("got %+v, %v", st, err)
	}
	must(t, s.store.Appraised(t.Context(), fleet.Attestation{Device: id, At: time.Now(), Trust: fleet.Attested, ResetCount: 5, Digest: []byte{1}}, false))
	if st, err := d.Standing(t.Context(), shown); err != nil || !st.Good {
		t.Errorf("after good evidence: got %+v, %v", st, err)
	}
	renewal := enrol.Renewal{Shown: shown, Certificate: identity.Identity{Serial: "c2", NotAfter: time.Now().Add(2 * time.Hour)}, Recovery: identity.Identity{Serial: "r2"}, NextAK: []byte{2}, ResetCount: 5}
	falling := renewal
	falling.ResetCount = 4
	if err := d.Renewed(t.Context(), falling); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != "tpm.reset-count" {
		t.Errorf("a TPM that has started fewer times: got %v", err)
	}
	must(t, d.Renewed(t.Context(), renewal))
	if have, err := s.store.DeviceByID(t.Context(), id); err != nil || have.CertSerial != "c1" || have.Next.CertSerial != "c2" || string(have.NextAK) != "\x02" {
		t.Errorf("got %+v, %v; want the older in use until the newer is shown", have, err)
	}
	next := shown
	next.Serial = "c2"
	if _, err := d.Standing(t.Context(), next); err != nil {
		t.Errorf("the newer: got %v", err)
	}
	for name, c := range map[string]struct {
		id    identity.Identity
		check string
	}{
		"the older":                     {shown, "identity.replaced"},
		"of another tenant":             {identity.Identity{Tenant: "other", Device: b.id, Serial: "c2", Issuer: s.issuer()}, "identity.certificate"},
		"of nobody":                     {identity.Identity{Tenant: "main", Device: "d9", Serial: "c2", Issuer: s.issuer()}, "identity.certificate"},
		"of an issuer that is not ours": {identity.Identity{Tenant: "main", Device: b.id, Serial: "c2", Issuer: "ab"}, "identity.certificate"},
	} {
		if _, err := d.Standing(t.Context(), c.id); !errors.Is(err, enrol.ErrRefused) || enrol.Check(err) != c.check {
			t.Errorf("%s: got %v, want %s", name, err, c.check)
		}
	}
	must(t, s.store.Revoke(t.Context(), "main", id, "stolen", fleet.AuditEvent{Kind: "device.revoked"}))
	if _, err := d.Standing(t.Context(), next); enrol.Check(err) != "identity.revoked" {
		t.Errorf("revoked: got %v", err)
	}
	if err := d.Renewed(t.Context(), renewal); enrol.Check(err) != "identity.revoked" {
		t.Errorf("renewed when revoked: got %v", err)
	}
}

// TestExpiring alarms for each certificate that is about to end once, also
// after the service was started again.
func TestExpiring(t *testing.T) {
	s := newService(t)
	now, left := time.Now(), 3*24*time.Hour
	for id, ends := range map[fleet.DeviceID]time.Duration{"soon": time.Hour, "later": 10 * 24 * time.Hour, "over": -time.Hour, "long-over": -30 * 24 * time.Hour} {
		must(t, s.store.Enrol(t.Context(), fleet.Device{ID: id, Tenant: "main", Tier: fleet.TierB, EKHash: string(id), CertSerial: "c-" + string(id), CertNotAfter: now.Add(ends), EnrolledAt: now}))
	}
	told := map[string]time.Time{}
	for range 2 {
		must(t, s.expiring(t.Context(), now, left, told))
	}
	alarms := func() map[string]int {
		all, _, err := s.store.AuditTrail(t.Context(), "main", "", true, fleet.Page{})
		must(t, err)
		n := map[string]int{}
		for _, ev := range all {
			if ev.Kind == "identity.expiring" && ev.Severity == "alarm" && ev.Detail["certificate"] == "c-"+ev.Subject {
				n[ev.Subject]++
			}
		}
		return n
	}
	if got := alarms(); len(got) != 2 || got["soon"] != 1 || got["over"] != 1 {
		t.Errorf("got %v, want one for soon and one for over", got)
	}
	again, err := s.toldExpiring(t.Context(), now.Add(-left))
	must(t, err)
	must(t, s.expiring(t.Context(), now, left, again))
	if got := alarms(); len(got) != 2 || got["soon"] != 1 {
		t.Errorf("after a start: got %v", got)
	}
	must(t, s.store.SetRenewed(t.Context(), "later", fleet.Renewed{CertSerial: "c-new", NotAfter: now.Add(60 * 24 * time.Hour)}, "", nil))
	must(t, s.expiring(t.Context(), now.Add(9*24*time.Hour), left, again))
	if got := alarms(); got["later"] != 0 {
		t.Errorf("renewed, and an alarm: %v", got)
	}
}
