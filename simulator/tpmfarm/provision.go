package tpmfarm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Where a maker puts EK certificates of the low range [TCG EK Credential
// Profile 2.5, 2.2.1.4].
const (
	nvRSACert tpm2.TPMHandle = 0x01C00002
	nvECCCert tpm2.TPMHandle = 0x01C0000A
)

// conn speaks raw TPM commands over a socket.
type conn struct{ net.Conn }

// Send implements transport.TPM.
func (c conn) Send(cmd []byte) ([]byte, error) {
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
	if f.RSA {
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
