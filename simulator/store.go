package simulator

import (
	"context"
	"log/slog"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/simulator/postgres"
)

// PrivateStore starts a PostgreSQL server in dir, whose path has to be short,
// with a database for a service, as tillward store setup makes it. stop ends
// the server.
func PrivateStore(ctx context.Context, dir string, log *slog.Logger) (url string, stop func(), err error) {
	c, err := postgres.Start(ctx, dir, true)
	if err != nil {
		return "", nil, err
	}
	if err := cloud.SetupStore(ctx, cloud.StoreConfig{URL: c.URL("postgres", "postgres")}, "", log); err != nil {
		c.Stop()
		return "", nil, err
	}
	return c.URL("tillward_service", "postgres"), c.Stop, nil
}
