package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"
)

type releaseCmd struct {
	Publish      releasePublish   `cmd:"" help:"Upload a signed repository."`
	List         releaseList      `cmd:"" help:"List releases, newest first."`
	Show         releaseShow      `cmd:"" help:"Show a release and its targets."`
	ExportMedium releaseExport    `cmd:"" help:"Write releases to a stick for devices that the network does not reach."`
	OnlineKey    releaseOnlineKey `cmd:"" help:"Show the service's key that keeps releases fresh, for whoever signs the next root."`
}

type releasePublish struct {
	Repo string `required:"" help:"Folder that tillward-provision made." placeholder:"DIR"`
}

type release struct {
	ID          string            `json:"id"`
	Component   string            `json:"component"`
	Class       string            `json:"class"`
	Version     string            `json:"version"`
	Models      []string          `json:"models"`
	Requires    map[string]string `json:"requires"`
	Withdrawn   bool              `json:"withdrawn"`
	PublishedAt *time.Time        `json:"published_at"`
	PublishedBy string            `json:"published_by"`
	Targets     []struct {
		Path   string `json:"path"`
		SHA256 string `json:"sha256"`
		Length int64  `json:"length"`
	} `json:"targets"`
}

func releaseRow(r release) string {
	state := ""
	if r.Withdrawn {
		state = "withdrawn"
	}
	return tab(r.ID, r.Class, r.Version, fmt.Sprint(len(r.Targets)), ago(r.PublishedAt), r.PublishedBy, state)
}

const releaseHead = "RELEASE\tCLASS\tVERSION\tTARGETS\tPUBLISHED\tBY\tSTATE"

// Run implements the command.
func (c *releasePublish) Run(ctx context.Context, o *out, api *client) error {
	files, total, err := repository(c.Repo)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	bar := newBar(o.err, total)
	go func() { w.CloseWithError(pack(io.MultiWriter(w, bar), c.Repo, files)) }()
	var p page
	err = api.do(ctx, http.MethodPost, "/v1/releases", "application/x-tar", r, &p)
	_ = r.Close() // ends pack when the service hung up early
	bar.done()
	if err != nil {
		return err
	}
	if len(p.Items) == 0 && !o.json {
		fmt.Fprintln(o.w, "no new release; metadata and boot reference values are in place")
		return nil
	}
	return list(o, p.Items, releaseHead, releaseRow)
}

// repository lists the files to send: metadata, then targets.
func repository(dir string) (files []string, total int64, err error) {
	if roots, err := filepath.Glob(filepath.Join(dir, "metadata", "*.root.json")); err != nil || len(roots) == 0 {
		return nil, 0, usage{fmt.Errorf("--repo %s: not a repository; make one with tillward-provision repo init", dir)}
	}
	for _, sub := range []string{"metadata", "targets"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && sub == "metadata" && p != filepath.Join(dir, sub) {
				return filepath.SkipDir // drafts that lack signatures
			}
			if d.IsDir() || strings.HasPrefix(d.Name(), ".") {
				return nil
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			total += fi.Size()
			files = append(files, p)
			return nil
		})
		if err != nil {
			return nil, 0, fmt.Errorf("read repository: %w", err)
		}
	}
	return files, total, nil
}

// pack writes files as a tar stream with paths relative to dir.
func pack(w io.Writer, dir string, files []string) error {
	tw := tar.NewWriter(w)
	for _, p := range files {
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		f, err := os.Open(p) // #nosec G304 -- below the folder the operator named
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err == nil {
			err = tw.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Mode: 0o644, Size: fi.Size(), Typeflag: tar.TypeReg})
		}
		if err == nil {
			_, err = io.Copy(tw, f)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return tw.Close()
}

// bar shows on a terminal how much of total has been sent.
type bar struct {
	w     io.Writer
	total int64
	n     int64
	last  time.Time
	shown bool
}

func newBar(w io.Writer, total int64) *bar {
	b := &bar{total: max(total, 1)}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) { // #nosec G115 -- a descriptor
		b.w = w
	}
	return b
}

// Write implements io.Writer.
func (b *bar) Write(p []byte) (int, error) {
	b.n += int64(len(p))
	if b.w != nil && time.Since(b.last) > 100*time.Millisecond {
		b.last, b.shown = time.Now(), true
		done := int(min(b.n*40/b.total, 40))
		fmt.Fprintf(b.w, "\r[%s%s] %3d%%", strings.Repeat("#", done), strings.Repeat(".", 40-done), min(b.n*100/b.total, 100))
	}
	return len(p), nil
}

func (b *bar) done() {
	if b.shown {
		fmt.Fprintf(b.w, "\r%60s\r", "")
	}
}

type releaseList struct{}

// Run implements the command.
func (releaseList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/releases", url.Values{}, 0)
	if err != nil {
		return err
	}
	return list(o, items, releaseHead, releaseRow)
}
