package store

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"
)

//go:embed roles/*.sql
var roles embed.FS

const serviceRole = "tillward_service"

// Setup makes a PostgreSQL database ready for this version of the program: its
// roles, its schema and what each role may do. It is for an administrator of
// the database, once for each version; the service itself signs in as another
// role, which is given a password unless that is empty. No service may be
// running. What is there already stays.
func Setup(ctx context.Context, where, password string, log *slog.Logger) error {
	cfg, err := parseURL(where)
	if err != nil {
		return fmt.Errorf("set up store: %w", err)
	}
	s := newStore(log)
	s.pg = &server{place: place(cfg)}
	s.write = sql.OpenDB(&connector{Connector: stdlib.GetConnector(*cfg), queries: &queries{}})
	s.write.SetMaxOpenConns(1)
	w := &writer{pg: true, stmts: map[string]*sql.Stmt{}}
	if err = s.pg.connect(ctx, s, w); err == nil {
		err = s.with(ctx, w, func(ctx context.Context, w *writer) error { return s.setup(ctx, w, password) })
		w.drop()
	}
	if err = errors.Join(err, s.write.Close()); err != nil {
		return fmt.Errorf("set up store %s: %w", s.pg.place, err)
	}
	return nil
}

func (s *Store) setup(ctx context.Context, w *writer, password string) error {
	run := func(file string) error {
		text, err := roles.ReadFile("roles/" + file)
		if err != nil {
			return err
		}
		if _, err := w.conn.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSuffix(file, ".sql"), err)
		}
		return nil
	}
	if err := run("before.sql"); err != nil {
		return err
	}
	if _, err := w.changed(ctx, `SET LOCAL ROLE `+ownerRole); err != nil {
		return err
	}
	if err := s.migrate(ctx, w, schemaOf); err != nil {
		return err
	}
	if err := run("after.sql"); err != nil {
		return err
	}
	if _, err := w.changed(ctx, `RESET ROLE`); err != nil {
		return err
	}
	if err := run("keeper.sql"); err != nil || password == "" {
		return err
	}
	verifier, err := scram(password)
	if err != nil {
		return err
	}
	return w.exec(ctx, `ALTER ROLE `+serviceRole+` PASSWORD '`+verifier+`'`)
}

// Grants is the SQL of the roles and of what each may do, for people: what
// Setup does but for the tables, which have to be there.
func Grants() string {
	text := func(file string) string {
		b, err := roles.ReadFile("roles/" + file)
		if err != nil {
			panic(err) // it is embedded
		}
		return string(b)
	}
	return "BEGIN;\n" + text("before.sql") + "\nSET LOCAL ROLE " + ownerRole + ";\n" + text("after.sql") + "\nRESET ROLE;\n" + text("keeper.sql") + "COMMIT;\n"
}

// scram is what PostgreSQL keeps of a password [RFC 5802, 3]: the password
// itself does not travel, and shows in no log.
func scram(password string) (string, error) {
	for _, c := range []byte(password) {
		if c <= ' ' || c > '~' {
			return "", errors.New("a password of the database has printable ASCII characters only, and no blanks")
		}
	}
	const rounds = 4096
	var salt [16]byte
	_, _ = rand.Read(salt[:])
	salted, err := pbkdf2.Key(sha256.New, password, salt[:], rounds, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(text string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, b64(salt[:]), b64(stored[:]), b64(mac("Server Key"))), nil
}
