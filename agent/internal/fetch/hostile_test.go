package fetch_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
	"github.com/tillward/tillward/provisioning/trust"
)

type meddler func(w http.ResponseWriter, r *http.Request, file []byte) bool

// asked reads the range of a request as [from, to).
func span(r *http.Request, file []byte) (from, to int) {
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
		return 0, len(file)
	}
	return from, to + 1
}

// part answers a range; body is what comes in place of the right bytes.
func part(w http.ResponseWriter, r *http.Request, file, body []byte) {
	from, to := span(r, file)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(file)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(body)
}

// status answers the first n requests with a code.
func status(n, code int, headers ...string) meddler {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		if n--; n < 0 {
			return false
		}
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// once meddles with the first answer alone.
func once(m meddler) meddler {
	done := false
	return func(w http.ResponseWriter, r *http.Request, file []byte) bool {
		if done {
			return false
		}
		done = true
		return m(w, r, file)
	}
}

func always(m meddler) func() meddler { return func() meddler { return m } }

// cutting ends each answer after n bytes.
func cutting(n int) meddler {
	return func(w http.ResponseWriter, r *http.Request, file []byte) bool {
		from, to := span(r, file)
		if to-from <= n {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(to-from))
		part(w, r, file, file[from:from+n])
		panic(http.ErrAbortHandler)
	}
}

// nothing sends headers, and then holds the line.
func nothing(w http.ResponseWriter, r *http.Request, file []byte) bool {
	part(w, r, file, nil)
	w.(http.Flusher).Flush()
	<-r.Context().Done()
	return true
}

// trickle sends a byte every ten seconds.
func trickle(w http.ResponseWriter, r *http.Request, file []byte) bool {
	from, to := span(r, file)
	part(w, r, file, nil)
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for ; from < to; from++ {
		if _, err := w.Write(file[from : from+1]); err != nil {
			return true
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return true
		case <-tick.C:
		}
	}
	return true
}

// flipped sends one byte in the middle that is another.
func flipped(w http.ResponseWriter, r *http.Request, file []byte) bool {
	from, to := span(r, file)
	b := bytes.Clone(file[from:to])
	b[len(b)/2] ^= 1
	part(w, r, file, b)
	return true
}

// endless sends what was asked for, and goes on as long as somebody reads.
func endless(w http.ResponseWriter, r *http.Request, file []byte) bool {
	from, to := span(r, file)
	part(w, r, file, file[from:to])
	for junk := noise(9, 64<<10); ; {
		if _, err := w.Write(junk); err != nil {
			return true
		}
	}
}

func elsewhere(w http.ResponseWriter, r *http.Request, file []byte) bool {
	_, to := span(r, file)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", to-1, len(file)+1))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(file[:to])
	return true
}

// What comes right in the end, and what must not be accepted however long it is
// tried. In neither case is the service asked more often than a person would.
func TestHostileService(t *testing.T) {
	for name, c := range map[string]struct {
		meddle func() meddler
		ok     bool
		is     error         // when not ok; nil: any
		least  time.Duration // that it must take
		waste  int64         // bytes that may come beyond the content
		whole  error         // instead, when there is no index: what is wrong is known at the end alone
	}{
		"cut again and again":      {meddle: func() meddler { return cutting(100 << 10) }, ok: true, waste: 3 << 20},
		"three errors":             {meddle: func() meddler { return status(3, 502) }, ok: true, least: 3 * time.Second},
		"busy, and says how long":  {meddle: func() meddler { return status(1, 503, "Retry-After", "90") }, ok: true, least: 90 * time.Second},
		"busy for a year":          {meddle: func() meddler { return status(1, 429, "Retry-After", "31536000") }, ok: true, least: 5 * time.Minute},
		"busy until a date":        {meddle: func() meddler { return status(1, 503, "Retry-After", "Sat, 01 Jan 2000 00:01:00 GMT") }, ok: true, least: time.Minute},
		"holds the line once":      {meddle: func() meddler { return once(nothing) }, ok: true, least: 30 * time.Second},
		"trickles once":            {meddle: func() meddler { return once(trickle) }, ok: true, least: time.Minute, waste: 100},
		"one byte flipped, once":   {meddle: func() meddler { return once(flipped) }, ok: true, waste: 100 << 10, whole: fetch.ErrMismatch},
		"sends without end":        {meddle: always(endless), ok: true},
		"says too little":          {meddle: func() meddler { return once(status(1, 206)) }, ok: true},
		"compressed":               {meddle: func() meddler { return once(zipped) }, ok: true},
		"416":                      {meddle: func() meddler { return status(1e6, 416) }},
		"403":                      {meddle: func() meddler { return status(1e6, 403) }},
		"404":                      {meddle: func() meddler { return status(1e6, 404) }},
		"500":                      {meddle: func() meddler { return status(1e6, 500) }},
		"always holds the line":    {meddle: always(nothing)},
		"always trickles":          {meddle: always(trickle)},
		"always flips a byte":      {meddle: always(flipped), is: fetch.ErrMismatch},
		"another part than wanted": {meddle: always(elsewhere)},
		"cuts before the first byte": {meddle: always(func(http.ResponseWriter, *http.Request, []byte) bool {
			panic(http.ErrAbortHandler)
		})},
		"a shorter file": {meddle: always(func(w http.ResponseWriter, _ *http.Request, file []byte) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(file[:1000])
			return true
		})},
		"a byte at a time": {meddle: func() meddler { return cutting(1) }, waste: 100},
	} {
		for _, index := range []bool{true, false} {
			bubble(t, fmt.Sprintf("%s, index %v", name, index), func(t *testing.T) {
				s := newService(t)
				content := noise(1, 2<<20)
				target := s.release("1.0.0", content, index)
				// The index itself comes as it should: the content is what is meddled with.
				meddle := c.meddle()
				s.meddle = func(w http.ResponseWriter, r *http.Request, file []byte) bool {
					return strings.HasSuffix(r.URL.Path, ".tar") && meddle(w, r, file)
				}
				dir := t.TempDir()
				begin := time.Now()
				var last fetch.Progress
				p, err := s.box(fetch.Options{Dir: dir}).Get(t.Context(), target, full(&last))
				took := time.Since(begin)
				if took < c.least || took > 20*time.Minute {
					t.Errorf("took %s, want at least %s and no more than 20m", took, c.least)
				}
				if n := len(s.asked()); n > 40 {
					t.Errorf("asked %d times", n)
				}
				whole, _ := filepath.Glob(filepath.Join(dir, "content", target.SHA256))
				if c.whole != nil && !index {
					c.ok, c.is = false, c.whole
				}
				if c.ok {
					if err != nil || target.CheckFile(p) != nil {
						t.Fatalf("got %v", err)
					}
					if over := last.Bytes.Wire - int64(len(content)); over > c.waste+10<<10 {
						t.Errorf("%d bytes were read that were not needed, want at most %d", over, c.waste)
					}
					return
				}
				if err == nil || len(whole) != 0 || c.is != nil && !errors.Is(err, c.is) {
					t.Fatalf("got %v, %q; want %v and no content", err, whole, c.is)
				}
				// It heals by itself when the service does.
				s.meddle = nil
				mustGet(t, s.box(fetch.Options{Dir: dir}), target, full(nil))
			})
		}
	}
}

func zipped(w http.ResponseWriter, _ *http.Request, file []byte) bool {
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	_, _ = z.Write(file)
	_ = z.Close()
	return true
}

// A service that knows no ranges sends everything from the beginning. What is
// there already is used, and a fetch that is cut again and again gives up.
func TestNoRanges(t *testing.T) {
	for _, index := range []bool{true, false} {
		bubble(t, fmt.Sprintf("index %v", index), func(t *testing.T) {
			s := newService(t)
			content := noise(1, 2<<20)
			target := s.release("1.0.0", content, index)
			cuts := 1
			s.meddle = func(w http.ResponseWriter, r *http.Request, file []byte) bool {
				if !strings.HasSuffix(r.URL.Path, ".tar") {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(file)))
				if cuts--; cuts >= 0 {
					_, _ = w.Write(file[:1<<20])
					panic(http.ErrAbortHandler)
				}
				_, _ = w.Write(file)
				return true
			}
			var last fetch.Progress
			mustGet(t, s.box(fetch.Options{}), target, full(&last))
			if last.Bytes.Wire > 3<<20+10<<10 {
				t.Errorf("%d bytes came", last.Bytes.Wire)
			}
			cuts = 1e6
			before := len(s.asked())
			if _, err := s.box(fetch.Options{}).Get(t.Context(), target, full(nil)); err == nil {
				t.Error("got the content of a service that always cuts")
			}
			if n := len(s.asked()) - before; n > 20 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

func TestUnknownAddress(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 1000), false)
		f := s.box(fetch.Options{URL: func() string { return "" }})
		if _, err := f.Get(t.Context(), target, full(nil)); err == nil || !strings.Contains(err.Error(), "not known yet") {
			t.Errorf("got %v", err)
		}
		none := errors.New("not a member")
		f = s.box(fetch.Options{Client: func() (*http.Client, error) { return nil, none }})
		if _, err := f.Get(t.Context(), target, full(nil)); !errors.Is(err, none) {
			t.Errorf("got %v, want %v", err, none)
		}
	})
}

// The cause of the end of ctx reaches the caller, who gave it.
func TestStopped(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 1<<20), false)
		s.meddle = nothing
		closed := errors.New("window closed")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(5*time.Second, func() { cancel(closed) })
		begin := time.Now()
		if _, err := s.box(fetch.Options{}).Get(ctx, target, full(nil)); !errors.Is(err, closed) {
			t.Errorf("got %v, want %v", err, closed)
		}
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestTargetWithoutSense(t *testing.T) {
	s := newService(t)
	for _, target := range []trust.Target{
		{},
		{SHA256: "../../../../etc/passwd", Length: 1},
		{SHA256: strings.Repeat("A", 64), Length: 1},
		{SHA256: strings.Repeat("a", 64), Length: -1},
	} {
		if _, err := s.box(fetch.Options{}).Get(t.Context(), target, full(nil)); !errors.Is(err, fetch.ErrMismatch) {
			t.Errorf("%+v: got %v, want ErrMismatch", target, err)
		}
		if _, err := s.box(fetch.Options{}).Open(t.Context(), target, full(nil)); !errors.Is(err, fetch.ErrMismatch) {
			t.Errorf("%+v: got %v, want ErrMismatch", target, err)
		}
	}
}

func TestNoSpace(t *testing.T) {
	s := newService(t)
	target := s.release("1.0.0", noise(1, 1<<20), false)
	target.Length = 1 << 50
	dir := t.TempDir()
	if _, err := s.box(fetch.Options{Dir: dir}).Get(t.Context(), target, full(nil)); !errors.Is(err, fetch.ErrSpace) {
		t.Errorf("got %v, want ErrSpace", err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "staging-"+target.SHA256)); err != nil || fi.Size() != 0 {
		t.Errorf("something is left: %v %v", fi, err)
	}
	if len(s.asked()) != 0 {
		t.Errorf("asked %q before there was room", s.asked())
	}
}

// What the folder holds is room for what is to come: a cache that is full must
// not keep an update out.
func TestRoomIsMade(t *testing.T) {
	s := newService(t)
	dir := t.TempDir()
	f := s.box(fetch.Options{Dir: dir, Keep: 10 << 20, Daily: 1 << 19})
	older := s.release("1.0.0", noise(1, 400<<10), false)
	mustGet(t, f, older, full(nil))
	next := s.release("1.1.0", noise(2, 1<<20), false)
	if _, err := f.Get(t.Context(), next, full(nil)); !errors.Is(err, fetch.ErrBudget) {
		t.Fatalf("got %v, want ErrBudget", err)
	}
	if n := f.Held(next); n < 400<<10+1<<20 {
		t.Errorf("held: %d bytes", n)
	}
	next.Length = 1 << 50
	if _, err := f.Get(t.Context(), next, full(nil)); !errors.Is(err, fetch.ErrSpace) {
		t.Fatalf("got %v, want ErrSpace", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "content", older.SHA256)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an older content takes the room of a newer one: %v", err)
	}
}

func TestRate(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 1<<20), true)
		for _, c := range []struct{ box, request, want int64 }{{64 << 10, 0, 64 << 10}, {0, 32 << 10, 32 << 10}, {64 << 10, 16 << 10, 16 << 10}, {16 << 10, 1 << 20, 16 << 10}} {
			begin := time.Now()
			r := full(nil)
			r.Rate = c.request
			mustGet(t, s.box(fetch.Options{Rate: c.box}), target, r)
			got := float64(1<<20) / time.Since(begin).Seconds()
			if want := float64(c.want); got > 1.1*want || got < 0.8*want {
				t.Errorf("%+v: got %.0f bytes a second", c, got)
			}
		}
	})
}

// A cap far below what counts as slow is no reason to let go of a source.
func TestLowRate(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 256<<10), false)
		r := full(nil)
		r.Rate = 512
		mustGet(t, s.box(fetch.Options{}), target, r)
		if len(s.asked()) != 1 {
			t.Errorf("asked %q", s.asked())
		}
	})
}
