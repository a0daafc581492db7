package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// kind of a source, nearest first.
type kind int

const (
	medium kind = iota
	peer
	wire
)

// source is a place that may have the content.
type source struct {
	kind kind
	name string // for people
	open opener

	dead   error            // why it is not asked again in this fetch
	lacks  map[string]error // why it is not asked again for a blob, by its sum
	fails  int              // in a row
	later  time.Time        // it is busy until then
	stream bool             // knows no ranges: sends everything from the beginning
}

type opener = func(ctx context.Context, c blob, from, to int64) (io.ReadCloser, error)

func newSource(k kind, name string, open opener) *source {
	return &source{kind: k, name: name, open: open, lacks: make(map[string]error)}
}

// blob is something that sources have: a content, or its index.
type blob struct {
	sum    string
	file   string // below the targets folder
	length int64
}

// Errors of a source that are its fault, or its lack.
var (
	errLies     = errors.New("sent bytes that are not those of the release")
	errAnswer   = errors.New("gave an answer that does not fit")
	errLacks    = errors.New("does not have it")
	errNoRanges = errors.New("knows no ranges")
)

// errLater is a source that asks for patience.
type errLater struct {
	status string
	after  time.Duration
}

func (e *errLater) Error() string { return "answered " + e.status }

// around returns the sources in the order to ask them.
func (j *job) around() []*source {
	var out []*source
	if j.r.Medium != "" {
		out = append(out, newSource(medium, "medium "+j.r.Medium, j.openMedium))
	}
	if j.f.peers != nil {
		// Not all tills of a site shall ask the same one first.
		for _, i := range rand.Perm(len(j.r.Peers)) { // #nosec G404 -- no secret
			host := j.r.Peers[i]
			if _, _, err := net.SplitHostPort(host); err != nil {
				j.f.o.Log.Warn("till of the site has no usable address", slog.String("peer", host), slog.Any("err", err))
				continue
			}
			s := newSource(peer, "till "+host, nil)
			s.open = func(ctx context.Context, c blob, from, to int64) (io.ReadCloser, error) {
				return j.openHTTP(ctx, s, j.f.peers, "https://"+host+contentPath+c.sum, c, from, to)
			}
			out = append(out, s)
		}
	}
	lim := slowest(j.f.o.Rate, j.r.Rate)
	s := newSource(wire, "service", nil)
	s.open = func(ctx context.Context, c blob, from, to int64) (io.ReadCloser, error) {
		if n, _ := j.f.budget.left(); n == 0 {
			return nil, ErrBudget // what is sent before we read costs as well
		}
		base := j.f.o.URL()
		if base == "" {
			return nil, errors.New("the address of the artifacts is not known yet")
		}
		client, err := j.f.o.Client()
		if err != nil {
			return nil, err
		}
		body, err := j.openHTTP(ctx, s, client, base+"/"+(&url.URL{Path: c.file}).EscapedPath(), c, from, to)
		if err != nil {
			return nil, err
		}
		return &toll{ReadCloser: body, ctx: ctx, lim: lim, budget: j.f.budget}, nil
	}
	return append(out, s)
}

// openMedium opens the file on a medium, which anybody may have written: a
// pipe, a device or a link that leads away is not followed.
func (j *job) openMedium(_ context.Context, c blob, from, to int64) (io.ReadCloser, error) {
	root, err := os.OpenRoot(j.r.Medium + "/") // a folder: to open a pipe would take for ever
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(c.file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errLacks
	}
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() != c.length {
		return nil, errors.Join(errAnswer, err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{&counter{io.NewSectionReader(f, from, to-from), &j.bytes.Medium}, f}, nil
}

// openHTTP asks for the range and checks the answer. The body ends at the end
// of the range, whatever comes, and a read of it fails when too little does.
func (j *job) openHTTP(ctx context.Context, s *source, client *http.Client, at string, c blob, from, to int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	n, p := &j.bytes.Wire, wirePace
	if s.kind == peer {
		n, p = &j.bytes.Peer, peerPace
	}
	w := newWatch(p, cancel)
	fail := func(err error) (io.ReadCloser, error) {
		w.stop()
		if why := context.Cause(ctx); why != nil {
			err = why
		}
		cancel(nil)
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	if !s.stream {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	w.start()
	resp, err := client.Do(req) //nolint:bodyclose // the body that is returned closes it; #nosec G704 -- the service, or a till that the signed order names
	if err != nil {
		return fail(err)
	}
	if err := answer(resp, c, from, to); err != nil {
		_ = resp.Body.Close()
		return fail(err)
	}
	w.stop()
	return &body{Reader: &counter{io.LimitReader(resp.Body, to-from), n}, ctx: ctx, w: w, close: func() error {
		cancel(nil) // what the source would still send is not read
		return resp.Body.Close()
	}}, nil
}

// answer checks status and headers of an answer to a range.
func answer(resp *http.Response, c blob, from, to int64) error {
	switch code := resp.StatusCode; {
	case code == http.StatusPartialContent:
		a, b, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || a != from || b > to || total >= 0 && total != c.length {
			return fmt.Errorf("asked for bytes %d-%d of %d, got %.60q: %w", from, to-1, c.length, resp.Header.Get("Content-Range"), errAnswer)
		}
	case code == http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != c.length {
			return fmt.Errorf("its file has %d bytes, not %d: %w", resp.ContentLength, c.length, errAnswer)
		}
		if from > 0 {
			return errNoRanges
		}
	case code == http.StatusNotFound, code == http.StatusGone:
		return errLacks
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		return &errLater{resp.Status, patience(resp.Header.Get("Retry-After"))}
	case code >= 500:
		return &errLater{resp.Status, 0}
	default:
		return fmt.Errorf("answered %s: %w", resp.Status, errAnswer)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("sends it as %.20q: %w", e, errAnswer)
	}
	return nil
}

// contentRange reads a Content-Range of bytes: from, to (excluded), and the
// length of the whole, -1 when the server does not say. [RFC 9110, 14.4]
func contentRange(h string) (from, to, total int64, ok bool) {
	h, ok = strings.CutPrefix(h, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	h, whole, _ := strings.Cut(h, "/")
	first, last, _ := strings.Cut(h, "-")
	number := func(s string) int64 {
		n, err := strconv.ParseUint(s, 10, 62)
		ok = ok && err == nil
		return int64(n) // #nosec G115 -- 62 bits
	}
	from, to, total = number(first), number(last)+1, -1
	if whole != "*" {
		total = number(whole)
	}
	return from, to, total, ok && from < to && (total < 0 || to <= total)
}

// patience reads a Retry-After, within reason.
func patience(h string) time.Duration {
	const most = 5 * time.Minute
	if s, err := strconv.Atoi(h); err == nil && s > 0 {
		return min(time.Duration(min(s, 3600))*time.Second, most)
	}
	if at, err := http.ParseTime(h); err == nil {
		return min(max(time.Until(at), 0), most)
	}
	return 0
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n *int64
}

// Read implements io.Reader.
func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	*c.n += int64(n)
	return n, err
}

// body is an answer that is watched while it is waited for.
type body struct {
	io.Reader
	ctx   context.Context // of the request; cancelled by the watch
	w     *watch
	close func() error
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.w.start()
	n, err := b.Reader.Read(p)
	if slow := b.w.got(n); slow != nil && err == nil {
		err = slow
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if why := context.Cause(b.ctx); why != nil {
			err = why
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.w.stop()
	return b.close()
}

// toll makes the bytes of the service cost budget and time.
type toll struct {
	io.ReadCloser
	ctx    context.Context
	lim    *rate.Limiter // nil: as they come
	budget *budget
}

// Read implements io.Reader.
func (t *toll) Read(b []byte) (int, error) {
	if t.lim != nil {
		b = b[:min(len(b), t.lim.Burst())]
	}
	may, err := t.budget.take(len(b))
	if err != nil {
		return 0, err
	}
	n, err := t.ReadCloser.Read(b[:may])
	t.budget.give(may - n)
	if t.lim != nil && n > 0 {
		if werr := t.lim.WaitN(t.ctx, n); werr != nil && err == nil {
			err = werr
		}
	}
	return n, err
}

// slowest returns a limiter for the lower of the rates that are set.
func slowest(rates ...int64) *rate.Limiter {
	var low int64
	for _, r := range rates {
		if r > 0 && (low == 0 || r < low) {
			low = r
		}
	}
	if low == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(low), int(min(max(low/4, 1<<10), 64<<10)))
}
