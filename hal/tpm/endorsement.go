package tpm

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ekKind is one endorsement key a maker may have certified: where he puts its
// certificate, where he may have persisted the key, and its template.
type ekKind struct {
	name       string
	cert, kept tpm2.TPMHandle
	tmpl       tpm2.TPMTPublic
	policy     func(t *TPM, sess tpm2.Session) error
}

// ekKinds in the order of preference: an RSA key takes a discrete TPM seconds
// to make again, P-384 is what high-range TPMs come with.
var ekKinds = []ekKind{
	{"P-256", 0x01C0000A, 0x81010002, tpm2.ECCEKTemplate, (*TPM).policyA},
	{"P-384", 0x01C00016, 0, ekP384Template, (*TPM).policyB},
	{"RSA-2048", 0x01C00002, 0x81010001, tpm2.RSAEKTemplate, (*TPM).policyA},
}

// The branches of PolicyB with SHA-384 [TCG EK Credential Profile 2.5, B.6]:
// PolicyA is PolicySecret(endorsement), PolicyC a policy kept in NV, and
// PolicyB either of them.
var (
	policyA384 = unhex("8BBF2266537C171CB56E403C4DC1D4B64F432611DC386E6F532050C3278C930E143E8BB1133824CCB431053871C6DB53")
	policyC384 = unhex("D6032CE61F2FB3C240EB3CF6A33237EF2B6A16F4293C22B455E261CFFD217AD5B4947C2D73E63005EED2DC2B3593D165")
	policyB384 = unhex("B26E7D28D11A50BC53D882BCF5FD3A1A074148BB35D3B4E4CB1C0AD9BDE419CACB47BA09699646150F9FC000F3F80E12")
)

// ekP384Template is template H-3 [TCG EK Credential Profile 2.5, B.4.5]; go-tpm
// has the low range only.
var ekP384Template = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA384,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		AdminWithPolicy: true, Restricted: true, Decrypt: true,
	},
	AuthPolicy: tpm2.TPM2BDigest{Buffer: policyB384},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	}),
}

// Endorsement returns the public area of the EK (TPMT_PUBLIC), its maker's
// certificate in DER (nil when the TPM holds none) and on-die intermediates.
// The EK whose certificate is there is taken, P-256 before P-384 before RSA
// because it is a hundred times faster; without any certificate it is P-256.
func (t *TPM) Endorsement(ctx context.Context) (public, certificate []byte, chain [][]byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	kind, certificate, err := t.endorsementCert()
	if err != nil {
		return nil, nil, nil, err
	}
	_, pub, done, err := t.endorsementKey(kind, certificate)
	if err != nil {
		return nil, nil, nil, err
	}
	defer done()
	if certificate != nil {
		if chain, err = t.chain(); err != nil {
			return nil, nil, nil, err
		}
	}
	if err := pad(pub); err != nil {
		return nil, nil, nil, err
	}
	return tpm2.Marshal(*pub), certificate, chain, nil
}

// endorsementKey returns the EK: the one its maker persisted when it is the
// certificate's, otherwise made again from its template. done flushes it.
func (t *TPM) endorsementKey(kind ekKind, certificate []byte) (*tpm2.NamedHandle, *tpm2.TPMTPublic, func(), error) {
	if h, pub := t.keptEK(kind, certificate); h != nil {
		return h, pub, func() {}, nil
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(kind.tmpl)}.Execute(t.dev)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("create %s endorsement key: %w", kind.name, err)
	}
	pub, err := ek.OutPublic.Contents()
	if err != nil {
		t.flush(ek.ObjectHandle)
		return nil, nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	return &tpm2.NamedHandle{Handle: ek.ObjectHandle, Name: ek.Name}, pub, func() { t.flush(ek.ObjectHandle) }, nil
}

// keptEK looks for the maker's persisted EK. Anybody may have put another key
// there, so only one that the certificate speaks of counts.
func (t *TPM) keptEK(kind ekKind, certificate []byte) (*tpm2.NamedHandle, *tpm2.TPMTPublic) {
	if kind.kept == 0 || certificate == nil {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, nil
	}
	found, err := t.find(kind.kept, &kind.tmpl)
	if err != nil {
		return nil, nil
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](found.public)
	if err != nil {
		return nil, nil
	}
	ek, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, nil
	}
	if k, ok := ek.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(cert.PublicKey) {
		return nil, nil
	}
	return &found.NamedHandle, pub
}

// pad brings the coordinates of an EK to the length of its curve. Some TPMs
// strip leading zeros, and the device id is a hash over these bytes.
func pad(pub *tpm2.TPMTPublic) error {
	if pub.Type != tpm2.TPMAlgECC {
		return nil
	}
	parms, err := pub.Parameters.ECCDetail()
	if err != nil {
		return fmt.Errorf("endorsement key: %w", err)
	}
	size := 32
	if parms.CurveID == tpm2.TPMECCNistP384 {
		size = 48
	}
	p, err := pub.Unique.ECC()
	if err != nil {
		return fmt.Errorf("endorsement key: %w", err)
	}
	if len(p.X.Buffer) > size || len(p.Y.Buffer) > size {
		return fmt.Errorf("endorsement key: coordinate longer than %d bytes", size)
	}
	x, y := make([]byte, size), make([]byte, size)
	copy(x[size-len(p.X.Buffer):], p.X.Buffer)
	copy(y[size-len(p.Y.Buffer):], p.Y.Buffer)
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
	})
	return nil
}

// endorsementCert picks the EK by the certificate that is in NV.
func (t *TPM) endorsementCert() (ekKind, []byte, error) {
	for _, k := range ekKinds {
		cert, err := t.nvRead(k.cert)
		if err != nil {
			return ekKind{}, nil, err
		}
		if cert != nil {
			return k, trim(cert), nil
		}
	}
	return ekKinds[0], nil, nil
}

// Activate opens a credential (TPMS_ID_OBJECT and encrypted secret, without
// their length prefixes) made for this TPM's EK and AK [TCG TPM 2.0
// Library, part 1, 24]. It fails with TPM_RC_INTEGRITY when the credential was
// made for another AK, and otherwise when it was made for another EK.
func (t *TPM) Activate(ctx context.Context, blob, secret []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := t.ensure(); err != nil {
		return nil, err
	}
	return t.activate(t.ak.cur, blob, secret)
}

func (t *TPM) activate(ak *key, blob, secret []byte) ([]byte, error) {
	kind, cert, err := t.endorsementCert()
	if err != nil {
		return nil, err
	}
	ek, _, flush, err := t.endorsementKey(kind, cert)
	if err != nil {
		return nil, err
	}
	defer flush()
	// PolicySession and an own close: the just-in-time Policy of go-tpm 0.9.8
	// leaks the session when its callback fails.
	sess, done, err := tpm2.PolicySession(t.dev, kind.tmpl.NameAlg, 16)
	if err != nil {
		return nil, fmt.Errorf("start policy session: %w", err)
	}
	defer done() //nolint:errcheck // the session is gone already when it was used
	if err := kind.policy(t, sess); err != nil {
		return nil, fmt.Errorf("endorsement policy: %w", err)
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: auth(ak),
		KeyHandle:      tpm2.AuthHandle{Handle: ek.Handle, Name: ek.Name, Auth: sess},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(t.dev)
	if err != nil {
		return nil, t.lost(fmt.Errorf("activate credential: %w", err))
	}
	return rsp.CertInfo.Buffer, nil
}

// policyA satisfies the policy of a low-range EK.
func (t *TPM) policyA(sess tpm2.Session) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: sess.Handle(),
		NonceTPM:      sess.NonceTPM(),
	}.Execute(t.dev)
	return err
}

// policyB satisfies the policy of a high-range EK. Its empty auth value would
// do too, but EKs lack noDA: each power cut after such a use would count as an
// attack, and a TPM in lockout could not activate.
func (t *TPM) policyB(sess tpm2.Session) error {
	if err := t.policyA(sess); err != nil {
		return err
	}
	_, err := tpm2.PolicyOr{PolicySession: sess.Handle(), PHashList: tpm2.TPMLDigest{
		Digests: []tpm2.TPM2BDigest{{Buffer: policyA384}, {Buffer: policyC384}},
	}}.Execute(t.dev)
	return err
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// chain reads the on-die intermediates: one stream of DER certificates over
// consecutive NV indices.
func (t *TPM) chain() ([][]byte, error) {
	var stream []byte
	for i := nvChain; i <= nvChainTo; i++ {
		part, err := t.nvRead(i)
		if err != nil {
			return nil, err
		}
		if part == nil {
			break
		}
		stream = append(stream, part...)
	}
	var out [][]byte
	for len(stream) > 0 {
		if stream[0] == 0x00 || stream[0] == 0xff { // padding at the end of an index
			stream = stream[1:]
			continue
		}
		der := trim(stream)
		if _, err := x509.ParseCertificate(der); err != nil {
			break
		}
		out = append(out, der)
		stream = stream[len(der):]
	}
	return out, nil
}

// nvRead reads a whole NV index with empty auth; nil when it is not defined.
func (t *TPM) nvRead(index tpm2.TPMHandle) ([]byte, error) {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.dev)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up NV %#x: %w", uint32(index), err)
	}
	nv, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("NV %#x: %w", uint32(index), err)
	}
	step, err := t.nvChunk()
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, nv.DataSize)
	for len(out) < int(nv.DataSize) {
		n := min(int(step), int(nv.DataSize)-len(out))
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Size:       uint16(n),        // #nosec G115 -- at most DataSize, a uint16
			Offset:     uint16(len(out)), // #nosec G115 -- at most DataSize, a uint16
		}.Execute(t.dev)
		if err != nil {
			return nil, fmt.Errorf("read NV %#x: %w", uint32(index), err)
		}
		if len(rsp.Data.Buffer) == 0 {
			return nil, fmt.Errorf("read NV %#x: the TPM returned nothing", uint32(index))
		}
		out = append(out, rsp.Data.Buffer...)
	}
	return out, nil
}

// nvChunk is how much one NV_Read may ask for: 1024 on swtpm, 768 on others.
func (t *TPM) nvChunk() (uint32, error) {
	n, err := t.property(tpm2.TPMPTNVBufferMax)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		n = 512
	}
	return min(n, 1024), nil
}

// trim cuts the padding behind a DER structure. What is none stays as it is:
// whether a certificate is good is not for the device to say.
func trim(b []byte) []byte {
	var v asn1.RawValue
	if rest, err := asn1.Unmarshal(b, &v); err == nil {
		return b[:len(b)-len(rest)]
	}
	return b
}
