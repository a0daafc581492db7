package simulator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// errNobody says that the service knows no such device.
var errNobody = errors.New("no such device")

var meaning = regexp.MustCompile(`@(service|stranger|(issuer|label|code|web)/[0-9]+|[0-9]+(/[a-z0-9-]+)?)`)

// meant puts what is meant in the place of each @.
func (s *scenario) meant(ctx context.Context, args []string) (out []string, err error) {
	for _, a := range args {
		out = append(out, meaning.ReplaceAllStringFunc(a, func(at string) string {
			v, e := s.means(ctx, at[1:])
			err = errors.Join(err, e)
			return v
		}))
	}
	return out, err
}

func (s *scenario) means(ctx context.Context, at string) (string, error) {
	what, rest, _ := strings.Cut(at, "/")
	switch what {
	case "service":
		return filepath.Join(s.dir, "service"), nil
	case "stranger":
		if s.stranger == nil {
			s.stranger = httptest.NewUnstartedServer(http.NotFoundHandler())
			s.stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			s.stranger.StartTLS()
		}
		return s.stranger.URL, nil
	case "label":
		return s.label(rest), nil
	case "code":
		b, err := os.ReadFile(s.label(rest))
		return string(b), err
	case "issuer":
		items, err := s.issuers(ctx)
		n, _ := strconv.Atoi(rest)
		if err != nil || n < 1 || n > len(items) {
			return "", errors.Join(err, fmt.Errorf("no issuer %s of %d", rest, len(items)))
		}
		return items[len(items)-n].Serial, nil // the newest comes first
	case "web":
		t, err := s.box(rest)
		if err != nil {
			return "", err
		}
		return t.Web(), nil
	}
	if rest != "" {
		t, err := s.box(what)
		if err != nil {
			return "", err
		}
		d := t.Measured(rest).Digest()
		return fmt.Sprintf("%x", d), nil
	}
	d, err := s.device(ctx, what)
	if d == nil && err == nil {
		err = errNobody
	}
	id, _ := d["id"].(string)
	return id, err
}

func (s *scenario) label(n string) string { return filepath.Join(s.dir, "label-"+n) }

type issuer struct {
	Serial  string
	Current bool
}

func (s *scenario) issuers(ctx context.Context) ([]issuer, error) {
	var all struct{ Items []issuer }
	err := s.world.Operator.Get(ctx, "/v1/authority", &all)
	return all.Items, err
}

func (s *scenario) issuer(args []string) error {
	life, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	return s.world.IssueFor(life)
}

func (s *scenario) measure(args []string) error {
	t, err := s.box(args[0])
	if err != nil {
		return err
	}
	if len(args) == 1 {
		t.MeasureWell()
	}
	for _, a := range args[1:] {
		event, image, _ := strings.Cut(a, "=")
		t.Measure(event, image)
	}
	return nil
}

func (s *scenario) image(args []string) error {
	t, err := s.box(args[0])
	if err != nil {
		return err
	}
	if args[1] != "bare" {
		return fmt.Errorf("image %s: no such kind", args[1])
	}
	return t.Bare()
}

func (s *scenario) stick(args []string) error {
	t, err := s.box(args[0])
	if err != nil {
		return err
	}
	var file strings.Builder
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		fmt.Fprintf(&file, "%s = %q\n", k, v)
	}
	return t.PlugIn(file.String())
}

func (s *scenario) ship(args []string) error {
	for _, n := range args {
		t, err := s.box(n)
		if err != nil {
			return err
		}
		label, err := s.world.Label(s.ctx, t)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.label(n), []byte(label.Code), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *scenario) waive(args []string) error {
	d, err := s.device(s.ctx, args[0])
	if err != nil {
		return err
	}
	long, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	return s.world.Operator.Put(s.ctx, fmt.Sprintf("/v1/devices/%s/waiver", d["id"]), map[string]any{"until": time.Now().Add(long), "reason": "scenario"})
}

func (s *scenario) mark(args []string) error {
	d, err := s.device(s.ctx, args[0])
	for _, key := range args[1:] {
		s.marks[args[0]+" "+key] = text(d[key])
	}
	return err
}

// looks are the things to look at that are about trust.
var looks = map[string]func(s *scenario, ctx context.Context, args []string) (ok bool, got string, err error){
	"finding": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		d, err := s.device(ctx, args[0])
		list, _ := d["findings"].([]any)
		return anyOf(list, append([]string{"check=" + args[1]}, args[2:]...)), text(list), err
	},
	"attestation": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		d, err := s.device(ctx, args[0])
		if d == nil || err != nil {
			return false, "no such device", err
		}
		var all struct{ Items []any }
		err = s.world.Operator.Get(ctx, fmt.Sprintf("/v1/devices/%s/attestations?limit=1000", d["id"]), &all)
		return anyOf(all.Items, args[1:]), text(all.Items), err
	},
	"firmware": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		t, err := s.box(args[0])
		if err != nil {
			return false, "", err
		}
		var all struct{ Items []any }
		err = s.world.Operator.Get(ctx, "/v1/firmware?limit=1000&model="+url.QueryEscape(s.world.Model()), &all)
		m := t.Measured(args[1])
		return anyOf(all.Items, append([]string{fmt.Sprintf("pcr=%d", m.PCR), fmt.Sprintf("digest=%x", m.Digest())}, args[2:]...)), text(all.Items), err
	},
	"waiting": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		var all struct{ Items []any }
		err := s.world.Operator.Get(ctx, "/v1/waiting?limit=1000", &all)
		return anyOf(all.Items, append([]string{"serial=till-" + args[0]}, args[1:]...)), text(all.Items), err
	},
	"issuers": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		items, err := s.issuers(ctx)
		return strconv.Itoa(len(items)) == args[0], text(items), err
	},
	"ended": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		d, err := s.device(ctx, args[0])
		if d == nil || err != nil {
			return false, "no such device", err
		}
		cert, _ := d["certificate"].(map[string]any)
		if next, ok := cert["next"].(map[string]any); ok {
			cert = next
		}
		at, err := time.Parse(time.RFC3339, fmt.Sprint(cert["not_after"]))
		return time.Now().After(at), text(d["certificate"]), err
	},
	"changed": func(s *scenario, ctx context.Context, args []string) (bool, string, error) {
		was, marked := s.marks[args[0]+" "+args[1]]
		if !marked {
			return false, "", fmt.Errorf("%s of till %s was not marked", args[1], args[0])
		}
		d, err := s.device(ctx, args[0])
		now := text(d[args[1]])
		return d != nil && now != was, now, err
	},
	"readable": func(s *scenario, _ context.Context, args []string) (bool, string, error) {
		found := ""
		err := filepath.WalkDir(filepath.Join(s.dir, "till-"+args[0], "state"), func(path string, e os.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || e.Name() == "tillward-agent" {
				return nil //nolint:nilerr // the agent runs, and files come and go
			}
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(args[1])) {
				found += " " + filepath.Base(path)
			}
			return nil
		})
		return found != "", "files:" + found, err
	},
	"says": func(s *scenario, _ context.Context, args []string) (bool, string, error) {
		b, err := os.ReadFile(filepath.Join(s.dir, "till-"+args[0], "agent.log"))
		return bytes.Contains(b, []byte(args[1])), string(b[max(0, len(b)-1000):]), err
	},
}

// anyOf says whether one of a list is as the conditions say.
func anyOf(list []any, conditions []string) bool {
	for _, v := range list {
		if fields, ok := v.(map[string]any); ok && match(fields, conditions) {
			return true
		}
	}
	return false
}
