package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/tillward/tillward/cloud"
)

type serveCmd struct {
	Config string `help:"Configuration file (strict TOML)." placeholder:"FILE"`
	Data   string `help:"Data folder; with it a configuration file is not needed." placeholder:"DIR"`
	Check  bool   `help:"Check the configuration, print the effective one, and exit."`
}

// Run implements the command.
func (c *serveCmd) Run(ctx context.Context, o *out) error {
	cfg := cloud.DefaultConfig()
	if c.Config != "" {
		var err error
		if cfg, err = cloud.Load(c.Config); err != nil {
			return usage{err}
		}
	}
	if c.Data != "" {
		cfg.DataDir = c.Data
	}
	if err := cfg.Validate(); err != nil {
		return usage{err}
	}
	if c.Check {
		fmt.Fprint(o.w, cfg)
		return nil
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return usage{fmt.Errorf("log_level: %w", err)}
	}
	cloud.Version = version
	s, err := cloud.New(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
