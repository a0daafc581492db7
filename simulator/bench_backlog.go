package simulator

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
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
// when somebody has them ready and inserts nothing else.
func benchBacklog(ctx context.Context, o BenchOptions) ([]Figure, error) {
	road, live, err := backlogRoad(ctx, o)
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
	return []Figure{road, syncs, live}, nil
}

// backlogRoad runs the whole road several times over one database that grows.
func backlogRoad(ctx context.Context, o BenchOptions) (road, live Figure, err error) {
	const late, working = backlogTills, 4
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, done, err := chain(ctx, o, benchRuns*late+working)
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
	road = figure("backlog_rows_per_second_sqlite", "rows/s", rates)
	road.CPU, road.Wall, road.Devices = used, wall, late
	live = figure("live_message_overtaken_by_backlog", "messages", overtaken)
	live.Limit = late * flightOfOne
	return road, live, <-done
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
	if _, err := db.ExecContext(ctx, `CREATE TABLE sample (boot BIGINT NOT NULL, seq BIGINT NOT NULL, idx BIGINT NOT NULL, series BIGINT NOT NULL, at BIGINT NOT NULL,
		value DOUBLE PRECISION NOT NULL, epoch BIGINT NOT NULL, kept BIGINT NOT NULL, PRIMARY KEY (boot, seq, idx)) WITHOUT ROWID;
		CREATE INDEX sample_series ON sample (series, at, value)`); err != nil {
		return Figure{}, err
	}
	var runs []float64
	used := cpu(syscall.RUSAGE_SELF)
	for run := range benchRuns {
		began := time.Now()
		rows, err := rawRun(ctx, db, run)
		if err != nil {
			return Figure{}, fmt.Errorf("raw rows: %w", err)
		}
		runs = append(runs, float64(rows)/time.Since(began).Seconds())
	}
	f := figure("raw_sqlite_rows_per_second", "rows/s", runs)
	f.CPU = cpu(syscall.RUSAGE_SELF) - used
	return f, nil
}

func rawRun(ctx context.Context, db *sql.DB, run int) (rows int, err error) {
	var tx *sql.Tx
	var stmt *sql.Stmt
	end := func() error {
		if tx == nil {
			return nil
		}
		t := tx
		tx = nil
		return t.Commit()
	}
	for seq := range backlogBatches { // as they come: each device's in order, all devices in turn
		for d := range backlogTills {
			for k := range backlogSamples {
				if tx == nil {
					if tx, err = db.BeginTx(ctx, nil); err != nil {
						return rows, err
					}
					if stmt, err = tx.PrepareContext(ctx, `INSERT INTO sample (boot, seq, idx, series, at, value, epoch, kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`); err != nil { //nolint:sqlclosecheck // ends with its transaction
						return rows, err
					}
				}
				boot := run*backlogTills + d
				if _, err := stmt.ExecContext(ctx, boot, seq, k, boot*backlogSamples+k, 1_790_000_000_000+int64(seq)*60_000, float64(seq)+float64(k)/8, 1_790_000_000, k%2 == 0); err != nil {
					return rows, err
				}
				if rows++; rows%rawGroup == 0 {
					if err := end(); err != nil {
						return rows, err
					}
				}
			}
		}
	}
	return rows, end()
}
