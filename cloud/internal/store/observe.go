package store

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/mattn/go-sqlite3"
)

// Observe has wrote told of each transaction that writes: how many rows it
// changed and how long it took, and read of each query that only reads, but for
// the prepared ones of what comes from devices. Call it before anything else;
// neither may wait.
func (s *Store) Observe(wrote func(rows int64, took time.Duration, err error), read func()) {
	s.observe, s.asked = wrote, read
}

// reader opens the connections to SQLite that only read, and tells of what they
// are asked.
type reader struct {
	s   *Store
	dsn string
}

// Driver implements driver.Connector.
func (r *reader) Driver() driver.Driver { return &sqlite3.SQLiteDriver{} }

// Connect implements driver.Connector.
func (r *reader) Connect(context.Context) (driver.Conn, error) {
	conn, err := r.Driver().Open(r.dsn)
	if err != nil {
		return nil, err
	}
	lite, ok := conn.(*sqlite3.SQLiteConn)
	if !ok {
		return nil, fmt.Errorf("the driver gave a %T", conn)
	}
	return &reading{lite, r.s}, nil
}

// reading is a connection to SQLite that only reads.
type reading struct {
	*sqlite3.SQLiteConn
	s *Store
}

// QueryContext implements driver.QueryerContext.
func (r *reading) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	r.s.told()
	return r.SQLiteConn.QueryContext(ctx, query, args)
}

// told counts a query that only reads.
func (s *Store) told() {
	if s.asked != nil {
		s.asked()
	}
}
