package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type releaseShow struct {
	Release string `arg:"" help:"Release id, e.g. os/pos-500/prod/1.2.3."`
}

// Run implements the command.
func (c *releaseShow) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	if err := api.get(ctx, "/v1/release?"+url.Values{"id": {c.Release}}.Encode(), &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	var r release
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if err := list(o, []json.RawMessage{raw}, releaseHead, releaseRow); err != nil {
		return err
	}
	if len(r.Models) > 0 {
		fmt.Fprintln(o.w, "\nfits", strings.Join(r.Models, ", "))
	}
	for _, k := range slices.Sorted(maps.Keys(r.Requires)) {
		fmt.Fprintln(o.w, "requires", k, r.Requires[k], "or later")
	}
	fmt.Fprintln(o.w)
	var rows []json.RawMessage
	for _, t := range r.Targets {
		b, err := json.Marshal(t)
		if err != nil {
			return err
		}
		rows = append(rows, b)
	}
	return list(o, rows, "TARGET\tBYTES\tSHA-256", func(t struct {
		Path   string `json:"path"`
		SHA256 string `json:"sha256"`
		Length int64  `json:"length"`
	},
	) string {
		return tab(t.Path, fmt.Sprint(t.Length), t.SHA256)
	})
}

type releaseOnlineKey struct{}

// Run implements the command.
func (releaseOnlineKey) Run(ctx context.Context, o *out, api *client) error {
	var raw json.RawMessage
	if err := api.get(ctx, "/v1/online-key", &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	var k struct {
		Key    string `json:"key"`
		Online bool   `json:"online"`
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if !k.Online { // beside the key, which may go to a file
		fmt.Fprintln(o.err, "the published root does not name this key for snapshot and timestamp: uploads must carry both")
	}
	_, err := io.WriteString(o.w, k.Key)
	return err
}

type releaseExport struct {
	Releases []string `arg:"" help:"Release ids, in the order to install them."`
	To       string   `required:"" help:"Folder to unpack into, such as the top of a mounted stick, or tar file to make." placeholder:"PATH"`
	Days     int      `help:"Until devices take it no more." default:"30"`
}

// Run implements the command.
func (c *releaseExport) Run(ctx context.Context, o *out, api *client) error {
	if c.Days < 1 || c.Days > 90 {
		return usage{fmt.Errorf("--days %d: a medium lives for 1 to 90 days", c.Days)}
	}
	in, err := json.Marshal(map[string]any{"releases": c.Releases, "life_days": c.Days})
	if err != nil {
		return err
	}
	fi, err := os.Stat(c.To)
	folder := err == nil && fi.IsDir()
	if err == nil && !folder {
		return usage{fmt.Errorf("--to %s is there already", c.To)}
	}
	header, r, err := api.stream(ctx, http.MethodPost, "/v1/media", "application/json", bytes.NewReader(in))
	if err != nil {
		return err
	}
	defer r.Close()
	if folder {
		err = unpackMedium(c.To, r)
	} else {
		err = saveMedium(c.To, r)
	}
	if err != nil {
		return fmt.Errorf("write the medium: %w", err)
	}
	id, ends := header.Get("Tillward-Medium"), header.Get("Tillward-Ends")
	if o.json {
		return json.NewEncoder(o.w).Encode(map[string]string{"id": id, "ends": ends, "path": c.To})
	}
	if at, err := time.Parse(time.RFC3339, ends); err == nil {
		ends = at.Local().Format("2006-01-02 15:04")
		if time.Until(at) < time.Duration(c.Days)*24*time.Hour-time.Hour {
			ends += ", when metadata of the releases ends"
		}
	}
	_, err = fmt.Fprintf(o.w, "medium %s in %s, good until %s\n", id, c.To, ends)
	return err
}

// saveMedium writes the stream to a file, which is whole or not there.
func saveMedium(to string, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(to), ".medium-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}

// unpackMedium unpacks the stream into a new folder below dir. The order, which
// makes a medium of it, comes last and is there only when all else is.
func unpackMedium(dir string, r io.Reader) error {
	const top = "tillward-update"
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.RemoveAll(top); err != nil { // of an older export
		return err
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) || !strings.HasPrefix(h.Name, top+"/") {
			return fmt.Errorf("the service sent %.80q, which does not belong on a medium", h.Name)
		}
		if err := root.MkdirAll(filepath.Dir(h.Name), 0o755); err != nil {
			return err
		}
		f, err := root.Create(h.Name)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, tr, h.Size)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
}
