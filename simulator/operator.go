package simulator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Operator speaks the public API as an operator with a token would.
type Operator struct {
	base   string
	token  string
	client *http.Client
}

// Get decodes the answer to GET path into out.
func (o *Operator) Get(ctx context.Context, path string, out any) error {
	return o.do(ctx, http.MethodGet, path, nil, out)
}

// Post sends in as JSON to path and decodes the answer into out, if not nil.
func (o *Operator) Post(ctx context.Context, path string, in, out any) error {
	return o.do(ctx, http.MethodPost, path, in, out)
}

// Put sends in as JSON to path.
func (o *Operator) Put(ctx context.Context, path string, in any) error {
	return o.do(ctx, http.MethodPut, path, in, nil)
}

// Patch sends in as JSON to path.
func (o *Operator) Patch(ctx context.Context, path string, in any) error {
	return o.do(ctx, http.MethodPatch, path, in, nil)
}

func (o *Operator) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, o.base+path, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Authorization", "Bearer "+o.token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// list is one page of the API.
type list[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next"`
}

// all reads every page of the list at path, which must already hold a "?".
func all[T any](ctx context.Context, o *Operator, path string) ([]T, error) {
	var out []T
	for after := ""; ; {
		var page list[T]
		if err := o.Get(ctx, path+"&limit=1000&after="+url.QueryEscape(after), &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if page.Next == "" {
			return out, nil
		}
		after = page.Next
	}
}
