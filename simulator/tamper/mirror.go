package tamper

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
)

// mirror is the attacker between a till and the artifacts. He has the key of
// the service's TLS, and what the service has published.
type mirror struct {
	url       string
	published string // folder of the service
	server    *http.Server
	done      chan struct{}
	sent      atomic.Int64 // bytes of answers

	mu   sync.Mutex
	meta string // folder of his own metadata; empty: what is published
	act  act    // nil: he answers honestly
}

// act answers a request for metadata/... or targets/...; false: it leaves that
// to the mirror.
type act func(w http.ResponseWriter, r *http.Request, name string) bool

// newMirror starts a mirror in front of the service whose data is in a folder.
func newMirror(ctx context.Context, service string) (*mirror, error) {
	authority, err := ca.Open(service, "service-ca", ca.Options{Pinned: true})
	if err != nil {
		return nil, err
	}
	cert, err := authority.IssueServer([]string{"localhost", "127.0.0.1"}, time.Hour)
	if err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &mirror{url: "https://" + ln.Addr().String(), published: filepath.Join(service, "artifacts"), done: make(chan struct{})}
	m.server = &http.Server{
		Handler: m, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13},
	}
	go func() {
		defer close(m.done)
		_ = m.server.ServeTLS(ln, "", "") // until it is closed
	}()
	return m, nil
}

func (m *mirror) close() {
	_ = m.server.Close()
	<-m.done
}

// turn makes the mirror an attacker. He serves metadata from a folder, if that
// is not empty, and acts before he serves anything.
func (m *mirror) turn(meta string, do act) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meta, m.act = meta, do
	m.sent.Store(0)
}

// honest makes it a mirror like any other.
func (m *mirror) honest() { m.turn("", nil) }

// ServeHTTP implements http.Handler.
func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/tuf/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.HasPrefix(name, "metadata/") { // a role is written agent%2Fprod, on the disk too
		name = strings.TrimPrefix(r.URL.EscapedPath(), "/tuf/")
	}
	m.mu.Lock()
	meta, do := m.meta, m.act
	m.mu.Unlock()
	c := &counting{w, &m.sent}
	switch base, isMeta := strings.CutPrefix(name, "metadata/"); {
	case do != nil && do(c, r, name):
	case isMeta && meta != "":
		http.ServeFileFS(c, r, os.DirFS(meta), base)
	default:
		http.ServeFileFS(c, r, os.DirFS(m.published), name)
	}
}

// counting counts what is sent.
type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

// Write implements io.Writer.
func (c *counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counting) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// content reports whether a request is for the content of a release, not for
// an index of it.
func content(name, release string) bool {
	return strings.HasPrefix(name, "targets/"+release+"/") && !strings.HasSuffix(name, ".chunks")
}

// file is what is published under a name.
func (m *mirror) file(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(m.published, filepath.FromSlash(name))) // #nosec G304 -- the scenario's own folder
}

// instead serves other bytes in the place of the content of a release, in
// ranges as a good server would.
func (m *mirror) instead(release string, change func([]byte) []byte) act {
	return func(w http.ResponseWriter, r *http.Request, name string) bool {
		if !content(name, release) {
			return false
		}
		b, err := m.file(name)
		if err != nil {
			return false
		}
		http.ServeContent(w, r, path.Base(name), time.Time{}, strings.NewReader(string(change(b))))
		return true
	}
}

// endless sends without end what nobody asked for.
func endless(want func(name string) bool) act {
	return func(w http.ResponseWriter, r *http.Request, name string) bool {
		if !want(name) {
			return false
		}
		if h := r.Header.Get("Range"); h != "" { // says that it fits
			from, to, _ := strings.Cut(strings.TrimPrefix(h, "bytes="), "-")
			w.Header().Set("Content-Range", "bytes "+from+"-"+to+"/*")
			w.WriteHeader(http.StatusPartialContent)
		}
		junk := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(junk); err != nil {
				break
			}
		}
		return true
	}
}

// slow sends what is right, a byte at a time.
func (m *mirror) slow(want func(name string) bool) act {
	return func(w http.ResponseWriter, r *http.Request, name string) bool {
		if !want(name) {
			return false
		}
		b, err := m.file(name)
		if err != nil {
			return false
		}
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		flush := http.NewResponseController(w)
		for i := range b {
			if _, err := w.Write(b[i : i+1]); err != nil || flush.Flush() != nil {
				break
			}
			select {
			case <-r.Context().Done():
				return true
			case <-tick.C:
			}
		}
		return true
	}
}

// cutThenFlip cuts the content of a release in its first half, and flips a byte
// in the middle of what is asked for afterwards.
func (m *mirror) cutThenFlip(release string, resumed *atomic.Bool) act {
	var cut atomic.Bool
	return func(w http.ResponseWriter, r *http.Request, name string) bool {
		if !content(name, release) {
			return false
		}
		b, err := m.file(name)
		if err != nil {
			return false
		}
		if cut.CompareAndSwap(false, true) {
			w.Header().Set("Content-Length", itoa(len(b)))
			_, _ = w.Write(b[:len(b)/2])
			panic(http.ErrAbortHandler)
		}
		if from := r.Header.Get("Range"); from != "" && !strings.HasPrefix(from, "bytes=0-") {
			resumed.Store(true)
		}
		b[len(b)*3/4] ^= 1
		http.ServeContent(w, r, path.Base(name), time.Time{}, strings.NewReader(string(b)))
		return true
	}
}

var errNoRelease = errors.New("nothing is published under that name")
