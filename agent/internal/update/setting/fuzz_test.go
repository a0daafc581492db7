package setting

import (
	"encoding/json"
	"testing"
)

// FuzzParse: what is accepted is what encoding/json reads too, flat and bounded.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"a":"b","n":1.5e3,"t":true}`, `{"a":"b","a":"c"}`, `{"a":{}}`, `{"a":null}`, `[]`, `{"a":1}x`, `{"":1}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := parse(b)
		if err != nil {
			return
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("accepted what is no JSON: %v", err)
		}
		if len(m) != len(values) || len(values) == 0 || len(values) > maxKeys {
			t.Errorf("%d settings of %d", len(values), len(m))
		}
	})
}
