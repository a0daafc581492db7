package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/pkcs11"
	"github.com/tillward/tillward/provisioning/ca/step"
)

// renewPace is how many connected devices a second are told to renew after the
// authority was rotated: a certificate costs the service a few milliseconds.
const renewPace = 50

// openAuthorities opens who signs device certificates and who signs what the
// service shows.
func (s *Service) openAuthorities() (err error) {
	dir, c := s.cfg.DataDir, s.cfg.Authority
	var o ca.Options
	if c.PassphraseFile != "" {
		if o.Passphrase, err = ca.Passphrase(c.PassphraseFile); err != nil {
			return fmt.Errorf("authority.passphrase_file: %w", err)
		}
	}
	pinned := o
	pinned.Pinned = true
	if s.root, err = ca.Open(dir, "service-ca", pinned); err != nil {
		return err
	}
	if c.Module != "" {
		pin, err := ca.Passphrase(c.PINFile)
		if err != nil {
			return fmt.Errorf("authority.pin_file: %w", err)
		}
		if s.token, err = pkcs11.Open(pkcs11.Config{Module: c.Module, Token: c.Token, PIN: pin}); err != nil {
			return err
		}
		o.Keys = s.token
	}
	if c.StepURL != "" {
		o.Upstream, err = step.Open(step.Config{
			URL: c.StepURL, Root: filepath.Join(dir, "tenant-ca.pem"), Provisioner: c.StepProvisioner, Key: c.StepKey,
		})
		if err != nil {
			return err
		}
	}
	s.devices, err = ca.Open(dir, "tenant-ca", o)
	return err
}

// rotate signs with a new issuing certificate from now on and has the fleet
// renew, the connected devices at a measured pace, the others when they come.
func (s *Service) rotate(ctx context.Context) error {
	if _, err := s.devices.Rotate(ctx); errors.Is(err, ca.ErrOffline) {
		return fmt.Errorf("%w: %w", fleet.ErrConflict, err)
	} else if err != nil {
		return err
	}
	select {
	case s.rotated <- struct{}{}:
	default: // the round that is to come covers it
	}
	return nil
}

// retire believes an issuing certificate no more and cuts whoever came by it,
// also when the disk does not want to know of it.
func (s *Service) retire(serial string) error {
	var issuer string
	for _, i := range s.devices.Issuing() {
		if strings.EqualFold(i.Serial, serial) {
			issuer = i.KeyID
		}
	}
	err := s.devices.Retire(serial)
	switch {
	case errors.Is(err, ca.ErrUnknown):
		return fmt.Errorf("%w: %w", fleet.ErrNotFound, err)
	case errors.Is(err, ca.ErrCurrent):
		return fmt.Errorf("%w: %w", fleet.ErrConflict, err)
	}
	if s.signs(issuer) == nil { // another certificate for the same key counts still
		return err
	}
	s.broker.DisconnectAll(issuer, "its issuing certificate was retired")
	return err
}

// signs refuses an issuer that counts no more, by the identifier of its key: a
// connection may be older than that.
func (s *Service) signs(issuer string) error {
	for _, i := range s.devices.Issuing() {
		if i.KeyID == issuer {
			return nil
		}
	}
	return fmt.Errorf("the issuing certificate of its certificate was retired; enrol again: %w", fleet.ErrForbidden)
}

// rollCertificates tells connected devices to renew after each rotation.
func (s *Service) rollCertificates(ctx context.Context) error {
	tick := time.NewTicker(time.Second / renewPace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.rotated:
		}
		for device := range s.broker.Connected() {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			s.renew(device)
		}
	}
}

// renewals tells each device that came by an older issuing certificate to
// renew, once for each rotation: a device that is just arriving may not listen
// yet, and is told as soon as it does.
type renewals struct {
	current func() string                      // key identifier of who signs now
	came    func(device fleet.DeviceID) string // that of who signed what a device is connected by; empty: nobody
	tell    func(device fleet.DeviceID) error

	mu   sync.Mutex
	told map[fleet.DeviceID]string // in which time of whom, of those that are connected by an older one
}

// look tells a device, if it is behind and has not been told.
func (r *renewals) look(device fleet.DeviceID) error {
	came, current := r.came(device), r.current()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case came == "":
		return nil
	case came == current:
		delete(r.told, device)
		return nil
	case r.told[device] == current:
		return nil
	}
	if err := r.tell(device); err != nil {
		return err
	}
	if r.told == nil {
		r.told = make(map[fleet.DeviceID]string)
	}
	r.told[device] = current
	return nil
}

// renew tells a device to renew its certificate now, where an older issuer
// signed it.
func (s *Service) renew(device fleet.DeviceID) {
	if err := s.renewals.look(device); err != nil {
		s.log.Debug("not told to renew", slog.String("device", string(device)), slog.Any("err", err))
	}
}

// needRenew sends a device the word to renew.
func (s *Service) needRenew(device fleet.DeviceID) error {
	b, err := wire.Encode(&wire.Challenge{V: wire.Version, Need: wire.NeedRenew})
	if err != nil {
		return err
	}
	return s.broker.Send(device, wire.DownChallenge, b)
}

// issuer is the key identifier of who signs device certificates now.
func (s *Service) issuer() string {
	for _, i := range s.devices.Issuing() {
		if i.Current {
			return i.KeyID
		}
	}
	return ""
}
