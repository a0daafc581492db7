// Package clock keeps a till whose clock lost its battery from taking its own
// service for one of the future.
//
// It owns the least that the time can be, which it learns from certificates: one
// that a pinned authority signed says in its beginning that this moment has
// passed. It promises that nothing else moves it, and that it never runs ahead
// of the time, so that no certificate ends early. It sets no clock.
package clock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"time"
)

// Clock is the system's clock, or what is known to be later. The zero value is
// the system's.
type Clock struct {
	Wall func() time.Time // the system's clock; nil: as the system has it

	mu    sync.Mutex
	least time.Time
}

// Now is what certificates are held against; it fits tls.Config.Time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.wall(); now.After(c.least) {
		return now
	}
	return c.least
}

func (c *Clock) wall() time.Time {
	if c.Wall == nil {
		return time.Now()
	}
	return c.Wall()
}

// Learn looks at why a handshake failed. When a server's certificate, good by
// roots in all else, has not begun by this clock, the clock is behind: Learn
// reports by how much, and Now is no longer.
func (c *Clock) Learn(failed error, roots *x509.CertPool) (behind time.Duration, ok bool) {
	v, is := errors.AsType[*tls.CertificateVerificationError](failed)
	if !is || len(v.UnverifiedCertificates) == 0 {
		return 0, false
	}
	now, began := c.Now(), time.Time{}
	between := x509.NewCertPool()
	for i, cert := range v.UnverifiedCertificates {
		if cert.NotBefore.After(began) {
			began = cert.NotBefore
		}
		if i > 0 {
			between.AddCert(cert)
		}
	}
	if !began.After(now) {
		return 0, false
	}
	// Whatever its name: who has it signed by them says the truth about the time.
	o := x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: began}
	if _, err := v.UnverifiedCertificates[0].Verify(o); err != nil {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.least = began
	return began.Sub(now), true
}
