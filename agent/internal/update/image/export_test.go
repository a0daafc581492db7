package image

import (
	"io"
	"net/http"
)

// Patience is how long a range may take.
const Patience = patience

// Proxy returns one that listens nowhere, its path, and the header that opens
// it.
func Proxy(content io.ReaderAt, length int64) (h http.Handler, path, name, token string) {
	p := newProxy(content, length)
	return p, p.path, headerName, p.token
}
