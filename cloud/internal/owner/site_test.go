package owner_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/owner"
	"github.com/tillward/tillward/cloud/internal/store"
	deed "github.com/tillward/tillward/provisioning/owner"
)

var quiet = slog.New(slog.DiscardHandler)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// key is that of somebody with a letter for a name: v and w make devices, a, b
// and c own them.
func key(letter byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{letter}, ed25519.SeedSize))
}

func public(letter byte) ed25519.PublicKey { return key(letter).Public().(ed25519.PublicKey) }

func party(letter byte) deed.Party {
	return deed.Party{Key: public(letter), Name: "Owner " + string(letter), Tenant: string(letter)}
}

// site is the registry of tenant a, b or c over a store of its own.
type site struct {
	*owner.Registry
	letter byte
	tenant fleet.TenantID
	store  *store.Store

	mu        sync.Mutex
	told, cut []string
}

func newSite(t *testing.T, letter byte, change ...func(*owner.Options)) *site {
	t.Helper()
	st, err := store.Open(t.Context(), t.TempDir(), quiet)
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	s := &site{letter: letter, tenant: fleet.TenantID(letter), store: st}
	s.Registry = owner.New(s.options(change...))
	return s
}

func (s *site) options(change ...func(*owner.Options)) owner.Options {
	o := owner.Options{
		Store: s.store, Tenant: s.tenant, Name: "Owner " + string(s.letter), Key: key(s.letter), Waiting: true, Log: quiet, Changed: func(fleet.DeviceID) {},
		Vendors: []owner.Vendor{{Name: "Vend", Key: public('v')}, {Name: "Wend", Key: public('w')}},
		Relinquish: func(_ context.Context, t fleet.TenantID, device fleet.DeviceID, mark, _ string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told = append(s.told, fmt.Sprintf("%s/%s %.4s", t, device, mark))
			return nil
		},
		Cut: func(device fleet.DeviceID, _ string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.cut = append(s.cut, string(device))
		},
	}
	for _, f := range change {
		f(&o)
	}
	return o
}

// asked returns how many devices were told to give up and how many were cut off.
func (s *site) asked() (told, cut int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.told), len(s.cut)
}

// run lets devices go until the test ends.
func (s *site) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

// wait waits until the device stands there.
func (s *site) wait(t *testing.T, id fleet.DeviceID, want fleet.OwnershipState) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		o, err := s.store.Ownership(t.Context(), id)
		_, gone := s.store.DeviceByID(t.Context(), id)
		if must(t, err); o.State == want && (want != fleet.Released || gone != nil) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it is %s, want %s", o.State, want)
		}
	}
}

// severity is that of the newest entry of a kind about a device; empty when
// there is none.
func (s *site) severity(t *testing.T, kind string, id fleet.DeviceID) string {
	t.Helper()
	all, _, err := s.store.AuditTrail(t.Context(), s.tenant, "", true, fleet.Page{Limit: 1000})
	must(t, err)
	for _, ev := range all {
		if ev.Kind == kind && ev.Subject == string(id) {
			return ev.Severity
		}
	}
	return ""
}

func (s *site) state(t *testing.T, id fleet.DeviceID) fleet.OwnershipState {
	t.Helper()
	o, err := s.store.Ownership(t.Context(), id)
	must(t, err)
	return o.State
}

// box is a device as its maker knows it.
type box struct {
	n     byte
	ek    [sha256.Size]byte
	id    fleet.DeviceID
	claim deed.Claim
}

func newBox(n byte) box {
	ek := sha256.Sum256([]byte{n})
	id := deed.DeviceOf(ek)
	return box{n, ek, fleet.DeviceID(id), deed.NewClaim(id)}
}

func (b box) hash() string { return hex.EncodeToString(b.ek[:]) }

func (b box) serial() string { return fmt.Sprintf("S-%d", b.n) }

// voucher is the maker's, still his.
func (b box) voucher(t testing.TB, at time.Time) deed.Voucher {
	t.Helper()
	v, err := deed.NewVoucher(key('v'), deed.Product{Vendor: "Vend", EKHash: b.ek, Model: "vend-1", Serial: b.serial(), Order: "4711"}, at)
	must(t, err)
	return v
}

// offered is the maker's voucher, offered to somebody.
func (b box) offered(t testing.TB, to deed.Party) deed.Voucher {
	t.Helper()
	return transfer(t, b.voucher(t, time.Now()), 'v', to, time.Time{})
}

func transfer(t testing.TB, v deed.Voucher, from byte, to deed.Party, notBefore time.Time) deed.Voucher {
	t.Helper()
	v, err := v.Transfer(public('v'), key(from), to, deed.Terms{NotBefore: notBefore, MayTransfer: true}, time.Now())
	must(t, err)
	return v
}

func manifest(t testing.TB, vendor string, signer byte, boxes ...box) []byte {
	t.Helper()
	m := deed.Manifest{Vendor: vendor, Batch: "B1", Order: "4711", MadeAt: time.Now()}
	for _, b := range boxes {
		m.Entries = append(m.Entries, deed.Listed{EKHash: b.hash(), Model: "vend-1", Serial: b.serial(), ClaimHash: b.claim.Hash()})
	}
	f, err := deed.SignManifest(key(signer), m)
	must(t, err)
	return f
}

// enrolled makes a box a member of the site.
func (s *site) enrolled(t *testing.T, b box) {
	t.Helper()
	must(t, s.store.Enrol(t.Context(), fleet.Device{
		ID: b.id, Tenant: s.tenant, Tier: fleet.TierB, Model: "vend-1", Serial: b.serial(), EKHash: b.hash(), CertSerial: "c1", CertNotAfter: time.Now().Add(time.Hour), EnrolledAt: time.Now(),
	}))
}

// imports takes one voucher in and returns what became of it.
func (s *site) imports(t *testing.T, v deed.Voucher) (string, error) {
	t.Helper()
	all, err := s.ImportVouchers(t.Context(), s.tenant, deed.EncodeOrder([]deed.Voucher{v}), "anna")
	if err != nil {
		return "", err
	}
	return all[0].Outcome, nil
}

// voucher is what the site has on file.
func (s *site) voucher(t *testing.T, id fleet.DeviceID) deed.Voucher {
	t.Helper()
	o, err := s.store.Ownership(t.Context(), id)
	must(t, err)
	v, err := deed.DecodeVoucher(o.Voucher)
	must(t, err)
	return v
}

// owned is a box that the site owns by its voucher and that is a member.
func (s *site) owned(t *testing.T, n byte) box {
	t.Helper()
	b := newBox(n)
	if got, err := s.imports(t, b.offered(t, party(s.letter))); err != nil || got != "accepted" {
		t.Fatalf("got %q, %v", got, err)
	}
	s.enrolled(t, b)
	return b
}
