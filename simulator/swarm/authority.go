package swarm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Authority plays the maker of virtual TPMs: it certifies the EKs of devices.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Names in an EK certificate [TCG EK Credential Profile 2.5, 3.1.2 and 3.2.16].
var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidManufacturer  = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel         = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion       = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidSubjectAlt    = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// certLife is that of the root; a device's certificate ends with it.
const certLife = 10 * 365 * 24 * time.Hour

// NewAuthority returns an authority that signs with key; nil makes one, P-256.
func NewAuthority(key crypto.Signer) (*Authority, error) {
	if key == nil {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make authority: %w", err)
		}
		key = k
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Tillward swarm: virtual TPMs, tests only"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	return &Authority{cert: cert, key: key}, nil
}

// Certificate is the root, for a pool.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// PEM is the root, for a file the service reads.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Endorse certifies an EK by its TPMT_PUBLIC, as a second maker might.
func (a *Authority) Endorse(ek []byte) ([]byte, error) {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		return nil, fmt.Errorf("endorse: %w", err)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return nil, fmt.Errorf("endorse: %w", err)
	}
	sum := sha256.Sum256(ek)
	return a.endorse(key, sum[:16])
}

// endorse certifies an EK as a maker does: no subject, a critical SAN with a
// directory name, the EK's key usage.
func (a *Authority) endorse(key crypto.PublicKey, serial []byte) ([]byte, error) {
	san, err := directoryName()
	if err != nil {
		return nil, err
	}
	usage := x509.KeyUsageKeyEncipherment
	if _, ok := key.(*ecdsa.PublicKey); ok {
		usage = x509.KeyUsageKeyAgreement
	}
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).Add(new(big.Int).SetBytes(serial), big.NewInt(2)), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: usage, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate}, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAlt, Critical: true, Value: san}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("certify an endorsement key: %w", err)
	}
	return der, nil
}

// directoryName is the SAN that names a TPM's maker, model and version.
func directoryName() ([]byte, error) {
	name, err := asn1.Marshal(pkix.RDNSequence{{{Type: oidManufacturer, Value: "id:54535754"}}, {{Type: oidModel, Value: "swarm"}}, {{Type: oidVersion, Value: "id:00000001"}}})
	if err != nil {
		return nil, fmt.Errorf("name of a virtual TPM: %w", err)
	}
	// GeneralName [4] is explicit because a Name is a CHOICE [X.680, 31.2.7].
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		return nil, fmt.Errorf("name of a virtual TPM: %w", err)
	}
	return san, nil
}
