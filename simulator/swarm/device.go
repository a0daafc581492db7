// Package swarm is a fleet on the wire for load: devices that speak the
// contract and the enrolment protocol byte for byte, without agent and without
// TPM.
//
// The keys of a Device are in software and follow from a seed, so 100,000 of
// them fit in memory and are the same in every run. It owns what such a device
// says - public areas, EK certificates, credentials, quotes, CONNECT - and
// promises that the service cannot tell it from a TPM whose maker it trusts;
// that is why a service must never trust an Authority of this package outside
// of tests. It is no fallback for a device without TPM, and runs nothing an
// agent runs.
//
// It exports more than eight names because load, attacks and captures of what
// passes each need another end of such a device.
package swarm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/enrol"
	"github.com/tillward/tillward/provisioning/identity"
)

// Device is a software TPM's worth of keys and what it would report. The
// exported fields may be set between calls; calls may run at the same time.
// It fits enrol.Endorser and enrol.Prover.
type Device struct {
	Reset    uint32       // boots since the TPM was made; from 1
	Restart  uint32       // resumes since the last boot
	Firmware uint64       // of the TPM
	PCRs     [10][32]byte // PCR 0 to 9 of the SHA-256 bank

	// Selection is what its quotes claim to cover; nil: PCR 0 to 9. Anything
	// else is an attack.
	Selection []byte

	seed  [32]byte
	maker *Authority      // nil: no EK certificate
	ek    *rsa.PrivateKey // nil: P-256, from the seed
}

// roles of the keys that follow from a seed.
const (
	roleEK       = "endorsement"
	roleAK       = "attestation"
	roleLDevID   = "device"
	roleRecovery = "recovery"
)

// New returns device n of the fleet called seed. Its EK is P-256 (template
// L-2), or ek when that is given (2048 bits, template L-1): RSA keys take a
// long time to make, so the caller makes them and may use one again in another
// fleet. Two devices with one EK are one device to the service. A nil maker
// leaves the device without EK certificate.
func New(seed string, n uint64, maker *Authority, ek *rsa.PrivateKey) *Device {
	d := &Device{Reset: 1, Firmware: 0x2026_0001, maker: maker, ek: ek}
	d.seed = derive([]byte(seed), "fleet", n)
	for i := range d.PCRs { // one model: the same in the whole fleet
		d.PCRs[i] = derive([]byte(seed), "pcr", uint64(i)) // #nosec G115 -- 0 to 9
	}
	return d
}

func derive(key []byte, label string, n uint64) [32]byte {
	m := hmac.New(sha256.New, key)
	m.Write(binary.BigEndian.AppendUint64([]byte(label), n))
	return [32]byte(m.Sum(nil))
}

// key is the P-256 key of a role.
func (d *Device) key(role string) (*ecdsa.PrivateKey, error) {
	for i := range uint64(8) {
		scalar := derive(d.seed[:], role, i)
		// One scalar in 2^32 is not below the order of the curve.
		if k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:]); err == nil {
			return k, nil
		}
	}
	return nil, fmt.Errorf("%s key: the seed gives none", role)
}

// signTemplate is the public area of AK (restricted) and LDevID as an agent's
// TPM makes them.
func signTemplate(restricted bool) tpm2.TPMTPublic {
	scheme := tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: scheme},
		}),
	}
}

// eccArea fills a template with a key.
func eccArea(tmpl tpm2.TPMTPublic, key *ecdsa.PublicKey) (tpm2.TPMTPublic, error) {
	point, err := key.Bytes() // 4, x, y
	if err != nil {
		return tpm2.TPMTPublic{}, fmt.Errorf("public area: %w", err)
	}
	tmpl.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return tmpl, nil
}

// area is the public area of a role's key.
func (d *Device) area(role string) (tpm2.TPMTPublic, error) {
	if role == roleEK && d.ek != nil {
		tmpl := tpm2.RSAEKTemplate
		tmpl.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: d.ek.N.FillBytes(make([]byte, 256))})
		return tmpl, nil
	}
	k, err := d.key(role)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	switch role {
	case roleEK:
		return eccArea(tpm2.ECCEKTemplate, &k.PublicKey)
	default:
		return eccArea(signTemplate(role == roleAK), &k.PublicKey)
	}
}

func (d *Device) public(role string) ([]byte, error) {
	a, err := d.area(role)
	if err != nil {
		return nil, err
	}
	return tpm2.Marshal(a), nil
}

// ID is the device id the service will give it.
func (d *Device) ID() (string, error) {
	ek, err := d.public(roleEK)
	if err != nil {
		return "", err
	}
	return identity.DeviceID(ek), nil
}

// Endorsement implements enrol.Endorser; the certificate is made anew each time.
func (d *Device) Endorsement(context.Context) (public, certificate []byte, chain [][]byte, err error) {
	if public, err = d.public(roleEK); err != nil || d.maker == nil {
		return public, nil, nil, err
	}
	var key crypto.PublicKey
	if d.ek != nil {
		key = &d.ek.PublicKey
	} else {
		k, err := d.key(roleEK)
		if err != nil {
			return nil, nil, nil, err
		}
		key = &k.PublicKey
	}
	if certificate, err = d.maker.endorse(key, d.seed[:16]); err != nil {
		return nil, nil, nil, err
	}
	return public, certificate, nil, nil
}

// Keys implements enrol.Prover.
func (d *Device) Keys(context.Context) (ak, ldevid []byte, err error) {
	if ak, err = d.public(roleAK); err != nil {
		return nil, nil, err
	}
	if ldevid, err = d.public(roleLDevID); err != nil {
		return nil, nil, err
	}
	return ak, ldevid, nil
}

// Signer is the LDevID key, for TLS.
func (d *Device) Signer() (crypto.Signer, error) { return d.key(roleLDevID) }

// Certify implements enrol.Prover.
func (d *Device) Certify(_ context.Context, extra []byte) (attest, signature []byte, err error) {
	return d.certify(roleLDevID, extra)
}

// selection is what the TPM says was quoted.
func (d *Device) selection() []byte {
	if d.Selection != nil {
		return d.Selection
	}
	return []byte{0xff, 0x03, 0}
}

// Quote implements enrol.Prover.
func (d *Device) Quote(_ context.Context, extra []byte) (attest, signature []byte, pcrs [][]byte, err error) {
	for i := range d.PCRs {
		pcrs = append(pcrs, slices.Clone(d.PCRs[i][:]))
	}
	digest := sha256.Sum256(slices.Concat(pcrs...))
	attest, signature, err = d.attest(tpm2.TPMSTAttestQuote, extra, tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: d.selection()}}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]},
	}))
	return attest, signature, pcrs, err
}

// attest signs what a TPM's TPM2_Quote or TPM2_Certify would.
func (d *Device) attest(kind tpm2.TPMST, extra []byte, body tpm2.TPMUAttest) (attest, signature []byte, err error) {
	if len(extra) > 64 { // TPM2B_DATA of a TPM without SHA-512
		return nil, nil, errors.New("extraData is longer than a TPM takes")
	}
	key, err := d.key(roleAK)
	if err != nil {
		return nil, nil, err
	}
	area, err := d.area(roleAK)
	if err != nil {
		return nil, nil, err
	}
	name, err := tpm2.ObjectName(&area)
	if err != nil {
		return nil, nil, fmt.Errorf("attest: %w", err)
	}
	attest = tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: kind, QualifiedSigner: qualified(name.Buffer), ExtraData: tpm2.TPM2BData{Buffer: extra},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: 60_000, ResetCount: d.Reset, RestartCount: d.Restart, Safe: true},
		FirmwareVersion: d.Firmware, Attested: body,
	})
	digest := sha256.Sum256(attest)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, nil, fmt.Errorf("attest: %w", err)
	}
	return attest, tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	}), nil
}

// qualified is the qualified name of a primary key in the endorsement
// hierarchy [TCG TPM 2.0 Library, part 1, 26.5].
func qualified(name []byte) tpm2.TPM2BName {
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), name...))
	return tpm2.TPM2BName{Buffer: append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), sum[:]...)}
}

// Evidence is the encoded wire.EvidenceReport of a boot that the service does
// not know yet: with register values, without an event log. exporter is the
// connection's, seq counts its evidence from 1. sent is Unix milliseconds.
func (d *Device) Evidence(exporter []byte, seq uint64, sent int64) ([]byte, error) {
	m, pcrs, err := d.steady(exporter, seq, sent)
	if err != nil {
		return nil, err
	}
	m.PCRs, m.AgentVersion = pcrs, "swarm"
	return wire.Encode(m)
}

// Steady is what Evidence is once the service has accepted the boot: the quote
// alone, within wire.MaxSteadyEvidence bytes.
func (d *Device) Steady(exporter []byte, seq uint64, sent int64) ([]byte, error) {
	m, _, err := d.steady(exporter, seq, sent)
	if err != nil {
		return nil, err
	}
	return wire.Encode(m)
}

func (d *Device) steady(exporter []byte, seq uint64, sent int64) (*wire.EvidenceReport, [][]byte, error) {
	id, err := d.ID()
	if err != nil {
		return nil, nil, err
	}
	extra := enrol.ConnBinding(id, exporter, seq)
	quoted, spelt, pcrs, err := d.Quote(context.Background(), extra[:])
	if err != nil {
		return nil, nil, err
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](spelt)
	if err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	ec, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, nil, fmt.Errorf("signature: %w", err)
	}
	boot := derive(d.seed[:], "boot", uint64(d.Reset)<<32|uint64(d.Restart))
	return &wire.EvidenceReport{
		Head:   wire.Head{V: wire.Version, Boot: wire.Boot(boot[:16]), Seq: seq, Sent: sent},
		Quoted: quoted, Signature: slices.Concat(ec.SignatureR.Buffer, ec.SignatureS.Buffer), Seq: seq,
	}, pcrs, nil
}
