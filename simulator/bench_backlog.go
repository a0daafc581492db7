package simulator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tillward/tillward/cloud"
	"github.com/tillward/tillward/simulator/postgres"
)

// Bench "backlog": a chain of tills opens with what it saved up.
const (
	backlogTills   = 16
	backlogBatches = 300 // of each till in one run
	backlogSamples = 20
	rawGroup       = 5000 // rows in one transaction of the raw inserts
)

// benchBacklog measures how many rows of a backlog a second get all the way from
// devices into the tables, beside how many the database takes on this machine
// when somebody has them ready and inserts nothing else: SQLite by prepared
// inserts, PostgreSQL by COPY.
func benchBacklog(ctx context.Context, o BenchOptions) ([]Figure, error) {
	lite := o
	lite.Dir = filepath.Join(o.Dir, "sqlite")
	road, live, err := backlogRoad(ctx, lite, "sqlite", "")
	if err != nil {
		return nil, err
	}
	raw, err := rawRows(ctx, filepath.Join(o.Dir, "raw"))
	if err != nil {
		return nil, err
	}
	syncs, err := appends(o.Dir)
	if err != nil {
		return nil, err
	}
	road.Beside = &raw
	more, err := backlogPostgres(ctx, o)
	if errors.Is(err, postgres.ErrMissing) {
		fmt.Fprintln(o.Say, err)
		return []Figure{road, live, syncs}, nil
	}
	return append([]Figure{road, live, syncs}, more...), err
}

// backlogPostgres is the same with a server of its own.
func backlogPostgres(ctx context.Context, o BenchOptions) ([]Figure, error) {
	dir, err := os.MkdirTemp("", "tillward-pg-") // a short path, for the socket
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	c, err := postgres.Start(ctx, dir, true, "max_wal_size=4GB")
	if err != nil {
		return nil, err
	}
	defer c.Stop()
	admin := c.URL("postgres", "postgres")
	if err := cloud.SetupStore(ctx, cloud.StoreConfig{URL: admin}, "", slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	o.Dir = filepath.Join(o.Dir, "postgres")
	road, live, err := backlogRoad(ctx, o, "postgres", c.URL("tillward_service", "postgres"))
	if err != nil {
		return nil, err
	}
	raw, err := copyRows(ctx, admin)
	if err != nil {
		return nil, err
	}
	road.Beside = &raw
	return []Figure{road, live}, nil
}

// backlogRoad runs the whole road several times over one database that grows.
func backlogRoad(ctx context.Context, o BenchOptions, name, store string) (road, live Figure, err error) {
	const late, working = backlogTills, 4
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, done, err := chain(ctx, o, store, benchRuns*late+working)
	if err != nil {
		return road, live, err
	}
	var rates, overtaken []float64
	var used, wall float64
	for run := range benchRuns {
		part := *s
		part.devices = append(part.devices[:0:0], s.devices[run*late:(run+1)*late]...)
		part.devices = append(part.devices, s.devices[benchRuns*late:]...)
		part.members = append(part.members[:0:0], s.members[run*late:(run+1)*late]...)
		part.members = append(part.members, s.members[benchRuns*late:]...)
		part.first = uint64(run) * 100_000 // #nosec G115 -- counts up from 0
		r, err := part.opening(ctx, OpeningOptions{Late: late, Working: working, Batches: backlogBatches, Samples: backlogSamples})
		if err != nil {
			return road, live, err
		}
		rates, overtaken = append(rates, float64(r.Rows)/r.Seconds), append(overtaken, float64(r.Overtaken))
		used, wall = used+r.CPU, wall+r.Seconds
	}
	cancel()
	road = figure("backlog_rows_per_second_"+name, "rows/s", rates)
	road.CPU, road.Wall, road.Devices = used, wall, late
	live = figure("live_overtaken_by_backlog_"+name, "messages", overtaken)
	live.Limit = late * flightOfOne
	return road, live, <-done
}

const rawTable = `CREATE TABLE sample_raw (boot BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, series BIGINT NOT NULL, at BIGINT NOT NULL,
	value DOUBLE PRECISION NOT NULL, epoch BIGINT NOT NULL, kept BIGINT NOT NULL, PRIMARY KEY (boot, seq, idx))`

// rows yields what the road brings, in the order in which it comes: each
// device's own, all devices in turn.
func rows(run int, yield func(row []any) error) (n int, err error) {
	for seq := range backlogBatches {
		for d := range backlogTills {
			for k := range backlogSamples {
				boot := run*backlogTills + d
				if err := yield([]any{
					int64(boot), int64(seq), int64(k), int64(boot*backlogSamples + k), 1_790_000_000_000 + int64(seq)*60_000, float64(seq) + float64(k)/8, int64(1_790_000_000), int64(k % 2),
				}); err != nil {
					return n, err
				}
				n++
			}
		}
	}
	return n, nil
}

// raw times runs of something that takes rows.
func raw(name string, run func(run int) (rows int, err error)) (Figure, error) {
	var runs []float64
	used := cpu(syscall.RUSAGE_SELF)
	for i := range benchRuns {
		began := time.Now()
		n, err := run(i)
		if err != nil {
			return Figure{}, fmt.Errorf("%s: %w", name, err)
		}
		runs = append(runs, float64(n)/time.Since(began).Seconds())
	}
	f := figure(name, "rows/s", runs)
	f.CPU = cpu(syscall.RUSAGE_SELF) - used
	return f, nil
}

// copyRows copies the same rows into a table and index like those of the
// service, each run by one COPY.
func copyRows(ctx context.Context, admin string) (Figure, error) {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return Figure{}, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, rawTable+`; CREATE INDEX sample_raw_series ON sample_raw (series, at, value)`); err != nil {
		return Figure{}, err
	}
	return raw("raw_postgres_copy_rows_per_second", func(run int) (int, error) {
		var all [][]any
		if _, err := rows(run, func(row []any) error {
			all = append(all, row)
			return nil
		}); err != nil {
			return 0, err
		}
		n, err := conn.CopyFrom(ctx, pgx.Identifier{"sample_raw"}, []string{"boot", "seq", "idx", "series", "at", "value", "epoch", "kept"}, pgx.CopyFromRows(all))
		return int(n), err
	})
}

// rawRows inserts the same rows into a table and index like those of the
// service, prepared, in large transactions that are synced.
func rawRows(ctx context.Context, dir string) (Figure, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Figure{}, err
	}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "raw.db")+"?_journal_mode=WAL&_synchronous=FULL")
	if err != nil {
		return Figure{}, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, rawTable+` WITHOUT ROWID; CREATE INDEX sample_raw_series ON sample_raw (series, at, value)`); err != nil {
		return Figure{}, err
	}
	insert, err := db.PrepareContext(ctx, `INSERT INTO sample_raw (boot, seq, idx, series, at, value, epoch, kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`)
	if err != nil {
		return Figure{}, err
	}
	defer insert.Close()
	return raw("raw_sqlite_rows_per_second", func(run int) (int, error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return 0, err
		}
		defer func() { _ = tx.Rollback() }() // of the last one, when it failed
		in, got := tx.StmtContext(ctx, insert), 0
		n, err := rows(run, func(row []any) error {
			if got++; got%rawGroup == 0 {
				if err := tx.Commit(); err != nil {
					return err
				}
				if tx, err = db.BeginTx(ctx, nil); err != nil {
					return err
				}
				in = tx.StmtContext(ctx, insert)
			}
			_, err := in.ExecContext(ctx, row...)
			return err
		})
		if err != nil {
			return n, err
		}
		return n, tx.Commit()
	})
}
