package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// server is what a store on PostgreSQL has beside one on SQLite.
type server struct {
	place  string // for people: never with the password
	holder int64  // this store among all that ever wrote
}

const (
	schemaName   = "tillward"
	ownerRole    = "tillward_owner"
	writerLock   = 0x74696c6c77617264 // "tillward"
	readers      = 8                  // connections; one more writes
	lockPatience = 2 * time.Second    // for the connection of a service that just died to be noticed
)

// IsURL reports whether where names a PostgreSQL database and not a folder.
func IsURL(where string) bool {
	return strings.HasPrefix(where, "postgres://") || strings.HasPrefix(where, "postgresql://")
}

// CheckURL says what is wrong with the URL of a database. The way there has to
// be encrypted, with the name in the certificate checked, unless it does not
// leave the machine.
func CheckURL(where string) error {
	_, err := parseURL(where)
	return err
}

func parseURL(where string) (*pgx.ConnConfig, error) {
	if !IsURL(where) {
		return nil, errors.New("it does not begin with postgres://")
	}
	cfg, err := pgx.ParseConfig(where)
	if err == nil && open(cfg) != "" && !strings.Contains(where, "sslmode=") { // pgx would take what it gets
		mark := "?"
		if strings.Contains(where, "?") {
			mark = "&"
		}
		cfg, err = pgx.ParseConfig(where + mark + "sslmode=verify-full")
	}
	if err != nil {
		return nil, err // without the password
	}
	if host := open(cfg); host != "" {
		return nil, fmt.Errorf("the way to %s needs sslmode=verify-full, with sslrootcert when its authority is not one of the system's", host)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	set := func(name, value string) {
		if cfg.RuntimeParams[name] == "" {
			cfg.RuntimeParams[name] = value
		}
	}
	set("application_name", "tillward")
	set("search_path", schemaName)
	set("jit", "off") // it costs more than any query here gains
	// A service whose machine is gone shall not hold the lock for hours.
	set("tcp_keepalives_idle", "20")
	set("tcp_keepalives_interval", "5")
	set("tcp_keepalives_count", "3")
	return cfg, nil
}

// open names a host that the way to is open to others: it leaves this machine,
// and is not encrypted for one whose certificate has its name.
func open(cfg *pgx.ConnConfig) string {
	for _, h := range append([]*pgconn.FallbackConfig{{Host: cfg.Host, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		local := strings.HasPrefix(h.Host, "/") || h.Host == "localhost"
		if ip := net.ParseIP(h.Host); ip != nil {
			local = ip.IsLoopback()
		}
		if !local && (h.TLSConfig == nil || h.TLSConfig.InsecureSkipVerify) {
			return h.Host
		}
	}
	return ""
}

func place(cfg *pgx.ConnConfig) string {
	return fmt.Sprintf("%s on %s as %s", cfg.Database, cfg.Host, cfg.User)
}

// openPostgres opens the database that a URL names.
func openPostgres(ctx context.Context, where string, log *slog.Logger) (*Store, error) {
	cfg, err := parseURL(where)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := newStore(log)
	var holder [8]byte
	_, _ = rand.Read(holder[:])
	s.pg = &server{place: place(cfg), holder: int64(binary.BigEndian.Uint64(holder[:]) >> 1)} // #nosec G115 -- 63 bits
	if err := s.pg.open(ctx, s, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", s.pg.place, err), s.Close())
	}
	return s, nil
}

func (p *server) open(ctx context.Context, s *Store, cfg *pgx.ConnConfig) error {
	reads := cfg.Copy()
	reads.RuntimeParams["default_transaction_read_only"] = "on"
	reads.RuntimeParams["default_transaction_isolation"] = "repeatable read" // what is read in one transaction is of one moment
	known := &queries{}
	s.write = sql.OpenDB(&connector{Connector: stdlib.GetConnector(*cfg), queries: known})
	s.write.SetMaxOpenConns(1)
	s.read = sql.OpenDB(&connector{Connector: stdlib.GetConnector(*reads), queries: known, reads: true, told: s.told})
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	w := &writer{pg: true, stmts: map[string]*sql.Stmt{}}
	w.forget()
	s.w <- w
	if err := p.connect(ctx, s, w); err != nil {
		return err
	}
	if err := p.suits(ctx, s, w); err != nil {
		return err
	}
	if err := w.exec(ctx, `INSERT INTO counter (name, n) VALUES ('writer', ?) ON CONFLICT (name) DO UPDATE SET n = excluded.n`, p.holder); err != nil {
		return err
	}
	return s.prepare(ctx)
}

// connect gives w a connection that alone may write.
func (p *server) connect(ctx context.Context, s *Store, w *writer) (err error) {
	if w.conn, err = s.write.Conn(ctx); err != nil {
		return err
	}
	if err := p.lock(ctx, w.conn); err != nil {
		w.drop()
		return err
	}
	return nil
}

// lock takes the lock of the writer for as long as conn lives. It is what makes
// the numbers of audit rows grow without a gap, and what is remembered of the
// database true.
func (p *server) lock(ctx context.Context, conn *sql.Conn) error {
	if _, err := conn.ExecContext(ctx, fmt.Sprintf(`SET lock_timeout = %d`, lockPatience.Milliseconds())); err != nil {
		return err
	}
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock(?)`, int64(writerLock))
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == "55P03" {
		return errors.New("another fleet service writes to this database" + p.other(ctx, conn) + "; only one may: stop it first")
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	// The server's own limits are for people; what is half written is finished.
	_, err = conn.ExecContext(ctx, `SET lock_timeout = 0; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
		SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`) // acknowledged means stored
	return err
}

// other says who holds the lock, as far as this role may know.
func (p *server) other(ctx context.Context, conn *sql.Conn) string {
	var pid int64
	var from, since string
	err := conn.QueryRowContext(ctx, `SELECT a.pid, COALESCE(host(a.client_addr), 'this machine'), COALESCE(to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ'), '?')
		FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND l.classid::int8 = ? AND l.objid::int8 = ? AND l.objsubid = 1`, int64(writerLock>>32), int64(writerLock&0xffffffff)).Scan(&pid, &from, &since)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (from %s, backend %d, since %s)", from, pid, since)
}

// reconnect gives w another connection, after the database was away. It goes
// on only when nobody else has written meanwhile: what this store remembers
// would be wrong.
func (p *server) reconnect(ctx context.Context, s *Store, w *writer) error {
	w.drop()
	if err := p.connect(ctx, s, w); err != nil {
		return err
	}
	var holder int64
	err := p.suits(ctx, s, w) // it may have been set up for another version meanwhile
	if err == nil {
		err = w.row(ctx, `SELECT n FROM counter WHERE name = 'writer'`).Scan(&holder)
	}
	if err == nil && holder != p.holder {
		err = errors.New("another fleet service has written to this database since; start this one anew")
	}
	if err != nil {
		w.drop()
		return err
	}
	s.log.Warn("database connected again", slog.String("store", p.place))
	return nil
}

// drop closes the connection of w and forgets what was of it.
func (w *writer) drop() {
	for _, stmt := range w.stmts {
		_ = stmt.Close()
	}
	w.stmts = map[string]*sql.Stmt{}
	w.forget()
	if w.conn != nil {
		_ = w.conn.Raw(func(any) error { return driver.ErrBadConn }) // not back into the pool: it holds the lock
		_ = w.conn.Close()
		w.conn = nil
	}
}

// suits checks that the schema is the one this program knows, that the role is
// one that cannot change the trails, and that the server keeps what it says it
// keeps.
func (p *server) suits(ctx context.Context, s *Store, w *writer) error {
	names, err := migrationNames()
	if err != nil {
		return err
	}
	var there bool
	if err := w.row(ctx, `SELECT to_regclass('tillward.schema_version') IS NOT NULL`).Scan(&there); err != nil {
		return err
	}
	if !there {
		return errors.New("it holds no fleet service yet: make it with tillward store setup")
	}
	var have int
	if err := w.row(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_version`).Scan(&have); err != nil {
		return fmt.Errorf("schema version (is this the role that tillward store setup made?): %w", err)
	}
	switch {
	case have > len(names):
		return newerSchema(have, len(names))
	case have < len(names):
		return fmt.Errorf("its schema has version %d and this program needs %d: bring it up to date with tillward store setup", have, len(names))
	}
	var user string
	var may bool
	if err := w.row(ctx, `SELECT current_user, has_any_column_privilege('audit', 'UPDATE') OR has_table_privilege('audit', 'DELETE') OR has_table_privilege('audit', 'TRUNCATE')
		OR pg_has_role((SELECT relowner FROM pg_class WHERE oid = 'audit'::regclass), 'MEMBER')`).Scan(&user, &may); err != nil {
		return err
	}
	if may {
		return fmt.Errorf("its role %s may change the audit trails; the service works as %s, which may only add to them: see tillward store setup", user, serviceRole)
	}
	for _, setting := range []string{"fsync", "full_page_writes"} {
		var value string
		if err := w.row(ctx, `SHOW `+setting).Scan(&value); err != nil {
			return err
		}
		if value == "off" {
			s.log.Warn("the database does not sync what it commits: after a power cut, what was acknowledged can be missing", slog.String("setting", setting), slog.String("store", p.place))
		}
	}
	return nil
}
