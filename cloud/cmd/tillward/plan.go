package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// plan are the flags that compose a rollout: a file, or flags, or flags over a
// file.
type plan struct {
	Spec        string         `help:"File with the whole plan as the API has it, JSON or TOML; flags change it." placeholder:"FILE" type:"path"`
	Group       string         `help:"Only devices of this group; all by default."`
	Model       string         `help:"Only devices of this model."`
	Site        string         `help:"Only devices of this site."`
	Device      []string       `help:"Only these devices, by id, label or serial number." placeholder:"DEVICE"`
	Wave        []string       `help:"A wave, in order; the last takes whoever is left. 'canary=till-1,till-2;soak=1h', '10%;soak=30m', 'pilot;group=pilot;success=99', 'rest'." sep:"none" placeholder:"WAVE"`
	Success     *float64       `help:"Percent that must have ended well before a wave passes; 95 by default."`
	Bad         *float64       `help:"Percent that may end badly before it pauses; 5 by default."`
	MinSample   *int           `help:"Ends before a share is judged; 20 by default."`
	MaxFailed   *int           `help:"Pause when more devices than this end badly, whatever their share."`
	SiteBad     *int           `help:"Bad ends in one site at which it is held; 2 by default."`
	Health      *float64       `help:"Pause when updated devices have this many times the faults of the others; 3 by default."`
	Rate        string         `help:"Devices offered it a minute: '50', or '50;factor=2;every=1000;max=400'." placeholder:"RATE"`
	PerSite     *int           `help:"Lanes of one site under way at once."`
	InFlight    *int           `help:"Devices under way at once; 500 by default."`
	Download    string         `help:"Hours of the sites in which it may be fetched, e.g. 'mon-fri 22:00-05:00, sun 00:00-24:00'; those of each site by default." placeholder:"HOURS"`
	Install     string         `help:"Hours of the sites in which tills may be touched." placeholder:"HOURS"`
	Deadline    *time.Duration `help:"For one attempt of a device, from its offer; 7 days by default."`
	Attempts    *int           `help:"Attempts of one device at ends that may pass; 3 by default."`
	Unreachable *time.Duration `help:"Silence after which no wave waits for a device; 24h by default."`
	Joiners     bool           `help:"Also bring it to devices that come only after the end."`
	RateKiB     *int           `name:"rate-kib" help:"KiB per second of one device's download."`
	Repair      bool           `help:"Offer it to quarantined devices, too."`
}

// spec is the plan as the API takes it.
func (p plan) spec() (map[string]any, error) {
	spec := map[string]any{}
	if p.Spec != "" {
		if err := readSpec(p.Spec, &spec); err != nil {
			return nil, usage{fmt.Errorf("--spec: %w", err)}
		}
	}
	filter, err := part(spec, "filter")
	if err != nil {
		return nil, err
	}
	gate, err := part(spec, "gate")
	if err != nil {
		return nil, err
	}
	text(filter, "group", p.Group)
	text(filter, "model", p.Model)
	text(filter, "site", p.Site)
	if len(p.Device) > 0 {
		filter["devices"] = p.Device
	}
	number(gate, "success", p.Success)
	number(gate, "bad", p.Bad)
	number(gate, "min_sample", p.MinSample)
	number(gate, "bad_cap", p.MaxFailed)
	number(gate, "site_bad", p.SiteBad)
	number(gate, "health", p.Health)
	number(spec, "per_site", p.PerSite)
	number(spec, "in_flight", p.InFlight)
	number(spec, "attempts", p.Attempts)
	number(spec, "rate_kib", p.RateKiB)
	text(spec, "download", p.Download)
	text(spec, "install", p.Install)
	if p.Joiners {
		spec["joiners"] = true
	}
	if p.Repair {
		spec["repair"] = true
	}
	for _, d := range []struct {
		flag, key string
		v         *time.Duration
	}{{"--deadline", "deadline_s", p.Deadline}, {"--unreachable", "unreachable_s", p.Unreachable}} {
		if d.v == nil {
			continue
		}
		s, err := seconds(d.flag, *d.v)
		if err != nil {
			return nil, err
		}
		spec[d.key] = s
	}
	if len(p.Wave) > 0 {
		waves := []map[string]any{}
		for _, text := range p.Wave {
			w, err := parseWave(text)
			if err != nil {
				return nil, usage{fmt.Errorf("--wave %q: %w", text, err)}
			}
			waves = append(waves, w)
		}
		spec["waves"] = waves
	}
	if p.Rate != "" {
		rate, err := parseRate(p.Rate)
		if err != nil {
			return nil, usage{fmt.Errorf("--rate %q: %w", p.Rate, err)}
		}
		spec["rate"] = rate
	}
	return spec, nil
}

// readSpec reads a plan by the name of its file: TOML, or else JSON.
func readSpec(path string, into *map[string]any) error {
	b, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return err
	}
	if filepath.Ext(path) == ".toml" {
		var at *toml.DecodeError
		if err := toml.Unmarshal(b, into); errors.As(err, &at) {
			return fmt.Errorf("%s:\n%s", path, at.String())
		} else if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// part is a table of a plan, made when it is not there.
func part(spec map[string]any, key string) (map[string]any, error) {
	if spec[key] == nil {
		spec[key] = map[string]any{}
	}
	m, ok := spec[key].(map[string]any)
	if !ok {
		return nil, usage{fmt.Errorf("--spec: %s is no table", key)}
	}
	return m, nil
}

func text(m map[string]any, key, v string) {
	if v != "" {
		m[key] = v
	}
}

func number[T any](m map[string]any, key string, v *T) {
	if v != nil {
		m[key] = *v
	}
}

// parseWave reads 'NAME[=DEVICE,...]' or 'SHARE%', then ;KEY=VALUE: what else
// picks devices, how long it soaks, and its own gate.
func parseWave(s string) (map[string]any, error) {
	head, rest, _ := strings.Cut(s, ";")
	head = strings.TrimSpace(head)
	wave, filter, gate := map[string]any{}, map[string]any{}, map[string]any{}
	name, devices, listed := strings.Cut(head, "=")
	wave["name"] = strings.TrimSpace(name)
	switch share, percent := strings.CutSuffix(head, "%"); {
	case percent:
		if float(wave, "percent", strings.TrimSpace(share)) != nil {
			return nil, fmt.Errorf("%q is no share such as 10%%", head)
		}
		wave["name"] = head
	case listed:
		var ids []string
		for id := range strings.SplitSeq(devices, ",") {
			if id = strings.TrimSpace(id); id != "" {
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 {
			return nil, errors.New("no device behind =")
		}
		filter["devices"] = ids
	}
	if wave["name"] == "" {
		return nil, errors.New("a wave needs a name")
	}
	err := pairs(rest, func(k, v string) error {
		switch k {
		case "soak":
			d, err := time.ParseDuration(v)
			if err != nil || d < time.Second {
				return fmt.Errorf("soak %q is no time such as 1h", v)
			}
			wave["soak_s"] = int(d / time.Second)
			return nil
		case "group", "model", "site":
			filter[k] = v
			return nil
		case "percent":
			return float(wave, k, strings.TrimSuffix(v, "%"))
		case "success", "bad", "health":
			return float(gate, k, strings.TrimSuffix(v, "%"))
		case "min-sample", "max-failed", "site-bad":
			n, err := strconv.Atoi(v)
			gate[map[string]string{"min-sample": "min_sample", "max-failed": "bad_cap", "site-bad": "site_bad"}[k]] = n
			return err
		}
		return fmt.Errorf("%q is not known; use soak, percent, group, model, site, success, bad, health, min-sample, max-failed or site-bad", k)
	})
	if len(filter) > 0 {
		wave["filter"] = filter
	}
	if len(gate) > 0 {
		wave["gate"] = gate
	}
	return wave, err
}

// parseRate reads 'BASE[;factor=F][;every=N][;max=M]'.
func parseRate(s string) (map[string]any, error) {
	head, rest, _ := strings.Cut(s, ";")
	rate := map[string]any{}
	if err := float(rate, "base", strings.TrimSpace(head)); err != nil {
		return nil, err
	}
	return rate, pairs(rest, func(k, v string) error {
		switch k {
		case "factor", "max":
			return float(rate, k, v)
		case "every":
			n, err := strconv.Atoi(v)
			rate[k] = n
			return err
		}
		return fmt.Errorf("%q is not known; use factor, every or max", k)
	})
}

// pairs hands on KEY=VALUE;KEY=VALUE.
func pairs(s string, take func(k, v string) error) error {
	for pair := range strings.SplitSeq(s, ";") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return fmt.Errorf("%q is no KEY=VALUE", pair)
		}
		if err := take(strings.TrimSpace(k), strings.TrimSpace(v)); err != nil {
			return err
		}
	}
	return nil
}

func float(m map[string]any, key, v string) error {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Errorf("%s %q is no number", key, v)
	}
	m[key] = f
	return nil
}
