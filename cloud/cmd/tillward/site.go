package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
)

type siteCmd struct {
	List siteList `cmd:"" help:"List sites and their hours."`
	Set  siteSet  `cmd:"" help:"Set the hours of a site."`
}

type site struct {
	Name     string `json:"name"`
	Zone     string `json:"zone"`
	Download string `json:"download"`
	Install  string `json:"install"`
	Devices  int    `json:"devices"`
}

func siteRow(s site) string {
	return tab(s.Name, s.Zone, s.Download, s.Install, strconv.Itoa(s.Devices))
}

const siteHead = "SITE\tZONE\tDOWNLOAD\tINSTALL\tDEVICES"

type siteList struct{}

// Run implements the command.
func (siteList) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/sites", url.Values{}, 0)
	if err != nil {
		return err
	}
	return list(o, items, siteHead, siteRow)
}

type siteSet struct {
	Site     string  `arg:"" help:"Name of the site."`
	Zone     *string `help:"Time zone, e.g. Europe/Berlin; empty: UTC."`
	Download *string `help:"Hours in which updates may be fetched, e.g. 'mon-fri 22:00-05:00, sun 00:00-24:00'; empty: at any time." placeholder:"HOURS"`
	Install  *string `help:"Hours in which tills may be touched; empty: at any time." placeholder:"HOURS"`
}

// Run implements the command. What no flag names stays as it is.
func (c *siteSet) Run(ctx context.Context, o *out, api *client) error {
	items, err := api.all(ctx, "/v1/sites", url.Values{}, 0)
	if err != nil {
		return err
	}
	var now site
	for _, i := range items {
		var s site
		if err := json.Unmarshal(i, &s); err == nil && s.Name == c.Site {
			now = s
		}
	}
	for _, f := range []struct {
		to   *string
		flag *string
	}{{&now.Zone, c.Zone}, {&now.Download, c.Download}, {&now.Install, c.Install}} {
		if f.flag != nil {
			*f.to = *f.flag
		}
	}
	var raw json.RawMessage
	in := map[string]string{"zone": now.Zone, "download": now.Download, "install": now.Install}
	if err := api.send(ctx, "PUT", "/v1/sites/"+url.PathEscape(c.Site), in, &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, siteHead, siteRow)
}
