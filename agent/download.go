package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/provisioning/trust"
)

// stallTime is how long a download may bring nothing before it is begun again.
const stallTime = 30 * time.Second

// content gets the bytes of targets from the service; it implements
// update.Content.
type content struct {
	a   *Agent
	dir string
}

func (c content) path(t trust.Target) string { return filepath.Join(c.dir, "staging-"+t.SHA256) }

// Get fetches the target into the staging file, from where an earlier attempt
// stopped, and checks it. The name of a target holds its hash, so a part that is
// there can only be a part of the same bytes.
func (c content) Get(ctx context.Context, o update.Order) (string, error) {
	t, path := o.Target, c.path(o.Target)
	c.dropOthers(path)
	for range 100 {
		have := int64(0)
		if fi, err := os.Stat(path); err == nil {
			have = fi.Size()
		}
		if have >= t.Length {
			break
		}
		n, err := c.fetch(ctx, o, path, have)
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", fmt.Errorf("download of %s brought nothing", t.Path)
		}
	}
	if err := t.CheckFile(path); err != nil {
		_ = os.Remove(path)
		if errors.Is(err, trust.ErrMismatch) {
			return "", update.Refuse("signature", "downloaded file: %w", err)
		}
		return "", err
	}
	return path, nil
}

// Open implements update.Content.
func (content) Open(context.Context, update.Order) (io.ReaderAt, error) {
	return nil, errors.ErrUnsupported
}

// Drop implements update.Content.
func (c content) Drop(t trust.Target) { _ = os.Remove(c.path(t)) }

// dropOthers removes what earlier offers left.
func (c content) dropOthers(keep string) {
	names, _ := filepath.Glob(filepath.Join(c.dir, "staging-*")) // the pattern is well formed
	for _, n := range names {
		if n != keep {
			_ = os.Remove(n)
		}
	}
}

// fetch appends to the staging file from have on, until the connection ends.
// It returns how many bytes came.
func (c content) fetch(ctx context.Context, o update.Order, path string, have int64) (int64, error) {
	m := c.a.current()
	if m == nil {
		return 0, errNoMember
	}
	t := o.Target
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(stallTime, cancel)
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.Artifacts+"/targets/"+t.File(), nil)
	if err != nil {
		return 0, fmt.Errorf("download %s: %w", t.Path, err)
	}
	if have > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
	}
	resp, err := m.http.Do(req)
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
	first := have
	body := &meter{r: io.LimitReader(resp.Body, t.Length-have), n: have, moved: func(n int64) {
		stall.Reset(stallTime)
		o.Told(n, t.Length, update.Bytes{Wire: n - first})
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
