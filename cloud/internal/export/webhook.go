package export

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"
)

const (
	postWait  = 30 * time.Second
	minSecret = 16
)

// webhookOut posts lines, each with a line feed behind it. The receiver knows
// by the signature that they come from us and are not an old post: HMAC-SHA256
// over the time, a dot and the body, with the secret that both have. What it
// answers with 2xx it has.
type webhookOut struct {
	url, kind string
	secret    []byte
	client    *http.Client
}

func newWebhook(s Sink) (*webhookOut, error) {
	secret, err := os.ReadFile(s.Secret)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	if secret = bytes.TrimRight(secret, "\r\n"); len(secret) < minSecret {
		return nil, fmt.Errorf("secret: %s holds less than %d bytes", s.Secret, minSecret)
	}
	cfg, err := clientTLS(s)
	if err != nil {
		return nil, err
	}
	kind := "text/plain; charset=utf-8"
	if s.Format == FormatOCSF {
		kind = "application/x-ndjson"
	}
	return &webhookOut{url: s.URL, kind: kind, secret: secret, client: &http.Client{
		Timeout: postWait, Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the trail goes where it was told to go
	}}, nil
}

func (o *webhookOut) send(ctx context.Context, lines []line) error {
	var body []byte
	for _, l := range lines {
		body = append(append(body, l.b...), '\n')
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the address cannot be used")
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Content-Type", o.kind)
	req.Header.Set("X-Tillward-Time", now)
	req.Header.Set("X-Tillward-Signature", "sha256="+sign(o.secret, now, body))
	req.Header.Set("X-Tillward-First", strconv.FormatInt(lines[0].n, 10))
	req.Header.Set("X-Tillward-Last", strconv.FormatInt(lines[len(lines)-1].n, 10))
	res, err := o.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok { // names the whole address, which may be secret
			err = u.Err
		}
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("the receiver answers %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	}
	return nil
}

func sign(secret []byte, now string, body []byte) string {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(now + "."))
	m.Write(body)
	return hex.EncodeToString(m.Sum(nil))
}

func (o *webhookOut) confirm(context.Context) error { return nil }
func (o *webhookOut) close()                        { o.client.CloseIdleConnections() }
