// Package identity says who a device is: its id, the profile of its LDevID
// certificate, and how both are read back from a TLS connection.
//
// It parses and does not validate: an Identity that exists is well formed. It
// knows no TPM and no certificate authority. It exports one name more than
// other rooms, because tier and role are what everybody asks an identity for.
// [IEEE 802.1AR-2018, 6 and 8]
package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Tier says what an identity rests on; the strongest is A.
type Tier string

// The tiers.
const (
	TierA Tier = "A" // TPM with an EK certificate of its maker
	TierB Tier = "B" // TPM whose EK is on the vendor's signed list
	TierC Tier = "C" // virtual TPM
	TierD Tier = "D" // software key
)

// Role says what a certificate is for.
type Role string

// A member's certificate opens what its evidence earns. A recovery certificate
// is for a key that no boot state binds: it opens quarantine and nothing else,
// so that a bad release cannot cost a device its identity.
const (
	RoleMember   Role = ""
	RoleRecovery Role = "recovery"
)

// idLen is the length of a device id: 15 bytes in base32.
const idLen = 24

// ErrIdentity is returned when a certificate is not that of a device.
var ErrIdentity = errors.New("not a device certificate")

// oidTillward is the extension that carries tier and model, as a SEQUENCE of
// two UTF8Strings, and a third with the role unless it is a member's. The arc is
// a UUID-based one [ITU-T X.667, 7] and needs no registration.
var oidTillward = asn1.ObjectIdentifier{2, 25, 1938417662, 1}

// Identity is a device as its certificate names it.
type Identity struct {
	Tenant   string
	Device   string
	Tier     Tier
	Model    string
	Role     Role
	Serial   string // hex serial number of the certificate
	Issuer   string // hex key identifier of who signed it
	NotAfter time.Time
}

type extension struct {
	Tier  string `asn1:"utf8"`
	Model string `asn1:"utf8"`
	Role  string `asn1:"utf8,optional"`
}

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// DeviceID derives the device id from the public area of the endorsement key:
// base32 of the first 15 bytes of its SHA-256, 24 characters.
func DeviceID(ekPublic []byte) string {
	sum := sha256.Sum256(ekPublic)
	return encoding.EncodeToString(sum[:15])
}

// Template returns the certificate to sign for id: P-256 key as given, client
// authentication only, SAN urn:tillward:t:{tenant}:d:{device}. The caller sets
// no field but the serial number.
func Template(id Identity, serial *big.Int, from time.Time, life time.Duration) (*x509.Certificate, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	ext, err := asn1.Marshal(extension{Tier: string(id.Tier), Model: id.Model, Role: string(id.Role)})
	if err != nil {
		return nil, fmt.Errorf("encode tier, model and role: %w", err)
	}
	return &x509.Certificate{
		SerialNumber:    serial,
		Subject:         pkix.Name{CommonName: id.Device, Organization: []string{id.Tenant}},
		NotBefore:       from.Add(-5 * time.Minute), // a till's clock may be a little late
		NotAfter:        from.Add(life),
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:            []*url.URL{id.urn()},
		ExtraExtensions: []pkix.Extension{{Id: oidTillward, Value: ext}},

		BasicConstraintsValid: true,
	}, nil
}

// FromCertificate reads the identity out of a device certificate.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	if c.IsCA || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return Identity{}, fmt.Errorf("usage is not that of a client: %w", ErrIdentity)
	}
	if len(c.URIs) != 1 || c.URIs[0].Scheme != "urn" {
		return Identity{}, fmt.Errorf("one urn name expected: %w", ErrIdentity)
	}
	p := strings.Split(c.URIs[0].Opaque, ":")
	if len(p) != 5 || p[0] != "tillward" || p[1] != "t" || p[3] != "d" {
		return Identity{}, fmt.Errorf("name %.80q: %w", c.URIs[0].Opaque, ErrIdentity)
	}
	id := Identity{Tenant: p[2], Device: p[4], Serial: c.SerialNumber.Text(16), Issuer: hex.EncodeToString(c.AuthorityKeyId), NotAfter: c.NotAfter}
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidTillward) {
			continue
		}
		var ext extension
		if _, err := asn1.Unmarshal(e.Value, &ext); err != nil {
			return Identity{}, fmt.Errorf("tier, model and role: %w", ErrIdentity)
		}
		// asn1 skips what it does not expect; a role must not be lost that way.
		if same, err := asn1.Marshal(ext); err != nil || !bytes.Equal(same, e.Value) {
			return Identity{}, fmt.Errorf("tier, model and role: %w", ErrIdentity)
		}
		id.Tier, id.Model, id.Role = Tier(ext.Tier), ext.Model, Role(ext.Role)
	}
	if c.Subject.CommonName != id.Device || len(c.Subject.Organization) != 1 || c.Subject.Organization[0] != id.Tenant ||
		c.URIs[0].String() != id.urn().String() {
		return Identity{}, fmt.Errorf("subject and name differ: %w", ErrIdentity)
	}
	if err := id.check(); err != nil {
		return Identity{}, err
	}
	return id, nil
}

func (id Identity) urn() *url.URL {
	return &url.URL{Scheme: "urn", Opaque: "tillward:t:" + id.Tenant + ":d:" + id.Device}
}

// FromTLS reads the identity of the peer of a finished TLS 1.3 handshake in
// which its certificate was verified. A resumed session is refused: in it the
// client has signed nothing.
func FromTLS(s tls.ConnectionState) (Identity, error) {
	switch {
	case !s.HandshakeComplete || s.Version != tls.VersionTLS13:
		return Identity{}, fmt.Errorf("no finished TLS 1.3 handshake: %w", ErrIdentity)
	case s.DidResume:
		return Identity{}, fmt.Errorf("session was resumed: %w", ErrIdentity)
	case len(s.VerifiedChains) == 0 || len(s.PeerCertificates) == 0:
		return Identity{}, fmt.Errorf("no verified client certificate: %w", ErrIdentity)
	}
	id, err := FromCertificate(s.PeerCertificates[0])
	if chain := s.VerifiedChains[0]; err == nil && len(chain) > 1 {
		// Who signed it is what the handshake found out; what the certificate says
		// of it is the word of whoever made it.
		id.Issuer = hex.EncodeToString(chain[1].SubjectKeyId)
	}
	return id, err
}

func (id Identity) check() error {
	if !ValidTenant(id.Tenant) {
		return fmt.Errorf("tenant %.40q: %w", id.Tenant, ErrIdentity)
	}
	if !ValidDevice(id.Device) {
		return fmt.Errorf("device id %.40q: %w", id.Device, ErrIdentity)
	}
	switch id.Tier {
	case TierA, TierB, TierC, TierD:
	default:
		return fmt.Errorf("tier %.10q: %w", id.Tier, ErrIdentity)
	}
	if id.Role != RoleMember && id.Role != RoleRecovery {
		// What is not known is not a lesser right: it is none.
		return fmt.Errorf("role %.20q: %w", id.Role, ErrIdentity)
	}
	if len(id.Model) > 64 || strings.ContainsFunc(id.Model, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("model %.80q: %w", id.Model, ErrIdentity)
	}
	return nil
}

// ValidTenant reports whether s can name a tenant: up to 32 lower-case
// letters, digits and inner hyphens.
func ValidTenant(s string) bool {
	return s != "" && len(s) <= 32 && s[0] != '-' && s[len(s)-1] != '-' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// ValidDevice reports whether s is a device id as DeviceID makes them.
func ValidDevice(s string) bool {
	// Each character counts: base32 decoders pass over line ends.
	return len(s) == idLen && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
