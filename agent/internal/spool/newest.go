package spool

import (
	"context"
	"database/sql"
	"fmt"
)

// Newest returns the id of the newest message that waits, 0 when none does. What
// is put from now on has a higher one.
func (s *Spool) Newest(ctx context.Context) (id uint64, err error) {
	err = s.read(ctx, func(c *sql.Conn) error {
		return c.QueryRowContext(context.Background(), "SELECT COALESCE(MAX(id), 0) FROM message").Scan(&id)
	})
	if err != nil {
		return 0, fmt.Errorf("read spool: %w", err)
	}
	return id, nil
}
