package export_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/export"
	"github.com/tillward/tillward/cloud/internal/fleet"
)

func itoa(n int) string { return strconv.Itoa(n) }

// taker is a syslog receiver of this test's own. What it does with its n-th
// connection is up to the test.
type taker struct {
	net.Listener
	tcp net.Listener

	mu    sync.Mutex
	lines []string
}

func newTaker(t *testing.T, a *authority, serve func(k *taker, n int, c net.Conn)) *taker {
	t.Helper()
	certFile, keyFile := a.issue(t, "taker.test")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	must(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	k := &taker{Listener: tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}), tcp: ln}
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			c, err := k.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(k, n, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		all.Wait()
	})
	return k
}

// take reads frames until the end or until there are most.
func (k *taker) take(c io.Reader, most int) {
	r := bufio.NewReader(c)
	for range most {
		digits, err := r.ReadString(' ')
		if err != nil {
			return
		}
		size, err := strconv.Atoi(strings.TrimSuffix(digits, " "))
		if err != nil {
			return
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		k.mu.Lock()
		k.lines = append(k.lines, string(b))
		k.mu.Unlock()
	}
}

func (k *taker) got() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.lines...)
}

func (k *taker) sink(a *authority) export.Sink {
	return syslogSink(a, "", "", k.tcp.Addr().String(), export.FormatSyslog)
}

// TestUnread: what a receiver did not read is not confirmed, however it ends,
// though its machine had it all.
func TestUnread(t *testing.T) {
	for name, first := range map[string]func(k *taker, c net.Conn){
		"closes after a part":         func(k *taker, c net.Conn) { k.take(c, 3) },
		"closes and has read nothing": func(_ *taker, c net.Conn) { _ = c.(*tls.Conn).Handshake() },
		"breaks off": func(k *taker, c net.Conn) {
			k.take(c, 3)
			if tcp, ok := c.(*tls.Conn).NetConn().(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
				_ = tcp.Close()
			}
		},
		"says goodbye and has read nothing": func(_ *taker, c net.Conn) {
			_ = c.(*tls.Conn).Handshake()
			_ = c.(*tls.Conn).CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newAuthority(t, "house"), newBooks(t)
			b.fill(t, 10)
			k := newTaker(t, a, func(k *taker, n int, c net.Conn) {
				if n == 0 {
					first(k, c)
					return
				}
				k.take(c, 1<<20)
			})
			x, stop := exporting(t, b, k.sink(a))
			until(t, "the second connection confirms", func() bool { return state(t, x).N == 10 })
			stop()
			counted(t, k.got(), 10)
			if s := state(t, x); s.Sent != 10 || s.LastError == "" {
				t.Errorf("got %+v, want 10 sent, and the failure named", s)
			}
		})
	}
}

// TestNeverCloses: a receiver that keeps its side open for ever is believed
// after a while, once; but not by a service that stops before that.
func TestNeverCloses(t *testing.T) {
	for name, tt := range map[string]struct {
		wait time.Duration
		want int64
	}{"after a while": {200 * time.Millisecond, 10}, "in a hurry": {time.Hour, 0}} {
		t.Run(name, func(t *testing.T) {
			a, b := newAuthority(t, "house"), newBooks(t)
			b.fill(t, 10)
			over := make(chan struct{})
			k := newTaker(t, a, func(k *taker, _ int, c net.Conn) {
				k.take(c, 10)
				<-over
			})
			defer close(over)
			x, err := export.New(export.Options{Store: b, Tenant: "main", Sinks: []export.Sink{k.sink(a)}, Log: slog.New(slog.DiscardHandler)})
			must(t, err)
			export.Patience(x, tt.wait)
			stop := running(t, x)
			until(t, "it arrives", func() bool { return len(k.got()) == 10 && (tt.want == 0 || state(t, x).N == 10) })
			stop()
			if s := state(t, x); s.N != tt.want {
				t.Errorf("got %+v, want %d confirmed", s, tt.want)
			}
			counted(t, k.got(), 10)
		})
	}
}

// TestGoesOn: a service that stops in order sends nothing twice, one that comes
// back goes on where it was, and another name begins anew.
func TestGoesOn(t *testing.T) {
	a, b := newAuthority(t, "house"), newBooks(t)
	k := newTaker(t, a, func(k *taker, _ int, c net.Conn) { k.take(c, 1<<20) })
	for part := 1; part <= 3; part++ {
		b.fill(t, 5)
		_, stop := exporting(t, b, k.sink(a))
		until(t, "it arrives", func() bool { return len(k.got()) >= 5*part })
		stop()
	}
	if doubles := counted(t, k.got(), 15); doubles != 0 {
		t.Errorf("%d came twice", doubles)
	}
	other, late := k.sink(a), k.sink(a)
	other.Name, late.Name, late.Since = "other", "late", "now"
	x, stop := exporting(t, b, late)
	until(t, "it has a cursor", func() bool { return state(t, x).N == 15 })
	stop()
	_, _ = exporting(t, b, other)
	until(t, "it arrives once more", func() bool { return len(k.got()) >= 30 })
	if doubles := counted(t, k.got(), 15); doubles != 15 {
		t.Errorf("%d came twice, want 15 of the new name and none of the late one", doubles)
	}
}

// TestStuck: a receiver that takes nothing, and one that is not there, hold up
// nobody else.
func TestStuck(t *testing.T) {
	a, b := newAuthority(t, "house"), newBooks(t)
	b.fill(t, 600)
	release := make(chan struct{})
	stuck := newTaker(t, a, func(*taker, int, net.Conn) { <-release }) // not even the handshake
	gone := syslogSink(a, "", "", freeAddr(t), export.FormatCEF)
	gone.Name = "gone"
	file := export.Sink{Name: "file", Kind: export.KindFile, Format: export.FormatSyslog, Since: "start", Path: filepath.Join(t.TempDir(), "trail")}
	x, stop := exporting(t, b, stuck.sink(a), gone, file)
	until(t, "the file has everything", func() bool {
		all, err := x.States(t.Context())
		must(t, err)
		return all[2].Lag == 0 && all[1].State == fleet.SinkFailing
	})
	all, err := x.States(t.Context())
	must(t, err)
	if all[0].N != 0 || all[0].Lag != 600 || all[1].Lag != 600 || !strings.Contains(all[1].LastError, "refused") {
		t.Errorf("got %+v", all)
	}
	stop() // nor a service that stops
	close(release)
	text, err := os.ReadFile(file.Path)
	must(t, err)
	counted(t, strings.Split(strings.TrimSpace(string(text)), "\n"), 600)
}

// TestLost: entries that were deleted before they were sent are counted and
// raise an alarm; those before there was a sink do not.
func TestLost(t *testing.T) {
	b := newBooks(t)
	file := export.Sink{Name: "file", Kind: export.KindFile, Format: export.FormatSyslog, Since: "start", Path: filepath.Join(t.TempDir(), "trail")}
	b.fill(t, 10)
	b.forget(t, 1, 3)
	x, stop := exporting(t, b, file)
	until(t, "it has what there is", func() bool { return state(t, x).N == 10 })
	stop()
	if s := state(t, x); s.Lost != 0 || s.Sent != 7 {
		t.Errorf("got %+v, want nothing lost", s)
	}
	b.fill(t, 10)
	b.forget(t, 11, 14)
	b.forget(t, 17, 17)
	x, stop = exporting(t, b, file)
	until(t, "it has the rest and the alarm", func() bool { return state(t, x).N == 21 })
	stop()
	if s := state(t, x); s.Lost != 5 || s.Sent != 13 {
		t.Errorf("got %+v, want 5 lost", s)
	}
	text, err := os.ReadFile(file.Path)
	must(t, err)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, ` kind="export.lost" severity="alarm"`) || !strings.Contains(last, `entries="5"`) {
		t.Errorf("got %s, want the alarm", last)
	}
}

// TestLostInPieces: many holes one behind the other are one alarm, and one of the rest at the end.
func TestLostInPieces(t *testing.T) {
	b := newBooks(t)
	file := export.Sink{Name: "file", Kind: export.KindFile, Format: export.FormatSyslog, Since: "start", Path: filepath.Join(t.TempDir(), "trail")}
	b.fill(t, 2000)
	for n := range 20 {
		b.forget(t, 100*n+50, 100*n+59)
	}
	x, stop := exporting(t, b, file)
	until(t, "it has what there is", func() bool { s := state(t, x); return s.N >= 2000 && s.Lost == 200 })
	stop()
	if n, last := b.alarms(t, "export.lost"); n != 2 || last.Detail["entries"] == "" {
		t.Errorf("got %d alarms, the last %+v, want one at once and one of the rest", n, last)
	}
	var sum int
	all, err := b.Trails(t.Context(), 0, 1<<20)
	must(t, err)
	for _, e := range all {
		if e.Kind == "export.lost" {
			n, err := strconv.Atoi(e.Detail["entries"])
			must(t, err)
			sum += n
		}
	}
	if sum != 200 {
		t.Errorf("the alarms speak of %d entries, want 200", sum)
	}
}

// TestFile: a full file becomes the one before, half a line is cut off, and
// nobody else may read it.
func TestFile(t *testing.T) {
	b, path := newBooks(t), filepath.Join(t.TempDir(), "trail")
	must(t, os.WriteFile(path, []byte("a whole line n=\"0\"\nhalf a li"), 0o600))
	sink := export.Sink{Name: "file", Kind: export.KindFile, Format: export.FormatSyslog, Since: "start", Path: path, MaxMB: 1, Keep: 2}
	big := strings.Repeat("x", 7000)
	for range 400 {
		must(t, b.Audit(t.Context(), fleet.AuditEvent{Kind: "device.changed", Subject: "d1", Detail: map[string]string{"text": big}}))
	}
	x, stop := exporting(t, b, sink)
	until(t, "it has everything", func() bool { return state(t, x).N == 400 })
	stop()
	all := ""
	for _, name := range []string{".2", ".1", ""} {
		info, err := os.Stat(path + name)
		must(t, err)
		if info.Mode().Perm() != 0o600 || info.Size() > 1<<20+2*int64(export.MaxLine) {
			t.Errorf("%s: %v, %d bytes", name, info.Mode(), info.Size())
		}
		text, err := os.ReadFile(path + name)
		must(t, err)
		all += string(text)
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("more files than are to be kept")
	}
	all, ok := strings.CutPrefix(all, "a whole line n=\"0\"\n")
	if !ok {
		t.Fatalf("got %.200q", all)
	}
	counted(t, strings.Split(strings.TrimSpace(all), "\n"), 400)
}

// TestWebhook: posts are signed, what is not answered with 2xx comes again, and
// nothing is sent where a redirect points.
func TestWebhook(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("0123456789abcdef0123456789abcdef\n"), 0o600))
	var mu sync.Mutex
	var lines []string
	posts := 0
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it went where a redirect pointed") }))
	defer other.Close()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		want := "sha256=" + export.Sign([]byte("0123456789abcdef0123456789abcdef"), r.Header.Get("X-Tillward-Time"), body)
		if at, err := strconv.ParseInt(r.Header.Get("X-Tillward-Time"), 10, 64); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute || r.Header.Get("X-Tillward-Signature") != want {
			t.Errorf("signature %q of %q", r.Header.Get("X-Tillward-Signature"), r.Header.Get("X-Tillward-Time"))
		}
		switch posts++; posts {
		case 1:
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			lines = append(lines, strings.Split(strings.TrimSpace(string(body)), "\n")...)
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pemOf(srv.Certificate()), 0o600))
	b := newBooks(t)
	b.fill(t, 300)
	x, stop := exporting(t, b, export.Sink{
		Name: "hook", Kind: export.KindWebhook, Format: export.FormatSyslog, Since: "start", URL: srv.URL + "/in?token=hidden", Secret: secret, CA: ca,
	})
	until(t, "it has everything", func() bool { return state(t, x).N == 300 })
	stop()
	if doubles := counted(t, lines, 300); doubles != 0 {
		t.Errorf("%d came twice", doubles)
	}
	if s := state(t, x); strings.Contains(s.To+s.LastError, "hidden") || !strings.Contains(s.LastError, "503") {
		t.Errorf("got %+v", s)
	}
	// A host that is not there: its name may be told, the rest of the address not.
	srv.Close()
	if err := x.Test(t.Context(), "hook", "anna"); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("got %v", err)
	}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
