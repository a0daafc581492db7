package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// named is the plan with ids in place of what people call their devices.
func (p plan) named(ctx context.Context, api *client) (map[string]any, error) {
	spec, err := p.spec()
	if err != nil {
		return nil, err
	}
	filters := []any{spec["filter"]}
	if waves, ok := spec["waves"].([]map[string]any); ok {
		for _, w := range waves {
			filters = append(filters, w["filter"])
		}
	}
	for _, f := range filters {
		filter, ok := f.(map[string]any)
		if !ok {
			continue
		}
		names, ok := filter["devices"].([]string) // of flags; a file names ids
		if !ok {
			continue
		}
		ids := make([]string, len(names))
		for i, n := range names {
			if ids[i], err = deviceID(ctx, api, n); err != nil {
				return nil, err
			}
		}
		filter["devices"] = ids
	}
	return spec, nil
}

// deviceID finds a device by its id, or else by a label or serial number that
// no other device has.
func deviceID(ctx context.Context, api *client, name string) (string, error) {
	items, err := api.all(ctx, "/v1/devices", url.Values{"q": {name}}, 0)
	if err != nil {
		return "", err
	}
	var found []string
	for _, raw := range items {
		var d struct {
			ID     string `json:"id"`
			Label  string `json:"label"`
			Serial string `json:"serial"`
		}
		if err := json.Unmarshal(raw, &d); err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		if d.ID == name {
			return name, nil
		}
		if d.Label == name || d.Serial == name {
			found = append(found, d.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no device has %q as its id, label or serial number; tillward device list shows them", name)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d devices are called %q; use one of their ids: %s", len(found), name, strings.Join(found, ", "))
}
