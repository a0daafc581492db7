package setting

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/tillward/tillward/agent/internal/update"
)

const (
	maxFile = 64 << 10
	maxKeys = 256
	maxKey  = 64
)

// parse reads one flat JSON object; numbers and booleans become their text. A
// name that comes twice is refused: which one counts would be a matter of luck.
func parse(b []byte) (map[string]string, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("settings must be one JSON object"), err)
	}
	values := make(map[string]string)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
		key, _ := t.(string) // the decoder lets nothing else be a name
		if _, twice := values[key]; twice || key == "" || len(key) > maxKey || len(values) == maxKeys {
			return nil, fmt.Errorf("setting %.64q: every name once, of 1 to %d bytes, at most %d of them", key, maxKey, maxKeys)
		}
		if t, err = d.Token(); err != nil {
			return nil, fmt.Errorf("setting %s: %w", key, err)
		}
		switch v := t.(type) {
		case string:
			values[key] = v
		case json.Number:
			values[key] = v.String()
		case bool:
			values[key] = fmt.Sprint(v)
		default:
			return nil, fmt.Errorf("setting %s: must be text, a number, true or false", key)
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("settings: something follows the object")
	}
	if len(values) == 0 {
		return nil, errors.New("there is no setting in it")
	}
	return values, nil
}

// read returns the content of the job.
func read(j update.Job) ([]byte, error) {
	var r io.Reader
	switch {
	case j.File != "":
		f, err := os.Open(j.File)
		if err != nil {
			return nil, fmt.Errorf("open settings: %w", err)
		}
		defer f.Close()
		r = f
	case j.Content != nil:
		r = io.NewSectionReader(j.Content, 0, j.Target.Length)
	default:
		return nil, update.Fail("install", "there is no content of %s", j.Version)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	if len(b) > maxFile {
		return nil, update.Refuse("incompatible", "settings %s take %d bytes, at most %d", j.Version, j.Target.Length, maxFile)
	}
	return b, nil
}
