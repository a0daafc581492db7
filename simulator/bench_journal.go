package simulator

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tillward/tillward/agent"
)

const journalEntries = 1000 // of one run

// benchJournal measures the agent's trail: entries in a second, each safe from a
// power cut before the next, beside what the medium itself can sync of as many
// bytes; and what is written for an entry and in a day of a till.
func benchJournal(ctx context.Context, o BenchOptions) ([]Figure, error) {
	dir := filepath.Join(o.Dir, "journal")
	cfg := agent.DefaultConfig()
	cfg.StateDir = filepath.Join(dir, "state")
	b, err := agent.OpenBooks(ctx, cfg, agent.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	var rates, sizes, blocks, syncs []float64
	var used float64
	for range benchRuns {
		before, _ := b.Written()
		disk, began, burnt := blockBytes(), time.Now(), cpu(syscall.RUSAGE_SELF)
		for range journalEntries {
			if err := b.Record(ctx); err != nil {
				return nil, errors.Join(err, b.Close())
			}
		}
		rates = append(rates, journalEntries/time.Since(began).Seconds())
		used += cpu(syscall.RUSAGE_SELF) - burnt
		after, _ := b.Written()
		size := float64(after-before) / journalEntries
		sizes, blocks = append(sizes, size), append(blocks, float64(blockBytes()-disk)/journalEntries)
		rate, err := syncRate(filepath.Join(dir, "syncs"), int(size))
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		syncs = append(syncs, rate)
	}
	if err := b.Close(); err != nil {
		return nil, err
	}
	machine := figure("fdatasync_per_second", "1/s", syncs)
	appends := figure("journal_appends_per_second", "1/s", rates)
	appends.CPU, appends.Beside = used, &machine
	entry := figure("journal_bytes_per_entry", "bytes", sizes)
	block := figure("journal_block_bytes_per_entry", "bytes", blocks)
	entry.Beside = &block
	out := []Figure{appends, entry}
	for name, online := range map[string]bool{"spool_day_connected_bytes": true, "spool_day_alone_bytes": false} {
		var days, blocks []float64
		for i := range benchRuns {
			cfg.StateDir = filepath.Join(dir, name+strconv.Itoa(i))
			b, err := agent.OpenBooks(ctx, cfg, agent.Options{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return nil, err
			}
			disk := blockBytes()
			bytes, _, err := b.Day(ctx, online)
			blocks = append(blocks, float64(blockBytes()-disk)*agent.DayPart)
			if err := errors.Join(err, b.Close()); err != nil {
				return nil, err
			}
			days = append(days, float64(bytes))
		}
		f := figure(name, "bytes", days)
		f.Limit = 200e6
		block := figure(strings.TrimSuffix(name, "bytes")+"block_bytes", "bytes", blocks)
		f.Beside = &block
		out = append(out, f)
	}
	return out, nil
}

// syncRate is what the machine can do: as many bytes as an entry has, written over
// and synced, in a file that has its size.
func syncRate(path string, size int) (float64, error) {
	const whole = 1 << 20
	f, err := os.Create(path) // #nosec G304 -- scratch
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, whole)); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	buf := make([]byte, size)
	began := time.Now()
	for i := range journalEntries {
		if _, err := f.WriteAt(buf, int64(i*size%(whole-size))); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil { // #nosec G115 -- a descriptor
			return 0, err
		}
	}
	return journalEntries / time.Since(began).Seconds(), nil
}

// blockBytes is what this process has caused to be written to block devices, as
// the kernel counts; 0 where it does not.
func blockBytes() uint64 {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\nwrite_bytes: ")
	line, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseUint(line, 10, 64)
	return n
}
