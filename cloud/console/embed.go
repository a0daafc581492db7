// Package console is the web app of the fleet service, as files. It is built
// by `make console` into dist and embedded; the package serves it and knows
// nothing of the domain. It promises that a browser never keeps a stale page
// and never gets a page where it asked for a script. Security headers are set
// by whoever mounts it.
package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed all:dist
var dist embed.FS

// Handler serves the app to GET and HEAD. Files below assets/ carry a hash in
// their name and may be kept for ever; the rest is asked for again by its ETag.
// A path that is no file is a route of the app and gets index.html, except
// below assets/, where it is a 404. An app that was not built answers 503 and
// says how.
func Handler() http.Handler {
	root, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // a fixed name
	}
	return handler(root)
}

// kinds are the types of what Vite writes. The machine's own table is not
// asked: it differs from one to the next.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml", ".json": "application/json", ".txt": "text/plain; charset=utf-8", ".png": "image/png", ".woff2": "font/woff2",
}

// file is one file of the app, ready to be sent.
type file struct {
	plain, zipped []byte // zipped is nil where it would save nothing
	kind, etag    string // etag without its quotes
}

func handler(root fs.FS) http.Handler {
	files, err := load(root)
	if err != nil {
		panic(err) // embedded files can be read
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the console is only read: use GET or HEAD", http.StatusMethodNotAllowed)
			return
		}
		index, built := files["index.html"]
		if !built {
			http.Error(w, "this binary was built without the console: run make console, then make build", http.StatusServiceUnavailable)
			return
		}
		name := strings.TrimPrefix(path.Clean("/"+r.URL.Path), "/")
		f, found := files[name]
		hashed := strings.HasPrefix(name, "assets/")
		switch {
		case hashed && !found:
			// A page from before an update asks for scripts that are gone.
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, "no such file: load the page again", http.StatusNotFound)
			return
		case hashed:
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		default:
			w.Header().Set("Cache-Control", "no-cache")
		}
		if !found {
			f = index
		}
		f.send(w, r)
	})
}

// load reads the app whole: it is small, and embedded in memory anyway.
func load(root fs.FS) (map[string]file, error) {
	files := map[string]file{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path.Base(name), ".") {
			return err
		}
		plain, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		kind, known := kinds[path.Ext(name)]
		if !known {
			kind = "application/octet-stream"
		}
		sum := sha256.Sum256(plain)
		f := file{plain: plain, kind: kind, etag: hex.EncodeToString(sum[:16])}
		if f.zipped, err = zip(plain); err != nil {
			return err
		}
		files[name] = f
		return nil
	})
	return files, err
}

// zip compresses b, or is nil where that does not make it smaller.
func zip(b []byte) ([]byte, error) {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(b); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if buf.Len() >= len(b) {
		return nil, nil
	}
	return buf.Bytes(), nil
}

// send answers with f, compressed for those who say they can read that; the two
// forms are two representations and so have two tags [RFC 9110, 8.8.3].
func (f file) send(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	body, tag := f.plain, f.etag
	if f.zipped != nil {
		h.Set("Vary", "Accept-Encoding")
		if takesGzip(r.Header.Values("Accept-Encoding")) {
			body, tag = f.zipped, f.etag+"-gz"
			h.Set("Content-Encoding", "gzip")
		}
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// takesGzip reads Accept-Encoding: gzip named with a weight above zero
// [RFC 9110, 12.5.3].
func takesGzip(headers []string) bool {
	for part := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		coding, params, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			continue
		}
		key, weight, weighed := strings.Cut(params, "=")
		if !weighed || !strings.EqualFold(strings.TrimSpace(key), "q") {
			return true
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(weight), 64)
		return err == nil && q > 0
	}
	return false
}
