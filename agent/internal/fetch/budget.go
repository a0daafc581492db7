package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

const (
	day   = 24 * time.Hour
	block = 1 << 20 // bytes that are put down as spent ahead of their coming
)

// budget counts the bytes of the service. A period begins with its first byte
// and lasts 24 hours. A clock that is set back begins no new one, and
// grants nothing. What is put down as spent is so before it is
// fetched, so that a power cut grants nothing.
type budget struct {
	path  string
	daily int64 // 0: no limit
	step  func(string)

	mu     sync.Mutex
	kept   ledger
	credit int64 // put down as spent, and not fetched yet
	seen   time.Time
}

// ledger is budget.json.
type ledger struct {
	Since time.Time     `json:"since"` // when the period began
	Spent int64         `json:"spent"`
	Ran   time.Duration `json:"ran"` // how much of the period we have seen pass
}

func (b *budget) load() error {
	b.seen = time.Now()
	if b.daily == 0 {
		return nil
	}
	raw, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &b.kept)
	}
	if err == nil && (b.kept.Spent < 0 || b.kept.Ran < 0) {
		err = errors.New("negative figures")
	}
	if err != nil {
		b.kept = ledger{Since: b.seen.Round(0), Spent: b.daily}
		return errors.Join(fmt.Errorf("read byte budget: %w", err), b.save())
	}
	return nil
}

// turn begins a new period when it is time. One that begins after now was begun
// by a clock that was ahead: by the one that is right it begins now, and that is
// kept, for a till may never run for 24 hours in one piece.
func (b *budget) turn() {
	now := time.Now()
	b.kept.Ran += now.Sub(b.seen) // by the monotonic clock
	b.seen = now
	if b.kept.Ran >= day || now.Round(0).Sub(b.kept.Since) >= day {
		b.kept = ledger{Since: now.Round(0)}
		b.credit = 0
	}
	if now.Round(0).Before(b.kept.Since) {
		b.kept.Since = now.Round(0)
		_ = b.save() // on a disk without room the 24 hours are counted from the next start
	}
}

func (b *budget) left() (int64, time.Time) {
	if b.daily == 0 {
		return -1, time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn()
	if n := b.daily - b.kept.Spent + b.credit; n > 0 {
		return n, time.Time{}
	}
	again := b.kept.Since.Add(day)
	if seen := b.seen.Round(0).Add(day - b.kept.Ran); seen.Before(again) {
		again = seen
	}
	return 0, again
}

// take grants up to n bytes. None is ErrBudget.
func (b *budget) take(n int) (int, error) {
	if b.daily == 0 {
		return n, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn()
	if b.credit == 0 {
		more := min(block, b.daily-b.kept.Spent)
		if more <= 0 {
			return 0, ErrBudget
		}
		b.kept.Spent += more
		if err := b.save(); err != nil {
			return 0, err
		}
		b.credit = more
	}
	n = int(min(int64(n), b.credit))
	b.credit -= int64(n)
	return n, nil
}

// give takes back what was granted and did not come.
func (b *budget) give(n int) {
	if b.daily == 0 || n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.credit = min(b.credit+int64(n), b.kept.Spent) // a new period may have begun
}

// settle writes down what was really spent, at the end of a fetch.
func (b *budget) settle() error {
	if b.daily == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept.Spent -= b.credit
	b.credit = 0
	return b.save()
}

func (b *budget) save() error {
	raw, err := json.Marshal(b.kept)
	if err == nil {
		err = replace(b.path, raw, b.step)
	}
	if err != nil {
		return disk(fmt.Errorf("keep byte budget: %w", err))
	}
	return nil
}
