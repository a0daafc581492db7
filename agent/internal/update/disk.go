package update

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tillward/tillward/provisioning/durable"
)

func load(path string, v any) error {
	b, err := os.ReadFile(path) // #nosec G304 -- below the state folder
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return durable.Replace(path, b)
}
