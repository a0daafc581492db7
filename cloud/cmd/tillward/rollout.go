package main

import (
	"archive/tar"
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

	"golang.org/x/term"
)

type releaseCmd struct {
	Publish releasePublish `cmd:"" help:"Upload a signed repository."`
	List    releaseList    `cmd:"" help:"List releases, newest first."`
}

type releasePublish struct {
	Repo string `required:"" help:"Folder that tillward-provision made." placeholder:"DIR"`
}

type release struct {
	ID          string     `json:"id"`
	Version     string     `json:"version"`
	PublishedAt *time.Time `json:"published_at"`
	PublishedBy string     `json:"published_by"`
	Targets     []struct {
		Path string `json:"path"`
	} `json:"targets"`
}

func releaseRow(r release) string {
	return tab(r.ID, r.Version, fmt.Sprint(len(r.Targets)), ago(r.PublishedAt), r.PublishedBy)
}

const releaseHead = "RELEASE\tVERSION\tTARGETS\tPUBLISHED\tBY"

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
	if _, err := os.Stat(filepath.Join(dir, "metadata", "timestamp.json")); err != nil {
		return nil, 0, usage{fmt.Errorf("--repo %s: not a repository; make one with tillward-provision repo init", dir)}
	}
	for _, sub := range []string{"metadata", "targets"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") {
				return err
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

type rolloutCmd struct {
	Start  rolloutStart `cmd:"" help:"Bring a release to a group."`
	Show   rolloutShow  `cmd:"" help:"Show a rollout and where each device stands."`
	List   rolloutList  `cmd:"" help:"List rollouts, newest first."`
	Pause  rolloutMove  `cmd:"" help:"Offer nothing more for now."`
	Resume rolloutMove  `cmd:"" help:"Go on with a paused rollout."`
	Abort  rolloutMove  `cmd:"" help:"End a rollout; what is under way on devices finishes."`
}

type rollout struct {
	ID        string         `json:"id"`
	Release   string         `json:"release"`
	Group     string         `json:"group"`
	State     string         `json:"state"`
	Reason    string         `json:"reason"`
	CreatedAt *time.Time     `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	Counts    map[string]int `json:"counts"`
	Total     int            `json:"total"`
}

func (r rollout) counts() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(r.Counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, r.Counts[k]))
	}
	return strings.Join(parts, ", ")
}

func rolloutRow(r rollout) string {
	return tab(r.ID, r.Release, r.Group, strings.TrimSpace(r.State+" "+r.Reason), r.counts(), r.CreatedBy, ago(r.CreatedAt))
}

const rolloutHead = "ROLLOUT\tRELEASE\tGROUP\tSTATE\tDEVICES\tBY\tSTARTED"

type rolloutStart struct {
	Release   string        `arg:"" help:"Release id, e.g. agent/1.2.3."`
	Group     string        `help:"Group of devices; all by default."`
	Deadline  time.Duration `help:"For one device, from its offer." default:"1h"`
	MaxFailed int           `help:"Pause when more devices than this end badly." default:"1"`
	Repair    bool          `help:"Offer it to quarantined devices, too."`
	Watch     bool          `help:"Stay and show the progress."`
}

// Run implements the command.
func (c *rolloutStart) Run(ctx context.Context, o *out, api *client) error {
	deadline, err := seconds("--deadline", c.Deadline)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	in := map[string]any{"release": c.Release, "group": c.Group, "deadline_s": deadline, "max_failed": c.MaxFailed, "repair": c.Repair}
	if err := api.post(ctx, "/v1/rollouts", in, &raw); err != nil {
		return err
	}
	var r rollout
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if c.Watch {
		return watch(ctx, o, api, r.ID)
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow)
}

// watch prints a line whenever the rollout stands otherwise, until it ends.
func watch(ctx context.Context, o *out, api *client, id string) error {
	last := ""
	for {
		var raw json.RawMessage
		if err := api.get(ctx, "/v1/rollouts/"+url.PathEscape(id), &raw); err != nil {
			return err
		}
		var r rollout
		if err := json.Unmarshal(raw, &r); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		line := fmt.Sprintf("%s  %-9s  %s", r.ID, r.State, r.counts())
		if o.json {
			line = string(raw)
		}
		if line != last {
			fmt.Fprintln(o.w, line)
			last = line
		}
		switch r.State {
		case "COMPLETED":
			return nil
		case "PAUSED", "ABORTED":
			return fmt.Errorf("rollout is %s: %s", r.State, r.Reason)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

type rolloutShow struct {
	Rollout string `arg:"" help:"Rollout id."`
	Watch   bool   `help:"Stay and show the progress."`
}

// Run implements the command.
func (c *rolloutShow) Run(ctx context.Context, o *out, api *client) error {
	if c.Watch {
		return watch(ctx, o, api, c.Rollout)
	}
	var raw json.RawMessage
	if err := api.get(ctx, "/v1/rollouts/"+url.PathEscape(c.Rollout), &raw); err != nil {
		return err
	}
	execs, err := api.all(ctx, "/v1/rollouts/"+url.PathEscape(c.Rollout)+"/executions", url.Values{}, 0)
	if err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(o.w).Encode(map[string]any{"rollout": raw, "executions": execs})
	}
	if err := list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow); err != nil {
		return err
	}
	fmt.Fprintln(o.w)
	type execution struct {
		Device string `json:"device"`
		State  string `json:"state"`
		Reason string `json:"reason"`
		Text   string `json:"text"`
		From   string `json:"from"`
		To     string `json:"to"`
	}
	return list(o, execs, "DEVICE\tSTATE\tFROM\tTO\tREASON", func(e execution) string {
		return tab(e.Device, e.State, e.From, e.To, strings.TrimSpace(e.Reason+" "+e.Text))
	})
}

type rolloutList struct{}

// Run implements the command.
func (rolloutList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/rollouts", url.Values{}, 0)
	if err != nil {
		return err
	}
	return list(o, items, rolloutHead, rolloutRow)
}

type rolloutMove struct {
	Rollout string `arg:"" help:"Rollout id."`
	Reason  string `help:"Why; kept in the audit trail."`
}

// Run implements the commands pause, resume and abort.
func (c *rolloutMove) Run(ctx context.Context, o *out, api *client, verb string) error {
	var raw json.RawMessage
	if err := api.post(ctx, "/v1/rollouts/"+url.PathEscape(c.Rollout)+"/"+verb, map[string]string{"reason": c.Reason}, &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, rolloutHead, rolloutRow)
}
