package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

type auditSearch struct {
	Who      string `help:"Actor: an operator, a device, a room of the service."`
	What     string `help:"Kind, e.g. update.failed, or a class of kinds: update." placeholder:"KIND"`
	Device   string `help:"Its own entries, and those of the service about it."`
	Site     string `help:"Where the device was then."`
	Subject  string `help:"What it was done to: a device, a rollout, a peripheral, a token."`
	Severity string `help:"info, warn or alarm." enum:",info,warn,alarm" default:""`
	Outcome  string `help:"success, failure or refused." enum:",success,failure,refused" default:""`
	Trail    string `help:"Only the service's own trail (service), or only those of devices (devices)." enum:",service,devices" default:""`
	Since    string `help:"Stored since: a span as 7d or 90m, a day as 2026-11-01, or a time." placeholder:"WHEN"`
	Until    string `help:"Stored before." placeholder:"WHEN"`
	ByEvent  bool   `help:"--since and --until are about when it happened, by the clock of whoever recorded it. Quick with --device or --site."`
	Limit    int    `help:"At most so many." default:"100"`
	Follow   bool   `help:"Show the newest in the order of storing, and go on with what comes, until interrupted."`
}

// Help teaches by examples.
func (auditSearch) Help() string {
	return `Examples:
  tillward audit search --who anna --since 7d                    what somebody did this week
  tillward audit search --what update. --outcome failure         updates that went wrong, anywhere
  tillward audit search --site berlin --severity alarm --follow  alarms of a store, as they come
  tillward audit search --what access. --outcome refused         refused sign-ins and requests
  tillward --json audit search --device ID --limit 0             all of a till, for a machine`
}

type trailEntry struct {
	auditEvent
	Device  string `json:"device"`
	Outcome string `json:"outcome"`
	Site    string `json:"site"`
}

const searchHead = "TIME\tSEVERITY\tKIND\tOUTCOME\tACTOR\tSUBJECT\tSITE\tTRAIL\tDETAIL"

func searchRow(e trailEntry) string {
	var detail []string
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		detail = append(detail, k+"="+e.Detail[k])
	}
	at, trail := "", "service"
	if e.At != nil {
		at = e.At.Local().Format(time.DateTime)
	}
	if e.Device != "" {
		trail = e.Device
	}
	return tab(at, e.Severity, e.Kind, e.Outcome, e.Actor, e.Subject, e.Site, trail+"#"+strconv.FormatUint(e.Seq, 10), strings.Join(detail, " "))
}

// found is a page of a search.
type found struct {
	page
	Newest  string     `json:"newest"`
	Reached *time.Time `json:"reached"`
}

func (c *auditSearch) query(now time.Time) (url.Values, error) {
	q := url.Values{}
	for name, v := range map[string]string{
		"who": c.Who, "what": c.What, "device": c.Device, "site": c.Site, "subject": c.Subject, "severity": c.Severity, "outcome": c.Outcome, "trail": c.Trail,
	} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for _, w := range []struct{ flag, name, text string }{{"--since", "from", c.Since}, {"--until", "to", c.Until}} {
		if w.text == "" {
			continue
		}
		at, err := moment(w.text, now)
		if err != nil {
			return nil, usage{fmt.Errorf("%s %q: give a span as 7d or 90m, a day as 2026-11-01, or a time as 2026-11-01T18:30 or 2026-11-01T18:30:00Z", w.flag, w.text)}
		}
		q.Set(w.name, at.UTC().Format(time.RFC3339))
	}
	if c.ByEvent {
		q.Set("clock", "event")
	}
	return q, nil
}

// span is a number of minutes, hours, days or weeks.
var span = regexp.MustCompile(`^([0-9]{1,6})([mhdw])$`)

// moment reads a time, or a span before now.
func moment(text string, now time.Time) (time.Time, error) {
	if m := span.FindStringSubmatch(text); m != nil {
		n, err := strconv.Atoi(m[1])
		return now.Add(-time.Duration(n) * map[string]time.Duration{"m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}[m[2]]), err
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New("not a time")
}

// Run implements the command.
func (c *auditSearch) Run(ctx context.Context, o *out, api *client) error {
	q, err := c.query(time.Now())
	if err != nil {
		return err
	}
	if c.Limit < 0 {
		return usage{fmt.Errorf("--limit %d: give a number, or 0 for all", c.Limit)}
	}
	if c.Follow && c.Until != "" {
		return usage{errors.New("--follow and --until: what comes has not been stored yet; leave one out")}
	}
	items, newest, err := c.read(ctx, o, api, q)
	if err != nil {
		return err
	}
	if !c.Follow {
		return list(o, items, searchHead, searchRow)
	}
	slices.Reverse(items)
	return follow(ctx, o, api, q, items, newest)
}

// read reads pages until there are enough. Where two common things hardly ever
// come together that takes a while, and a terminal hears how far it is.
func (c *auditSearch) read(ctx context.Context, o *out, api *client, q url.Values) (items []json.RawMessage, newest string, err error) {
	f, isFile := o.err.(*os.File)
	watched := isFile && term.IsTerminal(int(f.Fd())) // #nosec G115 -- a descriptor
	for {
		want := 1000
		if c.Limit > 0 {
			want = min(want, c.Limit-len(items))
		}
		q.Set("limit", strconv.Itoa(want))
		var p found
		if err := api.get(ctx, "/v1/audit/search?"+q.Encode(), &p); err != nil {
			return nil, "", err
		}
		items = append(items, p.Items...)
		if newest == "" {
			newest = p.Newest
		}
		if p.Next == "" || c.Limit > 0 && len(items) >= c.Limit {
			if watched {
				fmt.Fprint(f, "\r\x1b[K")
			}
			return items, newest, nil
		}
		if q.Set("after", p.Next); watched && p.Reached != nil {
			fmt.Fprintf(f, "\r\x1b[K%d found, back to %s", len(items), p.Reached.Local().Format(time.DateTime))
		}
	}
}

const followEvery = time.Second

// follow prints items and goes on with what is stored, a line for each.
func follow(ctx context.Context, o *out, api *client, q url.Values, items []json.RawMessage, newest string) error {
	q.Del("from") // what comes is later
	q.Set("order", "asc")
	q.Set("limit", "1000")
	for lost := (time.Time{}); ; {
		for _, i := range items {
			line := string(i)
			if !o.json {
				var e trailEntry
				if err := json.Unmarshal(i, &e); err != nil {
					return fmt.Errorf("read the answer: %w", err)
				}
				line = strings.ReplaceAll(searchRow(e), "\t", "  ")
			}
			if _, err := fmt.Fprintln(o.w, line); err != nil {
				return err
			}
		}
		if rest(ctx, followEvery) != nil {
			return nil //nolint:nilerr // interrupted is how it ends
		}
		q.Set("after", newest)
		var p found
		switch err := api.get(ctx, "/v1/audit/search?"+q.Encode(), &p); {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, new(*url.Error)) && (lost.IsZero() || time.Since(lost) < patience):
			if lost.IsZero() {
				lost = time.Now()
				fmt.Fprintf(o.err, "tillward: %v; trying again\n", err)
			}
		case err != nil:
			return err
		default:
			lost, newest = time.Time{}, p.Newest
			if p.Next != "" {
				newest = p.Next
			}
		}
		items = p.Items
	}
}
