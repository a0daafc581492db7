package dispatch_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/simulator/postgres"
)

// TestMain runs the tests on SQLite, and then on PostgreSQL.
func TestMain(m *testing.M) {
	os.Exit(postgres.Main(m, func(ctx context.Context, url string) error {
		return store.Setup(ctx, url, "", slog.New(slog.DiscardHandler))
	}))
}
