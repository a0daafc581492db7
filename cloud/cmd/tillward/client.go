package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// client speaks the public API.
type client struct {
	server, tokenFile, ca string

	http  *http.Client
	token string
}

// open reads the token and pins the authority, once.
func (c *client) open() error {
	if c.http != nil {
		return nil
	}
	if c.tokenFile == "" {
		return usage{errors.New("no operator token: name a file with --token-file or TILLWARD_TOKEN_FILE; the first token is admin.token in the service's data folder")}
	}
	b, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return usage{fmt.Errorf("operator token: %w", err)}
	}
	c.token = strings.TrimSpace(string(b))
	tr := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return usage{fmt.Errorf("--ca: %w", err)}
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return usage{fmt.Errorf("--ca %s holds no certificate", c.ca)}
		}
		tr.TLSClientConfig.RootCAs = pool
	}
	c.http = &http.Client{Transport: tr}
	return nil
}

// get decodes the answer to GET path.
func (c *client) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, "", nil, out)
}

// post sends in as JSON.
func (c *client) post(ctx context.Context, path string, in, out any) error {
	return c.send(ctx, http.MethodPost, path, in, out)
}

// send sends in as JSON by any method.
func (c *client) send(ctx context.Context, method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.do(ctx, method, path, "application/json", bytes.NewReader(b), out)
}

func (c *client) do(ctx context.Context, method, path, kind string, body io.Reader, out any) error {
	_, r, err := c.stream(ctx, method, path, kind, body)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, 64<<20))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// stream sends a request and returns a good answer to read as it comes.
func (c *client) stream(ctx context.Context, method, path, kind string, body io.Reader) (http.Header, io.ReadCloser, error) {
	if err := c.open(); err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.server, "/")+path, body)
	if err != nil {
		return nil, nil, usage{fmt.Errorf("--server %q: %w", c.server, err)}
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return nil, nil, fmt.Errorf("%w; pin the service with --ca service-roots.pem from its data folder", err)
		}
		return nil, nil, fmt.Errorf("reach the fleet service: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp.Header, resp.Body, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	var p struct {
		Detail string `json:"detail"`
		Errors []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	if json.Unmarshal(b, &p) != nil || p.Detail == "" {
		return nil, nil, fmt.Errorf("the fleet service answered %s", resp.Status)
	}
	text := []string{p.Detail}
	for _, e := range p.Errors {
		text = append(text, e.Location+" "+e.Message)
	}
	return nil, nil, errors.New(strings.Join(text, "; "))
}

// seconds is a span as the API takes it, where 0 would mean something else.
func seconds(flag string, d time.Duration) (int, error) {
	if d < time.Second {
		return 0, usage{fmt.Errorf("%s %s: give at least 1s", flag, d)}
	}
	return int(d / time.Second), nil
}

// page is one page of a list, items as they came.
type page struct {
	Items []json.RawMessage `json:"items"`
	Next  string            `json:"next"`
}

// all reads a list to its end, or to limit items (0: no limit).
func (c *client) all(ctx context.Context, path string, q url.Values, limit int) ([]json.RawMessage, error) {
	var out []json.RawMessage
	for {
		var p page
		if err := c.get(ctx, path+"?"+q.Encode(), &p); err != nil {
			return nil, err
		}
		out = append(out, p.Items...)
		if p.Next == "" || (limit > 0 && len(out) >= limit) {
			if limit > 0 {
				out = out[:min(len(out), limit)]
			}
			return out, nil
		}
		q.Set("after", p.Next)
	}
}

// out prints results, as aligned text or as the JSON that came.
type out struct {
	w, err io.Writer
	json   bool
}

func (o *out) print(v any, text string) error {
	if o.json {
		return json.NewEncoder(o.w).Encode(v)
	}
	_, err := fmt.Fprintln(o.w, text)
	return err
}

// list prints items as a JSON object {"items": [...]}, or as a table with a
// row for each.
func list[T any](o *out, items []json.RawMessage, head string, row func(T) string) error {
	if o.json {
		if items == nil {
			items = []json.RawMessage{}
		}
		return json.NewEncoder(o.w).Encode(map[string]any{"items": items})
	}
	tw := tabwriter.NewWriter(o.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, head)
	for _, i := range items {
		var v T
		if err := json.Unmarshal(i, &v); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		fmt.Fprintln(tw, row(v))
	}
	return tw.Flush()
}

// tab joins cells; an empty one is a dash.
func tab(cells ...string) string {
	for i, c := range cells {
		if cells[i] = plainText(c); c == "" {
			cells[i] = "-"
		}
	}
	return strings.Join(cells, "\t")
}

// plainText is text without what moves a terminal's cursor: much of what is
// shown was said by devices.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// ago says how long ago t was.
func ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	d := time.Since(*t).Round(time.Second)
	switch {
	case d < time.Minute:
		return d.String() + " ago"
	case d < 48*time.Hour:
		return d.Round(time.Minute).String() + " ago"
	}
	return t.Local().Format("2006-01-02")
}
