package enrol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"github.com/tillward/tillward/provisioning/identity"
)

func httpRequest(path string) (*http.Request, error) {
	return http.NewRequestWithContext(context.Background(), http.MethodPost, path, nil)
}

// tool is somebody else's EST client: HTTPS, PKCS#10, PKCS#7.
type tool struct {
	url string
	hc  *http.Client
}

func (s *site) tool(t *testing.T, own *tls.Certificate) tool {
	t.Helper()
	conf := &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13}
	if own != nil {
		conf.Certificates = []tls.Certificate{*own}
	}
	tr := &http.Transport{TLSClientConfig: conf}
	t.Cleanup(tr.CloseIdleConnections)
	return tool{s.url, &http.Client{Transport: tr}}
}

// do returns the certificates of the answer, or its status and words.
func (c tool) do(t *testing.T, method, path, body string) ([]*x509.Certificate, int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/pkcs10")
	resp, err := c.hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode, string(b)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/pkcs7-mime; smime-type=certs-only" {
		t.Errorf("%s answered with %s", path, got)
	}
	for line := range strings.Lines(string(b)) {
		if len(line) > 78 {
			t.Errorf("%s answered with a line of %d characters", path, len(line))
		}
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(b)), ""))
	if err != nil {
		t.Fatal(err)
	}
	p, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return p.Certificates, resp.StatusCode, ""
}

// csr makes a certificate request for what the certificate says, changed.
func csr(t *testing.T, cert *x509.Certificate, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{Subject: cert.Subject, URIs: cert.URIs}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestESTAuthorities(t *testing.T) {
	s := newSite(t, true)
	got, _, text := s.tool(t, nil).do(t, http.MethodGet, PathCACerts, "")
	want := append(s.issuer.Chain(), s.issuer.Root().Raw)
	if len(got) != len(slices.CompactFunc(want, bytes.Equal)) || !slices.ContainsFunc(got, s.issuer.Root().Equal) {
		t.Errorf("got %d certificates (%s), want %d with the root", len(got), text, len(want))
	}
}

func TestESTReenrolment(t *testing.T) {
	s := newSite(t, true)
	dev := s.till(t)
	_, d := s.join(t, dev)
	for _, role := range []identity.Role{identity.RoleMember, identity.RoleRecovery} {
		chain, public := d.saved.Chain, d.saved.LDevID
		if role == identity.RoleRecovery {
			chain, public = d.saved.Recovery, d.saved.RecoveryKey
			s.dir.reg.of(d.saved.Device).Good = false // what it is there for
		}
		key, err := dev.SignerFor(t.Context(), public)
		if err != nil {
			t.Fatal(err)
		}
		own := &tls.Certificate{Certificate: chain, PrivateKey: key}
		cert, err := leaf(chain)
		if err != nil {
			t.Fatal(err)
		}
		der := csr(t, cert, key, nil)
		text := base64.StdEncoding.EncodeToString(der)
		for name, body := range map[string]string{
			"one line": text, "lines": text[:64] + "\r\n" + text[64:] + "\r\n",
			"PEM": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		} {
			got, status, text := s.tool(t, own).do(t, http.MethodPost, PathReenroll, body)
			if len(got) != 1 {
				t.Fatalf("%q, %s: got %d and %q", role, name, status, text)
			}
			id, err := identity.FromCertificate(got[0])
			if err != nil || id.Device != d.saved.Device || id.Role != role || id.Model != "box-9" || got[0].Equal(cert) || !samePublic(got[0].PublicKey, cert.PublicKey) {
				t.Errorf("%q, %s: got %+v and %v", role, name, id, err)
			}
			r := s.last(t)
			if (role == identity.RoleMember) != (r.Certificate.Serial == id.Serial) || (role == identity.RoleRecovery) != (r.Recovery.Serial == id.Serial) || r.NextAK != nil {
				t.Errorf("%q, %s: the registry got %+v", role, name, r)
			}
			chain[0] = got[0].Raw
		}
		s.connects(t, dev, d.saved, role)
	}
}

func TestESTRefusals(t *testing.T) {
	s := newSite(t, true)
	dev, thief := s.till(t), s.till(t)
	_, d := s.join(t, dev)
	_, td := s.join(t, thief)
	key, err := dev.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := thief.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	software, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf(d.saved.Chain)
	if err != nil {
		t.Fatal(err)
	}
	own := &tls.Certificate{Certificate: d.saved.Chain, PrivateKey: key}
	f := s.dir.reg.of(d.saved.Device)
	plain := csr(t, cert, key, nil)
	broken := bytes.Clone(plain)
	broken[len(broken)-1] ^= 1
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for name, tt := range map[string]struct {
		der    []byte
		own    *tls.Certificate
		file   func()
		check  string
		status int
	}{
		"nothing":           {der: nil, check: "est.request", status: http.StatusBadRequest},
		"no request":        {der: []byte{0x30, 0}, check: "est.request", status: http.StatusBadRequest},
		"cut":               {der: plain[:len(plain)-9], check: "est.request", status: http.StatusBadRequest},
		"signature":         {der: broken, check: "est.key", status: http.StatusForbidden},
		"another key":       {der: csr(t, cert, software, nil), check: "est.key", status: http.StatusForbidden},
		"another TPM's key": {der: csr(t, cert, theirs, nil), check: "est.key", status: http.StatusForbidden},
		"another subject": {
			der:   csr(t, cert, key, func(r *x509.CertificateRequest) { r.Subject.CommonName = td.saved.Device }),
			check: "est.subject", status: http.StatusForbidden,
		},
		"another tenant": {
			der:   csr(t, cert, key, func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"other"} }),
			check: "est.subject", status: http.StatusForbidden,
		},
		"one name more": {
			der:   csr(t, cert, key, func(r *x509.CertificateRequest) { r.Subject.Country = []string{"CH"} }),
			check: "est.subject", status: http.StatusForbidden,
		},
		"another alternative name": {
			der:   csr(t, cert, key, func(r *x509.CertificateRequest) { r.URIs = []*url.URL{uri("urn:tillward:t:demo:d:" + td.saved.Device)} }),
			check: "est.subject", status: http.StatusForbidden,
		},
		"one alternative name more": {
			der:   csr(t, cert, key, func(r *x509.CertificateRequest) { r.DNSNames = []string{"service"} }),
			check: "est.subject", status: http.StatusForbidden,
		},
		"no alternative name": {
			der:   csr(t, cert, key, func(r *x509.CertificateRequest) { r.URIs = nil }),
			check: "est.subject", status: http.StatusForbidden,
		},
		"the tier it likes": {der: csr(t, cert, key, func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 25, 1938417662, 1}, Value: []byte{0x30, 0}}}
		}), check: "", status: http.StatusOK}, // what it asks for beside is not looked at
		"without certificate": {der: plain, own: &tls.Certificate{}, check: "identity.certificate", status: http.StatusForbidden},
		"another's certificate": {
			der: plain, own: &tls.Certificate{Certificate: td.saved.Chain, PrivateKey: theirs},
			check: "est.key", status: http.StatusForbidden,
		},
		"evidence not good": {der: plain, file: func() { f.Good = false }, check: "identity.evidence", status: http.StatusForbidden},
		"revoked":           {der: plain, file: func() { f.revoked = true }, check: "identity.revoked", status: http.StatusForbidden},
		"no database":       {der: plain, file: func() { f.broken = errors.New("disk full") }, status: http.StatusServiceUnavailable},
		"too long":          {der: make([]byte, maxCSR), check: "enrol.malformed", status: http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			by := own
			if tt.own != nil {
				by = tt.own
			}
			f.Good, f.revoked, f.broken = true, false, nil
			if tt.file != nil {
				tt.file()
			}
			s.audit = nil
			n := len(s.dir.reg.renewed)
			got, status, text := s.tool(t, by).do(t, http.MethodPost, PathReenroll, base64.StdEncoding.EncodeToString(tt.der))
			if status != tt.status || (len(got) > 0) != (status == http.StatusOK) || strings.Contains(text, "disk full") {
				t.Errorf("got %d and %q, want %d", status, text, tt.status)
			}
			if tt.check != "" {
				s.audited(t, " "+tt.check+" ")
			}
			if len(got) > 0 {
				if id, err := identity.FromCertificate(got[0]); err != nil || id.Tier != identity.TierC {
					t.Errorf("got %+v and %v", id, err)
				}
				return
			}
			if len(s.dir.reg.renewed) != n {
				t.Error("something was renewed")
			}
		})
	}
}
