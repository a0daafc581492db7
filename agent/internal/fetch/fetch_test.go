package fetch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
	"github.com/tillward/tillward/provisioning/chunk"
	"github.com/tillward/tillward/provisioning/tree"
	"github.com/tillward/tillward/provisioning/trust"
)

// noise is the same n bytes for the same seed.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

// service is what a fleet service serves, and a box that fetches from it.
type service struct {
	t     testing.TB
	files map[string][]byte // below targets/
	url   string

	client *http.Client

	mu     sync.Mutex
	log    []string // path and range of each request
	bytes  int64    // of bodies
	meddle func(w http.ResponseWriter, r *http.Request, file []byte) bool
}

func newService(t testing.TB) *service {
	s := &service{t: t, files: make(map[string][]byte), url: "http://service/tuf/targets"}
	wires := newWires()
	srv := &http.Server{Handler: s}
	over := make(chan struct{})
	go func() {
		_ = srv.Serve(wires) // ends with Close
		close(over)
	}()
	line := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return wires.dial() }}
	s.client = &http.Client{Transport: line}
	t.Cleanup(func() {
		line.CloseIdleConnections()
		_ = srv.Close()
		<-over
	})
	return s
}

// wires is a network in memory, which a bubble of synctest can wait for.
type wires struct {
	conns chan net.Conn
	down  chan struct{}
	once  func()
}

func newWires() *wires {
	w := &wires{conns: make(chan net.Conn), down: make(chan struct{})}
	w.once = sync.OnceFunc(func() { close(w.down) })
	return w
}

func (w *wires) dial() (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case w.conns <- there:
		return here, nil
	case <-w.down:
		return nil, net.ErrClosed
	}
}

func (w *wires) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.down:
		return nil, net.ErrClosed
	}
}

func (w *wires) Close() error   { w.once(); return nil }
func (w *wires) Addr() net.Addr { return &net.UnixAddr{} }

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/tuf/targets/")
	s.mu.Lock()
	b, ok := s.files[name]
	s.log = append(s.log, path.Base(name)+" "+r.Header.Get("Range"))
	meddle := s.meddle
	s.mu.Unlock()
	w = &countingWriter{w, s}
	if meddle != nil && meddle(w, r, b) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (s *service) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

func (s *service) sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

type countingWriter struct {
	http.ResponseWriter
	s *service
}

func (c *countingWriter) Write(b []byte) (int, error) {
	c.s.mu.Lock()
	c.s.bytes += int64(len(b))
	c.s.mu.Unlock()
	return c.ResponseWriter.Write(b)
}

func (c *countingWriter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

// release publishes content, with a chunk index if wanted.
func (s *service) release(version string, content []byte, index bool) trust.Target {
	t := trust.Target{
		Path: "ops/main/pos/" + version + "/tree.tar", SHA256: sum(content), Length: int64(len(content)),
		Custom: trust.Custom{Class: trust.ClassApp, Version: version},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[t.File()] = content
	if index {
		b, err := chunk.Index(bytes.NewReader(content))
		if err != nil {
			s.t.Fatal(err)
		}
		t.Custom.Chunks = &trust.Chunks{SHA256: sum(b), Length: int64(len(b))}
		s.files[indexFile(t)] = b
	}
	return t
}

func indexFile(t trust.Target) string {
	return path.Dir(t.Path) + "/" + t.Custom.Chunks.SHA256 + ".tree.tar.chunks"
}

// box makes a fetcher on a folder of its own, or on the one of o.
func (s *service) box(o fetch.Options) *fetch.Fetcher {
	s.t.Helper()
	if o.Dir == "" {
		o.Dir = s.t.TempDir()
	}
	if o.URL == nil {
		o.URL = func() string { return s.url }
	}
	if o.Client == nil {
		o.Client = func() (*http.Client, error) { return s.client, nil }
	}
	o.Log = slog.New(slog.DiscardHandler)
	f, err := fetch.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// full is a request that may take everything; last gets the latest progress.
func full(last *fetch.Progress) fetch.Request {
	return fetch.Request{FullAllowed: true, Progress: func(p fetch.Progress) {
		if last != nil {
			*last = p
		}
	}}
}

func seed(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// mustGet fetches, and checks that what lies at the path is the content.
func mustGet(t testing.TB, f *fetch.Fetcher, target trust.Target, r fetch.Request) {
	t.Helper()
	p, err := f.Get(context.Background(), target, r)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	if err := target.CheckFile(p); err != nil {
		t.Fatalf("what was returned: %v", err)
	}
}

func TestGet(t *testing.T) {
	for _, n := range []int{0, 1, 100, chunk.Max, 3 << 20} {
		for _, index := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d %v", n, index), func(t *testing.T) {
				s := newService(t)
				f := s.box(fetch.Options{})
				target := s.release("1.0.0", noise(1, n), index)
				var last fetch.Progress
				mustGet(t, f, target, full(&last))
				if last.Done != int64(n) || last.Total != int64(n) || last.Bytes.Wire != s.sent() {
					t.Errorf("progress: got %+v, %d were sent", last, s.sent())
				}
				// Whole, it is not fetched again.
				before := len(s.asked())
				mustGet(t, f, target, full(nil))
				if again := s.asked()[before:]; len(again) != 0 {
					t.Errorf("fetched again: %q", again)
				}
			})
		}
	}
}

// A download that is cut goes on from there: in the same fetch, and in one of
// another start of the agent.
func TestResume(t *testing.T) {
	for _, index := range []bool{true, false} {
		t.Run(fmt.Sprintf("index %v", index), func(t *testing.T) {
			s := newService(t)
			dir := t.TempDir()
			content := noise(1, 4<<20)
			target := s.release("1.0.0", content, index)
			ctx, cancel := context.WithCancel(context.Background())
			r := full(nil)
			r.Progress = func(p fetch.Progress) {
				if p.Done > 2<<20 {
					cancel()
				}
			}
			if _, err := s.box(fetch.Options{Dir: dir}).Get(ctx, target, r); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, want canceled", err)
			}
			var last fetch.Progress
			mustGet(t, s.box(fetch.Options{Dir: dir}), target, full(&last))
			if limit := int64(2<<20 + 200<<10); last.Bytes.Wire > limit {
				t.Errorf("the second fetch took %d bytes, want at most %d", last.Bytes.Wire, limit)
			}
		})
	}
}

// application writes an application of 32 MiB: 40 large files and 600 small
// ones. The newer one differs from the older in one per cent of its bytes: a
// library that was built again, a file that grew in the middle, a text here and
// there.
func application(t testing.TB, newer bool) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 {
		b := noise(byte(i), 750<<10)
		switch {
		case newer && i == 11: // 200 KiB of the 320 that one per cent is
			copy(b[300<<10:], noise(200, 200<<10))
		case newer && i == 23:
			b = slices.Concat(b[:100<<10], noise(201, 90<<10), b[100<<10:])
		}
		write(fmt.Sprintf("lib/module-%d.so", i), b)
	}
	for i := range 600 {
		b := noise(byte(i%100), 4000+i)
		if newer && i%75 == 0 {
			b = noise(202, 4200)
		}
		write(fmt.Sprintf("share/%d/text-%d", i%7, i), b)
	}
	return dir
}

// packed opens a folder as the tree that it is.
func packed(dir string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { _ = w.CloseWithError(tree.Pack(w, dir)) }()
		return r, nil
	}
}

// The measure of it all: one per cent of an application changes, and at most
// five per cent of it are fetched.
func TestDelta(t *testing.T) {
	s := newService(t)
	var content bytes.Buffer
	if err := tree.Pack(&content, application(t, true)); err != nil {
		t.Fatal(err)
	}
	target := s.release("1.0.1", content.Bytes(), true)
	var last fetch.Progress
	r := full(&last)
	r.FullAllowed, r.Seed = false, packed(application(t, false))
	mustGet(t, s.box(fetch.Options{}), target, r)
	share := 100 * float64(last.Bytes.Wire) / float64(target.Length)
	t.Logf("1 %% changed: %d of %d bytes fetched, chunk index included: %.2f %%, in %d requests", last.Bytes.Wire, target.Length, share, len(s.asked()))
	if target.Length < 32<<20 || share > 5 || last.Full != "" {
		t.Errorf("got %.2f %% of %d bytes, %q; want at most 5 %% and no full download", share, target.Length, last.Full)
	}
	if last.Bytes.Wire != s.sent() || last.Bytes.Wire+last.Bytes.Reused < target.Length {
		t.Errorf("bytes: got %+v, the service sent %d", last.Bytes, s.sent())
	}
}

func TestFullDownloadIsNeverSilent(t *testing.T) {
	old, content := noise(1, 2<<20), noise(2, 2<<20)
	for name, c := range map[string]struct {
		index bool
		seed  []byte
		spoil func(s *service, t *trust.Target)
	}{
		"no index":          {index: false, seed: content},
		"no seed":           {index: true},
		"nothing in common": {index: true, seed: old},
		"index gone":        {true, content, func(s *service, t *trust.Target) { delete(s.files, indexFile(*t)) }},
		"index is wrong": {true, content, func(s *service, t *trust.Target) {
			s.files[indexFile(*t)] = noise(3, int(t.Custom.Chunks.Length))
		}},
		"index is none": {true, content, func(s *service, t *trust.Target) {
			b := noise(3, 1000)
			t.Custom.Chunks = &trust.Chunks{SHA256: sum(b), Length: 1000}
			s.files[indexFile(*t)] = b
		}},
		"index is huge": {true, content, func(_ *service, t *trust.Target) { t.Custom.Chunks.Length = 1 << 40 }},
		"index of another": {true, old, func(s *service, t *trust.Target) {
			b, _ := chunk.Index(bytes.NewReader(old))
			t.Custom.Chunks = &trust.Chunks{SHA256: sum(b), Length: int64(len(b))}
			s.files[indexFile(*t)] = b
		}},
		"no ranges": {true, old[:1<<20], func(s *service, t *trust.Target) {
			s.files[t.File()] = append(bytes.Clone(old[:1<<20]), content[:1<<20]...)
			*t = s.release("2.0.0", s.files[t.File()], true)
			s.meddle = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
				if strings.HasSuffix(r.URL.Path, "tree.tar") {
					r.Header.Del("Range")
				}
				return false
			}
		}},
	} {
		bubble(t, name, func(t *testing.T) {
			s := newService(t)
			target := s.release("1.0.0", content, c.index)
			if c.spoil != nil {
				c.spoil(s, &target)
			}
			r := fetch.Request{}
			if c.seed != nil {
				r.Seed = seed(c.seed)
			}
			if _, err := s.box(fetch.Options{}).Get(context.Background(), target, r); !errors.Is(err, fetch.ErrFull) {
				t.Fatalf("not allowed: got %v, want ErrFull", err)
			}
			if s.sent() > 1<<20 {
				t.Errorf("%d bytes were sent", s.sent())
			}
			var last fetch.Progress
			r.FullAllowed, r.Progress = true, full(&last).Progress
			mustGet(t, s.box(fetch.Options{}), target, r)
			if last.Full == "" {
				t.Error("allowed: nothing was said")
			}
		})
	}
}

// bubble is a subtest in which time passes at once.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestFlippedByte(t *testing.T) {
	for _, index := range []bool{true, false} {
		s := newService(t)
		dir := t.TempDir()
		content := noise(1, 4<<20)
		target := s.release("1.0.0", content, index)
		ctx, cancel := context.WithCancel(context.Background())
		r := full(nil)
		r.Progress = func(p fetch.Progress) {
			if p.Done > 2<<20 {
				cancel()
			}
		}
		_, _ = s.box(fetch.Options{Dir: dir}).Get(ctx, target, r)
		staging := filepath.Join(dir, "staging-"+target.SHA256)
		b, err := os.ReadFile(staging)
		if err != nil {
			t.Fatal(err)
		}
		b[1<<20] ^= 1
		if err := os.WriteFile(staging, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var last fetch.Progress
		mustGet(t, s.box(fetch.Options{Dir: dir}), target, full(&last))
		if index && last.Bytes.Wire > 2<<20+200<<10 {
			t.Errorf("a flipped byte cost %d bytes", last.Bytes.Wire)
		}
		_ = os.Remove(staging)
	}
}
