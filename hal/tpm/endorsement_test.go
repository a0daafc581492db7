package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tillward/tillward/hal/tpm"
)

func TestEndorsementMatchesItsCertificate(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			dev := open(t, startKind(t, kind))
			pub, der, _, err := dev.Endorsement(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			area, err := tpm2.Unmarshal[tpm2.TPMTPublic](pub)
			if err != nil {
				t.Fatal(err)
			}
			key, err := tpm2.Pub(*area)
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !got.Equal(cert.PublicKey) {
				t.Errorf("EK %v is not the certificate's %v", key, cert.PublicKey)
			}
			if got, err := activate(t, dev, pub); err != nil || string(got) != "secret" {
				t.Errorf("activated %q and %v, want the secret", got, err)
			}
		})
	}
}

// store writes data to an NV index with platform authority, as a maker does.
func store(t *testing.T, dev *tpm.TPM, index tpm2.TPMHandle, data []byte) {
	t.Helper()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	})}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 512 {
		_, err := tpm2.NVWrite{
			AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]}, Offset: uint16(at),
		}.Execute(tpm.Raw(dev))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Intermediates of an on-die authority: one stream over several indices, cut
// anywhere, with padding behind each certificate or none [TCG EK Credential
// Profile 2.5, 2.2.1.5].
func TestIntermediatesAreRead(t *testing.T) {
	dev := open(t, start(t))
	_, cert, chain, err := dev.Endorsement(t.Context())
	if err != nil || len(chain) != 0 {
		t.Fatalf("got a chain of %d and %v, want none", len(chain), err)
	}
	stream := slices.Concat(cert, []byte{0xff, 0xff, 0}, cert, cert, bytes.Repeat([]byte{0xff}, 40))
	store(t, dev, 0x01C00100, stream[:200])
	store(t, dev, 0x01C00101, stream[200:])
	store(t, dev, 0x01C00103, cert) // not part of it: 0x01C00102 is missing
	_, _, chain, err = dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 3 || !bytes.Equal(chain[0], cert) || !bytes.Equal(chain[2], cert) {
		t.Errorf("got %x, want the certificate three times", chain)
	}
}

// A TPM without EK certificate is for the vendor's list to know.
func TestNoCertificateIsNoError(t *testing.T) {
	dev := open(t, start(t))
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01C0000A)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: 0x01C0000A, Name: pub.NVName},
	}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	ek, cert, chain, err := dev.Endorsement(t.Context())
	if err != nil || len(ek) == 0 || cert != nil || chain != nil {
		t.Errorf("got EK %x, certificate %x, chain %x and %v", ek, cert, chain, err)
	}
	if _, err := activate(t, dev, ek); err != nil {
		t.Error(err)
	}
}

// activate makes a credential for dev as the fleet service does, and opens it.
func activate(t *testing.T, dev *tpm.TPM, ek []byte) ([]byte, error) {
	t.Helper()
	ak, _, err := dev.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	blob, secret := credential(t, ek, ak)
	return dev.Activate(t.Context(), blob, secret)
}

// credential is what the fleet service makes for the AK of an EK's TPM.
func credential(t *testing.T, ek, ak []byte) (blob, secret []byte) {
	t.Helper()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		t.Fatal(err)
	}
	kem, err := tpm2.ImportEncapsulationKey(area)
	if err != nil {
		t.Fatal(err)
	}
	akArea, err := tpm2.Unmarshal[tpm2.TPMTPublic](ak)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(akArea)
	if err != nil {
		t.Fatal(err)
	}
	blob, secret, err = tpm2.CreateCredential(rand.Reader, kem, name.Buffer, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	return blob, secret
}

// PolicyB is an OR over PolicyA and PolicyC; the digests are the profile's.
func TestPolicyBIsWhatItsBranchesMake(t *testing.T) {
	a, b, c := tpm.PoliciesABC()
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA384)
	if err != nil {
		t.Fatal(err)
	}
	if err := (tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement}).Update(calc); err != nil {
		t.Fatal(err)
	}
	if got := calc.Hash().Digest; !bytes.Equal(got, a) {
		t.Errorf("PolicyA is %x, want %x", a, got)
	}
	branches := tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: a}, {Buffer: c}}}
	if err := (tpm2.PolicyOr{PHashList: branches}).Update(calc); err != nil {
		t.Fatal(err)
	}
	if got := calc.Hash().Digest; !bytes.Equal(got, b) {
		t.Errorf("PolicyB is %x, want %x", b, got)
	}
	if n := len(b); n != 48 {
		t.Errorf("PolicyB %s has %d bytes", hex.EncodeToString(b), n)
	}
}

// keep persists an endorsement key of the template at handle, as some makers do.
func keep(t *testing.T, dev *tpm.TPM, tmpl tpm2.TPMTPublic, handle tpm2.TPMHandle) {
	t.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tmpl)}.Execute(tpm.Raw(dev))
	if err != nil {
		t.Fatal(err)
	}
	object := &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}
	if _, err := (tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: object, PersistentHandle: handle}).Execute(tpm.Raw(dev)); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(tpm.Raw(dev)); err != nil {
		t.Fatal(err)
	}
}

// An RSA key is not made again for seconds when its maker persisted it; a key
// that the certificate does not speak of is not taken for it.
func TestPersistedEndorsementKeyIsUsed(t *testing.T) {
	other := tpm2.RSAEKTemplate
	other.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{1}, 256)})
	for name, tt := range map[string]struct {
		tmpl  tpm2.TPMTPublic
		makes bool
	}{"the maker's": {tpm2.RSAEKTemplate, false}, "another key": {other, true}} {
		t.Run(name, func(t *testing.T) {
			dev := open(t, startKind(t, "RSA-2048"))
			want, _, _, err := dev.Endorsement(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			keep(t, dev, tt.tmpl, 0x81010001)
			if _, _, err := dev.Keys(t.Context()); err != nil {
				t.Fatal(err)
			}
			makes := false
			tpm.Wrap(dev, func(cmd []byte, next func([]byte) ([]byte, error)) ([]byte, error) {
				makes = makes || command(cmd) == tpm2.TPMCCCreatePrimary
				return next(cmd)
			})
			got, _, _, err := dev.Endorsement(t.Context())
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got EK %x and %v, want %x", got, err, want)
			}
			if secret, err := activate(t, dev, want); err != nil || string(secret) != "secret" {
				t.Errorf("activated %q and %v, want the secret", secret, err)
			}
			if makes != tt.makes {
				t.Errorf("made an EK: %v, want %v", makes, tt.makes)
			}
		})
	}
}
