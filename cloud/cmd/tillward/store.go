package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/tillward/tillward/cloud"
)

type storeCmd struct {
	Setup  storeSetupCmd  `cmd:"" help:"Make a PostgreSQL database ready for this version: roles, schema and rights. Again after each new version, with the service stopped."`
	Grants storeGrantsCmd `cmd:"" help:"Print the SQL of the roles and of what each may do."`
}

type storeSetupCmd struct {
	URL             string `required:"" help:"The database, as its administrator: postgres://postgres@host/database." placeholder:"URL"`
	PasswordFile    string `help:"File with the administrator's password." placeholder:"FILE"`
	ServicePassword string `help:"File with the password that the service's role gets; without it the one it has stays." placeholder:"FILE"`
}

// Run implements the command.
func (c *storeSetupCmd) Run(ctx context.Context, o *out) error {
	log := slog.New(slog.NewTextHandler(o.err, nil))
	if err := cloud.SetupStore(ctx, cloud.StoreConfig{URL: c.URL, PasswordFile: c.PasswordFile}, c.ServicePassword, log); err != nil {
		return err
	}
	return o.print(map[string]bool{"ready": true}, "The database is ready; the service signs in to it as tillward_service.")
}

type storeGrantsCmd struct{}

// Run implements the command.
func (storeGrantsCmd) Run(o *out) error {
	fmt.Fprint(o.w, cloud.StoreGrants())
	return nil
}
