package api_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"testing"

	"github.com/tillward/tillward/cloud/internal/api"
)

// openapi is what the test reads of the document that the API serves.
type openapi struct {
	Paths map[string]map[string]struct {
		Parameters []struct{ Name, In string }
		Responses  map[string]struct {
			Content map[string]struct {
				Schema struct {
					Ref string `json:"$ref"`
				}
			}
		}
	}
	Components struct {
		Schemas map[string]struct{ Properties map[string]json.RawMessage }
	}
}

// whole are lists that are short enough to come in one, and what is no list but
// has a next of another kind.
var whole = []string{"/v1/tokens", "/v1/devices/{id}/series", "/v1/authority", "/v1/references", "/v1/sites", "/v1/exports", "/v1/devices/{id}/voucher"}

// TestInputsAreRead finds operations whose input is not read from the request:
// each variable of a path is a parameter, and each page has a next one.
func TestInputsAreRead(t *testing.T) {
	h := api.New(api.Deps{Log: slog.New(slog.DiscardHandler), Version: "1.0.0"})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/openapi.json", nil))
	var doc openapi
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	paged := 0
	for path, ops := range doc.Paths {
		for method, op := range ops {
			has := func(in, name string) bool {
				return slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.In == in && p.Name == name })
			}
			for _, m := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(path, -1) {
				if !has("path", m[1]) {
					t.Errorf("%s %s does not read {%s}", method, path, m[1])
				}
			}
			ref := op.Responses["200"].Content["application/json"].Schema.Ref
			if method != "get" || ref == "" {
				continue
			}
			if _, ok := doc.Components.Schemas[ref[len("#/components/schemas/"):]].Properties["next"]; !ok || slices.Contains(whole, path) {
				continue
			}
			paged++
			if !has("query", "after") || !has("query", "limit") {
				t.Errorf("%s %s answers a page and reads no after and limit", method, path)
			}
		}
	}
	if paged < 5 {
		t.Errorf("got %d paged operations of %d paths, want at least 5: does the test look in the right place?", paged, len(doc.Paths))
	}
}
