package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

type deviceSet struct {
	Device string  `arg:"" help:"Its id, label or serial number."`
	Site   *string `help:"The store it stands in; rollouts keep its hours (tillward site set)."`
	Group  *string `help:"Group that rollouts may pick."`
	Label  *string `help:"What people call it."`
}

// Run implements the command.
func (c *deviceSet) Run(ctx context.Context, o *out, api *client) error {
	change := map[string]string{}
	for key, v := range map[string]*string{"site": c.Site, "group": c.Group, "label": c.Label} {
		if v != nil {
			change[key] = *v
		}
	}
	if len(change) == 0 {
		return usage{errors.New("give --site, --group or --label")}
	}
	id, err := deviceID(ctx, api, c.Device)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := api.send(ctx, http.MethodPatch, "/v1/devices/"+url.PathEscape(id), change, &raw); err != nil {
		return err
	}
	if o.json {
		_, err := fmt.Fprintln(o.w, string(raw))
		return err
	}
	return list(o, []json.RawMessage{raw}, deviceHead, deviceRow)
}
