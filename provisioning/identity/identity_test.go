package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/identity"
)

var good = identity.Identity{Tenant: "shop-7", Device: strings.Repeat("a2", 12), Tier: identity.TierB, Model: "Box 9"}

// sign makes the certificate of tmpl by its own key.
func sign(t testing.TB, tmpl *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func template(t testing.TB) *x509.Certificate {
	t.Helper()
	tmpl, err := identity.Template(good, big.NewInt(0xabc), time.Now(), 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

func TestDeviceID(t *testing.T) {
	// SHA-256("") begins with e3b0c44298fc1c149afbf4c8996fb9.
	if got, want := identity.DeviceID(nil), "4oymiquy7qobjgx36tejs35z"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !identity.ValidDevice(identity.DeviceID([]byte("key"))) {
		t.Error("a device id is not valid")
	}
}

func TestCertificateRoundTrip(t *testing.T) {
	c := sign(t, template(t))
	got, err := identity.FromCertificate(c)
	if err != nil {
		t.Fatal(err)
	}
	want := good
	want.Serial, want.NotAfter = "abc", c.NotAfter
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if u := c.URIs[0].String(); u != "urn:tillward:t:shop-7:d:"+good.Device {
		t.Errorf("name is %s", u)
	}
	if len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || c.IsCA {
		t.Errorf("usage %v, authority %t", c.ExtKeyUsage, c.IsCA)
	}
}

// A recovery certificate says what it is; a member's is spelt as ever.
func TestRoles(t *testing.T) {
	plain := template(t).ExtraExtensions[0].Value
	id := good
	id.Role = identity.RoleRecovery
	tmpl, err := identity.Template(id, big.NewInt(1), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.FromCertificate(sign(t, tmpl))
	if err != nil || got.Role != identity.RoleRecovery {
		t.Errorf("got role %q and %v", got.Role, err)
	}
	if bytes.Equal(plain, tmpl.ExtraExtensions[0].Value) {
		t.Error("both roles are spelt the same")
	}
	if want, err := asn1.Marshal(struct {
		Tier, Model string `asn1:"utf8"`
	}{string(good.Tier), good.Model}); err != nil || !bytes.Equal(plain, want) {
		t.Errorf("a member's extension is %x, want %x as before there were roles", plain, want)
	}
}

func TestNames(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "shop-7": true, strings.Repeat("a", 32): true,
		"": false, "-a": false, "a-": false, "Shop": false, "a/b": false, "a+": false, "a#": false, "a:b": false, "a\nb": false,
		"ä": false, strings.Repeat("a", 33): false,
	} {
		if got := identity.ValidTenant(s); got != want {
			t.Errorf("tenant %q: got %t", s, got)
		}
	}
	for s, want := range map[string]bool{
		strings.Repeat("a", 24): true, strings.Repeat("7", 24): true,
		"": false, strings.Repeat("a", 23): false, strings.Repeat("a", 25): false, strings.Repeat("A", 24): false, strings.Repeat("1", 24): false,
		// Go's base32 decoder passes over line ends: this one decodes to 15 bytes.
		strings.Repeat("a", 12) + "\n" + strings.Repeat("a", 12): false,
		strings.Repeat("a", 23) + "\n":                           false,
	} {
		if got := identity.ValidDevice(s); got != want {
			t.Errorf("device %q: got %t", s, got)
		}
	}
}

func TestTemplateRefusesWhatItCouldNotRead(t *testing.T) {
	for name, change := range map[string]func(*identity.Identity){
		"tenant":      func(id *identity.Identity) { id.Tenant = "Shop" },
		"device":      func(id *identity.Identity) { id.Device = "x" },
		"tier":        func(id *identity.Identity) { id.Tier = "E" },
		"no tier":     func(id *identity.Identity) { id.Tier = "" },
		"long model":  func(id *identity.Identity) { id.Model = strings.Repeat("m", 65) },
		"role":        func(id *identity.Identity) { id.Role = "admin" },
		"model lines": func(id *identity.Identity) { id.Model = "a\nb" },
	} {
		id := good
		change(&id)
		if _, err := identity.Template(id, big.NewInt(1), time.Now(), time.Hour); !errors.Is(err, identity.ErrIdentity) {
			t.Errorf("%s: got %v, want ErrIdentity", name, err)
		}
	}
}

func TestOtherCertificatesAreNoDevices(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for name, change := range map[string]func(*x509.Certificate){
		"no name":         func(c *x509.Certificate) { c.URIs = nil },
		"two names":       func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("urn:other")) },
		"other scheme":    func(c *x509.Certificate) { c.URIs[0] = uri("https://shop") },
		"other urn":       func(c *x509.Certificate) { c.URIs[0] = uri("urn:example:t:shop-7:d:" + good.Device) },
		"query":           func(c *x509.Certificate) { c.URIs[0] = uri(c.URIs[0].String() + "?x=1") },
		"fragment":        func(c *x509.Certificate) { c.URIs[0] = uri(c.URIs[0].String() + "#x") },
		"other device":    func(c *x509.Certificate) { c.Subject.CommonName = strings.Repeat("b", 24) },
		"other tenant":    func(c *x509.Certificate) { c.Subject.Organization = []string{"shop-8"} },
		"two tenants":     func(c *x509.Certificate) { c.Subject.Organization = []string{"shop-7", "shop-8"} },
		"no tier":         func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"garbled tier":    func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{1, 2, 3} },
		"more than tier":  func(c *x509.Certificate) { c.ExtraExtensions[0].Value = append(c.ExtraExtensions[0].Value, ' ') },
		"unknown tier":    func(c *x509.Certificate) { c.ExtraExtensions = tier(t, c, "E") },
		"unknown role":    func(c *x509.Certificate) { c.ExtraExtensions = tier(t, c, "B", "admin") },
		"number as role":  func(c *x509.Certificate) { c.ExtraExtensions = tier(t, c, "B", 7) },
		"more than role":  func(c *x509.Certificate) { c.ExtraExtensions = tier(t, c, "B", "recovery", "x") },
		"server":          func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"an authority":    func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign },
		"wildcard tenant": func(c *x509.Certificate) { rename(c, "+", good.Device, uri) },
		"short device":    func(c *x509.Certificate) { rename(c, "shop-7", "abc", uri) },
	} {
		tmpl := template(t)
		change(tmpl)
		id, err := identity.FromCertificate(sign(t, tmpl))
		if !errors.Is(err, identity.ErrIdentity) {
			t.Errorf("%s: got %+v and %v, want ErrIdentity", name, id, err)
		}
		if id != (identity.Identity{}) {
			t.Errorf("%s: got %+v with an error", name, id)
		}
	}
}

func rename(c *x509.Certificate, tenant, device string, uri func(string) *url.URL) {
	c.Subject = pkix.Name{CommonName: device, Organization: []string{tenant}}
	c.URIs[0] = uri("urn:tillward:t:" + tenant + ":d:" + device)
}

// tier is the extension with a tier and what follows tier and model.
func tier(t *testing.T, c *x509.Certificate, name string, more ...any) []pkix.Extension {
	t.Helper()
	var body []byte
	for _, v := range append([]any{name, "m"}, more...) {
		b, err := asn1.MarshalWithParams(v, "utf8")
		if _, text := v.(string); !text {
			b, err = asn1.Marshal(v)
		}
		if err != nil {
			t.Fatal(err)
		}
		body = append(body, b...)
	}
	b, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
	if err != nil {
		t.Fatal(err)
	}
	return []pkix.Extension{{Id: c.ExtraExtensions[0].Id, Value: b}}
}

func TestOnlyFinishedVerifiedHandshakesCount(t *testing.T) {
	c := sign(t, template(t))
	ok := tls.ConnectionState{
		Version: tls.VersionTLS13, HandshakeComplete: true,
		PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}},
	}
	if id, err := identity.FromTLS(ok); err != nil || id.Device != good.Device {
		t.Fatalf("got %+v and %v", id, err)
	}
	for name, change := range map[string]func(*tls.ConnectionState){
		"unfinished":     func(s *tls.ConnectionState) { s.HandshakeComplete = false },
		"TLS 1.2":        func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 },
		"resumed":        func(s *tls.ConnectionState) { s.DidResume = true },
		"unverified":     func(s *tls.ConnectionState) { s.VerifiedChains = nil },
		"no certificate": func(s *tls.ConnectionState) { s.PeerCertificates = nil },
	} {
		s := ok
		change(&s)
		if _, err := identity.FromTLS(s); !errors.Is(err, identity.ErrIdentity) {
			t.Errorf("%s: got %v, want ErrIdentity", name, err)
		}
	}
}

// Who has stolen an issuing key names another issuer in what he signs with it. The handshake knows better.
func TestIssuerIsWhoSigned(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "issuing"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1, 2, 3},
	}
	raw, err := x509.CreateCertificate(rand.Reader, own, own, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	posing := *stolen
	posing.SubjectKeyId = []byte{9, 9, 9}
	der, err := x509.CreateCertificate(rand.Reader, template(t), &posing, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromTLS(tls.ConnectionState{
		Version: tls.VersionTLS13, HandshakeComplete: true, PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c, stolen}},
	})
	if err != nil || id.Issuer != "010203" {
		t.Errorf("got issuer %s, %v, want who signed", id.Issuer, err)
	}
}

// Whatever a certificate says, an Identity that comes out of it can be made
// into a certificate again that says the same.
func FuzzFromCertificate(f *testing.F) {
	f.Add(sign(f, template(f)).Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		id, err := identity.FromCertificate(c)
		if err != nil {
			return
		}
		if !identity.ValidTenant(id.Tenant) || !identity.ValidDevice(id.Device) || bytes.ContainsAny([]byte(id.Tenant+id.Device), "/+#\n") {
			t.Errorf("certificate gave %+v", id)
		}
		if _, err := identity.Template(id, big.NewInt(1), time.Now(), time.Hour); err != nil {
			t.Error(err)
		}
	})
}
