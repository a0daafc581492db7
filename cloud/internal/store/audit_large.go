package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"
)

// LargeTrails makes up the trails of a large fleet over 13 months, for whoever
// measures a search: 150,000 devices at 3,000 sites, 50 operators, 140 kinds of
// which few are frequent and many rare. The same row has the same content each
// time. Bodies are short, so that a disk holds many; hashes are only as long as
// hashes are.
type LargeTrails struct {
	Rows  int64
	Begin time.Time // the first is stored then, the last 13 months later

	mix  []largeFacet
	upTo []uint32 // of a random number, for each of mix
}

const (
	largeDevices   = 150_000
	largeSites     = 3_000
	largeOperators = 50
	largeKinds     = 140
	largeSpan      = 13 * 30 * 24 * time.Hour
)

// largeFacet is one row of the table facet.
type largeFacet struct {
	own                     bool
	kind, severity, outcome string
	weight                  float64
}

// NewLargeTrails makes up so many rows.
func NewLargeTrails(rows int64) *LargeTrails {
	l := &LargeTrails{Rows: rows, Begin: time.Date(2025, 10, 1, 0, 0, 0, 0, time.UTC)}
	sum := 0.0
	for k := range largeKinds {
		weight := 1 / math.Pow(float64(k+1), 1.6)
		if k >= largeKinds-20 { // a few hundred, or a few
			weight = math.Pow(10, -4.5-float64(k-largeKinds+20)/10)
		}
		own := k%4 == 3
		if own {
			weight /= 4
		}
		for _, v := range []struct {
			severity, outcome string
			share             float64
		}{{"info", "success", .9}, {"info", "", .06}, {"warn", "failure", .03}, {"warn", "refused", .009}, {"alarm", "failure", .001}} {
			l.mix = append(l.mix, largeFacet{own, l.Kind(k), v.severity, v.outcome, weight * v.share})
			sum += weight * v.share
		}
	}
	below := 0.0
	for _, f := range l.mix {
		below += f.weight / sum
		l.upTo = append(l.upTo, uint32(min(below, 1)*math.MaxUint32))
	}
	l.upTo[len(l.upTo)-1] = math.MaxUint32
	return l
}

// Kind is the kth of the kinds, the most frequent first. Each fourth is of the
// service's own trail.
func (l *LargeTrails) Kind(k int) string {
	classes := []string{"link", "update", "peripheral", "command", "agent", "clock", "identity", "rollout", "vault", "spool", "attest", "access"}
	return fmt.Sprintf("%s.action-%03d", classes[k%len(classes)], k)
}

// Device is the ith of the devices, the one with the most entries first.
func (l *LargeTrails) Device(i int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	b := [24]byte{}
	for k, h := 0, scatter(uint64(i)); k < len(b); k++ { // #nosec G115 -- a place in a list
		if k == 12 {
			h = scatter(h)
		}
		b[k], h = letters[h&31], h>>5
	}
	return string(b[:])
}

// Site is the ith of the sites; each has fifty devices.
func (l *LargeTrails) Site(i int) string { return fmt.Sprintf("store-%04d", i%largeSites) }

// Operator is the ith of the operators, the busiest first.
func (l *LargeTrails) Operator(i int) string { return fmt.Sprintf("operator-%02d", i%largeOperators) }

// Rollout is the ith of the rollouts that operators act on.
func (l *LargeTrails) Rollout(i int) string { return fmt.Sprintf("ro_%05d", i%2000) }

// scatter makes a random number of n [Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators].
func scatter(n uint64) uint64 {
	n = (n + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// largeRow is one row; what is not in it is made by the database.
type largeRow struct {
	n, at, storedAt                                       int64
	facet                                                 int64
	device, kind, severity, actor, subject, outcome, site string
}

// row returns row n, from 1 on.
func (l *LargeTrails) row(n int64, devices []string) largeRow {
	h, more := scatter(uint64(n)), scatter(uint64(-n)) // #nosec G115 -- any number will do
	i := sort.Search(len(l.upTo), func(i int) bool { return l.upTo[i] >= uint32(h) })
	f, u := l.mix[i], float64(h>>32)/(1<<32)
	d := int(largeDevices * u * math.Sqrt(u)) // some till sees more than another
	r := largeRow{
		n: n, facet: int64(i + 1), kind: f.kind, severity: f.severity, outcome: f.outcome, site: l.Site(d),
		storedAt: l.Begin.UnixMilli() + int64(float64(n)/float64(l.Rows)*float64(largeSpan.Milliseconds())),
	}
	r.at = r.storedAt - int64(more%2000)
	if more>>16%10 == 0 { // it was offline
		r.at -= int64(more >> 24 % (3 * 24 * 3600_000)) // #nosec G115 -- three days
	}
	switch pick := more >> 40; {
	case !f.own:
		r.device = devices[d]
		r.subject = []string{"", "receipt", "kitchen", "drawer", "reader", "scanner", "display", "board"}[pick%8]
	case pick%10 < 4: // an operator did it
		v := float64(pick>>8%1024) / 1024
		r.actor, r.subject = l.Operator(int(v*v*largeOperators)), devices[d]
		if pick%10 == 0 {
			r.subject, r.site = l.Rollout(int(pick>>4)), "" // #nosec G115 -- 24 bits
		}
	default:
		r.actor, r.subject = []string{"service", "ingest", "verifier", "rollout"}[pick>>8%4], devices[d]
	}
	return r
}

// FillTrails puts what l makes up into the audit table of a new store in dir,
// and builds its indexes once the rows are there.
func FillTrails(ctx context.Context, dir string, l *LargeTrails, told func(what string, done int64)) error {
	s, err := Open(ctx, dir, slog.New(slog.DiscardHandler)) // its schema is the real one
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "tillward.db")+"?_journal_mode=OFF&_synchronous=OFF&_cache_size=-600000&_locking_mode=EXCLUSIVE")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	if err := fillTrails(ctx, db, l, told); err != nil {
		return errors.Join(fmt.Errorf("fill the trails: %w", err), db.Close())
	}
	return db.Close()
}

// unique is what of the table is an index: it is built at the end, too.
var unique = regexp.MustCompile(`,\s*UNIQUE \(device, seq\)`)

func fillTrails(ctx context.Context, db *sql.DB, l *LargeTrails, told func(what string, done int64)) error {
	type thing struct{ kind, name, sql string }
	rows, err := db.QueryContext(ctx, `SELECT type, name, sql FROM sqlite_master WHERE tbl_name = 'audit' AND sql IS NOT NULL ORDER BY type DESC, name`)
	things, err := list(rows, err, func(r scanner) (t thing, err error) { return t, r.Scan(&t.kind, &t.name, &t.sql) })
	if err != nil {
		return err
	}
	exec := func(query string) error {
		_, err := db.ExecContext(ctx, query)
		return err
	}
	i := slices.IndexFunc(things, func(t thing) bool { return t.kind == "table" })
	if i < 0 || !unique.MatchString(things[i].sql) {
		return errors.New("the table is not as it was when this was written")
	}
	table := things[i].sql
	things = append(slices.Delete(things, i, i+1), thing{"index", "audit_once", `CREATE UNIQUE INDEX audit_once ON audit (device, seq)`})
	for _, query := range []string{`DROP TABLE audit`, unique.ReplaceAllString(table, ""), `PRAGMA threads = 2`} {
		if err := exec(query); err != nil {
			return err
		}
	}
	for i, f := range l.mix {
		if _, err := db.ExecContext(ctx, `INSERT INTO facet (id, tenant, own, kind, severity, outcome) VALUES (?, 'main', ?, ?, ?, ?)`, i+1, f.own, f.kind, f.severity, f.outcome); err != nil {
			return err
		}
	}
	if err := l.insert(ctx, db, told); err != nil {
		return err
	}
	for _, t := range things {
		told("index "+t.name, l.Rows)
		if err := exec(t.sql); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

// insert writes the rows without what database/sql does for each argument.
func (l *LargeTrails) insert(ctx context.Context, db *sql.DB, told func(what string, done int64)) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	devices := make([]string, largeDevices)
	for i := range devices {
		devices[i] = l.Device(i)
	}
	return conn.Raw(func(c any) error {
		raw, ok := c.(*sqlite3.SQLiteConn)
		if !ok {
			return fmt.Errorf("the driver gave a %T", c)
		}
		const columns, group = 11, 50
		prepare := func(rows int) (driver.Stmt, error) {
			one := make([]string, rows)
			for i := range one {
				p := func(k int) string { return "?" + strconv.Itoa(i*columns+k) }
				one[i] = `(` + strings.Join([]string{
					p(1), p(5), p(1), `'main'`, p(2), p(3), p(6), p(7), p(8), p(9), p(10), p(11), `'{}'`, `randomblob(24)`, `randomblob(32)`, `randomblob(32)`, p(4),
				}, `, `) + `)`
			}
			return raw.Prepare(`INSERT INTO audit (n, device, seq, tenant, at, stored_at, kind, severity, actor, subject, outcome, site, detail, body, hash, prev, facet) VALUES ` + strings.Join(one, ", "))
		}
		many, err := prepare(group)
		if err != nil {
			return err
		}
		defer many.Close()
		if _, err := raw.Exec(`BEGIN`, nil); err != nil {
			return err
		}
		args := make([]driver.Value, 0, columns*group)
		for n := int64(1); n <= l.Rows; n++ {
			r := l.row(n, devices)
			args = append(args, r.n, r.at, r.storedAt, r.facet, r.device, r.kind, r.severity, r.actor, r.subject, r.outcome, r.site)
			st := many
			switch {
			case len(args) == cap(args):
			case n == l.Rows:
				if st, err = prepare(len(args) / columns); err != nil {
					return err
				}
				defer st.Close()
			default:
				continue
			}
			if _, err := st.Exec(args); err != nil { //nolint:staticcheck // the other takes names
				return err
			}
			if args = args[:0]; n%1_000_000 == 0 {
				told("rows", n)
				if err := ctx.Err(); err != nil {
					return err
				}
			}
		}
		_, err = raw.Exec(`COMMIT`, nil)
		return err
	})
}
