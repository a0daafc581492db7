package enrol

import (
	"bytes"
	"context"
	"crypto/tls"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/hal/tpm"
	"github.com/tillward/tillward/provisioning/identity"
)

// registry is what the service of the test knows of its members: a certificate
// stays good until the one that follows it is shown.
type registry struct {
	mu      sync.Mutex
	members map[string]*file
	renewed []Renewal
}

type file struct {
	Standing
	serials map[string]identity.Role
	next    string // serial number that ends the others of its role when it is shown
	nextRec string
	revoked bool
	broken  error // of the database
}

func (r *registry) enrolled(m Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members == nil {
		r.members = make(map[string]*file)
	}
	f := &file{
		Standing: Standing{AK: m.AK, EKHash: m.EKHash, Tier: m.Tier, Model: m.Model, Good: true},
		serials:  map[string]identity.Role{m.Serial: identity.RoleMember},
	}
	if m.Recovery.Serial != "" {
		f.serials[m.Recovery.Serial] = identity.RoleRecovery
	}
	r.members[m.Device] = f
}

func (r *registry) Standing(_ context.Context, id identity.Identity) (Standing, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.members[id.Device]
	switch {
	case f == nil:
		return Standing{}, Refuse("identity.unknown", "nobody knows this device; enrol it")
	case f.broken != nil:
		return Standing{}, f.broken
	case f.revoked:
		return Standing{}, Refuse("identity.revoked", "the device was revoked; its owner readmits it")
	}
	role, ok := f.serials[id.Serial]
	if !ok || role != id.Role {
		return Standing{}, Refuse("identity.replaced", "the certificate was replaced; enrol again")
	}
	if id.Serial == f.next || id.Serial == f.nextRec {
		maps.DeleteFunc(f.serials, func(s string, other identity.Role) bool { return other == role && s != id.Serial })
	}
	return f.Standing, nil
}

func (r *registry) Renewed(_ context.Context, n Renewal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed = append(r.renewed, n)
	f := r.members[n.Shown.Device]
	for _, id := range []identity.Identity{n.Certificate, n.Recovery} {
		if id.Serial == "" {
			continue
		}
		f.serials[id.Serial] = id.Role
		if id.Role == identity.RoleRecovery {
			f.nextRec = id.Serial
		} else {
			f.next = id.Serial
		}
	}
	if n.AK != nil && bytes.Equal(n.AK, f.NextAK) {
		f.AK, f.NextAK = f.NextAK, nil
	}
	if n.NextAK != nil {
		f.NextAK = n.NextAK
	}
	return nil
}

// of returns what is on file of a device.
func (r *registry) of(device string) *file {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members[device]
}

// disk is the state partition: what was saved last.
type disk struct {
	saved Result
	fails error
}

func (d *disk) save(_ context.Context, r Result) error {
	if d.fails != nil {
		return d.fails
	}
	d.saved = r
	return nil
}

// join enrols a till and returns its client and disk.
func (s *site) join(t *testing.T, dev *tpm.TPM) (*Client, *disk) {
	t.Helper()
	c, d := s.client(dev), &disk{}
	c.Save = d.save
	res, err := c.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.save(t.Context(), res); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(t.Context(), res); err != nil {
		t.Fatal(err)
	}
	return c, d
}

// connects checks that the service takes the device by the chain and key it has.
func (s *site) connects(t *testing.T, dev *tpm.TPM, have Result, role identity.Role) {
	t.Helper()
	chain, public := have.Chain, have.LDevID
	if role == identity.RoleRecovery {
		chain, public = have.Recovery, have.RecoveryKey
	}
	key, err := dev.SignerFor(t.Context(), public)
	if err != nil {
		t.Fatal(err)
	}
	id, err := handshakeBy(t, s, tls.Certificate{Certificate: chain, PrivateKey: key})
	if err != nil {
		t.Fatalf("connect as %q: %v", role, err)
	}
	if id.Device != have.Device || id.Role != role {
		t.Errorf("the service saw %+v, want role %q of %s", id, role, have.Device)
	}
	if _, err := s.dir.reg.Standing(t.Context(), id); err != nil {
		t.Errorf("connect as %q: %v", role, err)
	}
}

func TestEnrolmentGivesARecoveryCertificate(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	_, d := s.join(t, dev)
	s.connects(t, dev, d.saved, identity.RoleMember)
	s.connects(t, dev, d.saved, identity.RoleRecovery)
	member, err := leaf(d.saved.Chain)
	if err != nil {
		t.Fatal(err)
	}
	rescue, err := leaf(d.saved.Recovery)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := time.Until(rescue.NotAfter).Round(time.Hour), 10*time.Hour; got != want {
		t.Errorf("recovery certificate lives %s, want %s", got, want)
	}
	if samePublic(member.PublicKey, rescue.PublicKey) {
		t.Error("both certificates are for one key")
	}
	m := s.dir.members[0]
	if m.Recovery.Role != identity.RoleRecovery || m.Recovery.Serial != rescue.SerialNumber.Text(16) || m.Serial != member.SerialNumber.Text(16) {
		t.Errorf("the directory got %+v", m)
	}
	if string(d.saved.Voucher) != d.saved.Device {
		t.Errorf("voucher %q", d.saved.Voucher)
	}
}

func TestRenewal(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	c, d := s.join(t, dev)
	for range 3 {
		was := d.saved
		now, err := c.Renew(t.Context(), was)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(now.LDevID, was.LDevID) || bytes.Equal(now.Chain[0], was.Chain[0]) || !bytes.Equal(d.saved.Chain[0], now.Chain[0]) {
			t.Error("the device has no new key and certificate")
		}
		s.connects(t, dev, now, identity.RoleMember)
		s.connects(t, dev, now, identity.RoleRecovery)
		if _, err := dev.SignerFor(t.Context(), was.LDevID); err == nil {
			t.Error("the old key is there still")
		}
		if id := s.dir.reg.renewed[len(s.dir.reg.renewed)-1]; id.Certificate.Model != "box-9" || id.Certificate.Tier != identity.TierC || id.ResetCount == 0 {
			t.Errorf("the registry got %+v", id)
		}
	}
	s.audited(t, "enrol.renewed info "+d.saved.Device)
}

func TestAKRotation(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	c, d := s.join(t, dev)
	for range 3 {
		was := d.saved
		now, err := c.RotateAK(t.Context(), was)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(now.AK, was.AK) || !bytes.Equal(d.saved.AK, now.AK) {
			t.Error("the device has no new attestation key")
		}
		f := s.dir.reg.of(now.Device)
		if !bytes.Equal(f.NextAK, now.AK) || !bytes.Equal(f.AK, was.AK) {
			t.Error("the service does not know both")
		}
		// What follows is proved by the new one, which from then on is the one.
		if now, err = c.Renew(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.AK, now.AK) || f.NextAK != nil {
			t.Error("the service still waits for the new one")
		}
	}
	s.audited(t, "enrol.ak-changed info "+d.saved.Device)
}
