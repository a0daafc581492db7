package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/agent/internal/update/image"
	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/hal/slot/slottest"
	"github.com/tillward/tillward/provisioning/trust"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func sha256Of(t *testing.T, path string) string {
	t.Helper()
	sum := sha256.Sum256(read(t, path))
	return hex.EncodeToString(sum[:])
}

// content is what a stream gives.
type content struct {
	io.ReaderAt
	fails func(at int64) error
}

func (c content) ReadAt(b []byte, at int64) (int, error) {
	if c.fails != nil {
		if err := c.fails(at); err != nil {
			return 0, err
		}
	}
	return c.ReaderAt.ReadAt(b, at)
}

// stream makes a till whose RAUC streams, as a mock does, and a job.
func stream(t *testing.T) (*till, *slottest.Mock, update.Job) {
	t.Helper()
	l := start(t, slottest.Options{})
	m := l.ServeMock()
	l.root = m.Root()
	l.restart()
	j := l.job("2.0.0", l.Bundle(slottest.Spec{Version: "2.0.0", Format: "verity"}), "verity")
	j.Content, j.File = bytes.NewReader(read(t, j.File)), ""
	return l, m, j
}

// TestStream streams through the mock and, where this machine has a kernel and
// a RAUC for that, through the real one.
func TestStream(t *testing.T) {
	t.Run("mock", func(t *testing.T) {
		l, m, j := stream(t)
		streams(t, l, j)
		if m.Requests() < 4 {
			t.Errorf("%d ranges were asked for", m.Requests())
		}
	})
	l := start(t, slottest.Options{})
	j := l.job("2.0.0", l.Bundle(slottest.Spec{Version: "2.0.0", Format: "verity"}), "verity")
	if !l.Streams(j.Target) {
		t.Log("no NBD or no RAUC that streams: only the mock was seen")
		return
	}
	whole := read(t, j.File)
	j.Content, j.File = bytes.NewReader(whole), ""
	t.Run("RAUC refuses", func(t *testing.T) {
		flipped := bytes.Clone(whole)
		flipped[len(whole)/2] ^= 1
		bad := j
		bad.Content = bytes.NewReader(flipped)
		if err := l.Stage(t.Context(), bad); ends(err) != "FAILED install" {
			t.Errorf("flipped byte: got %s: %v", ends(err), err)
		}
		bad = j
		rauc := *j.Target.Custom.RAUC
		rauc.ManifestHash = strings.Repeat("0", 64)
		bad.Target.Custom.RAUC = &rauc
		if err := l.Stage(t.Context(), bad); ends(err) != "REJECTED signature" {
			t.Errorf("another manifest: got %s: %v", ends(err), err)
		}
		l.runs("1.0.0", "rootfs.0", false)
		if l.Primary() != "A" {
			t.Errorf("slot %s is started next", l.Primary())
		}
	})
	t.Run("RAUC", func(t *testing.T) { streams(t, l, j) })
}

// streams installs from a stream over a bad line, and keeps it.
func streams(t *testing.T, l *till, j update.Job) {
	t.Helper()
	if !l.Streams(j.Target) {
		t.Fatal("the box does not stream")
	}
	var mu sync.Mutex
	asked := 0
	j.Content = content{j.Content, func(at int64) error {
		mu.Lock()
		defer mu.Unlock()
		if asked++; at > 0 && asked%3 == 0 { // RAUC asks again
			return errors.New("the line is bad")
		}
		return nil
	}}
	l.stage(j)
	l.next("A", false)
	l.move(j, update.Try, update.Reboot)
	l.reboot()
	l.move(j, update.Prove, update.None)
	l.move(j, update.Keep, update.None)
	if got := l.runs("2.0.0", "rootfs.1", false); got.Hash != j.Target.Custom.RAUC.ManifestHash {
		t.Errorf("truth: %+v; want the manifest hash %s", got, j.Target.Custom.RAUC.ManifestHash)
	}
}

// TestStreamInspected streams to a RAUC that cannot insist on a manifest: what it
// was shown when it looked is what it gets when it installs, or nothing.
func TestStreamInspected(t *testing.T) {
	l, m, j := stream(t)
	m.Knows = []string{"http-headers", "transaction-id"}
	// Another bundle of the same authority; signatures differ in length.
	var other slottest.Bundle
	for tries := 0; other.Path == "" || len(read(t, other.Path)) != int(j.Target.Length) && tries < 50; tries++ {
		other = l.Bundle(slottest.Spec{Version: "2.0.0", Format: "verity"})
	}
	good := make([]byte, j.Target.Length)
	if _, err := j.Content.ReadAt(good, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if len(read(t, other.Path)) != len(good) {
		t.Fatalf("bundles of %d and %d bytes: this test shows nothing", len(read(t, other.Path)), len(good))
	}
	swapped := read(t, other.Path)
	var now atomic.Pointer[[]byte]
	now.Store(&good)
	m.Inspected = func() { now.Store(&swapped) }
	bad := j
	bad.Content = pointed{&now}
	before := l.Slot("rootfs.1")
	if err := l.Stage(t.Context(), bad); err == nil {
		t.Error("what was looked at is not what was installed")
	}
	if !bytes.Equal(l.Slot("rootfs.1"), before) {
		t.Error("the slot was written")
	}
	l.runs("1.0.0", "rootfs.0", false)
	l.next("A", true)
	m.Inspected = nil
	streams(t, l, j)
}

// pointed is content that changes.
type pointed struct{ to *atomic.Pointer[[]byte] }

func (p pointed) ReadAt(b []byte, at int64) (int, error) {
	return bytes.NewReader(*p.to.Load()).ReadAt(b, at)
}

// TestPinned serves the same bytes again, whole blocks of them and the edges.
func TestPinned(t *testing.T) {
	one, two := bytes.Repeat([]byte{1}, 1<<20), bytes.Repeat([]byte{2}, 1<<20)
	var now atomic.Pointer[[]byte]
	now.Store(&one)
	h, path, name, token := image.Proxy(pointed{&now}, int64(len(one)))
	get := func(from, to int64, look bool) []byte {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.Header.Set(name, token)
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
		if look {
			r.Header.Set("X-Tillward-Look", "yes")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusPartialContent || w.Body.Len() != int(to-from) {
			t.Fatalf("bytes %d to %d: got %d with %d bytes", from, to, w.Code, w.Body.Len())
		}
		return w.Body.Bytes()
	}
	get(0, 4, true)
	get(700_000, 800_000, true)
	now.Store(&two)
	looked := get(690_000, 810_000, true) // what was not served yet may be new
	for i, b := range get(0, 1<<20, false) {
		at := int64(i)
		old := at < 4 || at >= 700_000 && at < 800_000
		if old && b != 1 || at >= 690_000 && at < 810_000 && b != looked[at-690_000] {
			t.Fatalf("byte %d: got %d", at, b)
		}
		if at == 500_000 && b != 2 {
			t.Fatal("what nobody looked at is not fetched anew")
		}
	}
}

// TestStreamFallsBack shows that a fallback is seen by the manifest hash way
// too.
func TestStreamFallsBack(t *testing.T) {
	l, _, j := stream(t)
	l.stage(j)
	l.Break("B")
	l.move(j, update.Try, update.Reboot)
	l.reboot()
	if got := l.runs("1.0.0", "rootfs.0", false); got.Failed == "" {
		t.Errorf("truth: %+v; want that the boot loader came back", got)
	}
}

func TestStreamRefused(t *testing.T) {
	flip := func(at func(length int64) int64) func(*testing.T, *update.Job, *slottest.Mock) {
		return func(t *testing.T, j *update.Job, _ *slottest.Mock) {
			b := make([]byte, j.Target.Length)
			if _, err := j.Content.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			b[at(j.Target.Length)] ^= 1
			j.Content = bytes.NewReader(b)
		}
	}
	for name, tt := range map[string]struct {
		change func(*testing.T, *update.Job, *slottest.Mock)
		want   string
		text   string
		stays  bool // able to stream
	}{
		"flipped byte in the middle":    {flip(func(n int64) int64 { return n / 2 }), "FAILED install", "", true},
		"flipped byte in the signature": {flip(func(n int64) int64 { return n - 100 }), "REJECTED signature", "signature", true},
		"another manifest": {func(_ *testing.T, j *update.Job, _ *slottest.Mock) {
			j.Target.Custom.RAUC.ManifestHash = strings.Repeat("0", 64)
		}, "REJECTED signature", "unexpected hash", true},
		"no manifest hash": {func(_ *testing.T, j *update.Job, _ *slottest.Mock) {
			j.Target.Custom.RAUC.ManifestHash = ""
		}, "REJECTED signature", "manifest hash", false},
		"content is not to be had": {func(_ *testing.T, j *update.Job, _ *slottest.Mock) {
			j.Content = content{j.Content, func(at int64) error {
				if at > 0 {
					return errors.New("nobody has it")
				}
				return nil
			}}
		}, "tried again", "nobody has it", true},
		"content is short": {func(_ *testing.T, j *update.Job, _ *slottest.Mock) { j.Target.Length++ }, "tried again", "unexpected EOF", true},
		"another manifest for RAUC 1.13": {func(_ *testing.T, j *update.Job, m *slottest.Mock) {
			m.Knows = []string{"http-headers", "transaction-id"}
			j.Target.Custom.RAUC.ManifestHash = strings.Repeat("0", 64)
		}, "REJECTED signature", "the release says", true},
		"a signature that has no end": {func(_ *testing.T, j *update.Job, m *slottest.Mock) {
			m.Knows = []string{"http-headers", "transaction-id"}
			whole := make([]byte, 32<<20) // its last bytes say that nearly all of it is the signature
			copy(whole[len(whole)-8:], []byte{0, 0, 0, 0, 1, 0xff, 0, 0})
			j.Content, j.Target.Length = bytes.NewReader(whole), int64(len(whole))
		}, "tried again", "more of the bundle", false},
	} {
		t.Run(name, func(t *testing.T) {
			l, m, j := stream(t)
			before := l.Slot("rootfs.1")
			tt.change(t, &j, m)
			err := l.Stage(t.Context(), j)
			if err == nil || ends(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %s: %v; want %s, %q", ends(err), err, tt.want, tt.text)
			}
			if !bytes.Equal(l.Slot("rootfs.1"), before) {
				t.Error("the slot was written")
			}
			if _, err := l.Move(t.Context(), j, update.Try); err == nil {
				t.Error("it is tried all the same")
			}
			l.runs("1.0.0", "rootfs.0", false)
			l.next("A", true)
			if got := l.Streams(j.Target); got != tt.stays {
				t.Errorf("streams afterwards: %v, want %v", got, tt.stays)
			}
		})
	}
}

// TestOldRAUC shows that the real RAUC of this machine, where it cannot stream,
// is not asked to.
func TestOldRAUC(t *testing.T) {
	l := start(t, slottest.Options{})
	j := l.job("2.0.0", l.Bundle(slottest.Spec{Version: "2.0.0", Format: "verity"}), "verity")
	if l.Streams(j.Target) {
		t.Error("streams without NBD")
	}
	j.Content, j.File = bytes.NewReader(read(t, j.File)), ""
	if err := l.Stage(t.Context(), j); !errors.Is(err, hal.ErrNoStream) || ends(err) != "tried again" {
		t.Errorf("got %v, want %v", err, hal.ErrNoStream)
	}
	l.runs("1.0.0", "rootfs.0", false)
}

// burglar is an installer that tells another process of the box, which asks the
// proxy for what is not its own.
type burglar struct {
	try func(b hal.Bundle)
}

func (burglar) Status(context.Context) (hal.Boot, error) {
	return hal.Boot{Compatible: "x", Booted: "rootfs.0", Primary: "rootfs.0", Streams: true, Slots: []hal.Slot{{Name: "rootfs.0"}, {Name: "rootfs.1"}}}, nil
}

func (b burglar) Install(_ context.Context, bundle hal.Bundle, _ func(int, string)) (string, error) {
	b.try(bundle)
	return "", errors.New("caught")
}

func (burglar) Mark(context.Context, string, string) error { return nil }

// TestProxyIsOurs asks the proxy as somebody else would.
func TestProxyIsOurs(t *testing.T) {
	var url string
	ask := func(method, url string, headers ...string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	secret := []byte("only for RAUC")
	h := image.New(image.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Slots: burglar{func(b hal.Bundle) {
		url = b.Source
		token, all := b.Headers[0], "Range: bytes=0-"
		if !strings.HasPrefix(url, "http://127.0.0.1:") {
			t.Errorf("the proxy is at %s", url)
		}
		for name, tt := range map[string]struct {
			method  string
			url     string
			headers []string
			want    int
		}{
			"RAUC":              {"GET", url, []string{token, all}, 206},
			"no token":          {"GET", url, []string{all}, 403},
			"another token":     {"GET", url, []string{token + "x", all}, 403},
			"another path":      {"GET", url + "x", []string{token, all}, 404},
			"the folder":        {"GET", url[:strings.LastIndex(url, "/")+1], []string{token, all}, 404},
			"another, no token": {"GET", url + "x", []string{all}, 403},
			"a write":           {"POST", url, []string{token, all}, 405},
			"no range":          {"GET", url, []string{token}, 416},
			"two ranges":        {"GET", url, []string{token, "Range: bytes=0-1,3-4"}, 416},
			"after the end":     {"GET", url, []string{token, "Range: bytes=13-"}, 416},
			"the wrong way":     {"GET", url, []string{token, "Range: bytes=3-2"}, 416},
			"from the end":      {"GET", url, []string{token, "Range: bytes=-3"}, 416},
		} {
			got, body := ask(tt.method, tt.url, tt.headers...)
			if got != tt.want || strings.Contains(body, string(secret)) != (tt.want == 206) {
				t.Errorf("%s: got %d %q, want %d", name, got, body, tt.want)
			}
		}
	}}})
	j := update.Job{Execution: "x", Version: "2.0.0", Content: bytes.NewReader(secret), Target: trust.Target{Length: int64(len(secret)), Custom: trust.Custom{
		Class: trust.ClassOS, RAUC: &trust.RAUC{Compatible: "x", Version: "2.0.0", Format: "verity", ManifestHash: "00"},
	}}}
	if err := h.Stage(t.Context(), j); err == nil || url == "" {
		t.Fatalf("got %v at %q", err, url)
	}
	if got, body := ask("GET", url); got != 0 {
		t.Errorf("after the installation: got %d %q, want nobody there", got, body)
	}
}

// TestProxyStalls gives a range up before the kernel gives the device up.
func TestProxyStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		defer close(stop)
		h, path, name, token := image.Proxy(content{bytes.NewReader([]byte("x")), func(int64) error { <-stop; return errors.New("stopped") }}, 1)
		done := make(chan int, 20)
		for range cap(done) { // more than are served at once
			go func() {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
				r.Header.Set(name, token)
				r.Header.Set("Range", "bytes=0-0")
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				done <- w.Code
			}()
		}
		deadline, cancel := context.WithTimeout(t.Context(), image.Patience+1)
		defer cancel()
		for range cap(done) {
			select {
			case code := <-done:
				if code != http.StatusBadGateway && code != http.StatusServiceUnavailable {
					t.Errorf("got %d", code)
				}
			case <-deadline.Done():
				t.Fatal("a range that does not come is waited for too long")
			}
		}
	})
	if six := 6*image.Patience.Seconds() + 5; six >= 300 {
		t.Errorf("RAUC asks six times, with a second between: %v s, and the kernel gives the device up at 300 s", six)
	}
}

// FuzzProxy asks for anything: what comes is the range that was asked for, or
// nothing of the content.
func FuzzProxy(f *testing.F) {
	for _, r := range []string{"bytes=0-3", "bytes=5-", "bytes=-1", "bytes=0-0,2-3", "bytes=99999999999999999999-", "bytes=3-1", "bytes=+1-2", "", "bytes=0-\x00"} {
		f.Add(r, true)
		f.Add(r, false)
	}
	whole := bytes.Repeat([]byte("0123456789abcdef"), 40000) // more than one piece
	h, path, name, token := image.Proxy(bytes.NewReader(whole), int64(len(whole)))
	f.Fuzz(func(t *testing.T, ranges string, ours bool) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.Header.Set("Range", ranges)
		if ours {
			r.Header.Set(name, token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusPartialContent {
			if w.Body.Len() > 100 {
				t.Fatalf("%d with %d bytes", w.Code, w.Body.Len())
			}
			return
		}
		var from, to, length int
		if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &length); err != nil || !ours || length != len(whole) {
			t.Fatalf("%q, token %v: Content-Range %q", ranges, ours, w.Header().Get("Content-Range"))
		}
		if !bytes.Equal(w.Body.Bytes(), whole[from:to+1]) {
			t.Fatalf("%q: other bytes than %d-%d", ranges, from, to)
		}
	})
}
