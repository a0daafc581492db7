package enrol

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// ErrProof is returned when what a TPM signed does not prove what it must; the
// text names the check.
var ErrProof = errors.New("proof does not hold")

// errOtherEK is an ErrProof that no list makes good: a certificate that belongs
// to another TPM was not put there by a maker.
var errOtherEK = fmt.Errorf("the certificate was taken from another TPM: %w", ErrProof)

// selections are what evidence may cover, all of it: PCR 0 to 9 and 11, or 0 to 9
// as agents of before 2026-11-27 quote them. What a release makes of a register
// that was not quoted is for the appraisal to say.
var selections = map[string]int{"\xff\x0b": 11, "\xff\x03": 10}

// oidEKCertificate is the extended key usage of EK certificates [TCG EK
// Credential Profile 2.5, 3.2.16].
var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidSubjectAlt    = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Quoted is what a verified quote says.
type Quoted struct {
	ResetCount   uint32 // of the TPM since it was made or cleared
	RestartCount uint32
	Firmware     uint64
	Digest       [32]byte // over the quoted PCRs
}

// VerifyQuote checks a quote by the AK (a TPMT_PUBLIC): signature, magic, type,
// extraData, the exact selection of PCR 0 to 9 and 11 in the SHA-256 bank, or
// that of older agents, 0 to 9, and the digest over pcrs. attest is a TPMS_ATTEST, signature a TPMT_SIGNATURE or r
// and s of 32 bytes each. Errors are ErrProof and name a check.
func VerifyQuote(ak, attest, signature []byte, pcrs [][]byte, extra [32]byte) (Quoted, error) {
	a, err := verifyAttest(ak, attest, signature, tpm2.TPMSTAttestQuote, extra)
	if err != nil {
		return Quoted{}, err
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return Quoted{}, failed(checkMalformed, "quote body: %w: %w", ErrProof, err)
	}
	sel := q.PCRSelect.PCRSelections
	n := 0
	if len(sel) == 1 && sel[0].Hash == tpm2.TPMAlgSHA256 {
		n = selections[string(bytes.TrimRight(sel[0].PCRSelect, "\x00"))]
	}
	if n == 0 {
		return Quoted{}, failed(checkSelection, "selection is not PCR 0-9 and 11, nor 0-9, of the SHA-256 bank: %w", ErrProof)
	}
	if len(pcrs) != n {
		return Quoted{}, failed(checkValues, "%d PCR values for %d registers: %w", len(pcrs), n, ErrProof)
	}
	digest := sha256.Sum256(slices.Concat(pcrs...))
	for _, p := range pcrs {
		if len(p) != sha256.Size {
			return Quoted{}, failed(checkValues, "PCR value of %d bytes: %w", len(p), ErrProof)
		}
	}
	if !bytes.Equal(q.PCRDigest.Buffer, digest[:]) {
		return Quoted{}, failed(checkValues, "PCR values are not those that were quoted: %w", ErrProof)
	}
	return Quoted{
		ResetCount: a.ClockInfo.ResetCount, RestartCount: a.ClockInfo.RestartCount, Firmware: a.FirmwareVersion, Digest: digest,
	}, nil
}

// verifyCertify checks that the AK certified the key with the given name.
func verifyCertify(ak, attest, signature, name []byte, extra [32]byte) error {
	a, err := verifyAttest(ak, attest, signature, tpm2.TPMSTAttestCertify, extra)
	if err != nil {
		return &failure{checkCertify, err}
	}
	c, err := a.Attested.Certify()
	if err != nil {
		return failed(checkCertify, "certify body: %w: %w", ErrProof, err)
	}
	if !bytes.Equal(c.Name.Buffer, name) {
		return failed(checkCertify, "another key was certified: %w", ErrProof)
	}
	return nil
}

// verifyAttest checks what all attestations share. The signature is over the
// bytes as they came, never over a re-encoding.
func verifyAttest(ak, attest, signature []byte, kind tpm2.TPMST, extra [32]byte) (*tpm2.TPMSAttest, error) {
	pub, err := signingKey(ak)
	if err != nil {
		return nil, err
	}
	r, s, err := splitSignature(signature)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(attest)
	if !ecdsa.Verify(pub, digest[:], r, s) {
		return nil, failed(checkSignature, "signature is not by the attestation key: %w", ErrProof)
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil {
		return nil, failed(checkMalformed, "attestation: %w: %w", ErrProof, err)
	}
	switch {
	case a.Magic != tpm2.TPMGeneratedValue:
		return nil, failed(checkMalformed, "not made by a TPM: %w", ErrProof)
	case a.Type != kind:
		return nil, failed(checkMalformed, "attestation of type %#x, not %#x: %w", uint16(a.Type), uint16(kind), ErrProof)
	case !bytes.Equal(a.ExtraData.Buffer, extra[:]):
		return nil, failed(checkQuoted, "bound to another challenge or channel: %w", ErrProof)
	}
	return a, nil
}

// splitSignature reads an ECDSA signature with SHA-256: r and s of 32 bytes
// each, or as the TPM spells it.
func splitSignature(b []byte) (r, s *big.Int, err error) {
	if len(b) == 64 {
		return new(big.Int).SetBytes(b[:32]), new(big.Int).SetBytes(b[32:]), nil
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](b)
	if err != nil {
		return nil, nil, failed(checkMalformed, "signature: %w: %w", ErrProof, err)
	}
	ec, err := sig.Signature.ECDSA()
	if err != nil || sig.SigAlg != tpm2.TPMAlgECDSA || ec.Hash != tpm2.TPMAlgSHA256 {
		return nil, nil, failed(checkSignature, "signature is not ECDSA with SHA-256: %w", ErrProof)
	}
	return new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer), nil
}

// signingKey returns the AK's public key after checking that it is one: a
// restricted signing key that was made in its TPM and cannot leave it.
func signingKey(public []byte) (*ecdsa.PublicKey, error) {
	pub, key, err := ecKey(public, "attestation key")
	if err != nil {
		return nil, err
	}
	at := pub.ObjectAttributes
	if !at.Restricted || !at.SignEncrypt || at.Decrypt || !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin {
		return nil, failed(checkKey, "attestation key is not a restricted signing key fixed to its TPM: %w", ErrProof)
	}
	return key, nil
}

// deviceKey returns the public key of an LDevID or recovery key and its TPM name.
func deviceKey(public []byte, what string) (*ecdsa.PublicKey, []byte, error) {
	pub, key, err := ecKey(public, what)
	if err != nil {
		return nil, nil, err
	}
	at := pub.ObjectAttributes
	if at.Restricted || !at.SignEncrypt || at.Decrypt || !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin {
		return nil, nil, failed(checkKey, "%s is not a signing key fixed to its TPM: %w", what, ErrProof)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, nil, failed(checkKey, "%s: %w: %w", what, ErrProof, err)
	}
	return key, name.Buffer, nil
}

func ecKey(public []byte, what string) (*tpm2.TPMTPublic, *ecdsa.PublicKey, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, nil, failed(checkKey, "%s: %w: %w", what, ErrProof, err)
	}
	if !bytes.Equal(tpm2.Marshal(*pub), public) {
		return nil, nil, failed(checkKey, "%s: more than a public area: %w", what, ErrProof)
	}
	if pub.Type != tpm2.TPMAlgECC || pub.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, nil, failed(checkKey, "%s is not an elliptic-curve key named by SHA-256: %w", what, ErrProof)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, nil, failed(checkKey, "%s: %w: %w", what, ErrProof, err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, nil, failed(checkKey, "%s is not ECDSA P-256: %w", what, ErrProof)
	}
	if _, err := ec.ECDH(); err != nil {
		return nil, nil, failed(checkKey, "%s is not a point of the curve: %w", what, ErrProof)
	}
	return pub, ec, nil
}

// endorsementKey checks that an EK is a restricted decryption key fixed to its
// TPM, and returns it with its public key.
func endorsementKey(public []byte) (*tpm2.TPMTPublic, crypto.PublicKey, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, nil, failed(checkKey, "endorsement key: %w: %w", ErrProof, err)
	}
	at := pub.ObjectAttributes
	if !at.Restricted || !at.Decrypt || at.SignEncrypt || !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin {
		return nil, nil, failed(checkKey, "endorsement key is not a restricted decryption key fixed to its TPM: %w", ErrProof)
	}
	if !spelt(public, pub) {
		return nil, nil, failed(checkKey, "endorsement key is not of the TCG templates L-1, L-2 and H-3: %w", ErrProof)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, nil, failed(checkKey, "endorsement key: %w: %w", ErrProof, err)
	}
	return pub, key, nil
}

// spelt reports whether public is the one spelling of an EK: the TCG template
// with the key filled in whole. A certificate vouches for the key alone and a
// credential opens whatever else the public area says, but the device id is a
// hash over all of it: without this one TPM could enrol as many devices.
func spelt(public []byte, pub *tpm2.TPMTPublic) bool {
	var tmpl tpm2.TPMTPublic
	switch pub.Type {
	case tpm2.TPMAlgRSA:
		n, err := pub.Unique.RSA()
		if err != nil || len(n.Buffer) != 256 || n.Buffer[0]&0x80 == 0 {
			return false
		}
		tmpl = tpm2.RSAEKTemplate
	case tpm2.TPMAlgECC:
		size := 32
		if tmpl = tpm2.ECCEKTemplate; pub.NameAlg == tpm2.TPMAlgSHA384 {
			size, tmpl = 48, ekP384Template
		}
		p, err := pub.Unique.ECC()
		if err != nil || len(p.X.Buffer) != size || len(p.Y.Buffer) != size {
			return false
		}
	default:
		return false
	}
	tmpl.Unique = pub.Unique
	return bytes.Equal(tpm2.Marshal(tmpl), public)
}

// ekP384Template is template H-3 [TCG EK Credential Profile 2.5, B.4.5]; go-tpm
// has the low range only. The policy is PolicyB with SHA-384 [same, B.6].
var ekP384Template = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA384,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		AdminWithPolicy: true, Restricted: true, Decrypt: true,
	},
	AuthPolicy: tpm2.TPM2BDigest{Buffer: must(hex.DecodeString(
		"b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"))},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	}),
}

// samePublic compares an EK with the key of its certificate; a P-256 EK is an
// ECDH key that X.509 spells like an ECDSA key.
func samePublic(ek, cert crypto.PublicKey) bool {
	k, ok := cert.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(ek)
}

// verifyEKCert checks that der certifies ek and chains to one of roots, with
// what the device sent as intermediates. Intermediates are never fetched.
func verifyEKCert(ek crypto.PublicKey, der []byte, chain [][]byte, roots *x509.CertPool) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return failed(checkEKCert, "EK certificate: %w: %w", ErrProof, err)
	}
	if !samePublic(ek, cert.PublicKey) {
		return failed(checkEKCert, "EK certificate is for another key: %w", errOtherEK)
	}
	if !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return failed(checkEKCert, "certificate is not that of an EK (extended key usage): %w", ErrProof)
	}
	if cert.IsCA || (cert.KeyUsage != 0 && cert.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0) {
		return failed(checkEKCert, "certificate is not that of an EK (key usage): %w", ErrProof)
	}
	// The SAN of a TPM is critical and holds a directory name, which Go does
	// not read. Its content is informative; every other critical extension
	// must still be understood.
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, oidSubjectAlt.Equal)
	pool := x509.NewCertPool()
	for _, c := range chain {
		if ic, err := x509.ParseCertificate(c); err == nil {
			pool.AddCert(ic)
		}
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return failed(checkEKCert, "EK certificate: %w: %w", ErrProof, err)
	}
	return nil
}

// Hash names an EK on vendor lists and in the directory: hex SHA-256 of its
// TPMT_PUBLIC.
func Hash(ek []byte) string {
	sum := sha256.Sum256(ek)
	return hex.EncodeToString(sum[:])
}
