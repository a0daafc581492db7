package figures_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/cloud/internal/figures"
)

// logged runs an access log around f and returns all it wrote, the newest file
// first.
func logged(t *testing.T, maxMiB, keep int, f func(*figures.Log)) (all []byte, files []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sub", "access.log")
	l, err := figures.OpenLog(path, maxMiB, keep, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	f(l)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	files, err = filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: got %v, %v, want it to be for its owner alone", name, st.Mode(), err)
		}
	}
	return all, files
}

// server answers like a room of the service, counted and logged.
func server(b *figures.Book, l *figures.Log) *httptest.Server {
	inner := http.NewServeMux()
	inner.HandleFunc("GET /v1/devices/{id}", func(w http.ResponseWriter, r *http.Request) {
		figures.Asks(r.Context(), "anna")
		_, _ = io.WriteString(w, "hello")
	})
	inner.HandleFunc("POST /v1/commands", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusUnprocessableEntity)
	})
	inner.HandleFunc("GET /v1/broken", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	inner.HandleFunc("GET /v1/live", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: ping\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	outer := http.NewServeMux()
	outer.Handle("/v1/", b.Handler("api", l, nil, inner))
	return httptest.NewServer(outer)
}

type logLine struct {
	Time    time.Time
	Part    string
	Who     string
	Route   string
	Status  int
	Bytes   int64
	MS      float64
	Remote  string
	Dropped int
}

func parseLog(t *testing.T, b []byte) (out []logLine) {
	t.Helper()
	for line := range bytes.Lines(b) {
		var l logLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, l)
	}
	return out
}

func ask(t *testing.T, method, url, body string, header ...string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestAccessLog(t *testing.T) {
	b := figures.New(figures.Options{Log: quiet})
	all, _ := logged(t, 1, 1, func(l *figures.Log) {
		srv := server(b, l)
		defer srv.Close()
		ask(t, "GET", srv.URL+"/v1/devices/d1", "")
		ask(t, "POST", srv.URL+"/v1/commands", "{}")
		ask(t, "GET", srv.URL+"/v1/nothing", "")
		ask(t, "GET", srv.URL+"/v1/broken", "")
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/v1/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err != nil { // a stream is flushed through the log
			t.Errorf("stream: %v", err)
		}
		cancel()
		_ = resp.Body.Close()
	})
	lines := parseLog(t, all)
	got := map[string]logLine{}
	for _, l := range lines {
		if l.Part != "api" || l.Time.IsZero() || l.Remote == "" {
			t.Errorf("got %+v, want part, time and remote", l)
		}
		got[l.Route] = l
	}
	for route, want := range map[string]logLine{
		"GET /v1/devices/{id}": {Who: "anna", Status: 200, Bytes: 5},
		"POST /v1/commands":    {Status: 422},
		"unmatched":            {Status: 404, Bytes: 19},
		"GET /v1/broken":       {Status: 500},
		"GET /v1/live":         {Status: 200, Bytes: 13},
	} {
		if l := got[route]; l.Who != want.Who || l.Status != want.Status || l.Bytes != want.Bytes {
			t.Errorf("%s: got %+v, want %+v", route, l, want)
		}
	}
	if len(lines) < 5 { // the client asks again when a connection breaks
		t.Errorf("got %d lines, want 5", len(lines))
	}
}

// TestAccessLogHoldsNoSecret pushes secrets and card numbers through everything
// a client chooses, and looks for them in the log and in the names of what is
// counted.
func TestAccessLogHoldsNoSecret(t *testing.T) {
	const card, secret = "4111111111111111", "twt_s3cr3t"
	b := figures.New(figures.Options{Log: quiet})
	all, _ := logged(t, 1, 1, func(l *figures.Log) {
		srv := server(b, l)
		defer srv.Close()
		for _, s := range []string{card, secret, "4111 1111 1111 1111"} {
			esc := strings.ReplaceAll(s, " ", "%20")
			for _, url := range []string{
				"/v1/devices/" + esc, "/v1/devices/d1?token=" + esc, "/v1/" + esc, "/v1/" + esc + "/../devices/d1", "/v1/devices/d1?" + esc, "/" + esc,
			} {
				for _, method := range []string{"GET", "POST", "DELETE", strings.NewReplacer(" ", "").Replace(s)} {
					ask(t, method, srv.URL+url, `{"card":"`+s+`"}`, "Authorization", "Bearer "+s, "Cookie", "tw_session="+esc, "User-Agent", s, "Referer", "https://x/"+esc, "X-Forwarded-For", esc, "X-Request-Id", s)
				}
			}
			ask(t, "POST", srv.URL+"/v1/commands", `{"card":"`+s+`"}`)
		}
	})
	if len(parseLog(t, all)) < 50 {
		t.Fatalf("the log has only %d bytes", len(all))
	}
	_, ops := query(t, b, fleetQuery)
	for _, s := range []string{card, card[:8], card[8:], secret, "s3cr3t", "1111 1111"} {
		if bytes.Contains(all, []byte(s)) {
			t.Errorf("the access log holds %q", s)
		}
		for _, o := range ops {
			if strings.Contains(o.Op, s) {
				t.Errorf("what is counted is called %q", o.Op)
			}
		}
	}
	if len(ops) > 4 {
		t.Errorf("a client made %d kinds of things, want the routes there are", len(ops))
	}
}

// TestAccessLogCanHoldSecrets is the twin: the search above finds one where it
// is.
func TestAccessLogCanHoldSecrets(t *testing.T) {
	all, _ := logged(t, 1, 1, func(l *figures.Log) { l.Write(figures.Line{Route: "GET /v1/4111111111111111"}) })
	if !bytes.Contains(all, []byte("4111111111111111")) {
		t.Errorf("got %q, want what was written", all)
	}
}

// TestAccessLogIsBounded writes more than the files may hold.
func TestAccessLogIsBounded(t *testing.T) {
	all, files := logged(t, 1, 2, func(l *figures.Log) {
		for i := range 40_000 {
			for before := l.Dropped(); ; before = l.Dropped() {
				l.Write(figures.Line{At: time.Unix(1, 0), Part: "api", Route: fmt.Sprint("r", i), Status: 200})
				if l.Dropped() == before {
					break
				}
			}
		}
	})
	if len(files) != 3 || len(all) > 3<<20 || len(all) < 2<<20 {
		t.Errorf("got %d files with %d bytes, want 3 with at most 3 MiB", len(files), len(all))
	}
	if !bytes.Contains(all, []byte(`"r39999"`)) {
		t.Error("the newest line is not there")
	}
}

// TestAccessLogNeverWaits writes while nobody takes lines: they are dropped and
// counted, and the file says so.
func TestAccessLogNeverWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := figures.OpenLog(path, 1, 0, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		l.Write(figures.Line{Route: "r"})
	}
	if n := l.Dropped(); n != 5000-4096 {
		t.Errorf("dropped %d, want %d", n, 5000-4096)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines, dropped := parseLog(t, b), 0
	for _, line := range lines {
		dropped += line.Dropped
	}
	if dropped != 904 || len(lines) != 4097 {
		t.Errorf("the file has %d lines and tells of %d dropped ones, want 4097 and 904", len(lines), dropped)
	}
	var none *figures.Log
	none.Write(figures.Line{})
	if none.Dropped() != 0 || none.Run(ctx) != nil {
		t.Error("a log that is off does something")
	}
}

// TestAccessLogThatCannotWrite: lines that found no place on the disk are counted, each of them.
func TestAccessLogThatCannotWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	for _, name := range []string{path + ".1/x", path + ".2/x"} { // in the way of what is put away
		if err := os.MkdirAll(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	full := bytes.Repeat([]byte("{}\n"), 1<<20/3)
	if err := os.WriteFile(path, full, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := figures.OpenLog(path, 1, 2, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		l.Write(figures.Line{Route: "GET /v1/devices"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, full) || l.Dropped() != 5 {
		t.Errorf("%d lines were dropped and the file has %d bytes, %v, want 5 and none more", l.Dropped(), len(b), err)
	}
}
