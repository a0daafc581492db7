package cloud

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tillward/tillward/cloud/internal/catalog"
	"github.com/tillward/tillward/cloud/internal/dispatch"
	"github.com/tillward/tillward/cloud/internal/fleet"
	"github.com/tillward/tillward/cloud/wire"
)

// openCatalog opens the releases, and the key that keeps them fresh: a root
// that names it for snapshot and timestamp spares everybody to do that by hand.
// Its public half lies beside it for whoever signs roots.
func (s *Service) openCatalog() (err error) {
	if s.catalog, err = catalog.Open(filepath.Join(s.cfg.DataDir, "artifacts")); err != nil {
		return err
	}
	s.catalog.Fits = s.fits
	if s.catalog.Key, err = ownKey(s.cfg.DataDir, "online.key"); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(s.catalog.Key.Public())
	if err != nil {
		return fmt.Errorf("online key: %w", err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(s.cfg.DataDir, "online.pub"), public, 0o644); err != nil { // #nosec G306 -- public by nature
		return fmt.Errorf("online key: %w", err)
	}
	return nil
}

// releases is the catalog, with what the rest of the service knows about it.
type releases struct{ *Service }

// Publish takes in releases and what they say about booting.
func (r releases) Publish(ctx context.Context, in io.Reader) ([]fleet.Release, error) {
	return r.publish(ctx, in)
}

// Export prepares an update medium.
func (r releases) Export(ctx context.Context, m fleet.Medium) (time.Time, func(io.Writer) error, error) {
	return r.catalog.Export(ctx, m, func(kind string, m wire.Message) ([]byte, error) { return dispatch.Order(r.signer, kind, m) })
}

// Freshness says how fresh the releases are.
func (r releases) Freshness() (fleet.Freshness, error) { return r.catalog.Freshness() }

// keepFresh keeps the metadata of releases from ending, and says in time what
// others have to sign.
func (s *Service) keepFresh(ctx context.Context) error {
	last := ""
	return s.catalog.Run(ctx, func(err error) {
		s.log.Error("releases", slog.Any("err", err))
		if what := err.Error(); what != last { // not every hour
			last = what
			s.audit(ctx, "release.stale", "alarm", "releases", map[string]string{"reason": what, "check": "release.freshness"})
		}
	}, func(role string, at time.Time) {
		s.audit(ctx, "release.expiring", "alarm", role, map[string]string{
			"not_after": at.UTC().Format(time.RFC3339), "check": "release.expiry", "what": "sign the metadata of " + role + " anew and publish it: devices install nothing after that time",
		})
	})
}
