// Package member keeps a box a member of its fleet: who it is, on disk and in
// the TPM; when its keys are changed; whose it is; and how it gives up an owner.
//
// It owns the stored identity, the pace of renewal, the mark of the ownership
// voucher and the wipe. It promises that a power cut between any two steps
// leaves an identity that works, that a renewal disturbs no connection, that an
// owner is believed only by a chain that begins with the vendor and never
// shrinks, and that a wipe which has begun ends, whatever happens meanwhile. The
// protocols are provisioning/enrol's, the statements provisioning/owner's; it
// opens no TPM and no connection itself.
//
// It exports more names than other rooms because joining, staying and leaving
// are three lives of one identity, and each has its thing and its step.
package member

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tillward/tillward/provisioning/enrol"
)

// ErrIncomplete means that an identity lacks what a member needs: enrol again.
var ErrIncomplete = errors.New("incomplete identity")

// Identity is what is kept of an enrolment, and of what was renewed since.
type Identity struct {
	enrol.Result
	URL        string    `json:"url,omitempty"`         // where it enrolled: the stick that said so may be gone
	ServerName string    `json:"server_name,omitempty"` // name in the service's certificate
	Since      time.Time `json:"since"`                 // when the certificate came; it begins a little before
	AKSince    time.Time `json:"ak_since"`              // when the AK in use was made

	leaf, rescue *x509.Certificate
}

// Parse reads a stored identity and checks that a member can live on it.
// Errors: ErrIncomplete.
func Parse(b []byte) (Identity, error) {
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return Of(id)
}

// Of checks an identity and reads its certificates. Errors: ErrIncomplete.
func Of(id Identity) (Identity, error) {
	if len(id.Chain) == 0 || len(id.Brokers) == 0 || len(id.OrderKeys) == 0 {
		return id, ErrIncomplete
	}
	var err error
	if id.leaf, err = x509.ParseCertificate(id.Chain[0]); err != nil {
		return id, fmt.Errorf("%w: certificate: %w", ErrIncomplete, err)
	}
	id.rescue = nil
	if len(id.Recovery) > 0 {
		if id.rescue, err = x509.ParseCertificate(id.Recovery[0]); err != nil {
			return id, fmt.Errorf("%w: recovery certificate: %w", ErrIncomplete, err)
		}
	}
	return id, nil
}

// Bytes is what Parse reads.
func (id Identity) Bytes() []byte {
	b, err := json.Marshal(id)
	if err != nil {
		panic("member: an identity always encodes: " + err.Error())
	}
	return b
}

// Leaf is the certificate of the member, Rescue that of the recovery key, nil
// when there is none.
func (id Identity) Leaf() *x509.Certificate   { return id.leaf }
func (id Identity) Rescue() *x509.Certificate { return id.rescue }

// Ended reports whether the certificate has.
func (id Identity) Ended(now time.Time) bool { return !now.Before(id.leaf.NotAfter) }

// Rescuable reports whether the recovery certificate can be shown.
func (id Identity) Rescuable(now time.Time) bool {
	return id.rescue != nil && len(id.RecoveryKey) > 0 && now.Before(id.rescue.NotAfter)
}
