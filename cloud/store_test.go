package cloud_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/simulator/postgres"
)

// TestStoreConfig: the way to a database leaves the machine encrypted or not at all, and no password is in the file
// that -check prints.
func TestStoreConfig(t *testing.T) {
	for text, want := range map[string]string{
		"url = 'postgres://tillward_service@db.example/tillward?sslrootcert=nowhere.pem'": "store.url: ",
		"url = 'postgres://tillward_service@db.example/tillward?sslmode=disable'":         "needs sslmode=verify-full",
		"url = 'postgres://tillward_service:geheim@localhost/tillward'":                   "store.password_file",
		"url = 'postgres://localhost/tillward?user=x&password=geheim'":                    "store.password_file",
		"url = '/var/lib/tillward.db'":                                                    "does not begin with postgres://",
		"url = 'postgres://a b:geheim'":                                                   "write postgres://role@host/database",
		"password_file = 'pw'":                                                            "name the database in store.url",
		"path = 'x'":                                                                      "unknown key",
	} {
		_, err := cloud.Load(write(t, "[store]\n"+text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: the error shows the password: %v", text, err)
		}
	}
	cfg, err := cloud.Load(write(t, "[store]\nurl = 'postgres://tillward_service@db.example/tillward'\npassword_file = '/etc/tillward/db'"))
	if err != nil || !strings.Contains(cfg.String(), "url = 'postgres://tillward_service@db.example/tillward'") {
		t.Errorf("got %s, %v", cfg, err)
	}
}

// TestServesOnPostgres starts the service on a database that setup made: by the password in a file, not without.
func TestServesOnPostgres(t *testing.T) {
	own, err := os.MkdirTemp("", "tillward-pg-") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(own) })
	c, err := postgres.Start(t.Context(), own, false)
	must(t, err)
	t.Cleanup(c.Kill)
	dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	password := filepath.Join(dir, "password")
	must(t, os.WriteFile(password, []byte("richtig\n"), 0o600))
	cfg := cloud.DefaultConfig()
	cfg.DataDir, cfg.Metrics.Listen, cfg.Operator.Plain = filepath.Join(dir, "data"), "", true
	cfg.Device.MQTT, cfg.Device.HTTPS, cfg.Operator.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Store.URL = c.URL("tillward_service", "postgres")
	if _, err := cloud.New(t.Context(), cfg, quiet); err == nil || !strings.Contains(err.Error(), "tillward_service") {
		t.Errorf("before it was set up: got %v", err)
	}
	must(t, cloud.SetupStore(t.Context(), cloud.StoreConfig{URL: c.URL("postgres", "postgres")}, password, quiet))
	must(t, c.Demand("tillward_service", "scram-sha-256"))
	if _, err := cloud.New(t.Context(), cfg, quiet); err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("without the password: got %v", err)
	}
	cfg.Store.PasswordFile = password
	s, err := cloud.New(t.Context(), cfg, quiet)
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	must(t, s.Run(ctx))
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "tillward.db")); err == nil {
		t.Error("there is a file of SQLite too")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
