package tpmfarm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Where a maker puts EK certificates [TCG EK Credential Profile 2.5, 2.2.1.4].
const (
	nvRSACert  tpm2.TPMHandle = 0x01C00002
	nvECCCert  tpm2.TPMHandle = 0x01C0000A
	nvP384Cert tpm2.TPMHandle = 0x01C00016
)

// policyB is PolicyB for SHA-384 [TCG EK Credential Profile 2.5, B.6.5].
const policyB = "\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a\x07\x41\x48\xbb\x35\xd3\xb4\xe4" +
	"\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12"

// p384Template is template H-3 [TCG EK Credential Profile 2.5, B.4.5].
var p384Template = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgECC,
	NameAlg: tpm2.TPMAlgSHA384,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		AdminWithPolicy: true, Restricted: true, Decrypt: true,
	},
	AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte(policyB)},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	}),
}

// conn speaks raw TPM commands over a socket.
type conn struct{ net.Conn }

// Send implements transport.TPM. swtpm tests itself at the first use of P-384
// and asks for the command once more.
func (c conn) Send(cmd []byte) ([]byte, error) {
	for try := 1; ; try++ {
		rsp, err := c.exchange(cmd)
		if err == nil && try < 4 && tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:10])) == tpm2.TPMRCRetry {
			continue
		}
		return rsp, err
	}
}

func (c conn) exchange(cmd []byte) ([]byte, error) {
	if _, err := c.Write(cmd); err != nil {
		return nil, err
	}
	head := make([]byte, 10)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:6])
	if size < 10 || size > 8192 {
		return nil, fmt.Errorf("TPM response claims %d bytes", size)
	}
	rsp := append(head, make([]byte, size-10)...)
	_, err := io.ReadFull(c, rsp[10:])
	return rsp, err
}

// answers reports whether the TPM at socket works: it listens before it has
// read its state.
func answers(socket string) bool {
	c, err := dialTPM(socket)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return false
	}
	_, err = tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: 1,
	}.Execute(conn{c})
	return err == nil
}

// provision does at the desk what a TPM maker does: it reads the EK, issues
// its certificate and writes it into NV with platform authority.
func (f *Farm) provision(socket string) error {
	c, err := dialTPM(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	t := conn{c}
	tmpl, index := tpm2.ECCEKTemplate, nvECCCert
	switch {
	case f.P384:
		tmpl, index = p384Template, nvP384Cert
	case f.RSA:
		tmpl, index = tpm2.RSAEKTemplate, nvRSACert
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tmpl)}.Execute(t)
	if err != nil {
		return fmt.Errorf("create endorsement key: %w", err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: ek.ObjectHandle}).Execute(t); err != nil {
		return fmt.Errorf("flush endorsement key: %w", err)
	}
	pub, err := ek.OutPublic.Contents()
	if err != nil {
		return err
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return err
	}
	der, err := f.certify(key)
	if err != nil {
		return fmt.Errorf("issue EK certificate: %w", err)
	}
	return nvWrite(t, index, der)
}

func nvWrite(t conn, index tpm2.TPMHandle, data []byte) error {
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	if old, err := (tpm2.NVReadPublic{NVIndex: index}).Execute(t); err == nil { // of a run that was killed before its end
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: old.NVName}}).Execute(t); err != nil {
			return fmt.Errorf("undefine NV %#x: %w", uint32(index), err)
		}
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)), // #nosec G115 -- a certificate
		Attributes: tpm2.TPMANV{
			PPWrite: true, WriteDefine: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true,
		},
	})}.Execute(t)
	if err != nil {
		return fmt.Errorf("define NV %#x: %w", uint32(index), err)
	}
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if err != nil {
		return fmt.Errorf("look up NV %#x: %w", uint32(index), err)
	}
	for at := 0; at < len(data); at += 512 {
		_, err := tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data:   tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]},
			Offset: uint16(at), // #nosec G115 -- within a certificate
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("write NV %#x: %w", uint32(index), err)
		}
	}
	return nil
}
