package enrol

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

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

// reissue gives the device another certificate for the key of a role, with as
// much life left; a negative one has ended.
func (s *site) reissue(t *testing.T, d *disk, role identity.Role, left time.Duration) {
	t.Helper()
	chain, public := &d.saved.Chain, d.saved.LDevID
	if role == identity.RoleRecovery {
		chain, public = &d.saved.Recovery, d.saved.RecoveryKey
	}
	key, _, err := deviceKey(public, "key")
	if err != nil {
		t.Fatal(err)
	}
	id := identity.Identity{Tenant: "demo", Device: d.saved.Device, Tier: identity.TierC, Model: "box-9", Role: role}
	der, err := s.issuer.IssueDevice(id, key, left)
	if err != nil {
		t.Fatal(err)
	}
	*chain = append([][]byte{der}, s.issuer.Chain()...)
	cert, err := leaf(*chain)
	if err != nil {
		t.Fatal(err)
	}
	s.dir.reg.of(d.saved.Device).serials[cert.SerialNumber.Text(16)] = role
}

func (s *site) last(t *testing.T) Renewal {
	t.Helper()
	s.dir.reg.mu.Lock()
	defer s.dir.reg.mu.Unlock()
	if len(s.dir.reg.renewed) == 0 {
		t.Fatal("nothing was renewed")
	}
	return s.dir.reg.renewed[len(s.dir.reg.renewed)-1]
}

// A certificate that lies still for long is renewed with the other.
func TestRecoveryCertificateIsRenewedAtHalfOfItsLife(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	c, d := s.join(t, dev)
	if _, err := c.Renew(t.Context(), d.saved); err != nil {
		t.Fatal(err)
	}
	if r := s.last(t); r.Recovery.Serial != "" {
		t.Errorf("renewed a fresh recovery certificate: %+v", r)
	}
	s.reissue(t, d, identity.RoleRecovery, time.Minute) // of six
	if _, err := c.Renew(t.Context(), d.saved); err != nil {
		t.Fatal(err)
	}
	if r := s.last(t); r.Recovery.Serial == "" || r.Recovery.Role != identity.RoleRecovery || r.Certificate.Role != identity.RoleMember {
		t.Errorf("renewed %+v", r)
	}
	s.connects(t, dev, d.saved, identity.RoleMember)
	s.connects(t, dev, d.saved, identity.RoleRecovery)
}

// What a recovery certificate, or a device that did not boot well, gets.
func TestOnlyGoodEvidenceEarnsAMembersCertificate(t *testing.T) {
	s := newSite(t, true)
	c, d := s.join(t, s.till(t))
	bad := func(identity.Identity, [][]byte, []byte) (bool, error) {
		return false, Refuse("boot.unknown-event", "an event that nobody knows")
	}
	noted := func(identity.Identity, [][]byte, []byte) (bool, error) { return true, errors.New("odd") }
	start := d.saved
	for name, tt := range map[string]struct {
		ended   bool // the member's certificate: it comes with the recovery certificate
		boot    func(identity.Identity, [][]byte, []byte) (bool, error)
		nobody  bool // judges boots
		doubt   bool // the newest evidence was not good
		half    bool // of the recovery certificate's life is over
		member  bool // gets a member's certificate
		rescued bool // gets a recovery certificate
		check   string
	}{
		"member":                            {member: true},
		"member, both":                      {half: true, member: true, rescued: true},
		"member, finding":                   {boot: noted, member: true},
		"member, nobody judges":             {nobody: true, member: true},
		"member, nobody judges, in doubt":   {nobody: true, doubt: true, check: "identity.evidence"},
		"member, in doubt, good boot":       {doubt: true, member: true},
		"member, in doubt, both":            {nobody: true, doubt: true, half: true, rescued: true, check: "identity.evidence"},
		"member, bad boot":                  {boot: bad, check: "boot.unknown-event"},
		"member, bad boot, both":            {boot: bad, half: true, rescued: true, check: "boot.unknown-event"},
		"recovery, good boot":               {ended: true, member: true},
		"recovery, good boot, both":         {ended: true, half: true, member: true, rescued: true},
		"recovery, bad boot":                {ended: true, boot: bad, check: "boot.unknown-event"},
		"recovery, bad boot, both":          {ended: true, boot: bad, half: true, rescued: true, check: "boot.unknown-event"},
		"recovery, nobody judges":           {ended: true, nobody: true, check: "identity.recovery"},
		"recovery, nobody judges, both":     {ended: true, nobody: true, half: true, rescued: true, check: "identity.recovery"},
		"recovery, silence is no good boot": {ended: true, boot: func(identity.Identity, [][]byte, []byte) (bool, error) { return false, nil }, check: "enrol.boot"},
	} {
		t.Run(name, func(t *testing.T) {
			d.saved = start
			s.dir.reg.of(start.Device).Good = !tt.doubt
			s.judgeBy(tt.boot)
			s.server.o.Boot = s.judge
			if tt.nobody {
				s.server.o.Boot = nil
			}
			left := time.Hour
			if tt.ended {
				left = -time.Minute
			}
			s.reissue(t, d, identity.RoleMember, left)
			left = time.Hour
			if tt.half {
				left = time.Minute
			}
			s.reissue(t, d, identity.RoleRecovery, left)
			was := d.saved
			now, err := c.Renew(t.Context(), was)
			if Check(err) != tt.check || (err == nil) != tt.member || (err != nil && !errors.Is(err, ErrRefused)) {
				t.Fatalf("got %v with check %q, want %q", err, Check(err), tt.check)
			}
			if got := !bytes.Equal(now.Chain[0], was.Chain[0]); got != tt.member {
				t.Errorf("a member's certificate: %t, want %t", got, tt.member)
			}
			if got := !bytes.Equal(now.Recovery[0], was.Recovery[0]); got != tt.rescued {
				t.Errorf("a recovery certificate: %t, want %t", got, tt.rescued)
			}
			if tt.member || tt.rescued {
				r := s.last(t)
				if (r.Certificate.Serial != "") != tt.member || (r.Recovery.Serial != "") != tt.rescued {
					t.Errorf("the registry got %+v", r)
				}
			}
			if tt.member {
				s.connects(t, c.TPM.(*tpm.TPM), d.saved, identity.RoleMember)
				start = d.saved
			}
			if tt.rescued {
				s.connects(t, c.TPM.(*tpm.TPM), d.saved, identity.RoleRecovery)
			}
		})
	}
	s.audited(t, "enrol.boot warn "+start.Device+" enrol.boot odd")
}

// forgery is a renewal with something changed on the way.
func (c *Client) forge(t *testing.T, have Result, change func(*renewal, *channel)) error {
	t.Helper()
	dev, err := c.keys()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := c.certificate(t.Context(), dev, have)
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.UseLDevID(t.Context(), have.LDevID); err != nil {
		t.Fatal(err)
	}
	next, err := dev.NextLDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.dial(t.Context(), renewExporterLabel, cert)
	if err != nil {
		return err
	}
	defer ch.close()
	body, err := c.renewal(t.Context(), dev, ch, cert, next, true)
	if err != nil {
		t.Fatal(err)
	}
	m, err := decode[renewal](body)
	if err != nil {
		t.Fatal(err)
	}
	change(&m, ch)
	_, _, err = post[renewed](t.Context(), ch.http, c.URL+PathRenew, must(encMode.Marshal(m)))
	return err
}

func TestForgedRenewals(t *testing.T) {
	s := newSite(t, true)
	dev, thief := s.till(t), s.till(t)
	c, d := s.join(t, dev)
	s.join(t, thief)
	quote := func(by *tpm.TPM, extra [32]byte) (attest, sig []byte, pcrs [][]byte) {
		attest, sig, pcrs, err := by.Quote(t.Context(), extra[:])
		if err != nil {
			t.Fatal(err)
		}
		return attest, sig, pcrs
	}
	certify := func(by *tpm.TPM, public []byte, extra [32]byte) (attest, sig []byte) {
		attest, sig, err := by.CertifyKey(t.Context(), public, extra[:])
		if err != nil {
			t.Fatal(err)
		}
		return attest, sig
	}
	bound := func(m *renewal, ch *channel, ldevid []byte) [32]byte {
		return renewBinding(ch.exporter, d.saved.Chain[0], ldevid, m.Recovery)
	}
	_, theirs, err := thief.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ours := newForger(t)
	var replay renewal
	for name, tt := range map[string]struct {
		change func(*renewal, *channel)
		check  string
	}{
		"nothing":     {func(m *renewal, _ *channel) { replay = *m }, ""},
		"old version": {func(m *renewal, _ *channel) { m.V = 0 }, "enrol.malformed"},
		"new version": {func(m *renewal, _ *channel) { m.V = Version + 1 }, "enrol.malformed"},
		"long field":  {func(m *renewal, _ *channel) { m.Quote = make([]byte, maxBlob+1) }, "enrol.malformed"},
		"long log":    {func(m *renewal, _ *channel) { m.Log = make([]byte, maxLog+1) }, "enrol.malformed"},
		"key of another TPM, certified by its AK": {func(m *renewal, ch *channel) {
			m.LDevID = theirs
			m.Certify, m.CertifySig = certify(thief, theirs, certifyBinding(bound(m, ch, theirs), must(keyName(theirs))))
		}, "enrol.certify"},
		"key in software, certified by itself": {func(m *renewal, ch *channel) {
			m.LDevID = respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted, p.ObjectAttributes.NoDA = false, true })(ours.ak)
			m.CertifySig = ours.sign(t, m.Certify)
		}, "enrol.certify"},
		"key that nothing certified": {func(m *renewal, _ *channel) { m.LDevID = d.saved.LDevID }, "enrol.certify"},
		"key that may leave its TPM": {func(m *renewal, _ *channel) {
			m.LDevID = respell(t, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })(m.LDevID)
		}, "enrol.key-attributes"},
		"the AK as LDevID key":    {func(m *renewal, _ *channel) { m.LDevID = d.saved.AK }, "enrol.key-attributes"},
		"one key for both":        {func(m *renewal, _ *channel) { m.Recovery = m.LDevID }, "enrol.key-attributes"},
		"recovery not certified":  {func(m *renewal, _ *channel) { m.CertifyRec, m.CertifyRecSig = m.Certify, m.CertifySig }, "enrol.certify"},
		"recovery key in no TPM":  {func(m *renewal, _ *channel) { m.Recovery = theirs }, "enrol.certify"},
		"no quote":                {func(m *renewal, _ *channel) { m.Quote, m.QuoteSig = m.Certify, m.CertifySig }, "quote.malformed"},
		"quote of another TPM":    {func(m *renewal, ch *channel) { m.Quote, m.QuoteSig, m.PCRs = quote(thief, bound(m, ch, m.LDevID)) }, "quote.signature"},
		"quote without its log":   {func(m *renewal, _ *channel) { m.PCRs = nil }, "quote.values"},
		"other registers":         {func(m *renewal, _ *channel) { m.PCRs[7][0] ^= 1 }, "quote.values"},
		"quote of another moment": {func(m *renewal, ch *channel) { m.Quote, m.QuoteSig, m.PCRs = quote(dev, [32]byte{1}) }, "quote.binding"},
		"quote of another channel": {func(m *renewal, ch *channel) {
			other := *ch
			other.exporter = bytes.Repeat([]byte{1}, 32)
			m.Quote, m.QuoteSig, m.PCRs = quote(dev, bound(m, &other, m.LDevID))
		}, "quote.binding"},
		"all of another channel": {func(m *renewal, _ *channel) { *m = replay }, "enrol.certify"},
	} {
		if name == "all of another channel" && replay.V == 0 {
			if err := c.forge(t, d.saved, func(m *renewal, _ *channel) { replay = *m }); err != nil {
				t.Fatal(err)
			}
		}
		n := len(s.dir.reg.renewed)
		err := c.forge(t, d.saved, tt.change)
		if Check(err) != tt.check || (err == nil) != (tt.check == "") {
			t.Errorf("%s: got %v with check %q, want %q", name, err, Check(err), tt.check)
		}
		if got := len(s.dir.reg.renewed) > n; got != (tt.check == "") {
			t.Errorf("%s: renewed %t", name, got)
		}
		if tt.check != "" {
			s.audited(t, d.saved.Device+" "+tt.check)
		}
	}
}

// Who the device is says the certificate it comes with, and no other.
func TestRenewalByAnothersCertificate(t *testing.T) {
	s := newSite(t, true)
	dev, thief := s.till(t), s.till(t)
	c, d := s.join(t, dev)
	theirs, td := s.join(t, thief)
	// The thief's certificate and the other's TPM: two boxes at one desk.
	cert, err := theirs.certificate(t.Context(), thief, td.saved)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.dial(t.Context(), renewExporterLabel, cert)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.close()
	body, err := c.renewal(t.Context(), dev, ch, cert, d.saved.LDevID, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := post[renewed](t.Context(), ch.http, c.URL+PathRenew, body); Check(err) != "enrol.certify" {
		t.Errorf("got %v with check %q", err, Check(err))
	}
	// The other's certificate without the other's key is none.
	key, err := thief.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := c.dial(t.Context(), renewExporterLabel, &tls.Certificate{Certificate: d.saved.Chain, PrivateKey: key})
	if err == nil {
		defer stolen.close()
		_, _, err = post[renewed](t.Context(), stolen.http, c.URL+PathRenew, body)
	}
	if err == nil {
		t.Error("a stolen certificate was taken")
	}
	if len(s.dir.reg.renewed) != 0 {
		t.Errorf("renewed %+v", s.dir.reg.renewed)
	}
}

// What a certificate must be on file as, and in time.
func TestCertificatesThatDoNotRenew(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	c, d := s.join(t, dev)
	f := s.dir.reg.of(d.saved.Device)
	same := func(*renewal, *channel) {}

	f.revoked = true
	if err := c.forge(t, d.saved, same); Check(err) != "identity.revoked" || !errors.Is(err, ErrRefused) {
		t.Errorf("revoked: got %v with check %q", err, Check(err))
	}
	f.revoked = false

	f.broken = errors.New("disk full")
	if err := c.forge(t, d.saved, same); err == nil || errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "disk full") {
		t.Errorf("without a database: got %v, want no refusal and no internals", err)
	}
	f.broken = nil

	serials := f.serials
	f.serials = nil
	if err := c.forge(t, d.saved, same); Check(err) != "identity.replaced" {
		t.Errorf("replaced: got %v with check %q", err, Check(err))
	}
	f.serials = serials

	s.reissue(t, d, identity.RoleMember, -time.Minute)
	key, err := dev.SignerFor(t.Context(), d.saved.LDevID)
	if err != nil {
		t.Fatal(err)
	}
	ended := &tls.Certificate{Certificate: d.saved.Chain, PrivateKey: key}
	ask := func(c *Client, cert *tls.Certificate) error {
		ch, err := c.dial(t.Context(), renewExporterLabel, cert)
		if err != nil {
			return err
		}
		defer ch.close()
		_, _, err = post[renewed](t.Context(), ch.http, c.URL+PathRenew, []byte{0xa0})
		return err
	}
	if err := ask(c, ended); err == nil || !strings.Contains(err.Error(), "expired certificate") {
		t.Errorf("ended: got %v, want that TLS says so", err)
	}
	if err := ask(c, nil); Check(err) != "identity.certificate" {
		t.Errorf("without certificate: got %v with check %q", err, Check(err))
	}
	// A connection that began in time does not hold a certificate alive.
	srv := httptest.NewUnstartedServer(s.server)
	cert, err := s.issuer.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: s.issuer.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13,
		Time: func() time.Time { return time.Now().Add(-2 * time.Minute) },
	}
	srv.StartTLS()
	defer srv.Close()
	slow := *c
	slow.URL = srv.URL
	if err := ask(&slow, ended); Check(err) != "identity.certificate" || !strings.Contains(err.Error(), "enrol again") {
		t.Errorf("ended since: got %v with check %q", err, Check(err))
	}
	d.saved.Recovery = nil
	if _, err := c.Renew(t.Context(), d.saved); err == nil || !strings.Contains(err.Error(), "enrol again") {
		t.Errorf("nothing to come with: got %v", err)
	}
}

// A device keeps no certificate that is not its own.
func TestAnswersThatAreNotTheDevices(t *testing.T) {
	s := newSite(t, true)
	c, d := s.join(t, s.till(t))
	_, td := s.join(t, s.till(t))
	have := d.saved
	dev, err := c.keys()
	if err != nil {
		t.Fatal(err)
	}
	next, err := dev.NextLDevID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]renewed{
		"another key's":      {Chain: have.Chain},
		"another device's":   {Chain: td.saved.Chain},
		"no certificate":     {Chain: [][]byte{[]byte("rubbish")}},
		"recovery as member": {Chain: have.Recovery},
		"member as recovery": {Recovery: have.Chain},
		"rubbish":            {Recovery: [][]byte{{}}},
	} {
		got, err := c.renewed(t.Context(), dev, have, next, out)
		if err == nil || !bytes.Equal(got.Chain[0], have.Chain[0]) || !bytes.Equal(d.saved.Chain[0], have.Chain[0]) {
			t.Errorf("%s: got %v, and it was kept: %t", name, err, !bytes.Equal(d.saved.Chain[0], have.Chain[0]))
		}
	}
	for name, chain := range map[string][][]byte{"member": have.Chain, "recovery": have.Recovery} {
		public, role := have.LDevID, identity.RoleMember
		if name == "recovery" {
			public, role = have.RecoveryKey, identity.RoleRecovery
		}
		if err := certifies(chain, public, have, role); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		other := have
		other.Tenant = "other"
		if err := certifies(chain, public, other, role); err == nil {
			t.Errorf("%s: another tenant's was taken", name)
		}
		if err := certifies(chain, public, td.saved, role); err == nil {
			t.Errorf("%s: another device's was taken", name)
		}
	}
}
