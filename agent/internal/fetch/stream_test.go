package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/tillward/tillward/agent/internal/fetch"
)

func open(t *testing.T, f *fetch.Fetcher, s *service, content []byte, index bool, r fetch.Request) *fetch.Stream {
	t.Helper()
	st, err := f.Open(t.Context(), s.release("1.0.0", content, index), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func TestStream(t *testing.T) {
	for _, index := range []bool{true, false} {
		bubble(t, fmt.Sprintf("index %v", index), func(t *testing.T) {
			s := newService(t)
			content := noise(1, 3<<20+123)
			st := open(t, s.box(fetch.Options{}), s, content, index, fetch.Request{})
			if st.Size() != int64(len(content)) {
				t.Errorf("size: got %d", st.Size())
			}
			if err := iotest.TestReader(io.NewSectionReader(st, 1<<20, 1000), content[1<<20:1<<20+1000]); err != nil {
				t.Error(err)
			}
			before := len(s.asked())
			got, err := io.ReadAll(io.NewSectionReader(st, 0, st.Size()))
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("read it all: %d bytes, %v", len(got), err)
			}
			if n := len(s.asked()) - before; n > 5 {
				t.Errorf("asked %d times for a reading from the beginning to the end", n)
			}
			rng := rand.New(rand.NewPCG(1, 2)) // #nosec G404 -- a test that can be repeated
			var all sync.WaitGroup
			for range 4 {
				jumps := [20]int{}
				for i := range jumps {
					jumps[i] = rng.IntN(len(content))
				}
				all.Go(func() {
					for _, at := range jumps {
						b := make([]byte, 5000)
						n, err := st.ReadAt(b, int64(at))
						if want := content[at:min(at+len(b), len(content))]; !bytes.Equal(b[:n], want) || (err != nil) != (len(want) < len(b)) {
							t.Errorf("at %d: got %d bytes, %v", at, n, err)
						}
					}
				})
			}
			all.Wait()
			if b := st.Bytes(); b.Wire == 0 || b.Peer+b.Medium+b.Reused != 0 {
				t.Errorf("bytes: %+v", b)
			}
			if _, err := st.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("before the beginning: got %v", err)
			}
			if n, err := st.ReadAt(make([]byte, 1), st.Size()+5); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("past the end: got %d, %v", n, err)
			}
		})
	}
}

// A line that breaks again and again, and a service that is away for an hour,
// end no installation: the stream waits as long as it may.
func TestStreamIsPatient(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		content := noise(1, 2<<20)
		st := open(t, s.box(fetch.Options{}), s, content, true, fetch.Request{})
		back := time.Now().Add(time.Hour)
		cuts := cutting(100 << 10)
		s.meddle = func(w http.ResponseWriter, r *http.Request, file []byte) bool {
			if time.Now().Before(back) {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			return cuts(w, r, file)
		}
		got, err := io.ReadAll(io.NewSectionReader(st, 0, st.Size()))
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
		if n := len(s.asked()); n > 300 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestStreamEnds(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		target := s.release("1.0.0", noise(1, 2<<20), true)
		ctx, cancel := context.WithCancelCause(t.Context())
		st, err := s.box(fetch.Options{}).Open(ctx, target, fetch.Request{})
		if err != nil {
			t.Fatal(err)
		}
		s.meddle = nothing
		timeout := errors.New("step timed out")
		time.AfterFunc(10*time.Minute, func() { cancel(timeout) })
		if _, err := st.ReadAt(make([]byte, 10), 0); !errors.Is(err, timeout) {
			t.Errorf("got %v, want %v", err, timeout)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
}

// With an index no wrong byte comes out, whoever sent it.
func TestStreamVerifies(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		st := open(t, s.box(fetch.Options{}), s, noise(1, 2<<20), true, fetch.Request{})
		s.meddle = func(w http.ResponseWriter, r *http.Request, file []byte) bool {
			from, to := span(r, file)
			b := bytes.Clone(file[from:to])
			for i := range b {
				b[i] ^= 1
			}
			part(w, r, file, b)
			return true
		}
		if n, err := st.ReadAt(make([]byte, 10), 1<<20); n != 0 || !errors.Is(err, fetch.ErrMismatch) {
			t.Errorf("got %d bytes, %v; want ErrMismatch", n, err)
		}
	})
}

func TestStreamBudget(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := newService(t)
		o := fetch.Options{Dir: t.TempDir(), Daily: 500 << 10}
		st := open(t, s.box(o), s, noise(1, 2<<20), true, fetch.Request{})
		n, err := st.ReadAt(make([]byte, 2<<20), 0)
		if !errors.Is(err, fetch.ErrBudget) || n > 500<<10 {
			t.Errorf("got %d bytes, %v; want ErrBudget", n, err)
		}
	})
}

// Where nothing can be verified on the way no till is asked: one that lies
// would spoil the installation.
func TestStreamPeers(t *testing.T) {
	for _, index := range []bool{true, false} {
		s, a := newService(t), newAuthority(t)
		content := noise(1, 300<<10)
		host, asked := fake(t, a, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, sum(content)) {
				flipped(w, r, content)
				return
			}
			http.NotFound(w, r)
		})
		st := open(t, s.box(fetch.Options{Peers: a.peering("main", a.device("main", nil))}), s, content, index, fetch.Request{Peers: []string{host}})
		got, err := io.ReadAll(io.NewSectionReader(st, 0, st.Size()))
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("index %v: got %d bytes, %v", index, len(got), err)
		}
		if (len(*asked) > 0) != index {
			t.Errorf("index %v: the till was asked for %q", index, *asked)
		}
	}
}
