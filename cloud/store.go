package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"

	"github.com/tillward/tillward/cloud/internal/store"
	"github.com/tillward/tillward/provisioning/ca"
)

// StoreConfig says which database the service works on.
type StoreConfig struct {
	URL          string `toml:"url" comment:"PostgreSQL, postgres://tillward_service@host/database; empty: SQLite in the data folder"`
	PasswordFile string `toml:"password_file" comment:"file, or name of a systemd credential, with the password of its role; empty: none, or another way to prove it"`
}

func (c StoreConfig) validate() error {
	if c.URL == "" {
		if c.PasswordFile != "" {
			return errors.New("store.password_file: name the database in store.url")
		}
		return nil
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return errors.New("store.url: write postgres://role@host/database") // the error would show all of it
	}
	if _, ok := u.User.Password(); ok || u.Query().Has("password") {
		return errors.New("store.url: it holds a password; put that into a file of its own and name it in store.password_file (--password-file)")
	}
	if err := store.CheckURL(c.URL); err != nil {
		return fmt.Errorf("store.url: %w", err)
	}
	return nil
}

// where is what the store opens: the URL with its password, or the folder.
func (c StoreConfig) where(dir string) (string, error) {
	if c.URL == "" {
		return dir, nil
	}
	if c.PasswordFile == "" {
		return c.URL, nil
	}
	password, err := ca.Passphrase(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("store.password_file: %w", err)
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return "", errors.New("store.url: write postgres://role@host/database")
	}
	u.User = url.UserPassword(u.User.Username(), string(password))
	return u.String(), nil
}

// SetupStore makes the database that an administrator signs in to ready for
// this version of the service: roles, schema and rights. The service's role is
// given the password in a file, unless there is no such file.
func SetupStore(ctx context.Context, admin StoreConfig, servicePasswordFile string, log *slog.Logger) error {
	if admin.URL == "" {
		return errors.New("name the database, as its administrator: postgres://postgres@host/database")
	}
	if err := admin.validate(); err != nil {
		return err
	}
	where, err := admin.where("")
	if err != nil {
		return err
	}
	password := ""
	if servicePasswordFile != "" {
		b, err := ca.Passphrase(servicePasswordFile)
		if err != nil {
			return fmt.Errorf("password of the service's role: %w", err)
		}
		password = string(b)
	}
	return store.Setup(ctx, where, password, log)
}

// StoreGrants is the SQL of the roles that SetupStore makes, for people.
func StoreGrants() string { return store.Grants() }
