package console_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/tillward/tillward/cloud/console"
)

var script = strings.Repeat("export const till = 'open';\n", 40)

func app() fstest.MapFS {
	return fstest.MapFS{
		".keep":                   {},
		"index.html":              {Data: []byte("<!doctype html><title>Tillward</title>")},
		"assets/index-Abc123.js":  {Data: []byte(script)},
		"assets/index-Abc123.css": {Data: []byte("main{color:#123}")},
		"assets/icon-Abc123.svg":  {Data: []byte("<svg/>")},
	}
}

func ask(t *testing.T, h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPaths(t *testing.T) {
	h := console.Serve(app())
	const forever, ask4it, never = "public, max-age=31536000, immutable", "no-cache", "no-store"
	for _, c := range []struct {
		path   string
		status int
		kind   string
		cache  string
		has    string
	}{
		{"/", 200, "text/html; charset=utf-8", ask4it, "Tillward"},
		{"/index.html", 200, "text/html; charset=utf-8", ask4it, "Tillward"},
		{"/devices/abc", 200, "text/html; charset=utf-8", ask4it, "Tillward"},
		{"/assets/index-Abc123.js", 200, "text/javascript; charset=utf-8", forever, "till"},
		{"/assets/index-Abc123.css", 200, "text/css; charset=utf-8", forever, "main{"},
		{"/assets/icon-Abc123.svg", 200, "image/svg+xml", forever, "<svg"},
		// After an update a page that is still open must not run HTML as a script.
		{"/assets/index-Old999.js", 404, "text/plain; charset=utf-8", never, "load the page again"},
		{"/assets/", 200, "text/html; charset=utf-8", ask4it, "Tillward"},
		{"/.keep", 200, "text/html; charset=utf-8", ask4it, "Tillward"},
		{"/assets/../../embed.go", 200, "text/html; charset=utf-8", ask4it, "Tillward"},
	} {
		res := ask(t, h, http.MethodGet, c.path)
		got := res.Body.String()
		if res.Code != c.status || res.Header().Get("Content-Type") != c.kind || res.Header().Get("Cache-Control") != c.cache || !strings.Contains(got, c.has) {
			t.Errorf("%s: got %d %q %q %q, want %d %q %q with %q", c.path,
				res.Code, res.Header().Get("Content-Type"), res.Header().Get("Cache-Control"), got, c.status, c.kind, c.cache, c.has)
		}
	}
}

func TestTags(t *testing.T) {
	h := console.Serve(app())
	first := ask(t, h, http.MethodGet, "/")
	tag := first.Header().Get("ETag")
	if len(tag) < 20 || !strings.HasPrefix(tag, `"`) {
		t.Fatalf("got ETag %q, want a quoted hash", tag)
	}
	if res := ask(t, h, http.MethodGet, "/rollouts", "If-None-Match", tag); res.Code != http.StatusNotModified || res.Body.String() != "" {
		t.Errorf("the same page asked for again: got %d, want 304 and nothing else", res.Code)
	}
	next := app()
	next["index.html"] = &fstest.MapFile{Data: []byte("<!doctype html><title>Tillward, newer</title>")}
	if res := ask(t, console.Serve(next), http.MethodGet, "/", "If-None-Match", tag); res.Code != http.StatusOK {
		t.Errorf("a newer page: got %d, want 200", res.Code)
	}
}

func TestCompressed(t *testing.T) {
	h := console.Serve(app())
	const path = "/assets/index-Abc123.js"
	for accept, want := range map[string]string{
		"": "", "gzip": "gzip", "deflate, GZip;q=0.5, br": "gzip", "gzip;q=0": "", "gzip; q=0.000": "", "br": "", "xgzip": "", "gzip;q=x": "",
	} {
		res := ask(t, h, http.MethodGet, path, "Accept-Encoding", accept)
		if got := res.Header().Get("Content-Encoding"); got != want {
			t.Errorf("accept %q: got encoding %q, want %q", accept, got, want)
		}
		if res.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("accept %q: got Vary %q, want Accept-Encoding", accept, res.Header().Get("Vary"))
		}
	}
	plain, zipped := ask(t, h, http.MethodGet, path), ask(t, h, http.MethodGet, path, "Accept-Encoding", "gzip")
	if plain.Header().Get("ETag") == zipped.Header().Get("ETag") {
		t.Error("both forms have one ETag, want two")
	}
	sent := zipped.Body.String()
	z, err := gzip.NewReader(bytes.NewReader([]byte(sent)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || string(got) != script || len(sent) >= len(script) {
		t.Errorf("got %d bytes (%v) out of %d, want the %d of the script out of fewer", len(got), err, len(sent), len(script))
	}
	// What gets no smaller goes as it is.
	if got := ask(t, h, http.MethodGet, "/assets/icon-Abc123.svg", "Accept-Encoding", "gzip").Header().Get("Content-Encoding"); got != "" {
		t.Errorf("tiny file: got encoding %q, want none", got)
	}
}

func TestMethods(t *testing.T) {
	h := console.Serve(app())
	if res := ask(t, h, http.MethodHead, "/"); res.Code != http.StatusOK || res.Body.String() != "" {
		t.Errorf("HEAD: got %d, want 200 without a body", res.Code)
	}
	for _, m := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if res := ask(t, h, m, "/"); res.Code != http.StatusMethodNotAllowed || res.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: got %d, Allow %q; want 405, GET, HEAD", m, res.Code, res.Header().Get("Allow"))
		}
	}
}

func TestNotBuilt(t *testing.T) {
	h := console.Serve(fstest.MapFS{".keep": {}})
	for _, path := range []string{"/", "/devices/abc", "/assets/index-Abc123.js"} {
		res := ask(t, h, http.MethodGet, path)
		if got := res.Body.String(); res.Code != http.StatusServiceUnavailable || !strings.Contains(got, "make console") {
			t.Errorf("%s: got %d %q, want 503 and what to run", path, res.Code, got)
		}
	}
}

// The real one compiles and answers, built or not.
func TestHandler(t *testing.T) {
	res := ask(t, console.Handler(), http.MethodGet, "/")
	got := res.Body.String()
	built := res.Code == http.StatusOK && strings.Contains(got, `type="module"`)
	unbuilt := res.Code == http.StatusServiceUnavailable && strings.Contains(got, "make console")
	if !built && !unbuilt {
		t.Errorf("got %d %q, want the app or how to build it", res.Code, got)
	}
}
