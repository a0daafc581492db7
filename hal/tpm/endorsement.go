package tpm

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// akTemplate is the AK's public area. Changing unique makes another key.
var akTemplate = signTemplate(true)

// ldevidTemplate is the public area of the LDevID key.
var ldevidTemplate = signTemplate(false)

func signTemplate(restricted bool) tpm2.TPMTPublic {
	scheme := tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(
		tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: scheme}),
	}
}

// Endorsement returns the public area of the EK (TPMT_PUBLIC), its maker's
// certificate in DER (nil when the TPM holds none) and on-die intermediates.
// The EK whose certificate is there is taken, P-256 before RSA because it is a
// hundred times faster; without any certificate it is the P-256 one.
func (t *TPM) Endorsement(ctx context.Context) (public, certificate []byte, chain [][]byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	tmpl, certificate, err := t.endorsementCert()
	if err != nil {
		return nil, nil, nil, err
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tmpl)}.Execute(t.dev)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("create endorsement key: %w", err)
	}
	defer t.flush(ek.ObjectHandle)
	pub, err := ek.OutPublic.Contents()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
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

// pad brings the coordinates of a P-256 EK to 32 bytes each. Some TPMs strip
// leading zeros, and the device id is a hash over these bytes.
func pad(pub *tpm2.TPMTPublic) error {
	if pub.Type != tpm2.TPMAlgECC {
		return nil
	}
	p, err := pub.Unique.ECC()
	if err != nil {
		return fmt.Errorf("endorsement key: %w", err)
	}
	var x, y [32]byte
	if len(p.X.Buffer) > len(x) || len(p.Y.Buffer) > len(y) {
		return errors.New("endorsement key: coordinate longer than 32 bytes")
	}
	copy(x[len(x)-len(p.X.Buffer):], p.X.Buffer)
	copy(y[len(y)-len(p.Y.Buffer):], p.Y.Buffer)
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x[:]}, Y: tpm2.TPM2BECCParameter{Buffer: y[:]},
	})
	return nil
}

// endorsementCert picks the EK template by the certificate that is in NV.
func (t *TPM) endorsementCert() (tpm2.TPMTPublic, []byte, error) {
	for _, k := range []struct {
		index tpm2.TPMHandle
		tmpl  tpm2.TPMTPublic
	}{{nvECCCert, tpm2.ECCEKTemplate}, {nvRSACert, tpm2.RSAEKTemplate}} {
		cert, err := t.nvRead(k.index)
		if err != nil {
			return tpm2.TPMTPublic{}, nil, err
		}
		if cert != nil {
			return k.tmpl, trim(cert), nil
		}
	}
	return tpm2.ECCEKTemplate, nil, nil
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
	tmpl, _, err := t.endorsementCert()
	if err != nil {
		return nil, err
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tmpl)}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("create endorsement key: %w", err)
	}
	defer t.flush(ek.ObjectHandle)
	// PolicySession and an own close: the just-in-time Policy of go-tpm 0.9.8
	// leaks the session when its callback fails.
	sess, done, err := tpm2.PolicySession(t.dev, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, fmt.Errorf("start policy session: %w", err)
	}
	defer done() //nolint:errcheck // the session is gone already when it was used
	_, err = tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: sess.Handle(),
		NonceTPM:      sess.NonceTPM(),
	}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("endorsement policy: %w", err)
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: auth(t.ak),
		KeyHandle:      tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: sess},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(t.dev)
	if err != nil {
		return nil, fmt.Errorf("activate credential: %w", err)
	}
	return rsp.CertInfo.Buffer, nil
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
	step, err := nvChunk(t.dev)
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
func nvChunk(t transport.TPM) (uint32, error) {
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTNVBufferMax), PropertyCount: 1,
	}.Execute(t)
	if err != nil {
		return 0, fmt.Errorf("read TPM properties: %w", err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil || len(props.TPMProperty) == 0 || props.TPMProperty[0].Value == 0 {
		return 512, nil
	}
	return min(props.TPMProperty[0].Value, 1024), nil
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
