package audit

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/tillward/tillward/cloud/wire"
)

const (
	every    = 256              // entries that one anchor covers, at most
	within   = 10 * time.Minute // of the first of them
	ahead    = 6                // anchors that may come before their time
	tries    = 3                // to find the chain where it was bound
	retryMin = time.Second
	retryMax = 10 * time.Minute
	lookMax  = 30 * time.Second // between two looks for a TPM
)

// budget keeps the TPM's flash: an anchor is one write of the 500,000 that a
// maker vouches for. There is one every ten minutes, six of them ahead: 52,560 a
// year. An orderly stop has one more, and each start of the agent begins with six.
type budget struct {
	level float64
	at    time.Time
}

func (b *budget) fill() {
	now := time.Now()
	b.level = min(ahead, b.level+float64(now.Sub(b.at))/float64(within))
	b.at = now
}

// wait is how long it takes until there is one.
func (b *budget) wait() time.Duration {
	b.fill()
	return time.Duration((1 - b.level) * float64(within))
}

// Run anchors the chain until ctx ends: when the system has booted, behind a
// break, and when the entries that no anchor covers are many or old. Never when
// nothing happened. A TPM that is busy, fails or is not there costs anchors and
// nothing else: they come later.
func (j *Journal) Run(ctx context.Context) error {
	pause := retryMin
	for {
		why := j.due(ctx)
		if why == "" {
			return nil
		}
		err := j.anchor(ctx, why)
		if err == nil {
			pause = retryMin
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		j.mu.Lock()
		if j.first == "" && (why == "boot" || why == "break") {
			j.first = why
		}
		j.mu.Unlock()
		level, wait := slog.LevelWarn, pause
		if errors.Is(err, errMoved) || errors.Is(err, ErrNoTPM) {
			level, wait = slog.LevelDebug, min(pause, lookMax)
		}
		pause = min(2*pause, retryMax)
		j.o.Log.Log(ctx, level, "the audit chain is not anchored yet", slog.Duration("again", wait), slog.Any("err", err))
		if !j.rest(ctx, wait) {
			return nil
		}
	}
}

// due waits until an anchor is, and says why; empty when ctx ends.
func (j *Journal) due(ctx context.Context) string {
	for {
		j.catchUp()
		j.mu.Lock()
		why, wait := j.first, time.Duration(0)
		switch {
		case j.dirty == 0:
			why, wait = "", time.Hour
		case why != "":
			if wait = j.left.wait(); wait <= 0 {
				j.first = ""
			}
		case j.dirty >= every:
			why, wait = "count", j.left.wait()
		default:
			why, wait = "time", max(within-time.Since(j.since), j.left.wait())
		}
		j.mu.Unlock()
		if why != "" && wait <= 0 {
			return why
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ""
		case <-j.news:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// rest waits before another try, and keeps the mark meanwhile; false when ctx
// ends.
func (j *Journal) rest(ctx context.Context, wait time.Duration) bool {
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		j.catchUp()
		select {
		case <-ctx.Done():
			return false
		case <-over.C:
			return true
		case <-j.news:
		}
	}
}

// lags reports whether so many entries came behind the mark that it has to be
// written, anchor or not. j.mu is held.
func (j *Journal) lags() bool { return j.mark.Seq > 0 && j.head.seq >= j.mark.Seq+every }

func (j *Journal) catchUp() {
	j.mu.Lock()
	lags := j.lags()
	j.mu.Unlock()
	if lags {
		j.keep(nil)
	}
}

// Stop makes the last anchor of an orderly stop, unless nothing happened since
// the one before.
func (j *Journal) Stop(ctx context.Context) {
	j.mu.Lock()
	dirty := j.dirty
	j.mu.Unlock()
	if dirty == 0 {
		return
	}
	if err := j.anchor(ctx, "stop"); err != nil {
		j.o.Log.Info("the audit chain is not anchored at the stop", slog.Any("err", err))
		j.keep(nil)
	}
}

// anchor has the TPM vouch for the chain as it stands. When it has gone on by the
// time the TPM answers, that was in vain.
func (j *Journal) anchor(ctx context.Context, why string) error {
	for range tries {
		var h head
		h.seq, h.hash = j.Head()
		device, a, err := j.sign(ctx, h)
		if err != nil {
			return err
		}
		a.Why = why
		err = j.add(ctx, wire.AuditRecord{
			Kind: kindAnchor, Severity: Info, Anchor: &a, Detail: map[string]string{"why": why, "counter": strconv.FormatUint(a.Counter, 10)},
		}, &h)
		if errors.Is(err, errMoved) {
			continue
		}
		if err == nil {
			j.keep(func(m *mark) { m.Device, m.Boot = device, systemBoot() })
		}
		return err
	}
	return errMoved
}

// sign asks the TPM, and does not wait for it longer than ctx.
func (j *Journal) sign(ctx context.Context, h head) (device string, a wire.Anchor, err error) {
	if j.o.Sign == nil {
		return "", a, ErrNoTPM
	}
	type answer struct {
		device string
		a      wire.Anchor
		err    error
	}
	came := make(chan answer, 1)
	go func() {
		var is answer
		is.device, is.a, is.err = j.o.Sign(ctx, h.seq, h.hash)
		if !errors.Is(is.err, ErrNoTPM) {
			j.mu.Lock()
			j.left.fill()
			j.left.level--
			j.mu.Unlock()
		}
		came <- is
	}()
	select {
	case <-ctx.Done():
		return "", a, ctx.Err()
	case is := <-came:
		return is.device, is.a, is.err
	}
}

// keep writes the mark: as far as the chain has come, and what change says.
func (j *Journal) keep(change func(*mark)) {
	if j.o.Mark == "" {
		return
	}
	j.saving.Lock()
	defer j.saving.Unlock()
	j.mu.Lock()
	h := j.head
	j.mark.Seq, j.mark.Hash = h.seq, h.hash[:]
	if change != nil {
		change(&j.mark)
	}
	m := j.mark
	j.mu.Unlock()
	if m.Seq == 0 {
		return
	}
	if err := m.save(j.o.Mark); err != nil {
		j.o.Log.Error("the mark of the audit chain is not written", slog.Any("err", err))
	}
}
