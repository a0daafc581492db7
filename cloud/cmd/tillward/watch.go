package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// watch shows a rollout until it ends: on a terminal as a board that is drawn
// anew, else a line whenever it stands otherwise.
func watch(ctx context.Context, o *out, api *client, id string) error {
	f, ok := o.w.(*os.File)
	draw := ok && !o.json && term.IsTerminal(int(f.Fd())) // #nosec G115 -- a descriptor
	last, drawn := "", 0
	var silent time.Time // since when the service has not been reached
	for seen := false; ; seen = true {
		var raw json.RawMessage
		if err := api.get(ctx, rolloutPath(id), &raw); ctx.Err() != nil {
			return errUnwatched
		} else if lost := errors.As(err, new(*url.Error)); lost && seen && (silent.IsZero() || time.Since(silent) < patience) {
			if silent.IsZero() { // it may begin anew
				silent = time.Now()
				fmt.Fprintf(o.err, "tillward: %v; trying again\n", err)
				drawn = 0
			}
			if err := rest(ctx, lostEvery); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		silent = time.Time{}
		var r rollout
		if err := json.Unmarshal(raw, &r); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		switch {
		case draw:
			lines := board(r, 30)
			if width, _, err := term.GetSize(int(f.Fd())); err == nil { // #nosec G115 -- a descriptor
				fit(lines, width)
			}
			if drawn > 0 {
				fmt.Fprintf(o.w, "\x1b[%dA\x1b[J", drawn) // up, and away with what was there
			}
			for _, line := range lines {
				fmt.Fprintln(o.w, line)
			}
			drawn = len(lines)
		case o.json:
			if line := string(raw); line != last {
				fmt.Fprintln(o.w, line)
				last = line
			}
		default:
			if line := standing(r); line != last {
				fmt.Fprintln(o.w, line)
				last = line
			}
		}
		switch r.State {
		case "COMPLETED":
			return nil
		case "PAUSED", "ABORTED", "DENIED", "SUPERSEDED":
			return fmt.Errorf("rollout is %s: %s", r.State, r.Reason)
		}
		if err := rest(ctx, watchEvery); err != nil {
			return err
		}
	}
}

const (
	watchEvery = 500 * time.Millisecond
	lostEvery  = 2 * time.Second
	patience   = 5 * time.Minute // with a service that cannot be reached
)

var errUnwatched = errors.New("watched no longer; the rollout goes on")

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return errUnwatched
	case <-time.After(d):
		return nil
	}
}

// fit cuts lines that the terminal would wrap: a board is drawn over as many
// lines as it has.
func fit(lines []string, width int) {
	for i, line := range lines {
		if r := []rune(line); width > 1 && len(r) >= width {
			lines[i] = string(r[:width-1])
		}
	}
}

// standing is where a rollout stands, in a line.
func standing(r rollout) string {
	line := fmt.Sprintf("%s  %-9s  %s", r.ID, r.State, r.counts())
	if len(r.Waves) > 1 {
		var waves []string
		for _, w := range r.Waves {
			waves = append(waves, w.Name+" "+w.State)
		}
		line += "  (" + strings.Join(waves, ", ") + ")"
	}
	if r.Unreachable > 0 {
		line += fmt.Sprintf("  %d unreachable", r.Unreachable)
	}
	return strings.TrimRight(line, " ")
}

// board is where a rollout stands, in lines of bars so wide: # ended well,
// ! badly, ? cannot be reached, . is not done yet.
func board(r rollout, width int) []string {
	head := fmt.Sprintf("%s  %s  %s", r.ID, r.Release, r.State)
	if r.Reason != "" {
		head += ": " + r.Reason
	}
	lines := []string{head}
	name := len("all of it")
	for _, w := range r.Waves {
		name = max(name, len([]rune(w.Name)))
	}
	row := func(of, state string, good, bad, silent, total int, more string) {
		lines = append(lines, strings.TrimRight(fmt.Sprintf("  %-*s  [%s]  %d of %d done, %d bad, %d unreachable  %s%s", name, of, barOf(good, bad, silent, total, width), good, total, bad, silent, state, more), " "))
	}
	for _, w := range r.Waves {
		if len(r.Waves) == 1 { // and whoever is in no wave yet
			w.Good, w.Bad, w.Unreachable, w.Total = r.Good, r.Bad, r.Unreachable, r.Total
		}
		more := ""
		if w.State == "SOAKING" && w.SoakedAt != nil {
			more = ", until " + w.SoakedAt.Add(time.Duration(w.SoakS)*time.Second).Local().Format("Jan 2 15:04")
		}
		row(w.Name, w.State, w.Good, w.Bad, w.Unreachable, w.Total, more)
	}
	if len(r.Waves) > 1 {
		row("all of it", "", r.Good, r.Bad, r.Unreachable, r.Total, "")
	}
	for _, h := range r.Holds {
		if h.ReleasedAt == nil {
			lines = append(lines, fmt.Sprintf("  held: %s%s: %s", h.Model, h.Site, h.Reason))
		}
	}
	if b := r.Bytes; b != nil && b.Wire+b.Peer+b.Medium+b.Reused > 0 {
		lines = append(lines, fmt.Sprintf("  bytes: %s from the service, %s from tills of the site, %s from sticks, %s found there", size(b.Wire), size(b.Peer), size(b.Medium), size(b.Reused)))
	}
	if r.ETA != nil {
		lines = append(lines, "  done by "+r.ETA.Local().Format("Jan 2 15:04")+" at this pace")
	}
	for i, line := range lines {
		lines[i] = plainText(line)
	}
	return lines
}

// barOf never rounds a bad or silent device away.
func barOf(good, bad, silent, total, width int) string {
	cells := func(n int) int {
		if n == 0 || total == 0 {
			return 0
		}
		return max(n*width/total, 1)
	}
	b, s := min(cells(bad), width), cells(silent)
	s = min(s, width-b)
	g := 0
	if total > 0 {
		g = min(good*width/total, width-b-s)
	}
	return strings.Repeat("#", g) + strings.Repeat("!", b) + strings.Repeat("?", s) + strings.Repeat(".", width-g-b-s)
}

// size is a number of bytes for people.
func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
