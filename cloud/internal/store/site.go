package store

import (
	"context"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

// Sites lists the sites of tenant t by name: those with devices, and those
// that have hours.
func (s *Store) Sites(ctx context.Context, t fleet.TenantID) ([]fleet.Site, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT n.name, COALESCE(s.zone, ''), COALESCE(s.download, ''), COALESCE(s.install, ''), SUM(n.devices)
		FROM (SELECT site AS name, COUNT(*) AS devices FROM device WHERE tenant = ? AND site <> '' AND former_of = '' GROUP BY site
			UNION ALL SELECT name, 0 FROM site WHERE tenant = ?) AS n
		LEFT JOIN site s ON s.tenant = ? AND s.name = n.name GROUP BY n.name, s.zone, s.download, s.install ORDER BY n.name`, t, t, t)
	sites, err := list(rows, err, func(r scanner) (fleet.Site, error) {
		site := fleet.Site{Tenant: t}
		err := r.Scan(&site.Name, &site.Zone, &site.Download, &site.Install, &site.Devices)
		return site, err
	})
	if err != nil {
		return nil, fmt.Errorf("list sites: %w", err)
	}
	return sites, nil
}

// PutSite sets the hours of a site and writes ev to the service trail.
func (s *Store) PutSite(ctx context.Context, site fleet.Site, ev fleet.AuditEvent) error {
	err := s.tx(ctx, func(ctx context.Context, w *writer) error {
		if err := w.exec(ctx, `INSERT INTO site (tenant, name, zone, download, install) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (tenant, name) DO UPDATE SET zone = excluded.zone, download = excluded.download, install = excluded.install`,
			site.Tenant, site.Name, site.Zone, site.Download, site.Install); err != nil {
			return err
		}
		return w.audit(ctx, site.Tenant, ev)
	})
	if err != nil {
		return fmt.Errorf("set hours of site %s: %w", site.Name, err)
	}
	return nil
}
