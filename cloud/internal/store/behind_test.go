package store

import (
	"database/sql"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"
)

// Behind opens a database behind the back of its store, as who may do everything.
func Behind(where string) (*sql.DB, error) {
	if !IsURL(where) {
		return sql.Open("sqlite3", filepath.Join(where, "tillward.db")+"?_busy_timeout=5000")
	}
	cfg, err := parseURL(strings.Replace(where, serviceRole+"@", "postgres@", 1))
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["search_path"] = schemaName + ", seed"
	return sql.OpenDB(&connector{Connector: stdlib.GetConnector(*cfg), queries: &queries{}}), nil
}

// SchemaOf is a migration as PostgreSQL takes it.
var SchemaOf = schemaOf

// BehindAsService is Behind as the role that the service has.
func BehindAsService(where string) (*sql.DB, error) {
	cfg, err := parseURL(where)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(&connector{Connector: stdlib.GetConnector(*cfg), queries: &queries{}}), nil
}
