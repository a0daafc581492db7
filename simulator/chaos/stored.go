package chaos

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the service's store may be either
	_ "github.com/mattn/go-sqlite3"
)

// row is one that the service holds of a till.
type row struct {
	key
	idx  int
	text string
	n    int64 // rows of a table are numbered as they were stored; 0: they are not
}

// link is an entry of a trail as the service holds it.
type link struct {
	n                int64
	seq              uint64
	body, hash, prev []byte
}

// stored is what the service holds of a till.
type stored struct {
	rows  []row // of samples, events, results, and the state
	trail []link
}

// sqlite is the address of a database in a file.
func sqlite(file string) string {
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: file}).EscapedPath(), RawQuery: "mode=ro&_busy_timeout=20000"}).String()
}

// alarms are those that the service raised by itself, with whom each is about.
func alarms(ctx context.Context, address string) (out map[string]int, err error) {
	out = make(map[string]int)
	err = query(ctx, address, func(each reader) error {
		return each(`SELECT kind, subject FROM audit WHERE device = '' AND severity = 'alarm' ORDER BY n`, func(scan func(...any) error) error {
			var kind, subject string
			err := scan(&kind, &subject)
			out[kind+" "+subject]++
			return err
		})
	})
	return out, err
}

// reader hands each row that a query finds to take.
type reader func(query string, take func(scan func(...any) error) error) error

// readStore reads what the service's database holds of each device. It reads
// beside a service that runs.
func readStore(ctx context.Context, address string) (map[string]*stored, error) {
	var out map[string]*stored
	err := query(ctx, address, func(each reader) (err error) {
		out, err = readAll(each)
		return err
	})
	return out, err
}

// query reads one state of a database.
func query(ctx context.Context, address string, read func(reader) error) error {
	driver := "pgx"
	if strings.HasPrefix(address, "file:") {
		driver = "sqlite3"
	}
	db, err := sql.Open(driver, address)
	if err != nil {
		return err
	}
	defer db.Close()
	o := &sql.TxOptions{ReadOnly: true}
	if driver == "pgx" {
		o.Isolation = sql.LevelRepeatableRead
	}
	tx, err := db.BeginTx(ctx, o)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	return read(func(query string, take func(scan func(...any) error) error) error {
		rows, err := tx.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := take(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

func readAll(each reader) (map[string]*stored, error) {
	out := make(map[string]*stored)
	of := func(device string) *stored {
		if out[device] == nil {
			out[device] = new(stored)
		}
		return out[device]
	}
	type boot struct{ device, name string }
	boots := make(map[int64]boot)
	steps := []struct {
		what, query string
		take        func(scan func(...any) error) error
	}{
		{"boot", `SELECT id, device, name FROM boot`, func(scan func(...any) error) error {
			var id int64
			var b boot
			var name []byte
			err := scan(&id, &b.device, &name)
			b.name = hex.EncodeToString(name)
			boots[id] = b
			return err
		}},
		{"sample", `SELECT s.boot, s.seq, s.idx, s.at, r.peripheral, r.name, s.value, s.epoch, s.kept
			FROM sample s JOIN series r ON r.id = s.series`, func(scan func(...any) error) error {
			r := row{key: key{Class: telemetry}}
			var id, at, epoch int64
			var peripheral, name string
			var value float64
			var kept bool
			err := scan(&id, &r.Seq, &r.idx, &at, &peripheral, &name, &value, &epoch, &kept)
			r.Boot, r.text = boots[id].name, sampleRow(at, peripheral, name, value, epoch, kept)
			s := of(boots[id].device)
			s.rows = append(s.rows, r)
			return err
		}},
		{"event", `SELECT n, boot, seq, idx, at, peripheral, category, code, from_value, to_value, mono, count FROM event ORDER BY n`, func(scan func(...any) error) error {
			r := row{key: key{Class: event}}
			var id, at, mono, count int64
			var peripheral, category, code, from, to string
			err := scan(&r.n, &id, &r.Seq, &r.idx, &at, &peripheral, &category, &code, &from, &to, &mono, &count)
			r.Boot, r.text = boots[id].name, eventRow(at, peripheral, category, code, from, to, mono, count)
			s := of(boots[id].device)
			s.rows = append(s.rows, r)
			return err
		}},
		{"state", `SELECT boot, seq, raw FROM state`, func(scan func(...any) error) error {
			r := row{key: key{Class: state}}
			var id int64
			var raw []byte
			err := scan(&id, &r.Seq, &raw)
			r.Boot, r.text = boots[id].name, string(raw)
			s := of(boots[id].device)
			s.rows = append(s.rows, r)
			return err
		}},
		{"command", `SELECT device, id, state, code FROM command`, func(scan func(...any) error) error {
			r := row{key: key{Class: result}}
			var device, id, is, code string
			err := scan(&device, &id, &is, &code)
			r.Boot, r.text = id, resultRow(id, is, code) // of a command, not of a run
			s := of(device)
			s.rows = append(s.rows, r)
			return err
		}},
		{"audit", `SELECT n, device, seq, body, hash, prev FROM audit WHERE device <> '' ORDER BY n`, func(scan func(...any) error) error {
			var l link
			var device string
			err := scan(&l.n, &device, &l.seq, &l.body, &l.hash, &l.prev)
			s := of(device)
			s.trail = append(s.trail, l)
			return err
		}},
	}
	for _, s := range steps {
		if err := each(s.query, s.take); err != nil {
			return nil, fmt.Errorf("read %s of the store: %w", s.what, err)
		}
	}
	return out, nil
}
