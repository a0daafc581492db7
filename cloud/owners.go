package cloud

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/internal/owner"
	deed "github.com/tillward/tillward/provisioning/owner"
)

// wireOwners joins the room that knows whose devices are.
func (s *Service) wireOwners() error {
	key, err := ownKey(s.cfg.DataDir, "tenant.key")
	if err != nil {
		return err
	}
	vendors, err := vendors(s.cfg.Enrol.Vendors)
	if err != nil {
		return err
	}
	name := s.cfg.OwnerName
	if name == "" {
		name = s.cfg.Tenant
	}
	s.owners = owner.New(owner.Options{
		Store: s.store, Tenant: s.tenant, Name: name, Key: key, Vendors: vendors, Waiting: s.cfg.Enrol.ClaimWaiting,
		Relinquish: s.dispatch.Relinquish, Log: s.log,
		Cut: func(d fleet.DeviceID, why string) {
			s.broker.Disconnect(d, why)
			s.ingest.Forget(d)
		},
		Changed: func(d fleet.DeviceID) {
			s.hub.Publish(fleet.Change{Kind: fleet.ChangedDevice, ID: string(d), Tenant: s.tenant})
		},
	})
	return nil
}

// vendors reads the public keys of makers of devices.
func vendors(all []VendorConfig) ([]owner.Vendor, error) {
	var out []owner.Vendor
	for _, v := range all {
		key, err := publicKey(v.Key)
		if err != nil {
			return nil, fmt.Errorf("enrol.vendors: key of %s: %w", v.Name, err)
		}
		out = append(out, owner.Vendor{Name: v.Name, Key: key})
	}
	return out, nil
}

// publicKey reads an Ed25519 public key from a PEM or a party file.
func publicKey(path string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		p, err := deed.ParseParty(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return p.Key, nil
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s: neither a PEM public key nor a party file", path)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: is %T, an Ed25519 key is needed", path, key)
	}
	return pub, nil
}

// authorities lists who signs device certificates.
func (s *Service) authorities() []fleet.Authority {
	var out []fleet.Authority
	for _, i := range s.devices.Issuing() {
		out = append(out, fleet.Authority{Serial: i.Serial, NotBefore: i.NotBefore, NotAfter: i.NotAfter, Current: i.Current})
	}
	return out
}

// voucher is what a member is given to know whose it is; nil when there is none.
func (s *Service) voucher(ctx context.Context, device string) ([]byte, error) {
	return s.owners.Voucher(ctx, fleet.DeviceID(device))
}
