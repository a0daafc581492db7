package figures

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// Caller is who made a request, as far as that is known while it is answered.
type Caller struct {
	Name  string // of an operator's token, or the id of a device
	Route string // pattern of what was asked, when the mux does not say it
}

type callerKey struct{}

// Asks notes who makes the request of ctx: the name of a token, or the id of a
// device; never what proves it.
func Asks(ctx context.Context, name string) {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok {
		c.Name = name
	}
}

// unmatched is the route of what no pattern serves: its path is not kept, it
// may hold anything.
const unmatched = "unmatched"

// Handler counts the requests that next answers as those of a part, by the
// pattern that served them, and writes each into the access log. name renames
// patterns, and leaves out of the log what it answers an empty name for; nil
// takes them as they are.
func (b *Book) Handler(part string, access *Log, name func(pattern string) string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		var who Caller
		// A request of its own: the mux below writes its pattern into it.
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, &who))
		a := &answered{ResponseWriter: w, began: began}
		defer func() {
			route := r.Pattern
			if name != nil {
				route = name(route)
			}
			if route == "" || strings.HasSuffix(route, " ") {
				route = unmatched
			}
			status := a.status
			gone := recover()
			if status == 0 {
				status = http.StatusOK
				if gone != nil {
					status = http.StatusInternalServerError
				}
			}
			took := time.Since(began)
			if a.stream { // how long somebody listens says nothing of us
				took = a.first
			}
			b.Op(part, route).Done(howHTTP(status), took, a.bytes)
			access.Write(Line{At: began, Part: part, Who: who.Name, Route: route, Status: status, Bytes: a.bytes, Took: time.Since(began), Remote: r.RemoteAddr})
			if gone != nil {
				panic(gone)
			}
		}()
		next.ServeHTTP(a, r)
	})
}

func howHTTP(status int) Outcome {
	switch status / 100 {
	case 3:
		return Redirected
	case 4:
		return Refused
	case 5:
		return Failed
	}
	return OK
}

// answered keeps what was answered.
type answered struct {
	http.ResponseWriter
	began  time.Time
	status int
	bytes  int64
	first  time.Duration // to the first byte
	stream bool
}

// WriteHeader implements http.ResponseWriter.
func (a *answered) WriteHeader(status int) {
	a.begin(status)
	a.ResponseWriter.WriteHeader(status)
}

func (a *answered) begin(status int) {
	if a.status == 0 && status >= 200 {
		a.status, a.first = status, time.Since(a.began)
		a.stream = strings.HasPrefix(a.Header().Get("Content-Type"), "text/event-stream")
	}
}

// Write implements http.ResponseWriter.
func (a *answered) Write(b []byte) (int, error) {
	a.begin(http.StatusOK)
	n, err := a.ResponseWriter.Write(b)
	a.bytes += int64(n)
	return n, err
}

// Flush implements http.Flusher, for streams.
func (a *answered) Flush() {
	a.begin(http.StatusOK)
	_ = http.NewResponseController(a.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach the writer below.
func (a *answered) Unwrap() http.ResponseWriter { return a.ResponseWriter }
