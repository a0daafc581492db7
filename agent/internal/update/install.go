package update

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/minio/selfupdate"

	"github.com/tillward/tillward/provisioning/trust"
)

const (
	stallTime  = 30 * time.Second // a download that brings nothing for so long is begun again
	reportStep = 1 << 20          // bytes between progress reports
)

// download fetches the target into the staging file, from where an earlier
// attempt stopped, and checks it. The name of a target holds its hash, so a
// part that is there can only be a part of the same bytes.
func (m *Machine) download(ctx context.Context, j *journal, t trust.Target) (string, error) {
	path := filepath.Join(m.o.Dir, "staging-"+t.SHA256)
	m.dropOtherStaging(path)
	if err := m.advance(ctx, j, Progress{State: downloading, Total: t.Length}); err != nil {
		return "", err
	}
	for range 100 {
		have := int64(0)
		if fi, err := os.Stat(path); err == nil {
			have = fi.Size()
		}
		if have >= t.Length {
			break
		}
		n, err := m.fetch(ctx, j, t, path, have)
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", fmt.Errorf("download of %s brought nothing", t.Path)
		}
	}
	m.o.Step("verify staging")
	if err := t.CheckFile(path); err != nil {
		_ = os.Remove(path)
		if errors.Is(err, trust.ErrMismatch) {
			return "", Refuse("signature", "downloaded file: %w", err)
		}
		return "", err
	}
	return path, nil
}

// dropOtherStaging removes what earlier offers left.
func (m *Machine) dropOtherStaging(keep string) {
	names, _ := filepath.Glob(filepath.Join(m.o.Dir, "staging-*")) // the pattern is well formed
	for _, n := range names {
		if n != keep {
			_ = os.Remove(n)
		}
	}
}

// fetch appends to the staging file from have on, until the connection ends.
// It returns how many bytes came.
func (m *Machine) fetch(ctx context.Context, j *journal, t trust.Target, path string, have int64) (int64, error) {
	base := m.o.TargetsURL()
	if base == "" {
		return 0, errors.New("the address of the artifacts is not known yet")
	}
	client, err := m.o.Client()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(stallTime, cancel)
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+t.File(), nil)
	if err != nil {
		return 0, fmt.Errorf("download %s: %w", t.Path, err)
	}
	if have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("download %s: %w", t.Path, err)
	}
	defer resp.Body.Close()
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	switch resp.StatusCode {
	case http.StatusPartialContent:
	case http.StatusOK: // the server knows no ranges: from the beginning
		flags = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
		have = 0
	default:
		return 0, fmt.Errorf("download %s: %s", t.Path, resp.Status)
	}
	f, err := os.OpenFile(path, flags, 0o600) // #nosec G304 -- below the state folder
	if err != nil {
		return 0, fmt.Errorf("download %s: %w", t.Path, err)
	}
	told := have
	body := &meter{r: io.LimitReader(resp.Body, t.Length-have), n: have, moved: func(n int64) {
		stall.Reset(stallTime)
		if n-told >= reportStep {
			told = n
			p := Progress{Execution: j.Offer.Execution, State: downloading, From: j.From, To: j.Offer.Version, Done: n, Total: t.Length}
			_ = m.o.Report(ctx, p) // the next one tells more
		}
	}}
	n, err := io.Copy(f, body)
	if cerr := errors.Join(f.Sync(), f.Close()); cerr != nil {
		return n, fmt.Errorf("download %s: %w", t.Path, cerr)
	}
	if err != nil && n == 0 {
		return 0, fmt.Errorf("download %s: %w", t.Path, err)
	}
	return n, nil // what was cut short is fetched from there
}

// meter tells how much has been read.
type meter struct {
	r     io.Reader
	n     int64
	moved func(int64)
}

// Read implements io.Reader.
func (m *meter) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	if n > 0 {
		m.n += int64(n)
		m.moved(m.n)
	}
	return n, err
}

// switchTo writes the inactive slot, tries it, and makes it the next to start.
func (m *Machine) switchTo(ctx context.Context, j *journal, t trust.Target, file string) error {
	slot := other(m.o.Slot)
	if slot == Golden {
		slot = "a"
	}
	if err := m.advance(ctx, j, Progress{State: installing}); err != nil {
		return err
	}
	if err := m.writeSlot(slot, t, file); err != nil {
		return err
	}
	if err := selfCheck(ctx, m.s.path(slot)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &refusal{failed, "selfcheck", err}
	}
	if err := m.advance(ctx, j, Progress{State: installed}); err != nil {
		return err
	}
	_ = os.Remove(file)
	if err := m.advance(ctx, j, Progress{State: rebooting}); err != nil {
		return err
	}
	if err := m.o.Record(ctx, "update.restart", "info", j.Offer.Execution, map[string]string{"slot": slot, "version": t.Custom.Version}); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	// The trial before the link: a cut between them starts the old slot, and
	// nothing is ever started that is not on trial.
	m.o.Step("trial")
	if err := m.s.setTrial(&trial{Slot: slot, Previous: m.o.Slot, Execution: j.Offer.Execution, Version: t.Custom.Version}); err != nil {
		return err
	}
	m.o.Step("link")
	if err := m.s.point(slot); err != nil {
		return err
	}
	m.o.Step("restart")
	return ErrRestart
}

// writeSlot applies the file to the slot, which nothing runs from, and checks
// what the disk gives back.
func (m *Machine) writeSlot(slot string, t trust.Target, file string) error {
	path := m.s.path(slot)
	sum, err := hex.DecodeString(t.SHA256)
	if err != nil {
		return Refuse("signature", "target hash: %w", err)
	}
	m.o.Step("unmark slot")
	if err := os.Remove(path + ".sha256"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) { // selfupdate replaces, it does not create
		if err := os.WriteFile(path, nil, 0o700); err != nil { // #nosec G306 -- a program
			return fmt.Errorf("write slot %s: %w", slot, err)
		}
	}
	b, err := os.ReadFile(file) // #nosec G304 -- the staging file
	if err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	m.o.Step("apply")
	err = selfupdate.Apply(bytes.NewReader(b), selfupdate.Options{
		TargetPath: path, TargetMode: 0o700, Checksum: sum, OldSavePath: path + ".old",
	})
	if err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	_ = os.Remove(path + ".old")
	// selfupdate does not sync.
	f, err := os.Open(path) // #nosec G304 -- the slot
	if err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	if err := errors.Join(f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("write slot %s: %w", slot, err)
	}
	m.o.Step("read back")
	if err := t.CheckFile(path); err != nil {
		return &refusal{failed, "storage", fmt.Errorf("slot %s after writing: %w", slot, err)}
	}
	m.o.Step("mark slot")
	return write(path+".sha256", []byte(t.SHA256+"\n"))
}

// prove lets the new agent show that it can do its work, and commits or goes
// back.
func (m *Machine) prove(ctx context.Context, j *journal, t *trial) error {
	if j.Offer == nil || j.Offer.Execution != t.Execution { // the journal was lost: the trial still has to end
		j.Offer = &Offer{Execution: t.Execution, Version: t.Version, NotAfter: time.Now().Add(time.Hour)}
	}
	if err := m.advance(ctx, j, Progress{State: checking}); err != nil {
		return err
	}
	why := m.checks(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // stopped, not failed: the next start counts
	}
	if why == nil {
		m.o.Step("commit")
		if err := m.s.setTrial(nil); err != nil {
			return err
		}
		return m.end(ctx, j, Progress{State: succeeded})
	}
	m.o.Step("give up")
	if err := m.o.Record(ctx, "update.fallback", "alarm", t.Execution, map[string]string{"slot": t.Slot, "reason": why.Error()}); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := m.s.giveUp(t, why.Error()); err != nil {
		return err
	}
	return ErrRestart
}

// checks runs the checks until all hold or the time is up.
func (m *Machine) checks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.CheckFor)
	defer cancel()
	for _, c := range m.o.Checks {
		var err error
		for {
			if err = c.Run(ctx); err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s within %s: %w", c.Name, m.o.CheckFor, err)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil
}
