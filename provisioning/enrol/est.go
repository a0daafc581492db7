package enrol

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/smallstep/pkcs7"

	"github.com/tillward/tillward/provisioning/identity"
)

// EST for tools of others [RFC 7030]: the certificates of the authority, and
// another certificate for the key one has. There is no TPM in this protocol, so
// a new key, or a device whose newest evidence was not good, needs PathRenew.
const (
	PathCACerts  = "/.well-known/est/cacerts"
	PathReenroll = "/.well-known/est/simplereenroll"

	maxCSR = 16 << 10 // base64
)

func (s *Server) handleEST() {
	s.mux.HandleFunc("GET "+PathCACerts, func(w http.ResponseWriter, r *http.Request) {
		certs := s.o.Issuer.Chain()
		if root := s.o.Issuer.Root().Raw; !slices.ContainsFunc(certs, func(c []byte) bool { return bytes.Equal(c, root) }) {
			certs = append(certs, root)
		}
		if err := answerPKCS7(w, certs...); err != nil {
			s.failEST(w, r, "", err)
		}
	})
	s.mux.HandleFunc("POST "+PathReenroll, func(w http.ResponseWriter, r *http.Request) {
		c, status, err := s.read(w, r, renewExporterLabel, maxCSR)
		if err != nil {
			_, p := s.refused(r, status, "warn", "", err)
			http.Error(w, p.Text, status)
			return
		}
		cert, err := s.reenroll(r.Context(), c)
		if err == nil {
			err = answerPKCS7(w, cert)
		}
		if err != nil {
			s.failEST(w, r, c.id.Device, err)
		}
	})
}

// reenroll answers a simple re-enrolment with the certificate alone.
func (s *Server) reenroll(ctx context.Context, c call) ([]byte, error) {
	st, err := s.standing(ctx, c)
	if err != nil {
		return nil, err
	}
	csr, err := parseCSR(c.body)
	if err != nil {
		return nil, err
	}
	if err := sameAs(csr, c.peer); err != nil {
		return nil, err
	}
	if c.id.Role == identity.RoleMember && !st.Good {
		return nil, Refuse(checkGood, "the newest evidence of the device was not good; let it attest first, or renew by %s", PathRenew)
	}
	id := c.id
	id.Tier, id.Model = st.Tier, st.Model
	chain, issued, err := s.issue(id, c.peer.PublicKey)
	if err != nil {
		return nil, err
	}
	done := Renewal{Shown: c.id}
	if c.id.Role == identity.RoleMember {
		done.Certificate = issued
	} else {
		done.Recovery = issued
	}
	if err := s.o.Registry.Renewed(ctx, done); err != nil {
		return nil, err
	}
	s.renewedBy(ctx, "enrol.renewed", done, map[string]string{"by": "EST"})
	return chain[0], nil
}

// parseCSR reads a PKCS#10 in base64, with line ends or without [RFC 7030, 4;
// RFC 8951, 3.1]. Tools also send PEM.
func parseCSR(body []byte) (*x509.CertificateRequest, error) {
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(body)), ""))
	if block, _ := pem.Decode(body); block != nil && strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		der, err = block.Bytes, nil
	}
	if err != nil {
		return nil, failed(checkCSR, "certificate request: %w: %w", ErrMessage, err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, failed(checkCSR, "certificate request: %w: %w", ErrMessage, err)
	}
	return csr, nil
}

// sameAs checks that a request asks for what the certificate says: the same
// key, subject and alternative names [RFC 7030, 4.2.2].
func sameAs(csr *x509.CertificateRequest, cert *x509.Certificate) error {
	if err := csr.CheckSignature(); err != nil {
		return failed(checkCSRKey, "certificate request is not signed by its key: %w", ErrProof)
	}
	if !samePublic(csr.PublicKey, cert.PublicKey) {
		return failed(checkCSRKey, "certificate request is for another key; a new key needs proof by the TPM: %w", ErrProof)
	}
	// Which kind of string a name is spelt in differs from tool to tool.
	if csr.Subject.String() != cert.Subject.String() {
		return failed(checkSubject, "subject is not that of the certificate: %w", ErrProof)
	}
	if !bytes.Equal(alternativeNames(csr.Extensions), alternativeNames(cert.Extensions)) {
		return failed(checkSubject, "alternative names are not those of the certificate: %w", ErrProof)
	}
	return nil
}

// alternativeNames is the extension as it is spelt; nil without one.
func alternativeNames(list []pkix.Extension) []byte {
	for _, e := range list {
		if e.Id.Equal(oidSubjectAlt) {
			return e.Value
		}
	}
	return nil
}

// answerPKCS7 sends certificates as a certs-only message [RFC 7030, 4.1.3].
func answerPKCS7(w http.ResponseWriter, certs ...[]byte) error {
	b, err := pkcs7.DegenerateCertificate(bytes.Join(certs, nil))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Header().Set("Content-Transfer-Encoding", "base64")
	text := base64.StdEncoding.EncodeToString(b)
	for len(text) > 76 {
		_, _ = io.WriteString(w, text[:76]+"\r\n") // #nosec G705 -- base64
		text = text[76:]
	}
	_, _ = io.WriteString(w, text+"\r\n") // #nosec G705 -- base64
	return nil
}

// failEST answers in plain words [RFC 7030, 4.2.3].
func (s *Server) failEST(w http.ResponseWriter, r *http.Request, device string, err error) {
	status, p := s.fail(w, r, device, err)
	http.Error(w, p.Text, status)
}
